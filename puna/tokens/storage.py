"""Token shards in a directory of this machine or in object storage.

In:  a directory, or the URL of one: s3://, gs://, https://, file://, whatever fsspec knows.
Out: its manifest, its tokenizer, and its shards as arrays that can be sliced.

    data/first                 memory-mapped in place
    s3://bucket/data/first     manifest.json first; of each shard its size and its header;
                               the whole shard when a window of it is first read:
                                   download ──> SHA-256 as in the manifest ──> cache/copies/DIGEST.npy

The cache is named by content: data sets and processes share it, and a shard that was truncated or changed is
refused before it is trained on.
"""

import io
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from puna.files import is_remote, local_copy, read_remote, to_path
from puna.manifest import Manifest, Output, read_manifest
from puna.tokens.tokenizer import MODEL

COMMAND = "puna shards DOCS… --tokenizer FILE --out DIR"
_HEADER_BYTES = 4096  # more than numpy's header of a one-dimensional array ever takes


class Store:
    """A directory of token shards.

    Raises:
        ValueError: when it holds no finished shards, or cannot be read.
    """

    def __init__(self, location: Path | str) -> None:
        self.name = str(location).rstrip("/")
        try:
            self.directory = to_path(self.name)
        except ValueError as error:
            raise ValueError(
                f"{self.name} is not supported ({error}); use a path, or a URL as s3://…"
            ) from error
        self.manifest: Manifest = read_manifest(self.directory, "shards", COMMAND)
        self.vocab_size: int = self.manifest.details["vocab_size"]
        self.dtype: str = self.manifest.details["dtype"]
        self.sources: dict[str, dict[str, Any]] = self.manifest.details["sources"]
        """Files, tokens, documents and bytes of each source (see write_shards)."""
        self._outputs = {item.path: item for item in self.manifest.outputs}

    @property
    def tokenizer_fingerprint(self) -> str:
        """SHA-256 of the vocabulary."""
        return next(item for item in self.manifest.inputs if item.stage == "tokenizer").fingerprint

    def tokenizer(self) -> Path:
        """The vocabulary, as a file on this machine."""
        return local_copy(self.directory / MODEL, self.tokenizer_fingerprint)

    def open(self, shard: str) -> "Shard":
        """A shard by its file name.

        Raises:
            ValueError: when it is not what the manifest says.
        """
        return Shard(self.directory, self._outputs[shard], self.dtype)


class Shard:
    """The token ids of one file: the length is known at once, the ids are mapped or copied when first read.

    Raises:
        ValueError: when the file is missing, or its size or type is not the manifest's.
    """

    def __init__(self, directory: Path, entry: Output, dtype: str) -> None:
        self._path, self._sha256 = directory / entry.path, entry.sha256
        fix = "copy it there again" if is_remote(directory) else f"delete {directory} and run: {COMMAND}"
        try:
            size, header = read_remote(self._path, self._begin)
        except FileNotFoundError as error:
            raise ValueError(f"{self._path} is missing; {fix}") from error
        if size != entry.bytes:
            raise ValueError(
                f"{self._path} is {size:,} bytes, not the {entry.bytes:,} bytes of its manifest; {fix}"
            )
        try:
            if npy.read_magic(header) != (1, 0):
                raise ValueError("another version of the format")
            shape, _, found = npy.read_array_header_1_0(header)
        except ValueError as error:
            raise ValueError(f"{self._path} is not an array of tokens ({error}); {fix}") from error
        if found != dtype or len(shape) != 1:
            raise ValueError(f"{self._path} holds {found} of shape {shape}, expected {dtype}; {fix}")
        self._length: int = shape[0]

    def _begin(self) -> tuple[int, io.BytesIO]:
        with self._path.open("rb") as file:
            return self._path.stat().st_size, io.BytesIO(file.read(_HEADER_BYTES))

    @cached_property
    def _ids(self) -> NDArray[Any]:
        ids: NDArray[Any] = np.load(local_copy(self._path, self._sha256), mmap_mode="r")
        return ids

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: slice) -> NDArray[Any]:
        return self._ids[place]
