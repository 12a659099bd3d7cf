"""Calls of our attention kernels for CPUs: which C++ file runs for which precision and head dimension.

bf16, CPU with AVX512-BF16, head dimension a multiple of 16    attention_bf16.cpp
fp32 and bf16, any instruction set, an even head dimension     attention.cpp
anything else                                                  none: model/attention.py uses PyTorch
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.kernels import build


def is_fused(x: Tensor) -> bool:
    """Whether one of our kernels takes a tensor (..., E): fp32 or bf16 on the CPU, an even head dimension."""
    return build.in_memory(x) and _kernel(x.dtype, x.shape[-1]) is not None


@cache
def _kernel(dtype: torch.dtype, head_dim: int) -> tuple[Any, Any] | None:
    """The forward and the backward function; None without a compiler or where no kernel takes these heads."""
    if dtype not in (torch.float32, torch.bfloat16) or head_dim % 2:
        return None
    if dtype == torch.bfloat16 and head_dim % 16 == 0:
        library = build.load(Path(__file__).with_name("attention_bf16.cpp"))
        if library is not None and library.attention_runs_here():
            return library.attention_forward, library.attention_backward
    library = build.load(Path(__file__).with_name("attention.cpp"))
    if library is None:
        return None
    if dtype == torch.bfloat16:
        return library.attention_forward_bf16, library.attention_backward_bf16
    return library.attention_forward_fp32, library.attention_backward_fp32


def whole_rows(batch: int, tokens: int) -> Tensor:
    """The spans of a batch whose rows are one sequence each."""
    return torch.tensor([[row, 0, tokens] for row in range(batch)], device="cpu")


def forward(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, spans: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Views (B, H or K, T, E), with any strides but E's -> o (B, T, H, E) and log Σ exp (B, H, T), fp32.

    q and k are rotated by the angles cos, sin (T, E/2), fp32. `spans` (n, 3) are the sequences, which do not
    see each other: row, first token, number of tokens; together all tokens. None: each row is one.
    """
    B, H, T, E = q.shape
    o_BTHE = q.new_empty(B, T, H, E)
    lse_BHT = q.new_empty(B, H, T, dtype=torch.float32)
    _call(0, (q, k, v, o_BTHE.transpose(1, 2)), lse_BHT, cos, sin, spans)
    return o_BTHE, lse_BHT


def backward(
    inputs: tuple[Tensor, Tensor, Tensor],
    o_BTHE: Tensor,
    do_BTHE: Tensor,
    lse_BHT: Tensor,
    gradients: tuple[Tensor, Tensor, Tensor],
    cos: Tensor,
    sin: Tensor,
    spans: Tensor | None = None,
) -> None:
    """Write the gradients of q, k and v, views (B, H or K, T, E), into `gradients`, views like them."""
    do_BHTE = do_BTHE.contiguous().transpose(1, 2)
    _call(1, (*inputs, o_BTHE.transpose(1, 2), do_BHTE, *gradients), lse_BHT, cos, sin, spans)


def _call(
    which: int, views: tuple[Tensor, ...], lse: Tensor, cos: Tensor, sin: Tensor, spans: Tensor | None
) -> None:
    """Call the kernel's forward (0) or backward (1); views: (B, heads, T, E), the first q, the second k."""
    (B, H, T, E), K = views[0].shape, views[1].shape[1]
    assert all(view.stride(3) == 1 and view.dtype == views[0].dtype for view in views)
    for angles in (cos, sin):
        assert angles.is_contiguous() and angles.shape == (T, E // 2) and angles.dtype == torch.float32
    spans = whole_rows(B, T) if spans is None else spans
    assert spans.is_cpu and spans.is_contiguous() and spans.dtype == torch.int64
    numbers = (
        [view.data_ptr() for view in views],
        (len(spans), T, H, K, E),
        [n for x in views for n in x.stride()[:3]],
    )
    pointers, shape, strides = ((ctypes.c_int64 * len(n))(*n) for n in numbers)
    kernel = _kernel(views[0].dtype, E)
    assert kernel is not None
    tables = (ctypes.c_void_p(x.data_ptr()) for x in (lse, cos, sin))
    kernel[which](pointers, *tables, shape, strides, ctypes.c_void_p(spans.data_ptr()))
