"""The three matrix products of a linear layer, in the training step's precision from fp32 master weights.

    y = x @ W.T        dx = dy @ W        dW += dy.T @ x

Which implementation runs (measurements in docs/lab-notes.md):

    bf16, CPU with AVX512-BF16          matmul_bf16.cpp: dot products of bf16 pairs
    bf16, CPU without bf16 products     matmul.cpp: bf16 in memory, fp32 arithmetic (PyTorch: 60x slower)
    fp32, CPU with AVX2, no AVX-512     matmul.cpp
    anything else                       PyTorch: CPUs with a matrix unit (AMX), GPUs, other precisions

The weight is packed, in bf16 also rounded, at its first use; dW is summed and returned in fp32.
"""

import ctypes
from collections.abc import Sequence
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
def kernels_for(dtype: torch.dtype) -> _Kernels | None:
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


def _kernels_for(weights: Sequence[Tensor], dtype: torch.dtype) -> _Kernels | None:
    if not all(build.in_memory(weight) and weight.dtype == torch.float32 for weight in weights):
        return None
    kernels = kernels_for(dtype)
    if kernels is None or any(size % kernels.multiple for weight in weights for size in weight.shape):
        return None
    return kernels


class Weights:
    """Master weights (O, I) of one I, side by side as a matrix W (sum of O, I), to multiply by in `dtype`.

    They are packed at the first use of each direction; where PyTorch's products run, cast and concatenated.
    """

    def __init__(self, dtype: torch.dtype, *weights: Tensor) -> None:
        self.masters = weights
        self.kernels = _kernels_for(weights, dtype)
        self.weights = (
            [weight.contiguous() for weight in weights] if self.kernels else [_joined(weights, dtype)]
        )
        self.is_rounded = dtype == torch.bfloat16
        self._panels: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """x @ W.T: (..., I) -> (..., sum of O)."""
        if self.kernels is None:
            return F.linear(x, self.weights[0])
        return self._multiply(self.kernels, x, "pack_outputs")

    def backward(self, dy: Tensor) -> Tensor:
        """dy @ W: (..., sum of O) -> (..., I)."""
        if self.kernels is None:
            return dy @ self.weights[0]
        return self._multiply(self.kernels, dy, "pack_inputs")

    def gradients(self, dy: Tensor, x: Tensor, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """dy.T @ x as a gradient of each weight; computed for none of them if all are frozen."""
        return weight_gradients(dy, x, *self.masters) if any(needed) else (None,) * len(needed)

    def _multiply(self, kernels: _Kernels, x: Tensor, pack: str) -> Tensor:
        O, I = sum(map(len, self.weights)), self.weights[0].shape[1]  # noqa: E741
        sums, outputs = (I, O) if pack == "pack_outputs" else (O, I)
        if pack not in self._panels:
            count = -(-outputs // kernels.panel_width)
            panels = torch.empty(count * kernels.panel_width * sums, dtype=kernels.panel_dtype)
            first = 0
            for weight in self.weights:
                kernels.call(pack, weight, panels, numbers=(len(weight), I, first, O, int(self.is_rounded)))
                first += len(weight)
            self._panels[pack] = panels
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], outputs)
        numbers = (x.numel() // sums, sums, outputs)
        kernels.call("multiply" + kernels.suffix, x, self._panels[pack], y, numbers=numbers)
        return y


def _joined(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The weights as one matrix in `dtype`; cast as they are copied, in one pass over memory."""
    if len(weights) == 1:
        return weights[0].to(dtype)
    rows = [len(weight) for weight in weights]
    whole = weights[0].new_empty(sum(rows), weights[0].shape[1], dtype=dtype)
    for some, weight in zip(whole.split(rows), weights, strict=True):
        some.copy_(weight)
    return whole


def weight_gradients(dy: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """dy.T @ x summed over all rows, as a gradient (O, I) of each weight, in the weights' precision.

    They are views of one matrix, which one product writes: nothing is copied.
    """
    rows, first = [len(weight) for weight in weights], weights[0]
    kernels = _kernels_for(weights, dy.dtype)
    if kernels is None:
        gradient_OI = _sum_of_products(dy, x, first.dtype)
    else:
        gradient_OI = first.new_empty(sum(rows), first.shape[1])
        _add(kernels, gradient_OI, dy, x, first=True)
    return gradient_OI.split(rows)


def _sum_of_products(dy: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """dy.T @ x in `dtype`; GPUs store the fp32 sums of bf16 products unrounded, and nothing is cast."""
    dy, x = dy.flatten(0, -2), x.flatten(0, -2)
    if dy.is_cuda and dy.dtype == torch.bfloat16 and dtype == torch.float32:
        return torch.mm(dy.T, x, out_dtype=dtype)
    return (dy.T @ x).to(dtype)


def add_weight_gradient(gradient_OI: Tensor, dy: Tensor, x: Tensor) -> None:
    """gradient += dy.T @ x."""
    kernels = _kernels_for([gradient_OI], dy.dtype)
    if kernels is None:
        gradient_OI += _sum_of_products(dy, x, gradient_OI.dtype)
    else:
        _add(kernels, gradient_OI, dy, x, first=False)


def _add(kernels: _Kernels, gradient_OI: Tensor, dy: Tensor, x: Tensor, first: bool) -> None:
    numbers = (x.numel() // x.shape[-1], *gradient_OI.shape, int(first))
    kernels.call(
        "add_gradient" + kernels.suffix, dy.contiguous(), x.contiguous(), gradient_OI, numbers=numbers
    )
