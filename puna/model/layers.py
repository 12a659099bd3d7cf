"""The layers of a block (paper sections 2.2 and 2.4), plainly and with a backward written by hand.

    x ─> norm_linear ─> q, k, v ─> rotate ─> attention ─> linear ─┐
    └────────────────────────────── + <───────────────────────────┘
    h ─> norm_linear ─> gate, up ─> swiglu_linear ─┐
    └────────────────── + <────────────────────────┘

Each layer stands here twice: as the plain function that autograd differentiates (`norm_linear`), and as an
autograd Function (`NormLinear`) that saves only what is expensive to compute, the outputs of linear layers,
and recomputes the rest in its backward. Both give the same numbers to rounding.

Shapes by the legend of `llama.py`; N = B·T. Weights are fp32 masters; a layer casts its weight to the
precision of the product it computes, and gives its gradient in the weight's own.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from puna.config import RopeScaling
from puna.kernels import elementwise
from puna.kernels.matmul import Weight, weight_gradient


def rms_norm(x_BTD: Tensor, norm_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · norm, in fp32 (Zhang & Sennrich 2019)."""
    x_BTD = x_BTD if x_BTD.dtype == torch.float64 else x_BTD.float()
    return x_BTD * torch.rsqrt(x_BTD.square().mean(-1, keepdim=True) + eps) * norm_D.to(x_BTD.dtype)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T in the precision of x."""
    return F.linear(x, weight.to(x.dtype))


def norm_linear(x_BTD: Tensor, norm_D: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """RMSNorm(x) @ weight.T, the product in `dtype`: the way into attention and into the feed-forward."""
    return linear(rms_norm(x_BTD, norm_D, eps).to(dtype), weight)


def swiglu_linear(gate_up_BT2F: Tensor, weight_DF: Tensor) -> Tensor:
    """(silu(gate) · up) @ weight.T (Shazeer 2020)."""
    gate_BTF, up_BTF = gate_up_BT2F.chunk(2, dim=-1)
    return linear(F.silu(gate_BTF) * up_BTF, weight_DF)


def rope_frequencies(head_dim: int, base: float, scaling: RopeScaling | None = None) -> Tensor:
    """Radians a position that each pair turns by, base^(-2i/E), (E/2,), fp64 (Su et al. 2021)."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
    if scaling is None:
        return frequencies
    # How often a pair turns round within the original context decides how much of the slowing it gets.
    turns = scaling.original_context * frequencies / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rope_table(
    head_dim: int, context: int, base: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin of position · frequency, each (context, E/2), fp32."""
    frequencies = rope_frequencies(head_dim, base, scaling)
    angles = torch.outer(torch.arange(context, dtype=torch.float64, device="cpu"), frequencies)
    return angles.cos().float(), angles.sin().float()


def split_rotate(
    qkv_BTXE: Tensor, cos_TE: Tensor, sin_TE: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused q, k, v (B, T, H + 2K, E) -> q (B, H, T, E), k and v (B, K, T, E), q and k rotated."""
    q, k, v = qkv_BTXE.transpose(1, 2).split((heads, kv_heads, kv_heads), dim=1)
    return elementwise.rotate(q, cos_TE, sin_TE), elementwise.rotate(k, cos_TE, sin_TE), v


class Linear(Function):
    """y = x @ W.T      x: (N, I)   W: (O, I)   y: (N, O)

    Saves x and the master weight, which is cast again in backward: dx = dy @ W, dW = dy.T @ x.
    """

    @staticmethod
    def forward(ctx: Any, x_BTI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTI, weight_OI)
        return Weight(weight_OI, x_BTI.dtype).forward(x_BTI)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x_BTI, weight_OI = ctx.saved_tensors
        dx = Weight(weight_OI, grads[0].dtype).backward(grads[0])
        return dx, weight_gradient(grads[0], x_BTI, weight_OI)


class Norm(Function):
    """n = RMSNorm(x) in a given precision: `NormLinear` without its product, for the last norm."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, norm_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        n, r = elementwise.rms_forward(x_BTD, norm_D, eps, dtype)
        ctx.save_for_backward(x_BTD, r, norm_D)
        return n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dx, dnorm_D = elementwise.rms_backward(grads[0], *ctx.saved_tensors)
        return dx, dnorm_D, None, None


class NormLinear(Function):
    """y = n @ W.T,  n = RMSNorm(x) = x · r · w      x: (N, D)   r: (N, 1)   w: (D,)   W: (O, D)   y: (N, O)

    Saves x and the reciprocal root mean square r. Recomputes n in backward:

        dn = dy @ W                     dW = dy.T @ n
        g = dn · w,  x̂ = x · r          dx = r · (g - x̂ · mean(g · x̂))          dw = Σ dn · x̂
    """

    @staticmethod
    def forward(
        ctx: Any, x_BTD: Tensor, norm_D: Tensor, weight_OD: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        n, r = elementwise.rms_forward(x_BTD, norm_D, eps, dtype)
        ctx.save_for_backward(x_BTD, r, norm_D, weight_OD)
        ctx.dtype = dtype
        return Weight(weight_OD, dtype).forward(n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, r, norm_D, weight_OD = ctx.saved_tensors
        dn = Weight(weight_OD, ctx.dtype).backward(grads[0])
        # Here tensor parallelism starts the reduction of dn, and computes dW while it travels.
        n = elementwise.rms_again(x, r, norm_D, ctx.dtype)
        dweight_OD = weight_gradient(grads[0], n, weight_OD)
        dx, dnorm_D = elementwise.rms_backward(dn, x, r, norm_D)
        return dx, dnorm_D, dweight_OD, None, None


class SwiGLULinear(Function):
    """y = z @ W.T,  z = silu(g) · u      g, u: (N, F)   W: (D, F)   y: (N, D)

    Saves g and u, the outputs of a linear layer. Recomputes s = silu(g) and z in backward, σ the sigmoid:

        dz = dy @ W          dW = dy.T @ z
        du = dz · s          dg = dz · u · (σ(g) + s · (1 - σ(g)))
    """

    @staticmethod
    def forward(ctx: Any, gate_up_BT2F: Tensor, weight_DF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_BT2F, weight_DF)
        return Weight(weight_DF, gate_up_BT2F.dtype).forward(elementwise.swiglu_forward(gate_up_BT2F))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate_up_BT2F, weight_DF = ctx.saved_tensors
        dz = Weight(weight_DF, grads[0].dtype).backward(grads[0])
        dgate_up, z = elementwise.swiglu_backward(dz, gate_up_BT2F)
        return dgate_up, weight_gradient(grads[0], z, weight_DF)


class SplitRotate(Function):
    """`split_rotate`, which is linear: nothing is saved; the backward turns by the opposite angles."""

    @staticmethod
    def forward(
        ctx: Any, qkv_BTXE: Tensor, cos_TE: Tensor, sin_TE: Tensor, heads: int, kv_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.angles = cos_TE, sin_TE
        return elementwise.split_rotate(qkv_BTXE, cos_TE, sin_TE, heads, kv_heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return elementwise.split_rotate_backward(*grads, *ctx.angles), None, None, None, None
