"""Web pages from WARC, WET or JSON lines.

In:  WARC (`response` records), WET (`conversion` records), or JSON lines with `url` and `text` (C4, CCNet).
Out: Page(id, url, date, text or html, …) or DamagedRecord.

    response   ─> HTTP: chunks joined, unzipped ─> Page(html=bytes, charset)    text is made by page_text
    conversion ─> UTF-8 ─> Page(text=…)
    JSON line  ─> Page(text=…)
    warcinfo, request, metadata (WAT too), revisit, resource: skipped
"""

import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from puna.corpus.document import DamagedRecord, Drop
from puna.corpus.json_lines import Line, read_json_lines
from puna.corpus.web.html import encoding_of, html_text
from puna.corpus.web.warc import LARGEST_RECORD, WarcRecord, parse_headers, read_records

PATTERNS = (
    *("*.warc", "*.warc.gz", "*.wet", "*.wet.gz", "*.warc.wet.txt"),
    *("*.jsonl", "*.jsonl.gz", "*.json.gz"),
)
_JSON = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([^\s;,\"']+)", re.IGNORECASE)
_GZIP = b"\x1f\x8b"
_MARKUP = re.compile(rb"\s*<[!?a-zA-Z]")
_HTML = ("text/html", "application/xhtml+xml")


@dataclass(slots=True)
class Page:
    """A page as a crawler stored it: `content` is text, or the bytes that the server sent."""

    id: str  # file name and place of the record: record ids in archives are not unique
    url: str
    date: str  # ISO 8601, or empty if unknown
    content: str | bytes
    media: str = "text/plain"
    charset: str = ""
    status: int = 200
    digest: str = ""  # from the archive, or else of the text


def read_pages(path: Path) -> Iterator[Page | DamagedRecord]:
    """The pages of one file, streamed."""
    if path.name.endswith(_JSON):
        for line in read_json_lines(path, path.name):
            yield line if isinstance(line, DamagedRecord) else _from_json(path, line)
        return
    for number, record in enumerate(read_records(path)):
        if isinstance(record, DamagedRecord):
            yield record
            continue
        kind = record.headers.get("warc-type", "")
        if kind not in ("conversion", "response"):
            continue
        try:
            name = f"{path.name}:{number}"
            page = _converted(name, record) if kind == "conversion" else _responded(name, record)
        except ValueError as error:
            yield DamagedRecord(path.name, record.offset, " ".join(str(error).split()))
            continue
        if page:
            yield page


def page_text(page: Page) -> str | Drop:
    """The text of a page, one line per block, tabs as spaces; or the reason why it is dropped."""
    text = _decoded(page)
    if isinstance(text, Drop) or "\t" not in text:
        return text
    while "\t\t" in text:
        text = text.replace("\t\t", "\t")
    return text.replace("\t", " ")


def _decoded(page: Page) -> str | Drop:
    if isinstance(page.content, str):
        return page.content
    if not 200 <= page.status < 300:
        return Drop("not a page: HTTP status", str(page.status))
    if page.media in _HTML or (not page.media and page.content.lstrip()[:1] == b"<"):
        return html_text(page.content, page.charset)
    if page.media == "text/plain":
        from resiliparse.parse.encoding import bytes_to_str

        return bytes_to_str(page.content, encoding_of(page.content, page.charset), errors="replace")
    return Drop("not a page: media type", page.media)


def text_digest(text: str) -> str:
    """`sha1:` and the SHA-1 of the text, in hexadecimal."""
    return "sha1:" + hashlib.sha1(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


# ---- WARC and WET --------------------------------------------------------------------------------


def _target(record: WarcRecord) -> str:
    url = record.headers.get("warc-target-uri", "")
    if url.startswith("<") and url.endswith(">"):
        url = url[1:-1]  # some versions of wget write angle brackets
    if not url.startswith(("http://", "https://")) or any(character <= " " for character in url):
        raise ValueError(f"the record's WARC-Target-URI {url[:80]!r} is not the URL of a page")
    return url


def _converted(name: str, record: WarcRecord) -> Page:
    url, headers = _target(record), record.headers
    try:
        text = record.body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the record is not UTF-8 ({error.reason} at its byte {error.start})") from None
    digest = headers.get("warc-block-digest", "")
    return Page(name, url, headers.get("warc-date", ""), text, digest=digest)


def _responded(name: str, record: WarcRecord) -> Page | None:
    if record.headers.get("content-type", "application/http").partition(";")[0] != "application/http":
        return None  # dns:… and other protocols
    url, response = _target(record), http_response(record.body)
    kind = response.headers.get("content-type", "")
    media = kind.partition(";")[0].strip().lower()
    found = _CHARSET.search(kind)
    charset = found[1] if found else ""
    date, digest = record.headers.get("warc-date", ""), record.headers.get("warc-block-digest", "")
    payload = _gunzipped(response.payload) if media in _HTML else response.payload  # without a header
    return Page(name, url, date, payload, media, charset, response.status, digest)


# ---- JSON lines ----------------------------------------------------------------------------------


def _from_json(path: Path, line: Line) -> Page | DamagedRecord:
    """A line of C4 (`url`, `text`, `timestamp`) or CCNet (`url`, `raw_content`, `date_download`)."""
    record = line.values
    text = record.get("text", record.get("raw_content"))
    url = record.get("url", record.get("id"))
    date = record.get("timestamp") or record.get("date_download") or record.get("created") or ""
    if not isinstance(text, str) or not isinstance(url, str):
        return DamagedRecord(path.name, line.offset, "the line has no url and text")
    try:
        text.encode()
    except UnicodeEncodeError:
        return DamagedRecord(path.name, line.offset, "the text holds half a surrogate pair")
    return Page(f"{path.name}:{line.number}", url, str(date), text)


# ---- HTTP responses ------------------------------------------------------------------------------


@dataclass(frozen=True)
class HttpResponse:
    """A decoded response: chunks joined, decompressed. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    payload: bytes


def http_response(block: bytes) -> HttpResponse:
    """Parse the block of a `response` record.

    Crawlers often store the payload decoded and keep the headers of its encoding: a payload that does not
    begin like a chunk, or like gzip, is used unchanged.

    Raises:
        ValueError: when there is no HTTP header, or the payload is truncated.
    """
    blank = b"\r\n\r\n" if b"\r\n\r\n" in block[: 64 << 10] else b"\n\n"
    head, found, payload = block.partition(blank)
    status = head.split(b"\n", 1)[0].split()[1:2]
    if not found or not head.startswith(b"HTTP/") or not status or not status[0].isdigit():
        raise ValueError("the response has no HTTP header")
    headers = parse_headers(head)
    if "chunked" in headers.get("transfer-encoding", "").lower():
        payload = _joined_chunks(payload)
    encoding = headers.get("content-encoding", "").lower()
    return HttpResponse(int(status[0]), headers, _decompressed(payload, encoding))


def _joined_chunks(payload: bytes) -> bytes:
    parts: list[bytes] = []
    place = 0
    while True:
        end = payload.find(b"\r\n", place)
        size = payload[place:end].split(b";")[0].strip() if end >= 0 else b""
        try:
            length = int(size, 16) if size and not size.startswith((b"+", b"-")) else -1
        except ValueError:
            length = -1
        if length == 0:
            return b"".join(parts)
        whole = length > 0 and payload[end + 2 + length : end + 4 + length] == b"\r\n"
        if not whole:
            if not parts and length < 0:
                return payload  # stored without chunks
            raise ValueError(f"the chunked body breaks off after {sum(map(len, parts))} bytes")
        parts.append(payload[end + 2 : end + 2 + length])
        place = end + 4 + length


# Content codings of pages that are not compressed: charset names and `none`.
_NO_CODING = re.compile(
    r"|identity|none|null|binary|[78]bit|chunked|utf-?8|utf-?16|us-ascii|iso-8859-\d+|windows-\d+|text/[a-z]+"
)


def _decompressed(payload: bytes, encoding: str) -> bytes:
    """The decoded payload; the last coding in the header was applied last.

    Raises:
        ValueError: when a coding is not known, or its data is damaged.
    """
    for coding in reversed(encoding.split(",")):
        coding = coding.strip().strip("\"'").removeprefix("x-")
        if not payload or _NO_CODING.fullmatch(coding) or _MARKUP.match(payload):
            continue
        if coding not in _CODINGS:
            raise ValueError(f"the content coding {coding!r} is not known")
        try:
            payload = _CODINGS[coding](payload)
        except Exception as error:  # brotli's error class is not a ValueError
            raise ValueError(f"the {coding} body is damaged or breaks off ({error})") from None
    return payload


def _gunzipped(payload: bytes) -> bytes:
    return _inflated(payload, 31) if payload.startswith(_GZIP) else payload


def _deflated(payload: bytes) -> bytes:
    zipped = payload[0] & 0x0F == 8 and int.from_bytes(payload[:2], "big") % 31 == 0
    return _inflated(payload, 15 if zipped else -15)


def _unbrotlied(payload: bytes) -> bytes:
    import brotli

    return bytes(brotli.decompress(payload))


def _unzstd(payload: bytes) -> bytes:
    import pyarrow as pa

    with pa.CompressedInputStream(pa.BufferReader(payload), "zstd") as stream:
        return bytes(stream.read(LARGEST_RECORD))


_CODINGS = {"gzip": _gunzipped, "deflate": _deflated, "br": _unbrotlied, "zstd": _unzstd}


def _inflated(payload: bytes, window: int) -> bytes:
    text = b""
    while len(text) < LARGEST_RECORD:
        parts = zlib.decompressobj(window)
        text += parts.decompress(payload, LARGEST_RECORD - len(text))
        if not parts.eof:
            break
        payload = parts.unused_data
        if window != 31 or not payload.startswith(_GZIP):  # gzip data may have several members
            return text
    raise ValueError("its end is missing, or it is too large")
