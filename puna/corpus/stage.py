"""Run a function over shards: processes, resume, quarantine, progress, manifest.

In:  files, or folders searched for a source's patterns.
Out: a directory that counts once its manifest is there.

    inputs ─> shards ─┬─ worker: read -> clean -> 00000.parquet -> 00000.json ─┬─> manifest.json
    (32 MB or more)   └─ worker: read -> clean -> 00001.parquet -> 00001.json ─┘

A shard's record (`00000.json`), written after its data, is the claim that the shard is done: killed and
started again, the stage does only the rest, and any number of workers ends with the same bytes.
"""

import importlib
import json
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from puna.corpus.document import SCHEMA, Bad, Document, Drop
from puna.files import (
    MANIFEST,
    atomic_file,
    code_version,
    fingerprint,
    read_json,
    remove_partials,
    sha256_file,
    write_json,
)
from puna.progress import Bar

SOURCES = ("github", "wikipedia", "books")
SHARD_BYTES = 32 << 20
ROW_GROUP_CHARACTERS = 8 << 20
PLAN = "plan.json"


@dataclass(frozen=True)
class Shard:
    """The unit of work: some input files, and the name that its output files begin with."""

    name: str
    inputs: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.inputs)


# Writes its files into the directory and returns {"outputs": [path, ...], "counts": {...}, "bad": int}, and
# whatever else the shard's record is to hold.
Work = Callable[[Shard, Path], dict[str, Any]]
# Given all records before the manifest is written, returns what else the manifest is to hold.
Finish = Callable[[list[dict[str, Any]]], dict[str, Any]]


def plan_shards(inputs: Iterable[Path], shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Group files, in the order given, into shards of at least `shard_bytes` each."""
    shards: list[Shard] = []
    group: list[Path] = []
    size = 0
    for path in inputs:
        group.append(path)
        size += path.stat().st_size
        if size >= shard_bytes:
            shards.append(Shard(f"{len(shards):05d}", tuple(group)))
            group, size = [], 0
    if group:
        shards.append(Shard(f"{len(shards):05d}", tuple(group)))
    return shards


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
) -> dict[str, Any]:
    """Run `work` over the shards that `out` does not hold yet, then write and return the manifest.

    `work` must be importable (no lambda), and write the same bytes whenever it is given the same shard.
    `config` says what else decides the output. `max_bad` is the share of damaged records that stops it.

    Raises:
        ValueError: when `out` belongs to another configuration or inputs, or too much input is damaged.
        ChildProcessError: when a worker process died.
        OSError: when a file cannot be read or written.
    """
    plan = {
        "stage": stage,
        "config": config,
        "code_version": code_version(),
        "inputs": [
            [shard.name, [[path.name, path.stat().st_size] for path in shard.inputs]] for shard in shards
        ],
    }
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, plan)
    if (out / MANIFEST).is_file():
        manifest: dict[str, Any] = read_json(out / MANIFEST)
        return manifest
    remove_partials(out)

    finished = [shard for shard in shards if _record_path(out, shard).is_file()]
    pending = [shard for shard in shards if not _record_path(out, shard).is_file()]
    total = sum(shard.bytes for shard in shards)
    done = sum(shard.bytes for shard in finished)
    run_one = partial(_run_shard, work, out)
    with Bar(label or stage, total, "bytes", out / "progress.jsonl", done) as bar:
        for shard in _execute(run_one, pending, workers):
            bar.advance(shard.bytes)

    records = [read_json(_record_path(out, shard)) for shard in shards]
    return _write_manifest(plan, records, out, max_bad, finish)


def _record_path(out: Path, shard: Shard) -> Path:
    return out / f"{shard.name}.json"


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Write down what `out` is being made of, or refuse when it is being made of something else."""
    path = out / PLAN
    if not path.is_file():
        write_json(path, plan)
        return
    held = read_json(path)
    # What other code finished is whole, and stays; what it only began must not be mixed with ours.
    compared = [key for key in plan if key != "code_version" or not (out / MANIFEST).is_file()]
    if differing := [key for key in compared if held.get(key) != plan[key]]:
        raise ValueError(
            f"{out} was begun with another {' and '.join(differing)}; "
            f"choose another --out, or delete {out} to begin again"
        )


def _run_shard(work: Work, out: Path, shard: Shard) -> Shard:
    started = time.monotonic()
    result = work(shard, out)
    outputs = [
        {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in map(Path, result.pop("outputs"))
    ]
    inputs = [
        {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in shard.inputs
    ]
    seconds = round(time.monotonic() - started, 3)
    record = {"name": shard.name, "inputs": inputs, "outputs": outputs, **result, "seconds": seconds}
    write_json(_record_path(out, shard), record)
    return shard


def _execute(run_one: Callable[[Shard], Shard], shards: Sequence[Shard], workers: int) -> Iterator[Shard]:
    """Give the shards to processes, yield each as it is done."""
    if workers <= 1 or len(shards) <= 1:
        yield from map(run_one, shards)
        return
    # spawn: a forked child of a process that has started threads (torch, Arrow) can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(shards)), context, initializer=_die_with_parent) as pool:
        futures = [pool.submit(run_one, shard) for shard in shards]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process died (killed, or out of memory); "
                "run the same command again to go on, with fewer --workers if memory is short"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _die_with_parent() -> None:
    """End this worker when the process that started it is killed; else it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_manifest(
    plan: dict[str, Any], records: list[dict[str, Any]], out: Path, max_bad: float, finish: Finish
) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    bad = 0
    for record in records:
        counts.update(record["counts"])
        bad += record.get("bad", 0)
    seen = bad + sum(count for key, count in counts.items() if key == "kept" or key.startswith("dropped: "))
    if seen and bad / seen > max_bad:
        raise ValueError(
            f"{bad} of {seen} records are damaged, more than --max-bad {max_bad:g}; "
            f"they are listed in {out}/*.bad.jsonl"
        )
    inputs = [item for record in records for item in record["inputs"]]
    outputs = [item for record in records for item in record["outputs"]]
    manifest = {
        "stage": plan["stage"],
        # Of contents alone: neither paths nor times, so that the same data has the same name anywhere.
        "fingerprint": fingerprint(
            [plan["stage"], plan["config"], [item["sha256"] for item in [*inputs, *outputs]]]
        ),
        "config": plan["config"],
        "code_version": code_version(),
        "counts": dict(sorted(counts.items())),
        "bad": bad,
        "bytes": sum(item["bytes"] for item in outputs),
        "seconds": round(sum(record["seconds"] for record in records), 3),
        "inputs": inputs,
        "outputs": outputs,
        **finish(records),
    }
    write_json(out / MANIFEST, manifest)
    return manifest


# ---- the corpus stage: a source's reader and cleaner as the work --------------------------------


def source_module(source: str) -> ModuleType:
    """The module of a source: it has PATTERNS, read(path) and clean(record).

    Raises:
        ValueError: when there is no such source.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; choose one of: {', '.join(SOURCES)}")
    return importlib.import_module(f"puna.corpus.{source}")


def find_inputs(source: str, paths: Iterable[Path]) -> list[Path]:
    """The input files among `paths`: files as given, folders searched for the source's patterns, sorted.

    Raises:
        ValueError: when a path does not exist, or nothing is found.
    """
    patterns: tuple[str, ...] = source_module(source).PATTERNS
    found: list[Path] = []
    for path in paths:
        if path.is_file():
            found.append(path)
        elif path.is_dir():
            found += sorted({file for pattern in patterns for file in path.rglob(pattern) if file.is_file()})
        else:
            raise ValueError(f"input {path} does not exist")
    if not found:
        raise ValueError(f"no {source} input found; folders are searched for {', '.join(patterns)}")
    return found


def clean_source(
    source: str, paths: Iterable[Path], out: Path, workers: int | None = None, max_bad: float = 0.1
) -> dict[str, Any]:
    """Clean a source's raw files into Parquet documents (zstd) in `out`; returns the manifest.

    Raises:
        ValueError: no input, no document kept, `out` of another configuration, too much damaged input.
    """
    shards = plan_shards(find_inputs(source, paths))
    return run_stage(
        stage="documents",
        work=partial(clean_shard, source),
        shards=shards,
        out=out,
        config={"source": source},
        workers=workers or os.cpu_count() or 1,
        max_bad=max_bad,
        label=f"clean {source}",
        finish=partial(_require_documents, source),
    )


def _require_documents(source: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    counts: Counter[str] = sum((Counter(record["counts"]) for record in records), Counter())
    if not counts["kept"]:
        bad = sum(record["bad"] for record in records)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "no records"
        raise ValueError(f"no {source} document was kept ({reasons}, {bad} damaged); give other inputs")
    return {}


def clean_shard(source: str, shard: Shard, out: Path) -> dict[str, Any]:
    """Read, clean and write one shard: `NAME.parquet`, and `NAME.bad.jsonl` where input was damaged."""
    module = source_module(source)
    counts: Counter[str] = Counter()
    bad: list[Bad] = []

    def documents() -> Iterator[Document]:
        for path in shard.inputs:
            for record in module.read(path):
                if isinstance(record, Bad):
                    bad.append(record)
                    continue
                result = module.clean(record)
                if isinstance(result, Drop):
                    counts[f"dropped: {result.reason}"] += 1
                    continue
                counts["kept"] += 1
                counts["characters"] += len(result.text)
                yield result

    path = out / f"{shard.name}.parquet"
    write_documents(documents(), path)
    if bad:
        with atomic_file(out / f"{shard.name}.bad.jsonl") as temporary:
            lines = (json.dumps(vars(item), ensure_ascii=False) + "\n" for item in bad)
            temporary.write_text("".join(lines), encoding="utf-8")
    return {"outputs": [path], "counts": dict(sorted(counts.items())), "bad": len(bad)}


def write_documents(documents: Iterable[Document], path: Path) -> None:
    """Stream documents into a Parquet file (zstd), atomically; memory is bounded by one row group."""
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        rows: list[dict[str, str]] = []
        size = 0
        for document in documents:
            rows.append(document.row())
            size += len(document.text)
            if size >= ROW_GROUP_CHARACTERS:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                rows, size = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))


def read_documents(path: Path, batch_rows: int = 256) -> Iterator[Document]:
    """Stream the documents of a Parquet file."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_rows):
            for row in batch.to_pylist():
                yield Document(row["id"], row["source"], row["text"], json.loads(row["meta"]))
