"""WARC and WET files: their complete records, and the reason for each damaged one.

In:  .warc, .warc.gz, .wet.gz, .warc.wet.txt (plain or gzip, detected by the first bytes, not by the name).
Out: WarcRecord(offset, headers, body) in the order of the file; a DamagedRecord instead of each damaged one.

    pieces (a gzip member, or 1 MB) ──> Splitter ──> WarcRecord
      └─ truncated or corrupt member:     └─ wrong Content-Length, garbage between records:
         reported; the next one is read      reported; reading continues at the next header

puna has a reader of its own because fastwarc and warcio return a truncated last record silently, stop at the
first damaged byte, and use a wrong Content-Length even where it includes the next gzip member.
An `offset` counts bytes of the file on disk; in a compressed file it is the start of the gzip member.
"""

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from puna.corpus.document import DamagedRecord

LARGEST_RECORD = 256 << 20
_LONGEST_HEADER = 64 << 10
PIECE_BYTES = 1 << 20
BLOCK_BYTES = 16 << 10  # small: the rest of a block after a member's end is copied
_GZIP = b"\x1f\x8b\x08"
_RECORD = b"WARC/"
_PLAIN = re.compile(rb"WARC/\d\.\d+\r?\n[\w-]+:")  # the start of a file that is not compressed


class WarcRecord(NamedTuple):
    """One complete record. Header names are in lower case."""

    offset: int
    headers: dict[str, str]
    body: bytes


def read_records(path: Path) -> Iterator[WarcRecord | DamagedRecord]:
    """The records of a WARC or WET file, streamed; memory is bounded by the largest record."""
    with path.open("rb") as file:
        first = file.read(64)
        zipped = first.startswith(_GZIP) or (path.name.endswith(".gz") and not _PLAIN.match(first))
        file.seek(0)
        splitter = Splitter(path.name, zipped)
        for piece in _unzipped(file) if zipped else _plain(file):
            if piece.damage:
                yield from splitter.close(piece)
                continue
            if piece.begins and piece.data.startswith(_RECORD):
                if splitter.pending:
                    yield from splitter.close(_Piece(piece.offset))
                if piece.ends and (record := _only_record(piece)):
                    yield record
                    continue
            yield from splitter.push(piece)
        yield from splitter.close(_Piece(file.tell()))


def _only_record(piece: "_Piece") -> WarcRecord | None:
    """The record of a gzip member with exactly one record, as nearly all have; else None, for Splitter."""
    data = piece.data
    end = data.find(b"\r\n\r\n", 0, _LONGEST_HEADER)
    headers = parse_headers(data[:end]) if end >= 0 else {}
    size = headers.get("content-length", "")
    if not size.isdecimal() or data[end + 4 + int(size) :] != b"\r\n\r\n":
        return None
    return WarcRecord(piece.offset, headers, data[end + 4 : -4])


# ---- bytes of the file -> bytes of records -------------------------------------------------------


class _Piece(NamedTuple):
    """Some bytes, and whether they begin or end a gzip member; or the damage at `offset`."""

    offset: int
    data: bytes = b""
    begins: bool = False
    ends: bool = False
    damage: str = ""
    corrupt: bool = False  # the earlier bytes of the member may be wrong too


def _plain(file: BinaryIO) -> Iterator[_Piece]:
    offset = 0
    while data := file.read(PIECE_BYTES):
        yield _Piece(offset, data)
        offset += len(data)


def _unzipped(file: BinaryIO) -> Iterator[_Piece]:
    """The gzip members one by one. After a damaged one, reading continues at the next with a record."""
    start = 0  # offset of the member
    block = file.read(BLOCK_BYTES)
    while block:
        if not block.startswith(_GZIP):
            if block.strip(b"\0"):  # zeros pad the files of tapes and block stores
                yield _Piece(start, damage="bytes that are not a gzip member")
            start = _next_member(file, start)
            block = _read_at(file, start)
            continue
        member = zlib.decompressobj(31)
        used = 0  # compressed bytes of the member before `block`
        begins, ends, damage, corrupt = True, False, "", False
        while not (ends or damage):
            parts, size = [], 0
            while size < PIECE_BYTES and not ends:
                try:
                    parts.append(member.decompress(block, PIECE_BYTES))
                except zlib.error as error:
                    damage, corrupt = f"the gzip member is damaged ({error})", True
                    break
                size += len(parts[-1])
                ends = member.eof
                if not ends:
                    used += len(block) - len(member.unconsumed_tail)
                    block = member.unconsumed_tail or file.read(BLOCK_BYTES)
                    if not block:
                        damage = "the gzip member is cut off"
                        break
            if parts:
                yield _Piece(start, b"".join(parts), begins, ends)
            begins = False
        if damage:
            yield _Piece(start, damage=damage, corrupt=corrupt)
            start = _next_member(file, start + 1)
            block = _read_at(file, start)
            continue
        start += used + len(block) - len(member.unused_data)
        block = member.unused_data
        if len(block) < len(_GZIP):
            block += file.read(BLOCK_BYTES)


def _read_at(file: BinaryIO, offset: int) -> bytes:
    file.seek(offset)
    return file.read(BLOCK_BYTES)


def _next_member(file: BinaryIO, start: int) -> int:
    """The offset, from `start` on, of the next gzip member that begins with a record; or the file's end."""
    file.seek(start)
    block = b""
    while data := file.read(PIECE_BYTES):
        block += data
        place = block.find(_GZIP)
        while place >= 0:
            if _begins_record(file, start + place):
                return start + place
            place = block.find(_GZIP, place + 1)
        start += len(block) - 2
        file.seek(start + 2)
        block = block[-2:]
    return file.tell()


def _begins_record(file: BinaryIO, offset: int) -> bool:
    file.seek(offset)
    try:
        return zlib.decompressobj(31).decompress(file.read(BLOCK_BYTES), 16).startswith(_RECORD)
    except zlib.error:
        return False


# ---- bytes of records -> records -----------------------------------------------------------------


class Splitter:
    """Cuts pieces into records by their headers, and buffers incomplete ones."""

    def __init__(self, name: str, zipped: bool) -> None:
        self._name = name
        self._zipped = zipped
        self._parts: list[bytes] = []
        self._size = 0
        self._need = 1  # bytes that the next step needs
        self._offset = 0  # offset of the first buffered byte
        self._lost = False  # the buffer does not begin with a record: the next header is searched for

    @property
    def pending(self) -> bool:
        """Whether bytes are buffered, or the next header is searched for."""
        return self._size > 0 or self._lost

    def push(self, piece: _Piece) -> Iterator[WarcRecord | DamagedRecord]:
        """Take the next piece; yields the records that it completes."""
        if not self._size:
            self._offset = piece.offset
        self._parts.append(piece.data)
        self._size += len(piece.data)
        if self._size >= self._need or piece.ends:
            yield from self._cut(piece.ends, last=False, why=piece)

    def close(self, why: _Piece) -> Iterator[WarcRecord | DamagedRecord]:
        """The buffered bytes are a complete record or truncated. `why` holds the reason, if it is known."""
        if self._size:
            yield from self._cut(ended=True, last=True, why=why)
        elif why.damage and not self._lost:
            yield DamagedRecord(self._name, why.offset, why.damage)
        self._parts, self._size, self._need, self._lost = [], 0, 1, False

    def _cut(self, ended: bool, last: bool, why: _Piece) -> Iterator[WarcRecord | DamagedRecord]:
        data = b"".join(self._parts)
        place = 0
        self._need = 1
        while True:
            found, place, after = self._step(data, place, ended, last, why)
            if found:
                yield found
            if after is None:
                break
            place = after
        self._offset += 0 if self._zipped else place
        self._parts = [data[place:]] if place < len(data) else []
        self._size = len(data) - place
        self._need = max(self._need, self._size + 1)

    def _step(
        self, data: bytes, place: int, ended: bool, last: bool, why: _Piece
    ) -> tuple[WarcRecord | DamagedRecord | None, int, int | None]:
        """One record at `place`: (record or damage, its start, the next start or None for more bytes)."""

        def bad(reason: str) -> DamagedRecord:
            return DamagedRecord(self._name, self._offset + (0 if self._zipped else place), reason)

        while data[place : place + 1] in (b"\r", b"\n"):  # the separators of records
            place += 1
        if place == len(data):
            return None, place, None
        if self._lost or not data.startswith(_RECORD, place):
            if len(data) - place < len(_RECORD) and not last and _RECORD.startswith(data[place:]):
                return None, place, None
            if data.startswith(_RECORD, place):
                self._lost = False
                return None, place, place
            trouble = None if self._lost else bad(why.damage or "no WARC record begins here")
            self._lost = True
            following = _next_header(data, place)
            if following < 0:  # only the beginning of a header is kept in the buffer
                kept = len(data) if last else max(place, len(data) - len(_RECORD) - 1)
                return trouble, kept, None
            self._lost = False
            return trouble, place, following

        crlf = data[place : place + 16].find(b"\r\n") >= 0
        blank = b"\r\n\r\n" if crlf else b"\n\n"
        end = data.find(blank, place, place + _LONGEST_HEADER)
        if end < 0:
            if len(data) - place < _LONGEST_HEADER and not last:
                return None, place, None
            self._lost = True
            return bad(why.damage or "the record's header has no end"), place, place + 1
        headers = parse_headers(data[place:end])
        begin = end + len(blank)
        size = headers.get("content-length", "")
        if not size.isdecimal() or int(size) > LARGEST_RECORD:
            self._lost = True
            said = f"is {size[:20]!r}; expected a size up to {LARGEST_RECORD}" if size else "is missing"
            return bad(f"the record's Content-Length {said}"), place, begin
        length = int(size)
        offset = self._offset + (0 if self._zipped else place)
        if not crlf:
            return self._step_lf(data, place, begin, length, headers, last or ended, why.damage)

        stop = begin + length
        if len(data) < stop + (0 if ended else len(blank) + len(_RECORD)) and not last:
            self._need = stop - place + len(blank) + len(_RECORD)
            return None, place, None
        rest = data[stop : stop + 64]
        follows = rest.startswith((blank, b"\r\n" + _RECORD)) or not rest.strip(b"\r\n")
        if len(data) >= stop and follows and not why.corrupt:
            return WarcRecord(offset, headers, data[begin:stop]), place, stop
        following = _next_header(data, begin)
        if following < 0 and (why.damage or why.corrupt):
            self._lost = True
            return bad(f"{why.damage}: {len(data) - begin} of the record's {length} bytes"), len(data), None
        found = len(data[begin : following if following >= 0 else len(data)].removesuffix(b"\r\n\r\n"))
        self._lost = following < 0
        trouble = bad(f"Content-Length says {length} bytes, the record has {found}")
        return trouble, place, following if following >= 0 else len(data)

    def _step_lf(
        self,
        data: bytes,
        place: int,
        begin: int,
        length: int,
        headers: dict[str, str],
        ended: bool,
        damage: str,
    ) -> tuple[WarcRecord | DamagedRecord | None, int, int | None]:
        """A record of a file after a text conversion: its lines end with LF alone.

        Its Content-Length counts the bytes before the conversion, so the record ends at the next header. It
        is truncated if it is too short even with one more byte for each line.
        """
        offset = self._offset + (0 if self._zipped else place)
        stop = _next_header(data, begin - 1)
        if stop < 0:
            if not ended and len(data) - place <= LARGEST_RECORD:
                return None, place, None
            stop = len(data)
        body = data[begin:stop]
        if len(body) + body.count(b"\n") < length:
            reason = f"{damage or 'the record is cut off'}: {len(body)} of the record's {length} bytes"
            return DamagedRecord(self._name, offset, reason), place, stop
        return WarcRecord(offset, headers, body.rstrip(b"\n")), place, stop


def _next_header(data: bytes, begin: int) -> int:
    """The place of the next line that begins a record, or -1."""
    found = data.find(b"\n" + _RECORD, begin)
    return found + 1 if found >= 0 else -1


def parse_headers(block: bytes) -> dict[str, str]:
    """Header lines by lower-case name. A line that begins with white space continues the one before."""
    headers: dict[str, str] = {}
    name = ""
    for line in block.decode("utf-8", "replace").split("\n")[1:]:
        if line[:1].isspace() and name:
            headers[name] += " " + line.strip()
            continue
        name, _, value = line.partition(":")
        name = name.lower()
        earlier = f"{headers[name]}, " if name == "content-encoding" and name in headers else ""
        headers[name] = earlier + value.strip()
    return headers
