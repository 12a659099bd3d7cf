"""Generated text -> the answer in it, and whether it equals a reference. Pure functions.

"  George W. Bush.\nQ: who …"  ──first_line──>  "George W. Bush"  ──normalised──>  "george w bush"
"… so 5 + 4 = 9. The answer is 9.\n\nQ:"  ──number──>  "9"
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

Cut = Literal["final", "first"]

_PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’´“”")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def first_line(text: str, cut: Cut = "final") -> str:
    """The answer in a text: its first line that is not empty, without one final dot or comma (paper, App. A).

    With `cut` "first" the answer ends before the first dot or comma, as lm-eval does it; then "10,000" and
    "R. H. Thomson" can never be answered.
    """
    line = text.lstrip().partition("\n")[0].strip()
    if cut == "first":
        return re.split(r"[.,]", line, maxsplit=1)[0].strip()
    return line[:-1].rstrip() if line[-1:] in (".", ",") else line


def normalised(text: str) -> str:
    """Lower case; without punctuation, articles (whole words) and repeated spaces.

    What consists of nothing else stays as it is: "The The", "The Who" and "A" are answers.
    """
    lowered = " ".join(text.lower().split())
    bare = " ".join(lowered.translate(_PUNCTUATION).split())
    without = " ".join(_ARTICLES.sub(" ", bare).split())
    return without or bare or lowered


def exact_match(answer: str, references: Iterable[str]) -> bool:
    """Whether the answer equals any reference, both normalised."""
    answer = normalised(answer)
    return bool(answer) and answer in {normalised(reference) for reference in references}


def f1(answer: str, references: Iterable[str]) -> float:
    """The largest overlap in words with a reference: harmonic mean of precision and recall."""
    found = normalised(answer).split()
    best = 0.0
    for reference in references:
        words = normalised(reference).split()
        common = sum((Counter(found) & Counter(words)).values())
        if common:
            best = max(best, 2 * common / (len(found) + len(words)))
    return best


# Before a final answer: GSM8K's own mark, that of the chain-of-thought examples, that of published solutions.
_MARK = re.compile(r"####|[Tt]he (?:final )?answer is:?|(?:^|\n)A:")
_NUMBER = re.compile(r"-?\$?\s?-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def number(text: str) -> str:
    """The number after the first answer mark, normalised; empty when there is no mark or no number.

    What follows the first answer, a run-on into further questions, is never read.
    """
    mark = _MARK.search(text)
    if not mark:
        return ""
    rest = text[mark.end() :].lstrip()
    found = _NUMBER.search(rest.partition("\n")[0])
    return normalised_number(found.group()) if found else ""


def normalised_number(text: str) -> str:
    """A number without commas, $, %, spaces, a trailing dot, needless zeros: "$1,250.00" -> "1250"."""
    text = re.sub(r"[,$%\s]", "", text).rstrip(".")
    whole, _, fraction = text.partition(".")
    sign = "-" if whole.startswith("-") else ""
    whole = whole.lstrip("-").lstrip("0") or "0"
    fraction = fraction.rstrip("0")
    value = f"{whole}.{fraction}" if fraction else whole
    return value if value == "0" else sign + value


def gold_number(solution: str) -> str:
    """GSM8K's own answer: what follows the last ####."""
    return normalised_number(solution.rpartition("####")[2])


def until_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string; whole if there is none. Leading spaces are kept."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def majority(answers: Sequence[str]) -> str:
    """The answer given most often; the earliest of equal ones. Empty answers never win."""
    counts = Counter(answer for answer in answers if answer)
    return max(counts, key=lambda answer: counts[answer], default="")  # a Counter keeps the order of arrival
