"""Our matrix products: against fp64 of the operands, for any sizes, the same on any threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from puna.kernels import matmul
from puna.kernels.matmul import Weights, add_weight_gradient, weight_gradients

bf16, fp32 = torch.bfloat16, torch.float32
ROUNDING = {bf16: 0.003, fp32: 2e-6}  # of a result: half of bf16's last place; fp32 sums of some thousands
OURS = [dtype for dtype in (bf16, fp32) if matmul.kernels_for(dtype) is not None]

pytestmark = pytest.mark.skipif(not OURS, reason="PyTorch's products are the fastest here, or no compiler")
each_dtype = pytest.mark.parametrize("dtype", OURS)


def operands(rows: int, O: int, I: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:  # noqa: E741
    generator = torch.Generator().manual_seed(rows * O + I)
    draw = [torch.randn(shape, generator=generator) for shape in ((rows, I), (O, I), (rows, O))]
    return draw[0].to(dtype), draw[1], draw[2].to(dtype)


def run(x: Tensor, weight: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ready = Weights(x.dtype, weight)
    return ready.forward(x), ready.backward(dy), *weight_gradients(dy, x, weight)


def distance(one: Tensor, other: Tensor) -> float:
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


def error(product: Tensor, a: Tensor, b: Tensor) -> float:
    """Of a product a @ b against fp64, relative to the norm that independent entries give: a single one of
    them may be near 0 by cancellation."""
    usual = a.norm() * b.norm() / a.shape[1] ** 0.5
    return ((product.double() - a.double() @ b.double()).norm() / usual).item()


def check(x: Tensor, weight: Tensor, dy: Tensor) -> None:
    """All three against fp64 of the operands as they are multiplied."""
    y, dx, dweight = run(x, weight, dy)
    rounded = weight.to(x.dtype).double()
    assert y.dtype == dx.dtype == x.dtype
    assert error(y, x, rounded.T) < ROUNDING[x.dtype]
    assert error(dx, dy, rounded) < ROUNDING[x.dtype]
    assert dweight.dtype == fp32
    assert error(dweight, dy.T, x) < 2e-6


@each_dtype
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 230), outputs=st.integers(1, 12), inputs=st.integers(1, 12))
def test_products_are_exact_to_rounding_for_any_number_of_rows(dtype, rows, outputs, inputs):
    check(*operands(rows, 16 * outputs, 16 * inputs, dtype))


@each_dtype
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 150), O=st.integers(1, 130), I=st.integers(1, 130))
def test_weights_may_have_any_size(dtype, rows, O, I):  # noqa: E741
    check(*operands(rows, O, I, dtype))


@each_dtype
@pytest.mark.parametrize("with_kernels", [True, False], ids=["kernels", "PyTorch"])
@pytest.mark.parametrize(
    "rows", [(32, 16, 16), (96, 48, 48), (16, 160)]
)  # of each weight: panels that several share
def test_weights_side_by_side_are_multiplied_as_one(dtype, rows, with_kernels, monkeypatch):
    if not with_kernels:
        monkeypatch.setattr(matmul, "kernels_for", lambda dtype: None)
    x, weight, dy = operands(70, sum(rows), 80, dtype)
    together, apart = Weights(dtype, weight), Weights(dtype, *weight.clone().split(rows))
    assert torch.equal(apart.forward(x), together.forward(x))
    assert torch.equal(apart.backward(dy), together.backward(dy))
    gradients = weight_gradients(dy, x, *weight.split(rows))
    assert torch.equal(torch.cat(gradients), *weight_gradients(dy, x, weight))
    assert [tuple(gradient.shape) for gradient in gradients] == [(count, 80) for count in rows]


@each_dtype
def test_long_sums_are_added_up_in_stretches(dtype):
    x, weight, dy = operands(2100, 48, 4112, dtype)  # more than are packed, or summed, at a time
    check(x, weight, dy)
    (twice,) = weight_gradients(dy, x, weight)
    add_weight_gradient(twice, dy, x)
    assert distance(twice, 2 * dy.double().T @ x.double()) < 1e-5


@each_dtype
def test_more_outputs_than_one_block_has(dtype):
    check(*operands(100, 1100, 300, dtype))


@each_dtype
def test_the_result_does_not_depend_on_the_threads_or_the_run(dtype):
    x, weight, dy = operands(1500, 208, 320, dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append(run(x, weight, dy))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@each_dtype
def test_operands_may_be_views(dtype):
    x, weight, dy = operands(60, 32, 48, dtype)
    wide = torch.cat((x, x), dim=1)[:, 48:].unflatten(0, (3, 20))  # rows 96 apart
    ready = Weights(dtype, weight.T.contiguous().T)
    assert torch.equal(ready.forward(wide).flatten(0, 1), Weights(dtype, weight).forward(x))
    (ours,) = weight_gradients(dy.unflatten(0, (3, 20)), wide, weight)
    assert torch.equal(ours, *weight_gradients(dy, x, weight))


@each_dtype
def test_pytorchs_products_give_the_same_to_rounding(dtype, monkeypatch):
    x, weight, dy = operands(100, 64, 96, dtype)
    ours = run(x, weight, dy)
    monkeypatch.setattr(matmul, "kernels_for", lambda dtype: None)
    theirs = run(x, weight, dy)
    assert torch.equal(theirs[0], x @ weight.to(dtype).T)
    for mine, other in zip(ours, theirs, strict=True):
        assert distance(mine, other) < 2 * ROUNDING[dtype]


@each_dtype
def test_a_weight_with_nan_gives_nan(dtype):
    x, weight, dy = operands(10, 16, 16, dtype)
    weight[3, 5] = float("nan")
    y, dx, _ = run(x, weight, dy)
    assert y[:, 3].isnan().all()
    assert dx[:, 5].isnan().all()
    assert y[:, :3].isfinite().all()
