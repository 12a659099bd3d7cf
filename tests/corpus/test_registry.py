"""Packages add sources of their own, which puna cleans like its own."""

import importlib
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from puna.corpus import registry
from puna.corpus.clean import clean_source
from puna.corpus.parquet import read_documents
from puna.stages.stage import Executor, plan_shards

MODULE = '''
"""Recipes: a line per recipe."""
from dataclasses import dataclass
from puna.corpus.document import DamagedRecord, Document, Drop

PATTERNS = ("*.recipe",)

@dataclass(frozen=True)
class Options:
    shortest: int = 5
    """Recipes with fewer characters are dropped."""

def read(path, options):
    for number, line in enumerate(path.read_text().splitlines()):
        yield DamagedRecord(str(path), number, "burnt") if line == "!" else (f"{path.stem}-{number}", line)

def clean(record, options):
    name, text = record
    return Document(name, "recipes", text) if len(text) >= options.shortest else Drop("too short")
'''


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """A package with sources, installed as pip does it: modules, and a dist-info folder with entry points."""
    site = tmp_path / "site"
    info = site / "kitchen-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "kitchen.py").write_text(MODULE, encoding="utf-8")
    (site / "broken.py").write_text("PATTERNS = ()", encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kitchen\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[puna.sources]\nrecipes = kitchen\nbroken = broken\nmissing = no_such_module\nc4 = kitchen\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    importlib.invalidate_caches()
    for cached in (registry.registered, registry.load_source):
        cached.cache_clear()
    yield site
    for cached in (registry.registered, registry.load_source):
        cached.cache_clear()


@pytest.fixture
def recipes(tmp_path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.recipe").write_text(f"Salt the {name}.\nToo.\n!\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_a_registered_source_is_cleaned_like_puna_s_own(installed, recipes, tmp_path, workers, monkeypatch):
    monkeypatch.setattr("puna.corpus.clean.plan_shards", partial(plan_shards, shard_bytes=1))
    manifest = clean_source(
        "recipes", [recipes], tmp_path / "out", executor=Executor(workers=workers, max_bad=1)
    )
    assert (manifest.counts["kept"], manifest.counts["dropped: too short"], manifest.damaged) == (
        2,
        2,
        2,
    )
    paths = sorted((tmp_path / "out").glob("0*.parquet"))
    texts = [document.text for path in paths for document in read_documents(path)]
    assert texts == ["Salt the a.", "Salt the b."]


def test_the_command_line_has_a_verb_for_it_with_its_options(installed, recipes, tmp_path):
    command = [sys.executable, "-m", "puna.cli", "corpus"]

    def run(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)

    (installed / "kitchen.py").rename(installed / "moved.py")
    listed = run("--help").stdout  # without importing the source, which is not there
    (installed / "moved.py").rename(installed / "kitchen.py")
    assert "recipes" in listed and "Source of the package kitchen." in listed
    assert "fewer characters are dropped" in " ".join(run("recipes", "--help").stdout.split())
    done = run("recipes", recipes, "--out", tmp_path / "out", "--shortest", 1, "--max-bad", 1)
    assert done.returncode == 0 and "4  kept" in done.stdout, done.stderr
    assert run("broken", recipes, "--out", tmp_path / "out").returncode == 2


def test_a_source_that_does_not_work_is_named_with_its_package(installed, caplog):
    with pytest.raises(ValueError, match=r"the source broken of .* kitchen has no Options and no read"):
        registry.load_source("broken")
    with pytest.raises(ValueError, match="cannot import the source missing of the package kitchen"):
        registry.load_source("missing")
    with pytest.raises(ValueError, match=r"unknown source 'recipe'.* commoncrawl, .* jsonl, .* recipes"):
        registry.load_source("recipe")
    assert "ignored the source c4 of kitchen" in caplog.text
    assert registry.load_source("c4").__name__ == "puna.corpus.c4.source"
