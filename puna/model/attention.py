"""Causal attention that never stores the scores and never computes the masked ones (paper section 2.4).

On CPUs our own kernels run (`FusedAttention`), which compute a head within a core's cache: attention_bf16.cpp
for bf16 where there is AVX512-BF16, attention.cpp for fp32 and bf16 with any instruction set. They are faster
than PyTorch's (docs/lab-notes.md). On GPUs, in fp64 and without a C++ compiler, PyTorch's
`scaled_dot_product_attention` runs.

        keys ─────────────>
    rows ████                 a block of rows against the keys up to its last row, the diagonal masked
     │   ████████
     v   ████████████         ...

Where several examples are packed into a row, each is a sequence of its own (`Segments`): our kernels compute
it alone, PyTorch's attention masks the others. Rotary scores depend on differences of positions only, so it
does not matter where in the row an example lies.
"""

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from puna.kernels import attention as kernel

Split = Callable[[Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor, Tensor]]


class Segments:
    """Which example each token of a batch belongs to (B, T), as numbers that do not decrease in a row."""

    def __init__(self, segments_BT: Tensor) -> None:
        self.segments_BT = segments_BT

    @cached_property
    def spans(self) -> Tensor:
        """The examples (n, 3): row, first token, number of tokens."""
        B, T = self.segments_BT.shape
        begins_BT = torch.ones(B, T, dtype=torch.bool)
        begins_BT[:, 1:] = self.segments_BT[:, 1:] != self.segments_BT[:, :-1]
        first = begins_BT.flatten().nonzero()[:, 0]
        return torch.stack((first // T, first % T, first.diff(append=torch.tensor([B * T]))), 1)

    @cached_property
    def mask_B1TT(self) -> Tensor:
        """Whether a token (row) sees another (column)."""
        same_BTT = self.segments_BT[:, :, None] == self.segments_BT[:, None, :]
        return same_BTT.tril()[:, None]


def rotary_attention(
    qkv_BTXE: Tensor,
    cos_TE: Tensor,
    sin_TE: Tensor,
    heads: int,
    kv_heads: int,
    split_rotate: Split,
    segments: Segments | None = None,
) -> Tensor:
    """q, k, v side by side (B, T, H + 2K, E), not yet rotated -> attention (B, T, H, E).

    Our kernels read them in place; PyTorch's attention gets what `split_rotate` returns. `segments`: the
    examples, which do not see each other; None: each row is one.
    """
    if kernel.is_fused(qkv_BTXE) and cos_TE.dtype == torch.float32:
        spans = None if segments is None else segments.spans
        return FusedAttention.apply(qkv_BTXE, cos_TE, sin_TE, heads, kv_heads, spans)
    return causal_attention(*split_rotate(qkv_BTXE, cos_TE, sin_TE, heads, kv_heads), segments)


def causal_attention(
    q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, segments: Segments | None = None
) -> Tensor:
    """Softmax attention of a whole sequence, (B, T, H, E); each token sees itself and those before."""
    o_BHTE = F.scaled_dot_product_attention(
        q_BHTE,
        k_BKTE,
        v_BKTE,
        attn_mask=None if segments is None else segments.mask_B1TT,
        is_causal=segments is None,
        enable_gqa=k_BKTE.shape[1] != q_BHTE.shape[1],
    )
    return o_BHTE.transpose(1, 2)


class FusedAttention(Function):
    """o = softmax(mask(q @ k.T / sqrt(E))) @ v, q and k rotated      qkv: (B, T, H + 2K, E)   o: (B, T, H, E)

    Saves the unrotated qkv, o, and the rows' log Σ exp; the backward recomputes the rotation and the
    probabilities, and rotates the gradients of q and k by the opposite angles.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        qkv_BTXE: Tensor,
        cos_TE: Tensor,
        sin_TE: Tensor,
        heads: int,
        kv_heads: int,
        spans: Tensor | None = None,
    ) -> Tensor:
        q, k, v = _split(qkv_BTXE, heads, kv_heads)
        o_BTHE, lse_BHT = kernel.forward(q, k, v, cos_TE, sin_TE, spans)
        ctx.spans = spans  # type: ignore[attr-defined]
        ctx.save_for_backward(qkv_BTXE, o_BTHE, lse_BHT, cos_TE, sin_TE)
        return o_BTHE

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, o, lse, cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        H = o.shape[2]
        K = (qkv.shape[2] - H) // 2
        dqkv = torch.empty_like(qkv)
        kernel.backward(_split(qkv, H, K), o, grads[0], lse, _split(dqkv, H, K), cos, sin, ctx.spans)  # type: ignore[attr-defined]
        return dqkv, None, None, None, None, None


def _split(qkv_BTXE: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv_BTXE.transpose(1, 2).split((heads, kv_heads, kv_heads), dim=1)
    return q, k, v
