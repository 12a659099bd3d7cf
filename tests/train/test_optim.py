"""The schedule of section 2.3."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puna.config import ModelConfig, OptimConfig
from puna.model.llama import Llama
from puna.train.optim import build_optimizer, learning_rate

PAPER = OptimConfig(lr=3e-4, warmup_steps=2000)


def test_the_rate_rises_to_its_peak_and_falls_to_a_tenth():
    rates = [learning_rate(step, 10_000, PAPER) for step in range(10_000)]
    assert rates[0] == pytest.approx(3e-4 / 2000)
    assert [rates[1999], rates[2000], max(rates)] == pytest.approx([3e-4] * 3)
    assert rates[-1] == pytest.approx(3e-5)
    assert rates[6000] == pytest.approx((3e-4 + 3e-5) / 2, rel=1e-3)  # half-way down the cosine


@given(steps=st.integers(1, 500), warmup=st.integers(0, 600), step=st.integers(0, 499))
def test_the_rate_is_never_above_the_peak_nor_negative(steps, warmup, step):
    rate = learning_rate(min(step, steps - 1), steps, OptimConfig(lr=1.0, warmup_steps=warmup))
    assert 0 < rate <= 1.0


def test_matrices_decay_and_norms_do_not():
    model = Llama(ModelConfig(dim=8, n_layers=1, n_heads=2, ffn_dim=16, vocab_size=16, context=8))
    decayed, kept = build_optimizer(model, OptimConfig()).param_groups
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0.0
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_a_step_is_adamw_by_its_definition():
    model = Llama(ModelConfig(dim=8, n_layers=1, n_heads=2, ffn_dim=16, vocab_size=16, context=8))
    model.init_weights(1)
    optimizer = build_optimizer(model, OptimConfig(lr=0.01))
    before = model.embedding.detach().double().clone()
    gradient = torch.randn_like(model.embedding)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.embedding.grad = gradient.clone()
    optimizer.step()
    # First step: the bias-corrected moments are g and g², so the step is lr · g / (|g| + eps).
    expected = before * (1 - 0.01 * 0.1) - 0.01 * gradient.double() / (gradient.double().abs() + 1e-8)
    torch.testing.assert_close(model.embedding.detach().double(), expected, rtol=1e-5, atol=1e-6)
