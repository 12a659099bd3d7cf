"""The operations of a model whose matrices and sequences are split among ranks (paper section 2.4).

Tensor and sequence parallelism (Korthikanti et al. 2022). A rank holds some heads and some columns of the
feed-forward layer. Between them the residual stream is split by tokens: rank r of n holds the r-th share of
all B·T rows, as a tensor (B, T/n, D), so that norms and sums are computed once.

    x (B, T/n, D) ─ norm ─ gather ─> (B, T, D) @ W.T ─> own heads ─> @ Wo.T ─ reduce-scatter ─> (B, T/n, D)

A gather's backward is a reduce-scatter, and the other way round. In `NormLinear`'s backward both run beside
the products: the gather of n beside dy @ W, the reduction of dn beside dy.T @ n.

    by_hand    with the hand-written backward: saves what `layers.BY_HAND` saves, of the own share
    plain      for autograd: the plain operations between differentiable collectives
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from puna.kernels import elementwise
from puna.kernels.matmul import Weights, add_weight_gradient, weight_gradients
from puna.model import layers
from puna.model.layers import Ops
from puna.model.loss import IGNORE, block_rows


@dataclass(frozen=True)
class Pending:
    """A collective that may still be running, and its result."""

    result: Tensor
    work: Any

    def wait(self) -> Tensor:
        """The result, once it is there."""
        self.work.wait()
        return self.result


def gather(x: Tensor, group: dist.ProcessGroup) -> Pending:
    """Start to collect every rank's rows: (B, T/n, D) -> (B, T, D)."""
    B, T, *rest = x.shape
    whole = x.new_empty(B, T * group.size(), *rest)
    work = dist.all_gather_single(whole.flatten(0, 1), x.contiguous().flatten(0, 1), group, async_op=True)
    return Pending(whole, work)


def scatter(x: Tensor, group: dist.ProcessGroup) -> Pending:
    """Start to sum over ranks and keep the own rows: (B, T, D) -> (B, T/n, D)."""
    B, T, *rest = x.shape
    own = x.new_empty(B, T // group.size(), *rest)
    work = dist.reduce_scatter_single(
        own.flatten(0, 1), x.contiguous().flatten(0, 1), group=group, async_op=True
    )
    return Pending(own, work)


def summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over ranks, in place."""
    dist.all_reduce(x, group=group)
    return x


class Norm(Function):
    """`layers.Norm` of the own rows; the gradient of w is summed over ranks."""

    @staticmethod
    def forward(
        ctx: Any, group: dist.ProcessGroup, x: Tensor, norm_D: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        n, r = elementwise.rms_forward(x, norm_D, eps, dtype)
        ctx.save_for_backward(x, r, norm_D)
        ctx.group = group
        return n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx, dnorm_D = elementwise.rms_backward(grads[0], *ctx.saved_tensors)
        return None, dx, summed(dnorm_D, ctx.group), None, None


class NormLinear(Function):
    """`layers.NormLinear`, own rows to own columns: y = gather(n) @ W.T    x: (B, T/n, D)   y: (B, T, O/n)

    dn = scatter(dy @ W)         dW = dy.T @ gather(n)         dx, dw from dn as in layers.NormLinear
    """

    @staticmethod
    def forward(
        ctx: Any,
        group: dist.ProcessGroup,
        x: Tensor,
        norm_D: Tensor,
        eps: float,
        dtype: torch.dtype,
        *weights: Tensor,
    ) -> Tensor:
        n, r = elementwise.rms_forward(x, norm_D, eps, dtype)
        ctx.save_for_backward(x, r, norm_D, *weights)
        ctx.group, ctx.dtype = group, dtype
        return Weights(dtype, *weights).forward(gather(n, group).wait())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, r, norm_D, *weights = ctx.saved_tensors
        gathering = gather(elementwise.rms_recompute(x, r, norm_D, ctx.dtype), ctx.group)
        scattering = scatter(Weights(ctx.dtype, *weights).backward(grads[0]), ctx.group)
        n = gathering.wait()
        dweights: Sequence[Tensor | None] = [None] * len(weights)
        if any(ctx.needs_input_grad[5:]):
            dweights = weight_gradients(grads[0], n, *weights)
        dx, dnorm_D = elementwise.rms_backward(scattering.wait(), x, r, norm_D)
        return None, dx, summed(dnorm_D, ctx.group), None, None, *dweights


class Linear(Function):
    """`layers.Linear`, own columns to own rows: y = scatter(x @ W.T)    x: (B, T, I/n)   y: (B, T/n, O)"""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, x: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_OI)
        ctx.group = group
        return scatter(Weights(x.dtype, weight_OI).forward(x), group).wait()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        dy = gather(grads[0], ctx.group).wait()
        dweight = weight_gradients(dy, x, weight_OI) if ctx.needs_input_grad[2] else (None,)
        return None, Weights(dy.dtype, weight_OI).backward(dy), *dweight


class SwiGLULinear(Function):
    """`layers.SwiGLULinear`, own columns to own rows."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, gate_up: Tensor, weight_DF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up, weight_DF)
        ctx.group = group
        z = elementwise.swiglu_forward(gate_up)
        return scatter(Weights(gate_up.dtype, weight_DF).forward(z), group).wait()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate_up, weight_DF = ctx.saved_tensors
        dy = gather(grads[0], ctx.group).wait()
        dgate_up, z = elementwise.swiglu_backward(Weights(dy.dtype, weight_DF).backward(dy), gate_up)
        return None, dgate_up, *(weight_gradients(dy, z, weight_DF) if ctx.needs_input_grad[2] else (None,))


class Embedding(Function):
    """x = scatter(rows of W)      tokens: (B, T)   W: (V/n, D), rows from `first` on   x: (B, T/n, D)"""

    @staticmethod
    def forward(
        ctx: Any, group: dist.ProcessGroup, first: int, tokens_BT: Tensor, weight_VD: Tensor
    ) -> Tensor:
        own, is_own = _own(tokens_BT, first, len(weight_VD))
        ctx.save_for_backward(own, is_own)
        ctx.group, ctx.rows, ctx.dtype = group, len(weight_VD), weight_VD.dtype
        return scatter(F.embedding(own, weight_VD).float() * is_own[..., None], group).wait()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        own, is_own = ctx.saved_tensors
        dx = gather(grads[0], ctx.group).wait() * is_own[..., None]
        dweight_VD = dx.new_zeros(ctx.rows, dx.shape[-1], dtype=ctx.dtype)
        return None, None, None, dweight_VD.index_add_(0, own.flatten(), dx.flatten(0, 1).to(ctx.dtype))


class LinearCrossEntropy(Function):
    """`loss.LinearCrossEntropy` with the vocabulary split among ranks; every rank has all losses.

    A block's softmax needs two small collectives: the largest logit of each row, then the sums of exp and the
    target's logit. h: (B, T/n, D) is gathered first, dh is scattered last.
    """

    @staticmethod
    def forward(
        ctx: Any,
        group: dist.ProcessGroup,
        first: int,
        hidden: Tensor,
        weight_VD: Tensor,
        targets_BT: Tensor,
        scale: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        hidden_ND, targets_N = gather(hidden, group).wait().flatten(0, 1), targets_BT.flatten()
        weight = Weights(hidden.dtype, weight_VD)
        dhidden_ND, dweight_VD, losses = torch.empty_like(hidden_ND), torch.zeros_like(weight_VD), []
        count = block_rows(hidden_ND.device)
        for rows in (slice(i, i + count) for i in range(0, len(hidden_ND), count)):
            logits_nV = weight.forward(hidden_ND[rows])
            block_losses, d_nV = _cross_entropy(group, first, logits_nV, targets_N[rows], scale)
            losses.append(block_losses)
            dhidden_ND[rows] = weight.backward(d_nV)
            add_weight_gradient(dweight_VD, d_nV, hidden_ND[rows])
        dhidden = scatter(dhidden_ND.view(*targets_BT.shape, -1), group).wait()
        ctx.save_for_backward(dhidden, dweight_VD)
        losses_BT = torch.cat(losses).view_as(targets_BT)
        ctx.mark_non_differentiable(losses_BT)
        return losses_BT.sum() * scale, losses_BT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight_VD = ctx.saved_tensors
        return None, None, dhidden * grads[0].to(dhidden.dtype), dweight_VD * grads[0], None, None


def _own(tokens: Tensor, first: int, rows: int) -> tuple[Tensor, Tensor]:
    """Places of tokens in the own `rows` of the vocabulary, 0 for those of other ranks, and which are own."""
    places = tokens - first
    is_own = (places >= 0) & (places < rows)
    return torch.where(is_own, places, 0), is_own


def _cross_entropy(
    group: dist.ProcessGroup, first: int, logits_nV: Tensor, targets_n: Tensor, scale: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Losses (n,) and scale · (softmax - onehot) of the own columns."""
    counts = targets_n != IGNORE
    places, is_own = _own(targets_n, first, logits_nV.shape[1])
    logits = logits_nV.float()
    top_n1 = logits.amax(1, keepdim=True)
    dist.all_reduce(top_n1, dist.ReduceOp.MAX, group)
    d_nV = (logits - top_n1).exp_()
    target_n = torch.where(is_own, logits.gather(1, places[:, None])[:, 0] - top_n1[:, 0], 0)
    sum_n, target_n = summed(torch.stack((d_nV.sum(1), target_n)), group)
    losses_n = torch.where(counts, sum_n.log() - target_n, 0)
    d_nV /= sum_n[:, None]
    d_nV.scatter_add_(1, places[:, None], -is_own[:, None].to(d_nV.dtype))
    return losses_n, (d_nV * (scale * counts[:, None])).to(logits_nV.dtype)


def losses(
    group: dist.ProcessGroup, first: int, hidden: Tensor, weight_VD: Tensor, targets_BT: Tensor
) -> Tensor:
    """The losses (B, T) of `LinearCrossEntropy` alone, on every rank."""
    hidden_ND = gather(hidden, group).wait().flatten(0, 1)
    weight = Weights(hidden.dtype, weight_VD)
    rows = block_rows(hidden_ND.device)
    blocks = zip(hidden_ND.split(rows), targets_BT.flatten().split(rows), strict=True)
    found = [_cross_entropy(group, first, weight.forward(h), targets, 1.0)[0] for h, targets in blocks]
    return torch.cat(found).view_as(targets_BT)


class Gather(Function):
    """Own rows -> all rows, for autograd; the backward sums over ranks and keeps the own rows."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, x: Tensor) -> Tensor:
        ctx.group = group
        return gather(x, group).wait()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, scatter(grads[0], ctx.group).wait()


class Scatter(Function):
    """A sum over ranks -> its own rows, for autograd; the backward gathers."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, x: Tensor) -> Tensor:
        ctx.group = group
        return scatter(x, group).wait()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, gather(grads[0], ctx.group).wait()


class Shared(Function):
    """A parameter that every rank holds whole, for autograd: its gradient is summed over ranks."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, parameter: Tensor) -> Tensor:
        ctx.group = group
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, summed(grads[0].clone(), ctx.group)


def by_hand(group: dist.ProcessGroup, first: int) -> Ops:
    """The hand-written operations, split among a group; `first` is the first own row of the vocabulary."""
    return layers.BY_HAND._replace(
        embedding=partial(Embedding.apply, group, first),
        norm=partial(Norm.apply, group),
        norm_linear=partial(NormLinear.apply, group),
        linear=partial(Linear.apply, group),
        swiglu_linear=partial(SwiGLULinear.apply, group),
        loss=partial(LinearCrossEntropy.apply, group, first),
        losses=partial(losses, group, first),
        whole=partial(Shared.apply, group),
    )


def plain(group: dist.ProcessGroup, first: int) -> Ops:
    """The operations for autograd, split among a group; `first` is the first own row of the vocabulary."""

    def norm(x: Tensor, norm_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        return layers.norm(x, Shared.apply(group, norm_D), eps, dtype)

    def norm_linear(x: Tensor, norm_D: Tensor, eps: float, dtype: torch.dtype, *weights: Tensor) -> Tensor:
        n = Gather.apply(group, norm(x, norm_D, eps, dtype))
        return torch.cat([layers.linear(n, weight) for weight in weights], dim=-1)

    def linear(x: Tensor, weight_OI: Tensor) -> Tensor:
        return Scatter.apply(group, layers.linear(x, weight_OI))

    def swiglu_linear(gate_up: Tensor, weight_DF: Tensor) -> Tensor:
        return Scatter.apply(group, layers.swiglu_linear(gate_up, weight_DF))

    return layers.PLAIN._replace(
        embedding=partial(Embedding.apply, group, first),
        norm=norm,
        norm_linear=norm_linear,
        linear=linear,
        swiglu_linear=swiglu_linear,
        loss=partial(LinearCrossEntropy.apply, group, first),
        losses=partial(losses, group, first),
        whole=partial(Shared.apply, group),
    )
