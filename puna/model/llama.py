"""LLaMA (paper section 2.2): token ids -> logits. No distributed code here.

    tokens_BT ─> embedding ─> x_BTD ─> n_layers × Block ─> RMSNorm ─> output ─> logits_BTV

Legend, used in every file: B batch, T time, S time of keys (cache and new), D model, H heads,
K key-value heads, E head dim, F ffn, V vocabulary. The residual stream x_BTD is fp32; `compute` is the
precision of the matrix products.
"""

from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.config import Activations, ModelConfig
from puna.model import layers
from puna.model.activations import recomputed
from puna.model.attention import rotary_attention
from puna.model.loss import LinearCrossEntropy, cross_entropy


class Attention(Protocol):
    """How rows see those before them: what generation, which keeps keys and values, hands to `hidden`."""

    def __call__(self, layer: int, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        """A layer's queries, and the new rows' keys and values -> (B, T, H, E)."""


class Block(nn.Module):
    """x + attention(norm(x)), then + feed-forward(norm(·)). Weights as the matrices that multiply once."""

    def __init__(self, config: ModelConfig, layer: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        D, F_, E = config.dim, config.ffn_dim, config.head_dim
        H, K = config.n_heads, config.kv_heads
        empty = partial(torch.empty, device=device)
        self.attention_norm = nn.Parameter(empty(D))
        self.wqkv = nn.Parameter(empty((H + 2 * K) * E, D))  # rows: q heads, k heads, v heads
        self.wo = nn.Parameter(empty(D, H * E))
        self.ffn_norm = nn.Parameter(empty(D))
        self.w13 = nn.Parameter(empty(2 * F_, D))  # rows: gate (Meta's w1), up (w3)
        self.w2 = nn.Parameter(empty(D, F_))

    def forward(
        self,
        x_BTD: Tensor,
        cos: Tensor,
        sin: Tensor,
        dtype: torch.dtype,
        attend: Attention | None,
        manual: bool,
    ) -> Tensor:
        """x (B, T, D) -> x (B, T, D). `manual`: the layers whose backward is written by hand."""
        norm_linear = layers.NormLinear.apply if manual else layers.norm_linear
        split_rotate = layers.SplitRotate.apply if manual else layers.split_rotate
        linear = layers.Linear.apply if manual else layers.linear
        swiglu_linear = layers.SwiGLULinear.apply if manual else layers.swiglu_linear
        H, K, E = self.config.n_heads, self.config.kv_heads, self.config.head_dim
        eps = self.config.norm_eps

        qkv = norm_linear(x_BTD, self.attention_norm, self.wqkv, eps, dtype).unflatten(-1, (H + 2 * K, E))
        if attend is None:
            o_BTHE = rotary_attention(qkv, cos, sin, H, K, split_rotate)
        else:
            o_BTHE = attend(self.layer, *split_rotate(qkv, cos, sin, H, K))
        h_BTD = x_BTD + linear(o_BTHE.flatten(2), self.wo)

        gate_up = norm_linear(h_BTD, self.ffn_norm, self.w13, eps, dtype)
        return h_BTD + swiglu_linear(gate_up, self.w2)


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
    ) -> None:
        """`device` holds the parameters; PyTorch's default device when it is None."""
        super().__init__()
        config.validate()
        self.config, self.compute, self.activations = config, compute, activations
        shape = config.vocab_size, config.dim
        self.embedding = nn.Parameter(torch.empty(shape, device=device))
        self.blocks = nn.ModuleList(Block(config, layer, device) for layer in range(config.n_layers))
        self.norm = nn.Parameter(torch.empty(config.dim, device=device))
        # Registered under one name when tied, so that it is counted, saved and stepped once.
        self.output = None if config.tied_embeddings else nn.Parameter(torch.empty(shape, device=device))
        # Computed on the CPU and copied, so that the angles are the same numbers on every device.
        cos, sin = layers.rope_table(config.head_dim, config.context, config.rope_base, config.rope_scaling)
        self.register_buffer("cos", cos.to(self.embedding.device), persistent=False)
        self.register_buffer("sin", sin.to(self.embedding.device), persistent=False)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill the parameters: N(0, 0.02²), and 0.02²/(2·layers) for what adds to the residual stream.

        The paper does not say how it initialises; this is GPT-2's rule, which keeps the variance of the
        residual stream the same at any depth. The same seed gives the same weights on any machine.
        """
        generator = torch.Generator().manual_seed(seed)
        residual_std = 0.02 / (2 * self.config.n_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                std = residual_std if name.endswith(("wo", "w2")) else 0.02
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))

    @property
    def output_VD(self) -> Tensor:
        """The output projection: its own weight, or the embedding when tied."""
        return self.embedding if self.output is None else self.output

    def hidden(
        self, tokens_BT: Tensor, positions_T: Tensor | None = None, attend: Attention | None = None
    ) -> Tensor:
        """The residual stream after the last norm, (B, T, D), in the compute precision.

        Whole sequences, each token seeing itself and those before; or, with `attend`, whatever rows at
        whatever `positions_T` it knows to see.

        Raises:
            ValueError: when the tokens are more than `model.context`.
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
        x_BTD = F.embedding(tokens_BT, self.embedding).float()
        # Validation computes what training does. Generation, whose calls have many shapes, would have kernels
        # compiled for each of them.
        manual = self.activations == "manual" and attend is None
        for block in self.blocks:
            run = partial(block, cos=cos, sin=sin, dtype=self.compute, attend=attend, manual=manual)
            x_BTD = recomputed(run, x_BTD, self.activations)
        if manual:
            return layers.Norm.apply(x_BTD, self.norm, self.config.norm_eps, self.compute)
        return layers.rms_norm(x_BTD, self.norm, self.config.norm_eps).to(self.compute)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V), fp32."""
        return layers.linear(self.hidden(tokens_BT), self.output_VD).float()

    @torch.no_grad()
    def losses(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """For evaluation: each target's cross-entropy in nats, (B, T), fp32; 0 where it is IGNORE."""
        hidden_ND = self.hidden(tokens_BT).flatten(0, 1)
        return cross_entropy(hidden_ND, self.output_VD, targets_BT.flatten()).view(targets_BT.shape)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """For training: scale · Σ losses, to call backward on, and the losses (B, T), without gradient."""
        hidden_ND = self.hidden(tokens_BT).flatten(0, 1)
        total, losses_N = LinearCrossEntropy.apply(hidden_ND, self.output_VD, targets_BT.flatten(), scale)
        return total, losses_N.view(targets_BT.shape)
