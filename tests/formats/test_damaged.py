"""Damaged and malicious files are refused in one line that names them, and leave nothing behind."""

import io
import json
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.cli import main
from puna.formats import safetensors_stream
from puna.formats.convert import convert
from puna.gguf import MAGIC, read_header
from puna.tokens.tokenizer import Tokenizer
from tests.formats.models import PLAIN, write_native_model


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """One model in every format, not to be changed."""
    root = tmp_path_factory.mktemp("models")
    source = write_native_model(root / "puna", PLAIN)
    convert(source, root / "hf", "hf")
    convert(source, root / "meta", "meta", n_parts=2)
    convert(source, root / "model.gguf", "gguf")
    return root


@pytest.fixture
def copy(models, tmp_path):
    """A copy that may be damaged."""
    return lambda name: (
        Path(shutil.copy(models / name, tmp_path / name))
        if name.endswith(".gguf")
        else Path(shutil.copytree(models / name, tmp_path / name))
    )


def refusal(source: Path, capsys) -> str:
    """Converting fails in one line, with exit code 2, and writes nothing."""
    folder = source.parent
    before = set(folder.iterdir())
    assert main(["convert", str(source), str(folder / "out"), "--to", "puna"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert set(folder.iterdir()) == before
    return error


def header_of(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(path: Path, header: dict, body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


# ---- safetensors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["puna", "hf"])
def test_a_truncated_safetensors_file(copy, capsys, name):
    source = copy(name)
    path = next(source.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path} cannot be read" in refusal(source, capsys)


@pytest.mark.parametrize("length", [0, 7, 2**31, 2**63])
def test_a_safetensors_header_that_lies_about_its_length(copy, capsys, length):
    path = copy("hf") / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert f"{path} cannot be read" in refusal(path.parent, capsys)


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0, 2**60]},
        {"data_offsets": [-4, 252]},
        {"shape": [2**62]},
        {"shape": ["64"]},
        {"dtype": "F128"},
    ],
)
def test_a_safetensors_header_that_lies_about_a_tensor(copy, capsys, change):
    path = copy("hf") / "model.safetensors"
    header, body = header_of(path)
    header["model.norm.weight"] |= change
    with_header(path, header, body)
    assert f"{path} cannot be read" in refusal(path.parent, capsys)


def test_weights_in_a_precision_that_puna_does_not_read(copy, capsys):
    path = copy("hf") / "model.safetensors"
    header, body = header_of(path)
    header["model.norm.weight"] |= {"dtype": "I32"}
    with_header(path, header, body)
    assert "model.norm.weight is stored as I32; puna reads F32, BF16, F16" in refusal(path.parent, capsys)


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"lm_head.weight": "model-00002-of-00002.safetensors"}, "lacks the shard model-00002-of-00002"),
        ({"lm_head.weight": "../../secret.safetensors"}, "names the shard '../../secret.safetensors'"),
        ({"lm_head.weight": 7}, "lacks the shard 7"),
        ({}, "lacks the field weight_map"),
        ([], "lacks the field weight_map"),
    ],
)
def test_an_index_that_leads_astray(copy, capsys, weight_map, said):
    source = copy("hf")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert said in refusal(source, capsys)


@pytest.mark.parametrize(
    "change",
    [
        {"added_tokens": [{"content": "a"}]},
        {"added_tokens": [{"content": "a", "special": True, "id": 10**9}]},
        {"model": None},
        {"model": {"type": "BPE", "vocab": ["a"]}},
        {"model": {"type": "BPE", "vocab": {"<s>": 1, "</s>": 2}, "dropout": 0.1}},
    ],
    ids=repr,
)
def test_a_malformed_tokenizer_json(copy, capsys, change):
    file = copy("hf") / "tokenizer.json"
    (file.parent / "tokenizer.model").unlink()
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert str(file) in refusal(file.parent, capsys)


def test_two_files_with_the_same_tensor_are_named(copy, capsys):
    source = copy("hf")
    shutil.copy(source / "model.safetensors", source / "other.safetensors")
    index = source / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "other.safetensors"}}')
    assert "holds two models, model.safetensors and that of" in refusal(source, capsys)
    index.write_text('{"weight_map": {"a": "other.safetensors", "b": "model.safetensors"}}')
    line = refusal(source, capsys)
    assert "other.safetensors holds model." in line and "/model.safetensors holds too" in line
    index.write_text('{"weight_map": {"a": "model.safetensors"}}')
    assert len(convert(source, source.parent / "out", "puna").outputs) > 1


def test_pickled_weights_of_hugging_face_are_not_opened(copy, capsys):
    source = copy("hf")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    assert "*.bin files are pickles" in refusal(source, capsys)


@pytest.mark.parametrize("text", ["{", "[1]", "7", "[" * 100_000, b"\xff\xfe"], ids=repr)
def test_a_configuration_that_is_no_object(copy, capsys, text):
    source = copy("hf")
    (source / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert str(source / "config.json") in refusal(source, capsys)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"dim": "64"}, "model.dim is '64'"),
        ({"n_layers": 2**31}, "lacks the tensor blocks.2.attention_norm"),
        ({"width": 64}, "unknown field model.width"),
        ({"dim": 128}, "embedding has shape (320, 64)"),
        ({"n_heads": 7}, "model.dim is 64, not divisible by model.n_heads 7"),
    ],
)
def test_a_run_configuration_that_does_not_fit(copy, capsys, section, said):
    source = copy("puna")
    values = json.loads((source / "config.json").read_text())
    values["model"] |= section
    (source / "config.json").write_text(json.dumps(values))
    line = refusal(source, capsys)
    assert str(source) in line
    assert said in line


# ---- Meta ------------------------------------------------------------------------------------------


class Evil:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code_does_not_run_it(copy, capsys, tmp_path):
    source = copy("meta")
    loot = source / "was-run"
    torch.save({"norm.weight": Evil(loot)}, source / "consolidated.00.pth")
    line = refusal(source, capsys)
    assert "consolidated.00.pth holds more than tensors" in line
    assert "could run code" in line
    assert not loot.exists()


def test_a_bare_pickle_that_runs_code_does_not_run_it(copy, capsys):
    source = copy("meta")
    loot = source / "was-run"
    (source / "consolidated.01.pth").write_bytes(pickle.dumps(Evil(loot)))
    assert "consolidated.01.pth" in refusal(source, capsys)
    assert not loot.exists()


@pytest.mark.parametrize("kept", [0, 10, 4_000, -5_000, -1])
def test_a_truncated_part(copy, capsys, kept):
    source = copy("meta")
    path = source / "consolidated.01.pth"
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path} cannot be read" in refusal(source, capsys)


def test_a_missing_part(copy, capsys):
    source = copy("meta")
    (source / "consolidated.00.pth").unlink()
    assert "holds the parts consolidated.01.pth; a model is 1, 2, 4 or 8" in refusal(source, capsys)


def test_a_part_of_another_model(copy, capsys):
    source = copy("meta")
    path = source / "consolidated.01.pth"
    held = torch.load(path, weights_only=True)
    held["layers.1.attention.wk.weight"] = torch.zeros(3, 64)
    torch.save(held, path)
    assert f"{path}: layers.1.attention.wk.weight has shape (3, 64)" in refusal(source, capsys)


@pytest.mark.parametrize(
    "held", [[], [torch.ones(2)], {"norm.weight": 3.0}, {"norm.weight": torch.ones(2).int()}]
)
def test_a_part_that_holds_no_weights(copy, capsys, held):
    source = copy("meta")
    torch.save(held, source / "consolidated.00.pth")
    assert "consolidated.00.pth" in refusal(source, capsys)


def test_a_tensor_larger_than_its_storage(copy, capsys):
    source = copy("meta")
    path = source / "consolidated.00.pth"
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name)[:4] if name.endswith("/data/0") else old.read(name))
    path.write_bytes(buffer.getvalue())
    assert str(path) in refusal(source, capsys)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"n_layers": "2"}, "n_layers is '2'"),
        ({"moe_args": {"num_experts": 8}}, "moe_args"),
        ({"vocab_size": 7}, "vocab_size is 7; the output has 320 rows"),
        ({"dim": 128}, "norm.weight has shape"),
        ({"n_layers": 4}, "lacks the tensor layers.2."),
    ],
)
def test_params_that_do_not_fit(copy, capsys, params, said):
    source = copy("meta")
    values = json.loads((source / "params.json").read_text())
    (source / "params.json").write_text(json.dumps(values | params))
    line = refusal(source, capsys)
    assert str(source) in line
    assert said in line or "has shape" in line


# ---- GGUF ------------------------------------------------------------------------------------------


def gguf_bytes(version: int = 3, tensors: int = 0, keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def key(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


STRING, ARRAY, UINT8 = 8, 9, 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (b"GGML" + bytes(40), "begins with b'GGML'"),
        (b"GG", "2 are left"),
        (gguf_bytes(version=99), "version is 99"),
        (gguf_bytes(tensors=2**60), "claims 1152921504606846976 tensors"),
        (gguf_bytes(keys=2**63), "keys, more than its size has room for"),
        (gguf_bytes(keys=1, rest=struct.pack("<Q", 2**50) + bytes(40)), "should be 1125899906842624 bytes"),
        (gguf_bytes(keys=1, rest=key("a", ARRAY, struct.pack("<IQ", UINT8, 2**40))), "elements of a"),
        (
            gguf_bytes(keys=1, rest=key("a", ARRAY, struct.pack("<IQ", ARRAY, 1) + bytes(8))),
            "array of arrays",
        ),
        (gguf_bytes(keys=1, rest=key("a", 77, bytes(8))), "a is of the unknown type 77"),
        (gguf_bytes(keys=1, rest=key("a", STRING, struct.pack("<Q", 2) + b"\xff\xfe")), "not UTF-8"),
        (gguf_bytes(keys=2, rest=key("a", UINT8, b"1") * 2), "it has a twice"),
        (
            gguf_bytes(keys=1, rest=key("general.alignment", 4, struct.pack("<I", 3))),
            "general.alignment is 3, not a power of two",
        ),
        (
            gguf_bytes(
                tensors=1, rest=struct.pack("<Q", 1) + b"w" + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0)
            ),
            "w ends at byte",
        ),
        (
            gguf_bytes(tensors=1, rest=struct.pack("<Q", 1) + b"w" + struct.pack("<IQIQ", 2**31, 1, 0, 0)),
            "w has 2147483648 dimensions",
        ),
        (
            gguf_bytes(
                tensors=1, rest=struct.pack("<Q", 1) + b"w" + struct.pack("<IQIQ", 1, 33, 8, 0) + bytes(99)
            ),
            "not a multiple of Q8_0's 32",
        ),
        (
            gguf_bytes(tensors=1, rest=struct.pack("<Q", 1) + b"w" + struct.pack("<IQIQ", 1, 32, 999, 0)),
            "w is of the unknown type 999",
        ),
    ],
)
def test_a_gguf_file_with_a_header_that_lies(tmp_path, capsys, data, said):
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    line = refusal(path, capsys)
    assert str(path) in line
    assert said in line


@pytest.mark.parametrize("lost", [1, 1000, 400_000])
def test_a_truncated_gguf_file(copy, capsys, lost):
    path = copy("model.gguf")
    path.write_bytes(path.read_bytes()[:-lost])
    assert f"{path} is not a valid GGUF file" in refusal(path, capsys)


def rewritten(models: Path, path: Path, values: dict, drop: str = "", extra: bool = False) -> None:
    """The model's GGUF file with other keys, or other tensors."""
    reader = gguf.GGUFReader(models / "model.gguf")
    architecture = values.pop("general.architecture", "llama")
    writer = gguf.GGUFWriter(path, architecture)
    for name, field in reader.fields.items():
        if name.startswith(("llama.", "tokenizer.")) and name not in values:
            kind, *of = field.types
            writer.add_key_value(name, field.contents(), kind, of[0] if of else None)
    for name, (value, kind) in values.items():
        if value is not None:
            writer.add_key_value(name, value, kind)
    for tensor in reader.tensors:
        if tensor.name != drop:
            writer.add_tensor(tensor.name, tensor.data)
    if extra:
        writer.add_tensor("blk.0.attn_q.bias", reader.tensors[1].data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


U32, F32, TEXT = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.STRING


@pytest.mark.parametrize(
    ("values", "others", "said"),
    [
        ({"general.architecture": "qwen2"}, {}, "general.architecture is 'qwen2'"),
        ({"llama.embedding_length": (None, U32)}, {}, "lacks the field llama.embedding_length"),
        ({"llama.embedding_length": ("64", TEXT)}, {}, "llama.embedding_length is '64'"),
        ({"llama.block_count": (2**31, U32)}, {}, "lacks the tensor blk.2."),
        ({"llama.expert_count": (8, U32)}, {}, "llama.expert_count is 8"),
        ({"llama.rope.scaling.type": ("yarn", TEXT)}, {}, "llama.rope.scaling.type is 'yarn'"),
        ({"llama.attention.key_length": (32, U32)}, {}, "llama.attention.key_length is 32"),
        ({"llama.rope.freq_base": (float("nan"), F32)}, {}, "model.rope_base is nan"),
        ({}, {"drop": "blk.1.ffn_up.weight"}, "lacks the tensor blk.1.ffn_up.weight"),
        ({}, {"extra": True}, "unexpected tensor blk.0.attn_q.bias"),
    ],
)
def test_a_gguf_model_that_puna_does_not_implement(models, tmp_path, capsys, values, others, said):
    path = tmp_path / "other.gguf"
    rewritten(models, path, dict(values), **others)
    line = refusal(path, capsys)
    assert str(path) in line
    assert said in line


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 6000), st.binary(min_size=1, max_size=9))
def test_any_flipped_bytes_of_a_gguf_header_are_refused_or_harmless(models, tmp_path, place, noise):
    data = bytearray((models / "model.gguf").read_bytes())
    data[place : place + len(noise)] = noise
    path = tmp_path / "noisy.gguf"
    path.write_bytes(data)
    try:
        read_header(path)
        Tokenizer(path)
    except ValueError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"tokenizer.ggml.eos_token_id": (2**32 - 1, U32)},
            "tokens, but tokenizer.ggml.eos_token_id 42949",
        ),
        ({"tokenizer.ggml.bos_token_id": ("<s>", TEXT)}, "tokenizer.ggml.bos_token_id '<s>'"),
        ({"tokenizer.ggml.unknown_token_id": (320, U32)}, "tokenizer.ggml.unknown_token_id 320"),
        ({"tokenizer.ggml.scores": (1.0, F32)}, "not as many values of tokenizer.ggml.scores"),
        ({"tokenizer.ggml.eos_token_id": (None, U32)}, "has no tokenizer.ggml.eos_token_id"),
    ],
)
def test_a_gguf_vocabulary_that_contradicts_itself(models, tmp_path, capsys, values, said):
    path = tmp_path / "other.gguf"
    rewritten(models, path, dict(values))
    line = refusal(path, capsys)
    assert str(path) in line and said in line


# ---- no format at all ------------------------------------------------------------------------------


def test_what_is_no_model_is_named(tmp_path, capsys):
    assert "is not there" in refusal(tmp_path / "nowhere", capsys)
    (tmp_path / "empty").mkdir()
    assert "holds neither config.json" in refusal(tmp_path / "empty", capsys)
    (tmp_path / "model.pth").write_bytes(b"")
    assert "not a .gguf" in refusal(tmp_path / "model.pth", capsys)


def test_a_disk_that_fills_leaves_nothing(models, tmp_path, monkeypatch):
    def full(self, name, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_stream.SafetensorsWriter, "append", full)
    with pytest.raises(OSError, match="No space left"):
        convert(models / "hf", tmp_path / "out", "puna")
    assert not list(tmp_path.iterdir())


def test_a_gguf_header_is_parsed_once_while_it_is_held_and_again_when_the_file_changes(tmp_path):
    path = tmp_path / "empty.gguf"
    path.write_bytes(MAGIC + struct.pack("<IQQ", 3, 0, 0))
    header = read_header(path)
    assert read_header(path) is header
    path.write_bytes(MAGIC + struct.pack("<IQQ", 2, 0, 0) + bytes(8))
    assert (header.version, read_header(path).version) == (3, 2)
