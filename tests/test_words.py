"""The field's plain English: words that have made sentences hard to understand stay out.

Looks at comments and strings of the package, at its pages, and at the help of every command. A pattern
forbids a use, not a word.
"""

import io
import re
import tokenize
from pathlib import Path

import pytest

from puna.cli import main

ROOT = Path(__file__).parent.parent
COUNTED = (
    "tokens|bytes|[kMG]B|nats|bits|records|lines|documents|pages|sequences|pieces|characters|words|steps|"
    "entries"
)
# Pattern -> what to write instead.
WORDS = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\b(the|this|same|whole) road\b": "pipeline",
    r"\bdear(er)?\b": "expensive to compute",
    r"\bcomputed again\b": "recomputed",
    r"\b(frees?|takes?|holds?|kept|a free) (a|its|his|their|the) place\b": "slot",
    r"\bwho leaves\b|\ba word to\b": "a client disconnects",
    r"\bwho(ever)? (may come|comes) in\b|\bstrangers?\b": "authentication, API key, allowed origins",
    r"\bwhoever\b": "name the client or the caller",
    r"\b(that|which|what|option|field|value) cannot be(?=[.,;:\"')]|$)": "invalid, not supported",
    r"\b(has|have|had) not(?=[.,;:\"')]|$)": "lacks, does not have",
    r"\b(can|could|may|might|cannot|not) be had\b|\bnot to be had\b": "not available, failed",
    r"\bgo(es)? on\b(?! (the|a|an|one) (line|screen|page|device))": "continue, resume",
    r"\bovertak(e|es|en|ing)\b": "first come, first served",
    r"\bfor ever\b": "forever, without end",
    r"\btorn\b": "partial, truncated",
    r"\bwithout a word\b|\bin silence\b": "silently",
    r"\bto the bit\b|\bby a bit\b|\bthe very bits\b": "bitwise identical",
    r"\bwhen not given\b|\bif not given\b|\bnot when not\b": "default, optional",
    r"\bleft out\b|\bleaves? out\b": "omitted, skipped, excluded",
    r"\bdone without\b|\bPyTorch does its work\b": "fallback (slower): reason",
    rf"\b({COUNTED}) an? (second|token|byte|core|line|step|page|day|prompt|document|piece)\b": "per",
    r"\b(a|one) (token|prompt|record|line|key|text) a (line|token|step|second|document)\b": "one … per …",
    r"\bpatien(t|ce|tly)\b": "timeout, wait",
    r"\bbeliev(e|es|ed)\b": "trust, check",
    r"\b(programs?|file|server|machine|model|library|client|vocabulary|format)s? wants?\b": "needs, requires",
    # Licences say "in no event shall"; "must shall" is in a list of their words.
    r"(?<!in no event )(?<!must )\bshall\b": "must, will",
    r"\bonce more\b": "again",
    r"\b(lies?|stands?|lay) (here|there)\b": "is at this path",
    r"\bwhat (it|he|they) (is|are) made of\b": "inputs, contents",
    r"\bown papers\b": "metadata",
    r"\bsays other\b": "differs from",
    r"\bnot looked (behind|at)\b": "never computed, ignored",
    r"\bfeel(s)? (at home|unwell)\b|\bunwell\b": "has failed",
    r"\b(mean it|what is not so|is no beginning|are no beginning|tells? \w+ pages from)\b": "say it plainly",
    r"^(r?[\"']+|# )Of (the|each|all|its)\b": 'a noun first: "Random seed for …", not "Of the …"',
    r"^(r?[\"']+)Whose\b": "a noun first",
}
PAGES = [
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    if path.name not in ("CHANGELOG.md", "lab-notes.md")  # history
]


def prose_of(path: Path) -> list[tuple[int, str]]:
    """Numbered lines of prose: the comments and strings of Python, everything of other files."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return list(enumerate(text.splitlines(), 1))
    found = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind in ("COMMENT", "STRING") or kind.endswith("STRING_MIDDLE"):
            found += list(enumerate(token.string.splitlines(), token.start[0]))
    return found


def wrong_words(lines: list[tuple[int, str]], place: str) -> list[str]:
    return [
        f"{place}:{number}: {found[0]!r} -> {instead}: {line.strip()[:90]}"
        for number, line in lines
        for pattern, instead in WORDS.items()
        if (found := re.search(pattern, line))
    ]


def test_the_package_uses_the_fields_words():
    wrong = []
    for path in sorted((ROOT / "puna").rglob("*")):
        if path.suffix in (".py", ".cpp", ".h", ".html", ".j2"):
            wrong += wrong_words(prose_of(path), path.relative_to(ROOT).as_posix())
    assert not wrong, "\n".join(wrong)


def test_the_pages_and_benchmarks_use_the_fields_words():
    wrong = []
    for path in [*PAGES, *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        wrong += wrong_words(prose_of(path), path.relative_to(ROOT).as_posix())
    assert not wrong, "\n".join(wrong)


def helps(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The help of a command and of all commands below it."""
    assert main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    found = {" ".join(("puna", *command)): text}
    _, _, below = text.partition("Commands")
    for name in re.findall(r"^[│ ] ?([a-z][a-z0-9-]*) {2,}", below, re.MULTILINE):
        found |= helps((*command, name), capsys)
    return found


def test_the_help_uses_the_fields_words(capsys):
    found = helps((), capsys)
    assert len(found) > 20
    wrong = []
    for command, text in found.items():
        # A sentence is wrapped to the terminal's width: words of a pattern may be on two lines.
        joined = re.sub(r"\s+", " ", text.replace("│", " "))
        wrong += wrong_words([(0, joined)], f"{command} --help")
    assert not wrong, "\n".join(wrong)


def test_the_patterns_find_what_they_are_for():
    for text in ("the mend", "Raise ValueError naming the first field that cannot be.", "the same road",
                 "who comes in", "a LLaMA has not", "it goes on from its checkpoint", "3 tokens a second",
                 '"""Of the initial weights."""', "a key a line", "5 when not given"):  # fmt: skip
        assert wrong_words([(1, text)], "here"), text
    for text in ("the fix", "a field that cannot be negative.", "it has not been run", "per second",
                 "a token is a number", "one line per step", "recommended", "amended"):  # fmt: skip
        assert not wrong_words([(1, text)], "here"), text
