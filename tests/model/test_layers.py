"""The hand-written backward: against autograd in fp64, in every precision, and by the bytes it saves."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from puna.config import ModelConfig
from puna.kernels.attention import is_fused
from puna.model import layers
from puna.model.layers import BY_HAND, Norm, SplitRotate
from puna.model.llama import Llama
from puna.model.loss import IGNORE, LinearCrossEntropy, cross_entropy
from puna.model.sizes import saved_bytes_per_token_and_layer

CONFIG = ModelConfig(dim=64, n_layers=2, n_heads=4, ffn_dim=192, vocab_size=97, context=160)
MODES = ["manual", "selective", "full", "none"]


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def test_gradients_of_every_function_are_right_in_fp64():
    eps, cos, sin = 1e-6, *layers.rope_table(4, 5, 100.0)
    assert gradcheck(BY_HAND.linear, (values(2, 3, 4), values(5, 4)))
    assert gradcheck(lambda x, n: Norm.apply(x, n, eps, torch.float64), (values(2, 3, 4), values(4)))
    assert gradcheck(
        lambda x, n, *weights: BY_HAND.norm_linear(x, n, eps, torch.float64, *weights),
        (values(2, 3, 4), values(4), values(5, 4), values(2, 4), values(3, 4)),
    )
    assert gradcheck(BY_HAND.swiglu_linear, (values(2, 3, 8), values(5, 4)))
    assert gradcheck(lambda qkv: SplitRotate.apply(qkv, cos.double(), sin.double(), 2, 1), values(2, 5, 4, 4))


@pytest.mark.parametrize("N", [1, 7, 50])
def test_the_fused_loss_is_cross_entropy(N, monkeypatch):
    monkeypatch.setattr("puna.model.loss.LOGITS_ROWS", 16)  # several blocks, the last one short
    hidden, weight = values(N, 6), values(11, 6)
    targets = torch.randint(0, 11, (N,), generator=torch.Generator().manual_seed(N))
    targets[N // 2] = IGNORE
    total, losses = LinearCrossEntropy.apply(hidden, weight, targets, 0.25)
    expected = F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(total, 0.25 * expected.sum())
    ours = torch.autograd.grad(3 * total, (hidden, weight))
    torch.testing.assert_close(ours, torch.autograd.grad(0.75 * expected.sum(), (hidden, weight)))
    alone = cross_entropy(hidden.float()[None], weight, targets[None])[0]
    torch.testing.assert_close(alone, expected.float())


def gradients(
    activations: str, compute: torch.dtype, double: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and all gradients of a small model, as one vector."""
    model = Llama(CONFIG, compute, activations)
    model.init_weights(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(4 if parameter.ndim == 2 else 1 + 0.1 * (len(name) % 3))
    if double:
        model.double()
    tokens = torch.randint(0, 97, (3, 160), generator=torch.Generator().manual_seed(2))
    total, _ = model.loss(tokens, tokens.roll(-1, 1), 1 / tokens.numel())
    total.backward()
    return total.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.fixture(scope="module")
def exact() -> tuple[torch.Tensor, torch.Tensor]:
    """Autograd's own, in fp64."""
    return gradients("none", torch.float64, double=True)


@pytest.mark.parametrize("activations", MODES)
def test_all_modes_give_autograds_gradients_in_fp32(activations, exact):
    loss, grads = gradients(activations, torch.float32)
    assert loss.item() == pytest.approx(exact[0].item(), rel=1e-6)
    assert (grads - exact[1]).norm() / exact[1].norm() < 1e-6


@pytest.mark.parametrize("activations", MODES)
def test_all_modes_agree_to_rounding_in_bf16(activations, exact):
    loss, grads = gradients(activations, torch.bfloat16)
    autograds = (gradients("none", torch.bfloat16)[1] - exact[1]).norm()
    assert loss.item() == pytest.approx(exact[0].item(), rel=2e-3)
    # no further from the truth than autograd's own bf16 is, but for a few per cent of luck
    assert (grads - exact[1]).norm() < 1.1 * autograds


def saved_bytes(activations: str, layers_: int, compute: torch.dtype) -> int:
    """Bytes that the forward leaves for the backward, each storage once, parameters aside."""
    model = Llama(replace(CONFIG, n_layers=layers_), compute, activations)
    model.init_weights(1)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    own |= {buffer.untyped_storage().data_ptr() for buffer in model.buffers()}
    held: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # kept alive, so that no address is used twice
        return tensor

    tokens = torch.zeros(2, 160, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.loss(tokens, tokens, 1.0)
    return sum(size for size, _ in held.values())


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_the_bytes_saved_are_the_formulas(compute):
    if not is_fused(torch.empty(1, CONFIG.head_dim, dtype=compute)):
        pytest.skip("PyTorch's attention also saves a copy of its output")
    a_layer = saved_bytes("manual", 3, compute) - saved_bytes("manual", 2, compute)
    assert a_layer / (2 * 160) == saved_bytes_per_token_and_layer(CONFIG, compute.itemsize)


def test_the_manual_backward_saves_at_most_half_of_autograds():
    manual = saved_bytes("manual", 3, torch.bfloat16) - saved_bytes("manual", 2, torch.bfloat16)
    plain = saved_bytes("none", 3, torch.bfloat16) - saved_bytes("none", 2, torch.bfloat16)
    assert manual <= plain / 2
