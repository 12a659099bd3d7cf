"""LLaMA (paper section 2.2): token ids -> logits. No distributed code here.

    tokens_BT ─> embedding ─> x_BTD ─> n_layers × Block ─> RMSNorm ─> output ─> logits_BTV

Legend, used in every file: B batch, T time, S time of keys (cache and new), D model, H heads,
K key-value heads, E head dim, F ffn, V vocabulary. The residual stream x_BTD is fp32; `compute` is the
precision of the matrix products.
"""

import hashlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from puna.config import Activations, ModelConfig
from puna.model import layers
from puna.model.activations import recomputed
from puna.model.attention import Segments
from puna.model.layers import Ops

DRAWN_ROWS = 256
"""Rows of a matrix's initial values that are drawn from one seed."""


class Block(nn.Module):
    """One layer of the model: attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        D, F_, E = config.dim, config.ffn_dim, config.head_dim
        H, K = config.n_heads, config.kv_heads

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device))

        self.attention_norm = empty(D)
        self.wq, self.wk, self.wv = empty(H * E, D), empty(K * E, D), empty(K * E, D)
        self.wo = empty(D, H * E)
        self.ffn_norm = empty(D)
        self.w1, self.w3 = empty(F_, D), empty(F_, D)  # gate and up
        self.w2 = empty(D, F_)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, ops: Ops) -> Tensor:
        """x (B, T, D) -> x (B, T, D). Products are computed in `dtype`, by the operations `ops`."""
        eps = self.config.norm_eps
        qkv_BTO = ops.norm_linear(x_BTD, self.attention_norm, eps, dtype, self.wq, self.wk, self.wv)
        qkv_BTXE = qkv_BTO.unflatten(-1, (-1, self.config.head_dim))
        K = qkv_BTXE.shape[2] // (self.config.n_heads // self.config.kv_heads + 2)
        H = qkv_BTXE.shape[2] - 2 * K
        o_BTHE = ops.attention(qkv_BTXE, cos, sin, H, K, self.layer)  # of rotated q and k
        h_BTD = x_BTD + ops.linear(o_BTHE.flatten(2), self.wo)

        gate_up_BT2F = ops.norm_linear(h_BTD, self.ffn_norm, eps, dtype, self.w1, self.w3)
        return h_BTD + ops.swiglu_linear(gate_up_BT2F, self.w2)


class Llama(nn.Module):
    """The model. Parameters are uninitialised until `init_weights` or a checkpoint fills them."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        config: ModelConfig,
        compute: torch.dtype = torch.float32,
        activations: Activations = "none",
        device: torch.device | str | None = None,
        ops: Ops | None = None,
        block: Callable[[ModelConfig, int, torch.device | str | None], Block] = Block,
    ) -> None:
        """`device` holds the parameters; PyTorch's default device when it is None.

        `ops` None: the hand-written backward with `activations` manual, else what autograd differentiates.
        `block` makes a layer from the configuration, the layer's number and the device.
        """
        super().__init__()
        config.validate()
        self.config, self.compute, self.activations = config, compute, activations
        self.block = block
        self.ops = ops or (layers.BY_HAND if activations == "manual" else layers.PLAIN)
        shape = config.vocab_size, config.dim
        self.embedding = nn.Parameter(torch.empty(shape, device=device))
        self.blocks = nn.ModuleList(block(config, layer, device) for layer in range(config.n_layers))
        self.norm = nn.Parameter(torch.empty(config.dim, device=device))
        # Registered under one name when tied, so that it is counted, saved and stepped once.
        self.output = None if config.tied_embeddings else nn.Parameter(torch.empty(shape, device=device))
        self.shapes = {name: parameter.shape for name, parameter in self.named_parameters()}  # on no mesh
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Compute the rotary angles. A model built on `meta` and moved by `to_empty` has none until then."""
        # Computed on the CPU and copied, so that the angles are the same numbers on every device.
        c = self.config
        tables = layers.rope_table(c.head_dim, c.context, c.rope_base, c.rope_scaling)
        for name, table in zip(("cos", "sin"), tables, strict=True):
            self.register_buffer(name, table.to(self.embedding.device), persistent=False)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill the parameters with `initial_weight` and the buffers."""
        self.reset_buffers()
        for name, parameter in self.named_parameters():
            parameter.copy_(initial_weight(self.config, name, parameter.shape, seed))

    @property
    def output_VD(self) -> Tensor:
        """The output projection: its own weight, or the embedding when tied."""
        return self.embedding if self.output is None else self.output

    def hidden(
        self,
        tokens_BT: Tensor,
        positions_T: Tensor | None = None,
        ops: Ops | None = None,
        segments_BT: Tensor | None = None,
        sequence: int | None = None,
    ) -> Tensor:
        """The residual stream after the last norm, (B, T, D), in the compute precision.

        Whole sequences, unless `positions_T` gives each token's position. `ops` replaces the model's own
        operations: generation supplies attention to a cache. `segments_BT` numbers the examples that are
        packed into each row: tokens see their own example alone. `sequence`: see `Ops`.

        Raises:
            ValueError: when the sequence is longer than `model.context`.
        """
        if positions_T is None:
            count = tokens_BT.shape[1]
            if count > self.config.context:
                raise ValueError(
                    f"{count} tokens are more than model.context {self.config.context}; give a shorter text"
                )
            cos, sin = self.cos[:count], self.sin[:count]
        else:
            cos, sin = self.cos[positions_T], self.sin[positions_T]
        ops = (ops or self.ops)._replace(sequence=sequence)
        if segments_BT is not None:
            ops = ops._replace(attention=partial(ops.attention, segments=Segments(segments_BT)))
        x_BTD = ops.embedding(tokens_BT, self.embedding)
        for block in self.blocks:
            run = partial(block, cos=cos, sin=sin, dtype=self.compute, ops=ops)
            x_BTD = recomputed(run, x_BTD, self.activations)
        return ops.norm(x_BTD, self.norm, self.config.norm_eps, self.compute)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V), fp32."""
        return layers.linear(self.hidden(tokens_BT), self.output_VD).float()

    @torch.no_grad()
    def losses(self, tokens_BT: Tensor, targets_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """For evaluation: each target's cross-entropy in nats, (B, T), fp32; 0 where it is IGNORE.

        Bitwise identical to the losses of `loss`.
        """
        return self.ops.losses(self.hidden(tokens_BT, segments_BT=segments_BT), self.output_VD, targets_BT)

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        scale: float | Tensor,
        segments_BT: Tensor | None = None,
        sequence: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """For training: scale · Σ losses, to call backward on, and the losses (B, T), without gradient."""
        hidden_BTD = self.hidden(tokens_BT, segments_BT=segments_BT, sequence=sequence)
        return self.ops.loss(hidden_BTD, self.output_VD, targets_BT, scale)


def initial_weight(
    config: ModelConfig, name: str, shape: torch.Size, seed: int, rows: slice = slice(None)
) -> Tensor:
    """Some rows of a parameter's initial values, fp32, on the CPU: 1 for norms, N(0, 0.02²) for matrices.

    The matrices whose products are added to the residual stream get 0.02²/(2·layers). The paper does not say
    how it initialises; this is GPT-2's rule, which keeps the variance of the residual stream the same at any
    depth. The values follow from (seed, name, row) alone, and are drawn a block of rows at a time: a process
    draws the rows that it holds, and the weights do not depend on the number of processes.
    """
    first, last, _ = rows.indices(shape[0])
    if len(shape) == 1:
        return torch.ones(last - first)
    is_residual = name.endswith(("wo", "w2"))
    std = 0.02 / (2 * config.n_layers) ** 0.5 if is_residual else 0.02
    begin = first // DRAWN_ROWS * DRAWN_ROWS
    blocks = [
        torch.empty(min(DRAWN_ROWS, shape[0] - row), shape[1], device="cpu").normal_(
            0.0, std, generator=generator_of(seed, name, row)
        )
        for row in range(begin, last, DRAWN_ROWS)
    ]
    drawn = torch.cat(blocks) if blocks else torch.empty(0, shape[1])
    return drawn[first - begin : last - begin]


def generator_of(*names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers of their own for what these names stand for, such as a seed and a parameter."""
    digest = hashlib.sha256(" ".join(map(str, names)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little"))
