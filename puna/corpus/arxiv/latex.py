"""LaTeX as text: comments, verbatim parts and braces.

In:  the text of LaTeX files.
Out: the text without comments, its verbatim parts replaced by placeholders until `restore`.
     No function here depends on macros (macros.py expands them).

    a \\verb|%| b % note ─lift─> a ⟨0⟩ b ─(macros)─> body_of ─> without_bibliography ─restore─> a \\verb|%| b
                               kept: ["\\verb|%|"]

Verbatim text is not TeX. It is lifted out first, replaced by a placeholder of two private-use characters, and
put back at the end, so that no later rule can mistake it for a macro, a comment or an end. Every function
takes linear time for any text: patterns that could search to the end repeatedly have a limited reach.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

OPENING, CLOSING = "\ue000", "\ue001"  # around a placeholder; lift removes them from the paper's own text

_VERBATIM = (
    "verbatim verbatim* Verbatim Verbatim* BVerbatim LVerbatim spverbatim semiverbatim alltt lstlisting "
    "lstlisting* minted pyverbatim pycode Sinput Soutput Schunk"
)
_IGNORED = ("comment", "filecontents", "filecontents*")
_OWN_COMMENT = re.compile(
    r"\\(exclude|include|special)comment\s*\{\s*([A-Za-z]+\*?)\s*\}|"
    r"\\(?:re)?newenvironment\s*\{([A-Za-z]+\*?)\}\s*\{\s*\\comment\s*\}\s*\{\s*\\endcomment\s*\}"
)
_OWN_VERBATIM = re.compile(
    r"\\(?:(lstnewenvironment|(?:Custom|Define)VerbatimEnvironment)|newminted)\s*(?:\[[^\]\n]{0,200}\])?\s*\{([A-Za-z]+)\}"
)
_CALLS = ["verb", "Verb", "lstinline", "mintinline", "url", "nolinkurl", "path", "href"]
_ADDRESS = re.compile(r"\s*\{[^{}\n]*(?:\{[^{}\n]*\}[^{}\n]*)*\}")
_OPTIONS = re.compile(r"\*?(?:\[[^\]\n]{0,500}\])?")
_LANGUAGE = re.compile(r"\{[^{}\n]*\}")
_WORD_AT_END = re.compile(r"(?<!\\)(?:\\\\)*\\[A-Za-z@]+\Z")
_BLANK_REST = re.compile(r"[ \t]*\n")
_MAX_LITERAL = 1000
_INDENT = re.compile(r"[ \t]*")


def ends_in_control_word(text: str) -> bool:
    """Whether a letter after `text` would be read as part of its last command."""
    return text[-1:].isalpha() and bool(_WORD_AT_END.search(text[-80:]))


def after_line(text: str, start: int, end: int) -> int:
    """Where the text continues after removing text[start:end].

    That is past the line break, if nothing else was on its lines.
    """
    rest = _BLANK_REST.match(text, end)
    if rest and not text[text.rfind("\n", 0, start) + 1 : start].strip():
        return rest.end()
    return end


class OwnComments(NamedTuple):
    """Environments that a paper hides as comments (`\\excludecomment`), and those that it shows."""

    hidden: frozenset[str] = frozenset()
    shown: frozenset[str] = frozenset()


_NO_COMMENTS = OwnComments()


def own_comments(texts: Iterable[str]) -> OwnComments:
    """The environments that a paper's files define by the comment package; the last definition counts."""
    hides = {
        match[2] or match[3]: match[1] in (None, "exclude")
        for text in texts
        if "comment" in text
        for match in _OWN_COMMENT.finditer(text)
        if "%" not in text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
    }
    hidden = frozenset(name for name, is_hidden in hides.items() if is_hidden)
    return OwnComments(hidden, frozenset(hides) - hidden)


# ---- comments and verbatim ------------------------------------------------------------------------


def lift(text: str, kept: list[str], comments: OwnComments = _NO_COMMENTS) -> str:
    """The text without comments, its verbatim parts appended to `kept` and replaced by placeholders.

    As in TeX, a comment extends from `%` through the line break and the next line's indent. An empty line
    after it still ends the paragraph, and a command before it is not joined with the next word.
    """
    text = text.replace(OPENING, "").replace(CLOSING, "")
    own = {f"{match[2]}code" if not match[1] else match[2] for match in _OWN_VERBATIM.finditer(text)}
    ignored = {*_IGNORED, *comments.hidden} - comments.shown
    environments = _one_of({*_VERBATIM.split(), *ignored, *own} - comments.shown)
    if comments.shown:
        text = re.sub(rf"\\(?:begin|end)\s*\{{(?:{_one_of(comments.shown)})\}}", "", text)
    token = re.compile(rf"\\[\\%]|%|\\begin\s*\{{({environments})\}}|\\({'|'.join(_CALLS)})(?![A-Za-z@])\*?")
    parts: list[str] = []
    copied = at = 0
    unended: set[str] = set()  # environments without an end from here on, which are not searched for again
    while match := token.search(text, at):
        start, at = match.span()
        if match[0] == "%":
            parts.append(text[copied:start])
            copied = at = _after_comment(text, start)
        elif name := match[1]:
            closing = None if name in unended else end_of_environment(name).search(text, at)
            if closing is None:
                unended.add(name)
                continue
            at = closing.end()
            parts.append(text[copied:start])
            if name in ignored:
                at = after_line(text, start, at)
            else:
                parts.append(_placeholder(text[start:at], kept))
            copied = at
        elif name := match[2]:
            end = _call_end(text, at, name)
            if name in ("verb", "Verb", "lstinline", "mintinline") and end > at:
                parts += text[copied:start], _placeholder(text[start:end], kept)
                copied = end
            at = end
    parts.append(text[copied:])
    return "".join(parts)


def _one_of(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(names, key=lambda name: (-len(name), name))))


@lru_cache(maxsize=256)
def end_of_environment(name: str) -> re.Pattern[str]:
    """The pattern of `\\end{name}`."""
    return re.compile(rf"\\end\s*\{{{re.escape(name)}\}}")


def restore(text: str, kept: list[str]) -> str:
    """The text with its verbatim parts put back."""
    if OPENING not in text:
        return text
    return re.sub(f"{OPENING}(\\d+){CLOSING}", lambda match: kept[int(match[1])], text)


def _placeholder(verbatim: str, kept: list[str]) -> str:
    kept.append(verbatim)
    return f"{OPENING}{len(kept) - 1}{CLOSING}"


def _after_comment(text: str, start: int) -> int:
    end = text.find("\n", start)
    if end < 0:
        return len(text)
    indent = _INDENT.match(text, end + 1)
    assert indent
    before, following = text[max(0, start - 80) : start], text[indent.end() : indent.end() + 1]
    words_before = before.rpartition("\n")[2]
    # After a space the line break makes no difference, so the lines are kept as they were written.
    stays = words_before != words_before.rstrip() != ""
    if stays or following == "\n" or (following.isalpha() and ends_in_control_word(before)):
        return end
    return indent.end()


def _call_end(text: str, at: int, name: str) -> int:
    """The end of a command's literal argument, from the end of its name; `at` itself if there is none."""
    if name in ("url", "nolinkurl", "path", "href"):
        if address := _ADDRESS.match(text, at):
            return address.end()
        if name == "href" or text[at : at + 1] == "{":
            return at
    elif name in ("lstinline", "mintinline"):
        options = _OPTIONS.match(text, at)
        assert options
        start = options.end()
        if name == "mintinline":
            language = _LANGUAGE.match(text, start)
            if not language:
                return at
            start = language.end()
        if text[start : start + 1] == "{":
            address = _ADDRESS.match(text, start)
            return address.end() if address else at
        end = _delimited_end(text, start)
        return end if end > start else at
    return _delimited_end(text, at)


def _delimited_end(text: str, at: int) -> int:
    """The end of `|...|` at `at`, on one line, with any delimiter but letters, stars, braces and spaces."""
    delimiter = text[at : at + 1]
    if not delimiter or delimiter.isalpha() or delimiter in "*{} \t\n\\%":
        return at
    rest = text[at + 1 : at + _MAX_LITERAL].partition("\n")[0]
    end = rest.find(delimiter)
    return at if end < 0 else at + end + 2


# ---- braces ---------------------------------------------------------------------------------------

_BRACE = re.compile(r"\\[\\{}]|[{}]")


def closing_brace(text: str, start: int) -> int:
    """The index of the brace that closes the one at `start`, or -1."""
    # Fast path: nearly every group is short and contains no other.
    end = text.find("}", start)
    if end < 0:
        return -1
    if text.find("{", start + 1, end) < 0 and text[end - 1] != "\\":
        return end
    depth = 0
    for match in _BRACE.finditer(text, start):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return -1


def unbalanced_at(text: str) -> int | None:
    """The index of the first brace without a counterpart; None when braces are balanced."""
    plain = text.replace("\\\\", "")
    if plain.count("{") - plain.count("\\{") == plain.count("}") - plain.count("\\}"):
        return None
    opened: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}":
            if not opened:
                return match.start()
            opened.pop()
    return opened[0] if opened else None
