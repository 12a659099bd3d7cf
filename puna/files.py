"""Files that are whole or absent: atomic writes, digests, manifests.

Every stage reads a directory and writes a directory. What it wrote counts only once `manifest.json`
is there, and that is written last, in one step:

    runs/demo/documents/wikipedia/
        00000-enwiki.parquet        written under a temporary name, then renamed
        00000-enwiki.parquet.json   the shard's record: digest, counts, what was bad
        manifest.json               stage, fingerprint, inputs, configuration, code version, counts
"""

import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

from puna import __version__

MANIFEST = "manifest.json"
_READ_BYTES = 1 << 20


def fingerprint(value: object) -> str:
    """A 16-digit hexadecimal name for any JSON value: equal values, equal names."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def to_path(location: str | Path) -> Path:
    """A path here, or with `://` one in object storage, which does what a Path does (s3://, gs://, memory://)."""
    if "://" not in str(location):
        return Path(location)
    from upath import UPath  # fsspec's file systems behind pathlib's interface

    return cast(Path, UPath(location))


def is_remote(path: Path) -> bool:
    """Whether the path lies in object storage."""
    return not isinstance(path, Path)


@cache
def code_version() -> str:
    """`0.1.0+1a2b3c4d`: the release, and a digest of the package's source as it is on disk."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(path for ending in ("py", "cpp", "h") for path in package.rglob(f"*.{ending}")):
        digest.update(str(path.relative_to(package)).encode())
        digest.update(path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:8]}"


def cache_dir() -> Path:
    """Where downloads and compiled kernels are kept: $PUNA_CACHE, or `puna` in the cache folder."""
    if chosen := os.environ.get("PUNA_CACHE"):
        return Path(chosen).expanduser()
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "puna"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "puna" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "puna"
    return Path.home() / ".cache" / "puna"


def _sync_directory(path: Path) -> None:
    # A rename is only durable once the directory that holds the name is on disk.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    # Unlike any other's: process numbers repeat on the machines that share a disk.
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any error it is gone.

    In object storage, where a write is whole or absent of itself, the temporary file is on this machine.

    Raises:
        OSError: naming `path`, for example when the disk is full.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="puna-") as here:
            temporary = Path(here) / path.name
            yield temporary
            path.fs.put_file(str(temporary), path.path)  # type: ignore[attr-defined]
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success it becomes `path`, on any error it is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        _sync_directory(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        _sync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_partials(directory: Path, name: str = "") -> None:
    """Delete the temporary files of names that begin with `name`, which a killed run left in `directory`."""
    if is_remote(directory):
        return  # temporary files are never there
    for partial in directory.glob(f".{name}*.partial"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: naming the file, when it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and run its stage again") from error


def read_json_lines(path: Path) -> list[Any]:
    """The records of a JSON-lines file. Split at \\n alone: texts may hold other line separators."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def read_manifest(directory: Path, stage: str, command: str) -> dict[str, Any]:
    """The manifest of a finished `stage` in `directory`; `command` is what makes one, for the error.

    Raises:
        ValueError: when there is none, or it is another stage's.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise ValueError(f"{directory} holds no finished {stage} (no {MANIFEST}); make it with: {command}")
    manifest: dict[str, Any] = read_json(path)
    if manifest.get("stage") != stage:
        raise ValueError(
            f"{directory} holds {manifest.get('stage')!r}, not {stage!r}; make it with: {command}"
        )
    return manifest


def human_bytes(count: float) -> str:
    """`12.3 MB`: a byte count in the largest sensible decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """`3 min 20 s`: a duration in the largest sensible units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days = hours / 24
    return f"{days:.1f} days" if days < 730 else f"{days / 365.25:,.0f} years"
