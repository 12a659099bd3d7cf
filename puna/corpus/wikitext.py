"""Wikitext -> the text that a reader of the page sees.

In:  an article's wikitext, and the names of its site's namespaces.
Out: prose, lists and headings as lines; no markup.

    '''Llamas'''{{cn}} live in [[Peru|the Andes]].<ref>A book.</ref> [[File:Lama.jpg|thumb|A llama]]
    ─> Llamas live in the Andes.

mwparserfromhell's tokenizer (C) finds what is markup; its tokens are walked here in one pass. Its own tree
of Python objects costs several times as much as the tokens, and would be thrown away at once.
"""

import html
import re
from collections.abc import Iterator

from mwparserfromhell.parser import CTokenizer
from mwparserfromhell.parser import tokens as t

# What the tokenizer may cost: it reads on to the end of the page for every mark that is never closed, about a
# million characters a second. The worst of 106 real articles needs a tenth of this.
MAX_WORK = 4_000_000
# Links that show no text whatever the language, and those to sister projects, whose bare names are no text.
HIDDEN = frozenset({"file", "image", "media", "category"})
_SISTER = re.compile(
    r"[bcdmnqsvw]|mw|voy|wikt|wiktionary|commons|species|meta(?:wikipedia)?|"
    r"wiki(?:books|data|news|pedia|quote|source|species|versity|voyage)"
)

# Tags whose body is text. The body of any other (ref, math, gallery, table, timeline, source ...) goes.
_INLINE = re.compile(
    r"abbr|b|bd[io]|big|cite|code|del|dfn|em|font|i|ins|kbd|nowiki|noinclude|onlyinclude|q|s|samp|section|small|"
    r"span|strike|strong|su[bp]|tt|u|var"
)
_BLOCK = re.compile(r"blockquote|center|d[dlt]|div|h[1-6r]|li|[ou]l|p|poem")

# Text of a heading is put between these until the empty sections are gone: private-use characters,
# which no dump has a use for.
_HEADING, _HEADING_END = "\ue000", "\ue001"

# A comment that is not closed hides the rest of the page, in MediaWiki as here.
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_LANGUAGE_LINK = re.compile(r"(?:[a-z]{2,3}(?:-[a-z-]+)?|simple):\S")
_IN_BRACKETS = re.compile(r"\s*\([^()]*\)$")
_VARIANT = re.compile(r"-\{(?:[^{}|;:]*\|)?([^{}]*)\}-")

_OPENERS = frozenset(
    {
        t.TemplateOpen,
        t.ArgumentOpen,
        t.WikilinkOpen,
        t.ExternalLinkOpen,
        t.HTMLEntityStart,
        t.HeadingStart,
        t.CommentStart,
        t.TagOpenOpen,
    }
)
_CLOSERS = frozenset(
    {
        t.TemplateClose,
        t.ArgumentClose,
        t.WikilinkClose,
        t.ExternalLinkClose,
        t.HTMLEntityEnd,
        t.HeadingEnd,
        t.CommentEnd,
        t.TagCloseClose,
        t.TagCloseSelfclose,
    }
)
_ENDS_TEXT = frozenset({t.WikilinkSeparator, t.ExternalLinkSeparator, t.TagOpenClose}) | _CLOSERS


class TangledError(ValueError):
    """So much markup is left open that parsing it would take minutes."""


def plain_text(
    wikitext: str, hidden: frozenset[str] = HIDDEN, variants: bool = False, external_labels: bool = False
) -> str:
    """What is read on the page.

    `hidden` are the lower-case namespaces whose links show no text; `variants` says that `-{...}-` marks
    one script of two, as in Serbian; `external_labels` keeps the words of links that leave the wiki.

    Raises:
        TangledError: when the tokenizer would take too long.
    """
    wikitext = _COMMENT.sub("", wikitext)
    if variants:
        wikitext = _VARIANT.sub(_first_variant, wikitext)
    if (work := _work(wikitext)) > MAX_WORK:
        raise TangledError(f"about {work} steps to parse")
    # Style marks are left to a regular expression: unbalanced ones confuse the tokenizer.
    walk = _Walk(CTokenizer().tokenize(wikitext, 0, True), hidden, external_labels)
    return tidy(walk.text()[0])


def _first_variant(match: re.Match[str]) -> str:
    """`-{Lama}-` is Lama in both scripts; `-{sr-ec: Лама; sr-el: Lama}-` is the first here."""
    return match[1].partition(";")[0].rpartition(":")[2].strip() if ";" in match[1] else match[1]


_MARKS = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|<(/?)([a-zA-Z]+)[^<>]*(>?)")
_PAIRS = {"}}": "{{", "]]": "[[", "|}": "{|"}
# Tags that need no end, so none is searched for.
_SINGLE = re.compile(r"w?br|hr|img|meta|link|li|d[dt]|t[dhr]")


def _work(wikitext: str) -> int:
    """About how many characters the tokenizer reads in vain: from each mark left open to the end."""
    length = len(wikitext)
    if length * sum(map(wikitext.count, ("{{", "[[", "{|", "<"))) <= MAX_WORK:
        return 0  # even if none of them were closed
    open_marks: dict[str, list[int]] = {}
    work = 0
    for mark in _MARKS.finditer(wikitext):
        name = mark[0]
        if name in _PAIRS:
            open_marks.get(_PAIRS[name], [0])[-1:] = []
        elif not mark[2]:
            open_marks.setdefault(name, []).append(mark.start())
        elif not mark[3]:
            work += length - mark.start()
        elif mark[1]:
            open_marks.get(mark[2].lower(), [0])[-1:] = []
        elif not name.endswith("/>") and not _SINGLE.fullmatch(mark[2].lower()):
            open_marks.setdefault(mark[2].lower(), []).append(mark.start())
    return work + sum(length - start for starts in open_marks.values() for start in starts)


class _Walk:
    """Goes through the tokens once. What opens is closed by a later token, well nested, 100 deep at most."""

    def __init__(self, tokens: list[t.Token], hidden: frozenset[str], external_labels: bool) -> None:
        self.tokens: Iterator[t.Token] = iter(tokens)
        self.hidden = hidden
        self.external_labels = external_labels

    def text(self) -> tuple[str, type[t.Token] | None]:
        """The text up to the token that ends this node or its part, and that token's kind."""
        parts: list[str] = []
        for token in self.tokens:
            kind = type(token)
            if kind is t.Text:
                parts.append(token["text"])
            elif kind is t.WikilinkOpen:
                parts.append(self.link())
            elif kind is t.TagOpenOpen:
                parts.append(self.tag(token))
            elif kind is t.HeadingStart:
                title, _ = self.text()
                parts.append(f"\n{_HEADING}{token['level']}{title.strip()}{_HEADING_END}\n")
            elif kind is t.HTMLEntityStart:
                parts.append(self.entity())
            elif kind is t.ExternalLinkOpen and self.external_labels:
                parts.append(self.external_link())
            elif kind in _OPENERS:
                self.skip()
            elif kind in _ENDS_TEXT:
                return "".join(parts), kind
        return "".join(parts), None

    def skip(self) -> None:
        """Past the token that closes the node which the last one opened."""
        depth = 1
        for token in self.tokens:
            kind = type(token)
            if kind is t.Text:
                continue
            if kind in _OPENERS:
                depth += 1
            elif kind in _CLOSERS:
                depth -= 1
                if not depth:
                    return

    def link(self) -> str:
        title, end = self.text()
        title = title.strip()
        prefix, colon, name = title.partition(":")
        prefix = prefix.strip().lower()
        if colon and prefix in self.hidden:
            if end is t.WikilinkSeparator:
                self.skip()
            return ""
        if end is t.WikilinkSeparator:
            words, _ = self.text()
            # `[[Llama (animal)|]]` reads as Llama.
            return words if words.strip() else _IN_BRACKETS.sub("", name or title)
        # `[[de:Titel]]` alone stands in the margin, as the article's name in another language.
        if colon and (_SISTER.fullmatch(prefix) or _LANGUAGE_LINK.match(title)):
            return ""
        return title.removeprefix(":")

    def external_link(self) -> str:
        _, end = self.text()
        return self.text()[0] if end is t.ExternalLinkSeparator else ""

    def tag(self, opening: t.Token) -> str:
        name = next(self.tokens).get("text", "").strip().lower()
        if opening.get("wiki_markup") and name in ("li", "dd", "dt"):
            self.skip()  # the mark at the beginning of a list line; the line itself is text beside it
            return ""
        is_block = _BLOCK.fullmatch(name) is not None
        if not is_block and not _INLINE.fullmatch(name):
            self.skip()
            return "\n" if name == "br" else ""
        depth = 0
        for token in self.tokens:  # attributes, which may hold templates
            kind = type(token)
            if not depth and kind is t.TagCloseSelfclose:
                return "\n\n" if is_block else ""
            if not depth and kind is t.TagCloseOpen:
                break
            depth += (kind in _OPENERS) - (kind in _CLOSERS)
        body, _ = self.text()
        self.skip()  # the name again, in the closing tag
        return f"\n{body}\n" if is_block else body

    def entity(self) -> str:
        marks = {}
        for token in self.tokens:
            kind = type(token)
            if kind is t.HTMLEntityEnd:
                break
            marks[kind] = token
        prefix = "#" * (t.HTMLEntityNumeric in marks) + "x" * (t.HTMLEntityHex in marks)
        # As browsers do: what is outside Unicode becomes U+FFFD.
        return html.unescape(f"&{prefix}{marks[t.Text]['text']};")


# ---- tidying --------------------------------------------------------------------------------------

_QUOTES = re.compile(r"'{2,}")
_MAGIC = re.compile(r"__[^\W\d_]+(?:_[^\W\d_]+)*__")
# Rows of tables whose beginning or end came from a template, which the tokenizer leaves as text.
_TABLE_ROW = re.compile(r"^[ :]*(?:\{\||\|[-}+|]|[|!]).*\n?", re.MULTILINE)
_STRAY_MARKS = re.compile(
    r"\{\{\{?[^{}\n]{0,200}\}?\}\}|\{\{+|\}\}+|\[\[|\]\]|\{\||\|\}|"
    r"</?(?:ref|references|math|gallery|br|small|big|su[bp]|span|div|center|font|nowiki|includeonly|noinclude|"
    r"onlyinclude|blockquote|t[dhr]|table|p|[bius]|li|[ou]l|code|pre|poem|section)\b[^<>\n]{0,300}>",
    re.IGNORECASE,
)
# What is left of a pronunciation or a set of dates in brackets once its templates are gone.
_EMPTY_BRACKETS = re.compile(r"[ \t]*\([\s,;:/–-]*\)")
_BRACKET_START = re.compile(r"\((?:[ \t]*[,;:])*[ \t]+|\([,;:]+")
_IDLE_COMMAS = re.compile(r",[ \t]*(?=[,.;])")
_SPACE = re.compile(r"[^\S\n]+")
_SPACE_BEFORE = re.compile(r" +([,.;:!?)](?!\w))")
_BLANK_LINES = re.compile(r"\n{3,}")
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")


def tidy(text: str) -> str:
    """The walked text without style marks, magic words and what is left where templates were."""
    if "__" in text:
        text = _MAGIC.sub(lambda word: "" if word[0].isupper() else word[0], text)
    if "''" in text:
        text = "\n".join(_unquoted(line) if "''" in line else line for line in text.split("\n"))
    text = _STRAY_MARKS.sub("", _TABLE_ROW.sub("", text))
    text = _BRACKET_START.sub("(", _EMPTY_BRACKETS.sub("", text))
    text = _IDLE_COMMAS.sub("", text)
    text = _SPACE_BEFORE.sub(r"\1", _SPACE.sub(" ", text))
    lines = [line.strip() for line in text.splitlines()]
    # A line without a letter or digit is what punctuation is left of a list of removed things.
    lines = [line for line in lines if not line or _LETTER_OR_DIGIT.search(line)]
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
