"""The three matrix products of a linear layer, in the training step's precision from fp32 master weights.

    y = x @ W.T        dx = dy @ W        dW += dy.T @ x

In bf16 on CPUs with AVX512-BF16 they are our own (products.cpp), a few per cent faster than oneDNN's forward
and a fifth faster for dW, whose operands oneDNN must transpose; the weight is rounded as it is packed, and dW
is summed and kept in fp32. Elsewhere they are PyTorch's: on CPUs with a matrix unit (AMX), which beats any
vector unit, on GPUs, and in other precisions.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.model import extension

PANEL = 64  # as in products.cpp


@cache
def _library() -> ctypes.CDLL | None:
    library = extension.load(Path(__file__).with_name("products.cpp"))
    return library if library is not None and library.products_run_here() else None


def _is_ours(weight_OI: Tensor, dtype: torch.dtype) -> bool:
    return (
        weight_OI.is_cpu
        and weight_OI.dtype == torch.float32
        and dtype == torch.bfloat16
        and weight_OI.shape[0] % 16 == 0
        and weight_OI.shape[1] % 16 == 0
        and _library() is not None
    )


class Weight:
    """A master weight (O, I), to multiply in `dtype` by: rounded at the first use of each way."""

    def __init__(self, weight_OI: Tensor, dtype: torch.dtype) -> None:
        self.ours = _is_ours(weight_OI, dtype)
        self.weight_OI = weight_OI.contiguous() if self.ours else weight_OI.to(dtype)
        self._panels: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """x @ W.T: (..., I) -> (..., O)."""
        return self._multiply(x, "pack_outputs") if self.ours else F.linear(x, self.weight_OI)

    def backward(self, dy: Tensor) -> Tensor:
        """dy @ W: (..., O) -> (..., I)."""
        return self._multiply(dy, "pack_inputs") if self.ours else dy @ self.weight_OI

    def _multiply(self, x: Tensor, pack: str) -> Tensor:
        O, I = self.weight_OI.shape  # noqa: E741
        sums, outputs = (I, O) if pack == "pack_outputs" else (O, I)
        if pack not in self._panels:
            panels = torch.empty((outputs + PANEL - 1) // PANEL * PANEL * sums, dtype=torch.bfloat16)
            _call(pack, self.weight_OI, panels, numbers=(O, I))
            self._panels[pack] = panels
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], outputs)
        _call("multiply", x, self._panels[pack], y, numbers=(x.numel() // sums, sums, outputs))
        return y


def weight_gradient(dy: Tensor, x: Tensor, weight_OI: Tensor) -> Tensor:
    """dy.T @ x summed over all rows, (O, I), in the weight's precision."""
    if not _is_ours(weight_OI, dy.dtype):
        return (dy.flatten(0, -2).T @ x.flatten(0, -2)).to(weight_OI.dtype)
    gradient_OI = torch.empty_like(weight_OI, memory_format=torch.contiguous_format)
    _add(gradient_OI, dy, x, first=True)
    return gradient_OI


def add_weight_gradient(gradient_OI: Tensor, dy: Tensor, x: Tensor) -> None:
    """gradient += dy.T @ x."""
    if _is_ours(gradient_OI, dy.dtype):
        _add(gradient_OI, dy, x, first=False)
    else:
        gradient_OI += dy.flatten(0, -2).T @ x.flatten(0, -2)


def _add(gradient_OI: Tensor, dy: Tensor, x: Tensor, first: bool) -> None:
    rows = x.numel() // x.shape[-1]
    numbers = (rows, *gradient_OI.shape, int(first))
    _call("add_gradient", dy.contiguous(), x.contiguous(), gradient_OI, numbers=numbers)


def _call(function: str, *tensors: Tensor, numbers: tuple[int, ...]) -> None:
    library = _library()
    assert library is not None
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    getattr(library, function)(*pointers, *map(ctypes.c_long, numbers))
