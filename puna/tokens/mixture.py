"""Token shards -> training batches: Table 1's mixture as arithmetic.

In:  directories of token shards (or their URLs), weights, a seed, the context length, the sequences a step.
Out: batch(step, rank, world), from (fingerprint, seed, step) alone.

    books  00000.books.train.npy + 00001.books.train.npy   one stream, cut every `context` tokens
           |── window 0 ──|── window 1 ──|─ 2, padded ─|
    wiki   |── window 0 ──|── window 1 ──| ...

    sequence n = step * batch_sequences + row  ──puna.tokens.order──> source, epoch, window
                                                                         └──> inputs  t   .. t+context
                                                                              targets t+1 .. t+context+1

The state of training is therefore its step: to resume is to ask for the next one. Each rank takes its rows
of the same batch, so that another number of ranks sees the same batches. Each token of a stream but the
first is a target once in an epoch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.files import fingerprint
from puna.tokens.order import ORDER, Schedule, digest64, in_table_order, permute, quotas, shares
from puna.tokens.storage import COMMAND, Shard, Store

IGNORED = -100  # the target of padding: cross-entropy leaves it out


@dataclass(frozen=True)
class Batch:
    """B sequences of T tokens; padding has target -100, and comes only after the end of a stream."""

    inputs: NDArray[np.int64]  # (B, T)
    targets: NDArray[np.int64]  # (B, T): the inputs one place on
    sources: NDArray[np.int64]  # (B,): index into Mixture.sources
    tokens: int  # targets that are not padding


@dataclass(frozen=True)
class Place:
    """Where a sequence comes from: a window of a source's stream, seen for the `epoch`-th time (from 0)."""

    source: str
    epoch: int
    window: int


class Stream:
    """A source's tokens, all its shards one after the other, read in windows of `context` targets."""

    def __init__(self, shards: Sequence[Shard], context: int) -> None:
        self._shards = shards
        self._ends = np.cumsum([len(shard) for shard in shards], dtype=np.int64)
        self.context = context
        self.tokens = int(self._ends[-1]) if shards else 0

    @property
    def targets(self) -> int:
        """Tokens that are predicted in an epoch: all but the first."""
        return max(0, self.tokens - 1)

    @property
    def windows(self) -> int:
        """Windows in an epoch; the last may be padded."""
        return -(-self.targets // self.context)

    def window(self, index: int) -> NDArray[np.int64]:
        """At most context + 1 tokens: the inputs, and the target of the last."""
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
        """Targets in the first sequences of training: the padded window comes last in each epoch."""
        epochs, rest = divmod(sequences, self.windows)
        return epochs * self.targets + rest * self.context


class Mixture:
    """Batches mixed from sources by weight.

    `weights` are shares of the sequences by source; empty: Table 1's over the sources present. `split` is
    "train" or "val".

    Raises:
        ValueError: shards missing, cut, or of different tokenizers; a source unknown, empty or too light.
    """

    def __init__(
        self,
        directories: Sequence[Path | str],
        weights: Mapping[str, float],
        seed: int,
        context: int,
        batch_sequences: int,
        split: str = "train",
    ) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"split is {split!r}; it must be 'train' or 'val'")
        for name, value in (("context", context), ("batch_sequences", batch_sequences)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be positive")
        self.directories = list(directories)
        self.seed, self.context, self.batch_sequences, self.split = seed, context, batch_sequences, split
        self._stores = _stores(self.directories)
        self.manifests = [store.manifest for store in self._stores]
        self.vocab_size: int = self._stores[0].vocab_size
        present = in_table_order({source for store in self._stores for source in store.sources})
        self.shares = shares(present, weights)
        self.sources = tuple(self.shares)
        self._streams = {source: self._open(source, split) for source in self.sources}
        for source, stream in self._streams.items():
            if not stream.windows:
                raise ValueError(
                    f"source {source!r} has no {split} tokens in {', '.join(map(str, self.directories))}; "
                    f"give it documents, or weights without it (--mixture.weights.NAME)"
                )
        self._quotas = quotas(self.shares)
        self._schedule = Schedule(self._quotas, seed)

    @cached_property
    def tokenizer(self) -> Path:
        """The vocabulary of the data, as a file on this machine."""
        return self._stores[0].tokenizer()

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
        """The name of this sequence of batches: equal names, equal batches at every step."""
        return fingerprint(
            {
                "order": ORDER,
                "shards": [manifest.fingerprint for manifest in self.manifests],
                "quotas": self._quotas,
                "seed": self.seed,
                "context": self.context,
                "batch_sequences": self.batch_sequences,
                "split": self.split,
            }
        )

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The rows of `rank` among `world` in the batch of a step; ranks take rows in order.

        Raises:
            ValueError: when the sequences of a batch cannot be divided evenly.
        """
        return self._batch(self.places(step, rank, world), self._streams)

    def places(self, step: int, rank: int = 0, world: int = 1) -> list[Place]:
        """Where the rows of a batch come from."""
        rows, rest = divmod(self.batch_sequences, world)
        if rest:
            raise ValueError(
                f"a batch is {self.batch_sequences} sequences, which {world} ranks cannot share evenly; "
                f"change train.batch_tokens or the number of ranks"
            )
        first = step * self.batch_sequences + rank * rows
        return [self._locate(n) for n in range(first, first + rows)]

    def _locate(self, n: int) -> Place:
        """Where the n-th sequence of training comes from."""
        index, k = self._schedule.sequence(n)
        source = self.sources[index]
        windows = self._streams[source].windows
        epoch, place = divmod(k, windows)
        # The last window, which may be padded, stays last: targets_in counts on it.
        if place < windows - 1:
            place = permute(place, windows - 1, digest64("epoch", self.seed, source, epoch))
        return Place(source, epoch, place)

    def _batch(self, places: Sequence[Place], streams: Mapping[str, Stream]) -> Batch:
        inputs = np.zeros((len(places), self.context), np.int64)
        targets = np.full((len(places), self.context), IGNORED, np.int64)
        tokens = 0
        for row, place in enumerate(places):
            ids = streams[place.source].window(place.window)
            length = len(ids) - 1
            inputs[row, :length] = ids[:-1]
            targets[row, :length] = ids[1:]
            tokens += length
        sources = np.array([self.sources.index(place.source) for place in places], np.int64)
        return Batch(inputs, targets, sources, tokens)

    def validation_windows(
        self, source: str, limit: int | None = None, rows: int | None = None
    ) -> Iterator[Batch]:
        """The first `limit` held-out windows of a source in order, `rows` at a time (batch_sequences).

        Yields nothing for a source that has no held-out document.

        Raises:
            ValueError: a source that is not in the mixture.
        """
        if source not in self.sources:
            raise ValueError(f"no source {source!r} in the mixture; it has: {', '.join(self.sources)}")
        stream = self._open(source, "val")
        rows = rows or self.batch_sequences
        windows = stream.windows if limit is None else min(limit, stream.windows)
        for first in range(0, windows, rows):
            places = [Place(source, 0, window) for window in range(first, min(first + rows, windows))]
            yield self._batch(places, {source: stream})

    def report(self, steps: int) -> list[dict[str, Any]]:
        """Table 1 as `steps` steps realise it, a row a source; documents and bytes are those of the split."""
        given = dict(zip(self.sources, self._schedule.given(steps * self.batch_sequences), strict=True))
        tokens = {source: self._streams[source].targets_in(int(given[source])) for source in self.sources}
        total = sum(tokens.values())
        return [
            {
                "source": source,
                "intended": self.shares[source],
                "realised": tokens[source] / total if total else 0.0,
                "sequences": int(given[source]),
                "tokens": tokens[source],
                "epochs": tokens[source] / self._streams[source].targets,
                "documents": self._of_split(source, "documents"),
                "bytes": self._of_split(source, "bytes"),
            }
            for source in self.sources
        ]

    def windows(self, source: str) -> int:
        """Windows of a source in an epoch."""
        return self._streams[source].windows

    def tokens_per_byte(self, source: str) -> float:
        """Held-out tokens by UTF-8 byte of their text: times the loss in bits, it is bits a byte."""
        size = self._total(source, "val_bytes")
        return self._total(source, "val_tokens") / size if size else 0.0

    def _of_split(self, source: str, key: str) -> int:
        held_out = self._total(source, f"val_{key}")
        return held_out if self.split == "val" else self._total(source, key) - held_out

    def _total(self, source: str, key: str) -> int:
        return sum(store.sources.get(source, {}).get(key, 0) for store in self._stores)


def _stores(directories: Sequence[Path | str]) -> list[Store]:
    """The directories, whose manifests must agree on the tokenizer."""
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
