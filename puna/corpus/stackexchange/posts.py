"""The rows of a StackExchange `Posts.xml`, plain or in a .7z, one at a time.

In:  <row Id="7" PostTypeId="2" ParentId="5" Score="11" Body="&lt;p&gt;Tamping is ..." />, one per post.
Out: Post(id=7, kind="2", parent=5, score=11, body="<p>Tamping is ...").

Rows are cut at `<row` and each is parsed alone: only the damaged row is lost, not the 100 GB after it, and a
dump can neither define entities nor refer to other files. An archive is decompressed while it is read, never
as a whole to memory or disk.
"""

import os
import re
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import BinaryIO
from zlib import error as ZlibError

from py7zr import Py7zIO, SevenZipFile, WriterFactory
from py7zr.exceptions import ArchiveError

from puna.corpus.document import DamagedRecord

QUESTION, ANSWER = "1", "2"
MAX_ROW_BYTES = 4 << 20  # a post has at most 30,000 characters; its HTML a few times that
_READ_BYTES = 1 << 20
_DAMAGE = (
    ArchiveError,
    LZMAError,
    ZlibError,
    EOFError,
    OSError,
    ValueError,
    MemoryError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Post:
    """A row's attributes that are used here. `parent` is an answer's question; `body` is HTML."""

    id: int
    kind: str
    parent: int
    score: int
    title: str
    body: str
    tags: str
    created: str
    is_deleted: bool


def read_posts(path: Path, span: tuple[int, int] | None = None) -> Iterator[Post | DamagedRecord]:
    """Stream the posts of a dump, or those whose rows begin in a span of its bytes.

    The offset of a DamagedRecord counts bytes of XML, after decompression.
    """
    held = b""
    offset, stop = span or (0, None)  # offset of the first buffered byte
    begun, is_row = offset > 0, False  # whether rows have begun, and whether the buffer begins with one
    trouble = ""
    tail = b""
    with _blocks(path, offset) as blocks:
        while True:
            try:
                block = next(blocks, b"")
            except _DAMAGE as error:  # the data before it has been read already
                block, trouble = b"", f"compressed data is damaged or cut ({error})"
            tail = (tail + block)[-64:]
            held += block
            pieces = held.split(b"<row ")
            if not begun:
                begun = len(pieces) > 1 or b"<posts" in pieces[0]
            # The first piece comes before any row; the last may continue in the next block.
            last = pieces.pop()
            for piece in pieces:
                if is_row:
                    yield _post(piece, path, offset - len(b"<row "))
                offset += len(piece) + len(b"<row ")
                is_row = True
                if stop is not None and offset - len(b"<row ") >= stop:
                    return
            held = last
            if not block:
                break
            if len(held) > MAX_ROW_BYTES:
                yield DamagedRecord(
                    str(path), offset, f"more than {MAX_ROW_BYTES} bytes without a row; skipped"
                )
                # Keep bytes that may be the beginning of `<row `.
                offset, held = offset + len(held) - 8, held[-8:]
    if held and is_row:
        yield _post(held, path, offset - len(b"<row "))
    if not trouble and b"</posts>" not in tail:
        trouble = "the dump has no end" if begun else "not a dump of posts"
    if trouble:
        yield DamagedRecord(str(path), offset + len(held), trouble)


# ---- a row ----------------------------------------------------------------------------------------

_REFERENCE = re.compile(rb"&#(?:x([0-9A-Fa-f]{1,6})|([0-9]{1,7}));")


def _post(piece: bytes, path: Path, offset: int) -> Post | DamagedRecord:
    """The post in the text between two `<row`."""
    try:
        piece = piece.rstrip().removesuffix(b"</posts>")
        row = _usual_attributes(piece) or _attributes(b"<row " + piece)
        return Post(
            id=_number(row["Id"]),
            kind=row["PostTypeId"],
            parent=_number(row.get("ParentId", "0")),
            score=_number(row.get("Score", "0")),
            title=row.get("Title", ""),
            body=row.get("Body", ""),
            tags=row.get("Tags", ""),
            created=row.get("CreationDate", ""),
            is_deleted="DeletionDate" in row,
        )
    except ElementTree.ParseError as error:
        return DamagedRecord(str(path), offset, f"a row is truncated or not valid XML ({error})")
    except KeyError as error:
        return DamagedRecord(str(path), offset, f"a row without {error.args[0]}")
    except ValueError as error:
        return DamagedRecord(str(path), offset, f"a row with an invalid number ({error})")


_NAMES = re.compile(r"[A-Za-z]+=(?: [A-Za-z]+=)*")
_ENTITIES = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&#xA;": "\n", "&#xD;": "\r"}


def _usual_attributes(piece: bytes) -> dict[str, str] | None:
    """A row's attributes in the form that dumps have, faster than by a parser; None in any other form."""
    try:
        text = piece.rstrip().decode()
    except UnicodeDecodeError:
        return None
    *parts, end = text.split('"')
    if end.strip() != "/>" or len(parts) % 2 or "<" in text or not text.isprintable():
        return None
    names = "".join(parts[::2])
    if not _NAMES.fullmatch(names):
        return None
    row = dict(zip(names[:-1].split("= "), parts[1::2], strict=True))
    for name, value in row.items():
        if "&" in value:
            for entity, character in _ENTITIES.items():
                value = value.replace(entity, character)
            if value.count("&") != value.count("&amp;"):
                return None
            row[name] = value.replace("&amp;", "&")
    return row if 2 * len(row) == len(parts) else None


def _attributes(row: bytes) -> dict[str, str]:
    """A row's attributes. Control characters, which are not valid XML, occur in dumps and are dropped."""
    try:
        return ElementTree.fromstring(row).attrib
    except ElementTree.ParseError:
        return ElementTree.fromstring(_REFERENCE.sub(_if_valid, row)).attrib


def _if_valid(reference: re.Match[bytes]) -> bytes:
    number = int(reference[1], 16) if reference[1] else int(reference[2])
    valid = number in (9, 10, 13) or 32 <= number < 0xD800 or 0xE000 <= number < 0xFFFE
    return reference[0] if valid or 0x10000 <= number <= 0x10FFFF else b""


def _number(value: str) -> int:
    if len(value) > 18:  # more than fits in 64 bits
        raise ValueError("a number of more than 18 digits")
    return int(value)


# ---- blocks of bytes ------------------------------------------------------------------------------


@contextmanager
def _blocks(path: Path, start: int) -> Iterator[Iterator[bytes]]:
    """The bytes of `Posts.xml`, unpacked; without compression, those from `start` on."""
    with path.open("rb") as raw:
        if path.suffix != ".7z":
            raw.seek(start)
            yield iter(lambda: raw.read(_READ_BYTES), b"")
            return
        ends = os.pipe()
        errors: list[BaseException] = []

        def unpack() -> None:
            try:
                with os.fdopen(ends[1], "wb") as sink, SevenZipFile(raw) as archive:
                    names = [name for name in archive.namelist() if name.rpartition("/")[2] == "Posts.xml"]
                    if not names:
                        raise ValueError("no Posts.xml in the archive")
                    archive.extract(targets=names[:1], factory=_Sink(sink))
            except BaseException as error:  # the reading thread raises it
                errors.append(error)

        def blocks(source: BinaryIO) -> Iterator[bytes]:
            yield from iter(lambda: source.read(_READ_BYTES), b"")
            if errors:
                raise errors[0]

        thread = threading.Thread(target=unpack, daemon=True)
        thread.start()
        try:
            with os.fdopen(ends[0], "rb") as source:  # closed early, it ends the other thread
                yield blocks(source)
        finally:
            thread.join()


class _Sink(Py7zIO, WriterFactory):
    """Passes what py7zr unpacks on to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, 0

    def create(self, filename: str) -> Py7zIO:
        return self

    def write(self, s: bytes | bytearray) -> int:
        self._size += len(s)
        return self._file.write(s)

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def size(self) -> int:
        return self._size
