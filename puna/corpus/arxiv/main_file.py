"""The main file of a paper: the one that inputs the others.

In:  the paper's TeX files by name.
Out: the name of the main file, or None.

    ms.tex       \\documentclass{article} … \\begin{document} … \\input{proof}    <- the main file
    proof.tex    \\section{Proof} …
    reply.tex    \\documentclass{letter} …
"""

import re
from pathlib import PurePosixPath

_IGNORED = re.compile(r"\s*%+[ \t]*auto-ignore\b")
_CLASS = re.compile(
    r"^[^%\n]*?\\document(?:class|style)\s*(?:\[[^\]]{0,1000}\])?\s*\{([^{}\n]*)\}", re.MULTILINE
)
_BEGIN = re.compile(r"^[^%\n]*?\\begin\s*\{document\}", re.MULTILINE)
# Papers before LaTeX: plain TeX and its formats.
_PLAIN = re.compile(
    r"^[ \t]*\\(?:(?:bye|beginsection|newsec)(?![A-Za-z@])|end[ \t]*$)|"
    r"^[^%\n]*?\\input[ \t{]+(?:harvmac|phyzzx|amstex)\b",
    re.MULTILINE,
)
_INPUTS = re.compile(r"^[^%\n]*?\\(?:input|include|subfile)\s*\{?([^{}\s%]+)", re.MULTILINE)
_USUAL = re.compile(
    r"(?:^|[^a-z])(?:ms|main|paper|article|manuscript|root|thesis)(?:$|[^a-z])", re.IGNORECASE
)
_NO_PAPERS = frozenset({"letter", "beamer", "standalone", "subfiles", "slides", "minimal"})


def is_document(text: str) -> bool:
    """Whether a file is a document of its own, not a part of one."""
    return bool(_CLASS.search(text) or _BEGIN.search(text) or _PLAIN.search(text))


def is_withdrawn(text: str) -> bool:
    """Whether a file begins with arXiv's mark of files to ignore, as those of withdrawn papers do."""
    return bool(_IGNORED.match(text))


def main_file(files: dict[str, str]) -> str | None:
    """The name of the file with `\\documentclass`.

    Of several, the one that is, in this order of importance: a complete document, not input by another, not a
    letter, with an abstract or a title, named like a main file, in the top folder, long, first by name.
    """
    # arXiv marks files that are not papers, and withdrawn papers, in their first line.
    files = {name: text for name, text in files.items() if not _IGNORED.match(text)} or files
    classes = {name: match[1] for name, text in files.items() if (match := _CLASS.search(text))}
    candidates = [name for name in classes if _base_class(classes[name]) != "subfiles"]
    for pattern in (_BEGIN, _PLAIN):
        candidates = candidates or [name for name, text in files.items() if pattern.search(text)]
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    inputs = {
        PurePosixPath(match[1]).name.removesuffix(".tex")
        for text in files.values()
        for match in _INPUTS.finditer(text)
    }

    def likelihood(name: str) -> tuple[bool, bool, bool, int, bool, int, int]:
        text = files[name]
        return (
            bool(_BEGIN.search(text)),
            PurePosixPath(name).stem not in inputs,
            _base_class(classes.get(name, "")) not in _NO_PAPERS,
            ("\\begin{abstract}" in text or "\\abstract" in text) + ("\\title" in text),
            bool(_USUAL.search(PurePosixPath(name).stem)),
            -name.count("/"),
            len(text) + sum(10_000 for _ in _INPUTS.finditer(text)),
        )

    return min(candidates, key=lambda name: (*(-value for value in likelihood(name)), name))


def _base_class(name: str) -> str:
    return PurePosixPath(name.strip()).name
