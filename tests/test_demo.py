"""The whole road on a corpus of its own: every stage, then killed at three moments and resumed."""

import bz2
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from puna.files import read_json_lines
from tests.conftest import functions, sentences

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from puna import demo
from puna.recipes import recipe

raw, out = Path(sys.argv[1]), Path(sys.argv[2])
demo.VOCAB_SIZE = 600
demo.fetch_sample = lambda source: raw / source

def small(shards):
    base = recipe("tiny")
    return replace(base, data=(str(shards),), model=replace(base.model, vocab_size=600),
                   train=replace(base.train, steps=40, save_every=10))

demo.demo_config = small
sys.exit(demo.run_demo(out, json="--json" in sys.argv))
"""

PAGE = """<page><title>{title}</title><ns>0</ns><id>{id}</id><revision><id>{id}</id>
<text xml:space="preserve">'''{title}''' is [[a subject|the subject]].

{text}</text></revision></page>"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A small dump, some books, a permitted package and one that is not, in their real formats."""
    root = tmp_path_factory.mktemp("raw")
    pages = "\n".join(PAGE.format(title=f"Llama {i}", id=i, text=sentences(i, 40)) for i in range(1, 30))
    (root / "wikipedia").mkdir()
    site = "<siteinfo><dbname>enwiki</dbname></siteinfo>"
    dump = f'<mediawiki xml:lang="en">{site}\n{pages}\n</mediawiki>'.encode()
    (root / "wikipedia/enwiki-pages-articles.xml.bz2").write_bytes(bz2.compress(dump))
    (root / "books").mkdir()
    for i in range(20):
        (root / f"books/{i}.txt").write_text(
            f"*** START OF THE PROJECT GUTENBERG EBOOK {i} ***\n\n{sentences(100 + i, 60)}\n\n"
            f"*** END OF THE PROJECT GUTENBERG EBOOK {i} ***\n"
        )
    (root / "github").mkdir()
    for name, licence in (("free", "MIT"), ("copyleft", "GPL-3.0-or-later")):
        with zipfile.ZipFile(root / f"github/{name}-1.0-py3-none-any.whl", "w") as wheel:
            metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\nLicense-Expression: {licence}\n\n"
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", metadata)
            for i in range(20):
                wheel.writestr(f"{name}/module_{i}.py", functions(i, 20) + "\n")
    return root


def start(raw: Path, out: Path) -> subprocess.Popen:
    # A process group of its own, so that a kill takes the workers along as a power cut would.
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(raw), str(out), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(raw: Path, out: Path) -> dict:
    process = start(raw, out)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


@pytest.fixture(scope="module")
def undisturbed(raw, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "undisturbed"
    finish(raw, out)
    return out


def test_every_stage_leaves_a_manifest_and_a_report(undisturbed):
    for directory in (
        "documents/wikipedia",
        "documents/books",
        "documents/github",
        "tokenizer",
        "shards",
        ".",
    ):
        assert (undisturbed / directory / "manifest.json").is_file(), directory
    page = (undisturbed / "report.html").read_text(encoding="utf-8")
    for expected in ("wikipedia", "books", "github", "enwiki-pages-articles.xml.bz2"):
        assert expected in page
    counts = json.loads((undisturbed / "documents/github/manifest.json").read_text())["counts"]
    assert counts["kept"] == 20
    assert counts["dropped: licence not permitted"] == 21  # its modules, and its metadata


def test_the_mixture_as_run_is_near_the_intended(undisturbed):
    for row in json.loads((undisturbed / "manifest.json").read_text())["mixture"]:
        assert row["intended"] == pytest.approx(1 / 3)
        assert row["realised"] == pytest.approx(1 / 3, abs=0.01)


def outcome(out: Path) -> dict[str, object]:
    """What must not depend on how often a run was killed."""
    files = [*out.glob("documents/*/*.parquet"), *out.glob("shards/*.npy"), out / "tokenizer/tokenizer.model"]
    curve = [
        (record["kind"], record["step"], record["loss"]) for record in read_json_lines(out / "metrics.jsonl")
    ]
    return {
        "files": {str(path.relative_to(out)): path.read_bytes() for path in files},
        "curve": curve,
        "samples": (out / "samples.jsonl").read_bytes(),
        "weights": (out / "checkpoints/step-000040/weights.safetensors").read_bytes(),
    }


def test_killed_at_three_moments_it_ends_the_same(raw, undisturbed, tmp_path):
    out = tmp_path / "killed"
    # while documents are cleaned, while the tokenizer or the shards are made, in the middle of training
    for sign in ("documents/*/plan.json", "tokenizer/*", "checkpoints/step-000010"):
        process = start(raw, out)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and not list(out.glob(sign)):
            time.sleep(0.005)
        assert process.poll() is None, "it was to be killed while it ran"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (out / "report.html").exists()
    finish(raw, out)
    assert outcome(out) == outcome(undisturbed)


def test_run_again_it_says_that_it_is_done(raw, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.safetensors")}
    result = finish(raw, undisturbed)
    assert result["report"].endswith("report.html")
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.safetensors")}
