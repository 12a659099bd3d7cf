"""Tokenizers of other people's models: into GGUF and back, Llama 3's tiktoken file, files that disagree."""

import base64
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

from puna.config import Sampling
from puna.formats.convert import convert
from puna.generate.engine import Engine
from puna.generate.load import load_engine
from puna.generate.request import Request
from puna.tokens.chat_template import ChatTemplate, encode_special
from puna.tokens.tokenizer import Tokenizer
from puna.tokens.vocabularies.tokenizer_json import characters_of_bytes
from tests.conftest import byte_level
from tests.formats.models import PLAIN, write_native_model
from tests.formats.test_peers import ids_of_peer, peer

__all__ = ["peer"]

STRANGE = [
    "the llama carries 12 stones",
    " two  spaces\tand\nlines\r\n\n ",
    "Ünï'S I'll 雪 20245 ١٢",
    "\0a<s>🦙",
]
BYTES = ByteLevel(add_prefix_space=False)
UNCUT = ByteLevel(add_prefix_space=False, use_regex=False)
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
CUTS = {  # as the published files of these models have them
    "gpt-2": BYTES,
    "smollm": Sequence([Digits(individual_digits=True), BYTES]),
    "llama-bpe": Sequence([Split(Regex(LLAMA_3), "isolated"), UNCUT]),
}


def with_byte_level(folder: Path, pre: str) -> Path:
    """A directory in Hugging Face's format with a byte-level tokenizer.json."""
    config = replace(PLAIN, vocab_size=410)
    convert(write_native_model(folder / "source", config), folder / "hf", "hf")
    hf = folder / "hf"
    (hf / "tokenizer.model").unlink()
    made = byte_level(["<|begin|>", "<|end|>", "<|im_end|>"])
    made.pre_tokenizer = CUTS[pre]
    made.add_tokens(["<tool>"])
    definition = json.loads(made.to_str())
    definition["model"]["ignore_merges"] = pre == "llama-bpe"
    (hf / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False))
    names = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "add_bos_token": True}
    (hf / "tokenizer_config.json").write_text(json.dumps(names | {"chat_template": "{{ messages }}"}))
    (hf / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    return hf


@pytest.mark.parametrize("pre", CUTS)
def test_a_byte_level_tokenizer_json_goes_into_gguf_whole(tmp_path, pre):
    hf, file = with_byte_level(tmp_path, pre), tmp_path / "model.gguf"
    convert(hf, file, "gguf")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}
    key = "tokenizer.ggml."
    assert (fields[key + "model"], fields[key + "pre"]) == ("gpt2", pre)
    assert fields[key + "token_type"][:4] == [3, 3, 3, 1]
    tool = fields[key + "tokens"].index("<tool>")
    assert fields[key + "tokens"][tool + 1 :] == [f"[PAD{id}]" for id in range(tool + 1, 410)]
    assert fields[key + "token_type"][tool - 1 :] == [1, 4] + [5] * (409 - tool)
    assert [fields[key + f"{name}_token_id"] for name in ("bos", "eos", "eot")] == [0, 1, 2]
    assert fields[key + "add_bos_token"] is True
    theirs = tokenizers.Tokenizer.from_file(str(hf / "tokenizer.json"))
    engine = load_engine(file, weights="fp32", cache_tokens=64)
    for text in [*STRANGE, "a <tool> b"]:
        assert engine.tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert engine.tokenizer.adds_bos and {1, 2} <= engine.stop_ids
    assert engine.template is not None
    ids = engine.encode("the llama")
    assert answered(load_engine(hf, weights="fp32", cache_tokens=64), ids) == answered(engine, ids)


def answered(engine: Engine, ids: list[int]) -> list[int]:
    request = Request(tuple(ids), Sampling(temperature=0), 8, ignore_eos=True)
    return [token.id for _, chunk in engine.answers([request]) for token in chunk.tokens]


def test_a_tokenizer_json_that_gguf_cannot_hold_is_refused_by_name(tmp_path):
    hf = with_byte_level(tmp_path, "gpt-2")
    definition = json.loads((hf / "tokenizer.json").read_text())
    for change in (
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
    ):
        (hf / "tokenizer.json").write_text(json.dumps(definition | change))
        with pytest.raises(ValueError, match=r"tokenizer\.json prepares its text in a way that GGUF"):
            convert(hf, tmp_path / "model.gguf", "gguf")
    assert not (tmp_path / "model.gguf").exists()


def hard_texts() -> list[str]:
    """Some hundred texts that encoders get wrong, control tokens and white space among them."""
    draw = random.Random(7)
    letters = (
        " \n\t\r'sStTmMdDlLrRvVeE0123456789abcé雪🦙ß١½.,!?-_<|>/\u00a0\u3000\u0301\u200d\u2028\u0085İſ\ufeff"
    )
    texts = ["".join(draw.choices(letters, k=draw.randrange(1, 40))) for _ in range(400)]
    return [*texts, *STRANGE[:3], "<|begin|>a<|end|> b", " <|im_end|>\n<tool> c", "<s>a</s> b<s>"]


@pytest.mark.slow
@pytest.mark.parametrize("pre", [*CUTS, "pieces"])
def test_llama_cpp_gives_the_same_ids(tmp_path, peer, pre):
    source = (
        write_native_model(tmp_path / "pieces", PLAIN) if pre == "pieces" else with_byte_level(tmp_path, pre)
    )
    convert(source, tmp_path / "model.gguf", "gguf")
    ours, texts = Tokenizer(tmp_path / "model.gguf"), hard_texts()
    for text, theirs in zip(texts, ids_of_peer(peer, tmp_path / "model.gguf", texts), strict=True):
        plain, special = ours.encode(text), encode_special(ours, text)
        assert theirs == [plain, special, [ours.bos_id, *plain], [ours.bos_id, *special]], text


# ---- Llama 3 in Meta's layout


@pytest.fixture(scope="module")
def llama_3(tmp_path_factory) -> tuple[Path, tokenizers.Tokenizer]:
    """A directory in Meta's layout with a tiktoken file, and the same vocabulary in tokenizers' library."""
    oracle = byte_level([])
    oracle.pre_tokenizer = CUTS["llama-bpe"]
    oracle.model.ignore_merges = True
    values = {character: byte for byte, character in characters_of_bytes().items()}
    vocab = sorted(oracle.get_vocab().items(), key=lambda item: item[1])
    lines = [base64.b64encode(bytes(map(values.get, text))) + b" %d" % id for text, id in vocab]
    folder = tmp_path_factory.mktemp("llama-3")
    config = replace(PLAIN, vocab_size=len(vocab) + 256)
    convert(write_native_model(folder / "source", config), folder / "meta", "meta")
    (folder / "meta/tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    return folder / "meta", oracle


def test_a_tiktoken_file_gives_the_ids_of_its_library(llama_3):
    folder, oracle = llama_3
    ours = Tokenizer(folder)
    for text in STRANGE:
        assert ours.encode(text) == oracle.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    assert ours.adds_bos and ours.control_text(ours.bos_id) == "<|begin_of_text|>"
    assert ours.controls["<|eot_id|>"] == oracle.get_vocab_size() + 9


@pytest.mark.parametrize("to", ["hf", "puna", "meta", "gguf"])
def test_llama_3_of_meta_generates_in_every_format(llama_3, tmp_path, to):
    out = tmp_path / ("out.gguf" if to == "gguf" else "out")
    convert(llama_3[0], out, to)
    before, after = (load_engine(path, weights="fp32", cache_tokens=64) for path in (llama_3[0], out))
    ids = before.encode("the llama carries 2024 stones")
    assert after.encode("the llama carries 2024 stones") == ids
    assert ids[0] == before.tokenizer.bos_id
    assert answered(after, ids) == answered(before, ids)


# ---- tokenizer.json beside tokenizer.model


@pytest.fixture
def both(tmp_path) -> tuple[Path, dict]:
    """A directory with a tokenizer.model, and the definition of the tokenizer.json that agrees with it."""
    folder = write_native_model(tmp_path / "both", PLAIN)
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    vocab = {pieces.id_to_piece(id): id for id in range(len(pieces))}
    added = [{"id": id, "content": pieces.id_to_piece(id), "special": True} for id in range(3)]
    added.append({"id": 320, "content": "<|im_end|>", "special": True})
    return folder, {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": added}


def changed(definition: dict, how: str) -> None:
    vocab = definition["model"]["vocab"]
    if how == "two ids are exchanged":
        first, second = list(vocab)[300:302]
        vocab[first], vocab[second] = vocab[second], vocab[first]
    elif how == "a token is missing":
        del vocab[list(vocab)[310]]
    elif how == "there is one more":
        vocab["more"] = 320
        definition["added_tokens"].pop()
    elif how == "an added token is another":
        definition["added_tokens"][1]["content"] = "<begin>"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("two ids are exchanged", "token 300 is"),
        ("a token is missing", "token 310 is None"),
        ("there is one more", "token 320 is 'more'"),
        ("an added token is another", "token 1 is"),
    ],
)
def test_a_tokenizer_json_that_disagrees_with_tokenizer_model_is_named(both, how, said):
    folder, definition = both
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    assert Tokenizer(folder).vocab_size == 321
    changed(definition, how)
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(ValueError, match=said) as error:
        Tokenizer(folder)
    assert "tokenizer.json" in str(error.value) and "tokenizer.model" in str(error.value)


@pytest.mark.parametrize("pre", CUTS)
def test_a_byte_level_gguf_becomes_a_directory_that_transformers_reads(tmp_path, pre):
    convert(with_byte_level(tmp_path, pre), tmp_path / "model.gguf", "gguf")
    convert(tmp_path / "model.gguf", tmp_path / "back", "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    ours = Tokenizer(tmp_path / "model.gguf")
    for text in STRANGE:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert theirs("a")["input_ids"] == [ours.bos_id, *ours.encode("a")]
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    assert theirs.chat_template == "{{ messages }}"
    for name, id in ours.controls.items():
        assert theirs(name, add_special_tokens=False)["input_ids"] == [id]
    assert json.loads((tmp_path / "back/generation_config.json").read_text())["eos_token_id"] == [1, 2]
    assert Tokenizer(tmp_path / "back").encode(STRANGE[0]) == ours.encode(STRANGE[0])


# ---- SentencePiece into Hugging Face's format


@pytest.fixture(scope="module", params=["gguf", "tokenizer.model"])
def exported(request, tmp_path_factory):
    """A chat model's vocabulary as transformers reads it from what `--to hf` wrote, and as we read it."""
    folder = tmp_path_factory.mktemp("exported")
    source = write_native_model(folder / "source", replace(PLAIN, vocab_size=324))
    (source / "chat_template.jinja").write_text(TALK)
    if request.param == "gguf":  # whose control tokens beyond the pieces have files of their own here
        (source / "added_tokens.json").write_text('{"<|im_start|>": 320, "<|im_end|>": 321}')
        names = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
        (source / "tokenizer_config.json").write_text(json.dumps(names))
        convert(source, folder / "model.gguf", "gguf")
        source = folder / "model.gguf"
    convert(source, folder / "hf", "hf")
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "source/tokenizer.model"))
    return transformers.AutoTokenizer.from_pretrained(folder / "hf"), Tokenizer(folder / "hf"), pieces


TALK = (
    "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@given(
    text=st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"])) | st.text(" a\n<s>0é")
)
def test_transformers_gives_sentencepieces_ids(exported, text):
    theirs, ours, pieces = exported
    text = re.sub("|".join(map(re.escape, filter(None, ours.controls))), "", text)
    expected = pieces.encode(text)
    assert theirs.encode(text, add_special_tokens=False) == expected
    assert theirs.encode(text) == [1, *expected]
    assert theirs.decode(expected) == text


def test_transformers_lays_out_conversations_as_we_do(exported):
    theirs, ours, _ = exported
    template = ChatTemplate.of(ours)
    for said in ("the llama", " two  spaces\nand lines ", "12 é 🦙", ""):
        messages = [{"role": "user", "content": said}, {"role": "assistant", "content": "salt"}]
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert template.encode(messages) == expected
    for text, id in ours.controls.items():
        assert theirs.encode(text, add_special_tokens=False) == [id]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.chat_template) == (1, 2, TALK)
