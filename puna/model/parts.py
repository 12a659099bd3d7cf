"""A model's parameters as every format has them: what all conversions share.

A `Part` is one parameter, under a role that each format has its own name for:

    role             puna
    embedding        embedding
    attention_norm   blocks.N.attention_norm
    wq wk wv wo      blocks.N.wq …
    ffn_norm         blocks.N.ffn_norm
    w1 w3 w2         blocks.N.w1 …           gate, up, down
    norm             norm
    output           output                  (absent when tied)

The rows of wq and wk, whose products are rotated, come in one of two orders within each head. Meta's files
and GGUF keep a pair's two rows together; puna and Hugging Face keep all first rows, then all second rows:

    together   a0 b0 a1 b1 a2 b2        halves   a0 a1 a2 b0 b1 b2

`to_halves` and `to_pairs` convert between the two.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from puna.added_tokens import CONFIG, GENERATION, HUB, TEMPLATE
from puna.config import ModelConfig

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Files beside weights that belong to the tokenizer. `VOCABULARY` is a GGUF file without tensors.
VOCABULARY = "tokenizer.gguf"
VOCABULARIES = ("tokenizer.model", HUB, VOCABULARY)
TOKENIZER_FILES = (
    *VOCABULARIES,
    CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    TEMPLATE,
    GENERATION,
)


SPLIT_AXIS = {
    "embedding": 1,
    **dict.fromkeys(("wq", "wk", "wv", "w1", "w3", "output"), 0),
    **dict.fromkeys(("wo", "w2"), 1),
}
"""The axis along which tensor parallelism and Meta's model-parallel parts split a role: 0 rows, 1 columns.
The roles not named, the norms, are whole on every rank."""


@dataclass(frozen=True)
class Part:
    """One parameter of a model."""

    role: str
    layer: int
    parameter: str
    """Its name in puna."""
    shape: tuple[int, ...]
    heads: int = 0
    """Of wq and wk: the heads that their rows are divided among."""

    def name(self, names: Mapping[str, str]) -> str:
        """Its name in a format whose names by role are `names`."""
        return names[self.role].format(layer=self.layer)

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix; the others are the norms' vectors."""
        return len(self.shape) == 2

    @property
    def in_block(self) -> bool:
        """Whether it is one of a block's; the others are the embedding, the last norm and the output."""
        return self.role not in ("embedding", "norm", "output")

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


def parts(config: ModelConfig) -> Iterator[Part]:
    """All parameters of a model, in the order of the forward pass."""
    D, E, F = config.dim, config.head_dim, config.ffn_dim
    H, K = config.n_heads, config.kv_heads
    yield Part("embedding", 0, "embedding", (config.vocab_size, D))
    for layer in range(config.n_layers):
        block = f"blocks.{layer}."
        yield Part("attention_norm", layer, block + "attention_norm", (D,))
        yield Part("wq", layer, block + "wq", (H * E, D), heads=H)
        yield Part("wk", layer, block + "wk", (K * E, D), heads=K)
        yield Part("wv", layer, block + "wv", (K * E, D))
        yield Part("wo", layer, block + "wo", (D, H * E))
        yield Part("ffn_norm", layer, block + "ffn_norm", (D,))
        yield Part("w1", layer, block + "w1", (F, D))
        yield Part("w3", layer, block + "w3", (F, D))
        yield Part("w2", layer, block + "w2", (D, F))
    yield Part("norm", 0, "norm", (D,))
    if not config.tied_embeddings:
        yield Part("output", 0, "output", (config.vocab_size, D))


def to_halves(rows: Tensor, heads: int) -> Tensor:
    """Rotary rows from pairs together (Meta, GGUF) to halves apart (puna, Hugging Face)."""
    return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape) if heads else rows


def to_pairs(rows: Tensor, heads: int) -> Tensor:
    """Rotary rows from halves apart to pairs together: the inverse of `to_halves`."""
    return rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape) if heads else rows


class Source(Protocol):
    """A model in some format, opened: sizes and names are checked, no weights are in memory."""

    config: ModelConfig
    tokenizer: dict[str, Path | bytes]
    """Files that belong to the tokenizer, by name: their paths, or their bytes."""

    def dtype(self, part: Part) -> torch.dtype:
        """The precision of what `read` returns."""

    def read(self, part: Part) -> Tensor:
        """One part in puna's order of rows, contiguous, in memory of its own."""


def tokenizer_beside(directory: Path) -> dict[str, Path | bytes]:
    """The tokenizer's files in a directory."""
    return {name: directory / name for name in TOKENIZER_FILES if (directory / name).is_file()}


def check_shapes(
    file: Path, wanted: Iterable[tuple[str, tuple[int, ...]]], held: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the tensors that a model expects with those that a file holds.

    Raises:
        ValueError: naming the first tensor that is missing, unexpected, or of another shape.
    """
    known = set()
    for name, shape in wanted:  # one by one: a configuration may claim a billion layers
        if name not in held:
            raise ValueError(f"{file} lacks the tensor {name}; the file is incomplete, or of another model")
        if shape != held[name]:
            raise ValueError(f"{file}: {name} has shape {held[name]}; the configuration expects {shape}")
        known.add(name)
    for name in held:
        if name not in known:
            raise ValueError(f"{file}: unexpected tensor {name} for this configuration")


def cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """`tensor` in another precision, rounded to nearest.

    Raises:
        ValueError: when a finite weight is too large for `dtype`.
    """
    if tensor.dtype == dtype:
        return tensor
    rounded = tensor.to(dtype)
    # Only fp16 has a smaller range than the others.
    if dtype == torch.float16 and not rounded.isfinite().all() and tensor.isfinite().all():
        raise ValueError(f"{name} holds {tensor.abs().max().item():g}, too large for fp16; use bf16 or fp32")
    return rounded
