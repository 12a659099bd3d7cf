"""Lines of code by wing beside the design's budgets, and the files that have grown too long.

    python tests/code_size.py

In:  the sources under puna/.
Out: a table. Blank lines, comments and docstrings do not count; C++ is shown beside Python and has no budget.
     It reports and does not fail: a budget is there to be argued with.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "puna"
LONG = 400  # lines of a file, comments included
# Wings that share a budget -> their largest number of lines of Python.
BUDGETS = {
    ("corpus",): 5900,
    ("tokens",): 1400,
    ("kernels", "model", "formats"): 1900,
    ("generate", "serve"): 2300,
    ("cli",): 900,
    ("train/parallel.py", "train/plan.py", "train/machines.py"): 1300,
    ("evaluate",): 2600,
    # Additions to the report count in full: report/ had 739 lines when the budget was set.
    ("finetune", "carbon.py", "report"): 1600 + 739,
}
NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)


def python_lines(text: str) -> int:
    """Lines that hold code: no blank line, no comment alone, no docstring."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in node.body:  # the docstring, and the strings that document fields
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                    docstrings.update(range(statement.lineno, (statement.end_lineno or 0) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def cpp_lines(text: str) -> int:
    """The same of C++."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return sum(bool(line.split("//")[0].strip()) for line in text.splitlines())


@cache
def count(place: Path) -> tuple[int, int]:
    """The lines of Python and of C++ of a file, or of all files in a folder."""
    if place.is_dir():
        return total(place.iterdir())
    if place.suffix == ".py":
        return python_lines(place.read_text(encoding="utf-8")), 0
    return 0, cpp_lines(place.read_text(encoding="utf-8")) if place.suffix in (".cpp", ".h") else 0


def total(places: Iterable[Path]) -> tuple[int, int]:
    """The lines of several files and folders together."""
    counts = [count(place) for place in places]
    return sum(python for python, _ in counts), sum(cpp for _, cpp in counts)


def main() -> None:
    """Print the table."""
    print(f"{'wing':34}{'python':>8}{'budget':>8}{'over':>7}{'c++':>8}")
    counted: set[Path] = set()
    for wings, budget in BUDGETS.items():
        places = [PACKAGE / wing for wing in wings if (PACKAGE / wing).exists()]
        counted.update(places)
        python, cpp = total(places)
        over = f"{python - budget:,}" if python > budget else ""
        print(f"{' + '.join(wings):34}{python:8,}{budget:8,}{over:>7}{cpp or '':>8}")
    others = [place for place in sorted(PACKAGE.iterdir()) if place not in counted and place.name[0] != "_"]
    python, cpp = total(others)
    print(f"{'the others':34}{python:8,}{'':15}{cpp or '':>8}")
    python, cpp = count(PACKAGE)
    print(f"{'puna':34}{python:8,}{'':15}{cpp:8,}")
    sources = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".cpp", ".h")]
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources}
    for path in sorted((path for path in sizes if sizes[path] > LONG), key=lambda path: -sizes[path]):
        print(f"{path.relative_to(PACKAGE.parent)} has {sizes[path]} lines; {LONG} is the aim")


if __name__ == "__main__":
    main()
