"""The header of a GGUF file: metadata by key, and the position of each tensor.

    "GGUF"  version  tensors  keys
    key, type, value             × keys        llama.block_count = 30, tokenizer.ggml.tokens = ["<s>", …
    name, dims, type, offset     × tensors     blk.0.attn_q.weight  [576, 576]  Q4_1  12345
    padding, then the tensors' bytes

A header is parsed once while anyone holds it: a model's weights and its tokenizer are read from one file.

The `gguf` package has a reader, but it does not check the sizes that a file claims: a count of 2^60 exhausts
memory; it also makes an object of a kilobyte per token of a vocabulary. Here each size is compared with the
bytes that remain before it is used. Types and block sizes are the package's.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_MAX_DIMS = 4
_ALIGNMENT = "general.alignment"
_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True)
class Entry:
    """A metadata entry: its value, its type (of the elements, for an array), and its bytes in the file."""

    value: Any
    kind: GGUFValueType
    is_array: bool
    raw: bytes


@dataclass(frozen=True)
class TensorPlace:
    """Type and position of a tensor; the shape is in PyTorch's order."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    """From the beginning of the file."""


@dataclass(frozen=True)
class Header:
    """The metadata and tensor table of a GGUF file."""

    version: int
    entries: dict[str, Entry]
    tensors: dict[str, TensorPlace]

    @property
    def values(self) -> dict[str, Any]:
        """The metadata's values by key."""
        return {key: entry.value for key, entry in self.entries.items()}


# By path, inode, size and time of the last change.
_HELD: WeakValueDictionary[tuple[object, ...], Header] = WeakValueDictionary()


def read_header(path: Path, data: bytes | None = None) -> Header:
    """Read the header of a file, or of `data`, which is then named `path`.

    Raises:
        ValueError: naming the file and what is wrong: the magic, a version, a size beyond the file's end.
    """
    try:
        if data is not None:
            return _Reader(path, data).header()
        stat = path.stat()
        key = (path.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if (header := _HELD.get(key)) is None:
            header = _HELD[key] = _Reader(path, None).header()
        return header
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give a GGUF file") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is damaged: a text in its header is not UTF-8; get the file again"
        ) from error


def vocabulary_only(header: Header) -> bytes:
    """A GGUF file without tensors that holds only the tokenizer's entries, byte for byte."""
    kept = [
        entry.raw
        for key, entry in header.entries.items()
        if key == "general.architecture" or key.startswith("tokenizer.")
    ]
    return MAGIC + struct.pack("<IQQ", header.version, 0, len(kept)) + b"".join(kept)


class _Reader:
    def __init__(self, path: Path, data: bytes | None) -> None:
        self._path, self._at = path, 0
        self._bytes: bytes | mmap.mmap
        if data is not None:
            self._bytes = data
        elif path.stat().st_size == 0:
            raise self._damaged("it is empty")
        else:  # mapped: a header of a few MB is read from a file of many GB
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._size = len(self._bytes)

    def _damaged(self, how: str) -> ValueError:
        return ValueError(f"{self._path} is not a valid GGUF file: {how}; get the file again")

    def _take(self, count: int, what: str) -> bytes:
        begin, end = self._at, self._at + count
        if end > self._size:
            raise self._damaged(f"{what} should be {count} bytes long, and {self._size - begin} are left")
        self._at = end
        return self._bytes[begin:end]

    def _number(self, kind: str, what: str) -> int:
        return int(struct.unpack("<" + kind, self._take(struct.calcsize(kind), what))[0])

    def _text(self, what: str) -> str:
        return self._take(self._number("Q", what), what).decode("utf-8")

    def _texts(self, count: int, what: str) -> list[str]:
        """An array of texts. A vocabulary has hundreds of thousands, so that calls count here."""
        data, at, size, length_at = self._bytes, self._at, self._size, struct.Struct("<Q").unpack_from
        texts = []
        for _ in range(count):
            begin = at + 8
            at = begin + length_at(data, at)[0] if begin <= size else size + 1
            if at > size:
                raise self._damaged(f"{what} ends beyond the end of the file")
            texts.append(data[begin:at].decode("utf-8"))
        self._at = at
        return texts

    def _count(self, smallest: int, what: str) -> int:
        """How many entries follow, each of `smallest` bytes or more."""
        count = self._number("Q", what)
        if count * smallest > self._size - self._at:
            raise self._damaged(f"it claims {count} {what}, more than its size has room for")
        return count

    def header(self) -> Header:
        if (magic := self._take(4, "the magic")) != MAGIC:
            raise self._damaged(f"it begins with {magic!r}, not {MAGIC!r}")
        version = self._number("I", "the version")
        if version not in VERSIONS:
            raise self._damaged(f"its version is {version}; puna reads 2 and 3, little-endian")
        n_tensors = self._count(24, "tensors")
        n_entries = self._count(13, "keys")
        entries: dict[str, Entry] = {}
        for _ in range(n_entries):
            self._once(entries, *self._entry())
        places: dict[str, tuple[GGMLQuantizationType, tuple[int, ...], int]] = {}
        for _ in range(n_tensors):
            self._once(places, *self._place())
        alignment = entries[_ALIGNMENT].value if _ALIGNMENT in entries else 32
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"{_ALIGNMENT} is {alignment!r}, not a power of two")
        start = self._at + -self._at % alignment
        return Header(version, entries, self._checked(places, start))

    def _once(self, entries: dict[str, Any], name: str, value: Any) -> None:
        if name in entries:
            raise self._damaged(f"it has {name} twice")
        entries[name] = value

    def _entry(self) -> tuple[str, Entry]:
        begin = self._at
        key = self._text("a key")
        kind = self._kind(key)
        is_array = kind == GGUFValueType.ARRAY
        if is_array:
            kind = self._kind(key)
            if kind == GGUFValueType.ARRAY:
                raise self._damaged(f"{key} is an array of arrays")
            smallest = 8 if kind == GGUFValueType.STRING else np.dtype(_SCALARS[kind]).itemsize
            count = self._count(smallest, f"elements of {key}")
        else:
            count = 1
        values: list[Any]
        if kind == GGUFValueType.STRING:
            values = self._texts(count, key)
        else:
            dtype = np.dtype(_SCALARS[kind])
            values = np.frombuffer(self._take(count * dtype.itemsize, key), dtype).tolist()
        raw = self._bytes[begin : self._at]
        return key, Entry(values if is_array else values[0], kind, is_array, raw)

    def _kind(self, key: str) -> GGUFValueType:
        number = self._number("I", f"the type of {key}")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self._damaged(f"{key} is of the unknown type {number}") from None

    def _place(self) -> tuple[str, tuple[GGMLQuantizationType, tuple[int, ...], int]]:
        name = self._text("a tensor's name")
        n_dims = self._number("I", f"the dimensions of {name}")
        if not 1 <= n_dims <= _MAX_DIMS:
            raise self._damaged(f"{name} has {n_dims} dimensions")
        shape = tuple(self._number("Q", f"the shape of {name}") for _ in range(n_dims))[::-1]
        number = self._number("I", f"the type of {name}")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise self._damaged(f"{name} is of the unknown type {number}") from None
        return name, (kind, shape, self._number("Q", f"the offset of {name}"))

    def _checked(
        self, places: dict[str, tuple[GGMLQuantizationType, tuple[int, ...], int]], start: int
    ) -> dict[str, TensorPlace]:
        tensors = {}
        for name, (kind, shape, offset) in places.items():
            block, size = GGML_QUANT_SIZES[kind]
            if shape[-1] % block:
                raise self._damaged(
                    f"{name} has rows of {shape[-1]}, not a multiple of {kind.name}'s {block}"
                )
            end = start + offset + prod(shape) // block * size
            if end > self._size:
                raise self._damaged(
                    f"{name} ends at byte {end}, and the file has {self._size}: it is truncated"
                )
            tensors[name] = TensorPlace(kind, shape, start + offset)
        return tensors
