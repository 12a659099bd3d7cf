"""Examples of several sizes -> batches of rows of `context` tokens, with little padding.

In:  one or more sets of Examples, weights, a seed, the context, rows per step, a share to hold out.
Out: batch(step, rank, world), a function of (fingerprint, seed, step) alone: the BatchSource of train/.

    row 0   │ example 17: 8 tokens            │ example 3: 5         │ padding
    inputs   a b c d e f g h                    p q r s t              0 0 0
    targets  · · · · f g h </s>                 · · s t </s>           · · ·      · is ignored
    segments 0 0 0 0 0 0 0 0                    1 1 1 1 1              2 2 2

A set's examples are packed once, the longest first, each into the fullest row that has room. Then rows are to
this data what windows are to token shards: weights are proportions of rows, an epoch is every row of a set
once, in an order of its own, and the n-th row follows from n by arithmetic (puna.tokens.order), so that a run
resumes from its step. The first token of an example is never a target.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.files import fingerprint
from puna.finetune.examples import Examples
from puna.finetune.formats import Malformed
from puna.manifest import Input
from puna.tokens.mixture import IGNORED, Batch
from puna.tokens.order import ORDER, Schedule, digest64, permute, quotas
from puna.tokens.tokenizer import Tokenizer

PACKING = 1  # version of the packing, a part of the fingerprint
_NAMED = 1000  # malformed records of a set that the manifest names; all are counted


def pack(lengths: NDArray[np.int64], context: int) -> list[list[int]]:
    """Rows of at most `context` positions: the longest example first, each into the fullest row with room.

    Best-fit decreasing: 1.23 times the fewest possible rows at most, and in practice hardly any padding.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms = 0  # bit r is set when there are rows with room for r more positions
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        assert 0 < length <= context, "longer examples are refused when they are read"
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = context, len(rows)
            rows.append([])
        rows[row].append(index)
        by_room.setdefault(room - length, []).append(row)
        if room > length:
            rooms |= 1 << (room - length)
    return rows


class _Rows:
    """The packed rows of some of a set's examples."""

    def __init__(self, examples: Examples, chosen: NDArray[np.int64], context: int) -> None:
        self._examples = examples
        # The last token of an example is only a target.
        packed = pack(examples.lengths[chosen] - 1, context)
        self._members = [chosen[row].tolist() for row in packed]
        trained = np.add.reduceat(examples.is_target, examples.ends - examples.lengths, dtype=np.int64)
        self.targets = np.array([trained[row].sum() for row in self._members], np.int64)
        self.padding = len(self) * context - int((examples.lengths[chosen] - 1).sum())

    def __len__(self) -> int:
        return len(self._members)

    def fill(self, row: int, inputs: NDArray[Any], targets: NDArray[Any], segments: NDArray[Any]) -> None:
        """Write a row into arrays of `context` positions that hold padding."""
        place, segment = 0, -1
        for segment, index in enumerate(self._members[row]):
            span = self._examples.span(index)
            ids, is_target = self._examples.ids[span], self._examples.is_target[span]
            end = place + len(ids) - 1
            inputs[place:end] = ids[:-1]
            targets[place:end] = np.where(is_target[1:], ids[1:].astype(np.int64), IGNORED)
            segments[place:end] = segment
            place = end
        segments[place:] = segment + 1


class PackedExamples:
    """Batches of packed examples, mixed by weight.

    Raises:
        ValueError: sets of one name, weights of unknown sets or not of all, a share that holds out all of a
            set, a set that is too small beside the others.
    """

    def __init__(
        self,
        sets: Sequence[Examples],
        weights: Mapping[str, float],
        tokenizer: Tokenizer,
        *,
        seed: int,
        context: int,
        batch_sequences: int,
        held_out: float = 0.01,
    ) -> None:
        # By name: the batches do not depend on the order in which the files were given.
        self._sets = {examples.name: examples for examples in sorted(sets, key=lambda each: each.name)}
        if len(self._sets) < len(sets):
            raise ValueError(f"two data files are named {', '.join(self._sets)}; rename one of them")
        self.sources = tuple(self._sets)
        self.vocab_size, self.tokenizer = tokenizer.vocab_size, tokenizer.path
        self.seed, self.context, self.batch_sequences = seed, context, batch_sequences
        self._held_out = held_out
        self._rows = {name: self._packed(name, is_held_out=False) for name in self.sources}
        self.shares = self._shares(weights)
        self._quotas = quotas(self.shares)
        self._schedule = Schedule(self._quotas, seed)

    def _packed(self, name: str, is_held_out: bool) -> _Rows:
        examples = self._sets[name]
        # By what the example says: duplicates are on one side, whatever the template and the file's order.
        is_chosen = self._is_held_out(examples) == is_held_out
        if not is_held_out and not is_chosen.any():
            raise ValueError(
                f"all {len(examples)} examples of {examples.path} are held out; give more data, or lower "
                f"--held-out {self._held_out:g}"
            )
        return _Rows(examples, np.flatnonzero(is_chosen), self.context)

    def _is_held_out(self, examples: Examples) -> NDArray[np.bool_]:
        return examples.keys < np.uint64(int(self._held_out * 2**64))

    def _shares(self, weights: Mapping[str, float]) -> dict[str, float]:
        chosen = dict(weights) or {name: float(len(self._rows[name])) for name in self.sources}
        if chosen.keys() != self._sets.keys():
            odd = sorted(chosen.keys() ^ self._sets.keys())[0]
            raise ValueError(f"give a weight for each data file or for none; {odd!r} is not in both lists")
        if bad := [name for name, weight in chosen.items() if not 0 < weight < float("inf")]:
            raise ValueError(f"the weight of {bad[0]!r} is {chosen[bad[0]]:g}; it must be positive")
        total = sum(chosen.values())
        return {name: chosen[name] / total for name in self.sources}

    @cached_property
    def _validation(self) -> dict[str, _Rows]:
        return {name: self._packed(name, is_held_out=True) for name in self.sources}

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the sequence of batches: equal fingerprints mean equal batches at every step."""
        return fingerprint(
            {
                "order": ORDER,
                "packing": PACKING,
                "sets": {name: examples.digest for name, examples in self._sets.items()},
                "quotas": self._quotas,
                "seed": self.seed,
                "context": self.context,
                "batch_sequences": self.batch_sequences,
                "held_out": self._held_out,
            }
        )

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The data files with their digests, for the manifest."""
        return tuple(Input.file(examples.path) for examples in self._sets.values())

    @property
    def malformed(self) -> list[Malformed]:
        """The records that were set aside."""
        return [item for examples in self._sets.values() for item in examples.malformed]

    def steps_of(self, epochs: float) -> int:
        """The steps that read as many rows as `epochs` passes over all sets; at least one."""
        rows = sum(map(len, self._rows.values()))
        return max(1, round(epochs * rows / self.batch_sequences))

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The rows of `rank` out of `world` in the global batch of a step.

        Raises:
            ValueError: when the rows of a batch cannot be divided evenly among the ranks.
        """
        own, rest = divmod(self.batch_sequences, world)
        if rest:
            raise ValueError(
                f"a batch is {self.batch_sequences} sequences, not a multiple of {world} ranks; "
                f"change schedule.batch_tokens or the number of ranks"
            )
        first = step * self.batch_sequences
        places = [self._locate(n) for n in range(first, first + self.batch_sequences)]
        tokens = sum(int(self._rows[name].targets[row]) for name, row in places)
        return self._batch(places[rank * own : (rank + 1) * own], self._rows, tokens)

    def _locate(self, n: int) -> tuple[str, int]:
        """The set and the row of the n-th row of training."""
        index, k = self._schedule.sequence(n)
        name = self.sources[index]
        epoch, place = divmod(k, len(self._rows[name]))
        return name, permute(place, len(self._rows[name]), digest64("epoch", self.seed, name, epoch))

    def _batch(self, places: Sequence[tuple[str, int]], rows: Mapping[str, _Rows], tokens: int) -> Batch:
        inputs, segments = np.zeros((2, len(places), self.context), np.int64)
        targets = np.full(inputs.shape, IGNORED, np.int64)
        for line, (name, row) in enumerate(places):
            rows[name].fill(row, inputs[line], targets[line], segments[line])
        sources = np.array([self.sources.index(name) for name, _ in places], np.int64)
        return Batch(inputs, targets, sources, tokens, segments)

    def validation_windows(
        self, source: str, limit: int | None = None, rows: int | None = None
    ) -> Iterator[Batch]:
        """The first `limit` held-out rows of a set, `rows` per batch (default: batch_sequences)."""
        held_out = self._validation[source]
        end = len(held_out) if limit is None else min(limit, len(held_out))
        rows = rows or self.batch_sequences
        for first in range(0, end, rows):
            last = min(first + rows, end)
            places = [(source, row) for row in range(first, last)]
            yield self._batch(places, self._validation, int(held_out.targets[first:last].sum()))

    def tokens_per_byte(self, source: str) -> float:
        """Held-out target tokens per UTF-8 byte of their answers."""
        examples = self._sets[source]
        size = int(examples.target_bytes[self._is_held_out(examples)].sum())
        return int(self._validation[source].targets.sum()) / size if size else 0.0

    def report(self, steps: int) -> list[dict[str, Any]]:
        """What `steps` steps train on, and what was cut and set aside: one row per set, for the manifest."""
        given = dict(zip(self.sources, self._schedule.given(steps * self.batch_sequences), strict=True))
        tokens = {name: self._targets_in(name, int(count)) for name, count in given.items()}
        total = sum(tokens.values())
        return [
            {
                "source": name,
                "intended": self.shares[name],
                "realised": tokens[name] / total if total else 0.0,
                "sequences": int(given[name]),
                "tokens": tokens[name],
                "epochs": int(given[name]) / len(rows),
                "documents": len(self._sets[name]),
                "bytes": int(self._sets[name].target_bytes.sum()),
                "padding": rows.padding / (len(rows) * self.context),
                "counts": self._sets[name].counts,
                "malformed": [str(item) for item in self._sets[name].malformed[:_NAMED]],
            }
            for name, rows in self._rows.items()
        ]

    def _targets_in(self, name: str, sequences: int) -> int:
        """Target tokens in a set's first `sequences` rows of training."""
        rows = self._rows[name]
        epochs, rest = divmod(sequences, len(rows))
        key = digest64("epoch", self.seed, name, epochs)
        begun = [rows.targets[permute(place, len(rows), key)] for place in range(rest)]
        return epochs * int(rows.targets.sum()) + int(sum(begun))
