"""The house keeps its floors: who may import whom (docs/design in one table, enforced)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "puna"
GROUND = {"added_tokens", "config", "devices", "files", "progress", "recipes"}
# A part of the package -> the parts that it may import, besides the ground and itself.
ALLOWED = {
    **{name: set() for name in GROUND},
    "corpus": set(),
    "tokens": {"corpus"},
    "model": set(),
    "train": {"model", "tokens", "corpus"},
    "finetune": {"model", "tokens", "corpus", "train"},
    "generate": {"model", "tokens"},
    "evaluate": {"model", "tokens", "generate"},
    "serve": {"model", "tokens", "generate"},
    "carbon": set(),
    "report": set(),
    "demo": {"corpus", "tokens", "train", "generate", "report"},
    "cli": {"corpus", "tokens", "model", "train", "generate", "serve", "report", "demo"},
}


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _imports(path: Path) -> set[str]:
    """The parts of puna that a file imports, anywhere in it, also inside functions."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            names = [
                f"{node.module}.{alias.name}" if node.module == "puna" else node.module
                for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        parts |= {_part(name) for name in names if name and name.startswith("puna.")}
    return parts - {"", "__version__"}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_down_only(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part in ("__init__", "__main__"):
        return
    assert part in ALLOWED, f"{part} has no floor: add it to this table and to the design"
    upward = _imports(path) - GROUND - ALLOWED[part] - {part}
    assert not upward, f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(upward))}"


def test_the_ground_imports_only_itself():
    assert ALLOWED.keys() >= GROUND
    for name in GROUND:
        assert _imports(PACKAGE / f"{name}.py") <= GROUND
