"""The operations of a block (paper sections 2.2 and 2.4), plain and with a backward written by hand.

Each operation is defined twice: as a plain function that autograd differentiates (`norm_linear`), and as an
autograd Function (`NormLinear`) that saves only what is expensive to compute, the outputs of linear layers,
and recomputes the rest in its backward. Both give the same numbers to rounding. The tables `PLAIN` and
`BY_HAND` at the end of the file name the operations of each kind; a `Llama` runs one of them.

Shapes by the legend of `llama.py`; N = B·T. Weights are fp32 masters: an operation casts its weights to the
precision of the product that it computes, and returns their gradients in the weights' own precision.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from puna.config import RopeScaling
from puna.kernels import elementwise
from puna.kernels.matmul import Weights
from puna.model.attention import Segments, Split, rotary_attention
from puna.model.loss import cross_entropy, linear_cross_entropy

Matrix = Callable[..., Any]
"""(dtype, *tensors) -> a matrix with the methods of `Weights`."""


def embedding(tokens_BT: Tensor, weight_VD: Tensor) -> Tensor:
    """The weight's row of each token, (B, T, D), fp32."""
    return F.embedding(tokens_BT, weight_VD).float()


def norm(x_BTD: Tensor, norm_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """RMSNorm(x) = x / sqrt(mean(x²) + eps) · norm, computed in fp32, in `dtype` (Zhang & Sennrich 2019)."""
    x_BTD = x_BTD if x_BTD.dtype == torch.float64 else x_BTD.float()
    scale_BT1 = torch.rsqrt(x_BTD.square().mean(-1, keepdim=True) + eps)
    return (x_BTD * scale_BT1 * norm_D.to(x_BTD.dtype)).to(dtype)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T in the precision of x."""
    return F.linear(x, weight.to(x.dtype))


def norm_linear(x_BTD: Tensor, norm_D: Tensor, eps: float, dtype: torch.dtype, *weights: Tensor) -> Tensor:
    """RMSNorm(x) @ W.T in `dtype`, W the weights side by side: what enters attention and the feed-forward.

    It is a product per weight, because a concatenated W would copy the weights at every call.
    """
    n_BTD = norm(x_BTD, norm_D, eps, dtype)
    return torch.cat([linear(n_BTD, weight) for weight in weights], dim=-1)


def swiglu_linear(gate_up_BT2F: Tensor, weight_DF: Tensor) -> Tensor:
    """(silu(gate) · up) @ weight.T (Shazeer 2020)."""
    gate_BTF, up_BTF = gate_up_BT2F.chunk(2, dim=-1)
    return linear(F.silu(gate_BTF) * up_BTF, weight_DF)


def rope_frequencies(head_dim: int, base: float, scaling: RopeScaling | None = None) -> Tensor:
    """Radians per position that each pair is turned by, base^(-2i/E), (E/2,), fp64 (Su et al. 2021)."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
    if scaling is None:
        return frequencies
    # Pairs with many turns within the original context keep their frequency, pairs with few are slowed.
    turns = scaling.original_context * frequencies / (2 * math.pi)
    unscaled = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    unscaled = unscaled.clamp(0, 1)
    return frequencies * (unscaled + (1 - unscaled) / scaling.factor)


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

    Saves x and the master weight, which is cast again in backward: dx = dy @ W, dW = dy.T @ x. `matrix` makes
    W of the tensors that it consists of; here and below it is one of `Weights`, or of others that add to it.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Matrix, x_BTI: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTI, *weights)
        ctx.matrix = matrix
        return matrix(x_BTI.dtype, *weights).forward(x_BTI)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BTI, *weights = ctx.saved_tensors
        matrix = ctx.matrix(grads[0].dtype, *weights)
        dx = matrix.backward(grads[0])
        return None, dx, *matrix.gradients(grads[0], x_BTI, ctx.needs_input_grad[2:])


class Norm(Function):
    """n = RMSNorm(x): `NormLinear` without its product, for the last norm."""

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

    W is several weights side by side: q, k, v or gate, up in one product. Saves x and the reciprocal root
    mean square r. Recomputes n in backward:

        dn = dy @ W                     dW = dy.T @ n
        g = dn · w,  x̂ = x · r          dx = r · (g - x̂ · mean(g · x̂))          dw = Σ dn · x̂
    """

    @staticmethod
    def forward(
        ctx: Any,
        matrix: Matrix,
        x_BTD: Tensor,
        norm_D: Tensor,
        eps: float,
        dtype: torch.dtype,
        *weights: Tensor,
    ) -> Tensor:
        n, r = elementwise.rms_forward(x_BTD, norm_D, eps, dtype)
        ctx.save_for_backward(x_BTD, r, norm_D, *weights)
        ctx.matrix, ctx.dtype = matrix, dtype
        return matrix(dtype, *weights).forward(n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, r, norm_D, *weights = ctx.saved_tensors
        matrix = ctx.matrix(ctx.dtype, *weights)
        dn = matrix.backward(grads[0])
        # Here tensor parallelism starts the reduction of dn, and computes dW meanwhile.
        n = elementwise.rms_recompute(x, r, norm_D, ctx.dtype)
        dweights = matrix.gradients(grads[0], n, ctx.needs_input_grad[5:])
        dx, dnorm_D = elementwise.rms_backward(dn, x, r, norm_D)
        return None, dx, dnorm_D, None, None, *dweights


class SwiGLULinear(Function):
    """y = z @ W.T,  z = silu(g) · u      g, u: (N, F)   W: (D, F)   y: (N, D)

    Saves g and u, the outputs of a linear layer. Recomputes s = silu(g) and z in backward, σ the sigmoid:

        dz = dy @ W          dW = dy.T @ z
        du = dz · s          dg = dz · u · (σ(g) + s · (1 - σ(g)))
    """

    @staticmethod
    def forward(ctx: Any, matrix: Matrix, gate_up_BT2F: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_BT2F, *weights)
        ctx.matrix = matrix
        return matrix(gate_up_BT2F.dtype, *weights).forward(elementwise.swiglu_forward(gate_up_BT2F))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate_up_BT2F, *weights = ctx.saved_tensors
        matrix = ctx.matrix(grads[0].dtype, *weights)
        dgate_up, z = elementwise.swiglu_backward(matrix.backward(grads[0]), gate_up_BT2F)
        return None, dgate_up, *matrix.gradients(grads[0], z, ctx.needs_input_grad[2:])


class SplitRotate(Function):
    """`split_rotate`, which is linear: saves nothing; the backward rotates by the opposite angles."""

    @staticmethod
    def forward(
        ctx: Any, qkv_BTXE: Tensor, cos_TE: Tensor, sin_TE: Tensor, heads: int, kv_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.angles = cos_TE, sin_TE
        return elementwise.split_rotate(qkv_BTXE, cos_TE, sin_TE, heads, kv_heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return elementwise.split_rotate_backward(*grads, *ctx.angles), None, None, None, None


class CachedAttention(Protocol):
    """Attention to cached keys and values: what generation supplies."""

    def __call__(self, layer: int, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        """A layer's queries and the new tokens' keys and values, q and k rotated -> (B, T, H, E)."""


class Ops(NamedTuple):
    """The operations that a model is made of, one implementation of each."""

    embedding: Callable[[Tensor, Tensor], Tensor]
    """(tokens_BT, weight_VD) -> x_BTD, fp32."""
    norm: Callable[..., Tensor]
    """(x_BTD, norm_D, eps, dtype) -> RMSNorm(x), (B, T, D), in dtype."""
    norm_linear: Callable[..., Tensor]
    """(x_BTD, norm_D, eps, dtype, *weights) -> RMSNorm(x) @ W.T, W the weights side by side."""
    attention: Callable[..., Tensor]
    """(qkv_BTXE, cos_TE, sin_TE, heads, kv_heads, layer) -> attention (B, T, H, E), q and k rotated."""
    linear: Callable[..., Tensor]
    """(x, weight) -> x @ weight.T."""
    swiglu_linear: Callable[..., Tensor]
    """(gate_up_BT2F, weight_DF) -> (silu(gate) · up) @ weight.T."""
    loss: Callable[[Tensor, Tensor, Tensor, float | Tensor], tuple[Tensor, Tensor]]
    """(hidden_BTD, weight_VD, targets_BT, scale) -> scale · Σ losses, and the losses (B, T)."""
    losses: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(hidden_BTD, weight_VD, targets_BT) -> the losses (B, T) alone."""
    whole: Callable[[Tensor], Tensor] = lambda parameter: parameter
    """Passes a parameter on that every rank of a tp group holds whole, and sums its gradient over them."""
    sequence: int | None = None
    """Of a training step: the number of the batch's first sequence, counted over the run. What is drawn at
    random for a sequence follows from its number."""


def _attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    layer: int,
    segments: Segments | None = None,
    split: Split = split_rotate,
) -> Tensor:
    return rotary_attention(qkv, cos, sin, heads, kv_heads, split, segments)


PLAIN = Ops(
    embedding,
    norm,
    norm_linear,
    _attention,
    linear,
    swiglu_linear,
    linear_cross_entropy,
    cross_entropy,
)
"""Differentiated by autograd."""
BY_HAND = PLAIN._replace(
    norm=Norm.apply,
    norm_linear=partial(NormLinear.apply, Weights),
    attention=partial(_attention, split=SplitRotate.apply),
    linear=partial(Linear.apply, Weights),
    swiglu_linear=partial(SwiGLULinear.apply, Weights),
)
"""With the hand-written backward (paper section 2.4)."""


def with_cache(attend: CachedAttention) -> Ops:
    """`PLAIN` with attention to a cache.

    Not `BY_HAND`, because generation calls with many shapes, and kernels would be compiled for each of them.
    """

    def attention(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, layer: int) -> Tensor:
        return attend(layer, *split_rotate(qkv, cos, sin, heads, kv_heads))

    return PLAIN._replace(attention=attention)
