"""Small web archives, made as crawlers make them."""

import gzip
from collections.abc import Iterable
from pathlib import Path


def record(
    kind: str,
    body: bytes,
    url: str = "https://example.org/page",
    length: int | None = None,
    end: bytes = b"\r\n",
    **headers: str,
) -> bytes:
    """One WARC record. `length` is what it says of its body, when that is to be wrong."""
    lines = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        f"WARC-Target-URI: {url}",
        "WARC-Date: 2024-05-18T01:58:10Z",
        "WARC-Record-ID: <urn:uuid:ba729a40-ff84-4085-8d48-0a5b2ee0c42d>",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        f"Content-Length: {len(body) if length is None else length}",
    ]
    return end.join([*(line.encode() for line in lines), b"", b""]) + body + end + end


def wet(text: str | bytes, url: str = "https://example.org/page", **values: object) -> bytes:
    """A WET record: the text of one page."""
    body = text.encode() if isinstance(text, str) else text
    return record("conversion", body, url, Content_Type="text/plain", **values)  # type: ignore[arg-type]


def response(
    payload: bytes,
    url: str = "https://example.org/page",
    status: str = "200 OK",
    media: str = "text/html; charset=utf-8",
    **headers: str,
) -> bytes:
    """A WARC record of what a server answered."""
    named = {"Content_Type": media, **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
    body = f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + payload
    return record("response", body, url, Content_Type="application/http; msgtype=response")


def zipped(records: Iterable[bytes]) -> list[bytes]:
    """A gzip member for each record."""
    return [gzip.compress(one, mtime=0) for one in records]


def write_wet(path: Path, pages: dict[str, str]) -> Path:
    """A .wet.gz of pages by URL."""
    path.write_bytes(b"".join(zipped(wet(text, url) for url, text in pages.items())))
    return path
