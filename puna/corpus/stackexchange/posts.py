"""The rows of a StackExchange `Posts.xml`, plain or in a .7z, one at a time.

In:  <row Id="7" PostTypeId="2" ParentId="5" Score="11" Body="&lt;p&gt;Tamping is ..." />, a row a post.
Out: Post(id=7, kind="2", parent=5, score=11, body="<p>Tamping is ...").

Rows are cut at `<row` and read alone: a damaged one costs itself and not the 100 GB behind it. No XML
parser reads the file, so it can define no entities, and refer to no other file. An archive is unpacked as
it is read, never to memory or disk as a whole.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.entities import html5
from lzma import LZMAError
from pathlib import Path
from queue import Empty, Full, Queue
from zlib import error as ZlibError

from py7zr import Py7zIO, SevenZipFile, WriterFactory
from py7zr.exceptions import ArchiveError

from puna.corpus.document import DamagedRecord

QUESTION, ANSWER = "1", "2"
MAX_ROW_BYTES = 4 << 20  # a post is at most 30,000 characters; its HTML some times that
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


def read_posts(path: Path) -> Iterator[Post | DamagedRecord]:
    """Stream the posts of a dump. The offset of a DamagedRecord counts bytes of XML, after decompression."""
    held = b""
    offset = 0  # of the first byte held
    begun = False
    trouble = ""
    tail = b""
    with _blocks(path) as blocks:
        while True:
            try:
                block = next(blocks, b"")
            except _DAMAGE as error:  # what was unpacked before it has been read already
                block, trouble = b"", f"compressed data is damaged or cut ({error})"
            tail = (tail + block)[-64:]
            held += block
            pieces = held.split(b"<row ")
            if not begun:
                begun = len(pieces) > 1 or b"<posts" in pieces[0]
            # Before the first row, and between rows; the last may go on in the next block.
            last = pieces.pop()
            for piece in pieces:
                if item := _post(piece, path, offset):
                    yield item
                offset += len(piece) + len(b"<row ")
            held = last
            if not block:
                break
            if len(held) > MAX_ROW_BYTES:
                yield DamagedRecord(
                    str(path), offset, f"more than {MAX_ROW_BYTES} bytes without a row; skipped"
                )
                # Keep what may be the beginning of a mark.
                offset, held = offset + len(held) - 8, held[-8:]
    if held and (item := _post(held, path, offset)):
        yield item
    if not trouble and b"</posts>" not in tail:
        trouble = "the dump has no end" if begun else "not a dump of posts"
    if trouble:
        yield DamagedRecord(str(path), offset + len(held), trouble)


# ---- a row ----------------------------------------------------------------------------------------

_ROW = re.compile(
    rb'((?:[A-Za-z]+\s*=\s*(?:"[^"<]*"|\'[^\'<]*\')\s*)+)(?:/>|>\s*</row>)\s*(?:</posts>\s*)?', re.DOTALL
)
_ATTRIBUTE = re.compile(rb'([A-Za-z]+)\s*=\s*(?:"([^"]*)"|\'([^\']*)\')')
_REFERENCE = re.compile(r"&(?:#(?:x([0-9A-Fa-f]{1,6})|([0-9]{1,7}))|(lt|gt|amp|quot|apos));|&")
_USUAL = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&#xA;": "\n", "&#xD;": "\r"}
_NAMED = {name: html5[f"{name};"] for name in ("lt", "gt", "amp", "quot", "apos")}


def _post(piece: bytes, path: Path, offset: int) -> Post | DamagedRecord | None:
    """The post in what stands between two `<row`; nothing before the first."""
    if offset == 0:
        return None
    row = _attributes(piece)
    if row is None:
        return DamagedRecord(str(path), offset - len(b"<row "), "a row is not whole, or not valid XML")
    try:
        return Post(
            id=_number(row[b"Id"]),
            kind=row[b"PostTypeId"].decode(),
            parent=_number(row.get(b"ParentId", b"0")),
            score=_number(row.get(b"Score", b"0")),
            title=_decoded(row.get(b"Title", b"")),
            body=_decoded(row.get(b"Body", b"")),
            tags=_decoded(row.get(b"Tags", b"")),
            created=row.get(b"CreationDate", b"").decode(),
            is_deleted=b"DeletionDate" in row,
        )
    except KeyError as error:
        return DamagedRecord(str(path), offset - len(b"<row "), f"a row without {error.args[0].decode()}")
    except ValueError as error:  # also what is not UTF-8
        return DamagedRecord(
            str(path), offset - len(b"<row "), f"a row with a value that cannot be ({error})"
        )


def _attributes(piece: bytes) -> dict[bytes, bytes] | None:
    """A row's attributes, still encoded; None when it is not whole."""
    parts = piece.split(b'"')
    if len(parts) % 2 and parts[-1].strip() == b"/>" and b"<" not in piece:
        names = [part.strip() for part in parts[:-1:2]]
        if all(name[-1:] == b"=" and name[:-1].isalpha() for name in names):
            return {name[:-1]: value for name, value in zip(names, parts[1::2], strict=True)}
    # Otherwise written, as XML may be, or damaged.
    if not (match := _ROW.fullmatch(piece)):
        return None
    return {found[1]: found[2] or found[3] or b"" for found in _ATTRIBUTE.finditer(match[1])}


def _number(value: bytes) -> int:
    if len(value) > 18:  # more than fits in 64 bits
        raise ValueError("a number of more than 18 digits")
    return int(value)


def _decoded(value: bytes) -> str:
    """An attribute's value. Raises ValueError: not UTF-8, or an entity that is not XML's own."""
    text = value.decode()
    if "&" not in text:
        return text
    plain = text
    for reference, character in _USUAL.items():
        plain = plain.replace(reference, character)
    if plain.count("&") == plain.count("&amp;"):
        return plain.replace("&amp;", "&")
    return _REFERENCE.sub(_character, text)


def _character(match: re.Match[str]) -> str:
    if name := match[3]:
        return _NAMED[name]
    if not (match[1] or match[2]):
        raise ValueError("an entity that XML does not define")
    number = int(match[1], 16) if match[1] else int(match[2])
    if number in (9, 10, 13):
        return chr(number)
    # Control characters are not valid XML, and stand in dumps all the same.
    return (
        chr(number)
        if 32 <= number < 0xD800 or 0xE000 <= number < 0xFFFE or 0x10000 <= number <= 0x10FFFF
        else ""
    )


# ---- blocks of bytes ------------------------------------------------------------------------------


@contextmanager
def _blocks(path: Path) -> Iterator[Iterator[bytes]]:
    """The bytes of `Posts.xml`, unpacked."""
    with path.open("rb") as raw:
        if path.suffix != ".7z":
            yield iter(lambda: raw.read(_READ_BYTES), b"")
            return
        pipe = _Pipe()

        def unpack() -> None:
            try:
                with SevenZipFile(raw) as archive:
                    names = [name for name in archive.namelist() if name.rpartition("/")[2] == "Posts.xml"]
                    if not names:
                        raise ValueError("no Posts.xml in the archive")
                    archive.extract(targets=names[:1], factory=pipe)
            except BaseException as error:  # the thread that reads is to raise it
                pipe.error = error
            pipe.ended.set()

        thread = threading.Thread(target=unpack, daemon=True)
        thread.start()
        try:
            yield pipe.blocks()
        finally:
            pipe.closed = True
            thread.join()


class _Pipe(Py7zIO, WriterFactory):
    """What the unpacking thread writes, and the reading one reads: py7zr pushes, and rows are pulled."""

    def __init__(self) -> None:
        self._queue: Queue[bytes] = Queue(maxsize=4)
        self._size = 0
        self.closed = False
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def create(self, filename: str) -> Py7zIO:
        return self

    def write(self, s: bytes | bytearray) -> int:
        while not self.closed:
            try:
                self._queue.put(bytes(s), timeout=0.1)
                self._size += len(s)
                return len(s)
            except Full:
                continue
        raise EOFError("the reader has ended")

    def blocks(self) -> Iterator[bytes]:
        while True:
            ended = self.ended.is_set()  # asked first: what is written before the end is in the queue
            try:
                yield self._queue.get(timeout=0.1)
            except Empty:
                if ended:
                    break
        if self.error:
            raise self.error

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
