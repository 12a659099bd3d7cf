"""What the engine needs of a model with its cache: calls for prompts, for single tokens, for scores.

A runner's cache is blocks of BLOCK tokens; a sequence's table names its blocks in order, and position p lies
in table[p // BLOCK], at p % BLOCK. prefix_cache.py decides which blocks belong to which sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.config import ModelConfig

Weights = Literal["fp32", "bf16", "int8", "int4"]
CacheDtype = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, eq=False)
class Span:
    """Consecutive tokens of one sequence, and tokens whose probability is wanted after some of them."""

    tokens: NDArray[np.int64]
    start: int
    """Position of the first token."""
    table: Sequence[int]
    """The sequence's cache blocks."""
    places: NDArray[np.int64]
    """For each target the index, in `tokens`, of the token that it follows; ascending."""
    targets: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """Results for the targets of several spans, in order."""

    logprobs: NDArray[np.float64]
    is_best: NDArray[np.bool_]
    """Whether the target is the likeliest token at its place."""


class Runner(Protocol):
    """A model with its cache."""

    config: ModelConfig
    n_blocks: int
    """Cache blocks there are; block b holds BLOCK tokens of keys and values of all layers."""

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
        """One token of each of n sequences -> fp32 logits (n, V), each row the bits that it has alone."""

    def score(self, spans: Sequence[Span]) -> Likelihoods:
        """Run spans of several sequences together; spans of one sequence in the order of their positions."""

    def copy_block(self, source: int, target: int) -> None:
        """Copy a cache block: what a sequence does that continues a text in its own way from within one."""


def likelihoods(
    logits_NV: NDArray[np.float32], rows: NDArray[np.int64], targets: NDArray[np.int64]
) -> Likelihoods:
    """The log-probabilities of targets, each under one row of logits.

    NumPy reduces each row by itself, in the same order whatever the number of rows, so that a sum is the same
    bits in any batch; PyTorch may divide a single row among threads.
    """
    largest = logits_NV.max(axis=1)
    sums = np.exp(logits_NV - largest[:, None]).sum(axis=1, dtype=np.float32)
    own = logits_NV[rows, targets]
    logprobs = own.astype(np.float64) - largest[rows] - np.log(sums.astype(np.float64))[rows]
    return Likelihoods(logprobs, own == largest[rows])


def joined(found: Sequence[Likelihoods]) -> Likelihoods:
    """The likelihoods of several calls, end to end."""
    if not found:
        return Likelihoods(np.empty(0), np.empty(0, np.bool_))
    return Likelihoods(
        np.concatenate([one.logprobs for one in found]), np.concatenate([one.is_best for one in found])
    )
