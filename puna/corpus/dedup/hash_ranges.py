"""Global steps in bounded memory: fixed-size records, written and read by ranges of their keys.

    map task    00000.ranges  ┌ run: records of range 0 | range 1 | ... ┐ run ... ┐ index │
    map task    00001.ranges  └ ...                                                       │
    reduce task      range 7  <── the slices of range 7, from every file ──────────────────┘

A range is given by the top bits of an unsigned 64-bit key. Keys are hashes, so ranges have equal sizes. A map
task buffers records and writes them in sorted runs; a reduce task holds one range in memory. Neither grows
with the data, because more data is divided into more ranges.
"""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from puna.files import atomic_file

SUFFIX = ".ranges"
_RUN_BYTES = 32 << 20  # buffered by a map task before it writes a run
_TAIL = 8  # bytes at the end of a file with the length of its index

Records = NDArray[Any]
Fields = list[tuple[str, str]]


def save_array(path: Path, array: Records) -> None:
    """Write an array as .npy, atomically."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def load_array(path: Path) -> Records:
    """Read an array of `save_array`, also from object storage."""
    with path.open("rb") as file:
        array: Records = np.load(file)
    return array


def range_of(keys: NDArray[np.uint64], n_ranges: int) -> NDArray[np.int64]:
    """The range of each key: its top bits."""
    if n_ranges == 1:
        return np.zeros(len(keys), np.int64)
    return (keys >> np.uint64(64 - _bits(n_ranges))).astype(np.int64)


def _bits(n_ranges: int) -> int:
    assert n_ranges & (n_ranges - 1) == 0 and n_ranges >= 1, f"{n_ranges} ranges are not a power of two"
    return n_ranges.bit_length() - 1


class RangeWriter:
    """Writes one map task's records; a context manager. The first field must be `key`, of type <u8."""

    def __init__(self, path: Path, dtype: Fields, n_ranges: int = 64, run_bytes: int = _RUN_BYTES) -> None:
        self._path, self._dtype, self._n_ranges, self._run_bytes = path, np.dtype(dtype), n_ranges, run_bytes
        assert self._dtype.names and self._dtype.names[0] == "key" and self._dtype["key"] == np.dtype("<u8")
        self._held: list[Records] = []
        self._size = 0
        self._runs: list[list[int]] = []  # per run: the starts of its ranges and its end, in records

    def __enter__(self) -> Self:
        self._atomic = atomic_file(self._path)
        self._file: BinaryIO = self._atomic.__enter__().open("wb")
        return self

    def add(self, records: Records) -> None:
        """Add records of the writer's dtype, in any order and number."""
        self._held.append(np.asarray(records, dtype=self._dtype))
        self._size += self._held[-1].nbytes
        if self._size >= self._run_bytes:
            self._write_run()

    def _write_run(self) -> None:
        if not self._size:
            return
        records = np.concatenate(self._held)
        self._held, self._size = [], 0
        records = _sorted(records)
        begin = self._runs[-1][-1] if self._runs else 0
        places = np.searchsorted(range_of(records["key"], self._n_ranges), np.arange(self._n_ranges + 1))
        self._runs.append([begin + int(place) for place in places])
        self._file.write(records.tobytes())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write_run()
                index = json.dumps({"dtype": self._dtype.descr, "ranges": self._n_ranges, "runs": self._runs})
                self._file.write(index.encode())
                self._file.write(len(index.encode()).to_bytes(_TAIL, "little"))
        finally:
            self._file.close()
            self._atomic.__exit__(kind, error, trace)


def read_range(paths: Iterable[Path], number: int) -> Records:
    """The records of one range from every file, sorted by all their fields in order.

    Raises:
        ValueError: when a file is not a range file or is truncated; the message names it.
    """
    parts: list[Records] = []
    for path in paths:
        with path.open("rb") as file:
            index = _read_index(path, file)
            dtype = np.dtype([(name, kind) for name, kind in index["dtype"]])
            parts.append(np.empty(0, dtype))
            for run in index["runs"]:
                begin, end = run[number], run[number + 1]
                if begin < end:
                    file.seek(begin * dtype.itemsize)
                    parts.append(np.frombuffer(file.read((end - begin) * dtype.itemsize), dtype))
    if not parts:
        raise ValueError("no range files were given")
    records = np.concatenate(parts)
    return _sorted(records)


def _sorted(records: Records) -> Records:
    """Sorted by all fields in order. NumPy compares structured records ten times as slowly as columns."""
    assert records.dtype.names
    return records[np.lexsort([records[name] for name in reversed(records.dtype.names)])]


def _read_index(path: Path, file: BinaryIO) -> dict[str, Any]:
    try:
        end = file.seek(-_TAIL, io.SEEK_END)
        length = int.from_bytes(file.read(_TAIL), "little")
        file.seek(end - length)
        index: dict[str, Any] = json.loads(file.read(length))
        size = np.dtype([(name, kind) for name, kind in index["dtype"]]).itemsize
        if (index["runs"][-1][-1] if index["runs"] else 0) * size != end - length:
            raise ValueError("its size is not what its index says")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a complete range file ({error}); delete it and run its stage again"
        ) from error
    return index
