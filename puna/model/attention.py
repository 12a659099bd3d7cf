"""Causal attention that never stores the scores and never computes the masked ones (paper section 2.4).

Three ways to the same numbers:

* `FusedAttention`, our own kernel (attention.cpp) for bf16 on CPUs with AVX512-BF16: a head at a time in a
  core's cache, two to three times as fast as the others on a CPU (docs/lab-notes.md);
* `BlockedAttention`, written out by blocks of rows as batched matrix products (Rabe & Staats 2021; the
  backward of Dao et al. 2022), for other CPUs and precisions, up to contexts of about a thousand;
* PyTorch's `scaled_dot_product_attention`, whose flash kernels are the best there is on GPUs.

        keys ─────────────>
    rows ████                 block 0: rows 0..127 against keys 0..127, the diagonal masked
     │   ████████             block 1: rows 128..255 against keys 0..255
     v   ████████████         ...
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from puna.model import extension
from puna.model.kernels import softmax_block, softmax_block_backward

ROWS = 128  # of a block: the scores of one head stay in a core's second-level cache
BLOCKED_UP_TO = 1024  # longer contexts go to the flash kernel

Split = Callable[[Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor, Tensor]]


def rotary_attention(
    qkv_BTXE: Tensor, cos_TE: Tensor, sin_TE: Tensor, heads: int, kv_heads: int, split_rotate: Split
) -> Tensor:
    """Fused q, k, v (B, T, H + 2K, E), not yet rotated -> attention (B, T, H, E).

    `split_rotate` takes them apart where our kernel, which reads them as they lie, does not run.
    """
    if is_fused(qkv_BTXE) and cos_TE.dtype == torch.float32:
        return FusedAttention.apply(qkv_BTXE, cos_TE, sin_TE, heads, kv_heads)
    return causal_attention(*split_rotate(qkv_BTXE, cos_TE, sin_TE, heads, kv_heads))


def causal_attention(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
    """Softmax attention of a whole sequence, (B, T, H, E); each token sees itself and those before."""
    H, T = q_BHTE.shape[1:3]
    if is_fused(q_BHTE) and not torch.is_grad_enabled():
        return _forward(q_BHTE, k_BKTE, v_BKTE)[0]
    if q_BHTE.is_cpu and T <= BLOCKED_UP_TO and k_BKTE.shape[1] == H:
        return BlockedAttention.apply(q_BHTE, k_BKTE, v_BKTE)
    o_BHTE = F.scaled_dot_product_attention(
        q_BHTE, k_BKTE, v_BKTE, is_causal=True, enable_gqa=k_BKTE.shape[1] != H
    )
    return o_BHTE.transpose(1, 2)


def is_fused(x: Tensor) -> bool:
    """Whether our kernel takes a tensor (..., E): bf16 on this CPU, heads of a multiple of 16."""
    return x.is_cpu and x.dtype == torch.bfloat16 and x.shape[-1] % 16 == 0 and _library() is not None


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled kernel; None where there is no compiler, or the processor lacks its instructions."""
    library = extension.load(Path(__file__).with_name("attention.cpp"))
    return library if library is not None and library.attention_runs_here() else None


class FusedAttention(Function):
    """o = softmax(mask(q @ k.T / sqrt(E))) @ v, q and k rotated      qkv: (B, T, H + 2K, E)   o: (B, T, H, E)

    Saves qkv as it came, o, and the rows' log Σ exp; the backward rotates and computes the probabilities
    again. The rotation's own backward, a turn by the opposite angles, is done on the way out.
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
        tensors = (*_split(qkv, H, K), o.transpose(1, 2), grads[0].contiguous().transpose(1, 2))
        _call("attention_backward", (*tensors, *_split(dqkv, H, K)), lse, cos, sin)
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
    _call("attention_forward", (q, k, v, o_BTHE.transpose(1, 2)), lse_BHT, cos, sin)
    return o_BTHE, lse_BHT


def _call(
    function: str, views: tuple[Tensor, ...], lse: Tensor, cos: Tensor | None, sin: Tensor | None
) -> None:
    """Call the kernel; views: (B, heads, T, E), the first q, the second k."""
    (B, H, T, E), K = views[0].shape, views[1].shape[1]
    assert all(view.stride(3) == 1 for view in views)
    assert cos is None or (cos.is_contiguous() and cos.shape == (T, E // 2) and cos.dtype == torch.float32)
    numbers = [view.data_ptr() for view in views], (B, T, H, K, E), [n for x in views for n in x.stride()[:3]]
    pointers, shape, strides = ((ctypes.c_int64 * len(n))(*n) for n in numbers)
    angles = [ctypes.c_void_p(None if x is None else x.data_ptr()) for x in (cos, sin)]
    library = _library()
    assert library is not None
    getattr(library, function)(pointers, ctypes.c_void_p(lse.data_ptr()), *angles, shape, strides)


class BlockedAttention(Function):
    """o = softmax(mask(q @ k.T / sqrt(E))) @ v      q, k, v: (B, H, T, E)   o: (B, T, H, E)

    Saves q, k, v, the rows' log Σ exp, and o, laid as the next product reads it, so that both share one copy.
    Recomputes the probabilities p a block at a time in backward:

        delta = Σ do · o        dp = do @ v.T       ds = p · (dp - delta) / sqrt(E)
        dq = ds @ k             dk = ds.T @ q       dv = p.T @ do
    """

    @staticmethod
    def forward(ctx: FunctionCtx, q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor) -> Tensor:
        B, H, T, E = q_BHTE.shape
        q, k, v = (x.flatten(0, 1) for x in (q_BHTE, k_BHTE, v_BHTE))
        o_BTHE = q.new_empty(B, T, H, E)
        o_BHTE = o_BTHE.transpose(1, 2)
        lse = q.new_empty(B * H, T, 1, dtype=_sums(q.dtype))
        for start in range(0, T, ROWS):
            end = min(start + ROWS, T)
            scores = _scores(q, k, start, end)
            p, lse[:, start:end] = softmax_block(scores, E**-0.5)
            o_BHTE[:, :, start:end] = (p @ v[:, :end]).view(B, H, -1, E)
        ctx.save_for_backward(q, k, v, o_BTHE, lse)
        return o_BTHE

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, o_BTHE, lse = ctx.saved_tensors  # type: ignore[attr-defined]
        B, T, H, E = o_BTHE.shape
        do = grads[0].transpose(1, 2).flatten(0, 1)
        delta = (grads[0].to(lse.dtype) * o_BTHE).sum(-1).transpose(1, 2).reshape(lse.shape)
        dq = torch.empty_like(q)
        dk, dv = torch.zeros_like(k, dtype=lse.dtype), torch.zeros_like(v, dtype=lse.dtype)
        for start in range(0, T, ROWS):
            end = min(start + ROWS, T)
            rows = slice(start, end)
            scores = _scores(q, k, start, end)
            dp = do[:, rows] @ v[:, :end].transpose(1, 2)
            p, ds = softmax_block_backward(scores, dp, lse[:, rows], delta[:, rows], E**-0.5)
            dq[:, rows] = ds @ k[:, :end]
            dk[:, :end] += ds.transpose(1, 2) @ q[:, rows]
            dv[:, :end] += p.transpose(1, 2) @ do[:, rows]
        dk, dv = dk.to(k.dtype), dv.to(v.dtype)
        return dq.view(B, H, T, E), dk.view(B, H, T, E), dv.view(B, H, T, E)


def _sums(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in: fp32 for half precisions."""
    return dtype if dtype == torch.float64 else torch.float32


def _scores(q: Tensor, k: Tensor, start: int, end: int) -> Tensor:
    """q @ k.T of a block of rows with the keys up to its end; only the diagonal square needs the mask."""
    scores = q[:, start:end] @ k[:, :end].transpose(1, 2)
    scores[:, :, start:end] += torch.full(
        (end - start, end - start), float("-inf"), dtype=q.dtype, device=q.device
    ).triu_(1)
    return scores
