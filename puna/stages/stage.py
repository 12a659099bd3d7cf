"""Run a function over shards: resume, parts, progress, manifest.

    inputs ─> shards ─┬─ work(shard) -> 00000.parquet -> 00000.json ─┬─> manifest.json
    (32 MB or more)   └─ work(shard) -> 00001.parquet -> 00001.json ─┘

A shard's record (`00000.json`) is written after its data and marks the shard as done. A stage that was killed
and is started again processes the remaining shards only; local processes, Ray tasks and the jobs of an array
can share the shards of one stage in any combination, and the output is bitwise identical.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from puna.allowance import cores
from puna.carbon import total
from puna.energy import Meter, Use, of_uses
from puna.files import (
    MANIFEST,
    code_version,
    fingerprint,
    is_remote,
    read_json,
    remove_partials,
    sha256_file,
    write_json,
)
from puna.manifest import Input, Manifest, Output, load_manifest, write_manifest
from puna.progress import Bar
from puna.stages.executors import run_here, run_on_ray

SHARD_BYTES = 32 << 20
PLAN = "plan.json"
_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Shard:
    """The unit of work: input files, and the prefix of the names of its output files.

    `span` is the part of its only input that it consists of: its first byte, and the first after it.
    """

    name: str
    inputs: tuple[Path, ...]
    span: tuple[int, int] | None = None

    @property
    def number(self) -> int:
        """The number in the name, of a shard or of a range of hashes."""
        return int(self.name.removeprefix("range-"))

    @property
    def bytes(self) -> int:
        """Size of the input files, or of its part of one."""
        if self.span:
            return self.span[1] - self.span[0]
        return sum(path.stat().st_size for path in self.inputs)


# Writes its files into the directory and returns the shard's record: {"outputs": [path, ...],
# "counts": {...}, "bad": int}, and other entries of its own.
Work = Callable[[Shard, Path], dict[str, Any]]
# Called with all records before the manifest is written. The counts, damaged and seconds that it returns
# replace those of the records, the energy (a list) is added to theirs; everything else becomes the manifest's
# details.
Finish = Callable[[list[dict[str, Any]]], dict[str, Any]]


class Unfinished(Exception):
    """This job of the array is done and others are not; the command is to be run again when they are."""


def plan_shards(
    inputs: Iterable[Path], shard_bytes: int = SHARD_BYTES, *, part_bytes: int = 0
) -> list[Shard]:
    """Group files, in the order given, into shards of at least `shard_bytes` each.

    With `part_bytes`, a file of twice that size or more is divided into shards of that size.
    """
    shards: list[Shard] = []
    group: list[Path] = []
    size = 0

    def add(paths: Sequence[Path], span: tuple[int, int] | None = None) -> None:
        if paths:
            shards.append(Shard(f"{len(shards):05d}", tuple(paths), span))

    for path in inputs:
        n_bytes = path.stat().st_size
        is_divided = 0 < 2 * part_bytes <= n_bytes
        if not is_divided:
            group.append(path)
            size += n_bytes
        if is_divided or size >= shard_bytes:
            add(group)
            group, size = [], 0
        if is_divided:
            edges = [*range(0, n_bytes - part_bytes + 1, part_bytes), n_bytes]
            for span in pairwise(edges):
                add([path], span)
    add(group)
    return shards


@dataclass(frozen=True)
class Executor:
    """How a stage's shards are executed: where, by how many workers, and how strictly."""

    engine: Literal["local", "ray"] = "local"
    """Where shards are processed: in processes of this machine, or as tasks of a Ray cluster."""
    address: str | None = None
    """Address of the Ray cluster (auto, or HOST:6379); a local cluster is started when unset."""
    workers: int | None = None
    """Number of shards processed in parallel; one per core when unset. The output does not depend on it."""
    part: str = "1/1"
    """Share of the shards that this process takes, I/N, when N jobs of an array share a stage."""
    wait: float = 0
    """Seconds to wait for the other jobs of the array at the end of each stage; 0 exits instead, and the same
    command is run again later."""
    max_bad: float = 0.1
    """Maximum share of damaged records; a stage with more is an error."""
    keep_dropped: bool = False
    """Also write the dropped documents, each with its reason, to OUT/dropped/."""

    def validate(self) -> None:
        """Raises ValueError naming the first invalid option."""
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers is {self.workers}; expected 1 or more")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"max-bad is {self.max_bad:g}; expected a share between 0 and 1")
        if self.address and self.engine != "ray":
            raise ValueError("address is set, but engine is local; add --engine ray")
        self.share()

    def share(self) -> tuple[int, int]:
        """(index of this job from 0, number of jobs)."""
        number, slash, parts = self.part.partition("/")
        if not (slash and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
            raise ValueError(f"part is {self.part!r}; expected I/N with I from 1 to N, for example 3/64")
        return int(number) - 1, int(parts)

    def stage(
        self,
        name: str,
        work: Work,
        shards: Sequence[Shard],
        out: Path,
        config: dict[str, Any],
        label: str = "",
        finish: Finish = lambda records: {},
        made_from: Sequence[Input] = (),
    ) -> Manifest:
        """Run `work` on the shards that are not done yet, then write and return the manifest.

        `work` must be importable (no lambda), and deterministic: the same shard gives the same bytes.
        `config` holds everything else that decides the output. `made_from` are directories of earlier stages
        that the manifest names beside the shards' own inputs.

        Raises:
            ValueError: when `out` belongs to another configuration or inputs, or too much input is damaged.
            Unfinished: when other jobs have not finished their shards.
            ChildProcessError: when a worker process died.
            OSError: when a file cannot be read or written.
        """
        plan = _as_json(
            {
                "stage": name,
                "config": config,
                "code_version": code_version(_wing(work)),
                "inputs": [
                    [
                        shard.name,
                        [[path.name, path.stat().st_size] for path in shard.inputs],
                        *([shard.span] if shard.span else ()),
                    ]
                    for shard in shards
                ],
                **({"keep_dropped": True} if self.keep_dropped else {}),
            }
        )
        out.mkdir(parents=True, exist_ok=True)
        _claim(out, plan)
        part, parts = self.share()
        mine = [shard for place, shard in enumerate(shards) if place % parts == part]
        for prefix in [""] if parts == 1 else [f"{shard.name}." for shard in mine]:
            remove_partials(out, prefix)
            remove_partials(out / "dropped", prefix)
        if (out / MANIFEST).is_file():
            return load_manifest(out / MANIFEST)

        pending = [shard for shard in mine if not _is_done(out, shard)]
        # Shards of a reduce stage have no input files: their progress is counted in shards.
        by_bytes = any(shard.inputs for shard in shards)
        sizes = {shard.name: shard.bytes if by_bytes else 1 for shard in mine}
        done = sum(sizes.values()) - sum(sizes[shard.name] for shard in pending)
        log = None if is_remote(out) else out / "progress.jsonl"
        unit: Literal["bytes", "shards"] = "bytes" if by_bytes else "shards"
        with Bar(label or name, sum(sizes.values()), unit, log, done) as bar:
            for shard in self._execute(partial(run_shard, work, out), pending):
                bar.advance(sizes[shard.name])

        self._await_others(name, out, shards)
        records = [read_json(_record_path(out, shard)) for shard in shards]
        manifest = _summary(plan, records, out, self.max_bad, finish, made_from)
        write_manifest(out, manifest)
        return manifest

    def _execute(self, run_one: Callable[[Shard], Shard], shards: Sequence[Shard]) -> Iterator[Shard]:
        if self.engine == "ray":
            return run_on_ray(run_one, shards, self.workers, self.address)
        return run_here(run_one, shards, self.workers or cores())

    def _await_others(self, name: str, out: Path, shards: Sequence[Shard]) -> None:
        deadline = time.monotonic() + self.wait
        while missing := sum(not _record_path(out, shard).is_file() for shard in shards):
            if time.monotonic() >= deadline:
                raise Unfinished(
                    f"part {self.part} of the stage {name} is done; {missing} of {len(shards)} shards "
                    "belong to other parts: run the same command again when they are done"
                )
            time.sleep(min(_POLL_SECONDS, self.wait))


def run_stage(
    stage: str,
    work: Work,
    shards: Sequence[Shard],
    out: Path,
    config: dict[str, Any],
    workers: int = 1,
    max_bad: float = 1.0,
    label: str = "",
    finish: Finish = lambda records: {},
    made_from: Sequence[Input] = (),
) -> Manifest:
    """`Executor.stage` in `workers` processes of this machine."""
    executor = Executor(workers=workers, max_bad=max_bad)
    return executor.stage(stage, work, shards, out, config, label, finish, made_from)


def _wing(work: Work) -> str:
    """The folder of the package that `work` is from; stages/ for a function of another package."""
    function = work.func if isinstance(work, partial) else work
    package, _, module = function.__module__.partition(".")
    return module.partition(".")[0] if package == "puna" else "stages"


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    """The value as it is read back from a JSON file: without tuples."""
    read: dict[str, Any] = json.loads(json.dumps(value))
    return read


def _record_path(out: Path, shard: Shard) -> Path:
    return out / f"{shard.name}.json"


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Write the plan of `out`, or raise ValueError when it was begun with another."""
    path = out / PLAN
    if not path.is_file():
        write_json(path, plan)
        return
    existing = read_json(path)
    # What another version of the code finished is used; what it began is not mixed with output of this one.
    finished = (out / MANIFEST).is_file()
    compared = [key for key in {**existing, **plan} if key != "code_version" or not finished]
    if differing := [key for key in compared if existing.get(key) != plan.get(key)]:
        raise ValueError(
            f"{out} was begun with another {' and '.join(differing)}; "
            f"choose another --out, or delete {out} to start over"
        )


def _is_done(out: Path, shard: Shard) -> bool:
    """Whether the shard's record exists.

    Raises:
        ValueError: naming an input that has changed since.
    """
    record = _record_path(out, shard)
    if not record.is_file():
        return False
    written = record.stat().st_mtime
    for path, recorded in zip(shard.inputs, read_json(record)["inputs"], strict=True):
        # Sizes were compared with the plan; contents are read again only if newer than the record.
        if path.stat().st_mtime > written and sha256_file(path, *(shard.span or ())) != recorded["sha256"]:
            raise ValueError(
                f"{path} has changed since its shard was made; choose another --out, "
                f"or delete {out} to start over"
            )
    return True


def run_shard(work: Work, out: Path, shard: Shard) -> Shard:
    """Process one shard and write its record; the function that every executor calls."""
    with Meter() as meter:
        result = work(shard, out)
        outputs = [
            {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in result.pop("outputs")
        ]
        inputs = [
            {
                "path": str(path),
                "bytes": shard.bytes if shard.span else path.stat().st_size,
                "sha256": sha256_file(path, *(shard.span or ())),
            }
            for path in shard.inputs
        ]
    use = meter.use()
    record = {"name": shard.name, "inputs": inputs, "outputs": outputs, **result}
    record |= {"seconds": round(use.seconds, 3), "energy": asdict(use)}
    write_json(_record_path(out, shard), record)
    return shard


def _summary(
    plan: dict[str, Any],
    records: list[dict[str, Any]],
    out: Path,
    max_bad: float,
    finish: Finish,
    made_from: Sequence[Input],
) -> Manifest:
    """The manifest of a stage whose shards are all done.

    Raises:
        ValueError: when more than `max_bad` of the records are damaged.
    """
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record["counts"])
    damaged = sum(record.get("bad", 0) for record in records)
    seen = damaged + sum(n for key, n in counts.items() if key == "kept" or key.startswith("dropped: "))
    if seen and damaged / seen > max_bad:
        raise ValueError(
            f"{damaged} of {seen} records are damaged, more than --max-bad {max_bad:g}; "
            f"they are listed in *.bad.jsonl in {out}"
        )
    inputs: list[Input] = []
    for item in (item for record in records for item in record["inputs"]):
        if inputs and inputs[-1].path == item["path"]:  # another part of the same file
            before = inputs.pop()
            digest = fingerprint([before.sha256, item["sha256"]])
            item = {**item, "bytes": before.bytes + item["bytes"], "sha256": digest}
        inputs.append(Input(**item))
    outputs = [Output(**item) for record in records for item in record["outputs"]]
    digests = [item.sha256 for item in inputs] + [item.sha256 for item in outputs]
    finished = finish(records)
    return Manifest(
        stage=plan["stage"],
        fingerprint=fingerprint([plan["stage"], plan["config"], digests]),
        config=plan["config"],
        code_version=plan["code_version"],
        counts=finished.pop("counts", dict(sorted(counts.items()))),
        damaged=finished.pop("damaged", damaged),
        inputs=(*inputs, *made_from),
        outputs=tuple(outputs),
        bytes=sum(item.bytes for item in outputs),
        seconds=finished.pop("seconds", round(sum(record["seconds"] for record in records), 3)),
        energy=total([*finished.pop("energy", ()), of_uses(Use(**record["energy"]) for record in records)]),
        details=finished,
    )
