"""Several steps for one source, where documents must be compared with each other.

    pages (map) ─> duplicates (reduce) ─> documents (map over what the first map wrote)

A map step has a shard for each group of inputs. A reduce step has a shard for each range of hashes, and reads
that range from every file of the step before it, so that no task's memory grows with the corpus. Steps write
to `out`/steps/NAME, the last one to `out`. The configuration of a step names the fingerprint of the step
before it, and the last manifest counts what all steps dropped.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from puna.carbon import Energy
from puna.corpus.clean import require_documents
from puna.manifest import Manifest
from puna.stages.stage import Executor, Finish, Shard, Work, plan_shards

RANGE_BYTES = 64 << 20  # compressed input per range: its records then take about as much memory
_MOST_RANGES = 1 << 14
_BATCH_CHARACTERS = 1 << 20

T = TypeVar("T")


class Pipeline:
    """The steps of one source, run in the order of the calls.

        steps = Pipeline("c4", inputs, out, executor)
        steps.map("pages", "clean pages", write_pages, config)
        find = partial(write_losers, steps.files("pages", ".ranges"))
        steps.reduce("urls", "compare URLs", find, config)
        write = partial(write_documents, steps.files("urls", ".npy"))
        return steps.documents("remove pages", write, config, over="pages")

    `Executor.stage` calls `work` on each shard. `over` names the step whose Parquet files are the inputs;
    None: the source's own inputs.
    """

    def __init__(self, source: str, inputs: Sequence[Path], out: Path, executor: Executor) -> None:
        self.n_ranges = n_ranges_for(inputs)
        self._source, self._out, self._executor = source, out, executor
        self._inputs = plan_shards(inputs)
        self._shards: dict[str, Sequence[Shard]] = {}
        self._manifests: list[Manifest] = []

    def map(
        self,
        name: str,
        label: str,
        work: Work,
        config: dict[str, Any],
        over: str | None = None,
        shards: Sequence[Shard] | None = None,
        finish: Finish = lambda records: {},
    ) -> Manifest:
        """A step with a shard for each group of inputs, or with these `shards`. Returns its manifest."""
        shards = self._over(over) if shards is None else shards
        return self._step(name, label, work, config, shards, self._folder(name), finish)

    def reduce(self, name: str, label: str, work: Work, config: dict[str, Any]) -> Manifest:
        """A step with a shard for each range of hashes. Returns its manifest."""
        shards = [Shard(f"range-{number:05d}", ()) for number in range(self.n_ranges)]
        return self._step(name, label, work, config, shards, self._folder(name))

    def documents(
        self,
        label: str,
        work: Work,
        config: dict[str, Any],
        over: str | None = None,
        shards: Sequence[Shard] | None = None,
        finish: Finish | None = None,
    ) -> Manifest:
        """The last step. Returns its manifest.

        Its counts, damaged records and energy are those of all steps, but `kept` and `characters` its own,
        unless `finish` says otherwise.

        Raises:
            ValueError: when no document was kept.
        """
        shards = self._over(over) if shards is None else shards
        damage = sum(step.damaged for step in self._manifests)
        before = [(step.counts, step.seconds) for step in self._manifests]
        finish = finish or partial(_finish, self._source, before, damage)
        energy = [step.energy for step in self._manifests if step.energy]
        return self._step(
            "documents", label, work, config, shards, self._out, partial(_with_energy, finish, energy)
        )

    def files(self, name: str, suffix: str) -> tuple[Path, ...]:
        """A step's files with this suffix, one for each of its shards."""
        return tuple(self._folder(name) / f"{shard.name}{suffix}" for shard in self._shards[name])

    def _folder(self, name: str) -> Path:
        return self._out / "steps" / name

    def _over(self, name: str | None) -> Sequence[Shard]:
        if name is None:
            return self._inputs
        files = self.files(name, ".parquet")
        return [Shard(shard.name, (file,)) for shard, file in zip(self._shards[name], files, strict=True)]

    def _step(
        self,
        name: str,
        label: str,
        work: Work,
        config: dict[str, Any],
        shards: Sequence[Shard],
        folder: Path,
        finish: Finish = lambda records: {},
    ) -> Manifest:
        after = {"after": self._manifests[-1].fingerprint} if self._manifests else {}
        self._shards[name] = shards
        manifest = self._executor.stage(name, work, shards, folder, {**config, **after}, label, finish)
        self._manifests.append(manifest)
        return manifest


def _with_energy(finish: Finish, before: list[Energy], records: list[dict[str, Any]]) -> dict[str, Any]:
    return {**finish(records), "energy": before}


def _finish(
    source: str, before: list[tuple[dict[str, int], float]], damage: int, records: list[dict[str, Any]]
) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for of_step, _ in before:
        counts.update({name: n for name, n in of_step.items() if name not in ("kept", "characters")})
    require_documents(source, [{"counts": dict(counts), "bad": damage}, *records])
    for record in records:
        counts.update(record["counts"])
    return {
        "counts": dict(sorted(counts.items())),
        "damaged": damage + sum(record["bad"] for record in records),
        "seconds": round(sum(item[1] for item in before) + sum(item["seconds"] for item in records), 3),
    }


def n_ranges_for(inputs: Sequence[Path]) -> int:
    """How many ranges bound a reduce task's memory for inputs of this size: a power of two."""
    size = sum(path.stat().st_size for path in inputs)
    n_ranges = 4
    while n_ranges * RANGE_BYTES < size and n_ranges < _MOST_RANGES:
        n_ranges *= 2
    return n_ranges


def unique_names(paths: Iterable[Path], named: Callable[[Path], Path] = lambda path: path) -> dict[str, str]:
    """A name for each path: its last part, with as many folders before it as tell it from the others."""
    names: dict[str, str] = {}
    waiting = list(dict.fromkeys(paths))
    for n_parts in range(1, max((len(path.parts) for path in waiting), default=0) + 1):
        proposed = {str(path): "/".join(named(path).parts[-n_parts:]) for path in waiting}
        times = Counter(proposed.values())
        names |= {path: name for path, name in proposed.items() if times[name] == 1}
        waiting = [path for path in waiting if times[proposed[str(path)]] > 1]
    return names


def by_size(
    items: Iterable[T], size_of: Callable[[T], int], most: int = _BATCH_CHARACTERS
) -> Iterator[list[T]]:
    """Batches that end where their items have `most` characters or more together."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if size >= most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
