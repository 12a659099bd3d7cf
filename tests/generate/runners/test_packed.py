"""Packed weights compute what the model does; a token's bits do not depend on what runs beside it."""

import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.config import RunConfig, to_dict
from puna.files import write_json
from puna.formats.native import NativeSource
from puna.generate.load import load_runner
from puna.generate.runners.cache import BLOCK
from puna.generate.runners.packed import PackedRunner, multiply, rounded
from puna.generate.runners.pytorch import PlainRunner
from puna.generate.runners.quantize import GROUP
from puna.kernels import build
from puna.model.llama import Llama
from puna.model.weights import save_weights
from tests.formats.models import CONFIGS, GROUPED, PLAIN, random_model

WEIGHTS = ["fp32", "bf16", "int8", "int4"]
LENGTH = 150  # three cache blocks
# Sizes that fill neither panels of 32 nor groups of 32, and heads that fill no vector.
ODD = replace(PLAIN, dim=72, n_heads=6, n_kv_heads=3, ffn_dim=100, vocab_size=333)
WIDE_GROUPS = replace(PLAIN, dim=160, n_heads=10, n_kv_heads=1)
CONFIGS = {name: replace(config, context=256) for name, config in CONFIGS.items()} | {
    "odd sizes": replace(ODD, context=256),
    "ten heads on one": replace(WIDE_GROUPS, context=256),
    "a wide head": replace(PLAIN, dim=192, n_heads=2, context=256),
}

native = pytest.mark.skipif(
    build.compiler() is None or os.environ.get("PUNA_NATIVE") == "0",
    reason="no C++ compiler, or PUNA_NATIVE=0",
)


@pytest.fixture
def run(tmp_path):
    def write(config, seed=1):
        model = random_model(config, seed=seed)
        write_json(tmp_path / "config.json", to_dict(RunConfig(model=config)))
        save_weights(model, tmp_path)
        return tmp_path, model

    return write


def tokens(config, count=LENGTH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (count,), generator=generator).tolist()


@torch.no_grad()
def with_rounded_weights(model: Llama, weights: str) -> Llama:
    """The model whose weights are those that the packed one holds, computed in fp32."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            kind = weights if name.startswith("blocks.") or weights != "int4" else "int8"
            parameter.copy_(rounded(parameter, kind))
    return model


def divergence(logits, expected):
    p, q = expected.log_softmax(-1), logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


def fp64_product(x, weight, weights):
    """(expected, magnitude): the dequantised weights times x, which integers round to 8 bits per group."""
    w = rounded(weight, weights).double()
    x = F.pad(x, (0, -x.shape[1] % GROUP)).double()
    w = F.pad(w, (0, -w.shape[1] % GROUP))
    if weights in ("int8", "int4"):
        groups = x.float().unflatten(-1, (-1, GROUP))
        largest = groups.abs().amax(-1, keepdim=True)
        q = (groups * torch.where(largest > 0, 127 / largest, 0)).round()
        x = (q.double() * (largest / 127)).flatten(-2)
    return x @ w.T, x.abs() @ w.abs().T


@native
@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 40), st.integers(1, 130), st.integers(1, 300), st.sampled_from(WEIGHTS), st.integers(0, 99)
)
def test_a_product_is_that_of_the_dequantised_weights_and_a_rows_bits_are_its_own(
    rows, outputs, columns, weights, seed
):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 3, columns)
    weight = torch.randn(outputs, columns, generator=generator) + 0.3
    expected, size = fp64_product(x.bfloat16().float() if weights == "bf16" else x, weight, weights)
    found = multiply(x, weight, weights)
    # bf16: rounding of x, where the processor multiplies bf16. int4: `zero * sum` is some times what is left.
    error = {"bf16": 2**-8, "int4": 1e-5}.get(weights, 1e-6)
    assert ((found - expected).abs() <= error * size + 1e-12).all()
    row = seed % rows
    assert torch.equal(multiply(x[row : row + 1], weight, weights)[0], found[row])


@native
@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("x_sign", ["plus", "minus", "mixed"])
@pytest.mark.parametrize("w_sign", ["plus", "minus", "mixed"])
def test_integers_at_their_extremes_do_not_saturate(weights, x_sign, w_sign):
    """All products of a group are the largest there are: 32 · 127 · 127, or 32 · 127 · 15."""

    def extremes(sign, rows):
        signs = {"plus": 1.0, "minus": -1.0}.get(sign)
        generator = torch.Generator().manual_seed(rows)
        return (
            torch.randint(0, 2, (rows, 96), generator=generator) * 2.0 - 1
            if signs is None
            else torch.full((rows, 96), signs)
        )

    for rows in (1, 2, 3, 4, 5, 6, 13):
        x, weight = 127 * extremes(x_sign, rows), extremes(w_sign, 40)
        expected, _ = fp64_product(x, weight, weights)
        torch.testing.assert_close(multiply(x, weight, weights).double(), expected, rtol=1e-6, atol=1e-2)


@native
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_fp32_gives_the_models_logits(run, config):
    path, model = run(config)
    runner = load_runner(NativeSource(path), "fp32", 4, torch.float32)
    assert isinstance(runner, PackedRunner)
    ids = tokens(config)
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0]
    torch.testing.assert_close(
        runner.prefill(ids, 0, [2, 0, 3], all_logits=True), expected, atol=2e-4, rtol=1e-4
    )
    torch.testing.assert_close(runner.prefill(ids, 0, [1, 3, 0]), expected[-1], atol=2e-4, rtol=1e-4)


@native
@pytest.mark.parametrize("config", [CONFIGS["tied"], CONFIGS["odd sizes"]], ids=["tied", "odd sizes"])
@pytest.mark.parametrize(("weights", "most"), [("bf16", 1e-3), ("int8", 2e-3), ("int4", 2e-3)])
def test_fewer_bits_give_the_logits_of_the_rounded_weights(run, config, weights, most):
    """The rest is the rounding of activations: to bf16, or to 8 bits in groups."""
    path, model = run(config)
    ids = tokens(config)
    with torch.no_grad():
        expected = with_rounded_weights(model, weights)(torch.tensor([ids]))[0]
    runner = load_runner(NativeSource(path), weights, 3, torch.float32)
    assert isinstance(runner, PackedRunner)
    assert divergence(runner.prefill(ids, 0, [0, 1, 2], all_logits=True), expected) < most


@native
@pytest.mark.parametrize("config", [CONFIGS["tied"], CONFIGS["ten heads on one"]], ids=["tied", "ten on one"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_row_is_the_same_bits_in_a_prompt_alone_and_among_others(run, config, weights):
    path, _ = run(config)
    runner = load_runner(NativeSource(path), weights, 80)
    assert runner.prefill_is_decode
    sequences = [tokens(config, seed=seed) for seed in range(19)]
    whole = runner.prefill(sequences[0], 0, [0, 1, 2], all_logits=True)

    cut = [
        runner.prefill(sequences[0][a:b], a, [3, 4, 5], all_logits=True)
        for a, b in ((0, 1), (1, 77), (77, LENGTH))
    ]
    assert torch.equal(torch.cat(cut), whole)

    alone = [runner.decode([token], [at], [[6, 7, 8]]) for at, token in enumerate(sequences[0])]
    assert torch.equal(torch.cat(alone), whole)

    tables = [list(range(9 + 3 * i, 12 + 3 * i)) for i in range(19)]
    for other in range(1, 19):  # of other lengths
        runner.prefill(sequences[other][: 7 * other], 0, tables[other])
    for count in (2, 5, 13, 19):
        for at in range(3 * count, 3 * count + 3):
            runner.prefill(sequences[0][:at], 0, tables[0])
            ids = [sequences[0][at], *(sequences[i][7 * i] for i in range(1, count))]
            positions = [at, *(7 * i for i in range(1, count))]
            for order in (slice(None), slice(None, None, -1)):
                logits = runner.decode(ids[order], positions[order], tables[:count][order])
                assert torch.equal(logits[0 if order.step is None else -1], whole[at])


@native
@pytest.mark.parametrize("weights", WEIGHTS)
def test_threads_change_no_bit(run, weights):
    config = CONFIGS["grouped-query"]
    path, _ = run(config)
    runner = load_runner(NativeSource(path), weights, 3)
    ids = tokens(config)
    before = torch.get_num_threads()
    logits = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            logits.append(runner.prefill(ids, 0, [0, 1, 2], all_logits=True))
            logits.append(runner.decode(ids[-1:], [LENGTH - 1], [[0, 1, 2]]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(logits, logits[2:], strict=False))


LOGITS = """
import hashlib, sys, torch
from pathlib import Path
from puna.formats.native import NativeSource
from puna.generate.load import load_runner

torch.set_num_threads(2)
runner = load_runner(NativeSource(Path(sys.argv[1])), "fp32", 3)
logits = runner.prefill(list(range(5, 40)), 0, [0, 1, 2], all_logits=True)
print(type(runner).__name__, hashlib.sha256(logits.numpy().tobytes()).hexdigest())
"""


@native
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize(
    "setting", [{"OMP_THREAD_LIMIT": "1"}, {"CXX": str(Path(__file__).parents[3] / ".ci/without-openmp")}]
)
def test_fewer_threads_than_asked_for_compute_the_same(run, tmp_path, setting):
    """Threads that wait for one that does not exist would wait forever."""
    path, _ = run(CONFIGS["grouped-query"])
    command = [sys.executable, "-c", LOGITS, str(path)]
    expected, found = (
        subprocess.run(
            command, env=os.environ | more, capture_output=True, text=True, check=True, timeout=300
        ).stdout
        for more in ({}, setting | {"PUNA_CACHE": str(tmp_path / "cache")})
    )
    assert found == expected and found.startswith("PackedRunner ")


@pytest.mark.parametrize("weights", WEIGHTS)
def test_without_a_compiler_pytorch_computes_with_the_same_weights(run, monkeypatch, caplog, weights):
    config = CONFIGS["tied"]
    path, model = run(config)
    ids = tokens(config)
    monkeypatch.setenv("PUNA_NATIVE", "0")
    build.load.cache_clear()
    with caplog.at_level(logging.WARNING):
        runner = load_runner(NativeSource(path), weights, 3, torch.float32)
    build.load.cache_clear()
    assert isinstance(runner, PlainRunner)
    assert len(caplog.records) == 1 and "slower" in caplog.text
    with torch.no_grad():
        expected = with_rounded_weights(model, weights)(torch.tensor([ids]))[0]
    assert divergence(runner.prefill(ids, 0, [0, 1, 2], all_logits=True), expected) < 2e-3


@native
def test_memory_is_that_of_the_bits(run):
    config = replace(GROUPED, dim=256, ffn_dim=512)
    path, model = run(config)
    blocks = sum(
        p.numel() for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks")
    )
    ends = 2 * config.vocab_size * config.dim
    for weights, bits, end_bits in (
        ("fp32", 32, 32),
        ("bf16", 16, 16),
        ("int8", 8.5, 8.5),
        ("int4", 4.5, 8.5),
    ):
        runner = load_runner(NativeSource(path), weights, 1)
        expected = (blocks * bits + ends * end_bits) / 8
        assert expected <= runner.weight_bytes <= 1.03 * expected, weights


def test_a_cache_of_another_precision_is_refused(run):
    path, _ = run(PLAIN)
    with pytest.raises(ValueError, match="fp32 or bf16"):
        load_runner(NativeSource(path), "int8", 1, torch.float16)


@native
def test_a_position_without_a_block_is_a_fault_of_the_caller(run):
    path, _ = run(CONFIGS["llama"])
    runner = load_runner(NativeSource(path), "bf16", 2)
    for position, table in ((BLOCK, [0]), (0, [2]), (256, [0, 1, 0, 1, 0]), (-1, [0])):
        with pytest.raises(AssertionError):
            runner.decode([1], [position], [table])


@native
def test_quality_grows_with_the_bits(run):
    config = CONFIGS["grouped-query"]
    path, _ = run(config)
    ids = tokens(config, 100)

    def log_probabilities(weights, cache):
        runner = load_runner(NativeSource(path), weights, 2, cache)
        return runner.prefill(ids, 0, [0, 1], all_logits=True).log_softmax(-1)

    exact = log_probabilities("fp32", torch.float32)
    found = [
        float(F.kl_div(log_probabilities(weights, torch.bfloat16), exact, reduction="sum", log_target=True))
        for weights in WEIGHTS
    ]
    assert found == sorted(found)
    assert found[0] < 0.1 < found[3]  # the cache is bf16
