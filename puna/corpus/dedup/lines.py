"""Lines that occur more than once in a corpus: found exactly, on disk, and taken out.

In:  texts, whose lines are counted through a shard; out: for each shard, the places of lines to remove.

    shard 0  line hashes ─┐ by ranges of the hash   ┌ range 0: sort, find repetitions ─┐ by shard
    shard 1  line hashes ─┴─> (hash, shard, line) ──┼ range 1                          ├─> lines to remove
    ...                                             └ ...                              ┘   of shard 0, 1, …

CCNet (section 3.1 of its paper) removes every line whose hash occurs again, within groups of shards; this
does it over the whole corpus, with the memory of one range. What is written per shard are places, not hashes,
so that removing needs no look-up at all. "First", where the first occurrence is kept, is in the order of the
inputs, whatever worker took which.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.corpus.dedup.hash_ranges import read_range
from puna.files import atomic_file

Hashes = NDArray[np.uint64]
LINE_FIELDS = [("key", "<u8"), ("order", "<u8")]
_SHARD_BITS = 24  # up to 16 million shards of up to 2**40 lines
_LINE_BITS = 64 - _SHARD_BITS

_CONTROLS = bytes({*range(32), 127} - {ord("\n")})
_ASCII = bytes(ord(chr(byte).lower()) if byte < 128 else byte for byte in range(256)).translate(
    bytes.maketrans(b"123456789", b"0" * 9)
)


def _replaced(character: str) -> str:
    """What is left of a character: 0 of digits, nothing of controls and of punctuation beyond ASCII.

    Controls are 0-31 and 127-159. Punctuation is what Unicode calls so, and a few symbols that CCNet counts
    as such. ASCII punctuation and accents stay.
    """
    kind, point = unicodedata.category(character), ord(character)
    if kind == "Nd":
        return "0"
    removed = point < 32 or 127 <= point < 160 or (kind[0] == "P" and point >= 160) or character in "´∶━►"
    return "" if removed else character


def _class(points: Sequence[int]) -> str:
    """A regular expression's class of these code points, as ranges."""
    ordered = sorted(points)
    ranges: list[list[int]] = []
    for point in ordered:
        if ranges and point == ranges[-1][1] + 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "[" + "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in ranges) + "]"


# Beyond ASCII, what is not left as it is, and every character of more than two bytes: with only some of those
# in it, a class is searched 20 times as slowly.
_SPECIAL = re.compile(
    _class([point for point in range(128, 1 << 16) if _replaced(chr(point)) != chr(point)])[:-1]
    + "\U00010000-\U0010ffff]"
)


_replacement = cache(_replaced)


def normalise(line: str) -> str:
    """A line as it is compared: lower case, digits as 0, without punctuation beyond ASCII and controls."""
    return _normal_bytes(line.strip()).decode("utf-8", "surrogatepass")


def _normal_bytes(lines: str) -> bytes:
    """Stripped lines as they are compared. Their ends stay, and tell `lower` where a word ends."""
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
    """The first 8 bytes of the SHA-1 of each value, as unsigned numbers, the first byte the highest."""
    sha1 = hashlib.sha1
    digests = b"".join([sha1(value).digest() for value in values])
    return np.frombuffer(digests, np.dtype([("key", ">u8"), ("rest", "V12")]))["key"].astype(np.uint64)


# ---- the two sides of the global step ------------------------------------------------------------


def orders(shard: int, first: int, count: int) -> NDArray[np.uint64]:
    """The places of consecutive lines of a shard, the first of them number `first`, as sortable numbers."""
    assert shard < 1 << _SHARD_BITS and first + count < 1 << _LINE_BITS
    begin = (shard << _LINE_BITS) + first
    return np.arange(begin, begin + count, dtype=np.uint64)


def line_records(hashes: Hashes, shard: int, first: int) -> NDArray[Any]:
    """What a map task hands to its RangeWriter: hashes of consecutive lines, the first number `first`."""
    records = np.empty(len(hashes), LINE_FIELDS)
    records["key"] = hashes
    records["order"] = orders(shard, first, len(hashes))
    return records


def repeated(records: NDArray[Any], keep_first: bool) -> NDArray[np.uint64]:
    """The orders, sorted, of the lines to remove among the sorted records of one range.

    Kept as the first is the record that sorts first: fields between `key` and `order` come before the order.
    """
    keys = records["key"]
    again = np.zeros(len(keys), bool)
    again[1:] = keys[1:] == keys[:-1]
    if not keep_first:
        again[:-1] |= again[1:].copy()
    return np.sort(records["order"][again])


def write_repeated(paths: Sequence[Path], number: int, keep_first: bool, path: Path) -> tuple[int, int]:
    """The reduce task of range `number`: (lines, lines to remove). `path` becomes a .npy of their orders."""
    records = read_range(paths, number)
    orders = repeated(records, keep_first)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, orders)
    return len(records), len(orders)


def repeated_in(paths: Iterable[Path], shard: int) -> NDArray[np.int64]:
    """The numbers, sorted, of a shard's lines to remove: its slice of every range's file."""
    low = np.uint64(shard) << np.uint64(_LINE_BITS)
    parts = []
    for path in paths:
        with path.open("rb") as file:
            parts.append(_slice(file, low))
    return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))


def _slice(file: Any, low: np.uint64) -> NDArray[np.int64]:
    """The orders from `low` up to the next shard's, found by bisection: the file is not read whole."""
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


def without_lines(text: str, removed: NDArray[np.int64]) -> str:
    """The text without the lines of these numbers."""
    gone = set(removed.tolist())
    return "\n".join([line for place, line in enumerate(text.split("\n")) if place not in gone])
