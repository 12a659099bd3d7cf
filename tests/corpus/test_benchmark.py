"""The contestants of benchmarks/corpus.py run on a small crawl."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpus.web.archives import write_wet

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", ["lines", "pipeline"])
def test_a_contestant_runs_and_reports(tmp_path, name):
    crawl = tmp_path if name == "lines" else tmp_path / "wet"
    crawl.mkdir(exist_ok=True)
    # A line of its own for each page and place, as digits do not tell lines apart.
    lines = [
        [f"The llama {'l' * page} carries {'salt ' * place}home." for place in range(20)] for page in range(3)
    ]
    pages = {f"https://a.org/{page}": "\n".join(text) for page, text in enumerate(lines)}
    write_wet(crawl / "a.warc.wet.gz", pages)
    command = [sys.executable, "benchmarks/_corpus_contestant.py", name, tmp_path, tmp_path / "out", "-", "-"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["cpu"] >= 0
