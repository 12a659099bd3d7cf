"""External sorting: records are distributed to files by ranges of keys, then read file by file.

    records ─add─> bucket 0   keys below splits[0]           ─take(0)─> as many as fit in memory
            └────> bucket 1   from splits[0] to splits[1]    ─take(1)─> …

Unlike in dedup/hash_ranges.py, whose keys are hashes, keys may have any distribution: the splits come from a
sample of the keys. Buckets are in key order.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.files import named_when_full


class Buckets:
    """Files of records by ranges of an unsigned 64-bit key; `splits` are the starts of all but the first."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], splits: NDArray[np.uint64]) -> None:
        self._folder, self._dtype, self._splits = folder, dtype, splits
        self.count = len(splits) + 1
        folder.mkdir(parents=True)

    def add(self, records: NDArray[Any], keys: NDArray[np.uint64]) -> None:
        """Distribute records to the files by their keys."""
        numbers = np.searchsorted(self._splits, keys, side="right")
        if (numbers[1:] < numbers[:-1]).any():
            order = np.argsort(numbers, kind="stable")
            records, numbers = records[order], numbers[order]
        edges = np.searchsorted(numbers, np.arange(self.count + 1))
        for number in np.unique(numbers):
            append(self._folder / str(number), records[edges[number] : edges[number + 1]])

    def take(self, number: int) -> NDArray[Any]:
        """The records of one bucket, in the order they were added; its file is deleted."""
        path = self._folder / str(number)
        if not path.is_file():
            return np.zeros(0, self._dtype)
        records = np.fromfile(path, self._dtype)
        path.unlink()
        return records


def split_keys(sample: NDArray[np.uint64], size: int, memory: int) -> NDArray[np.uint64]:
    """The keys that split `size` bytes into parts of about `memory` bytes, estimated from a sample."""
    parts = -(-size // memory)
    sample = np.sort(sample)
    return np.unique(sample[np.arange(1, parts) * len(sample) // parts])


def append(path: Path, records: NDArray[Any]) -> None:
    """Add records to the end of a file."""
    with named_when_full(path), path.open("ab") as file:
        np.ascontiguousarray(records).tofile(file)


def pieces(path: Path, dtype: np.dtype[Any], size: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """The records of a file in pieces of at most `size` bytes, each with the number of its first record."""
    step = max(size // dtype.itemsize, 1)
    total = path.stat().st_size // dtype.itemsize
    for start in range(0, total, step):
        yield start, np.fromfile(path, dtype, min(step, total - start), offset=start * dtype.itemsize)


def begins_of(*columns: NDArray[Any]) -> NDArray[np.intp]:
    """The rows at which a new value begins in sorted, non-empty columns."""
    changes = np.zeros(len(columns[0]), bool)
    changes[0] = True
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(changes)
