"""Source files: their language by extension, whether they are generated, their licence headers removed.

In:  the text of one file.
Out: the same text without leading comments about copyright or licence; all other comments are kept.

    #!/usr/bin/env python3          kept: a shebang
    # Copyright 2020 The Authors    removed, with the rest of its comment block
    # SPDX-License-Identifier: MIT

    # Breadth-first search ...      kept: it is about the code
"""

import re
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

from puna.corpus.github.licence import plain_words, words_of_no_licence
from puna.files import read_table

_FILE = Path(__file__).with_name("languages.txt")
# Extension -> language.
LANGUAGES = {extension: language for language, names in read_table(_FILE).items() for extension in names}


@dataclass(frozen=True)
class _Comments:
    """How a language writes comments: from a mark to the end of the line, or between a pair of marks."""

    line: tuple[str, ...] = ()
    block: tuple[tuple[str, str], ...] = ()


_HASH = _Comments(("#",))
_SLASH = _Comments(("//",), (("/*", "*/"),))
_DASH = _Comments(("--",), (("/*", "*/"), ("{-", "-}"), ("--[[", "]]")))
_DOTS = _Comments((".. ",))  # indented lines continue a comment
_ANGLE = _Comments(block=(("<!--", "-->"),))
# Not listed: C and its family, which write // and /* */.
_STYLES = {
    **dict.fromkeys(("Python", "Shell", "Perl", "Ruby", "R", "Julia", "Elixir", "CMake"), _HASH),
    **dict.fromkeys(("SQL", "Lua", "Haskell"), _DASH),
    **dict.fromkeys(("Markdown", "HTML"), _ANGLE),
    **dict.fromkeys(("Clojure", "Lisp"), _Comments((";",))),
    **dict.fromkeys(("Erlang", "TeX"), _Comments(("%",))),
    "PHP": _Comments(("//", "#"), (("/*", "*/"),)),
    "PowerShell": _Comments(("#",), (("<#", "#>"),)),
    "OCaml": _Comments(block=(("(*", "*)"),)),
    # Fixed form has its mark in the first column; code begins in the seventh.
    "Fortran": _Comments(("!", "C ", "c ", "C\n", "c\n", "*")),
    "reStructuredText": _DOTS,
}

_PHRASES = read_table(Path(__file__).with_suffix(".txt"), by_line=True)
_SPEAKS = re.compile("|".join(_PHRASES["licence"]), re.IGNORECASE)
_OPENS = re.compile(r"[^\w@©(]*(?:@licen[sc]e|@?copyright|licen[sc]ed\b|\(c\)|©|SPDX-)", re.IGNORECASE)
_WORD = re.compile(r"\w")
_MODE_LINE = r"\s*(?:(?:#|%|;+|//)\s*-\*-|/\*\s*-\*-.*\*/)|\s*#.*coding[:=]"
_ENCODING = re.compile(_MODE_LINE)
_STAYS_FIRST = re.compile(
    rf"#!|<\?(?:php|xml)|<!doctype|[\"']use strict[\"'];?\s*$|#pragma once\b|{_MODE_LINE}", re.IGNORECASE
)
_DOC = re.compile(r"\s*(?:/\*[*!](?![*/])|//[/!](?!/)|#'|--\s*\||\{-\s*\|)")

_COMMENT_LINE = re.compile(r"\s*(?:#|//|/?\*|--|;|%|<!--|\.\.)")
# Phrases that mark this file as generated, as opposed to phrases about what the file itself generates.
_GENERATED = re.compile(
    r"^[^\w@]*(?:(?:warning|attention|caution|note|notice|important)\W+)?"
    rf"(?:{'|'.join(_PHRASES['begins'])})|{'|'.join(_PHRASES['generated'])}",
    re.IGNORECASE,
)
_TELLING_WORDS = ("generated", "do not ", "made by gnu", "will be lost")  # each phrase has one of them
_GOES_ON = re.compile(r"\b(?:this|these|the|an?|any|all|of|in)\s*$", re.IGNORECASE)
# Documentation tools name themselves in the pages that they write.
_WRITTEN_HTML = re.compile(
    r"<meta\s[^>]*\bname=[\"']?generator\b[^>]*\bcontent=[\"']?(?:docutils|sphinx|doxygen|javadoc|jsdoc|typedoc|"
    r"rustdoc|epydoc|pdoc|pydoc|mkdocs|org.mode|j?latex2html|groff|mandoc|makeinfo|texi2html|ronn|asciidoc)|"
    r"<script\s[^>]*\bdocumentation_options\.js",
    re.IGNORECASE,
)
_HTML_HEAD = 5000  # characters in which they do


_PROSE = frozenset({"Markdown", "reStructuredText", "HTML"})
_PROSE_COMMENT = re.compile(r"\s*(?:<!--|\.\. )")
_HEAD_LINES = 10


def is_generated(text: str, language: str = "") -> bool:
    """Whether a comment in the first lines marks the file as generated."""
    if language == "HTML" and _WRITTEN_HTML.search(text[:_HTML_HEAD]):
        return True
    head = text.split("\n", _HEAD_LINES)[:_HEAD_LINES]
    lower = "\n".join(head).lower()
    if not any(word in lower for word in _TELLING_WORDS):
        return False
    # In prose `#` begins a title.
    comment = _PROSE_COMMENT if language in _PROSE else _COMMENT_LINE
    in_docstring = _docstring_end(head) or len(head) if language == "Python" and _opens_docstring(head) else 0
    return any(
        _GENERATED.search(line)
        for number, line in enumerate(head)
        if (number < in_docstring or comment.match(line))
        and not (number and _GOES_ON.search(head[number - 1]))
    )


def without_licence_header(text: str, language: str) -> str:
    """The file without its leading comment blocks about copyright or licence."""
    style = _STYLES.get(language, _SLASH)
    rest = text.splitlines(keepends=True)
    first = 0
    while first < len(rest) and _STAYS_FIRST.match(rest[first]):
        first += 1
    kept, rest = rest[:first], rest[first:]
    passed = after_licence = False  # whether a comment about something else is kept, or a licence removed
    while True:
        body = list(dropwhile(lambda line: not line.strip(), rest))
        if language == "Python" and _opens_docstring(body):
            end = _docstring_end(body)
            is_licence = _is_licence_docstring("".join(body[:end]).strip())
        else:
            end = _comment_end(body, style)
            is_licence = bool(end) and (_is_licence(body[:end]) or (after_licence and _continues(body[:end])))
            if passed and end < len(body) and body[end].strip() and not _opens_as_licence(body[:end]):
                is_licence = False  # it describes the code that follows it
        if not end:
            return "".join(kept + rest)
        blank, rest = rest[: len(rest) - len(body)], body[end:]
        after_licence = is_licence
        if not is_licence:
            kept, passed = kept + blank + body[:end], True
            continue
        kept += [line for line in body[:end] if _ENCODING.match(line)]
        following = list(dropwhile(lambda line: not line.strip(), rest))
        rest = blank + following if passed else following


_QUOTES = ('"""', "'''")
_LICENCE_TEXT = re.compile(
    r"permission is hereby granted|redistribution and use in source|licensed under the|"
    r"this (?:program|software|library|file) is free software|SPDX-License-Identifier",
    re.IGNORECASE,
)


def _opens_docstring(lines: list[str]) -> bool:
    return bool(lines) and lines[0].strip().lstrip("rRuUbB").startswith(_QUOTES)


def _docstring_end(lines: list[str]) -> int:
    """The number of first lines that are a Python string and nothing else; 0 if it does not end so."""
    opening = lines[0].strip().lstrip("rRuUbB")
    quotes = opening[:3]
    for end, line in enumerate([opening[3:], *lines[1:]]):
        if quotes in line:
            return 0 if line.partition(quotes)[2].strip() else end + 1
    return 0


def _is_licence_docstring(text: str) -> bool:
    text = text.lstrip("rRuUbB").strip("\"' \n")
    return bool(_LICENCE_TEXT.search(text)) and (bool(_OPENS.match(text)) or _continues([text]))


def _is_licence(block: list[str]) -> bool:
    if _DOC.match(block[0]):
        # Documentation may mention licences; it is a header only if it begins like one.
        return _opens_as_licence(block)
    return _SPEAKS.search("".join(block)) is not None


def _continues(block: list[str]) -> bool:
    """Whether a comment after a licence is its next paragraph."""
    words = " ".join(word for word in plain_words("".join(block)).split() if not word.isdigit())
    others = words_of_no_licence(words)
    return 2 * sum(len(word) > 1 for word in others) < sum(len(word) > 1 for word in words.split())


def _opens_as_licence(block: list[str]) -> bool:
    return _OPENS.match(next(filter(_WORD.search, block), "")) is not None


def _comment_end(lines: list[str], style: _Comments) -> int:
    """The number of first lines that are one comment; 0 if there is none, or if it has no end."""
    opening = lines[0].lstrip() if lines else ""
    for mark, close in style.block:
        if opening.startswith(mark):
            for end, line in enumerate([opening[len(mark) :], *lines[1:]]):
                if close in line:
                    # Code after the comment on its last line would be removed with it.
                    return 0 if line.partition(close)[2].strip() else end + 1
            return 0
    end = 0
    while end < len(lines) and (
        lines[end].lstrip().startswith(style.line)
        or (end and style is _DOTS and lines[end].startswith(" ") and lines[end].strip())
    ):
        end += 1
    return end
