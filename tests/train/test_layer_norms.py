"""Norms of weights and updates by parameter, against the difference of the weights themselves."""

import pytest
import torch

from puna.config import ModelConfig, OptimConfig
from puna.model.llama import Llama
from puna.train.layers import layer_norms
from puna.train.optim import build_optimizer


def test_the_update_is_the_difference_that_the_step_made():
    config = ModelConfig(dim=32, n_layers=2, n_heads=2, ffn_dim=64, vocab_size=50, context=16)
    model = Llama(config, torch.float32)
    model.init_weights(1)
    optimizer = build_optimizer(model, OptimConfig(lr=1e-2, weight_decay=0.3))
    tokens = torch.arange(32).view(2, 16)
    for _ in range(3):
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        model.loss(tokens, tokens + 1, 1 / 32)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    found = layer_norms(model, optimizer)
    assert found["norm"].keys() == before.keys()
    for name, value in model.named_parameters():
        assert found["norm"][name] == pytest.approx(value.norm().item(), rel=1e-5)
        moved = (value.detach() - before[name]).norm() / value.norm()
        assert found["update"][name] == pytest.approx(moved.item(), rel=1e-3), name
