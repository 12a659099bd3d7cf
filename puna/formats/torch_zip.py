"""A file that torch.load reads, written a tensor at a time: torch.save wants them all in memory.

    consolidated.00.pth (zip, nothing compressed)
        consolidated.00/data/0, data/1 …    the tensors' bytes, each starting at a multiple of 64
        consolidated.00/data.pkl            {name: rebuild(storage "0", 0, shape, strides), …}
        consolidated.00/byteorder, version

The pickle names the same few globals as torch's own, so that `weights_only` takes it.
"""

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

_STORAGES = {
    torch.float32: torch.FloatStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.float16: torch.HalfStorage,
}
_ALIGN = 64
_LOCAL_HEADER, _ZIP64 = 30, 20  # bytes of a zip entry's header, and of the field for sizes over 4 GB


class _Stored:
    """A tensor whose bytes are in the zip already."""

    def __init__(self, key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        self.key, self.dtype, self.shape = key, dtype, shape

    def __reduce__(self) -> tuple[Any, ...]:
        strides = tuple(prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        return _rebuild_tensor_v2, (_Storage(self), 0, self.shape, strides, False, OrderedDict())


class _Storage:
    def __init__(self, tensor: _Stored) -> None:
        self.tensor = tensor


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, _Storage):
            tensor = value.tensor
            return "storage", _STORAGES[tensor.dtype], tensor.key, "cpu", prod(tensor.shape)
        return None


class TorchZipWriter:
    """Write tensors one by one, then `finish`; `close` in any case."""

    def __init__(self, path: Path) -> None:
        self._folder = path.stem
        self._file = path.open("wb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._tensors: dict[str, _Stored] = {}

    def write(self, name: str, tensor: Tensor) -> None:
        """Add a tensor's bytes."""
        stored = _Stored(str(len(self._tensors)), tensor.dtype, tuple(tensor.shape))
        info = zipfile.ZipInfo(f"{self._folder}/data/{stored.key}")
        header = self._file.tell() + _LOCAL_HEADER + len(info.filename) + _ZIP64 + 4
        padding = -header % _ALIGN
        info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
        with self._zip.open(info, "w", force_zip64=True) as entry:
            entry.write(tensor.contiguous().view(torch.uint8).numpy().data)
        self._tensors[name] = stored

    def finish(self) -> None:
        """Write the names, and the zip's directory."""
        buffer = io.BytesIO()
        _Pickler(buffer, protocol=2).dump(self._tensors)
        self._zip.writestr(f"{self._folder}/data.pkl", buffer.getvalue())
        self._zip.writestr(f"{self._folder}/byteorder", sys.byteorder)
        self._zip.writestr(f"{self._folder}/version", "3\n")
        self._zip.close()

    def close(self) -> None:
        """Close the file; of one that could not be written, without an error of its own."""
        with suppress(OSError, ValueError):  # ValueError: an entry is still open
            self._zip.close()
        self._zip.fp = None  # else it is closed again when it is collected
        with suppress(OSError):
            self._file.close()
