"""Documents that exist already: JSON lines or Parquet with a text field -> documents.

In:  `*.jsonl`, `*.json`, `*.ndjson`, plain, gzip, bzip2 or Zstandard; `*.parquet`. Options name the fields.
Out: one Document per record. An option names the source, which is a stream of the training mixture.

    {"text": "Llamas hum.", "id": "a7"} ─> Document("a7", "notes", "Llamas hum.")
    {"text": null}                      ─> DamagedRecord("notes.jsonl", 31, "line 2: …")
    {"text": "  "}                      ─> Drop("empty")

Without an id field, ids are made from file and line (`notes.jsonl:1`). Ids from a field are compared over the
whole corpus: a record without an id, or with the id of an earlier record, gets an id from file and line too.

    steps/ids        with an id field: the hashes of the ids by range
    steps/repeated   records of one id: all but the first
    documents        the text of every record
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from puna.corpus.dedup.hash_ranges import RangeWriter
from puna.corpus.dedup.lines import LINE_FIELDS, hashes_of, line_records, repeated_in, write_repeated
from puna.corpus.document import DamagedRecord, Document, Drop
from puna.corpus.json_lines import Line, read_json_lines
from puna.corpus.parquet import ShardWriter
from puna.corpus.pipeline import Pipeline, by_size, unique_names
from puna.manifest import Manifest
from puna.stages.stage import Executor, Shard

_PACKED = ("", ".gz", ".bz2", ".zst")
PATTERNS: tuple[str, ...] = (
    *(f"*{name}{packed}" for name in (".jsonl", ".json", ".ndjson") for packed in _PACKED),
    "*.parquet",
)


@dataclass(frozen=True)
class Options:
    """Which fields are read, and the name of the stream."""

    text_field: str = "text"
    """Field or column with the text of each document."""
    id_field: str | None = None
    """Field or column with the id of each document; ids are made from file name and line when unset."""
    source: str = "jsonl"
    """Name of the source: a stream of the training mixture, weighted by --mixture.weights.NAME."""

    def validate(self) -> None:
        """Raise ValueError naming an invalid option."""
        if not self.text_field:
            raise ValueError("text-field is empty; name the field that holds the text")
        if not self.source.replace("-", "_").isidentifier():
            raise ValueError(f"source is {self.source!r}; use letters, digits, - and _, such as my-notes")


class Row(NamedTuple):
    """A record's text and the value of its id field, None without one. `line` counts from 1."""

    line: int
    id: str | None
    text: str


def read(path: Path, options: Options = Options()) -> Iterator[Row | DamagedRecord]:
    """The records of a file. The reason of a DamagedRecord begins with the line, or the row of Parquet."""
    lines = _read_parquet(path, options) if path.name.endswith(".parquet") else read_json_lines(path)
    for line in lines:
        yield line if isinstance(line, DamagedRecord) else _row(path, line, options)


def _row(path: Path, line: Line, options: Options) -> Row | DamagedRecord:
    text = line.values.get(options.text_field)
    identity = line.values.get(options.id_field) if options.id_field else None
    reason = ""
    if options.text_field not in line.values:
        reason = f"no field {options.text_field!r}; the fields are {', '.join(line.values) or 'none'}"
    elif not isinstance(text, str):
        reason = f"the field {options.text_field!r} is not a string but {json.dumps(text, default=str)[:40]}"
    elif not _is_unicode(text):
        reason = f"the field {options.text_field!r} holds half a surrogate pair, which is not valid UTF-8"
    elif isinstance(identity, str) and not _is_unicode(identity):
        reason = f"the field {options.id_field!r} holds half a surrogate pair, which is not valid UTF-8"
    elif isinstance(identity, (dict, list, bool, float)):
        reason = f"the field {options.id_field!r} is neither a string nor an integer"
    if reason:
        return DamagedRecord(str(path), line.offset, f"line {line.number}: {reason}")
    assert isinstance(text, str)
    return Row(line.number, None if identity in (None, "") else str(identity), text)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: Path, options: Options) -> Iterator[Line | DamagedRecord]:
    """The rows of a Parquet file; strings that are not UTF-8 are read as bytes, and so are not text."""
    number = 0
    try:
        with path.open("rb") as raw, pq.ParquetFile(raw) as file:
            names = [name for name in (options.text_field, options.id_field) if name]
            held = [name for name in names if name in file.schema_arrow.names]
            if options.text_field not in held:
                columns = ", ".join(file.schema_arrow.names)
                yield DamagedRecord(str(path), 0, f"no column {options.text_field!r}; it has {columns}")
                return
            for batch in file.iter_batches(256, columns=held):
                for values in _values(batch):
                    number += 1
                    yield Line(number, 0, values)
    except (pa.ArrowException, OSError) as error:
        yield DamagedRecord(str(path), 0, f"after line {number}: the Parquet file is damaged ({error})")


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(batch.num_rows):
            try:
                yield batch.slice(row, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield dict.fromkeys(batch.schema.names, b"bytes that are not UTF-8")


def clean(row: Row, options: Options = Options()) -> Document | Drop:
    """The record as a document, unless its text is empty."""
    if not row.text.strip():
        return Drop("empty")
    return Document(row.id or str(row.line), options.source, row.text)


# ---- the steps ------------------------------------------------------------------------------------


def pipeline(inputs: Sequence[Path], out: Path, options: Options, executor: Executor) -> Manifest:
    """Run every step; returns the last one's manifest."""
    config = {"source": options.source, "options": asdict(options)}
    steps = Pipeline(options.source, inputs, out, executor)
    repeated: tuple[Path, ...] = ()
    if options.id_field:
        steps.map("ids", "read ids", partial(write_ids, options, steps.n_ranges), config)
        ids = steps.files("ids", ".ranges")
        steps.reduce(
            "repeated", "compare ids", partial(write_repeated, ids, True, ["ids seen again"]), config
        )
        repeated = steps.files("repeated", ".npy")
    names = unique_names(inputs)
    write = partial(write_documents, options, names, repeated, executor.keep_dropped)
    return steps.documents(f"write {options.source}", write, config)


def write_ids(options: Options, n_ranges: int, shard: Shard, out: Path) -> dict[str, Any]:
    """The hash of each record's id, by range."""
    path = out / f"{shard.name}.ranges"
    seen = 0
    rows = (row for file in shard.inputs for row in read(file, options) if isinstance(row, Row) and row.id)
    with RangeWriter(path, LINE_FIELDS, n_ranges) as ranges:
        for batch in by_size(rows, lambda row: len(row.text)):
            hashes = hashes_of([(row.id or "").encode() for row in batch])
            ranges.add(line_records(hashes, shard.number, seen))
            seen += len(batch)
    return {"outputs": [path], "counts": {"ids compared": seen}, "bad": 0}


def write_documents(
    options: Options,
    names: Mapping[str, str],
    repeated: tuple[Path, ...],
    keep_dropped: bool,
    shard: Shard,
    out: Path,
) -> dict[str, Any]:
    """The records of a shard as documents, with ids that no other record has."""
    lost = set(repeated_in(repeated, shard.number).tolist())
    seen = 0
    with ShardWriter(out, shard.name, options.source, keep_dropped) as writer:
        for path in shard.inputs:
            for row in writer.take(read(path, options)):
                is_taken = row.id is not None and seen in lost
                seen += row.id is not None
                if row.id is None or is_taken:
                    row = row._replace(id=f"{names[str(path)]}:{row.line}")
                writer.add(clean(row, options), row._asdict())
    return writer.result()
