"""Who may import whom: a part of the package imports only those below it; no imports in a circle."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "puna"
MODULES = {
    ".".join(("puna", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
GROUND = {
    "added_tokens", "allowance", "carbon", "child", "compiler", "config", "config_model",
    "config_sections", "config_upgrade", "devices", "energy", "extras", "files", "gguf", "manifest",
    "paper", "progress", "recipes", "retry", "rundir", "trained", "validation",
}  # fmt: skip
# A part of the package -> the parts that it may import, besides the ground and itself.
ALLOWED = {
    **{name: set() for name in GROUND},
    "stages": set(),
    "fetch": set(),
    "corpus": {"stages", "fetch"},
    "tokens": {"stages", "corpus"},
    "kernels": set(),
    "model": {"kernels"},
    "formats": {"kernels", "model", "tokens"},
    "train": {"kernels", "model", "tokens"},
    "finetune": {"corpus", "kernels", "model", "formats", "tokens", "train"},
    "generate": {"kernels", "model", "formats", "tokens"},
    "evaluate": {"model", "formats", "tokens", "generate"},
    "serve": {"tokens", "generate"},
    "report": {"model"},
    "demo": {"fetch", "corpus", "tokens", "train", "generate", "report"},
    "api": {"stages", "fetch", "corpus", "tokens", "formats", "train", "finetune", "generate", "evaluate",
            "report", "api_models"},
    "api_models": {"fetch", "tokens", "formats", "train", "generate", "evaluate", "report"},
    "__main__": {"cli"},
    "cli": {"api", "api_models", "stages", "fetch", "corpus", "tokens", "model", "formats", "train",
            "finetune", "generate", "serve", "report", "demo", "evaluate"},
}  # fmt: skip


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _imports(path: Path) -> set[str]:
    """The modules of puna that a file imports, anywhere in it, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_only(module):
    part = _part(module)
    if part in ("", "__main__"):
        return
    assert part in ALLOWED, f"{part} has no place in the order: add it to this table and to the design"
    upward = {_part(name) for name in _imports(MODULES[module])} - GROUND - ALLOWED[part] - {part, ""}
    assert not upward, f"{module} imports {', '.join(sorted(upward))}"


def test_the_ground_imports_only_itself():
    assert ALLOWED.keys() >= GROUND
    for name in GROUND:
        imported = {_part(module) for module in _imports(PACKAGE / f"{name}.py")} - {""}
        assert imported <= GROUND, f"{name} imports {imported - GROUND}"


def test_no_module_imports_in_a_circle():
    # The package itself imports its API only when a function of it is first used.
    waiting = {module: _imports(path) - {module} for module, path in MODULES.items() if module != "puna"}
    while ready := {module for module, imported in waiting.items() if not imported & waiting.keys()}:
        waiting = {module: imported for module, imported in waiting.items() if module not in ready}
    assert not waiting, f"these import each other, directly or not: {', '.join(sorted(waiting))}"
