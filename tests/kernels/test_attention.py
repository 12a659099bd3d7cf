"""The fused attention kernels: against fp64, whatever the sizes, and to the bit whatever the threads."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from puna.kernels import attention
from puna.model import layers
from puna.model.attention import rotary_attention
from puna.model.layers import SplitRotate

bf16, fp32 = torch.bfloat16, torch.float32
ROUNDING = {bf16: 0.01, fp32: 5e-6}

pytestmark = pytest.mark.skipif(not attention.is_fused(torch.zeros(16)), reason="no compiler")
each_dtype = pytest.mark.parametrize("dtype", [bf16, fp32])


def inputs(
    B: int, T: int, H: int, K: int, E: int, dtype: torch.dtype, size: float = 1.0
) -> tuple[Tensor, Tensor]:
    """qkv (B, T, H + 2K, E) and the gradient of the result (B, T, H, E)."""
    generator = torch.Generator().manual_seed(T * 1000 + E)
    qkv = torch.randn(B, T, H + 2 * K, E, generator=generator) * size
    return qkv.to(dtype).requires_grad_(), torch.randn(B, T, H, E, generator=generator).to(dtype)


def run(qkv: Tensor, do: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """The result and the gradient of qkv."""
    cos, sin = layers.rope_table(qkv.shape[3], qkv.shape[1], 100.0)
    o = rotary_attention(qkv, cos, sin, do.shape[2], K, SplitRotate.apply)
    return o.detach(), torch.autograd.grad(o, qkv, do)[0]


def exact(qkv: Tensor, do: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """The same in fp64 by autograd."""
    qkv = qkv.detach().double().requires_grad_()
    cos, sin = layers.rope_table(qkv.shape[3], qkv.shape[1], 100.0)
    q, k, v = layers.split_rotate(qkv, cos.double(), sin.double(), do.shape[2], K)
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
    return o.detach(), torch.autograd.grad(o, qkv, do.double())[0]


def distance(one: Tensor, other: Tensor) -> float:
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


@each_dtype
@settings(max_examples=25, deadline=None)
@given(
    T=st.integers(1, 300),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]),
    E=st.one_of(st.integers(1, 9).map(lambda n: 16 * n), st.integers(1, 50).map(lambda n: 2 * n)),
)
def test_results_and_gradients_are_exact_to_rounding_for_any_size(dtype, T, heads, E):
    H, K = heads
    qkv, do = inputs(2, T, H, K, E, dtype)
    for ours, truth in zip(run(qkv, do, K), exact(qkv, do, K), strict=True):
        assert distance(ours, truth) < ROUNDING[dtype]


@each_dtype
@pytest.mark.parametrize(("T", "E"), [(512, 48), (300, 64), (1100, 32)])
def test_it_is_as_near_to_the_truth_as_pytorchs_kernel(dtype, T, E, monkeypatch):
    qkv, do = inputs(8, T, 2, 2, E, dtype)  # one sequence's rounding is up to 1 % off the mean, by chance
    truth, ours = exact(qkv, do, 2), run(qkv, do, 2)
    monkeypatch.setattr(attention, "_kernel", lambda dtype, head_dim: None)
    pytorchs = run(qkv, do, 2)
    most = {bf16: 1.0, fp32: 2.0}[dtype]  # ours sums P and dS of bf16 operands in fp32; its exp is 2 ulp off
    for mine, theirs, exactly in zip(ours, pytorchs, truth, strict=True):
        assert not torch.equal(mine, theirs)  # two computations, not one
        assert distance(mine, exactly) < most * distance(theirs, exactly) < ROUNDING[dtype]


@each_dtype
def test_the_result_does_not_depend_on_the_threads_or_the_run(dtype):
    qkv, do = inputs(3, 200, 4, 2, 48, dtype)  # enough work for several threads
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append(run(qkv, do, 2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@each_dtype
def test_log_sums_have_the_accuracy_of_fp32(dtype):
    qkv, _ = inputs(1, 600, 1, 1, 64, dtype, size=3.0)
    q, k, v = qkv.detach().transpose(1, 2).split(1, dim=1)
    _, lse = attention.forward(q, k, v, torch.ones(600, 32), torch.zeros(600, 32))  # not rotated
    scores = q.double() @ k.double().transpose(-1, -2) / 8
    hidden = torch.ones(600, 600, dtype=torch.bool).triu(1)
    truth = scores.masked_fill(hidden, float("-inf")).logsumexp(-1)
    assert ((lse - truth).abs() / truth.abs().clamp(min=1)).max() < 1e-6


@each_dtype
def test_great_scores_do_not_overflow_and_nan_is_not_lost(dtype):
    qkv, do = inputs(1, 100, 1, 1, 32, dtype, size=300.0)
    assert all(tensor.isfinite().all() for tensor in run(qkv, do, 1))
    with torch.no_grad():
        qkv[0, 50, 0, 0] = float("nan")
    o, dqkv = run(qkv, do, 1)
    assert o[0, 50].isnan().all()
    assert o[0, :50].isfinite().all()
    assert dqkv.isnan().any()
