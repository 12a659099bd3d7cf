"""The whole pipeline on a corpus of its own: every stage, then killed at three moments and resumed."""

import bz2
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from puna import demo
from puna.cli import app
from puna.energy import recorded_in
from puna.files import read_json_lines
from puna.model.sizes import parameters
from puna.recipes import recipe
from puna.report.run import read_run
from puna.report.tables import commands
from puna.train import speed
from tests.conftest import functions, sentences

SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from puna import demo
from puna.recipes import recipe
from puna.train import speed

raw, out, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
tiny = recipe("tiny")
demo.fetch_sample = lambda source: raw / source
demo.recipe = lambda name: tiny
demo.VOCAB_SIZE, demo.SIZES = 600, ((replace(tiny.model, vocab_size=600), 40),)
demo.BATCH_TOKENS, demo.TRAIN_SECONDS = 1024, seconds
speed.MEASURED_SECONDS = 0.1
sys.exit(demo.run_demo(out, json=True))
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


def start(raw: Path, out: Path, seconds: float = 0) -> subprocess.Popen:
    """The demo of a tiny model, with so many seconds for training; with 0 it takes the fewest steps, 40."""
    # A process group of its own, so that a kill takes the workers along as a power cut would.
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(raw), str(out), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # a model this small is slower with more threads
    )


def finish(raw: Path, out: Path, seconds: float = 0) -> dict:
    process = start(raw, out, seconds)
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


def test_the_report_s_commands_are_ones_that_puna_takes(undisturbed):
    printed = commands(read_run(undisturbed))
    assert [line.split()[1] for line in printed] == ["corpus"] * 3 + ["tokenizer", "shards", "train"]
    for line in printed:
        app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)


def test_the_energy_of_all_stages_is_one_figure(raw, undisturbed):
    stages = ("documents/wikipedia", "documents/books", "documents/github", "tokenizer", "shards", ".")
    parts = [recorded_in(undisturbed / stage).kWh for stage in stages]
    assert finish(raw, undisturbed)["energy"]["kWh"] == pytest.approx(sum(parts))


def test_the_mixture_as_run_is_near_the_intended(undisturbed):
    for row in json.loads((undisturbed / "manifest.json").read_text())["details"]["mixture"]:
        assert row["intended"] == pytest.approx(1 / 3)
        assert row["realised"] == pytest.approx(1 / 3, abs=0.01)


def outcome(out: Path) -> dict[str, object]:
    """What must not depend on how often a run was killed."""
    files = [*out.glob("documents/*/*.parquet"), *out.glob("shards/*.npy"), out / "tokenizer/tokenizer.model"]
    curve = [
        (record["kind"], record["step"], record["loss"])
        for record in read_json_lines(out / "metrics.jsonl")
        if record["kind"] != "start"
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
    for sign in ("documents/*/plan.json", "tokenizer/*", "checkpoints/step-*"):
        process = start(raw, out)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and not list(out.glob(sign)):
            time.sleep(0.005)
        assert process.poll() is None, "it was to be killed while it ran"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (out / "report.html").exists()
    # As on a machine many times as fast: the steps were decided when the run began.
    finish(raw, out, seconds=3600)
    assert outcome(out) == outcome(undisturbed)


def test_run_again_it_says_that_it_is_done(raw, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.safetensors")}
    result = finish(raw, undisturbed)
    assert result["report"].endswith("report.html")
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.safetensors")}


# ---- how much is trained


@pytest.mark.parametrize("largest_rate", [1, 50, 400, 1000, 1957, 5477, 1e5, 1e8])
def test_training_takes_five_minutes_on_a_machine_of_any_speed(largest_rate):
    """Unless it is so fast that the corpus ends before, or so slow that the fewest steps take longer."""

    def rate_of(config):  # in proportion to the model's size, as on a machine limited by arithmetic
        return largest_rate * parameters(demo.SIZES[0][0]) / parameters(config.model)

    corpus = 5_000_000
    config, rate = demo.choose_config(Path("shards"), corpus, rate_of)
    config.validate()
    assert rate == rate_of(config)
    tokens = config.schedule.steps * config.schedule.batch_tokens
    seconds = tokens / rate
    if seconds < 295:
        assert tokens == pytest.approx(demo.MAX_EPOCHS * corpus, rel=0.01)
    if seconds > 305:
        assert config.schedule.steps == demo.SIZES[-1][1]
    assert config.optim.warmup_steps < config.schedule.steps / 4


def test_a_slower_machine_never_trains_a_larger_model():
    def chosen(largest_rate):
        def rate_of(config):
            return largest_rate * parameters(demo.SIZES[0][0]) / parameters(config.model)

        config, _ = demo.choose_config(Path("shards"), 5_000_000, rate_of)
        return parameters(config.model)

    sizes = [chosen(10**power) for power in range(9)]
    assert sizes == sorted(sizes)
    assert sizes[0] == parameters(demo.SIZES[-1][0]) and sizes[-1] == parameters(demo.SIZES[0][0])


@pytest.fixture
def one_thread():
    """A model this small is slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_measured_speed_leaves_nothing_behind(shards, one_thread, monkeypatch):
    """Neither files nor random state: the run that follows is the same with and without it."""
    monkeypatch.setattr(speed, "MEASURED_SECONDS", 0.1)
    base = recipe("tiny")
    config = replace(base, data=(str(shards),), model=replace(base.model, vocab_size=512))
    before, state = sorted(shards.parent.rglob("*")), torch.random.get_rng_state()
    assert speed.tokens_per_second(config) > 0
    assert sorted(shards.parent.rglob("*")) == before
    assert torch.equal(torch.random.get_rng_state(), state)
