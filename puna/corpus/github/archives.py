"""The members of source archives, streamed: zip and wheels, tar in any compression.

In:  an opened archive, and which members are wanted.
Out: a Member for each regular file, in the archive's order; its bytes only where they are wanted.

Nothing is unpacked to disk, links are not followed, and no member is read beyond a limit, whatever size its
header claims. What is whole in a damaged archive is given before the damage is raised; a zip whose directory
is lost is read by the headers before each member.
"""

import lzma
import stat
import struct
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
    """One regular file. `offset` is where it begins in the archive (of a tar: unpacked)."""

    path: str
    size: int
    offset: int
    data: bytes = b""
    damage: str = ""


def members(name: str, raw: BinaryIO, is_wanted: Wanted, most: int) -> Iterator[Member]:
    """The regular files of the archive of this name; of a wanted one `most` + 1 bytes at most are read.

    Raises:
        DAMAGE: after what is whole, when the archive is damaged or cut.
    """
    raw.seek(0)
    if name.endswith((".whl", ".zip")):
        try:
            with zipfile.ZipFile(raw) as archive:
                yield from _zip_members(archive, is_wanted, most)
            return
        except zipfile.BadZipFile as error:
            trouble = error
        yield from _local_members(raw, is_wanted, most)
        raise trouble
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
            with archive.open(info) as file:  # bounded: a header may lie about the size
                yield Member(name, size, offset, file.read(most + 1))
        except DAMAGE as error:
            yield Member(name, size, offset, damage=f"member is damaged ({error})")


_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8
_READ_BYTES = 1 << 16


def _local_members(raw: BinaryIO, is_wanted: Wanted, most: int) -> Iterator[Member]:
    """A zip's members by the header before each, as far as they are whole. Only checked contents count."""
    offset = 0
    while True:
        raw.seek(offset)
        header = raw.read(_LOCAL.size)
        if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04" or header[26:28] == b"\0\0":
            return
        _, _, flags, method, _, _, checksum, packed, size, name_size, extra_size = _LOCAL.unpack(header)
        name = _posix(raw.read(name_size).decode("utf-8", "replace"))
        start = offset + _LOCAL.size + name_size + extra_size
        # With flag 8 sizes and checksum come after the data, and only the data says where it ends.
        if flags & 0x09 and (flags & 1 or method != _DEFLATED):
            return
        if flags & 8 or method == _DEFLATED:
            raw.seek(start)
            found = _inflated(raw, most)
            if found is None:
                return
            data, packed_here, size_here, checksum_here = found
            if flags & 8:
                raw.seek(start + packed_here)
                tail = raw.read(16)
                signed = tail[:4] == b"PK\x07\x08"
                fields = tail[4:16] if signed else tail[:12]
                if len(fields) < 12:
                    return
                checksum, packed, size = struct.unpack("<3L", fields)
                end = start + packed_here + (16 if signed else 12)
            else:
                end = start + packed
            whole = (checksum_here, packed_here, size_here) == (checksum, packed, size)
        elif method == _STORED:
            raw.seek(start)
            data = raw.read(min(size, most + 1))
            end = start + size
            whole = len(data) == min(size, most + 1) and (size > most or zlib.crc32(data) == checksum)
        else:
            return
        if whole and not name.endswith("/"):
            yield Member(name, size, offset, data if is_wanted(name, size) else b"")
        elif not whole:
            yield Member(name, size, offset, damage="member is damaged")
        offset = end


def _inflated(raw: BinaryIO, most: int) -> tuple[bytes, int, int, int] | None:
    """(the first `most` + 1 bytes, packed size, size, checksum) of deflated data; None when it is cut."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    data, packed, size, checksum = b"", 0, 0, 0
    while not unpacker.eof:
        block = raw.read(_READ_BYTES)
        if not block:
            return None
        packed += len(block)
        try:
            while block and not unpacker.eof:
                unpacked = unpacker.decompress(block, 1 << 20)
                size, checksum = size + len(unpacked), zlib.crc32(unpacked, checksum)
                data += unpacked[: most + 1 - len(data)]
                block = unpacker.unconsumed_tail
        except zlib.error:
            return None
    return data, packed - len(unpacker.unused_data), size, checksum


def _tar_members(raw: BinaryIO, is_wanted: Wanted, most: int) -> Iterator[Member]:
    with tarfile.open(fileobj=raw) as archive:
        for info in archive:
            # Else the headers of all members stay in memory.
            archive.members = []  # type: ignore[attr-defined]
            if not info.isreg():
                continue
            name = _posix(info.name)
            file = archive.extractfile(info) if is_wanted(name, info.size) else None
            yield Member(name, info.size, info.offset, file.read(most + 1) if file else b"")
        # A damaged header ends the loop as an end mark does, so look at what ended it,
        # and read on to the end, where the checksum is.
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
