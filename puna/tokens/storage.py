"""Where token shards lie: a directory here, or one in object storage, read through a local cache.

In:  a directory, or the URL of one: s3://, gs://, https://, file://, whatever fsspec knows.
Out: its manifest, its tokenizer, and its shards as arrays that can be sliced.

    data/first                 memory-mapped where they lie
    s3://bucket/data/first     manifest.json first; of each shard its size and its header;
                               the shard whole, when a window of it is first asked for:
                                   download ──> SHA-256 as in the manifest ──> cache/shards/DIGEST.npy

The cache is named by content: a file in it is right whatever happens to its origin, several data sets and
processes share it, and a shard that was cut or changed is refused and not trained on.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from puna.files import MANIFEST, atomic_file, cache_dir, read_manifest, sha256_file
from puna.tokens.tokenizer import MODEL

COMMAND = "puna shards DOCS… --tokenizer FILE --out DIR"
_HEADER_BYTES = 4096  # more than numpy's header of a one-dimensional array ever takes
_BLOCK_BYTES = 1 << 20
_WAITS = (1.0, 4.0)  # seconds between attempts

T = TypeVar("T")


class Shard(Protocol):
    """What a stream reads: ids by place."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice) -> NDArray[Any]: ...


class Store(Protocol):
    """A directory of token shards."""

    name: str
    manifest: dict[str, Any]

    def tokenizer(self) -> Path:
        """The vocabulary, as a file on this machine."""

    def open(self, shard: str) -> Shard:
        """A shard, which must be as the manifest says."""


def open_store(location: Path | str, cache: Path | None = None) -> Store:
    """The shards at a path or URL; `cache` is where what is remote is kept (cache_dir() when not given).

    Raises:
        ValueError: when there are no finished shards, or the place cannot be read.
    """
    if "://" in str(location):
        return RemoteStore(str(location), cache or cache_dir() / "shards")
    return LocalStore(Path(location))


class LocalStore:
    """Shards in a directory of this machine."""

    def __init__(self, directory: Path) -> None:
        self.name = str(directory)
        self.manifest = read_manifest(directory, "shards", COMMAND)
        self._directory = directory

    def tokenizer(self) -> Path:
        return self._directory / MODEL

    def open(self, shard: str) -> NDArray[Any]:
        path = self._directory / shard
        held = path.stat().st_size if path.is_file() else None
        _require_size(self, shard, held, "delete {0} and run: " + COMMAND)
        array: NDArray[Any] = np.load(path, mmap_mode="r")
        _require_form(self, shard, array.dtype, array.ndim)
        return array


class RemoteStore:
    """Shards behind a URL."""

    def __init__(self, url: str, cache: Path) -> None:
        self.name = url.rstrip("/")
        self._cache = cache
        self._files, self._root = self._attempt(self._connect)
        try:
            data = self._attempt(lambda: self._files.cat_file(f"{self._root}/{MANIFEST}"))
            self.manifest: dict[str, Any] = json.loads(data)
        except FileNotFoundError as error:
            raise ValueError(
                f"{self.name} holds no finished shards (no {MANIFEST}); make them with: {COMMAND}, "
                f"and copy the whole directory there"
            ) from error
        except ValueError as error:
            raise ValueError(
                f"{self.name}/{MANIFEST} cannot be read ({error}); copy it there again"
            ) from error
        if self.manifest.get("stage") != "shards":
            stage = self.manifest.get("stage")
            raise ValueError(f"{self.name} holds {stage!r}, not 'shards'; make them with: {COMMAND}")

    def tokenizer(self) -> Path:
        data = self._attempt(lambda: self._files.cat_file(f"{self._root}/{MODEL}"))
        path = self._cache / f"{hashlib.sha256(data).hexdigest()}.model"
        if not path.is_file():
            with atomic_file(path) as temporary:
                temporary.write_bytes(data)
        return path

    def open(self, shard: str) -> "RemoteShard":
        return RemoteShard(self, shard)

    def size(self, shard: str) -> int | None:
        """The bytes of a remote file; None when it is not there."""
        try:
            return int(self._attempt(lambda: self._files.info(f"{self._root}/{shard}"))["size"])
        except FileNotFoundError:
            return None

    def begin(self, shard: str) -> bytes:
        """The first bytes of a remote file."""
        path = f"{self._root}/{shard}"
        # A server that knows no ranges sends all of it.
        data: bytes = self._attempt(lambda: self._files.cat_file(path, start=0, end=_HEADER_BYTES))
        return data[:_HEADER_BYTES]

    def fetch(self, shard: str) -> Path:
        """The whole of a remote file, in the cache, checked."""
        digest = _entry(self, shard)["sha256"]
        path = self._cache / f"{digest}.npy"
        if not path.is_file():
            self._attempt(lambda: self._download(shard, path))
        return path

    def _download(self, shard: str, path: Path) -> None:
        with atomic_file(path) as temporary:
            with self._files.open(f"{self._root}/{shard}", "rb") as remote, temporary.open("wb") as file:
                while block := remote.read(_BLOCK_BYTES):
                    file.write(block)
            # Before the file has its name, and so before anything can train on it.
            if (found := sha256_file(temporary)) != path.stem:
                raise ValueError(
                    f"{self.name}/{shard} has SHA-256 {found[:12]}... and not {path.stem[:12]}... as its "
                    f"manifest says: it was changed or cut; copy it there again"
                )

    def _connect(self) -> tuple[Any, str]:
        import fsspec

        try:
            files, root = fsspec.core.url_to_fs(self.name)
        except ValueError as error:
            raise ValueError(
                f"{self.name} is not understood ({error}); give a URL as s3://… or a path"
            ) from error
        return files, root.rstrip("/")

    def _attempt(self, action: Callable[[], T]) -> T:
        """Do it again where it may help; say what failed where it does not.

        Storage libraries raise errors of many kinds of their own, so anything but our own and "not found" is
        taken for the place's.
        """
        for wait in (*_WAITS, None):
            try:
                return action()
            except (FileNotFoundError, ValueError):
                raise
            except ImportError as error:
                raise ValueError(
                    f"{self.name} needs another package ({error}); install it with pip"
                ) from error
            except Exception as error:
                trouble = " ".join(str(error).split()) or type(error).__name__
                if wait is None:
                    raise ValueError(
                        f"{self.name} cannot be read ({trouble}); check the URL, the credentials and the "
                        f"network, then run the same command again"
                    ) from error
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


class RemoteShard:
    """A remote shard: its length at once, its ids from the cache once they are asked for."""

    def __init__(self, store: RemoteStore, shard: str) -> None:
        self._store, self._shard = store, shard
        _require_size(store, shard, store.size(shard), "copy it there again")
        header = io.BytesIO(store.begin(shard))
        try:
            assert npy.read_magic(header) == (1, 0)
            shape, _, dtype = npy.read_array_header_1_0(header)
        except (AssertionError, ValueError) as error:
            raise ValueError(f"{store.name}/{shard} is no array of tokens; copy it there again") from error
        _require_form(store, shard, dtype, len(shape))
        self._length = shape[0]
        self._array: NDArray[Any] | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: slice) -> NDArray[Any]:
        if self._array is None:
            self._array = np.load(self._store.fetch(self._shard), mmap_mode="r")
        return self._array[place]


def _entry(store: Store, shard: str) -> Mapping[str, Any]:
    entry: Mapping[str, Any] = next(item for item in store.manifest["outputs"] if item["path"] == shard)
    return entry


def _require_size(store: Store, shard: str, held: int | None, mend: str) -> None:
    size = _entry(store, shard)["bytes"]
    if held != size:
        found = "missing" if held is None else f"{held:,} bytes"
        raise ValueError(
            f"{store.name}/{shard} is {found}, not the {size:,} bytes of its manifest; "
            f"{mend.format(store.name)}"
        )


def _require_form(store: Store, shard: str, dtype: Any, dimensions: int) -> None:
    if dtype != store.manifest["dtype"] or dimensions != 1:
        raise ValueError(
            f"{store.name}/{shard} holds {dtype}, not {store.manifest['dtype']}; "
            f"delete {store.name} and run: {COMMAND}"
        )
