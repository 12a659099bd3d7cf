"""Examples packed into rows: what a model computes of them is what it computes of each alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from puna.config import ModelConfig
from puna.kernels import attention
from puna.model.llama import Llama
from puna.model.loss import IGNORE

CONFIG = ModelConfig(dim=48, n_layers=2, n_heads=6, n_kv_heads=2, ffn_dim=96, vocab_size=101, context=160)
ROWS = [[5, 1, 100, 20], [160], [97, 2, 1, 60], [1] * 30]  # lengths of the examples; the rest is padding
NATIVE = pytest.mark.skipif(not attention.is_fused(torch.zeros(8)), reason="no compiler")
each_kernel = pytest.mark.parametrize("kernel", [pytest.param("ours", marks=NATIVE), "PyTorch's"])


def packed() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, targets and segments (B, T): an example's first third is its prompt."""
    draw = torch.Generator().manual_seed(1)
    shape = len(ROWS), CONFIG.context
    tokens = torch.randint(101, shape, generator=draw)
    targets = torch.full(shape, IGNORE)
    segments = torch.zeros(shape, dtype=torch.long)
    for row, lengths in enumerate(ROWS):
        start = 0
        for number, length in enumerate(lengths):
            end = start + length
            segments[row, start:] = number
            targets[row, start + length // 3 : end - 1] = tokens[row, start + length // 3 + 1 : end]
            start = end
        segments[row, start:] = len(lengths)
    return tokens, targets, segments


def alone() -> list[tuple[Tensor, Tensor]]:
    """The same examples one by one, tokens and targets (1, T)."""
    tokens, targets, _ = packed()
    found = []
    for row, lengths in enumerate(ROWS):
        splits = [*lengths, CONFIG.context - sum(lengths)]
        pairs = zip(
            tokens[row : row + 1].split(splits, 1), targets[row : row + 1].split(splits, 1), strict=True
        )
        found += list(pairs)[: len(lengths)]
    return found


def model(activations: Any = "manual", device: str = "cpu") -> Llama:
    built = Llama(CONFIG, activations=activations, device=device)
    built.init_weights(1)
    if device == "cpu":
        with torch.no_grad():
            for parameter in built.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(5)  # so that attention is not uniform
    return built


@pytest.fixture
def kernel_of(monkeypatch):
    def use(kernel: str) -> None:
        if kernel == "PyTorch's":
            monkeypatch.setattr(attention, "is_fused", lambda x: False)

    return use


@each_kernel
@pytest.mark.parametrize("activations", ["manual", "selective", "full", "none"])
def test_the_packed_loss_and_gradient_are_the_sums_of_the_examples(kernel, activations, kernel_of):
    kernel_of(kernel)
    one, other = model(activations), model(activations)
    tokens, targets, segments = packed()
    total, losses = one.loss(tokens, targets, 0.1, segments)
    total.backward()
    sums = 0.0
    for example, target in alone():
        separate, _ = other.loss(example, target, 0.1)
        separate.backward()
        sums += separate.item()
    assert total.item() == pytest.approx(sums, rel=1e-6)
    assert torch.equal(losses, one.losses(tokens, targets, segments))
    for parameter, expected in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-5, atol=1e-5)


@each_kernel
@torch.no_grad()
def test_no_example_sees_another(kernel, kernel_of):
    kernel_of(kernel)
    tokens, _, segments = packed()
    built = model()
    before = built.losses(tokens, tokens, segments)
    tokens[0, :106] = 7  # all but the last example of the first row
    after = built.losses(tokens, tokens, segments)
    assert torch.equal(before[0, 106:126], after[0, 106:126])
    assert not torch.equal(before[0, :106], after[0, :106])


@torch.no_grad()
def test_without_segments_a_row_is_one_example():
    tokens, targets, segments = packed()
    built = model()
    assert torch.equal(built.losses(tokens, targets, segments * 0), built.losses(tokens, targets))
    assert not torch.equal(built.losses(tokens, targets, segments), built.losses(tokens, targets))


def test_segments_are_masked_without_a_wait_on_other_devices():
    tokens, targets, segments = (tensor.to("meta") for tensor in packed())
    total, losses = model(device="meta").loss(tokens, targets, 0.1, segments)
    total.backward()
    assert losses.shape == tokens.shape


@NATIVE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_kernel_gives_an_example_the_same_bits_packed_or_alone(dtype):
    draw = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 4, 150, 32, generator=draw).to(dtype) for _ in range(3))
    cos, sin = model().cos.new_ones(150, 16), model().cos.new_zeros(150, 16)
    spans = torch.tensor([[0, 0, 150], [1, 0, 40], [1, 40, 1], [1, 41, 109]])
    o, lse = attention.forward(q, k, v, cos, sin, spans)
    for row, start, length in spans.tolist():
        part = slice(start, start + length)
        alone_o, alone_lse = attention.forward(
            *(x[row : row + 1, :, part] for x in (q, k, v)), cos[:length], sin[:length]
        )
        assert torch.equal(o[row : row + 1, part], alone_o)
        assert torch.equal(lse[row : row + 1, :, part], alone_lse)
