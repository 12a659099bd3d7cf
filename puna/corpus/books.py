"""Books: Project Gutenberg plain text -> documents (paper section 2.1).

In:  `*.txt`, a file a book, in any encoding that Gutenberg has used.
Out: one Document a book: the author's words, without the licence before and after them.

    Title: Moby Dick                                     header: gives the title
    *** START OF THE PROJECT GUTENBERG EBOOK ... ***
    Produced by ...                                      producer's note: trimmed
    Call me Ishmael. ...                                 Document
    *** END OF THE PROJECT GUTENBERG EBOOK ... ***
    ...                                                  footer: the licence in full
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from puna.corpus.document import Bad, Document, Drop

PATTERNS: tuple[str, ...] = ("*.txt",)

MIN_CHARACTERS = 200
MAX_BYTES = 64 << 20  # the longest works are about 10 MB


@dataclass(frozen=True)
class Book:
    """One file, decoded. `name` is its name without the suffix."""

    name: str
    text: str


# ---- reading --------------------------------------------------------------------------------------


def read(path: Path) -> Iterator[Book | Bad]:
    """The book in a file; damaged characters are named in a Bad, and the rest is kept."""
    if path.stat().st_size > MAX_BYTES:
        yield Bad(str(path), 0, f"larger than {MAX_BYTES} bytes: not a book")
        return
    text, damaged_at = decode(path.read_bytes())
    if "\0" in text:
        yield Bad(str(path), 0, "not text: it holds NUL characters")
        return
    if damaged_at is not None:
        yield Bad(str(path), damaged_at, "damaged characters, replaced by U+FFFD")
    yield Book(path.stem, text)


def decode(data: bytes) -> tuple[str, int | None]:
    """The text of some bytes, and where they are first damaged: BOM, else UTF-8, else Windows-1252."""
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if data.startswith(mark):
            return _decode_as(encoding, data)
    text, damaged_at = _decode_as("utf-8-sig", data)
    if damaged_at is None:
        return text, None
    damaged = text.count("\ufffd")
    sound = sum(character > "\x7f" for character in text) - damaged
    if sound > damaged or data.startswith(codecs.BOM_UTF8):
        return text, damaged_at
    try:
        # A superset of Latin-1 in all that a book prints: its extra codes are quotation marks and dashes.
        return data.decode("cp1252"), None
    except UnicodeDecodeError:
        return data.decode("latin-1"), None


def _decode_as(encoding: str, data: bytes) -> tuple[str, int | None]:
    try:
        return data.decode(encoding), None
    except UnicodeDecodeError as error:
        return data.decode(encoding, "replace"), error.start


# ---- cleaning -------------------------------------------------------------------------------------

_LINES = re.MULTILINE | re.IGNORECASE

# What a header ends with. Titles may run over several lines before the closing stars.
_START = re.compile(
    r"^[ \t]*\*{3} ?START OF (?:TH(?:E|IS) )?(?:COPYRIGHTED )?PROJECT GUTENBERG"
    r"(?:[^*\n]|\n(?!\n)){0,400}(?:\*{3}|$)",
    _LINES,
)
# The same until about 2001, when the licence was all in the header and was called the small print.
_SMALL_PRINT_END = re.compile(r"^[ \t]*\*{0,3} ?END ?\*? ?(?:OF )?THE SMALL PRINT!.*$", _LINES)
# What a footer begins with. In the oldest files only a sentence, which is then the last of its kind.
_END = re.compile(r"^[ \t]*\*{3} ?END OF (?:TH(?:E|IS) )?(?:COPYRIGHTED )?PROJECT GUTENBERG", _LINES)
_END_SENTENCE = re.compile(
    r"^[ \t*]*(?:this is the )?end of (?:the |this )?(?:copyrighted )?project gutenberg(?:'s|’s|-tm|™)?\b.*$",
    _LINES,
)
_SMALL_PRINT = re.compile(r"^[ \t]*\*{2,3} ?START ?\*{0,2} ?THE SMALL PRINT", _LINES)
_HEADER_LINES = 1000

_TITLE = re.compile(r"^(?:Book )?Title:[ \t]*(\S.*(?:\n[ \t]+\S.*)*)", _LINES)
_AUTHOR = re.compile(r"^Author:[ \t]*(\S.*)$", _LINES)
_LANGUAGE = re.compile(r"^Language:[ \t]*(\S.*)$", _LINES)

_PRODUCER = re.compile(
    r"\s*(?:\[?\s*(?:produced by|e-?text (?:prepared|produced) by|prepared by|transcribed (?:by|from)|"
    r"scanned (?:and proofed )?by|(?:html|pdf) version by|updated editions? |"
    r"th(?:is|e) (?:project gutenberg )?(?:e-?text|e-?book|file|html version)\b.{0,60}?"
    r"(?:was|were) (?:\w+ )?(?:produced|prepared|created|transcribed|typed|scanned|converted)|"
    r"(?:note: )?project gutenberg also has|images of the original pages are available|"
    r"transcribers?['’]?s?['’]? notes?:))",
    re.IGNORECASE | re.DOTALL,
)
_NOTE_LINES = 12  # a paragraph longer than this is the book, whatever it begins with

_TRAILING_SPACE = re.compile(r"[ \t\f\v]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{4,}")


def clean(book: Book) -> Document | Drop:
    """The book between its marks, or why there is none."""
    text = book.text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    text = _TRAILING_SPACE.sub("", text)
    header, body = split(text)
    body = _BLANK_LINES.sub("\n\n\n", without_notes(body)).strip()
    if not body:
        return Drop("empty", detail=book.name)
    if len(body) < MIN_CHARACTERS:
        return Drop("too short", detail=book.name)
    fields = {"title": _TITLE, "author": _AUTHOR, "language": _LANGUAGE}
    found = {name: pattern.search(header) for name, pattern in fields.items()}
    meta = {name: " ".join(match[1].split()) for name, match in found.items() if match}
    return Document(id=book.name, source="books", text=body, meta=meta)


def split(text: str) -> tuple[str, str]:
    """The licence header, and the book between header and footer. A text without marks is all book."""
    stop = len(text)
    if end := _END.search(text):
        stop = end.start()
    sentences = list(_END_SENTENCE.finditer(text, 0, stop))
    # Above the mark the sentence is a line or two away; elsewhere it may belong to one part of an anthology.
    if sentences and (not end or text.count("\n", sentences[-1].end(), stop) <= 5):
        stop = sentences[-1].start()
    start = 0
    for mark in _START.search(text, 0, stop), _SMALL_PRINT_END.search(text, 0, stop):
        if mark and text.count("\n", 0, mark.start()) <= _HEADER_LINES:
            start = mark.end()
            break
    # Some files of 2003 carry the small print after the book, and no other mark.
    trailer = _SMALL_PRINT.search(text, start, stop)
    if trailer and trailer.start() > (start + stop) // 2:
        stop = trailer.start()
    return text[:start], text[start:stop]


def without_notes(body: str) -> str:
    """The book without the paragraphs before it that say who typed, scanned or proofread it."""
    while True:
        body = body.lstrip("\n")
        paragraph, _, rest = body.partition("\n\n")
        if not _PRODUCER.match(paragraph) or paragraph.count("\n") >= _NOTE_LINES:
            return body
        body = rest
