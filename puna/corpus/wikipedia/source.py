"""Wikipedia: MediaWiki XML dumps -> documents (paper section 2.1).

In:  `*.xml`, plain or in bz2 (one stream or many), as `pages-articles` dumps are published.
Out: one Document per article: its prose and its headings, without markup.

    <siteinfo> names the language and the File and Category prefixes ─┐
    <page> ... </page> ─> last revision's wikitext ─> plain text ─────┴─> Document
    <page> ... </page> ─> ...                                         └─> Drop("redirect")

The dump is cut at its page tags and each page is parsed alone, so memory is bounded by one page, and only the
damaged page is lost, not the rest of the dump. After a damaged bz2 stream of a multistream dump, reading
continues at the next stream, a hundred pages later.
"""

import bz2
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from mwparserfromhell.parser import ParserError

from puna.corpus.document import DamagedRecord, Document, Drop
from puna.corpus.wikipedia.namespaces import LANGUAGES, hidden_namespaces, is_disambiguation
from puna.corpus.wikipedia.wikitext import HIDDEN, TangledError, plain_text
from puna.corpus.wikipedia.wikitext_lift import VARIANT_LANGUAGES
from puna.validation import Count, strict

# Not the indexes of multistream dumps, which are *.txt.bz2.
PATTERNS: tuple[str, ...] = ("*.xml", "*.xml.bz2", "*.xml-*.bz2")

PART_BYTES = 32 << 20  # a dump of twice this size or more is divided into tasks
MAX_PAGE_BYTES = 64 << 20  # an article's text is at most 2 MB; only full histories are larger
MAX_WIKITEXT = 4 << 20  # MediaWiki itself refuses a text of more than 2 MB
_READ_BYTES = 1 << 18
_UNPACKED_BYTES = 1 << 20
_MEDIA, _FILE, _CATEGORY = "-2", "6", "14"  # MediaWiki's namespace numbers, the same in every language


@strict
@dataclass(frozen=True)
class Options:
    """Which pages become documents."""

    languages: tuple[str, ...] = LANGUAGES
    """Languages to keep, by the codes of the dumps' siteinfo; other pages are dropped."""
    min_characters: Count = 50
    """Minimum length of an article in characters; shorter articles are dropped."""
    keep_disambiguation: bool = True
    """Keep disambiguation pages, which list the meanings of a title."""
    external_labels: bool = False
    """Keep the label of external links; their URLs are removed in any case."""

    def validate(self) -> None:
        """Raises ValueError when no language is named."""
        if not self.languages:
            raise ValueError("languages is empty; name at least one, such as en")


@dataclass(frozen=True)
class Site:
    """The head of a dump. `hidden` are the lower-case prefixes of links that show no text."""

    name: str = "wiki"
    language: str = ""
    hidden: frozenset[str] = HIDDEN


@dataclass(frozen=True)
class Page:
    """One page, with the wikitext of its last revision."""

    site: Site
    id: str
    title: str
    namespace: str
    revision: str
    is_redirect: bool
    wikitext: str


# ---- reading --------------------------------------------------------------------------------------


def read(
    path: Path, options: Options = Options(), span: tuple[int, int] | None = None
) -> Iterator[Page | DamagedRecord]:
    """Stream the pages of a dump, or those that begin in a span of its bytes.

    In a bz2 file these are the pages that begin in the streams that begin in the span. The offset of a
    DamagedRecord counts bytes of XML, after decompression (of a span, from its first stream on); that of a
    damaged bz2 stream is where the stream begins in the file.
    """
    start, stop = span or (0, path.stat().st_size)
    site = _parse_site(path, _head(path)) if start else None
    buffer = b""
    offset = 0 if _is_packed(path) else start  # offset of the buffer's first byte
    cut = start > 0  # the end of the file is lost, or a stream before it
    resumed = start > 0  # what is just before the buffer is lost, or belongs to another span
    last: int | None = None  # the offset where the next span begins
    for block in _blocks(path, start, stop):
        if block is None:
            last = offset + len(buffer)
            if b"<page>" not in buffer and b"<" not in buffer[-5:]:
                return
            continue
        if isinstance(block, DamagedRecord):
            if last is not None:  # reported with the next span
                return
            yield block
            offset, buffer, cut, resumed = offset + len(buffer), b"", True, True
            continue
        cut = False
        # Search from seven bytes before, for a tag that is split between two blocks.
        search_from = max(0, len(buffer) - 7)
        buffer += block
        done = 0
        while (end := buffer.find(b"</page>", max(search_from, done))) >= 0:
            end += len(b"</page>")
            begin = buffer.rfind(b"<page>", done, end)
            first = buffer.find(b"<page>", done, end)
            owned = len(buffer) if last is None else last - offset
            if last is not None and not 0 <= first < owned:
                return
            if site is None:
                site = _parse_site(path, buffer[: max(first, 0)])
            if first != begin or (begin < 0 and not resumed):
                yield DamagedRecord(
                    str(path), offset + max(first, done), "a page without its beginning or its end"
                )
            if 0 <= begin < owned:
                yield _parse_page(path, site, buffer[begin:end], offset + begin)
            done, resumed = end, False
        buffer, offset = buffer[done:], offset + done
        if last is not None and buffer.find(b"<page>", 0, max(0, last - offset + 5)) < 0:
            return
        if len(buffer) > MAX_PAGE_BYTES:
            site = site or _parse_site(path, buffer[: max(buffer.find(b"<page>"), 0)])
            yield DamagedRecord(str(path), offset, f"{len(buffer)} bytes without the end of a page; skipped")
            buffer, offset = b"", offset + len(buffer)
    if not cut and b"</mediawiki>" not in buffer:
        trouble = "the dump ends inside a page" if b"<page>" in buffer else "the dump has no end"
        yield DamagedRecord(str(path), offset, trouble if site else "not a MediaWiki dump")


def _is_packed(path: Path) -> bool:
    with path.open("rb") as raw:
        return raw.read(3) == b"BZh"


def _head(path: Path) -> bytes:
    """The beginning of a dump, up to its first page."""
    head = b""
    for block in _blocks(path, 0, path.stat().st_size):
        head += block if isinstance(block, bytes) else b""
        if b"<page>" in head or len(head) > MAX_PAGE_BYTES:
            break
    return head.partition(b"<page>")[0]


def _blocks(path: Path, start: int, stop: int) -> Iterator[bytes | DamagedRecord | None]:
    """The bytes of a dump from `start` on, unpacked; None at `stop`, a DamagedRecord where some are lost."""
    packed = _is_packed(path)
    with path.open("rb") as raw:
        if packed:
            yield from _unpacked(path, raw, start, stop)
            return
        raw.seek(start)
        while block := raw.read(min(_READ_BYTES, stop - raw.tell())):
            yield block
        if stop < path.stat().st_size:
            yield None
            yield from iter(partial(raw.read, _READ_BYTES), b"")


# The start of every bz2 stream: its block size, and the mark of its first block (pi) or of its end.
_STREAM = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
_STREAM_BYTES = 10


def _unpacked(path: Path, raw: BinaryIO, start: int, stop: int) -> Iterator[bytes | DamagedRecord | None]:
    """Decompress bz2 streams one after the other. A damaged one is reported, and the next one is read."""
    # Offsets in the file of the stream, and of the data in the buffer.
    position = start = _seek_stream(raw, start, stop) if start else 0
    data = raw.read(_READ_BYTES) if start < stop else b""
    marked = False
    while data:
        if start >= stop and not marked:
            marked = True
            yield None
        unpacker = bz2.BZ2Decompressor()
        held = b""  # the latest block, whose checksum follows it
        trouble = ""
        fed = data
        while not unpacker.eof:
            try:
                unpacked = unpacker.decompress(fed, _UNPACKED_BYTES)
            except OSError as error:
                trouble = str(error).lower()
                break
            if unpacked:
                if held:
                    yield held
                held = unpacked
            fed = b""
            if unpacker.needs_input and not unpacker.eof:
                position += len(data)
                fed = data = raw.read(_READ_BYTES)
                if not data:
                    trouble = "it is cut"
                    break
        if not trouble:
            yield held
            position += len(data) - len(unpacker.unused_data)
            data = unpacker.unused_data or raw.read(_READ_BYTES)
            start = position
            continue
        if trouble == "it is cut" and held:
            yield held  # all of it comes from whole blocks
        yield DamagedRecord(str(path), start, f"a stream of compressed data is damaged or cut ({trouble})")
        start = position = _seek_stream(raw, start + 1)
        data = raw.read(_READ_BYTES)


def _seek_stream(raw: BinaryIO, start: int, stop: int | None = None) -> int:
    """Seek to the first stream that begins at or after `start`, or to `stop` or the end of the file."""
    raw.seek(start)
    tail = b""
    while (stop is None or start < stop) and (block := raw.read(_READ_BYTES)):
        window = tail + block
        if found := _STREAM.search(window):
            return raw.seek(start - len(tail) + found.start())
        start += len(block)
        tail = window[1 - _STREAM_BYTES :]
    return start


_DUMP_NAME = re.compile(r"([a-z_]+?)wiki[-_]")


def _parse_site(path: Path, head: bytes) -> Site:
    """The site by its siteinfo, or by the name of the dump if the siteinfo is lost."""
    named = _DUMP_NAME.match(path.name)
    name, language = (f"{named[1]}wiki", named[1].replace("_", "-")) if named else (Site.name, "")
    hidden: set[str] = set()
    try:
        root = ElementTree.fromstring(head + b"</mediawiki>")
    except ElementTree.ParseError:
        return Site(name, language, hidden_namespaces(language))
    for element in root.iter():
        tag = element.tag.rpartition("}")[2]  # the XML namespace names the export version
        if tag == "dbname" and element.text:
            name, language = element.text, element.text.removesuffix("wiki")
        elif tag == "namespace" and element.get("key") in (_MEDIA, _FILE, _CATEGORY) and element.text:
            hidden.add(element.text.lower())
    language = root.get("{http://www.w3.org/XML/1998/namespace}lang") or language
    return Site(name, language, hidden_namespaces(language) | hidden)


def _parse_page(path: Path, site: Site, xml: bytes, offset: int) -> Page | DamagedRecord:
    try:
        page = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        return DamagedRecord(str(path), offset, f"a page is not valid XML ({error})")
    revisions = page.findall("revision")
    if not revisions or page.find("title") is None:
        return DamagedRecord(str(path), offset, "a page without a title or a revision")
    return Page(
        site=site,
        id=page.findtext("id", ""),
        title=page.findtext("title", ""),
        namespace=page.findtext("ns", "0"),
        revision=revisions[-1].findtext("id", ""),
        is_redirect=page.find("redirect") is not None,
        wikitext=revisions[-1].findtext("text", "") or "",
    )


# ---- cleaning -------------------------------------------------------------------------------------

_REDIRECT = re.compile(r"\s*#\w+\s*:?\s*\[\[")


def clean(page: Page, options: Options = Options()) -> Document | Drop:
    """An article's text, or the reason why it is dropped."""
    site = page.site
    if site.language not in options.languages:
        return Drop("another language", detail=f"{site.name}: {site.language or 'not stated'}")
    if page.namespace != "0":
        return Drop("not an article", detail=page.title)
    if page.is_redirect or _REDIRECT.match(page.wikitext):
        return Drop("redirect", detail=page.title)
    if not options.keep_disambiguation and is_disambiguation(page.wikitext):
        return Drop("disambiguation", detail=page.title)
    if len(page.wikitext) > MAX_WIKITEXT:
        return Drop("wikitext too long", detail=page.title)
    variants = site.language.partition("-")[0] in VARIANT_LANGUAGES
    try:
        text = plain_text(page.wikitext, site.hidden, variants, options.external_labels, page.title)
    except (ParserError, TangledError) as error:
        return Drop("wikitext not understood", detail=f"{page.title}: {error}")
    if not text:
        return Drop("empty", detail=page.title)
    if len(text) < options.min_characters:
        return Drop("too short", detail=page.title)
    return Document(
        id=f"{site.name}/{page.id}",
        source="wikipedia",
        text=text,
        meta={"title": page.title, "language": site.language, "revision": page.revision},
    )
