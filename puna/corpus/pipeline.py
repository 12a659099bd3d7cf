"""What pipelines of several steps share: their shards, their ranges, and counts that add up.

    pages (map) ─> duplicates (reduce, a shard a range) ─> documents (map over what the first map wrote)

A step's configuration names the fingerprint of the manifest before it, and the last manifest counts what all
steps dropped.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from puna.corpus.clean import require_documents
from puna.manifest import Manifest
from puna.stages.stage import Shard

RANGE_BYTES = 64 << 20  # of compressed input to a range: its records then take about as much memory
_MOST_RANGES = 1 << 14
_BATCH_CHARACTERS = 1 << 20

T = TypeVar("T")


def n_ranges_for(inputs: Sequence[Path]) -> int:
    """How many ranges bound a reduce task's memory, for inputs of this size: a power of two."""
    size = sum(path.stat().st_size for path in inputs)
    n_ranges = 4
    while n_ranges * RANGE_BYTES < size and n_ranges < _MOST_RANGES:
        n_ranges *= 2
    return n_ranges


def range_shards(n_ranges: int) -> list[Shard]:
    """A reduce step's shards: a range each, without inputs of their own."""
    return [Shard(f"range-{number:05d}", ()) for number in range(n_ranges)]


def step_shards(shards: Sequence[Shard], directory: Path) -> list[Shard]:
    """The same shards, with what a step before wrote for each as the input."""
    return [Shard(shard.name, (directory / f"{shard.name}.parquet",)) for shard in shards]


def by_size(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Batches of about a million characters."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def after(steps: Sequence[Manifest]) -> dict[str, Any]:
    """Config entry chaining a step to its predecessor."""
    return {"after": steps[-1].fingerprint} if steps else {}


def finish_with(source: str, steps: Sequence[Manifest]) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """The last step's `finish`: refuses a corpus without documents, adds what the steps before counted.

    The manifest's counts and damaged records are then those of all steps; kept is what the last one kept.
    """
    return partial(_finish, source, [(step.counts, step.damaged, step.seconds) for step in steps])


def _finish(
    source: str, steps: list[tuple[dict[str, int], int, float]], records: list[dict[str, Any]]
) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for held, _, _ in steps:
        counts.update({name: count for name, count in held.items() if name not in ("kept", "characters")})
    before = {"counts": dict(counts), "bad": sum(bad for _, bad, _ in steps)}
    require_documents(source, [before, *records])
    for record in records:
        counts.update(record["counts"])
    return {
        "counts": dict(sorted(counts.items())),
        "damaged": before["bad"] + sum(record["bad"] for record in records),
        "seconds": round(sum(step[2] for step in steps) + sum(record["seconds"] for record in records), 3),
    }
