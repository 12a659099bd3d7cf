"""The benchmarks and examples, which the suite does not run: what they import from puna is there."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*.py")])
BENCHMARKS = sorted(ROOT.glob("benchmarks/[a-z]*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: f"{script.parent.name}/{script.name}")
def test_what_a_script_imports_is_there(script):
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "puna":
            try:
                module = importlib.import_module(node.module)
                for name in (alias.name for alias in node.names):
                    if not hasattr(module, name):
                        importlib.import_module(f"{node.module}.{name}")
            except ModuleNotFoundError as error:
                if (error.name or "").startswith("puna"):
                    raise  # else a peer's package, which has an environment of its own


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda script: script.name)
def test_make_bench_can_ask_each_benchmark_to_be_quick(script):
    assert '"--quick"' in script.read_text(encoding="utf-8")
