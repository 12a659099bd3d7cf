"""Our matrix products: against fp64 of the rounded operands, for any sizes, the same on any threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from puna.model import products
from puna.model.products import Weight, add_weight_gradient, weight_gradient

pytestmark = pytest.mark.skipif(
    products._library() is None, reason="no AVX512-BF16, a matrix unit, or no compiler"
)
bf16 = torch.bfloat16


def operands(rows: int, O: int, I: int) -> tuple[Tensor, Tensor, Tensor]:  # noqa: E741
    generator = torch.Generator().manual_seed(rows * O + I)
    draw = [torch.randn(shape, generator=generator) for shape in ((rows, I), (O, I), (rows, O))]
    return draw[0].to(bf16), draw[1], draw[2].to(bf16)


def run(x: Tensor, weight: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ready = Weight(weight, bf16)
    return ready.forward(x), ready.backward(dy), weight_gradient(dy, x, weight)


def distance(one: Tensor, other: Tensor) -> float:
    return ((one.double() - other).norm() / other.norm()).item()


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 230), outputs=st.integers(1, 12), inputs=st.integers(1, 12))
def test_products_are_exact_to_rounding_for_any_size(rows, outputs, inputs):
    x, weight, dy = operands(rows, 16 * outputs, 16 * inputs)
    y, dx, dweight = run(x, weight, dy)
    rounded = weight.to(bf16).double()
    assert distance(y, x.double() @ rounded.T) < 0.003  # half of bf16's last place
    assert distance(dx, dy.double() @ rounded) < 0.003
    assert dweight.dtype == torch.float32
    assert distance(dweight, dy.double().T @ x.double()) < 1e-6


def test_long_sums_are_added_up_in_stretches():
    x, weight, dy = operands(2100, 48, 4112)  # more than are packed, or summed, at a time
    y, dx, dweight = run(x, weight, dy)
    assert distance(y, x.double() @ weight.to(bf16).double().T) < 0.003
    assert distance(dx, dy.double() @ weight.to(bf16).double()) < 0.003
    assert distance(dweight, dy.double().T @ x.double()) < 1e-5
    twice = dweight.clone()
    add_weight_gradient(twice, dy, x)
    assert distance(twice, 2 * dy.double().T @ x.double()) < 1e-5


def test_the_result_does_not_depend_on_the_threads_or_the_run():
    x, weight, dy = operands(1500, 208, 320)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append(run(x, weight, dy))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("O", "I"), [(48, 20), (20, 48)])
def test_sizes_that_do_not_fit_are_pytorchs(O, I):  # noqa: E741
    x, weight, dy = operands(33, O, I)
    y, dx, dweight = run(x, weight, dy)
    assert torch.equal(y, x @ weight.to(bf16).T)
    assert torch.equal(dx, dy @ weight.to(bf16))
    assert torch.equal(dweight, (dy.T @ x).float())


def test_the_other_way_gives_the_same_to_rounding(monkeypatch):
    x, weight, dy = operands(100, 64, 96)
    ours = run(x, weight, dy)
    monkeypatch.setattr(products, "_library", lambda: None)
    for mine, theirs in zip(ours, run(x, weight, dy), strict=True):
        assert distance(mine, theirs.double()) < 0.004


def test_a_weight_with_nan_gives_nan():
    x, weight, dy = operands(10, 16, 16)
    weight[3, 5] = float("nan")
    y, dx, _ = run(x, weight, dy)
    assert y[:, 3].isnan().all()
    assert dx[:, 5].isnan().all()
    assert y[:, :3].isfinite().all()
