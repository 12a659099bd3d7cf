"""The elementwise arithmetic between the matrix products, as pure functions, each one pass over memory.

Eager PyTorch makes a pass over memory for every operation, and at the sizes of a CPU's cache that costs as
much as the matrix products. So each function is defined twice:

    @kernel                    in PyTorch: the specification, which runs on any device and in any precision,
    def rms_forward            compiled by torch.compile on GPUs when `compile_kernels` asks for it
    @rms_forward.cpu           its implementation in C++ (elementwise.cpp), for fp32 and bf16 on CPUs,
    def _rms_forward           where a compiler was found

Arithmetic is fp32 inside (fp64 for fp64 inputs), and results are rounded once, when they are stored.
"""

import ctypes
import logging
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.kernels import build

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

SOURCES = tuple(
    Path(__file__).with_name(f"{name}.cpp")
    for name in ("elementwise", "attention", "matmul", "attention_bf16", "matmul_bf16")
)
"""All that a training step needs, to compile together (`build.prepare`)."""


class Kernel(Generic[P, R]):
    """A pure function of tensors that picks its implementation by its arguments."""

    def __init__(self, function: Callable[P, R]) -> None:
        self.function = function
        self.in_cpp: Callable[P, R] | None = None
        self.compiled: Callable[P, R] | None = None
        self.__doc__ = function.__doc__

    def cpu(self, function: Callable[P, R]) -> Callable[P, R]:
        """Mark `function` as the same in C++."""
        self.in_cpp = function
        return function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compute, in C++, compiled, or eagerly."""
        if self.in_cpp is not None and _is_for_cpp(args) and native_library() is not None:
            return self.in_cpp(*args, **kwargs)
        if _compile and not any(_is_on(x, "cpu", "meta") for x in args):
            try:
                # Here, not earlier: the import of the compiler alone takes seconds. For each shape anew:
                # a run has few, and kernels for any shape are several times slower.
                self.compiled = self.compiled or torch.compile(self.function, fullgraph=True, dynamic=False)
                return self.compiled(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # torch.compile raises whatever its parts raise
                compile_kernels(False)
                first = (str(error).strip().splitlines() or [""])[0]
                _log.warning(
                    "torch.compile failed (%s: %s); kernels run eagerly, slower", type(error).__name__, first
                )
        return self.function(*args, **kwargs)


_compile = False  # set by compile_kernels


def kernel(function: Callable[P, R]) -> Kernel[P, R]:
    """Mark a pure function as a kernel."""
    return Kernel(function)


def compile_kernels(on: bool = True) -> None:
    """On GPUs, compile each kernel at its first call; or with `on` False, run it eagerly."""
    global _compile
    _compile = on


@cache
def native_library() -> ctypes.CDLL | None:
    """The compiled kernels; None without a compiler."""
    return build.load(SOURCES[0])


def _is_on(value: object, *devices: str) -> bool:
    return isinstance(value, Tensor) and value.device.type in devices


def _is_for_cpp(values: tuple[object, ...]) -> bool:
    """Whether all tensors are plain ones in a CPU's memory, and of types that the C++ kernels know."""
    for value in values:
        if isinstance(value, Tensor):
            dtype, known = value.dtype, build.in_memory(value)
        elif isinstance(value, torch.dtype):
            dtype, known = value, True
        else:
            continue
        if not known or dtype not in (torch.float32, torch.bfloat16, torch.int64):
            return False
    return True


def _call(function: str, *values: Tensor | float) -> None:
    """Call a C++ kernel: tensors as pointers, integers as long, others as double."""
    library = native_library()
    assert library is not None
    assert all(value.is_contiguous() for value in values if isinstance(value, Tensor))
    converted = [
        ctypes.c_void_p(value.data_ptr())
        if isinstance(value, Tensor)
        else ctypes.c_long(value)
        if isinstance(value, int)
        else ctypes.c_double(value)
        for value in values
    ]
    getattr(library, f"puna_{function}")(*converted)


def _is_half(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16


def _upcast(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


@kernel
def rms_forward(x_ND: Tensor, norm_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """RMSNorm in `dtype`, and the reciprocal root mean square (N, 1), fp32, for the backward."""
    x_ND = _upcast(x_ND)
    r_N1 = torch.rsqrt(x_ND.square().mean(-1, keepdim=True) + eps)
    return (x_ND * r_N1 * norm_D).to(dtype), r_N1


@rms_forward.cpu
def _rms_forward(x_ND: Tensor, norm_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x_ND, norm_D = x_ND.float().contiguous(), norm_D.float().contiguous()
    D = x_ND.shape[-1]
    n_ND, r_N1 = torch.empty_like(x_ND, dtype=dtype), x_ND.new_empty(*x_ND.shape[:-1], 1)
    _call("rms_forward", x_ND, norm_D, n_ND, r_N1, r_N1.numel(), D, eps, _is_half(dtype))
    return n_ND, r_N1


@kernel
def rms_recompute(x_ND: Tensor, r_N1: Tensor, norm_D: Tensor, dtype: torch.dtype) -> Tensor:
    """RMSNorm from the saved reciprocal root mean square: bitwise identical to the forward's result."""
    return (_upcast(x_ND) * r_N1 * norm_D).to(dtype)


@rms_recompute.cpu
def _rms_recompute(x_ND: Tensor, r_N1: Tensor, norm_D: Tensor, dtype: torch.dtype) -> Tensor:
    x_ND, norm_D = x_ND.float().contiguous(), norm_D.float().contiguous()
    n_ND = torch.empty_like(x_ND, dtype=dtype)
    _call(
        "rms_recompute", x_ND, r_N1.contiguous(), norm_D, n_ND, r_N1.numel(), x_ND.shape[-1], _is_half(dtype)
    )
    return n_ND


@kernel
def rms_backward(dn_ND: Tensor, x_ND: Tensor, r_N1: Tensor, norm_D: Tensor) -> tuple[Tensor, Tensor]:
    """From n = x̂ · norm, x̂ = x · r: dx = r · (g - x̂ · mean(g · x̂)) with g = dn · norm; dnorm = Σ dn · x̂."""
    dn_ND, x_ND = _upcast(dn_ND), _upcast(x_ND)
    normalised_ND = x_ND * r_N1
    g_ND = dn_ND * norm_D
    dx_ND = r_N1 * (g_ND - normalised_ND * (g_ND * normalised_ND).mean(-1, keepdim=True))
    return dx_ND, (dn_ND * normalised_ND).flatten(0, -2).sum(0)


@rms_backward.cpu
def _rms_backward(dn_ND: Tensor, x_ND: Tensor, r_N1: Tensor, norm_D: Tensor) -> tuple[Tensor, Tensor]:
    dn_ND, x_ND, norm_D = dn_ND.contiguous(), x_ND.float().contiguous(), norm_D.float().contiguous()
    dx_ND, dnorm_D = torch.empty_like(x_ND), torch.empty_like(norm_D)
    sizes = r_N1.numel(), x_ND.shape[-1]
    _call(
        "rms_backward", dn_ND, x_ND, r_N1.contiguous(), norm_D, dx_ND, dnorm_D, *sizes, _is_half(dn_ND.dtype)
    )
    return dx_ND, dnorm_D


@kernel
def swiglu_forward(gate_up_N2F: Tensor) -> Tensor:
    """z = silu(gate) · up."""
    gate_NF, up_NF = _upcast(gate_up_N2F).chunk(2, dim=-1)
    return (F.silu(gate_NF) * up_NF).to(gate_up_N2F.dtype)


@swiglu_forward.cpu
def _swiglu_forward(gate_up_N2F: Tensor) -> Tensor:
    gate_up_N2F = gate_up_N2F.contiguous()
    *N, F2 = gate_up_N2F.shape
    z_NF = gate_up_N2F.new_empty(*N, F2 // 2)
    _call("swiglu_forward", gate_up_N2F, z_NF, math.prod(N), F2 // 2, _is_half(z_NF.dtype))
    return z_NF


@kernel
def swiglu_backward(dz_NF: Tensor, gate_up_N2F: Tensor) -> tuple[Tensor, Tensor]:
    """d(gate, up) = (dz · up · σ(g) · (1 + g · (1 - σ(g))), dz · silu(g)), and z recomputed."""
    gate_NF, up_NF = _upcast(gate_up_N2F).chunk(2, dim=-1)
    dz_NF = _upcast(dz_NF)
    sigmoid_NF = torch.sigmoid(gate_NF)
    silu_NF = gate_NF * sigmoid_NF
    dgate_NF = dz_NF * up_NF * (sigmoid_NF + silu_NF * (1 - sigmoid_NF))
    d_N2F = torch.cat((dgate_NF, dz_NF * silu_NF), dim=-1).to(gate_up_N2F.dtype)
    return d_N2F, (silu_NF * up_NF).to(gate_up_N2F.dtype)


@swiglu_backward.cpu
def _swiglu_backward(dz_NF: Tensor, gate_up_N2F: Tensor) -> tuple[Tensor, Tensor]:
    dz_NF, gate_up_N2F = dz_NF.to(gate_up_N2F.dtype).contiguous(), gate_up_N2F.contiguous()
    d_N2F, z_NF = torch.empty_like(gate_up_N2F), torch.empty_like(dz_NF)
    *N, F_ = z_NF.shape
    _call("swiglu_backward", dz_NF, gate_up_N2F, d_N2F, z_NF, math.prod(N), F_, _is_half(z_NF.dtype))
    return d_N2F, z_NF


@kernel
def split_rotate(
    qkv_BTXE: Tensor, cos_TE: Tensor, sin_TE: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused (B, T, H + 2K, E) -> q (B, H, T, E), k and v (B, K, T, E), q and k rotated, all contiguous."""
    q, k, v = qkv_BTXE.transpose(1, 2).split((heads, kv_heads, kv_heads), dim=1)
    return rotate(q, cos_TE, sin_TE), rotate(k, cos_TE, sin_TE), v.contiguous()


@split_rotate.cpu
def _split_rotate(
    qkv_BTXE: Tensor, cos_TE: Tensor, sin_TE: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, _, E = qkv_BTXE.shape
    q, k, v = (qkv_BTXE.new_empty(B, count, T, E) for count in (heads, kv_heads, kv_heads))
    _split_or_gather(qkv_BTXE.contiguous(), q, k, v, cos_TE, sin_TE, back=False)
    return q, k, v


def _split_or_gather(
    qkv: Tensor, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, back: bool
) -> None:
    cos, sin = cos.float().contiguous(), sin.float().contiguous()
    (B, H, T, E), K = q.shape, k.shape[1]
    _call("split_rotate", qkv, q, k, v, cos, sin, B, T, H, K, E, back, _is_half(qkv.dtype))


@kernel
def split_rotate_backward(dq: Tensor, dk: Tensor, dv: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """The inverse rotation (the transpose of an orthogonal map), gathered to (B, T, H + 2K, E)."""
    parts = (rotate(dq, cos_TE, -sin_TE), rotate(dk, cos_TE, -sin_TE), dv)
    return torch.cat(parts, dim=1).transpose(1, 2).contiguous()


@split_rotate_backward.cpu
def _split_rotate_backward(dq: Tensor, dk: Tensor, dv: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    B, H, T, E = dq.shape
    dqkv = dq.new_empty(B, T, H + 2 * dk.shape[1], E)
    _split_or_gather(dqkv, dq.contiguous(), dk.contiguous(), dv.contiguous(), cos_TE, sin_TE, back=True)
    return dqkv


def rotate(x_BHTE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + E/2]) by their position's angles; cos, sin (T, E/2).

    The halves of a pair lie apart, as in Hugging Face's layout, because vector units like contiguous halves.
    Meta's files interleave them: the weights' rows are permuted between the two.
    """
    low, high = _upcast(x_BHTE).chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x_BHTE.dtype)


@kernel
def cross_entropy_block(
    logits_nV: Tensor, targets_n: Tensor, scale: float | Tensor, ignore: int
) -> tuple[Tensor, Tensor]:
    """Losses (n,) in nats, 0 where ignored, and the gradient of scale · Σ losses by the logits.

    The gradient may be written in place of the logits, which are not to be used afterwards.
    """
    x = _upcast(logits_nV)
    top = x.amax(-1, keepdim=True)
    e = torch.exp(x - top)
    total = e.sum(-1, keepdim=True)
    counts = targets_n != ignore
    columns = torch.where(counts, targets_n, 0)[:, None]
    losses_n = torch.where(counts, (top + torch.log(total) - x.gather(1, columns))[:, 0], 0.0)
    is_target = torch.arange(x.shape[1], device=x.device) == columns
    d = (e / total - is_target.to(x.dtype)) * torch.where(counts, scale, 0.0)[:, None]
    return losses_n, d.to(logits_nV.dtype)


@cross_entropy_block.cpu
def _cross_entropy_block(
    logits_nV: Tensor, targets_n: Tensor, scale: float | Tensor, ignore: int
) -> tuple[Tensor, Tensor]:
    logits_nV, targets_n = logits_nV.contiguous(), targets_n.contiguous()
    n, V = logits_nV.shape
    outside = targets_n[((targets_n < 0) | (targets_n >= V)) & (targets_n != ignore)]
    if len(outside):
        raise IndexError(f"target {outside[0].item()} is out of bounds of the vocabulary, {V}")
    losses_n = logits_nV.new_empty(n, dtype=torch.float32)
    half = _is_half(logits_nV.dtype)
    _call("cross_entropy", logits_nV, targets_n, losses_n, n, V, float(scale), ignore, half)
    return losses_n, logits_nV
