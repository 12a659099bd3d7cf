"""Clean a source: its reader and cleaner over its files, documents out.

In:  files, or folders that are searched for a source's patterns.
Out: a directory of Parquet files, complete once its manifest exists.

    inputs ─> shards ─┬─ read -> clean -> 00000.parquet ─┬─> manifest.json        most sources: one step
                      └─ read -> clean -> 00001.parquet ─┘

    inputs ─> steps/hashes ─> steps/duplicates ─> … ─> documents                  where documents are compared
                                                                                  with each other: pipeline.py
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from puna.corpus.parquet import ShardWriter
from puna.corpus.registry import load_source
from puna.manifest import Manifest
from puna.stages.stage import Executor, Shard, plan_shards
from puna.validation import check_typed


def find_inputs(source: str, paths: Iterable[Path]) -> list[Path]:
    """The input files among `paths`: files as given, folders searched for the source's patterns, sorted.

    A source whose unit is not a file (a project's folder, a paper's) finds them itself.

    Raises:
        ValueError: when a path does not exist, or nothing is found.
    """
    module = load_source(source)
    patterns: tuple[str, ...] = module.PATTERNS
    found: list[Path] = []
    for path in paths:
        if path.is_file():
            found.append(path)
        elif path.is_dir():
            if hasattr(module, "find"):
                found += module.find(path)
            else:
                files = {file for pattern in patterns for file in path.rglob(pattern) if file.is_file()}
                found += sorted(files, key=str)
        else:
            raise ValueError(f"input {path} does not exist")
    if not found:
        raise ValueError(f"no {source} input found; folders are searched for {', '.join(patterns)}")
    return found


def check_options(options: Any) -> None:
    """Check a source's options: by their types, then by their own `validate`, if they have one.

    Raises:
        ValueError: naming the first invalid option.
    """
    check_typed(options)
    if hasattr(options, "validate"):
        options.validate()


def clean_source(
    source: str, paths: Iterable[Path], out: Path, options: Any = None, executor: Executor | None = None
) -> Manifest:
    """Clean a source's raw files into Parquet documents (zstd) in `out`; returns the manifest.

    `options` are an instance of the source's own Options, the defaults when None.

    Raises:
        ValueError: no input, no document kept, `out` of another configuration, too much damaged input.
        Unfinished: when other parts of an array job have shards to do yet.
    """
    module = load_source(source)
    options = module.Options() if options is None else options
    executor = executor or Executor()
    check_options(options)
    executor.validate()
    inputs = find_inputs(source, paths)
    if hasattr(module, "pipeline"):
        manifest: Manifest = module.pipeline(inputs, out, options, executor)
        return manifest
    shards = plan_shards(inputs, part_bytes=getattr(module, "PART_BYTES", 0))
    return clean_in_one_step(source, shards, out, options, executor)


def clean_in_one_step(
    source: str, shards: Sequence[Shard], out: Path, options: Any, executor: Executor
) -> Manifest:
    """Read and clean every shard by itself."""
    return executor.stage(
        name="documents",
        work=partial(clean_shard, source, options, keep_dropped=executor.keep_dropped),
        shards=shards,
        out=out,
        config={"source": source, "options": asdict(options)},
        label=f"clean {source}",
        finish=partial(require_documents, source),
    )


def require_documents(source: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The `finish` of a stage of documents: a corpus without documents is an error.

    Raises:
        ValueError: with the counts of what was read.
    """
    counts: Counter[str] = sum((Counter(record["counts"]) for record in records), Counter())
    if not counts["kept"]:
        damaged = sum(record["bad"] for record in records)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "no records"
        raise ValueError(f"no {source} document was kept ({reasons}, {damaged} damaged); use other inputs")
    return {}


def clean_shard(
    source: str, options: Any, shard: Shard, out: Path, keep_dropped: bool = False
) -> dict[str, Any]:
    """Read, clean and write one shard."""
    module = load_source(source)
    with ShardWriter(out, shard.name, source, keep_dropped) as writer:
        span = [shard.span] if shard.span else []
        for record in writer.read(shard.inputs, lambda path: module.read(path, options, *span)):
            writer.add(module.clean(record, options), record)
    return writer.result()
