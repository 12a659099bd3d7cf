"""Benchmark files in their original formats -> rows; every error names the file, the row and the field.

DIR/piqa/valid.jsonl ──json_lines──> Row({"goal": …, "sol1": …}) ──row["goal"]──> value, or ValueError
DIR/race/…           ──first(names)──> the first of several places where a file may lie
"""

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from puna.files import sha256_file


class Row(dict[str, Any]):
    """One row of a benchmark's file, or an object within it."""

    def __init__(self, values: dict[str, Any], file: Path, number: int) -> None:
        super().__init__(values)
        self.file, self.number = file, number

    def __missing__(self, field: str) -> Any:
        raise ValueError(
            f"{self.file}, row {self.number}: no field {field!r}; download the original file again"
        )

    def index(self, label: str, labels: Sequence[str]) -> int:
        """The place of a label among the possible ones."""
        if label not in list(labels):
            raise self.error(f"the label is {label!r}; expected one of {', '.join(labels)}")
        return labels.index(label)

    def error(self, what: str) -> ValueError:
        """An error that names this row."""
        return ValueError(f"{self.file}, row {self.number}: {what}")


class Data:
    """The benchmark files under one directory. It remembers what was read, for the record of a run."""

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise ValueError(f"no benchmark data at {directory}; download it with: puna fetch eval")
        self.directory = directory
        self.read: set[Path] = set()

    def first(self, *names: str) -> Path:
        """The first of these files or folders that exists.

        Raises:
            ValueError: naming the first when none exists.
        """
        for name in names:
            if (path := self.directory / name).exists():
                if path.is_file():
                    self.read.add(path)
                return path
        raise ValueError(
            f"no file {self.directory / names[0]}; download it with: puna fetch eval, or give another --data"
        )

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file that was read, by its path below the directory."""
        return {str(path.relative_to(self.directory)): sha256_file(path) for path in sorted(self.read)}

    def text(self, *names: str) -> tuple[Path, str]:
        """A file's text, decompressed if it ends in .gz.

        Raises:
            ValueError: a file that is truncated or not UTF-8.
        """
        path = self.first(*names)
        try:
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            return path, data.decode("utf-8-sig")
        except (EOFError, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is truncated or corrupt ({error}); download it again") from error

    def lines(self, *names: str) -> list[str]:
        """The lines of a text file, without empty ones at the end."""
        return self.text(*names)[1].rstrip("\n").split("\n")

    def json_lines(self, *names: str) -> Iterator[Row]:
        """The rows of a JSON-lines file."""
        path, text = self.text(*names)
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield parse_row(line, path, number)

    def table(self, *names: str, separator: str = ",", columns: Sequence[str] | None = None) -> Iterator[Row]:
        """The rows of a CSV or TSV file; `columns` names them where the file has no header.

        Quotes enclose cells only in CSV files. Cells stay text: "None" is the text None.
        """
        path, text = self.text(*names)
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting)
        header = list(columns) if columns else next(reader, [])
        for number, cells in enumerate(reader, 1 if columns else 2):
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}, row {number}: {len(cells)} columns, expected {len(header)}; download it again"
                )
            yield Row(dict(zip(header, cells, strict=True)), path, number)

    def tree(self, *names: str, suffixes: Sequence[str] = (".json", ".txt")) -> Iterator[tuple[str, Row]]:
        """The JSON files of a folder or of a tar archive, sorted by name: (name, row)."""
        path = self.first(*names)
        if path.is_dir():
            for file in sorted(p for p in path.rglob("*") if p.suffix in suffixes and p.is_file()):
                self.read.add(file)
                yield str(file.relative_to(path)), parse_row(file.read_text("utf-8"), file, 1)
            return
        try:
            with tarfile.open(path) as archive:
                members = {m.name: m for m in archive if m.isfile() and Path(m.name).suffix in suffixes}
                for name in sorted(members):
                    stream = archive.extractfile(members[name])
                    assert stream is not None
                    yield name, parse_row(stream.read().decode("utf-8"), path / name, 1)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{path} is truncated or corrupt ({error}); download it again") from error


def parse_row(text: str, file: Path, number: int) -> Row:
    """One JSON object.

    Raises:
        ValueError: naming file and row, when it is anything else.
    """
    try:
        values = json.loads(text, object_hook=lambda found: Row(found, file, number))
    except json.JSONDecodeError as error:
        message = f"{file}, row {number}: truncated or not valid JSON ({error}); download it again"
        raise ValueError(message) from error
    if not isinstance(values, Row):
        raise ValueError(f"{file}, row {number}: expected an object, got {type(values).__name__}")
    return values


def labelled(rows: Sequence[Row], labels: Sequence[str]) -> Iterator[tuple[Row, str]]:
    """Rows with the labels of a file beside theirs.

    Raises:
        ValueError: when the numbers differ.
    """
    if len(rows) != len(labels):
        file = rows[0].file if rows else "an empty file"
        raise ValueError(f"{file}: {len(rows)} examples, but {len(labels)} labels; download both files again")
    yield from zip(rows, labels, strict=True)
