"""The elementwise arithmetic between the matrix products, as pure functions, each one pass over memory.

Eager PyTorch makes a pass over memory for every operation, and at the sizes of a CPU's cache that costs as
much as the matrix products. `compile_kernels` hands these functions to torch.compile, which fuses each into
one loop; the matrix products stay library calls. Without a C++ compiler they run eagerly: slower, the same
results to rounding.

Arithmetic is fp32 inside (fp64 for fp64 inputs), and results are rounded once, on the way out.
"""

import os
import shutil
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

Fn = TypeVar("Fn", bound=Callable[..., Any])


class _Kernel:
    """A pure function that runs as itself until it is compiled."""

    def __init__(self, function: Callable[..., Any], dynamic: bool) -> None:
        self.function, self.dynamic = function, dynamic
        self.run = function


_KERNELS: list[_Kernel] = []


def kernel(dynamic: bool) -> Callable[[Fn], Fn]:
    """Mark a pure function as one to compile; `dynamic`: one program for all shapes, not one for each."""

    def mark(function: Fn) -> Fn:
        entry = _Kernel(function, dynamic)
        _KERNELS.append(entry)

        @wraps(function)
        def call(*arguments: Any) -> Any:
            return entry.run(*arguments)

        return cast(Fn, call)

    return mark


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use on this machine, or None."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def compile_kernels(on: bool = True) -> bool:
    """Compile each kernel at its first call, or with `on` False run all eagerly again.

    Returns whether they are compiled: False when there is no C++ compiler, and then nothing is changed.
    """
    on = on and compiler() is not None
    for entry in _KERNELS:
        if on:
            entry.run = torch.compile(entry.function, fullgraph=True, dynamic=entry.dynamic)
        else:
            entry.run = entry.function
    return on


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


@kernel(dynamic=False)
def rms_forward(x_ND: Tensor, norm_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """RMSNorm in `dtype`, and the reciprocal root mean square (N, 1), fp32, for the backward."""
    x_ND = _wide(x_ND)
    r_N1 = torch.rsqrt(x_ND.square().mean(-1, keepdim=True) + eps)
    return (x_ND * r_N1 * norm_D).to(dtype), r_N1


@kernel(dynamic=False)
def rms_again(x_ND: Tensor, r_N1: Tensor, norm_D: Tensor, dtype: torch.dtype) -> Tensor:
    """RMSNorm from the saved reciprocal root mean square: what the forward gave, to the bit."""
    return (_wide(x_ND) * r_N1 * norm_D).to(dtype)


@kernel(dynamic=False)
def rms_backward(dn_ND: Tensor, x_ND: Tensor, r_N1: Tensor, norm_D: Tensor) -> tuple[Tensor, Tensor]:
    """From n = x̂ · norm, x̂ = x · r: dx = r · (g - x̂ · mean(g · x̂)) with g = dn · norm; dnorm = Σ dn · x̂."""
    dn_ND, x_ND = _wide(dn_ND), _wide(x_ND)
    hat_ND = x_ND * r_N1
    g_ND = dn_ND * norm_D
    dx_ND = r_N1 * (g_ND - hat_ND * (g_ND * hat_ND).mean(-1, keepdim=True))
    return dx_ND, (dn_ND * hat_ND).flatten(0, -2).sum(0)


@kernel(dynamic=False)
def swiglu_forward(gate_up_N2F: Tensor) -> Tensor:
    """z = silu(gate) · up."""
    gate_NF, up_NF = _wide(gate_up_N2F).chunk(2, dim=-1)
    return (F.silu(gate_NF) * up_NF).to(gate_up_N2F.dtype)


@kernel(dynamic=False)
def swiglu_backward(dz_NF: Tensor, gate_up_N2F: Tensor) -> tuple[Tensor, Tensor]:
    """d(gate, up) = (dz · up · σ(g) · (1 + g · (1 - σ(g))), dz · silu(g)), and z computed again."""
    gate_NF, up_NF = _wide(gate_up_N2F).chunk(2, dim=-1)
    dz_NF = _wide(dz_NF)
    sigmoid_NF = torch.sigmoid(gate_NF)
    silu_NF = gate_NF * sigmoid_NF
    dgate_NF = dz_NF * up_NF * (sigmoid_NF + silu_NF * (1 - sigmoid_NF))
    d_N2F = torch.cat((dgate_NF, dz_NF * silu_NF), dim=-1).to(gate_up_N2F.dtype)
    return d_N2F, (silu_NF * up_NF).to(gate_up_N2F.dtype)


@kernel(dynamic=False)
def split_rotate(
    qkv_BTXE: Tensor, cos_TE: Tensor, sin_TE: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused (B, T, H + 2K, E) -> q (B, H, T, E), k and v (B, K, T, E), q and k rotated, all contiguous."""
    q, k, v = qkv_BTXE.transpose(1, 2).split((heads, kv_heads, kv_heads), dim=1)
    return rotate(q, cos_TE, sin_TE), rotate(k, cos_TE, sin_TE), v.contiguous()


@kernel(dynamic=False)
def split_rotate_backward(dq: Tensor, dk: Tensor, dv: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """The inverse rotation (the transpose of an orthogonal map), gathered to (B, T, H + 2K, E)."""
    parts = (rotate(dq, cos_TE, -sin_TE), rotate(dk, cos_TE, -sin_TE), dv)
    return torch.cat(parts, dim=1).transpose(1, 2).contiguous()


def rotate(x_BHTE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + E/2]) by their position's angles; cos, sin (T, E/2).

    The halves of a pair lie apart, as in Hugging Face's layout, because vector units like contiguous halves.
    Meta's files interleave them: the weights' rows are permuted between the two.
    """
    low, high = _wide(x_BHTE).chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x_BHTE.dtype)


@kernel(dynamic=True)
def softmax_block(scores: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax of scale · scores (BH, R, S), masked ones -inf; and log Σ exp (BH, R, 1), fp32."""
    x = _wide(scores) * scale
    top = x.amax(-1, keepdim=True)
    e = torch.exp(x - top)
    total = e.sum(-1, keepdim=True)
    return (e / total).to(scores.dtype), top + torch.log(total)


@kernel(dynamic=True)
def softmax_block_backward(
    scores: Tensor, dp: Tensor, lse: Tensor, delta: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """p = exp(scale · s - lse) computed again, and ds = p · (dp - delta) · scale, where delta = Σ do · o."""
    p = torch.exp(_wide(scores) * scale - lse)
    return p.to(scores.dtype), (p * (_wide(dp) - delta) * scale).to(scores.dtype)


@kernel(dynamic=False)
def cross_entropy_block(
    logits_nV: Tensor, targets_n: Tensor, scale: float, ignore: int
) -> tuple[Tensor, Tensor]:
    """Losses (n,) in nats, 0 where ignored, and the gradient of scale · Σ losses by the logits."""
    x = _wide(logits_nV)
    top = x.amax(-1, keepdim=True)
    e = torch.exp(x - top)
    total = e.sum(-1, keepdim=True)
    counts = targets_n != ignore
    columns = torch.where(counts, targets_n, 0)[:, None]
    losses_n = torch.where(counts, (top + torch.log(total) - x.gather(1, columns))[:, 0], 0.0)
    is_target = torch.arange(x.shape[1], device=x.device) == columns
    d = (e / total - is_target.to(x.dtype)) * torch.where(counts, scale, 0.0)[:, None]
    return losses_n, d.to(logits_nV.dtype)
