"""The process that compares formulas by computer algebra: JSON pairs on stdin, true or false on stdout.

Started by math_answers.py, which kills it when an answer takes too long. It imports nothing of puna.
"""

import json
import resource
import sys
from typing import Any


def _parsed(formula: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    configs = (LatexExtractionConfig(), ExprExtractionConfig())
    parsed: list[Any] = parse(f"${formula}$", extraction_config=configs, parsing_timeout=None)
    return parsed


def _relative(one: Any, other: Any) -> float | None:
    """The relative difference of two numbers; None when either is none. Exact for 1/2004! and its like."""
    from sympy import Abs, Float

    try:
        a, b = one.evalf(30), other.evalf(30)
        largest = max(Float(Abs(a), 30), Float(Abs(b), 30))
        return float(Float(Abs(a - b), 30) / largest) if largest else 0.0
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None


def _is_same_function(one: Any, other: Any) -> bool | None:
    """Whether expressions of the same variables agree wherever both are real; None when that is not known.

    Simplification overlooks that the root of 1/n is 1/root of n, for n may be negative: there they are not
    real, and are not compared.
    """
    variables = getattr(one, "free_symbols", None)
    if not variables or variables != getattr(other, "free_symbols", None):
        return None
    agreed = 0
    for place, start in enumerate((0.37, 1.21, 2.9, 5.3, -0.83, -3.7)):
        point = {v: start + 0.19 * i + 0.01 * place for i, v in enumerate(sorted(variables, key=str))}
        try:
            a, b = one.subs(point).evalf(30), other.subs(point).evalf(30)
        except (AttributeError, TypeError, ValueError):
            return None
        if not (a.is_real and b.is_real and a.is_finite and b.is_finite):
            continue
        if (_relative(a, b) or 0.0) > 1e-12:
            return False
        agreed += 1
    return True if agreed >= 3 else None


def _equal(answer: str, reference: str) -> bool:
    from math_verify import verify

    left, right = _parsed(reference), _parsed(answer)
    if not left or not right:
        return False
    # The expression is first; the text that it was parsed from, last.
    difference = _relative(left[0], right[0])
    if difference is not None:  # two numbers: their values decide
        return difference <= 1e-12
    if (same := _is_same_function(left[0], right[0])) is not None:
        return same
    return bool(verify(left, right, timeout_seconds=None))


def main() -> None:
    """Answer until stdin ends."""
    _equal("1", "1")  # imports
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        try:
            verdict = _equal(*json.loads(line))
        except (Exception, MemoryError, RecursionError):
            verdict = False
        print("true" if verdict else "false", flush=True)


if __name__ == "__main__":
    main()
