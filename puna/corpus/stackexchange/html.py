"""HTML -> text for posts: the visible text line by line, without tags.

In:  HTML as people and Markdown write it: damaged, unclosed, nested.
Out: plain text. Paragraphs are separated by a blank line, list items are lines, code is unchanged.

    <p>Grind <b>first</b>:</p><ol><li>beans</li></ol><pre><code>grind(  beans)</code></pre>

    Grind first:

    1. beans

    grind(  beans)
"""

import re
from dataclasses import dataclass

from selectolax.lexbor import LexborHTMLParser, LexborNode

from puna.corpus.superscripts import SHIFT_END, SUBSCRIPT, SUPERSCRIPT, shifted

# The minimum number of line breaks before and after an element.
_BREAKS = {
    **dict.fromkeys(["p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "hr", "table", "dl"], 2),
    **dict.fromkeys(["ul", "ol"], 2),
    **dict.fromkeys(["div", "li", "tr", "dt", "dd", "section", "article", "details", "summary"], 1),
}
_SHIFTS = {"sup": SUPERSCRIPT, "sub": SUBSCRIPT}
_BLOCKS = frozenset({*_BREAKS, *_SHIFTS, "br", "td", "th"})
_CLOSED = frozenset({*_BREAKS, *_SHIFTS})
_HIDDEN = frozenset(
    {"script", "style", "template", "noscript", "iframe", "object", "head", "title", "textarea"}
)
# White space other than a single space; matching every space would take longer than parsing.
_ROUGH = re.compile(r"(?:[\t\n\r\f]| (?=[ \t\n\r\f]))[ \t\n\r\f]*")


def text_of(html: str) -> str:
    """The text of an HTML fragment."""
    # Without markup there is nothing to parse.
    if "<" not in html and "&" not in html:
        return _ROUGH.sub(" ", html).strip()
    root = LexborHTMLParser(html).body
    writer = _Writer()
    node = root.child if root is not None else None
    # Not recursive: a post may be nested deeper than Python's call stack.
    above: list[tuple[LexborNode, str]] = []
    while node is not None:
        tag = node.tag or ""
        if tag == "-text":
            writer.text(node.text_content or "")
        elif tag not in _HIDDEN:
            if tag in _BLOCKS:
                writer.start(tag, node)
            if (child := node.child) is not None:
                above.append((node, tag))
                node = child
                continue
            if tag in _CLOSED:
                writer.end(tag)
        while (following := node.next) is None and above:
            node, tag = above.pop()
            if tag in _CLOSED:
                writer.end(tag)
        node = following
    text = "".join(writer.parts)
    return (shifted(text) if SHIFT_END in text else text).strip("\n").rstrip()


@dataclass
class _List:
    number: int | None  # the number of the next item in an ordered list
    is_empty: bool = True


class _Writer:
    """The text so far, and what precedes the next word: line breaks, then an item's mark."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._breaks = 0
        self._mark = ""
        self._lists: list[_List] = []
        self._in_pre = 0
        self._after_space = True  # whether the text ends in white space, so that no space is added

    def start(self, tag: str, node: LexborNode) -> None:
        """An element of _BLOCKS begins."""
        if tag == "br":
            self._breaks = min(self._breaks + 1, 2)
        elif tag in ("td", "th"):
            if not self._breaks:
                self.text(" | ")
        elif tag == "li":
            self._start_item()
        elif tag in _SHIFTS:
            self.text(_SHIFTS[tag])
        else:
            breaks = _BREAKS[tag]
            if tag in ("ul", "ol"):
                breaks = 1 if self._lists else 2
                self._lists.append(_List(_first_number(node) if tag == "ol" else None))
            elif tag == "pre":
                self._in_pre += 1
            if not self._mark:  # a paragraph that begins an item begins on its line
                self._breaks = max(self._breaks, breaks)

    def end(self, tag: str) -> None:
        """An element of _CLOSED ends."""
        if tag in _SHIFTS:
            self.parts.append(SHIFT_END)
            return
        breaks = _BREAKS[tag]
        if tag in ("ul", "ol"):
            self._lists.pop()
            breaks = 1 if self._lists else 2
        elif tag == "li":
            self._mark = ""
        elif tag == "pre":
            self._in_pre -= 1
            if self.parts:
                self.parts[-1] = self.parts[-1].rstrip("\n")
        self._breaks = max(self._breaks, breaks)

    def text(self, text: str) -> None:
        """Words between tags: in code as they are, elsewhere with single spaces."""
        if not self._in_pre:
            if text.isspace():  # half of all texts, between paragraphs, are empty
                if self._after_space or self._breaks:
                    return
                text = " "
            elif "\n" in text or "  " in text or "\t" in text or "\r" in text or "\f" in text:
                text = _ROUGH.sub(" ", text)
            if text.startswith(" ") and (self._after_space or self._breaks):
                text = text[1:]
        if not text:
            return
        if self._breaks:
            if self.parts:
                if self._after_space and not self._in_pre:
                    self.parts[-1] = self.parts[-1].rstrip(" ")
                self.parts.append("\n\n" if self._breaks == 2 else "\n")
            self._breaks = 0
        if self._mark:
            self.parts.append(self._mark)
            self._mark = ""
        self.parts.append(text)
        self._after_space = text[-1] in " \n"

    def _start_item(self) -> None:
        kind = self._lists[-1] if self._lists else _List(None)
        # No blank lines between items, even if they are paragraphs; before the first one, those of its list.
        self._breaks = max(self._breaks, 1) if kind.is_empty else 1
        kind.is_empty = False
        self._mark = "  " * (len(self._lists) - 1) + ("- " if kind.number is None else f"{kind.number}. ")
        if kind.number is not None:
            kind.number += 1


def _first_number(node: LexborNode) -> int:
    start = node.attributes.get("start") or ""
    return int(start) if start.isascii() and start.isdigit() and len(start) < 9 else 1
