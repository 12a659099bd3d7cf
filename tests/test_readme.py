"""The maps of the project: README's tree and docs/architecture.md name what exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def tree() -> tuple[set[str], set[str]]:
    """The folders and the files of README's tree: names end where two spaces begin a description."""
    block = re.search(r"## Where things are\n\n```\n(.*?)```", README, re.DOTALL)
    assert block, "README has no tree"
    folders, files = set(), set()
    above: list[str] = []  # the folder at each depth
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r"\s{2,}", line.strip())[0].split()
        for name in names:
            path = "/".join([*above[:depth], name.rstrip("/")])
            (folders if name.endswith("/") else files).add(path)
        if names[0].endswith("/"):
            above[depth:] = [names[0].rstrip("/")]
    return folders, files


def folders_under(top: str) -> set[str]:
    """The folders that hold something of git's, from `top` down."""
    folders = [ROOT / top, *(path for path in (ROOT / top).rglob("*") if path.is_dir())]
    return {
        path.relative_to(ROOT).as_posix()
        for path in folders
        if "__pycache__" not in path.parts and any(child.is_file() for child in path.iterdir())
    }


def test_the_tree_names_every_folder_of_the_package_and_no_other():
    folders, _ = tree()
    within = {folder for folder in folders if folder.split("/")[0] == "puna"}
    assert within == folders_under("puna")
    for folder in folders - within:
        assert (ROOT / folder).is_dir(), folder


def test_the_files_of_the_tree_exist():
    _, files = tree()
    missing = [file for file in files if not (ROOT / file).is_file()]
    assert files and not missing


def named_places(text: str) -> list[str]:
    return re.findall(r"`((?:puna|tests|benchmarks)/[\w/]+\.\w+(?::\w+)?)`", text)


@pytest.mark.parametrize("place", sorted(set(named_places(ARCHITECTURE))))
def test_places_of_the_architecture_page_exist(place):
    file, _, name = place.partition(":")
    path = ROOT / file
    assert path.is_file()
    if not name:
        return
    defined = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert name in defined


def test_the_architecture_page_answers_the_sixteen_questions():
    answers = ARCHITECTURE.split("## Where is …")[1]
    rows = [
        line for line in answers.splitlines() if line.startswith("| ") and "where" not in line.split("|")[2]
    ]
    assert len(rows) == 16
    assert all(":" in row and named_places(row) for row in rows)


@pytest.mark.parametrize("page", ["README.md", *sorted(path.name for path in (ROOT / "docs").glob("*.md"))])
def test_files_named_in_the_pages_exist(page):
    """What was tried is history, and may name what is gone: docs/lab-notes.md is left out."""
    if page == "lab-notes.md":
        return
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    places = named_places(path.read_text(encoding="utf-8"))
    missing = [place for place in places if not (ROOT / place.split(":")[0]).is_file()]
    assert not missing
