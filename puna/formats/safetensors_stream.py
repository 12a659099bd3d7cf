"""Safetensors files read and written a tensor at a time, through no more memory than that tensor.

The library's own functions take and give all tensors at once, or map the file, whose pages then count as
the process's memory. The format is simple enough to go without: eight bytes of length, that many of JSON,
and the tensors' bytes. The library still judges a file before it is read: headers that lie are its business.

    00 01 00 …  {"norm": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}, …}  bytes of the tensors
"""

import json
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from puna.retry import one_line

_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_ALIGN = 8


class SafetensorsReader:
    """The tensors of one or more files, by name."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Read and check the headers.

        Raises:
            ValueError: naming the file that is damaged or missing.
        """
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[Path, str, int]] = {}
        for path in paths:
            try:
                with safe_open(path, framework="pt"):
                    pass  # opening checks that the header is sound and covers the file exactly
                with path.open("rb") as file:
                    length = int.from_bytes(file.read(8), "little")
                    header = json.loads(file.read(length))
            except (SafetensorError, OSError, ValueError) as error:
                raise ValueError(f"{path} cannot be read ({one_line(error)}); get the file again") from error
            header.pop("__metadata__", None)
            for name, entry in header.items():
                if name in self.shapes:
                    raise ValueError(f"{path} holds {name}, which {self.path(name)} holds too; delete one")
                self.shapes[name] = tuple(entry["shape"])
                self._places[name] = path, entry["dtype"], 8 + length + entry["data_offsets"][0]

    def drop(self, name: str) -> None:
        """Forget a tensor that is not a weight."""
        del self.shapes[name], self._places[name]

    def split(self, name: str, rows: Mapping[str, int]) -> None:
        """Give the rows of a tensor, in order, names of their own: so many to each."""
        path, code, offset = self._places[name]
        columns, itemsize = self.shapes[name][1:], self.dtype(name).itemsize
        self.drop(name)
        for part, count in rows.items():
            self.shapes[part], self._places[part] = (count, *columns), (path, code, offset)
            offset += count * prod(columns) * itemsize

    def path(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._places[name][0]

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's precision.

        Raises:
            ValueError: when it is none of fp32, bf16, fp16.
        """
        path, code, _ = self._places[name]
        if code not in _DTYPES:
            raise ValueError(f"{path}: {name} is stored as {code}; puna reads {', '.join(_DTYPES)}")
        return _DTYPES[code]

    def rows(self, name: str, start: int, shape: tuple[int, ...]) -> Tensor:
        """`shape[0]` rows of a tensor from `start` on, in memory of their own."""
        path, _, offset = self._places[name]
        tensor = torch.empty(shape, dtype=self.dtype(name))
        view = tensor.view(torch.uint8).numpy()
        with path.open("rb") as file:
            file.seek(offset + start * prod(shape[1:]) * tensor.element_size())
            if file.readinto(view.data) != view.nbytes:
                raise ValueError(f"{path} ends within {name}; get the file again")
        return tensor


class SafetensorsWriter:
    """A file whose tensors are known by name, precision and shape, and come piece by piece."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        """Write the header. Tensors are laid out widest precision first, so that each is aligned."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._next: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        offset = 0
        for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: -item[1][0].itemsize):
            end = offset + prod(shape) * dtype.itemsize
            header[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [offset, end]}
            self._next[name], self._ends[name] = offset, end
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGN)
        self._start = 8 + len(text)
        self._file: BinaryIO = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._start + offset)  # a full disk is found out here where it can be

    def append(self, name: str, rows: Tensor) -> None:
        """Write the next rows of a tensor."""
        data = rows.contiguous().view(torch.uint8).numpy()
        self._file.seek(self._start + self._next[name])
        self._file.write(data.data)
        self._next[name] += data.nbytes
        assert self._next[name] <= self._ends[name], f"{name} has more rows than its header says"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        assert error is not None or self._next == self._ends, "a tensor was not written in full"
