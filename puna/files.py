"""Files that are whole or absent: atomic writes, digests, JSON, object storage.

Every stage reads a directory and writes a directory. What it wrote counts only once `manifest.json`
is there, and that is written last, in one step:

    runs/demo/documents/wikipedia/
        00000-enwiki.parquet        written under a temporary name, then renamed
        00000-enwiki.parquet.json   the shard's record: digest, counts, damaged records
        manifest.json               stage, fingerprint, inputs, configuration, code version, counts
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from puna import __version__
from puna.retry import TryAgain, one_line, retry

MANIFEST = "manifest.json"
_READ_BYTES = 1 << 20
_WAITS = (1.0, 4.0)  # seconds between attempts to read from object storage
# Folders and modules that decide the output of a wing beside its own source.
_DECIDING = {
    "corpus": ("stages",),
    "tokens": ("stages", "added_tokens", "gguf"),
    "train": ("kernels", "model"),
    "formats": ("model", "added_tokens", "gguf"),
}


def fingerprint(value: object) -> str:
    """16 hexadecimal digits that name a JSON value: equal values have equal fingerprints."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


T = TypeVar("T")


def read_table(path: Path, by_line: bool = False) -> dict[str, tuple[str, ...]]:
    """Key -> words, or whole lines, from lines `key: words` of a text file.

    `#` begins a comment; the words of all lines with the same key are joined.
    """
    table: dict[str, tuple[str, ...]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, words = line.partition(": ")
        if not line.startswith("#"):
            table[key] = (*table.get(key, ()), *([words] if by_line else words.split()))
    return table


def sha256_file(path: Path, start: int = 0, stop: int | None = None) -> str:
    """The SHA-256 of a file's bytes, or of those from `start` to `stop`, in hexadecimal, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(_READ_BYTES if stop is None else min(_READ_BYTES, stop - file.tell())):
            digest.update(block)
    return digest.hexdigest()


def to_path(location: str | Path) -> Path:
    """A local path, or for a URL (s3://, gs://, …) one in object storage with the methods of a Path."""
    if "://" not in str(location):
        return Path(location)
    from upath import UPath  # fsspec's file systems behind pathlib's interface

    return cast(Path, UPath(location))


def is_remote(path: Path) -> bool:
    """Whether the path lies in object storage."""
    return not isinstance(path, Path)


def read_remote(path: Path, read: Callable[[], T]) -> T:
    """Call `read`, which reads `path`; in object storage, retry what may pass.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: naming the path and the cause, when object storage cannot be read.
    """
    if not is_remote(path):
        return read()

    def attempt() -> T:
        try:
            return read()
        except (FileNotFoundError, ValueError):
            raise
        except ImportError as error:
            raise ValueError(f"{path} needs another package ({error}); install it with pip") from error
        except Exception as error:  # storage libraries have exceptions of many kinds of their own
            raise TryAgain(one_line(error)) from error

    try:
        return retry(attempt, _WAITS)
    except TryAgain as error:
        raise ValueError(
            f"{path} cannot be read ({error}); check the URL, the credentials and the network, "
            "then run the same command again"
        ) from error


def local_copy(path: Path, sha256: str) -> Path:
    """The file itself, or a copy of one in object storage, which is kept in the cache under its digest.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be read, or its SHA-256 is another.
    """
    if not is_remote(path):
        return path
    copy = cache_dir() / "copies" / f"{sha256}{path.suffix}"

    def download() -> None:
        with atomic_file(copy) as temporary:
            with path.open("rb") as source, temporary.open("wb") as file:
                shutil.copyfileobj(source, file, _READ_BYTES)
            # Checked before the file has its name, and so before anything can use it.
            if (found := sha256_file(temporary)) != sha256:
                raise ValueError(
                    f"{path} has SHA-256 {found[:12]}..., expected {sha256[:12]}...: "
                    "it was changed or truncated; copy it there again"
                )

    if not copy.is_file():
        read_remote(path, download)
    return copy


@cache
def code_version(*wings: str) -> str:
    """`0.1.0+1a2b3c4d`: the release, and a digest of the source of these folders of the package.

    A stage names the wing that decides its output: a change elsewhere does not void what it has begun.
    """
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for name in dict.fromkeys(name for wing in wings for name in (wing, *_DECIDING.get(wing, ()))):
        kinds = (".py", ".cpp", ".h", ".txt")
        files = sorted(path for path in (package / name).rglob("*") if path.suffix in kinds)
        for path in files or [package / f"{name}.py"]:
            digest.update(str(path.relative_to(package)).encode())
            digest.update(path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:8]}"


def cache_dir() -> Path:
    """The folder of downloads and compiled kernels: $PUNA_CACHE, or `puna` in the user's cache folder.

    Raises:
        ValueError: there is none, because the user has no home directory.
    """
    if chosen := os.environ.get("PUNA_CACHE"):
        return Path(chosen).expanduser()
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "puna"
    try:
        home = Path.home()
    except RuntimeError:  # a container's user without a name
        raise ValueError(
            "this user has no home directory, and HOME is not set; set PUNA_CACHE to a folder for downloads "
            "and compiled kernels"
        ) from None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "puna" / "cache"
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "puna"


def _sync_directory(path: Path) -> None:
    # A rename is only durable once the directory that holds the name is on disk.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    # Random, because process numbers repeat on machines that share a disk.
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


_FULL = {
    errno.ENOSPC: os.strerror(errno.ENOSPC),
    getattr(errno, "EDQUOT", -1): "the disk quota is used up",
    errno.EFBIG: "the file exceeds this process's limit (ulimit -f)",
}


class DiskFullError(OSError):
    """No room for a file, which it names."""


def disk_full(error: BaseException) -> int | None:
    """The errno, if an error says that there is no room on a disk; libraries have errors of their own."""
    if isinstance(error, OSError) and error.errno:
        return error.errno if error.errno in _FULL else None
    if re.fullmatch(r"\d+ requested and \d+ written", str(error)):  # numpy's, of tofile
        return errno.ENOSPC
    return next((code for code in _FULL if code > 0 and os.strerror(code) in str(error)), None)


@contextmanager
def named_when_full(path: Path) -> Iterator[None]:
    """Make the error of a full disk name what was being written.

    Raises:
        DiskFullError: naming `path`.
    """
    try:
        yield
    except Exception as error:
        code = disk_full(error)
        if code is None or isinstance(error, DiskFullError):  # named already
            raise
        raise DiskFullError(code, _FULL[code], str(path)) from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on any error deleted.

    In object storage, where writes are atomic, the temporary file is on this machine.

    Raises:
        OSError: naming `path`, for example when the disk is full.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="puna-") as here:
            temporary = Path(here) / path.name
            yield temporary
            path.fs.put_file(str(temporary), path.path)  # type: ignore[attr-defined]
        return
    temporary = _temporary(path)
    try:
        with named_when_full(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success it is renamed to `path`, on any error deleted.

    Raises:
        OSError: naming `path`, for example when the disk is full.
    """
    temporary = _temporary(path)
    try:
        with named_when_full(path):
            temporary.mkdir(parents=True)
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
    """Delete temporary files that a killed process left in `directory`, of names that begin with `name`."""
    if is_remote(directory):
        return  # it never holds temporary files
    for partial in directory.glob(f".{name}*.partial"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def write_file(path: Path, data: str | bytes) -> None:
    """Write a whole file atomically; text as UTF-8.

    Raises:
        OSError: naming `path`, for example when the disk is full.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, fix: str = "delete it and run its stage again") -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: naming the file, and how to fix it, when it is not JSON.
    """
    data = read_remote(path, path.read_bytes)
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # malformed JSON or UTF-8; nested without end
        raise ValueError(f"{path} is not valid JSON ({one_line(error)}); {fix}") from error


def read_object(path: Path, optional: bool = False) -> dict[str, Any]:
    """Read another program's JSON file that holds an object; empty when an `optional` file is missing.

    Raises:
        ValueError: naming the file, when it is missing, not JSON, or holds something else.
    """
    fix = "get the file again"
    try:
        value = read_json(path, fix)
    except FileNotFoundError as error:
        if optional:
            return {}
        raise ValueError(f"{path} is missing; it belongs beside the weights") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a JSON object; {fix}")
    return value


def read_json_lines(path: Path) -> list[Any]:
    """The records of a JSON-lines file. Split at \\n alone: texts may hold other line separators."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def human_number(value: float) -> str:
    """`0.0125`, `36.3`, `2,580`: three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


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
