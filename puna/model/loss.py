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
from puna.model.sizes import LOGITS_ROWS, LOGITS_ROWS_ON_GPU

IGNORE = -100  # a target that does not count: padding


def block_rows(device: torch.device) -> int:
    """How many rows of logits a device computes at a time."""
    return LOGITS_ROWS_ON_GPU if device.type == "cuda" else LOGITS_ROWS


class LinearCrossEntropy(Function):
    """total = scale · Σ losses, losses = cross_entropy(h @ W.T)    h: (N, D)   W: (V, D)   losses: (N,)

    The gradients are computed in the forward, while a block's logits are in the cache, and scaled in the
    backward by the gradient of `total`. Saves dh (N, D) and dW (V, D), the latter
    unless W is frozen.

        d = scale · (softmax - onehot)        dh = d @ W        dW = Σ d.T @ h
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, scale: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        weight = Weights(hidden_ND.dtype, weight_VD)
        dhidden_ND = torch.empty_like(hidden_ND)
        # The sum over blocks is kept in the weight's own precision: fp32 for the master weights.
        dweight_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        losses = []
        count = block_rows(hidden_ND.device)
        for rows in (slice(i, i + count) for i in range(0, len(hidden_ND), count)):
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
    hidden_BTD: Tensor, weight_VD: Tensor, targets_BT: Tensor, scale: float | Tensor
) -> tuple[Tensor, Tensor]:
    """`LinearCrossEntropy` of a batch: scale · Σ losses, and the losses (B, T), without gradient."""
    total, losses_N = LinearCrossEntropy.apply(
        hidden_BTD.flatten(0, 1), weight_VD, targets_BT.flatten(), scale
    )
    return total, losses_N.view(targets_BT.shape)


def cross_entropy(hidden_BTD: Tensor, weight_VD: Tensor, targets_BT: Tensor) -> Tensor:
    """The losses (B, T) alone, bitwise identical to those of `LinearCrossEntropy`."""
    weight = Weights(hidden_BTD.dtype, weight_VD)
    rows = block_rows(hidden_BTD.device)
    blocks = zip(hidden_BTD.flatten(0, 1).split(rows), targets_BT.flatten().split(rows), strict=True)
    losses = [cross_entropy_block(weight.forward(h), t, 1.0, IGNORE)[0] for h, t in blocks]
    return torch.cat(losses).view(targets_BT.shape)
