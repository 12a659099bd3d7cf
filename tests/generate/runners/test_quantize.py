"""Integers stand for the weights they were rounded from, to half a step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.generate.runners.quantize import GROUP, Int4, Int8


def weights(seed: int, rows: int = 6, groups: int = 4, shift: float = 0.0) -> torch.Tensor:
    """Groups of very different sizes, as trained matrices have them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-4, 1, groups).repeat_interleave(GROUP)
    return (torch.randn(rows, groups * GROUP, generator=generator) + shift) * sizes


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 3.0, -3.0]))
def test_int8_errs_by_half_a_step_of_its_group(seed, shift):
    w = weights(seed, shift=shift)
    error = (Int8.of(w).weights() - w).unflatten(-1, (-1, GROUP)).abs().amax(-1)
    # A step is the largest weight / 127, or the next bf16 above, up to 2^-7 more.
    largest = w.unflatten(-1, (-1, GROUP)).abs().amax(-1)
    assert (error <= 0.5001 * largest / 127 * (1 + 2**-7)).all()


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 3.0, -3.0]))
def test_int4_errs_by_half_a_step_and_what_its_scale_and_zero_are_rounded_by(seed, shift):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(6, 4 * GROUP, generator=generator) + shift
    error = (Int4.of(w).weights() - w).unflatten(-1, (-1, GROUP)).abs().amax(-1)
    groups = w.unflatten(-1, (-1, GROUP))
    step = (groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)) / 15
    # Half a step; a zero is off by a 32nd of one; a scale by half a 255th of the row's largest, 15 times.
    bound = 0.5 * step + step / 32 + 15.5 / 2 * 2 / 255 * step.amax(1, keepdim=True)
    assert (error <= bound).all()


def test_weights_on_a_grid_of_sixteen_values_with_an_offset_survive_four_bits_nearly():
    generator = torch.Generator().manual_seed(1)
    q = torch.randint(0, 16, (64, 8, GROUP), generator=generator)
    q[..., 0], q[..., 1] = 0, 15
    scale = torch.rand(64, 8, 1, generator=generator) + 0.5
    w = (scale * (q - 16 * torch.rand(64, 8, 1, generator=generator).clamp(0.1, 0.9))).flatten(-2)
    error = (Int4.of(w).weights() - w).square().mean() / w.square().mean()
    assert error.sqrt() < 0.01, "to the grid of another scale it would be 0.06"


@pytest.mark.parametrize("kind", [Int8, Int4])
def test_zeros_stay_zeros(kind):
    w = weights(3)
    w[2] = 0
    w[3, :GROUP] = 0
    held = kind.of(w).weights()
    assert held[2].count_nonzero() == 0
    assert held[3, :GROUP].count_nonzero() == 0
    assert held.isfinite().all()


def test_what_is_held_is_as_large_as_is_said():
    w = weights(4, rows=64)
    assert sum(x.numel() * x.element_size() for x in Int8.of(w)) == w.numel() * 8.5 / 8
    int4 = Int4.of(w)
    assert int4.q_OI.max() <= 15
    assert int4.q_OI.numel() / 2 + int4.scale_OG.numel() + int4.zero_OG.numel() == w.numel() * 4.5 / 8
