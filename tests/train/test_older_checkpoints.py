"""Checkpoints from before wq, wk, wv and w1, w3 were separate: as one tensor `wqkv` and one `w13` each."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from puna.config import OptimConfig, RunConfig, to_dict
from puna.files import write_json
from puna.formats.native import NativeSource
from puna.model.llama import Llama
from puna.model.parts import parts
from puna.model.weights import load_weights
from puna.train.checkpoint import Saver, TrainState, load_optimizer
from puna.train.optim import build_optimizer
from tests.formats.models import GROUPED, random_model


def fuse(path: Path) -> None:
    """Write a file as older versions did."""
    tensors = load_file(path)
    for name in list(tensors):
        for first, others, fused in (("wq", ("wk", "wv"), "wqkv"), ("w1", ("w3",), "w13")):
            if name.endswith("." + first):
                block = name.removesuffix(first)
                members = [tensors.pop(block + role) for role in (first, *others)]
                tensors[block + fused] = torch.cat(members) if members[0].ndim else members[0]
    save_file(tensors, path)


@pytest.fixture
def older(tmp_path) -> tuple[Path, Llama, torch.optim.AdamW]:
    """A checkpoint with fused tensors, and what was saved in it."""
    model = random_model(GROUPED)
    optimizer = build_optimizer(model, OptimConfig())
    tokens = torch.arange(48)[None]
    model.loss(tokens, tokens, 1.0)[0].backward()
    optimizer.step()
    saver = Saver(tmp_path, keep=1)
    saver.save(TrainState(step=1), model, optimizer)
    saver.wait()
    checkpoint = tmp_path / "checkpoints" / "step-000001"
    for name in ("weights.safetensors", "optimizer.safetensors"):
        fuse(checkpoint / name)
    write_json(tmp_path / "config.json", to_dict(RunConfig(model=GROUPED)))
    return checkpoint, model, optimizer


def test_weights_and_moments_are_read_and_saved_anew(older):
    checkpoint, model, optimizer = older
    loaded = Llama(GROUPED)
    restored = build_optimizer(loaded, OptimConfig())
    load_weights(checkpoint, loaded)
    load_optimizer(checkpoint, loaded, restored)
    Saver(checkpoint.parent.parent, keep=1).save(TrainState(step=2), loaded, restored)
    tokens = torch.arange(48)[None] + 7
    for each, its in ((model, optimizer), (loaded, restored)):
        each.zero_grad()
        each.loss(tokens, tokens, 1.0)[0].backward()
        its.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    for mine, other in zip(model.parameters(), loaded.parameters(), strict=True):
        assert optimizer.state[mine].keys() == restored.state[other].keys()
        for key, value in optimizer.state[mine].items():
            assert torch.equal(value, restored.state[other][key]), key


def test_a_run_opens_as_a_source(older):
    checkpoint, model, _ = older
    source = NativeSource(checkpoint.parent.parent)
    parameters = dict(model.named_parameters())
    for part in parts(GROUPED):
        assert source.dtype(part) == torch.float32
        assert torch.equal(source.read(part), parameters[part.parameter]), part.parameter


def test_fused_tensors_of_other_sizes_are_named(older):
    checkpoint, *_ = older
    (checkpoint.parent.parent / "config.json").unlink()
    wider = RunConfig(model=GROUPED.__class__(**(GROUPED.__dict__ | {"ffn_dim": 128})))
    write_json(checkpoint.parent.parent / "config.json", to_dict(wider))
    with pytest.raises(ValueError, match=r"weights\.safetensors.*w1"):
        NativeSource(checkpoint.parent.parent)
    with pytest.raises(ValueError, match=r"weights\.safetensors: blocks\.0\.w1 is absent"):
        load_weights(checkpoint, Llama(wider.model))
