"""JSON lines, plain or compressed: one object per line, and what is wrong with the other lines.

In:  a file; gzip, bzip2 and Zstandard are told by the first bytes, not by the name.
Out: Line(number, offset, values) in the order of the file; a DamagedRecord instead of each damaged line.
"""

import bz2
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

from puna.corpus.document import DamagedRecord

MAX_LINE_BYTES = 64 << 20
_DAMAGE = (OSError, EOFError, zlib.error)  # bz2 and pyarrow raise OSError


class Line(NamedTuple):
    """One line: its number from 1, its offset in bytes after decompression, its JSON object."""

    number: int
    offset: int
    values: dict[str, Any]


def read_json_lines(path: Path, name: str = "") -> Iterator[Line | DamagedRecord]:
    """Stream the lines of a file. `name` stands for the file in a DamagedRecord; its path by default.

    Memory is bounded by the longest line: lines over MAX_LINE_BYTES are skipped.
    """
    name = name or str(path)
    offset = number = 0
    with path.open("rb") as raw:
        file = _unpacked(raw)
        while True:
            try:
                line = file.readline(MAX_LINE_BYTES)
                size = len(line)
                rest = line
                while len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_LINE_BYTES)
                    size += len(rest)
            except _DAMAGE as error:
                yield DamagedRecord(name, offset, f"compressed data is damaged or cut off ({error})")
                return
            if not line:
                return
            number += 1
            if size > len(line):
                yield DamagedRecord(name, offset, f"line {number}: skipped, {size} bytes are too long")
            elif line.strip():
                yield _parsed(name, number, offset, line)
            offset += size


def _parsed(name: str, number: int, offset: int, line: bytes) -> Line | DamagedRecord:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8
        return DamagedRecord(name, offset, f"line {number}: not valid JSON ({error})")
    if not isinstance(values, dict):
        return DamagedRecord(name, offset, f"line {number}: no JSON object")
    return Line(number, offset, values)


def _unpacked(raw: BinaryIO) -> IO[bytes]:
    head = raw.read(4)
    raw.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if head.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    if head == b"\x28\xb5\x2f\xfd":
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw), "zstd"), 1 << 20)
    return raw
