"""Causal attention that never stores the scores and never computes the masked ones (paper section 2.4).

On CPUs it is `FusedAttention`, our own kernels, which keep a head in a core's cache: attention_bf16.cpp for
bf16 where there is AVX512-BF16, attention.cpp for fp32 and bf16 with any instruction set. They are faster
than PyTorch's (docs/lab-notes.md). On GPUs, in fp64 and without a C++ compiler it is PyTorch's
`scaled_dot_product_attention`, whose flash kernels are the best there are on GPUs.

        keys ─────────────>
    rows ████                 a block of rows against the keys up to its last row, the diagonal masked
     │   ████████
     v   ████████████         ...
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from puna.model import extension

Split = Callable[[Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor, Tensor]]


def rotary_attention(
    qkv_BTXE: Tensor, cos_TE: Tensor, sin_TE: Tensor, heads: int, kv_heads: int, split_rotate: Split
) -> Tensor:
    """Fused q, k, v (B, T, H + 2K, E), not yet rotated -> attention (B, T, H, E).

    `split_rotate` takes them apart where our kernels, which read them as they lie, do not run.
    """
    if is_fused(qkv_BTXE) and cos_TE.dtype == torch.float32:
        return FusedAttention.apply(qkv_BTXE, cos_TE, sin_TE, heads, kv_heads)
    return causal_attention(*split_rotate(qkv_BTXE, cos_TE, sin_TE, heads, kv_heads))


def causal_attention(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
    """Softmax attention of a whole sequence, (B, T, H, E); each token sees itself and those before."""
    if is_fused(q_BHTE) and not torch.is_grad_enabled():
        return _forward(q_BHTE, k_BKTE, v_BKTE)[0]
    o_BHTE = F.scaled_dot_product_attention(
        q_BHTE, k_BKTE, v_BKTE, is_causal=True, enable_gqa=k_BKTE.shape[1] != q_BHTE.shape[1]
    )
    return o_BHTE.transpose(1, 2)


def is_fused(x: Tensor) -> bool:
    """Whether one of our kernels takes a tensor (..., E): fp32 or bf16 on the CPU, an even head dimension."""
    return x.is_cpu and _kernel(x.dtype, x.shape[-1]) is not None


@cache
def _kernel(dtype: torch.dtype, head_dim: int) -> tuple[Any, Any] | None:
    """The forward and the backward function; None without a compiler or where no kernel takes these heads."""
    if dtype not in (torch.float32, torch.bfloat16) or head_dim % 2:
        return None
    if dtype == torch.bfloat16 and head_dim % 16 == 0:
        library = extension.load(Path(__file__).with_name("attention_bf16.cpp"))
        if library is not None and library.attention_runs_here():
            return library.attention_forward, library.attention_backward
    library = extension.load(Path(__file__).with_name("attention.cpp"))
    if library is None:
        return None
    if dtype == torch.bfloat16:
        return library.attention_forward_bf16, library.attention_backward_bf16
    return library.attention_forward_fp32, library.attention_backward_fp32


class FusedAttention(Function):
    """o = softmax(mask(q @ k.T / sqrt(E))) @ v, q and k rotated      qkv: (B, T, H + 2K, E)   o: (B, T, H, E)

    Saves qkv as it came, o, and the rows' log Σ exp; the backward recomputes the rotation and the
    probabilities. The rotation's own backward, a turn by the opposite angles, is done on the way out.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, qkv_BTXE: Tensor, cos_TE: Tensor, sin_TE: Tensor, heads: int, kv_heads: int
    ) -> Tensor:
        q, k, v = _split(qkv_BTXE, heads, kv_heads)
        o_BTHE, lse_BHT = _forward(q, k, v, cos_TE, sin_TE)
        ctx.save_for_backward(qkv_BTXE, o_BTHE, lse_BHT, cos_TE, sin_TE)
        return o_BTHE

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        qkv, o, lse, cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        H = o.shape[2]
        K = (qkv.shape[2] - H) // 2
        dqkv = torch.empty_like(qkv)
        views = (*_split(qkv, H, K), o.transpose(1, 2), grads[0].contiguous().transpose(1, 2))
        _call(1, (*views, *_split(dqkv, H, K)), lse, cos, sin)
        return dqkv, None, None, None, None


def _split(qkv_BTXE: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv_BTXE.transpose(1, 2).split((heads, kv_heads, kv_heads), dim=1)
    return q, k, v


def _forward(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor | None = None, sin: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Views (B, H or K, T, E), with any strides but E's -> o (B, T, H, E) and log Σ exp (B, H, T), fp32."""
    B, H, T, E = q.shape
    o_BTHE = q.new_empty(B, T, H, E)
    lse_BHT = q.new_empty(B, H, T, dtype=torch.float32)
    _call(0, (q, k, v, o_BTHE.transpose(1, 2)), lse_BHT, cos, sin)
    return o_BTHE, lse_BHT


def _call(which: int, views: tuple[Tensor, ...], lse: Tensor, cos: Tensor | None, sin: Tensor | None) -> None:
    """Call the kernel's forward (0) or backward (1); views: (B, heads, T, E), the first q, the second k."""
    (B, H, T, E), K = views[0].shape, views[1].shape[1]
    assert all(view.stride(3) == 1 and view.dtype == views[0].dtype for view in views)
    assert cos is None or (cos.is_contiguous() and cos.shape == (T, E // 2) and cos.dtype == torch.float32)
    numbers = [view.data_ptr() for view in views], (B, T, H, K, E), [n for x in views for n in x.stride()[:3]]
    pointers, shape, strides = ((ctypes.c_int64 * len(n))(*n) for n in numbers)
    angles = [ctypes.c_void_p(None if x is None else x.data_ptr()) for x in (cos, sin)]
    kernel = _kernel(views[0].dtype, E)
    assert kernel is not None
    kernel[which](pointers, ctypes.c_void_p(lse.data_ptr()), *angles, shape, strides)
