"""LoRA: frozen matrices W with trained factors of low rank beside them (Hu et al. 2021).

    y = x @ (W + s · B @ A).T        W: (O, I)   A: (r, I)   B: (O, r)   s = alpha / r

W + s·B@A is computed a matrix at a time, in fp32, in the forward pass and again in the backward pass: tokens
cost what they cost without an adapter, in training, validation and sampling alike. Beside what the base model
saves for the backward pass nothing is saved. The gradients of A and B never need that of W:

    u = x @ A.T        dB = s · dy.T @ u        v = s · dy @ B        dA = v.T @ x

With dropout the adapter has an input of its own, x with some numbers set to 0, and its product is added to
x @ W.T. What is dropped follows from the seed, the sequence's number in the run, and the layer: a resumed
run, other micro-batches and other ranks drop the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from puna.config import LoraConfig, ModelConfig
from puna.formats.adapters import adapted_roles
from puna.kernels.matmul import Weights, weight_gradients
from puna.model.layers import BY_HAND, Linear, NormLinear, Ops, SwiGLULinear
from puna.model.llama import Block, generator_of
from puna.model.parts import Part, Source, parts
from puna.train.rundir import Files
from puna.train.setup import Start
from puna.train.shares import Read, split_axis

Factors = dict[int, tuple[Tensor, Tensor]]
"""A and B by the `id` of the weight that they belong to."""


@dataclass(frozen=True)
class Places:
    """How the factors belong to the matrices of one product, and what is dropped from their input."""

    adapted: tuple[int, ...]
    """Which of the matrices, side by side, have an adapter."""
    scale: float
    dropout: float = 0.0
    key: str = ""
    """Seed and layer of the dropout."""
    sequence: int = 0
    """Number of the first sequence of the batch."""

    def mask(self, x: Tensor) -> Tensor:
        """What the input (B, T, I) is multiplied with."""
        kept = torch.empty_like(x)
        for number, row in enumerate(kept, self.sequence):
            row.bernoulli_(1 - self.dropout, generator=generator_of(self.key, number, device=x.device))
        return kept / (1 - self.dropout)


class AdaptedMatrix:
    """Weights side by side, some with an adapter, with the methods of `kernels.matmul.Weights`.

    `tensors` are the weights, then A and B of each adapter.
    """

    def __init__(self, places: Places, dtype: torch.dtype, *tensors: Tensor) -> None:
        self.places, self.dtype = places, dtype
        n = len(tensors) - 2 * len(places.adapted)
        self.As, self.Bs = tensors[n::2], tensors[n + 1 :: 2]
        weights = list(tensors[:n])
        self.rows = [len(weight) for weight in weights]
        if not places.dropout:
            for index, A, B in zip(places.adapted, self.As, self.Bs, strict=True):
                weights[index] = torch.addmm(weights[index], B, A, alpha=places.scale)
        self.product = Weights(dtype, *weights)
        self.n = n
        self.v = Tensor()

    def forward(self, x: Tensor) -> Tensor:
        """x @ (W + s·B@A).T."""
        y = self.product.forward(x)
        if self.places.dropout:
            u = Weights(self.dtype, *self.As).forward(x * self.places.mask(x))
            parts = y.split_with_sizes(self.rows, -1)
            for index, B, u_r in zip(self.places.adapted, self.Bs, self._by_adapter(u), strict=True):
                parts[index].add_(Weights(self.dtype, B).forward(u_r), alpha=self.places.scale)
        return y

    def backward(self, dy: Tensor) -> Tensor:
        """dy @ (W + s·B@A)."""
        dx = self.product.backward(dy)
        if self.places.dropout:
            dx += self.places.mask(dx) * Weights(self.dtype, *self.As).backward(self._v(dy))
        return dx

    def gradients(self, dy: Tensor, x: Tensor, needed: Any) -> tuple[Tensor | None, ...]:
        """The gradients of A and B; none of the weights, which are frozen."""
        if self.places.dropout:
            x = x * self.places.mask(x)
        u = Weights(self.dtype, *self.As).forward(x)
        dAs = weight_gradients(self._v(dy), x, *self.As)
        found: list[Tensor | None] = [None] * self.n
        dys = dy.split_with_sizes(self.rows, -1)
        for index, dA, B, u_r in zip(self.places.adapted, dAs, self.Bs, self._by_adapter(u), strict=True):
            (dB,) = weight_gradients(dys[index], u_r, B)
            found += [dA, dB * self.places.scale]
        return tuple(found)

    def _v(self, dy: Tensor) -> Tensor:
        """s · dy @ B of all adapters side by side; computed once."""
        if not self.v.numel():
            dys = dy.split_with_sizes(self.rows, -1)
            products = [
                Weights(self.dtype, B).backward(dys[index])
                for index, B in zip(self.places.adapted, self.Bs, strict=True)
            ]
            self.v = torch.cat(products, -1) * self.places.scale
        return self.v

    def _by_adapter(self, u: Tensor) -> tuple[Tensor, ...]:
        return tuple(u.split_with_sizes([len(A) for A in self.As], -1))


class LoraBlock(Block):
    """A layer whose matrices in `roles` have adapters: parameters wq_lora_A, wq_lora_B …"""

    def __init__(
        self,
        lora: LoraConfig,
        roles: tuple[str, ...],
        seed: int,
        config: ModelConfig,
        layer: int,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(config, layer, device)
        self.lora, self.roles, self.seed = lora, roles, seed
        for role in roles:
            O, I = getattr(self, role).shape  # noqa: E741
            for factor, shape in (("A", (lora.r, I)), ("B", (O, lora.r))):
                self.register_parameter(
                    f"{role}_lora_{factor}", nn.Parameter(torch.empty(shape, device=device))
                )

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, ops: Ops) -> Tensor:
        """As `Block.forward`, with every adapted weight W as W + s·B@A."""
        return super().forward(x_BTD, cos, sin, dtype, self._adapted(ops))

    def _adapted(self, ops: Ops) -> Ops:
        # Looked up at each call: FSDP puts gathered tensors in the parameters' places.
        def factor(name: str) -> Tensor:
            # A tp group splits one factor of an adapter; the gradient of the other is summed over ranks.
            own: Tensor = getattr(self, name)
            return own if split_axis(name) is not None else ops.whole(own)

        factors: Factors = {
            id(getattr(self, role)): (factor(f"{role}_lora_A"), factor(f"{role}_lora_B"))
            for role in self.roles
        }
        wrap = self._by_hand if ops.linear is BY_HAND.linear else self._summed
        return ops._replace(
            norm_linear=wrap(ops, ops.norm_linear, NormLinear, 4, factors),
            linear=wrap(ops, ops.linear, Linear, 1, factors),
            swiglu_linear=wrap(ops, ops.swiglu_linear, SwiGLULinear, 1, factors),
        )

    def _summed(
        self, ops: Ops, compute: Callable[..., Tensor], function: Any, first: int, factors: Factors
    ) -> Callable[..., Tensor]:
        """A product of weights to which autograd knows the adapters were added: for any operations."""
        assert ops.sequence is None or not self.lora.dropout

        def run(*arguments: Any) -> Tensor:
            weights = list(arguments[first:])
            for index, weight in enumerate(weights):
                if id(weight) in factors:
                    A, B = factors[id(weight)]
                    weights[index] = torch.addmm(weight, B, A, alpha=self.lora.scale)
            product: Tensor = compute(*arguments[:first], *weights)
            return product

        return run

    def _by_hand(
        self, ops: Ops, compute: Callable[..., Tensor], function: Any, first: int, factors: Factors
    ) -> Callable[..., Tensor]:
        """A product with the hand-written backward, through `AdaptedMatrix`."""
        dropout = self.lora.dropout if ops.sequence is not None else 0.0

        def run(*arguments: Any) -> Tensor:
            weights = arguments[first:]
            adapted = tuple(index for index, weight in enumerate(weights) if id(weight) in factors)
            if not adapted:
                return compute(*arguments)
            key = f"{self.seed} {self.layer} {first} {[tuple(weight.shape) for weight in weights]}"
            places = Places(adapted, self.lora.scale, dropout, key, ops.sequence or 0)
            tensors = [tensor for index in adapted for tensor in factors[id(weights[index])]]
            product: Tensor = function.apply(partial(AdaptedMatrix, places), *arguments, *tensors)
            return product

        return run


def is_adapter(name: str) -> bool:
    """Whether the parameter of a name is a factor of an adapter."""
    return "_lora_" in name


def start(source: Source, lora: LoraConfig | None, seed: int, files: Files) -> Start:
    """What a run starts from: a model's weights, all of which train, or with `lora` its adapters alone.

    Raises:
        ValueError: `lora` names matrices that cannot be adapted.
    """
    weights = initial_values(source, seed)
    if lora is None:
        return Start(weights, files=files)
    block = partial(LoraBlock, lora, adapted_roles(lora.targets, source.config), seed)
    return Start(weights, is_adapter, block, lora.dropout > 0, files)


def initial_values(source: Source, seed: int) -> Read:
    """Reads a model's weights from `source`; an adapter begins as 0, with A drawn and B zero."""
    held: dict[str, Part] = {part.parameter: part for part in parts(source.config)}

    def read(name: str, shape: torch.Size, region: tuple[slice, ...]) -> Tensor:
        if not is_adapter(name):
            return source.read(held[name])[region]
        if name.endswith("_lora_B"):
            return torch.zeros(shape)[region]
        bound = shape[1] ** -0.5  # PEFT's
        return torch.empty(shape).uniform_(-bound, bound, generator=generator_of(seed, name))[region]

    return read
