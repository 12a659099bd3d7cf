"""The members of source archives, streamed: zip and wheels, tar in any compression.

In:  an open archive, and a function that selects members.
Out: a Member for each regular file, in the archive's order; its bytes only if it is selected.

Nothing is unpacked to disk, links are not followed, and no member is read beyond a limit, whatever size its
header claims. A damaged tar gives its intact members before the damage is raised; a zip without its central
directory is damaged as a whole.
"""

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

PATTERNS = ("*.whl", "*.zip", "*.tar.gz", "*.tgz", "*.tar.bz2", "*.tar.xz", "*.tar")

DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,  # a zip method that Python lacks
    RuntimeError,  # an encrypted zip
    ValueError,  # offsets that point outside the file
)

# Whether a member's bytes are needed, from its path and size.
Wanted = Callable[[str, int], bool]


@dataclass(frozen=True)
class Member:
    """One regular file. `offset` is its start in the archive (in a tar: after decompression)."""

    path: str
    size: int
    offset: int
    data: bytes = b""
    damage: str = ""


def members(name: str, raw: BinaryIO, is_wanted: Wanted, most: int) -> Iterator[Member]:
    """The regular files of an archive; at most `most` + 1 bytes of each selected one are read.

    Raises:
        DAMAGE: after the intact members, when the archive is damaged or truncated.
    """
    raw.seek(0)
    if name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(raw) as archive:
            yield from _zip_members(archive, is_wanted, most)
    else:
        yield from _tar_members(raw, is_wanted, most)


def _zip_members(archive: zipfile.ZipFile, is_wanted: Wanted, most: int) -> Iterator[Member]:
    for info in archive.infolist():
        if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
            continue
        name, size, offset = _posix(info.filename), info.file_size, info.header_offset
        if not is_wanted(name, size):
            yield Member(name, size, offset)
            continue
        try:
            with archive.open(info) as file:  # bounded: the size in a header may be wrong
                yield Member(name, size, offset, file.read(most + 1))
        except DAMAGE as error:
            yield Member(name, size, offset, damage=f"member is damaged ({error})")


def _tar_members(raw: BinaryIO, is_wanted: Wanted, most: int) -> Iterator[Member]:
    with tarfile.open(fileobj=raw) as archive:
        for info in archive:
            # Otherwise tarfile keeps the headers of all members in memory.
            archive.members = []  # type: ignore[attr-defined]
            if not info.isreg():
                continue
            name = _posix(info.name)
            file = archive.extractfile(info) if is_wanted(name, info.size) else None
            yield Member(name, info.size, info.offset, file.read(most + 1) if file else b"")
        # A damaged header ends the loop as an end mark does, so check what ended it, and read to the end of
        # the file, where the checksum is.
        stream = archive.fileobj
        assert stream is not None
        stream.seek(archive.offset)
        if any(stream.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError("a member's header is damaged")
        while stream.read(1 << 16):
            pass


def _posix(name: str) -> str:
    path = str(PurePosixPath(name.lstrip("/")))
    return path + "/" if name.endswith("/") else path
