"""Exact deduplication of lines over a whole corpus, on disk.

In:  texts; their lines are numbered per shard.
Out: for each shard, the numbers of the lines to remove.

    shard 0  line hashes ─┐ by ranges of the hash   ┌ range 0: sort, find repetitions ─┐ by shard
    shard 1  line hashes ─┴─> (hash, shard, line) ──┼ range 1                          ├─> lines to remove
    ...                                             └ ...                              ┘   of shard 0, 1, …

CCNet (section 3.1 of its paper) removes every line whose hash occurs again within a group of shards; here
the whole corpus is one group, and memory holds one range. Line numbers, not hashes, are written per shard, so
that no look-up is needed for the removal. If the first occurrence is kept, it is the first in the order of
the inputs, whichever worker read them.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.corpus.dedup.hash_ranges import read_range, save_array
from puna.corpus.document import Document
from puna.stages.stage import Shard

Hashes = NDArray[np.uint64]
LINE_FIELDS = [("key", "<u8"), ("order", "<u8")]
_SHARD_BITS = 24  # up to 16 million shards of up to 2**40 lines
_LINE_BITS = 64 - _SHARD_BITS

_CONTROLS = bytes({*range(32), 127} - {ord("\n")})
_ASCII = bytes(ord(chr(byte).lower()) if byte < 128 else byte for byte in range(256)).translate(
    bytes.maketrans(b"123456789", b"0" * 9)
)


def _replaced(character: str) -> str:
    """The normal form of a character: 0 for digits, empty for controls and non-ASCII punctuation.

    Controls are 0-31 and 127-159. Punctuation is defined by Unicode, with a few symbols that CCNet adds.
    ASCII punctuation and accents are kept.
    """
    kind, point = unicodedata.category(character), ord(character)
    if kind == "Nd":
        return "0"
    removed = point < 32 or 127 <= point < 160 or (kind[0] == "P" and point >= 160) or character in "´∶━►"
    return "" if removed else character


def _class(points: Sequence[int]) -> str:
    """The character class of these code points in a regular expression, as ranges."""
    ordered = sorted(points)
    ranges: list[list[int]] = []
    for point in ordered:
        if ranges and point == ranges[-1][1] + 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "[" + "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in ranges) + "]"


# Characters beyond ASCII that change, and every character beyond U+FFFF: a class with only some of the latter
# is searched 20 times as slowly.
_SPECIAL = re.compile(
    _class([point for point in range(128, 1 << 16) if _replaced(chr(point)) != chr(point)])[:-1]
    + "\U00010000-\U0010ffff]"
)


_replacement = cache(_replaced)


def normalise(line: str) -> str:
    """The normal form of a line: lower case, digits as 0, no controls, no punctuation beyond ASCII."""
    return _normal_bytes(line.strip()).decode("utf-8", "surrogatepass")


def _normal_bytes(lines: str) -> bytes:
    """The normal form of stripped lines. Line ends are kept, so that `lower` finds the ends of words."""
    text = _SPECIAL.sub(lambda found: _replacement(found[0]), lines.lower())
    return text.encode("utf-8", "surrogatepass").translate(_ASCII, _CONTROLS)


def line_hashes(texts: Iterable[str]) -> Hashes:
    """The hash of each line of each text, in order: the first 8 bytes of SHA-1 of the normalised line.

    The lines must be stripped. ASCII lines are normalised all at once as bytes, the others as text.
    """
    joined = "\n".join(texts)
    data = joined.encode("utf-8", "surrogatepass")
    lines = data.translate(_ASCII, _CONTROLS).split(b"\n")
    if not joined.isascii():
        places = [place for place, line in enumerate(lines) if not line.isascii()]
        originals = joined.split("\n")
        others = _normal_bytes("\n".join([originals[place] for place in places]))
        for place, line in zip(places, others.split(b"\n"), strict=True):
            lines[place] = line
    return hashes_of(lines)


def hashes_of(values: Sequence[bytes]) -> Hashes:
    """The first 8 bytes of the SHA-1 of each value, as big-endian unsigned integers."""
    sha1 = hashlib.sha1
    digests = b"".join([sha1(value).digest() for value in values])
    return np.frombuffer(digests, np.dtype([("key", ">u8"), ("rest", "V12")]))["key"].astype(np.uint64)


# ---- the two sides of the global step ------------------------------------------------------------


def orders(shard: int, first: int, count: int) -> NDArray[np.uint64]:
    """Sortable numbers for consecutive lines of a shard, the first of which has the number `first`."""
    assert shard < 1 << _SHARD_BITS and first + count < 1 << _LINE_BITS
    begin = (shard << _LINE_BITS) + first
    return np.arange(begin, begin + count, dtype=np.uint64)


def line_records(hashes: Hashes, shard: int, first: int) -> NDArray[Any]:
    """A map task's records for RangeWriter: hashes of consecutive lines, numbered from `first`."""
    records = np.empty(len(hashes), LINE_FIELDS)
    records["key"] = hashes
    records["order"] = orders(shard, first, len(hashes))
    return records


def repeated(records: NDArray[Any], keep_first: bool) -> NDArray[np.uint64]:
    """The sorted `order` values of the lines to remove, from the sorted records of one range.

    The first record of each key is kept; fields between `key` and `order` sort before the order.
    """
    keys = records["key"]
    again = np.zeros(len(keys), bool)
    again[1:] = keys[1:] == keys[:-1]
    if not keep_first:
        again[:-1] |= again[1:].copy()
    return np.sort(records["order"][again])


def write_repeated(
    files: Sequence[Path], keep_first: bool, counted: Sequence[str], shard: Shard, out: Path
) -> dict[str, Any]:
    """The reduce task of one range of keys: writes the orders of the lines to remove.

    `counted` are the names of the numbers of lines to remove and of all lines in the shard's record.
    """
    path = out / f"{shard.name}.npy"
    records = read_range(files, shard.number)
    orders = repeated(records, keep_first)
    save_array(path, orders)
    counts = dict(zip(counted, (len(orders), len(records)), strict=False))
    return {"outputs": [path], "counts": counts, "bad": 0}


def repeated_in(paths: Iterable[Path], shard: int) -> NDArray[np.int64]:
    """The sorted numbers of the lines to remove from a shard: its slice of every range's file."""
    low = np.uint64(shard) << np.uint64(_LINE_BITS)
    parts = []
    for path in paths:
        with path.open("rb") as file:
            parts.append(_slice(file, low))
    return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))


def _slice(file: Any, low: np.uint64) -> NDArray[np.int64]:
    """The orders of one shard, which begin at `low`, found by bisection without reading the whole file."""
    version = np.lib.format.read_magic(file)
    assert version == (1, 0)
    (count,), _, dtype = np.lib.format.read_array_header_1_0(file)
    start = file.tell()

    def place_of(order: int) -> int:
        begin, end = 0, count
        while begin < end:
            middle = (begin + end) // 2
            file.seek(start + middle * 8)
            if int.from_bytes(file.read(8), "little") < order:
                begin = middle + 1
            else:
                end = middle
        return begin

    begin, end = place_of(int(low)), place_of(int(low) + (1 << _LINE_BITS))
    file.seek(start + begin * 8)
    orders = np.frombuffer(file.read((end - begin) * 8), dtype)
    return (orders - low).astype(np.int64)


def with_removed(
    documents: Iterable[Document], count: Callable[[Document], int], removed: NDArray[np.int64]
) -> Iterator[tuple[Document, NDArray[np.int64]]]:
    """Each document of a shard with the numbers of the lines to remove, counted within the document.

    `count` is its number of lines; `removed` are numbers within the shard, as `repeated_in` gives them.
    """
    seen = done = 0
    for document in documents:
        n_lines = count(document)
        upto = done + int(np.searchsorted(removed[done:], seen + n_lines))
        yield document, removed[done:upto] - seen
        seen, done = seen + n_lines, upto


def without_lines(text: str, removed: NDArray[np.int64]) -> str:
    """The text without the lines of these numbers."""
    gone = set(removed.tolist())
    return "\n".join([line for place, line in enumerate(text.split("\n")) if place not in gone])
