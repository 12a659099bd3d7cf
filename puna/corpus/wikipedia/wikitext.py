"""Wikitext -> the text that a reader of the page sees.

In:  an article's wikitext, and the names of its site's namespaces.
Out: prose, lists and headings as lines; code and formulas (as LaTeX); no markup.

    '''Llamas'''{{cn}} live in [[Peru|the Andes]].<ref>A book.</ref> [[File:Lama.jpg|thumb|A llama]]
    ─> Llamas live in the Andes.

    wikitext ─> lift: nowiki, code, formulas set aside, references removed ─> tokens ─> walk ─> tidy ─> text

As in MediaWiki, extension tags are taken out first, because there is no markup within them. The tokenizer of
mwparserfromhell (C) finds the markup in the rest, and its tokens are walked here in one pass. Its tree of
Python objects is several times as expensive as the tokens, and is not needed.
"""

import html
import re
from collections.abc import Iterator

from mwparserfromhell.parser import tokens as t
from mwparserfromhell.parser._tokenizer import CTokenizer

from puna.corpus.superscripts import SHIFT_END, SUBSCRIPT, SUPERSCRIPT, shifted
from puna.corpus.wikipedia.magic_words import CHARACTERS, REMOVED, function_of, value_of
from puna.corpus.wikipedia.wikitext_lift import (
    BLOCK,
    CODE_WORDS,
    INLINE,
    LIFTED,
    lift,
    shown,
    without_variants,
)
from puna.corpus.wikipedia.wikitext_tidy import (
    HEADING,
    HEADING_END,
    ITEM,
    LOST_LINK,
    PRIVATE,
    Kept,
    tidy,
    unquoted,
)

# Limit on the tokenizer's work, in characters: for every mark that is never closed it reads to the end of the
# page, at about a million characters per second. The worst of 106 real articles needs a tenth of this.
MAX_WORK = 4_000_000
# Links that show no text in any language, and links to sister projects, whose bare names are not text.
HIDDEN = frozenset({"file", "image", "media", "category"})
_SISTER = re.compile(
    r"[bcdmnqsvw]|mw|voy|wikt|wiktionary|commons|species|meta(?:wikipedia)?|"
    r"wiki(?:books|data|news|pedia|quote|source|species|versity|voyage)"
)

# `{{1, 2}, {3, 4}}` is no template, because names have no braces.
_SETS = re.compile(r"\{(?:\{[^{}|\n]*\}[ ,;]*){2,}\}")
_HIDING = re.compile(r"display\s*:\s*none", re.IGNORECASE)
_LANGUAGE_LINK = re.compile(r"(?:[a-z]{2,3}(?:-[a-z-]+)?|simple):\S")
_IN_BRACKETS = re.compile(r"\s*\([^()]*\)$")


def _kinds(names: str) -> frozenset[type[t.Token]]:
    return frozenset(getattr(t, name) for name in names.split())


_OPENERS = _kinds(
    "TemplateOpen ArgumentOpen WikilinkOpen ExternalLinkOpen HTMLEntityStart HeadingStart CommentStart "
    "TagOpenOpen"
)
_CLOSERS = _kinds(
    "TemplateClose ArgumentClose WikilinkClose ExternalLinkClose HTMLEntityEnd HeadingEnd CommentEnd "
    "TagCloseClose TagCloseSelfclose"
)
_ENDS_TEXT = _CLOSERS | _kinds(
    "WikilinkSeparator ExternalLinkSeparator TagOpenClose TemplateParamSeparator ArgumentSeparator"
)


class TangledError(ValueError):
    """So much markup is not closed that parsing it would take minutes."""


def plain_text(
    wikitext: str,
    hidden: frozenset[str] = HIDDEN,
    variants: bool = False,
    external_labels: bool = False,
    title: str = "",
) -> str:
    """The text of the page as a reader sees it.

    `hidden` are the lower-case namespaces whose links show no text; with `variants`, `-{...}-` marks one
    script of several, as in Serbian; `external_labels` keeps the labels of external links; `title` is the
    value of `{{PAGENAME}}`.

    Raises:
        TangledError: when the tokenizer would take too long.
    """
    kept = Kept()
    wikitext = lift(
        PRIVATE.sub(lambda mark: kept.add(mark[0]) if mark[0] < "\uf900" else "\ufffd", wikitext), kept
    )
    if "}," in wikitext:
        wikitext = _SETS.sub(lambda sets: kept.add(sets[0]), wikitext)
    if variants:
        wikitext = without_variants(wikitext)
    if (work := _work(wikitext)) > MAX_WORK:
        raise TangledError(f"about {work} steps to parse")
    # Style marks are left to a regular expression: unbalanced ones confuse the tokenizer.
    walk = _Walk(CTokenizer().tokenize(wikitext, 0, True), hidden, external_labels, title, kept)
    return kept.restore(tidy(walk.text()[0])).strip("\n")


_WORK_MARKS = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|<(/?)([a-zA-Z]+)[^<>]*(>?)")
_PAIRS = {"}}": "{{", "]]": "[[", "|}": "{|"}
# Tags that need no closing tag, so none is searched for.
_SINGLE = re.compile(r"w?br|hr|img|meta|link|li|d[dt]|t[dhr]")


def _work(wikitext: str) -> int:
    """About how many characters the tokenizer reads for nothing: from each unclosed mark to the end."""
    length = len(wikitext)
    if length * sum(map(wikitext.count, ("{{", "[[", "{|", "<"))) <= MAX_WORK:
        return 0  # even if none of them is closed
    open_marks: dict[str, list[int]] = {}
    work = 0
    for mark in _WORK_MARKS.finditer(wikitext):
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
    """One pass over the tokens. They are well nested, at most 100 deep, and each opening one is closed."""

    def __init__(
        self, tokens: list[t.Token], hidden: frozenset[str], external_labels: bool, title: str, kept: Kept
    ) -> None:
        self.tokens: Iterator[t.Token] = iter(tokens)
        self.hidden = hidden
        self.external_labels = external_labels
        self.title = title
        self.kept = kept

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
                shows = self.tag(token)
                # The definition in `; term : definition` has a line of its own.
                is_inside = shows == ITEM and parts and parts[-1][-1:] not in ("\n", ITEM)
                parts.append(f"\n{ITEM}" if is_inside else shows)
            elif kind is t.TemplateOpen:
                parts.append(self.template())
            elif kind is t.HeadingStart:
                title, _ = self.text()
                parts.append(f"\n{HEADING}{token['level']}{title.strip()}{HEADING_END}\n")
            elif kind is t.HTMLEntityStart:
                parts.append(self.entity())
            elif kind is t.ExternalLinkOpen:
                parts.append(self.external_link())
            elif kind is t.ArgumentOpen:  # `{{{1|default}}}`; a page has no other value
                _, end = self.text()
                parts.append(self.text()[0] if end is t.ArgumentSeparator else REMOVED)
            elif kind in _OPENERS:
                self.skip()
                parts.append(REMOVED)
            elif kind in _ENDS_TEXT:
                return "".join(parts), kind
            elif kind is t.TemplateParamEquals:
                parts.append("=")
        return "".join(parts), None

    def skip(self, depth: int = 1) -> None:
        """Skip to after the token that closes the node just opened."""
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

    def template(self) -> str:
        """The text of a parser function or of a template around text; nothing for other templates."""
        token = next(self.tokens)
        kind = type(token)
        start = token["text"] if kind is t.Text else ""
        character = CHARACTERS.get(start.strip().lower())
        call = function_of(start) if character is None else None
        if character is None and call is None:
            if kind not in _CLOSERS:
                self.skip(2 if kind in _OPENERS else 1)
            return REMOVED
        function, argument = call or ("", "")
        rest, end = self.text()
        arguments = [argument + rest]
        while end is t.TemplateParamSeparator:
            argument, end = self.text()
            arguments.append(argument)
        if character is not None:
            return character
        if function == "tag":
            name, body = arguments[0].strip().lower(), arguments[1] if len(arguments) > 1 else ""
            return shown(name, " ".join(arguments[2:]), body, self.kept) if name in LIFTED else body
        value = value_of(function, arguments, self.title) or REMOVED
        return _around(function, value) if function in ("sup", "sub") else value

    def link(self) -> str:
        title, end = self.text()
        if end is not t.WikilinkSeparator and not title.strip():
            return self.kept.add(f"[[{title}]]")  # no link
        title = title.strip()
        prefix, colon, name = title.partition(":")
        prefix = prefix.strip().lower()
        if colon and prefix in self.hidden:
            if end is t.WikilinkSeparator:
                self.skip()
            return REMOVED
        if end is t.WikilinkSeparator:
            words, _ = self.text()
            # `[[Llama (animal)|]]` reads as Llama.
            return words if words.strip() else _IN_BRACKETS.sub("", name or title)
        # `[[de:Titel]]` alone is shown in the margin, as the article's name in another language.
        if colon and (_SISTER.fullmatch(prefix) or _LANGUAGE_LINK.match(title)):
            return REMOVED
        return title.removeprefix(":")

    def external_link(self) -> str:
        if not self.external_labels:
            self.skip()
            return LOST_LINK
        _, end = self.text()
        return self.text()[0] if end is t.ExternalLinkSeparator else LOST_LINK

    def tag(self, opening: t.Token) -> str:
        name = next(self.tokens).get("text", "").strip().lower()
        if opening.get("wiki_markup") and name in ("li", "dd", "dt"):
            self.skip()  # the mark at the beginning of a list line; the rest of the line is separate text
            return ITEM
        is_block = name in BLOCK
        if not is_block and name not in INLINE and name not in CODE_WORDS:
            self.skip()
            return "\n" if name == "br" else "" if name == "wbr" else REMOVED
        depth = 0
        attributes = []
        for token in self.tokens:  # attributes, which may hold templates
            kind = type(token)
            if kind is t.Text:
                attributes.append(token["text"])
                continue
            if not depth and kind is t.TagCloseSelfclose:
                return "\n\n" if is_block else ""
            if not depth and kind is t.TagCloseOpen:
                break
            depth += (kind in _OPENERS) - (kind in _CLOSERS)
        body, _ = self.text()
        self.skip()  # the name in the closing tag
        if attributes and _HIDING.search("".join(attributes)):
            return REMOVED
        if is_block:
            return f"\n{body}\n"
        if name in CODE_WORDS:
            return self.kept.add(_as_shown(body)) if body.strip(_MARKS_AND_SPACE) else REMOVED
        return _around(name, body) if name in _AROUND else body

    def entity(self) -> str:
        marks = {}
        for token in self.tokens:
            kind = type(token)
            if kind is t.HTMLEntityEnd:
                break
            marks[kind] = token
        prefix = "#" * (t.HTMLEntityNumeric in marks) + "x" * (t.HTMLEntityHex in marks)
        # As browsers do: what is outside Unicode becomes U+FFFD.
        character = html.unescape(f"&{prefix}{marks[t.Text]['text']};")
        return self.kept.add(character) if character in _LIKE_MARKUP else character


# Characters that are written as entities so that they are not taken for markup.
_LIKE_MARKUP = frozenset("[]{}|<>'_=*#:;!-")
_MARKS_AND_SPACE = f" \t\n{REMOVED}{LOST_LINK}{ITEM}"
_AROUND = {"sup": (SUPERSCRIPT, SHIFT_END), "sub": (SUBSCRIPT, SHIFT_END), "q": ('"', '"'), "rt": ("(", ")")}


def _around(name: str, body: str) -> str:
    """Superscripts, subscripts, quotations and ruby text, with the marks that set them apart."""
    if not body.strip(_MARKS_AND_SPACE):
        return REMOVED
    before, after = _AROUND[name]
    return f"{before}{body}{after}"


def _as_shown(code: str) -> str:
    """Inline code: only its links and italics are markup."""
    code = unquoted(shifted(code))
    return " ".join(code.translate(_NO_MARKS).split(" ")).strip()


_NO_MARKS = {ord(mark): None for mark in (REMOVED, LOST_LINK, ITEM, HEADING, HEADING_END)}
