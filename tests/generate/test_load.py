"""A runner takes a model opened in any format, and its weights as the file has them."""

import os
from pathlib import Path

import gguf
import pytest
import torch

from puna.formats.convert import convert, open_source
from puna.formats.gguf_files import NAMES
from puna.generate.load import load_runner
from puna.kernels import build
from puna.model.llama import Llama
from puna.model.parts import parts, to_halves, to_pairs
from tests.formats.models import GROUPED, TIED, random_model, write_native_model

Q4_1 = gguf.GGMLQuantizationType.Q4_1
TOKENS = list(range(5, 45))


@pytest.fixture(params=["kernels", "PyTorch"])
def kernels(request, monkeypatch):
    """With the compiled kernels and without."""
    if request.param == "kernels" and (build.compiler() is None or os.environ.get("PUNA_NATIVE") == "0"):
        pytest.skip("no C++ compiler, or PUNA_NATIVE=0")
    if request.param == "PyTorch":
        monkeypatch.setenv("PUNA_NATIVE", "0")
    build.load.cache_clear()
    yield
    build.load.cache_clear()


@pytest.mark.parametrize("config", [GROUPED, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("to", ["hf", "meta", "gguf"])
def test_every_format_gives_the_same_logits(tmp_path, kernels, to, config):
    native = write_native_model(tmp_path / "native", config)
    other = tmp_path / ("model.gguf" if to == "gguf" else to)
    convert(native, other, to)
    logits = []
    for path in (native, other):
        _, source = open_source(path)
        runner = load_runner(source, "fp32", 1, torch.float32)
        logits.append(runner.prefill(TOKENS, 0, [0], all_logits=True))
    assert torch.equal(*logits)


def write_q4_1(path: Path) -> Llama:
    """Write a GGUF file with quantised matrices; returns the model of their dequantised values."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(GROUPED.context)
    writer.add_embedding_length(GROUPED.dim)
    writer.add_block_count(GROUPED.n_layers)
    writer.add_feed_forward_length(GROUPED.ffn_dim)
    writer.add_head_count(GROUPED.n_heads)
    writer.add_head_count_kv(GROUPED.kv_heads)
    writer.add_layer_norm_rms_eps(GROUPED.norm_eps)
    writer.add_rope_freq_base(GROUPED.rope_base)
    model = random_model(GROUPED)
    parameters = dict(model.named_parameters())
    for part in parts(GROUPED):
        values = parameters[part.parameter].data
        if part.is_matrix:
            data = gguf.quantize(to_pairs(values, part.heads).numpy(), Q4_1)
            values.copy_(to_halves(torch.from_numpy(gguf.dequantize(data, Q4_1)), part.heads))
            writer.add_tensor(part.name(NAMES), data, raw_dtype=Q4_1)
        else:
            writer.add_tensor(part.name(NAMES), values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@torch.no_grad()
def test_quantised_weights_are_not_rounded_on_their_way_to_fp32(tmp_path, kernels):
    model = write_q4_1(tmp_path / "model.gguf")
    _, source = open_source(tmp_path / "model.gguf")
    runner = load_runner(source, "fp32", 1, torch.float32)
    found = runner.prefill(TOKENS, 0, [0], all_logits=True)
    tokens = torch.tensor([TOKENS])
    exact = model(tokens)[0]
    through_bf16 = model.bfloat16().float()(tokens)[0]
    error = (found - exact).abs().max()
    assert error < 2e-5
    assert error < (through_bf16 - exact).abs().max() / 100
