"""The body of a paper: from its first section on, without the bibliography.

In:  a paper's text after its macros are expanded.
Out: the title; the body. Appendices after the bibliography are kept.

    \\title{A} … \\section{B} … \\bibliography{c} \\appendix D   ->   \\section{B} …  \\appendix D
"""

import bisect
import re
from collections.abc import Iterator

from puna.corpus.arxiv.latex import after_line, closing_brace, end_of_environment

_LINE_SPACE = re.compile(r"(?<![ \t])[ \t]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
_BEGIN_DOCUMENT = re.compile(r"\\begin\s*\{document\}")
_SECTION = re.compile(
    r"\\(?:(?:part|chapter|newsec|(?:sub){0,2}section)\s*\*?\s*(?:\[[^\]]{0,500}\]\s*)?\{|beginsection\s)"
)
_FRONT_END = re.compile(
    r"\\maketitle(?![A-Za-z@])|\\end\s*\{(?:abstract|titlepage|frontmatter|keywords?|IEEEkeywords)\}"
)
_SUPPLEMENT = re.compile(
    r"\W*(?:supplement|supporting (?:online )?(?:information|material)|appendi(?:x|ces)|end matter)",
    re.IGNORECASE,
)
_AFTER_A_LETTER = re.compile(
    rf"{_SUPPLEMENT.pattern}|\W*(?:\d+\W*)?(?:acknowledge?ments?|(?:data|code)[a-z ]* availability|"
    r"availability of|author contributions?|contributions|(?:competing|conflicts? of) interests?|funding|"
    r"additional information|ethic)\b",
    re.IGNORECASE,
)
_METHODS = re.compile(r"\W*(?:\w+ ){0,2}methods?\W*\}", re.IGNORECASE)
_TITLE = re.compile(r"\\title\s*(?:\[[^\]]{0,500}\]\s*)?(?=\{)")
_NOT_TITLE = re.compile(
    r"\\\\(?:\[[^\]]{0,20}\])?|~|\\(?:thanks|footnote|note)\b.*|\\[vh]space\*?\{[^{}]{0,40}\}|"
    r"\\(?:emph|text(?:bf|it|sf|sc|tt|rm)|bf|it|sf|sc|rm|large|Large|LARGE|huge|Huge|bfseries|sffamily|boldmath)\b",
    re.DOTALL,
)

_BIBLIOGRAPHY = re.compile(
    r"\\begin\s*\{([A-Za-z@]*(?:bibliograph(?:y|ie)s?|references|thebib)\*?|biblist|refs|reflist|biblio)\}"
)
_BIBLIOGRAPHY_COMMAND = re.compile(
    r"\\(?:bibliography(?:style)?|(?:full)?printbibliography|nobibliography|nocite|addbibresource|putbib|"
    r"insertbibliography|printreferences)(?![A-Za-z@])\*?[ \t]*(?:\[[^\]\n]{0,500}\])?[ \t]*(?:\{[^{}]*\})?"
    r"|\\addcontentsline\s*\{toc\}\s*\{\w+\}\s*\{(?:References|Bibliography|\\refname|\\bibname)\}"
)
_REFERENCE_LIST = re.compile(rf"{_BIBLIOGRAPHY.pattern}|\\(?:print)?bibliography(?![A-Za-z@])")
_REFERENCES = (
    r"(?:references?(?:[ ]+(?:and|\\&)[ ]+notes|[ ]+cited)?|bibliography|literature(?:[ ]+cited)?|"
    r"works[ ]+cited|\\refname|\\bibname)"
)
# A line with nothing but "References", in any typeface: plain TeX has no command for this heading.
_REFERENCE_LINE = re.compile(
    rf"[ \t]*(?:\\begin\{{center\}})?(?:\\[A-Za-z]+\*?|[{{}}\[\] \t])*?"
    rf"(?:\{{|\\(?:bf|sc|large|Large|center(?:line)?)[ \t]+)"
    rf"(?:\\[A-Za-z]+|[{{ \t])*{_REFERENCES}[ \t:.]*(?:\\\\|\\[A-Za-z]+(?:\{{center\}})?|[}} \t])*",
    re.IGNORECASE,
)
_REFERENCE_TITLE = re.compile(rf"(?:\\[A-Za-z]+|[{{\s~])*(?:[\dIVX]+\.?\s+)?{_REFERENCES}\W*", re.IGNORECASE)
_APPENDIX = re.compile(
    r"\\(?:appendix|appendices|beginsupplement)(?![A-Za-z@])|\\begin\s*\{(?:sub)?append(?:ix|ices)\}"
)
# The words of such headings in lower case; a search for them is faster than matching every line.
_REFERENCE_WORDS = ("reference", "bibliography", "literature", "works cited", "\\refname", "\\bibname")
_MAX_HEADING = 200


def title_of(text: str) -> str:
    """The argument of `\\title`, on one line, or nothing."""
    match = _TITLE.search(text)
    if not match or (end := closing_brace(text, match.end())) < 0:
        return ""
    title = _NOT_TITLE.sub(" ", text[match.end() + 1 : end])
    if "\\" not in title:
        title = title.replace("{", "").replace("}", "")
    return " ".join(title.split())


def body_of(text: str) -> str:
    """The text from the first section on; without sections, from the end of the front matter on.

    The only sections of a letter are acknowledgements, methods, or those of its appendix or supplement. They
    follow the whole text, so the body does not start at them.
    """
    begin = _BEGIN_DOCUMENT.search(text)
    start = begin.end() if begin else 0
    ends = [next(_commands(pattern, text, start), None) for pattern in (_APPENDIX, _REFERENCE_LIST)]
    ends += [title for title in _TITLE.finditer(text, start) if _SUPPLEMENT.match(text, title.end() + 1)][:1]
    stop = min((end.start() for end in ends if end), default=len(text))
    first = None
    for section in _commands(_SECTION, text, start):
        if section.start() >= stop:
            break
        title = text[section.end() : section.end() + _MAX_HEADING]
        if _AFTER_A_LETTER.match(title) or _REFERENCE_TITLE.match(title):
            if _SUPPLEMENT.match(title):
                stop = section.start()
                break
            continue
        first = section.start() if first is None else first
        if not _METHODS.match(title):
            return text[first:]
    # A supplement has a front matter of its own.
    front = [match.end() for match in _FRONT_END.finditer(text, start, stop)]
    front = front or [match.end() for match in _FRONT_END.finditer(text, start)]
    return text[front[-1] if front else start :]


def without_bibliography(text: str) -> str:
    """The text without its list of references and the commands that make one; appendices after it stay."""
    for name in dict.fromkeys(match[1] for match in _BIBLIOGRAPHY.finditer(text)):
        text = _without_environment(text, name)
    text = _BIBLIOGRAPHY_COMMAND.sub("", text)
    sections = list(_commands(_SECTION, text))
    parts_begin = sorted(match.start() for match in [*sections, *_commands(_APPENDIX, text)])
    headings = [match.start() for match in sections if _is_references(text, match.end())]
    headings += _reference_lines(text)
    parts: list[str] = []
    copied = 0
    for start in sorted(headings):
        if start >= copied:
            parts.append(text[copied:start])
            following = bisect.bisect_right(parts_begin, start)
            copied = parts_begin[following] if following < len(parts_begin) else len(text)
    return "".join([*parts, text[copied:]])


def _commands(pattern: re.Pattern[str], text: str, start: int = 0) -> Iterator[re.Match[str]]:
    """The matches of a command; in `\\\\section` the backslashes are a line break."""
    for match in pattern.finditer(text, start):
        at = match.start()
        if text[at - 1 : at] != "\\" or (at - len(text[max(0, at - 80) : at].rstrip("\\"))) % 2 == 0:
            yield match


def _is_references(text: str, start: int) -> bool:
    """Whether the title from `start` to its brace is that of a list of references."""
    title = text[start - 1 : start + _MAX_HEADING]
    end = closing_brace(title, 0)
    return end > 0 and bool(_REFERENCE_TITLE.fullmatch(title, 1, end))


def _reference_lines(text: str) -> list[int]:
    """The starts of the lines that are such a title without a sectioning command."""
    lower = text.lower()
    found: set[int] = set()
    for word in _REFERENCE_WORDS:
        at = -1
        while (at := lower.find(word, at + 1)) >= 0:
            start = text.rfind("\n", max(0, at - _MAX_HEADING), at) + 1
            end = text.find("\n", at, at + _MAX_HEADING)
            if _REFERENCE_LINE.fullmatch(text, start, end if end >= 0 else min(len(text), at + _MAX_HEADING)):
                found.add(start)
    return sorted(found)


def _without_environment(text: str, name: str) -> str:
    begins = re.compile(rf"\\begin\s*\{{{re.escape(name)}\}}")
    parts: list[str] = []
    copied = 0
    while begin := begins.search(text, copied):
        start = begin.start()
        parts.append(text[copied:start])
        if closing := end_of_environment(name).search(text, start):
            copied = after_line(text, start, closing.end())
        else:  # without an end, it extends to the next section or the appendix
            following = [next(_commands(pattern, text, start), None) for pattern in (_SECTION, _APPENDIX)]
            copied = min((match.start() for match in following if match), default=len(text))
            break
    return "".join([*parts, text[copied:]])


def tidy(text: str) -> str:
    """The text without spaces at line ends and with at most one empty line between paragraphs."""
    return _BLANK_LINES.sub("\n\n", _LINE_SPACE.sub("", text)).strip()
