"""A shard's files: documents as Parquet (zstd), damaged records and dropped records beside them.

00000.parquet            documents (SCHEMA)
00000.bad.jsonl          damaged records, one JSON object per line: file, offset, reason
dropped/00000.parquet    with --keep-dropped: the records that a rule dropped, with the reason
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from puna.corpus.document import SCHEMA, DamagedRecord, Document, Drop
from puna.files import atomic_file

ROW_GROUP_CHARACTERS = 8 << 20

Record = TypeVar("Record")

DROPPED_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("record", pa.large_string()),  # JSON of the record that was dropped
    ]
)


class _Rows:
    """A Parquet file written row by row; memory is bounded by one row group."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self._rows: list[dict[str, str]] = []
        self._size = 0

    def add(self, row: dict[str, str], size: int) -> None:
        self._rows.append(row)
        self._size += size
        if self._size >= ROW_GROUP_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._size = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._rows:
            self._flush()
        self._writer.close()


class DamageList:
    """The damaged records of one shard, set aside in NAME.bad.jsonl."""

    def __init__(self, out: Path, name: str) -> None:
        self._path = out / f"{name}.bad.jsonl"
        self._damaged: list[DamagedRecord] = []

    def __len__(self) -> int:
        return len(self._damaged)

    def take(self, records: Iterable[Record | DamagedRecord]) -> Iterator[Record]:
        """The intact records; the damaged ones are set aside."""
        for record in records:
            if isinstance(record, DamagedRecord):
                self._damaged.append(record)
            else:
                yield record

    def write(self) -> None:
        """Write the list, unless it is empty."""
        if self._damaged:
            lines = (json.dumps(vars(item), ensure_ascii=False) + "\n" for item in self._damaged)
            with atomic_file(self._path) as temporary:
                temporary.write_text("".join(lines), encoding="utf-8")


class ShardWriter:
    """Writes one shard's files; a context manager, after which `result()` is what the shard's work returns.

    Files get their names only when the block ends without an error.
    """

    def __init__(self, out: Path, name: str, source: str, keep_dropped: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        self._out, self._name, self._source, self._keeps = out, name, source, keep_dropped
        self._damaged = DamageList(out, name)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.path = self._out / f"{self._name}.parquet"
        with ExitStack() as stack:
            self._documents = stack.enter_context(_Rows(stack.enter_context(atomic_file(self.path)), SCHEMA))
            if self._keeps:
                dropped = stack.enter_context(atomic_file(self._out / "dropped" / f"{self._name}.parquet"))
                self._dropped = stack.enter_context(_Rows(dropped, DROPPED_SCHEMA))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is None:
            self._damaged.write()

    def take(self, records: Iterable[Record | DamagedRecord]) -> Iterator[Record]:
        """The intact records; the damaged ones are set aside."""
        return self._damaged.take(records)

    def read(
        self, paths: Iterable[Path], read: Callable[[Path], Iterable[Record | DamagedRecord]]
    ) -> Iterator[Record]:
        """The intact records of several files; the damaged ones are set aside."""
        for path in paths:
            yield from self.take(read(path))

    def add(self, result: Document | Drop, record: Any = None) -> None:
        """Write a document, or count a drop; `record` is the dropped record, written with --keep-dropped."""
        if isinstance(result, Drop):
            self.counts[f"dropped: {result.reason}"] += 1
            if self._keeps:
                written = _as_json(record)
                row = {"source": self._source, "reason": result.reason, "detail": result.detail}
                self._dropped.add({**row, "record": written}, len(written))
            return
        self.counts["kept"] += 1
        self.counts["characters"] += len(result.text)
        self._documents.add(result.row(), len(result.text))

    def result(self) -> dict[str, Any]:
        """What the shard's work returns."""
        return {
            "outputs": [self.path],
            "counts": dict(sorted(self.counts.items())),
            "bad": len(self._damaged),
        }


def _as_json(record: Any) -> str:
    """A record as JSON, whatever it is; bytes become text."""
    values = (
        {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
        if dataclasses.is_dataclass(record)
        else record
    )
    return json.dumps(values, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def write_documents(documents: Iterable[Document], path: Path) -> None:
    """Stream documents into a Parquet file (zstd), atomically; memory is bounded by one row group."""
    with atomic_file(path) as temporary, _Rows(temporary, SCHEMA) as rows:
        for document in documents:
            rows.add(document.row(), len(document.text))


def read_all_documents(paths: Iterable[Path]) -> Iterator[Document]:
    """Stream the documents of several Parquet files, one after the other."""
    for path in paths:
        yield from read_documents(path)


def read_documents(path: Path, batch_rows: int = 256) -> Iterator[Document]:
    """Stream the documents of a Parquet file."""
    with path.open("rb") as raw, pq.ParquetFile(raw) as file:
        for batch in file.iter_batches(batch_rows):
            for row in batch.to_pylist():
                yield Document(row["id"], row["source"], row["text"], json.loads(row["meta"]))
