"""The three matrix products of a linear layer, in the training step's precision from fp32 master weights.

    y = x @ W.T        dx = dy @ W        dW += dy.T @ x

Which run, measured in docs/lab-notes.md:

    bf16, CPU with AVX512-BF16          matmul_bf16.cpp: dot products of bf16 pairs
    bf16, CPU without bf16 products     matmul.cpp: bf16 in memory, fp32 arithmetic (PyTorch: 60x slower)
    fp32, CPU with AVX2, no AVX-512     matmul.cpp
    anything else                       PyTorch: CPUs with a matrix unit (AMX), GPUs, other precisions

The weight is packed, in bf16 also rounded, at its first use; dW is summed and returned in fp32.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.kernels import build

_BF16, _FP32 = 1, 2  # the bits of products_run_here in matmul.cpp


@dataclass(frozen=True)
class _Kernels:
    """The functions of a C++ file for one precision of x and y."""

    library: ctypes.CDLL
    suffix: str  # of the functions over x and y
    panel_width: int
    panel_dtype: torch.dtype
    multiple: int  # of both sides of a weight

    def call(self, function: str, *tensors: Tensor, numbers: tuple[int, ...]) -> None:
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
        getattr(self.library, function)(*pointers, *map(ctypes.c_long, numbers))


@cache
def _kernels(dtype: torch.dtype) -> _Kernels | None:
    """Our kernels for x and y in `dtype`; None where PyTorch's are used."""
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    if dtype == torch.bfloat16:
        library = build.load(Path(__file__).with_name("matmul_bf16.cpp"))
        if library is not None and library.products_run_here():
            return _Kernels(library, "", 64, torch.bfloat16, 16)
    library = build.load(Path(__file__).with_name("matmul.cpp"))
    if library is None or not library.products_run_here() & (_BF16 if dtype == torch.bfloat16 else _FP32):
        return None
    suffix = "_bf16" if dtype == torch.bfloat16 else "_fp32"
    return _Kernels(library, suffix, library.products_panel_width(), torch.float32, 1)


def _kernels_for(weight_OI: Tensor, dtype: torch.dtype) -> _Kernels | None:
    if not weight_OI.is_cpu or weight_OI.dtype != torch.float32:
        return None
    kernels = _kernels(dtype)
    if kernels is None or any(size % kernels.multiple for size in weight_OI.shape):
        return None
    return kernels


class Weight:
    """A master weight (O, I), to multiply in `dtype` by: packed at the first use of each direction."""

    def __init__(self, weight_OI: Tensor, dtype: torch.dtype) -> None:
        self.kernels = _kernels_for(weight_OI, dtype)
        self.weight_OI = weight_OI.to(dtype) if self.kernels is None else weight_OI.contiguous()
        self.is_rounded = dtype == torch.bfloat16
        self._panels: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """x @ W.T: (..., I) -> (..., O)."""
        if self.kernels is None:
            return F.linear(x, self.weight_OI)
        return self._multiply(self.kernels, x, "pack_outputs")

    def backward(self, dy: Tensor) -> Tensor:
        """dy @ W: (..., O) -> (..., I)."""
        if self.kernels is None:
            return dy @ self.weight_OI
        return self._multiply(self.kernels, dy, "pack_inputs")

    def _multiply(self, kernels: _Kernels, x: Tensor, pack: str) -> Tensor:
        O, I = self.weight_OI.shape  # noqa: E741
        sums, outputs = (I, O) if pack == "pack_outputs" else (O, I)
        if pack not in self._panels:
            count = -(-outputs // kernels.panel_width)
            panels = torch.empty(count * kernels.panel_width * sums, dtype=kernels.panel_dtype)
            kernels.call(pack, self.weight_OI, panels, numbers=(O, I, int(self.is_rounded)))
            self._panels[pack] = panels
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], outputs)
        numbers = (x.numel() // sums, sums, outputs)
        kernels.call("multiply" + kernels.suffix, x, self._panels[pack], y, numbers=numbers)
        return y


def weight_gradient(dy: Tensor, x: Tensor, weight_OI: Tensor) -> Tensor:
    """dy.T @ x summed over all rows, (O, I), in the weight's precision."""
    kernels = _kernels_for(weight_OI, dy.dtype)
    if kernels is None:
        return (dy.flatten(0, -2).T @ x.flatten(0, -2)).to(weight_OI.dtype)
    gradient_OI = torch.empty_like(weight_OI, memory_format=torch.contiguous_format)
    _add(kernels, gradient_OI, dy, x, first=True)
    return gradient_OI


def add_weight_gradient(gradient_OI: Tensor, dy: Tensor, x: Tensor) -> None:
    """gradient += dy.T @ x."""
    kernels = _kernels_for(gradient_OI, dy.dtype)
    if kernels is None:
        gradient_OI += dy.flatten(0, -2).T @ x.flatten(0, -2)
    else:
        _add(kernels, gradient_OI, dy, x, first=False)


def _add(kernels: _Kernels, gradient_OI: Tensor, dy: Tensor, x: Tensor, first: bool) -> None:
    numbers = (x.numel() // x.shape[-1], *gradient_OI.shape, int(first))
    kernels.call(
        "add_gradient" + kernels.suffix, dy.contiguous(), x.contiguous(), gradient_OI, numbers=numbers
    )
