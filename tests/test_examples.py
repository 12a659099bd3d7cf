"""The examples run from nothing, in an empty directory."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("[a-z]*.py"))
# What an example prints when it does what it says.
SHOWN = {
    "own_documents.py": "open runs/notes/report.html",
    "own_source.py": "Drop(",
    "own_mixture.py": "people: held-out loss",
    "own_sampler.py": "The llama",
    "convert_weights.py": "small.gguf:",
    "finetune_answers.py": "speaks the format",
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_runs_from_nothing(tmp_path, script):
    command = [sys.executable, str(EXAMPLES / script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert SHOWN[script] in done.stdout
    assert "another text" not in done.stdout


def test_every_example_is_described():
    assert sorted(SHOWN) == SCRIPTS
    readme = (EXAMPLES / "README.md").read_text()
    assert all(f"`{script}`" in readme for script in SCRIPTS)
