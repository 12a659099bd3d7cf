"""Which files a model consists of: each that changes its numbers or ids is among them, wherever it lies."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from puna.config import FinetuneConfig, LoraConfig, ModelConfig, TuneConfig, to_dict
from puna.files import read_json, write_json
from puna.formats.contents import model_files, model_inputs
from puna.formats.convert import convert
from tests.formats.models import write_native_model

CONFIG = ModelConfig(dim=16, n_layers=1, n_heads=2, ffn_dim=24, vocab_size=320, context=32)


@pytest.fixture
def native(tmp_path):
    return write_native_model(tmp_path / "native", CONFIG)


def names(path):
    return [file.name for file in model_files(path)]


@pytest.mark.parametrize(
    ("to", "options", "weights"),
    [
        ("hf", {}, ["model.safetensors"]),
        ("meta", {"n_parts": 2}, ["consolidated.00.pth", "consolidated.01.pth"]),
        ("puna", {}, ["weights.safetensors"]),
    ],
)
def test_a_directory_s_weights_configuration_and_tokenizer(native, tmp_path, to, options, weights):
    convert(native, tmp_path / "out", to, **options)
    found = names(tmp_path / "out")
    assert set(weights) <= set(found)
    assert {"params.json" if to == "meta" else "config.json", "tokenizer.model"} <= set(found)
    assert "manifest.json" not in found


def test_a_gguf_file_and_all_files_of_a_split_one(native, tmp_path):
    convert(native, tmp_path / "m[1].gguf", "gguf")
    assert names(tmp_path / "m[1].gguf") == ["m[1].gguf"]
    for number in (1, 2):
        shutil.copy(tmp_path / "m[1].gguf", tmp_path / f"m[1]-0000{number}-of-00002.gguf")
    together = [f"m[1]-0000{number}-of-00002.gguf" for number in (1, 2)]
    assert names(tmp_path / together[1]) == together


def test_a_run_s_newest_checkpoint_by_number_in_all_its_files(native):
    for step in ("step-999900", "step-1000000"):
        folder = native / "checkpoints" / step
        folder.mkdir(parents=True)
        for part in (1, 2):
            (folder / f"weights-0000{part}-of-00002.safetensors").write_bytes(b"")
    (native / "weights.safetensors").unlink()
    found = [file for file in model_files(native) if file.suffix == ".safetensors"]
    assert [file.parent.name for file in found] == ["step-1000000"] * 2


def test_a_manifest_json_of_another_program_is_no_record_of_ours(native, tmp_path):
    convert(native, tmp_path / "hf", "hf")
    (tmp_path / "hf/manifest.json").write_text("[]")
    assert "model.safetensors" in {Path(one.path).name for one in model_inputs(tmp_path / "hf")}
    convert(native, tmp_path / "puna", "puna")
    (one,) = model_inputs(tmp_path / "puna")
    assert one.stage == "convert" and one.fingerprint


def adapted(folder, base):
    """A run that trained an adapter of `base`, whose tensors lie in two files."""
    held = write_native_model(folder, CONFIG)
    run = TuneConfig(
        model=CONFIG, finetune=FinetuneConfig(model=str(base)), lora=LoraConfig(r=2, targets=("wq",))
    )
    write_json(held / "config.json", to_dict(run))
    name = "blocks.0.wq"
    for part, factor in enumerate((f"{name}_lora_A", f"{name}_lora_B"), 1):
        shape = (2, 16) if factor.endswith("A") else (16, 2)
        save_file({factor: torch.ones(shape)}, held / f"weights-0000{part}-of-00002.safetensors")
    (held / "weights.safetensors").unlink()
    folder = held / "checkpoints/step-000001"
    folder.mkdir(parents=True)
    for file in held.glob("weights-*"):
        file.rename(folder / file.name)
    return held


def test_an_adapter_is_read_from_several_files_and_its_base_belongs_to_it(native, tmp_path):
    run = adapted(tmp_path / "run", native)
    files = model_files(run)
    assert {file.parent for file in files} == {run, run / "checkpoints/step-000001", native}
    convert(run, tmp_path / "merged", "puna", "fp32")
    merged = load_file(tmp_path / "merged/weights.safetensors")["blocks.0.wq"]
    base = load_file(native / "weights.safetensors")["blocks.0.wq"]
    torch.testing.assert_close(merged, base + 2 * 32.0 / 2)


def test_a_base_that_is_gone_is_named(native, tmp_path):
    run = adapted(tmp_path / "run", native)
    write_json(run / "config.json", {**(values := read_json(run / "config.json")),
                                     "finetune": {**values["finetune"], "model": "gone"}})  # fmt: skip
    with pytest.raises(ValueError, match="base model gone is not there"):
        model_files(run)
