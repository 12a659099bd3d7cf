"""Wikipedia: MediaWiki XML dumps -> documents (paper section 2.1).

In:  `*.xml` or `*.bz2` (one stream or many), as `pages-articles` dumps are published.
Out: one Document an article: its prose and its headings, without markup.

    <siteinfo> names the language and the File and Category prefixes ─┐
    <page> ... </page> ─> last revision's wikitext ─> parse ─> walk ──┴─> tidy ─> Document
    <page> ... </page> ─> ...                                               └──> Drop("redirect")

The dump is cut at its page tags and each page is parsed alone, so memory is bounded by one page, and
a damaged page costs that page and not the rest of the dump.
"""

import bz2
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mwparserfromhell
from mwparserfromhell import nodes
from mwparserfromhell.parser import ParserError
from mwparserfromhell.wikicode import Wikicode

from puna.corpus.document import Bad, Document, Drop

PATTERNS: tuple[str, ...] = ("*.xml", "*.bz2")

MIN_CHARACTERS = 50
MAX_PAGE_BYTES = 64 << 20  # an article's text is at most 2 MB; only full histories are larger
_READ_BYTES = 1 << 18
_MEDIA, _FILE, _CATEGORY = "-2", "6", "14"  # MediaWiki's namespace numbers, the same in every language


@dataclass(frozen=True)
class Site:
    """What the head of a dump says: `hidden` are the lower-case prefixes of links that show no text."""

    name: str = "wiki"
    language: str = ""
    hidden: frozenset[str] = frozenset({"file", "image", "media", "category"})


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


def read(path: Path) -> Iterator[Page | Bad]:
    """Stream the pages of a dump. The offset of a Bad counts bytes of XML, after decompression."""
    site: Site | None = None
    buffer = b""
    offset = 0  # of the buffer's first byte
    trouble = ""
    blocks = _blocks(path)
    while True:
        try:
            block = next(blocks, b"")
        except (EOFError, OSError) as error:  # what was unpacked before it has been read already
            block, trouble = b"", f"compressed data is damaged or cut ({error})"
        buffer += block
        while (end := buffer.find(b"</page>")) >= 0:
            end += len(b"</page>")
            start = buffer.rfind(b"<page>", 0, end)
            first = buffer.find(b"<page>", 0, end)
            if site is None:
                site = _parse_site(buffer[: max(first, 0)])
            if first != start or start < 0:
                yield Bad(str(path), offset + max(first, 0), "a page without its beginning or its end")
            if start >= 0:
                yield _parse_page(path, site, buffer[start:end], offset + start)
            buffer, offset = buffer[end:], offset + end
        if not block:
            break
        if len(buffer) > MAX_PAGE_BYTES:
            site = site or _parse_site(buffer[: max(buffer.find(b"<page>"), 0)])
            yield Bad(str(path), offset, f"{len(buffer)} bytes without the end of a page; skipped")
            buffer, offset = b"", offset + len(buffer)
    if not trouble and b"</mediawiki>" not in buffer:
        trouble = "the dump ends inside a page" if b"<page>" in buffer else "the dump has no end"
        if site is None:
            trouble = "not a MediaWiki dump"
    if trouble:
        yield Bad(str(path), offset, trouble)


def _blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a dump, unpacked."""
    with path.open("rb") as raw:
        packed = raw.read(3) == b"BZh"
        raw.seek(0)
        if not packed:
            while block := raw.read(_READ_BYTES):
                yield block
            return
        with bz2.open(raw) as file:
            # read1, because read would lose what it has gathered when the stream breaks off.
            while block := file.read1(_READ_BYTES):
                yield block


def _parse_site(head: bytes) -> Site:
    try:
        root = ElementTree.fromstring(head + b"</mediawiki>")
    except ElementTree.ParseError:
        return Site()
    hidden = set(Site.hidden)
    name = Site.name
    for element in root.iter():
        tag = element.tag.rpartition("}")[2]  # the XML namespace names the export version
        if tag == "dbname" and element.text:
            name = element.text
        elif tag == "namespace" and element.get("key") in (_MEDIA, _FILE, _CATEGORY) and element.text:
            hidden.add(element.text.lower())
    language = root.get("{http://www.w3.org/XML/1998/namespace}lang") or name.removesuffix("wiki")
    return Site(name, language, frozenset(hidden))


def _parse_page(path: Path, site: Site, xml: bytes, offset: int) -> Page | Bad:
    try:
        page = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        return Bad(str(path), offset, f"a page is not valid XML ({error})")
    revisions = page.findall("revision")
    if not revisions or page.find("title") is None:
        return Bad(str(path), offset, "a page without a title or a revision")
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

# Tags whose body is text. The body of any other (ref, math, gallery, table, timeline, source ...) goes.
_INLINE = re.compile(
    r"abbr|b|bd[io]|big|cite|code|del|dfn|em|font|i|ins|kbd|nowiki|noinclude|onlyinclude|q|s|samp|section|small|"
    r"span|strike|strong|su[bp]|tt|u|var"
)
_BLOCK = re.compile(r"blockquote|center|d[dlt]|div|hr|li|[ou]l|p|poem")

# Text of a heading is put between these until the empty sections are gone: private-use characters,
# which no dump has a use for.
_HEADING, _HEADING_END = "\ue000", "\ue001"

_REDIRECT = re.compile(r"#\w+\s*:?\s*\[\[")
_QUOTES = re.compile(r"'{2,}")
_MAGIC = re.compile(r"__[^\W\d_]+(?:_[^\W\d_]+)*__")
_LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(?:-[a-z-]+)?:\S")
# Rows of tables whose beginning or end came from a template, which the parser leaves as text.
_TABLE_ROW = re.compile(r"^[ :]*(?:\{\||\|[-}+|]|[|!]).*$", re.MULTILINE)
_STRAY_BRACES = re.compile(r"\{\{|\}\}|\[\[|\]\]")
# What is left of a pronunciation or a set of dates in brackets once its templates are gone.
_EMPTY_BRACKETS = re.compile(r"[ \t]*\([\s,;:/–-]*\)")
_BRACKET_START = re.compile(r"\((?:[ \t]*[,;:])*[ \t]+|\([,;:]+")
_IDLE_COMMAS = re.compile(r",[ \t]*(?=[,.;])")
_SPACE = re.compile(r"[^\S\n]+")
_SPACE_BEFORE = re.compile(r" +([,.;:!?)](?!\w))")
_BLANK_LINES = re.compile(r"\n{3,}")


def clean(page: Page) -> Document | Drop:
    """An article's text, or why it has none."""
    if page.namespace != "0":
        return Drop("not an article", detail=page.title)
    if page.is_redirect or _REDIRECT.match(page.wikitext):
        return Drop("redirect", detail=page.title)
    try:
        # Style marks are left to a regular expression: unbalanced ones confuse the parser.
        wikicode = mwparserfromhell.parse(page.wikitext, skip_style_tags=True)
    except ParserError as error:
        return Drop("wikitext not understood", detail=f"{page.title}: {error}")
    text = _tidy(_plain(wikicode, page.site))
    if not text:
        return Drop("empty", detail=page.title)
    if len(text) < MIN_CHARACTERS:
        return Drop("too short", detail=page.title)
    return Document(
        id=f"{page.site.name}/{page.id}",
        source="wikipedia",
        text=text,
        meta={"title": page.title, "language": page.site.language, "revision": page.revision},
    )


def _plain(wikicode: Wikicode | None, site: Site) -> str:
    """The text that a reader sees, headings marked; templates, comments and external links give none."""
    parts: list[str] = []
    for node in wikicode.nodes if wikicode else ():
        match node:
            case nodes.Text():
                parts.append(node.value)
            case nodes.Wikilink():
                parts.append(_plain_link(node, site))
            case nodes.Heading():
                parts.append(f"\n{_HEADING}{node.level}{_plain(node.title, site).strip()}{_HEADING_END}\n")
            case nodes.HTMLEntity():
                parts.append(_plain_entity(node))
            case nodes.Tag():
                parts.append(_plain_tag(node, site))
    return "".join(parts)


def _plain_link(link: nodes.Wikilink, site: Site) -> str:
    title = _plain(link.title, site).strip()
    prefix = title.partition(":")[0].strip().lower()
    if prefix in site.hidden:
        return ""
    if link.text is not None:
        return _plain(link.text, site)
    # `[[de:Titel]]` alone stands in the margin, as the article's name in another language.
    return "" if _LANGUAGE_LINK.match(title) else title.removeprefix(":")


def _plain_entity(entity: nodes.HTMLEntity) -> str:
    try:
        return str(entity.normalize())
    except ValueError:  # a number outside Unicode
        return ""


def _plain_tag(tag: nodes.Tag, site: Site) -> str:
    name = str(tag.tag).strip().lower()
    if tag.wiki_markup and name in ("li", "dd", "dt"):
        return ""  # the mark at the beginning of a list line; the line itself is text beside it
    if _INLINE.fullmatch(name):
        return _plain(tag.contents, site)
    if name == "br":
        return "\n"
    if _BLOCK.fullmatch(name):
        return f"\n{_plain(tag.contents, site)}\n"
    return ""


def _tidy(text: str) -> str:
    text = _MAGIC.sub(lambda word: "" if word[0].isupper() else word[0], text)
    text = "\n".join(map(_unquoted, text.split("\n")))
    text = _STRAY_BRACES.sub("", _TABLE_ROW.sub("", text))
    text = _BRACKET_START.sub("(", _EMPTY_BRACKETS.sub("", text))
    text = _IDLE_COMMAS.sub("", text)
    text = _SPACE_BEFORE.sub(r"\1", _SPACE.sub(" ", text))
    lines = [line.strip() for line in text.splitlines()]
    # A line without a letter or digit is what punctuation is left of a list of removed things.
    lines = [line for line in lines if not line or any(character.isalnum() for character in line)]
    return _BLANK_LINES.sub("\n\n", "\n".join(_without_empty_sections(lines))).strip()


def _unquoted(line: str) -> str:
    """A line without its style marks: 2, 3 and 5 apostrophes are italic, bold and both; the rest is text.

    Where both are left open, one bold mark is an apostrophe and an italic mark, as in `l'''Aleph''`:
    the first after a word of one letter, else the first after a word, else the first.
    """
    marks = list(_QUOTES.finditer(line))
    lengths = [{2: 2, 3: 3, 4: 3}.get(len(mark[0]), 5) for mark in marks]
    shown = [len(mark[0]) - length for mark, length in zip(marks, lengths, strict=True)]
    n_both = lengths.count(5)
    if 3 in lengths and (lengths.count(3) + n_both) % 2 and (lengths.count(2) + n_both) % 2:
        bold = [index for index, length in enumerate(lengths) if length == 3]
        shown[min(bold, key=lambda index: _rank(line[: marks[index].start()]))] += 1
    apostrophes = iter(shown)
    return _QUOTES.sub(lambda mark: "'" * next(apostrophes), line)


def _rank(before: str) -> int:
    if not before[-1:].strip():
        return 2
    return 1 if before[-2:-1].strip() else 0


def _without_empty_sections(lines: list[str]) -> list[str]:
    """Headings as plain lines with a blank line before and after; those with nothing under them removed."""
    kept: list[str] = []  # built from the end, so that what lies under a heading is known
    text_below = False
    levels_below: set[int] = set()
    for line in reversed(lines):
        if not line.startswith(_HEADING):
            text_below = text_below or bool(line)
            kept.append(line)
            continue
        level, title = int(line[1]), line[2:].removesuffix(_HEADING_END)
        if text_below or any(below > level for below in levels_below):
            kept += ["", title, ""]
            levels_below = {below for below in levels_below if below < level} | {level}
        text_below = False
    return kept[::-1]
