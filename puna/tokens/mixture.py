"""Token shards -> training batches: Table 1's mixture as arithmetic.

In:  directories of token shards (or their URLs), weights, a seed, the context length, sequences per step.
Out: batch(step, rank, world), a function of (fingerprint, seed, step) alone.

    books  00000.books.train.npy + 00001.books.train.npy   one stream, cut every `context` tokens
           |── window 0 ──|── window 1 ──|─ 2, padded ─|
    wiki   |── window 0 ──|── window 1 ──| ...

    sequence n = step * batch_sequences + row  ──puna.tokens.order──> source, epoch, window
                                                                         └──> inputs  t   .. t+context
                                                                              targets t+1 .. t+context+1

The state of training is therefore its step: a resumed run asks for the next one. Each rank takes its rows
of the global batch, so the batches do not depend on the number of ranks. Each token of a stream but the
first is a target once per epoch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.files import fingerprint
from puna.manifest import Input
from puna.tokens.order import ORDER, Schedule, digest64, in_table_order, permute, quotas, shares
from puna.tokens.storage import COMMAND, Shard, Store

IGNORED = -100  # target of padding, which the loss ignores


@dataclass(frozen=True)
class Batch:
    """One rank's B sequences of T tokens; padding has target -100 and follows the end of a stream."""

    inputs: NDArray[np.int64]  # (B, T)
    targets: NDArray[np.int64]  # (B, T): the inputs shifted by one
    sources: NDArray[np.int64]  # (B,): index into Mixture.sources
    global_tokens: int  # targets of the whole global batch that are not padding; equal on all ranks
    # (B, T): the example that each position belongs to, from 0 on in each row: tokens see no other
    # example. Padding at a row's end is an example of its own. None: a row is one sequence.
    segments: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Place:
    """Where a sequence comes from: a window of a source's stream, in an epoch counted from 0."""

    source: str
    epoch: int
    window: int


class Stream:
    """A source's tokens, all its shards concatenated, read in windows of `context` targets."""

    def __init__(self, shards: Sequence[Shard], context: int) -> None:
        self._shards = shards
        self._ends = np.cumsum([len(shard) for shard in shards], dtype=np.int64)
        self.context = context
        self.tokens = int(self._ends[-1]) if shards else 0

    @property
    def targets(self) -> int:
        """Target tokens per epoch: all but the first."""
        return max(0, self.tokens - 1)

    @property
    def windows(self) -> int:
        """Windows per epoch; the last may be padded."""
        return -(-self.targets // self.context)

    def window(self, index: int) -> NDArray[np.int64]:
        """At most context + 1 tokens: the inputs, and the target of the last input."""
        begin = index * self.context
        end = min(begin + self.context + 1, self.tokens)
        first = int(np.searchsorted(self._ends, begin, side="right"))
        parts = []
        for shard, shard_end in zip(self._shards[first:], self._ends[first:], strict=True):
            shard_begin = int(shard_end) - len(shard)
            parts.append(shard[max(begin - shard_begin, 0) : end - shard_begin])
            if shard_end >= end:
                break
        return np.concatenate(parts).astype(np.int64)

    def targets_in(self, sequences: int) -> int:
        """Target tokens in the stream's first `sequences` sequences of training.

        The padded window is the last of each epoch.
        """
        epochs, rest = divmod(sequences, self.windows)
        return epochs * self.targets + rest * self.context


class Mixture:
    """Batches mixed from sources by weight.

    `weights` are proportions of the sequences by source; empty: Table 1's over the sources present.

    Raises:
        ValueError: shards that are missing, truncated or made with different tokenizers; a source that is
            unknown or empty, or whose weight is too small.
    """

    def __init__(
        self,
        directories: Sequence[Path | str],
        weights: Mapping[str, float],
        seed: int,
        context: int,
        batch_sequences: int,
    ) -> None:
        self.directories = list(directories)
        self.seed, self.context, self.batch_sequences = seed, context, batch_sequences
        self._stores = _stores(self.directories)
        self.manifests = [store.manifest for store in self._stores]
        self.vocab_size: int = self._stores[0].vocab_size
        present = in_table_order({source for store in self._stores for source in store.sources})
        self.shares = shares(present, weights)
        self.sources = tuple(self.shares)
        self._streams = {source: self._open(source, "train") for source in self.sources}
        for source, stream in self._streams.items():
            if not stream.windows:
                raise ValueError(
                    f"source {source!r} has no train tokens in {', '.join(map(str, self.directories))}; "
                    f"add documents to it, or give weights for the other sources (--mixture.weights.NAME)"
                )
        self._quotas = quotas(self.shares)
        self._schedule = Schedule(self._quotas, seed)

    @cached_property
    def tokenizer(self) -> Path:
        """The data's tokenizer, as a file on this machine."""
        return self._stores[0].tokenizer()

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The directories, for the manifest of what is made of them."""
        return tuple(
            Input(str(path), stage="shards", fingerprint=manifest.fingerprint)
            for path, manifest in zip(self.directories, self.manifests, strict=True)
        )

    def _open(self, source: str, split: str) -> Stream:
        arrays = []
        for store in self._stores:
            entry = store.sources.get(source)
            if entry is None:
                continue
            found = [store.open(name) for name in entry[split]]
            if sum(map(len, found)) != entry[f"{split}_tokens"]:
                raise ValueError(
                    f"the {split} shards of {source!r} in {store.name} hold {sum(map(len, found)):,} tokens, "
                    f"not the manifest's {entry[f'{split}_tokens']:,}; delete it and run: {COMMAND}"
                )
            arrays += found
        return Stream(arrays, self.context)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the sequence of batches: equal fingerprints mean equal batches at every step."""
        return fingerprint(
            {
                "order": ORDER,
                "shards": [manifest.fingerprint for manifest in self.manifests],
                "quotas": self._quotas,
                "seed": self.seed,
                "context": self.context,
                "batch_sequences": self.batch_sequences,
                "split": "train",
            }
        )

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The rows of `rank` out of `world` in the global batch of a step.

        Concatenated in the order of their ranks, the ranks' batches are the batch of one rank.

        Raises:
            ValueError: when the sequences of a batch cannot be divided evenly among the ranks.
        """
        tokens = self._tokens_before(step + 1) - self._tokens_before(step)
        return self._batch(self.places(step, rank, world), self._streams, tokens)

    def _tokens_before(self, step: int) -> int:
        """Target tokens of all steps before `step`, without reading any."""
        return sum(self._tokens_by_source(step).values())

    def _tokens_by_source(self, steps: int) -> dict[str, int]:
        given = self._schedule.given(steps * self.batch_sequences)
        return {
            source: self._streams[source].targets_in(int(sequences))
            for source, sequences in zip(self.sources, given, strict=True)
        }

    def places(self, step: int, rank: int = 0, world: int = 1) -> list[Place]:
        """Where the rows of a rank's batch come from."""
        rows, rest = divmod(self.batch_sequences, world)
        if rest:
            raise ValueError(
                f"a batch is {self.batch_sequences} sequences, not a multiple of {world} ranks; "
                f"change schedule.batch_tokens or the number of ranks"
            )
        first = step * self.batch_sequences + rank * rows
        return [self._locate(n) for n in range(first, first + rows)]

    def _locate(self, n: int) -> Place:
        """Where the n-th sequence of training comes from."""
        index, k = self._schedule.sequence(n)
        source = self.sources[index]
        windows = self._streams[source].windows
        epoch, place = divmod(k, windows)
        # The last window, which may be padded, stays last: targets_in relies on it.
        if place < windows - 1:
            place = permute(place, windows - 1, digest64("epoch", self.seed, source, epoch))
        return Place(source, epoch, place)

    def _batch(self, places: Sequence[Place], streams: Mapping[str, Stream], global_tokens: int) -> Batch:
        inputs = np.zeros((len(places), self.context), np.int64)
        targets = np.full((len(places), self.context), IGNORED, np.int64)
        for row, place in enumerate(places):
            ids = streams[place.source].window(place.window)
            length = len(ids) - 1
            inputs[row, :length] = ids[:-1]
            targets[row, :length] = ids[1:]
        sources = np.array([self.sources.index(place.source) for place in places], np.int64)
        return Batch(inputs, targets, sources, global_tokens)

    def validation_windows(
        self, source: str, limit: int | None = None, rows: int | None = None
    ) -> Iterator[Batch]:
        """The first `limit` held-out windows of a source, `rows` per batch (default: batch_sequences).

        Yields nothing for a source that has no held-out documents.

        Raises:
            ValueError: the source is not in the mixture.
        """
        if source not in self.sources:
            raise ValueError(f"no source {source!r} in the mixture; it has: {', '.join(self.sources)}")
        stream = self._open(source, "val")
        rows = rows or self.batch_sequences
        windows = stream.windows if limit is None else min(limit, stream.windows)
        for first in range(0, windows, rows):
            end = min(first + rows, windows)
            places = [Place(source, 0, window) for window in range(first, end)]
            yield self._batch(places, {source: stream}, stream.targets_in(end) - stream.targets_in(first))

    def report(self, steps: int) -> list[dict[str, Any]]:
        """Table 1 as realised by `steps` steps, one row per source; held-out documents are not counted."""
        given = dict(zip(self.sources, self._schedule.given(steps * self.batch_sequences), strict=True))
        tokens = self._tokens_by_source(steps)
        total = sum(tokens.values())
        return [
            {
                "source": source,
                "intended": self.shares[source],
                "realised": tokens[source] / total if total else 0.0,
                "sequences": int(given[source]),
                "tokens": tokens[source],
                "epochs": tokens[source] / self._streams[source].targets,
                "documents": self._trained(source, "documents"),
                "bytes": self._trained(source, "bytes"),
            }
            for source in self.sources
        ]

    def windows(self, source: str) -> int:
        """Windows per epoch of a source."""
        return self._streams[source].windows

    def tokens_per_byte(self, source: str) -> float:
        """Held-out tokens per UTF-8 byte of text; times the loss in bits it gives bits per byte."""
        size = self._total(source, "val_bytes")
        return self._total(source, "val_tokens") / size if size else 0.0

    def _trained(self, source: str, key: str) -> int:
        return self._total(source, key) - self._total(source, f"val_{key}")

    def _total(self, source: str, key: str) -> int:
        return sum(store.sources.get(source, {}).get(key, 0) for store in self._stores)


def _stores(directories: Sequence[Path | str]) -> list[Store]:
    """Open the directories; their manifests must agree on the tokenizer."""
    if not directories:
        raise ValueError(f"data names no directory; give token shards with --data DIR, made by: {COMMAND}")
    stores = [Store(directory) for directory in directories]
    seen: dict[str, Store] = {}
    made_with = [
        {"vocab_size": store.vocab_size, "dtype": store.dtype, "tokenizer": store.tokenizer_fingerprint}
        for store in stores
    ]
    for store, made in zip(stores, made_with, strict=True):
        if differing := [key for key in made if made[key] != made_with[0][key]]:
            key = differing[0]
            raise ValueError(
                f"{store.name} was made with {key} {made[key]}, {stores[0].name} with {made_with[0][key]}; "
                f"make both with one tokenizer: {COMMAND}"
            )
        if (other := seen.setdefault(store.manifest.fingerprint, store)) is not store:
            raise ValueError(f"{store.name} holds the same shards as {other.name}; name it once")
    return stores
