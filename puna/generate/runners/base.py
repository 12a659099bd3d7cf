"""What the engine needs of a model with its cache: two calls, for prompts and for single tokens.

A runner's cache is blocks of BLOCK tokens; a sequence's table names its blocks in order, and position p lies
in table[p // BLOCK], at p % BLOCK. prefix_cache.py decides which blocks belong to which sequence.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from puna.config import ModelConfig

Weights = Literal["fp32", "bf16", "int8", "int4"]
CacheDtype = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Runner(Protocol):
    """A model with its cache."""

    config: ModelConfig
    n_blocks: int
    """Cache blocks there are; block b holds BLOCK tokens of keys and values of all layers."""

    @property
    def batch_invariant(self) -> bool:
        """Whether a row's logits are bitwise independent of the other rows of a call."""

    @property
    def prefill_is_decode(self) -> bool:
        """Whether logits, keys and values are the same bits however the tokens were cut into calls."""

    def prefill(
        self, tokens: Sequence[int], start: int, table: Sequence[int], all_logits: bool = False
    ) -> Tensor:
        """Run tokens at positions start… of the sequence whose keys and values lie in the blocks `table`.

        Gives the fp32 logits of the last token, (V,), or with `all_logits` of all, (T, V).
        """

    def decode(
        self, tokens: Sequence[int], positions: Sequence[int], tables: Sequence[Sequence[int]]
    ) -> Tensor:
        """One token of each of n sequences -> fp32 logits (n, V)."""
