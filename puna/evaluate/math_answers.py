"""MATH: the final answer of a solution, and whether two answers are equal.

    solution ──final_answer──> "\\frac{1}{2}" ──normalised──> "\\frac{1}{2}" ── same string? ── yes ─> equal
                                                                                 │ no
                                                        computer algebra in a child process: same_value

The string rule follows appendix D of Lewkowycz et al. 2022 (Minerva). Computer algebra is math-verify, the
extra puna[math]; it may hang or exhaust memory on hostile input, so it runs for at most SECONDS in a process
with at most MEMORY bytes. Without the extra only strings are compared.
"""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from puna.child import Child

SECONDS = 5.0
START_SECONDS = 120.0
MEMORY = 1 << 30
_ALGEBRA = Child(sys.executable, "-I", str(Path(__file__).with_name("math_child.py")), str(MEMORY))

_STATED = re.compile(r"Final Answer:\s*The final answer is(.*?)\.\s*I hope it is correct", re.DOTALL)


def final_answer(text: str) -> str | None:
    """The stated final answer, else the content of the last \\boxed{}; None when there is neither."""
    stated = _STATED.search(text)
    answer = stated.group(1) if stated else boxed(text)
    return without_delimiters(answer) if answer is not None else None


def boxed(text: str) -> str | None:
    """The content of the last \\boxed{…} or \\fbox{…} whose braces balance; also `\\boxed 7`."""
    for found in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*", text))):
        rest = text[found.end() :]
        if not rest.startswith("{"):
            if single := re.match(r"[^\s$.,]+", rest):
                return single.group()
            continue
        depth = 0
        for place, character in enumerate(rest):
            escaped = place and rest[place - 1] == "\\"
            depth += 0 if escaped else (character == "{") - (character == "}")
            if depth == 0:
                return rest[1:place]
    return None


def without_delimiters(text: str) -> str:
    """The formula inside $…$, $$…$$, \\[…\\], \\(…\\) or \\boxed{…}, with white space stripped."""
    text = text.strip()
    for left, right in (("$$", "$$"), ("$", "$"), (r"\[", r"\]"), (r"\(", r"\)")):
        if len(text) >= len(left) + len(right) and text.startswith(left) and text.endswith(right):
            return without_delimiters(text[len(left) : -len(right)])
    if re.fullmatch(r"\\(?:boxed|fbox)\s*\{.*\}", text, re.DOTALL) and (inner := boxed(text)) is not None:
        return without_delimiters(inner)
    return text


_NUMERAL = re.compile(r"([0-9A-Z]+)_\{?(\d+)\}?")  # a number written in a base

# What is written another way in an answer, in this order, and what is deleted from it (Minerva's lists).
_REWRITTEN = (("an ", ""), ("a ", ""), (".$", "$"), (r"\$", ""), (r"\ ", ""), ("mbox", "text"),
              (r",\text{and}", ","), (r"\text{and}", ","), (r"\text{m}", r"\text{}"), (r"\left", ""),
              (r"\right", ""), (r"\!", ""), (r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"))  # fmt: skip
_UNITS = (
    "square|ways|integers|dollars|mph|inches|ft|hours|km|units|points|feet|minutes|digits|cents|degrees|cm|gm|"
    "pounds|meters|meals|edges|students|childrentickets|multiples|sec"
)
_DELETED = (r"\text{s}", r"\text{.}", r"\text{,}", r"\text{}", r"\mathrm{th}", r"^\circ", r"^{\circ}", r"\;",
            r",\!", "{,}", '"', r"\dots")  # fmt: skip
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mbox|overline)\{([^{}]*)\}")
_UNIT = re.compile(rf"\\text\{{\s*(?:{_UNITS})\.?\s*\}}|\s*\b(?:{_UNITS})\b")


def normalised(answer: str) -> str:
    """An answer in one spelling: the right side of an equation, no units, \\frac and \\sqrt with braces."""
    text = answer.rpartition("=")[2]
    for part, instead in _REWRITTEN:
        text = text.replace(part, instead)
    text = _UNIT.sub("", text)
    for part in _DELETED:
        text = text.replace(part, "")
    if math := re.search(r"\$(.+?)\$", text):  # a formula within words
        text = math.group(1)
    text = _WRAPPED.sub(r"\1", text)
    if box := boxed(text):
        text = box
    text = text.replace("%", "").replace(" ", "").replace("$", "")
    text = re.sub(r"\\frac(?!\{)(.)(?!\{)(.)", r"\\frac{\1}{\2}", text)  # \frac12
    text = re.sub(r"\\frac\{([^{}]*)\}(?!\{)(.)", r"\\frac{\1}{\2}", text)  # \frac{1}2
    text = re.sub(r"\\sqrt(?![{\[])(.)", r"\\sqrt{\1}", text)  # \sqrt2
    if re.fullmatch(r"-?[\d,]+(\.\d+)?", text) and re.fullmatch(r"-?\d{1,3}(,\d{3})*(\.\d+)?", text):
        text = text.replace(",", "")
    return text.rstrip(".").removesuffix("\\")


def same_string(answer: str, reference: str) -> bool:
    """Whether both are the same once normalised: Minerva's rule."""
    return normalised(answer) == normalised(reference) != ""


def same_value(answer: str, reference: str, seconds: float = SECONDS) -> bool:
    """Whether computer algebra finds them equal; False when it cannot say within its time and memory."""
    numerals = _NUMERAL.fullmatch(answer.strip()), _NUMERAL.fullmatch(reference.strip())
    if any(numerals):  # 4210_5: algebra drops the base
        return all(numerals) and numerals[0].groups() == numerals[1].groups()  # type: ignore[union-attr]
    if not find_spec("math_verify"):
        return False
    # Importing sympy takes seconds; they are not the comparison's.
    if not _ALGEBRA.is_running and _ALGEBRA.ask(b'["1", "1"]', START_SECONDS) is None:
        raise RuntimeError("math-verify does not start; run: pip install 'puna[math]'")
    return _ALGEBRA.ask(json.dumps([answer, reference]).encode(), seconds) == b"true"
