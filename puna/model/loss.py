"""The output projection and the cross-entropy in one: full logits never exist.

hidden_ND ─┬─ rows 0..n   ─> logits_nV ─> losses, dlogits ─> dhidden, dW += ...
           ├─ rows n..2n  ─> ...          one block's logits in memory at a time
           └─ ...
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from puna.kernels.elementwise import cross_entropy_block
from puna.kernels.matmul import Weights, add_weight_gradient

IGNORE = -100  # a target that does not count: padding
# Rows of a block. With few, the gradient of the projection is added to too often (at a vocabulary of 32,000
# and 64 rows, that took 5 % of a 110M step); with many, the logits no longer fit into the cache.
ROWS = 512


class LinearCrossEntropy(Function):
    """total = scale · Σ losses, losses = cross_entropy(h @ W.T)    h: (N, D)   W: (V, D)   losses: (N,)

    The gradients are computed in the forward, while a block's logits are in the cache, and scaled in the
    backward by the gradient of `total`. Saves dh (N, D) and dW (V, D), the latter
    unless W is frozen.

        d = scale · (softmax - onehot)        dh = d @ W        dW = Σ d.T @ h
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        weight = Weights(hidden_ND.dtype, weight_VD)
        dhidden_ND = torch.empty_like(hidden_ND)
        # The sum over blocks is kept in the weight's own precision: fp32 for the master weights.
        dweight_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        losses = []
        for rows in (slice(i, i + ROWS) for i in range(0, len(hidden_ND), ROWS)):
            block_losses, d_nV = cross_entropy_block(
                weight.forward(hidden_ND[rows]), targets_N[rows], scale, IGNORE
            )
            losses.append(block_losses)
            dhidden_ND[rows] = weight.backward(d_nV)
            if dweight_VD is not None:
                add_weight_gradient(dweight_VD, d_nV, hidden_ND[rows])
            del d_nV  # before the next block's logits
        ctx.save_for_backward(dhidden_ND, dweight_VD)
        losses_N = torch.cat(losses)
        ctx.mark_non_differentiable(losses_N)
        return losses_N.sum() * scale, losses_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        dhidden_ND, dweight_VD = ctx.saved_tensors
        # On a CPU reading the gradient costs nothing, and usually saves two passes over memory.
        if not (grads[0].is_cpu and grads[0].item() == 1):
            dhidden_ND = dhidden_ND * grads[0].to(dhidden_ND.dtype)
            dweight_VD = None if dweight_VD is None else dweight_VD * grads[0]
        return dhidden_ND, dweight_VD, None, None


def linear_cross_entropy(
    hidden_BTD: Tensor, weight_VD: Tensor, targets_BT: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """`LinearCrossEntropy` of a batch: scale · Σ losses, and the losses (B, T), without gradient."""
    total, losses_N = LinearCrossEntropy.apply(
        hidden_BTD.flatten(0, 1), weight_VD, targets_BT.flatten(), scale
    )
    return total, losses_N.view(targets_BT.shape)


def cross_entropy(hidden_BTD: Tensor, weight_VD: Tensor, targets_BT: Tensor) -> Tensor:
    """The losses (B, T) alone, bitwise identical to those of `LinearCrossEntropy`."""
    weight = Weights(hidden_BTD.dtype, weight_VD)
    blocks = zip(hidden_BTD.flatten(0, 1).split(ROWS), targets_BT.flatten().split(ROWS), strict=True)
    losses = [cross_entropy_block(weight.forward(h), t, 1.0, IGNORE)[0] for h, t in blocks]
    return torch.cat(losses).view(targets_BT.shape)
