"""Cleans up text where markup was removed, and nowhere else.

In:  the text from the walk over wikitext, with a private mark wherever something was removed.
Out: the text as its author wrote it, without marks.

    Llama (⟨removed⟩; from Quechua) lives , as in main() ⟨removed⟩.
    ─> Llama (from Quechua) lives , as in main().
"""

import re

from puna.corpus.superscripts import SHIFT_END, shifted
from puna.corpus.wikipedia.magic_words import REMOVED, STRAY_CALL, without_switches

# Private-use characters. Those in the author's text are set aside (`Kept`) before any is inserted.
HEADING, HEADING_END = "\ue000", "\ue001"  # around a heading and its level, removed by `tidy`
LOST_LINK = "\ue003"  # an external link was here
ITEM = "\ue004"  # a line of a list begins here
_SPACE_THAT_STAYS = "\ue008"
_FIRST_KEPT, _LAST_KEPT = 0xF0000, 0x10FFFD


class Kept:
    """Text that no rule may change: a private character replaces it until the page is finished."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def add(self, text: str) -> str:
        """The character that stands for `text`."""
        number = _FIRST_KEPT + len(self._texts)
        if number > _LAST_KEPT:
            return text  # 131,000 pieces of code in one page
        self._texts.append(text)
        return chr(number)

    def restore(self, text: str) -> str:
        """The text with the kept texts put back; these may contain others, which were kept before them."""
        while _KEPT.search(text):
            text = _KEPT.sub(self._text_of, text)
        return text

    def _text_of(self, match: re.Match[str]) -> str:
        number = ord(match[0]) - _FIRST_KEPT
        return self._texts[number] if number < len(self._texts) else ""


_KEPT = re.compile("[\U000f0000-\U0010fffd]")
PRIVATE = re.compile("[\ue000-\ue008\U000f0000-\U0010fffd]")

_QUOTES = re.compile(r"'{2,}")
# Rows of tables that begin or end in a template; the tokenizer leaves them as text.
_OPEN_TABLE = re.compile(r"^[ :]*(?:\{\||\|[-}+])", re.MULTILINE)
_TABLE_ROW = re.compile(r"^[ :]*(?:\{\||\|[-}+|]|[|!]).*\n?", re.MULTILINE)
_STRAY_MARKS = re.compile(
    r"\{\{\{?[^{}\n]{0,200}\}?\}\}|\{\{+|\[\[|\{\||\|\}|"
    r"</?(?:ref|references|math|chem|ce|gallery|br|small|big|su[bp]|span|div|center|font|nowiki|includeonly|"
    r"noinclude|onlyinclude|blockquote|t[dhr]|table|p|[bius]|li|[ou]l|code|tt|pre|poem|section|source|"
    r"syntaxhighlight|abbr|mark|cite|em|strong|del|ins|h[1-6]|d[dlt]|hr|caption|timeline|score|ruby|r[bpt])"
    r"\b[^<>\n]{0,300}>",
    re.IGNORECASE,
)

# Pairs that are removed if nothing is left between them.
_PAIRS = frozenset(("«»", "“”", "„“", "„”", "[]", "<>"))
_ROUND = {"(": ")", "（": "）"}
_GONE = re.compile(f"[{REMOVED}{LOST_LINK}]+")
_JOINTS = " \t,;:/–—-，、；："  # what may be left of a list in brackets whose items were removed
_FIRST_JOINT = re.compile(r"[,;:.][ \t]+")
_TAIL = 200  # how far before a mark the clean-up looks

_MARKS = re.compile(f"[{REMOVED}{LOST_LINK}{ITEM}]")
# A list item that began with a removed link, perhaps in italics: the rest is meaningless without it.
_LINK_LINE = re.compile(rf"{ITEM}+[ \t'\"«„“*–-]*{REMOVED}*[ \t'\"«„“]*{LOST_LINK}")
# One that began with a removed template, or introduces removed ones.
_LOST_ITEM = re.compile(rf"{ITEM}+[ \t]*(?:{REMOVED}[ \t]*[-–—:(,]|[^{REMOVED}\n]*:[ \t]*$)")
_SPACE = re.compile(r"[^\S\n]{2,}|[^\S \n]")
# Lines that begin with a space are preformatted; if their indentation differs, they are code.
_AS_THEY_STAND = re.compile(r"(?:^ [^\n]*\S[^\n]*(?:\n|\Z)){2,}", re.MULTILINE)
_SPACES = re.compile(r"(?<=^ ) +|(?<=\S) {2,}", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
_SHOWN = re.compile("[^\\W_]|[\U000f0000-\U0010fffd]")
# Headings of the section of external links, in the paper's languages.
_LINKS_SECTION = re.compile(
    r"external (?:links?|sources)|weblinks?|liens? externes?|enlaces? externos?|vínculos externos|"
    r"collegamenti esterni|externe links?|ligações externas|links? externos?|linki zewnętrzne|ссылки|"
    r"внешние ссылки|посилання|зовнішні посилання|externa länkar|eksterne (?:henvisninger|links|lenker)|"
    r"externí odkazy|külső hivatkozások|legături externe|vanjske poveznice|спољашње везе|spoljašnje veze|"
    r"zunanje povezave|външни препратки|enllaços externs|ligações? externas?",
    re.IGNORECASE,
)


def tidy(text: str) -> str:
    """The text without style marks, magic words and private marks, and without their leftovers."""
    if "__" in text:
        text = without_switches(text, REMOVED)
    if "''" in text:
        text = unquoted(text)
    if SHIFT_END in text:
        text = shifted(text)
    if "{{" in text or _OPEN_TABLE.search(text):  # or the parameters of an unclosed template
        text = _TABLE_ROW.sub("", text)
    if any(mark in text for mark in ("{", "}", "[[", "]]", "<", "|")):
        text = _without_stray_ends(_STRAY_MARKS.sub(_stray, STRAY_CALL.sub(REMOVED, text)), text)
    if "\n  " in text:
        text = _AS_THEY_STAND.sub(_indented, text)
    lines = []
    links_level = ""  # the level of the heading of the external links that a line is under
    for line in _SPACE.sub(" ", text).split("\n"):
        if line.startswith(HEADING):
            if _LINKS_SECTION.fullmatch(line[2:].removesuffix(HEADING_END).strip()):
                links_level = line[1]
            elif line[1] <= links_level:
                links_level = ""
        elif line.startswith(ITEM) and (
            (LOST_LINK in line and (links_level or _LINK_LINE.match(line)))
            or (links_level and _LOST_ITEM.match(line))
        ):
            continue
        if REMOVED in line or LOST_LINK in line:
            line = _cleaned(line)
        line = line.strip(" ")
        # A marked line without a letter or digit is the punctuation of a list whose items were removed.
        if not line or _SHOWN.search(line) or not _MARKS.search(line):
            lines.append(_MARKS.sub("", line).strip())
    return (
        _BLANK_LINES.sub("\n\n", "\n".join(_without_empty_sections(lines)))
        .strip()
        .replace(_SPACE_THAT_STAYS, " ")
    )


def _stray(mark: re.Match[str]) -> str:
    """Nothing for a stray mark; those of tables begin a line, elsewhere they are the author's."""
    before = mark.string[mark.string.rfind("\n", 0, mark.start()) + 1 : mark.start()]
    return mark[0] if mark[0] in ("{|", "|}") and before.strip(" :") else REMOVED


def _without_stray_ends(text: str, before: str) -> str:
    """The text without `}}` and `]]`, if their beginnings were removed too; others are the author's."""
    for opening, closing in (("{{", r"\}\}+"), ("[[", r"\]\]")):
        if opening in before:
            text = re.sub(closing, REMOVED, text)
    return text


def _indented(lines: re.Match[str]) -> str:
    """Lines with their indentation, if it is not the same for all of them."""
    if len({len(line) - len(line.lstrip(" ")) for line in lines[0].splitlines()}) < 2:
        return lines[0]
    return _SPACES.sub(lambda spaces: _SPACE_THAT_STAYS * len(spaces[0]), lines[0])


def _cleaned(line: str) -> str:
    """A line without its marks and their leftovers."""
    pieces = _GONE.split(line)
    parts, left = [], pieces[0]
    for right in pieces[1:]:
        left = _joined(left, right)
        if len(left) > 2 * _TAIL:
            parts.append(left[:-_TAIL])
            left = left[-_TAIL:]
    line = "".join(parts) + left
    # A line with nothing else left keeps a mark that something was removed.
    return line if _SHOWN.search(line) else REMOVED


def _joined(left: str, right: str) -> str:
    """The text before and after a removal, joined; the author's text elsewhere is unchanged."""
    while True:
        before, after = left.rstrip(" \t"), right.lstrip(" \t")
        last, first = before[-1:], after[:1]
        if last in _ROUND and (rest := after.lstrip(_JOINTS)).startswith(_ROUND[last]):
            left, right = before[:-1], rest[1:]
        elif first in _ROUND.values() and (rest := before.rstrip(_JOINTS)).endswith(tuple(_ROUND)):
            left, right = rest[:-1], after[1:]
        elif last + first in _PAIRS:
            left, right = before[:-1], after[1:]
        else:
            break
    if last in _ROUND:
        return before + after.lstrip(" \t,;:，、；：")
    if first in _ROUND.values():
        return before.rstrip(" \t,;:，、；：") + after
    if not before.strip(ITEM):
        return before + (after[start.end() :] if (start := _FIRST_JOINT.match(after)) else after)
    # Neither `.NET` nor `...` ends the text before it.
    ends = first and first in ",.;:!?" and not (after[1:2].isalnum() or after[1:2] in ("_", "."))
    if ends and first == last == ".":
        return before + after[1:]  # `known." {{x}}.`
    if ends and first in ",.;" and last in (",", ";"):
        return before[:-1] + after  # `known, {{x}}, as`
    if ends and left != before and right == after:
        return before + after  # `seen {{cn}}.`
    if left != before and right != after:
        return f"{before} {after}"
    return left + right


def unquoted(text: str) -> str:
    """The text without the marks of italic and bold type."""
    return "\n".join(_unquoted(line) if "''" in line else line for line in text.split("\n"))


def _unquoted(line: str) -> str:
    """A line without its style marks: 2, 3 and 5 apostrophes are italic, bold and both; the rest is text.

    If both are unclosed, one bold mark is an apostrophe and an italic mark, as in `l'''Aleph''`:
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
    """Headings as plain lines with a blank line before and after; headings without text are removed."""
    kept: list[str] = []  # built from the end, so that the text under a heading is known
    text_below = False
    levels_below: set[int] = set()
    for line in reversed(lines):
        if not line.startswith(HEADING):
            line = line.replace(HEADING_END, "")  # of a heading with a block, which ends its line
            text_below = text_below or bool(line)
            kept.append(line)
            continue
        level, title = int(line[1]), line[2:].removesuffix(HEADING_END)
        if text_below or any(below > level for below in levels_below):
            kept += ["", title, ""]
            levels_below = {below for below in levels_below if below < level} | {level}
        text_below = False
    return kept[::-1]
