"""Causal attention that never stores the scores and never computes the masked ones (paper section 2.4).

On CPUs our own kernels run (`FusedAttention`), which compute a head within a core's cache: attention_bf16.cpp
for bf16 where there is AVX512-BF16, attention.cpp for fp32 and bf16 with any instruction set. They are faster
than PyTorch's (docs/lab-notes.md). On GPUs, in fp64 and without a C++ compiler, PyTorch's
`scaled_dot_product_attention` runs.

        keys ─────────────>
    rows ████                 a block of rows against the keys up to its last row, the diagonal masked
     │   ████████
     v   ████████████         ...
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from puna.kernels import attention as kernel

Split = Callable[[Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor, Tensor]]


def rotary_attention(
    qkv_BTXE: Tensor, cos_TE: Tensor, sin_TE: Tensor, heads: int, kv_heads: int, split_rotate: Split
) -> Tensor:
    """q, k, v side by side (B, T, H + 2K, E), not yet rotated -> attention (B, T, H, E).

    Our kernels read them in place; PyTorch's attention gets what `split_rotate` returns.
    """
    if kernel.is_fused(qkv_BTXE) and cos_TE.dtype == torch.float32:
        return FusedAttention.apply(qkv_BTXE, cos_TE, sin_TE, heads, kv_heads)
    return causal_attention(*split_rotate(qkv_BTXE, cos_TE, sin_TE, heads, kv_heads))


def causal_attention(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
    """Softmax attention of a whole sequence, (B, T, H, E); each token sees itself and those before."""
    o_BHTE = F.scaled_dot_product_attention(
        q_BHTE, k_BKTE, v_BKTE, is_causal=True, enable_gqa=k_BKTE.shape[1] != q_BHTE.shape[1]
    )
    return o_BHTE.transpose(1, 2)


class FusedAttention(Function):
    """o = softmax(mask(q @ k.T / sqrt(E))) @ v, q and k rotated      qkv: (B, T, H + 2K, E)   o: (B, T, H, E)

    Saves the unrotated qkv, o, and the rows' log Σ exp; the backward recomputes the rotation and the
    probabilities, and rotates the gradients of q and k by the opposite angles.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, qkv_BTXE: Tensor, cos_TE: Tensor, sin_TE: Tensor, heads: int, kv_heads: int
    ) -> Tensor:
        q, k, v = _split(qkv_BTXE, heads, kv_heads)
        o_BTHE, lse_BHT = kernel.forward(q, k, v, cos_TE, sin_TE)
        ctx.save_for_backward(qkv_BTXE, o_BTHE, lse_BHT, cos_TE, sin_TE)
        return o_BTHE

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        qkv, o, lse, cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        H = o.shape[2]
        K = (qkv.shape[2] - H) // 2
        dqkv = torch.empty_like(qkv)
        kernel.backward(_split(qkv, H, K), o, grads[0], lse, _split(dqkv, H, K), cos, sin)
        return dqkv, None, None, None, None


def _split(qkv_BTXE: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv_BTXE.transpose(1, 2).split((heads, kv_heads, kv_heads), dim=1)
    return q, k, v
