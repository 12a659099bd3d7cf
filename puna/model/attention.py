"""Causal attention that never stores the scores and never computes the masked ones (paper section 2.4).

Two ways to the same numbers:

* PyTorch's `scaled_dot_product_attention`, whose flash kernels are the best there is on GPUs;
* `BlockedAttention`, written out by blocks of rows as batched matrix products (Rabe & Staats 2021; the
  backward of Dao et al. 2022). On CPUs it is 2-4 times as fast up to contexts of about a thousand, because
  the products run at the matrix library's full speed; see docs/lab-notes.md for the crossover.

        keys ─────────────>
    rows ████                 block 0: rows 0..127 against keys 0..127, the diagonal masked
     │   ████████             block 1: rows 128..255 against keys 0..255
     v   ████████████         ...
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from puna.model.kernels import softmax_block, softmax_block_backward

ROWS = 128  # of a block: the scores of one head stay in a core's second-level cache
BLOCKED_UP_TO = 1024  # longer contexts go to the flash kernel


def causal_attention(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
    """Softmax attention of a whole sequence, (B, T, H, E); each token sees itself and those before."""
    H, T = q_BHTE.shape[1:3]
    if q_BHTE.is_cpu and T <= BLOCKED_UP_TO and k_BKTE.shape[1] == H:
        return BlockedAttention.apply(q_BHTE, k_BKTE, v_BKTE)
    o_BHTE = F.scaled_dot_product_attention(
        q_BHTE, k_BKTE, v_BKTE, is_causal=True, enable_gqa=k_BKTE.shape[1] != H
    )
    return o_BHTE.transpose(1, 2)


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
