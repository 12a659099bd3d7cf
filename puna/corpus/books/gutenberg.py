"""Removes Project Gutenberg's text around a book: headers, footers, producers' notes, in all historic forms.

In:  a book's text; lines end in `\\n` without trailing spaces.
Out: the header, and the author's text.

    1971-2001  **The Project Gutenberg Etext of …** … ***START**THE SMALL PRINT! … *END*THE SMALL PRINT! …
               book … End of the Project Gutenberg Etext of …
    1993       ["Small Print" V.12.08.93] <<THIS ELECTRONIC VERSION OF …>> book … End of this Etext of …
    2002-2003  The Project Gutenberg Etext of … Title: … book … More information about this book is at the top
               … ***START**THE SMALL PRINT!
    since      … *** START OF THE PROJECT GUTENBERG EBOOK … *** book *** END OF THE PROJECT GUTENBERG EBOOK …
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from puna.files import read_table

_LINES = re.MULTILINE | re.IGNORECASE

# The mark at the end of a header. Its title may span several lines before the closing stars.
_START = re.compile(
    r"^[ \t]*\*{3} ?START OF (?:TH(?:E|IS) )?(?:COPYRIGHTED )?PROJECT GUTENBERG"
    r"(?:[^*\n]|\n(?!\n)){0,400}(?:\*{3}|$)",
    _LINES,
)
_END = re.compile(r"^[ \t]*\*{3} ?END OF (?:TH(?:E|IS) )?(?:COPYRIGHTED )?PROJECT GUTENBERG", _LINES)
_SMALL_PRINT = re.compile(r"^[ \t]*\*{1,4} ?START ?\*{0,2} ?(?:OF )?THE SMALL PRINT", _LINES)
_SMALL_PRINT_END = re.compile(r"^[ \t]*\*{0,3} ?END ?\*? ?(?:OF )?THE SMALL PRINT!.*$", _LINES)
# At the beginning of each play of the 1993 Shakespeare.
_ELECTRONIC_VERSION = re.compile(r"^[ \t]*<<THIS ELECTRONIC VERSION OF(?:[^>]|>(?!>)){0,2000}>>\n*", _LINES)

_PARAGRAPH = re.compile(r"[^\n]+(?:\n[^\n]+)*")
_HEADER_LINES = 1000

_PATTERNS = read_table(Path(__file__).with_suffix(".txt"), by_line=True)


def _any_of(key: str) -> str:
    """The alternatives of a key of gutenberg.txt."""
    pattern = "|".join(_PATTERNS[key])
    for name in ("makes", "file"):
        pattern = pattern.replace(f"<{name}>", f"(?:{'|'.join(_PATTERNS[name])})")
    return pattern


# A paragraph of a header without an end mark.
_HEADER = re.compile(_any_of("header"), _LINES)
_IS_GUTENBERGS = re.compile(r"gutenberg|\be-?text|copyright laws", re.IGNORECASE)
_STARS = re.compile(r"\n*[ \t]*[* \t]{3,}(?=\n)")
_UNKNOWN_PARAGRAPHS = 4  # maximum consecutive paragraphs of a header that match no pattern

# A paragraph that begins a footer. Without a mark, the text after it must be about Gutenberg.
_FOOTER = re.compile(rf"[\s*\[(]*(?:{_any_of('footer')})", re.IGNORECASE)
# Notes about who made the file, before or after the book.
_NOTE = re.compile(rf"\s*(?:\W{{0,3}}\s*(?:{_any_of('note')}))", re.IGNORECASE | re.DOTALL)
_NOTE_HEADING = re.compile(rf"\W*(?:{_any_of('heading')})\W*", re.IGNORECASE)
_ABOUT_THE_FILE = re.compile(_any_of("about"), re.IGNORECASE)
_RULE = re.compile(r"[ \t]*(?:[+*=~#_.-][ \t]*){5,}$")
_BOX = re.compile(r"^[ \t]*[|+*#][ \t]?|[ \t]*[|+*#]$", re.MULTILINE)
_ITEM = re.compile(r"\s*(?:\d+[.)]|[-*•]|p(?:age|\.)\s*\d)", re.IGNORECASE)
_NOTE_LINES = 12  # a longer paragraph is part of the book, whatever it begins with
_NOTE_NEAR = 2000  # characters, or a fiftieth of the book, in which a note's heading may follow its title
_NOTE_REACH = 60  # maximum lines of a note with a heading or a box, before the book
_END_NOTE_LINES = 600  # and after it
_BOOK_AFTER_NOTE = 1500  # more characters than this after a wide gap are the book, not a note

_ILLUSTRATION = re.compile(
    r"^[ \t]*\[(?:illustration|picture|ilustración|abbildung|illustrazione)\b[^\[\]]{0,1000}\][ \t]*$", _LINES
)
_TELLS = re.compile(r"gutenberg|\be-?text|\be-?book|donation|small print", re.IGNORECASE)
_WINDOW = 800
_OF_THE_FILE = re.compile(
    r"proje[ck]t gutenberg|distributed proofread|\bpgdp\.net|\bth(?:is|e) e-?(?:text|book)\b|plain vanilla",
    re.IGNORECASE,
)


class Parts(NamedTuple):
    """The header of a Gutenberg file, and the book. `note` describes anything unusual."""

    header: str
    book: str
    note: str = ""


def split(text: str) -> Parts:
    """The header, and the book between header and footer. A text without marks is returned whole.

    If a cut would leave less than half of a file, and the removed text is not about Gutenberg, as headers and
    footers are, the mark is in the wrong place, and the whole text is kept.
    """
    text = _ELECTRONIC_VERSION.sub("\n\n", text)
    start, stop = _bounds(text)
    kept = stop - start
    if kept < len(text) // 2 and _unlike(text[:start]) + _unlike(text[stop:]) > kept:
        return Parts("", text, f"kept whole: its marks would leave {kept / len(text):.0%} of it")
    return Parts(text[:start], text[start:stop])


def _unlike(text: str) -> int:
    """The number of characters in windows of a text that do not mention Gutenberg."""
    text = text.strip()
    windows = (text[place : place + _WINDOW] for place in range(0, len(text), _WINDOW))
    return sum(len(window) for window in windows if not _TELLS.search(window))


def _bounds(text: str) -> tuple[int, int]:
    end = _END.search(text)
    stop = end.start() if end else len(text)
    opening = _START.search(text, 0, stop)
    if opening and text.count("\n", 0, opening.start()) > _HEADER_LINES:
        opening = None
    start = opening.end() if opening else _header_end(text, stop)
    if not opening:
        small_print = _SMALL_PRINT_END.search(text, 0, stop)
        # After the book no text follows the small print; before it, the whole book does.
        if (
            small_print
            and small_print.end() > start
            and text.count("\n", 0, small_print.start()) <= _HEADER_LINES
        ):
            following = text[small_print.end() : _footer_start(text, small_print.end(), stop)].strip()
            before = text[start : small_print.start()]
            opener = _SMALL_PRINT.search(before)
            bare = not before[: opener.start() if opener else None].strip()
            if bare or (len(following) > 200 and _unlike(before) <= len(following)):
                start = small_print.end()
    stop = _footer_start(text, start, stop, marked=end is not None)
    return start, max(start, stop)


def _header_end(text: str, stop: int) -> int:
    """The end of a header without a mark: after the last paragraph of Gutenberg's text."""
    end = unknown = 0
    for number, paragraph in enumerate(_PARAGRAPH.finditer(text, 0, min(stop, 60_000))):
        known = _HEADER.search(paragraph[0]) is not None and not _SMALL_PRINT.match(paragraph[0])
        if known and (number or _IS_GUTENBERGS.search(paragraph[0])):
            end, unknown = paragraph.end(), 0
            continue
        unknown += 1
        if unknown > (_UNKNOWN_PARAGRAPHS if end else 2) or _SMALL_PRINT.match(paragraph[0]):
            break
    if not end or not _IS_GUTENBERGS.search(text[:end]):
        return 0
    return stars.end() if (stars := _STARS.match(text, end)) else end


def _footer_start(text: str, start: int, stop: int, marked: bool = False) -> int:
    """The start of the footer: its first sentence after which all text is about Gutenberg."""
    first = max(start, stop - 60_000)
    for paragraph in _PARAGRAPH.finditer(text, first, stop):
        if _FOOTER.match(paragraph[0]):
            rest = text[paragraph.start() : stop]
            # If there is a mark, the sentence is just above it; farther up it may end a part of an anthology.
            near = not marked or rest.count("\n") <= 8
            if near and not _unlike(rest):
                return paragraph.start()
    return stop


# ---- notes ----------------------------------------------------------------------------------------


def without_notes(book: str) -> str:
    """The book without notes before and after it about the making of the file."""
    while True:
        book = book.lstrip("\n")
        start, end = _headed_note(book) or (0, _leading_note(book))
        if not end:
            break
        book = book[:start] + book[end:]
    return _without_end_note(book)


def without_illustrations(book: str) -> str:
    """The book without the lines that replace pictures, including their captions."""
    return _ILLUSTRATION.sub("", book)


def _leading_note(book: str) -> int:
    """The end of the note at the beginning of a book; 0 if there is none."""
    paragraph = _PARAGRAPH.match(book)
    if not paragraph:
        return 0
    lines = paragraph[0].split("\n")
    if _RULE.match(lines[0]):
        body = _BOX.sub("", "\n".join(lines[1:])).strip()
        if not (_NOTE.match(body) or _NOTE_HEADING.match(body)):
            return 0
        if len(lines) > 1 and _RULE.match(lines[-1]):
            return paragraph.end()
        return _reach(book, lambda line: _RULE.match(line) is not None)
    if paragraph[0].lstrip().startswith("[") and (
        _NOTE.match(paragraph[0]) or _NOTE_HEADING.match(paragraph[0])
    ):
        if paragraph[0].count("[") <= paragraph[0].count("]"):
            return paragraph.end()
        return _reach(book, lambda line: line.rstrip().endswith("]"))
    body = _BOX.sub("", paragraph[0]).strip()
    if (_NOTE.match(body) or _OF_THE_FILE.search(body)) and (
        len(lines) <= _NOTE_LINES or body != paragraph[0].strip()
    ):
        return paragraph.end()
    return 0


def _reach(book: str, closes: Callable[[str], bool]) -> int:
    """The end of the line that closes a note; 0 if there is none within a note's length."""
    end = 0
    for number, line in enumerate(book.split("\n", _NOTE_REACH + 1)[:_NOTE_REACH]):
        end += len(line) + 1
        if number and closes(line):
            return min(end, len(book))
    return 0


def _headed_note(book: str) -> tuple[int, int] | None:
    """The start and end of a note under a heading, perhaps after a title and contents.

    It ends at the next wide gap, or with the last paragraph about the file.
    """
    near = min(max(_NOTE_NEAR, len(book) // 50), len(book) // 2)
    for heading in _PARAGRAPH.finditer(book, 0, near):
        if _NOTE_HEADING.fullmatch(_BOX.sub("", heading[0]).strip()):
            return heading.start(), _end_of_headed(book, heading.end())
    return None


def _end_of_headed(book: str, end: int) -> int:
    first, begin = True, end
    for paragraph in _PARAGRAPH.finditer(book, end):
        gap = book.count("\n", end, paragraph.start())
        lines = book.count("\n", begin, paragraph.end())
        speaks = _ITEM.match(paragraph[0]) or _ABOUT_THE_FILE.search(paragraph[0])
        if lines > _NOTE_REACH or not (first or (gap <= 2 and speaks)):
            break
        end, first = paragraph.end(), False
    return end


def _without_end_note(book: str) -> str:
    """The book without the transcriber's notes after it."""
    tail = len(book)
    for _ in range(_END_NOTE_LINES):
        tail = book.rfind("\n", 0, tail)
        if tail < 0:
            break
    tail = max(tail, len(book) // 2, 0)
    for paragraph in _PARAGRAPH.finditer(book, book.find("\n", tail) if tail else 0):
        lines = [line for line in paragraph[0].split("\n") if not _RULE.match(line)]
        body = _BOX.sub("", "\n".join(lines)).strip()
        heading, _, _ = body.partition("\n")
        opens = _NOTE_HEADING.match(body)
        if not opens or not (
            _NOTE_HEADING.fullmatch(heading) or body[: opens.end()].rstrip().endswith((":", ".", "—", "-"))
        ):
            continue
        gap = re.compile(r"\n{4,}").search(book, paragraph.end())
        if gap and len(book) - gap.end() > _BOOK_AFTER_NOTE and not _NOTE_HEADING.fullmatch(heading):
            continue
        if gap and len(book) - gap.end() > _BOOK_AFTER_NOTE and not _ABOUT_THE_FILE.search(book, gap.end()):
            return book[: paragraph.start()].rstrip("\n") + "\n\n\n\n" + book[gap.end() :]
        return book[: paragraph.start()].rstrip(" *\n")
    return book
