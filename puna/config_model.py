"""The section `model` of a run's configuration: the architecture, and which sizes fit together."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from puna.validation import Positive, PositiveNumber, check, require, strict


@strict
@dataclass(frozen=True)
class RopeScaling:
    """RoPE scaling of Llama 3.1 and later, which extends the context of a pretrained model.

    Frequencies are divided by `factor` for wavelengths above original_context / low_freq_factor, unchanged
    for those below original_context / high_freq_factor, and interpolated smoothly between the two.
    """

    factor: Annotated[float, Ge(1)]
    """RoPE scaling factor (Llama 3.1): by how much the context is extended; scaling is off when unset."""
    low_freq_factor: PositiveNumber = 1.0
    """RoPE scaling: wavelengths above original_context / low_freq_factor are scaled fully."""
    high_freq_factor: PositiveNumber = 4.0
    """RoPE scaling: wavelengths below original_context / high_freq_factor are not scaled."""
    original_context: Positive = 8192
    """RoPE scaling: the context that the model was pretrained with, in tokens."""


@strict
@dataclass(frozen=True)
class ModelConfig:
    """The architecture (paper section 2.2)."""

    dim: Positive = 288
    """Width of the residual stream, D."""
    n_layers: Positive = 6
    """Number of transformer blocks."""
    n_heads: Positive = 6
    """Number of attention heads; each has dim / n_heads dimensions."""
    ffn_dim: Positive = 768
    """Hidden width of the SwiGLU feed-forward layer."""
    vocab_size: Positive = 32_000
    """Number of tokens in the vocabulary; it must be that of the shards' tokenizer."""
    context: Positive = 512
    """Tokens per training sequence, and the longest sequence in generation."""
    norm_eps: PositiveNumber = 1e-6
    """Epsilon of RMSNorm, added to the mean square."""
    n_kv_heads: Positive | None = None
    """Number of key and value heads (grouped-query attention); defaults to n_heads."""
    tied_embeddings: bool = False
    """Share the embedding's weights with the output projection."""
    rope_base: Annotated[float, Gt(1)] = 10_000.0
    """Base of the rotary position embedding (theta)."""
    rope_scaling: RopeScaling | None = None

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, resolved."""
        return self.n_kv_heads or self.n_heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.n_heads

    def validate(self) -> None:
        """Raises ValueError naming the first invalid field, or those that do not fit together."""
        check(self, "model")
        require(
            self.dim % self.n_heads == 0,
            f"model.dim is {self.dim}, not divisible by model.n_heads {self.n_heads}; change either",
        )
        require(
            self.head_dim % 2 == 0,
            f"model.dim / model.n_heads is {self.head_dim}; RoPE rotates pairs, so it must be even",
        )
        require(
            self.n_heads % self.kv_heads == 0,
            f"model.n_kv_heads is {self.kv_heads}; it must divide model.n_heads {self.n_heads}",
        )
        if (scaling := self.rope_scaling) is not None:
            require(
                scaling.low_freq_factor < scaling.high_freq_factor,
                f"model.rope_scaling.low_freq_factor is {scaling.low_freq_factor}; it must be below "
                f"model.rope_scaling.high_freq_factor {scaling.high_freq_factor}",
            )
