"""The report of a run: everything a run directory says, on one page that needs nothing else.

The runs here are written by hand as the trainer writes them, with the manifests of the stages before,
so that no stage has to run.
"""

import base64
import hashlib
import json
import math
import random
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from puna.config import MixtureConfig, RunConfig, to_dict
from puna.files import write_json
from puna.recipes import recipe
from puna.report.page import build_report

SOURCES = {"books": 0.45, "wikipedia": 0.35, "github": 0.2}
VOCAB = 4096
SAMPLE = (
    "\n   two  spaces, and <script>alert('stolen')</script> & a \ud800 and a \x07 and https://example.org"
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Recorded paths are tried from the working directory, where a demo of the checkout's may lie."""
    monkeypatch.chdir(tmp_path)


def make_run(root: Path, steps: int = 120, finished: bool = True) -> Path:
    """A run of the 15m recipe over three sources in `root`/runs/demo, with all that came before it."""
    run = root / "runs/demo"
    base = recipe("15m")
    config = replace(
        base,
        data=tuple(f"runs/demo/shards/{source}" for source in SOURCES),
        model=replace(base.model, vocab_size=VOCAB),
        mixture=MixtureConfig(weights={source: 100 * share for source, share in SOURCES.items()}),
        schedule=replace(base.schedule, steps=800),
    )
    for source in SOURCES:
        _make_corpus(root, source)
    _write_manifest(
        run / "tokenizer",
        "tokenizer",
        "70c0",
        counts={"pieces": VOCAB},
        outputs=[{"path": "tokenizer.model", "bytes": 57_551, "sha256": "7e" * 32}],
        inputs=[
            {"path": f"runs/demo/documents/{source}", "fingerprint": f"d0c5-{source}"} for source in SOURCES
        ],
    )
    write_json(run / "config.json", to_dict(config))
    final = _write_metrics(run, config, steps)
    samples = [
        {"step": steps, "prompt": "The king", "text": SAMPLE, "temperature": 0.8, "top_p": 0.95, "seed": 1},
        {"step": steps, "prompt": "", "text": "and so on.", "temperature": 0.8, "top_p": 0.95, "seed": 2},
        {"step": 40, "prompt": "The king", "text": " the the", "temperature": 0.8, "top_p": 0.95, "seed": 1},
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    if finished:
        _write_run_manifest(run, config, steps, final)
    return run


def _make_corpus(root: Path, source: str) -> None:
    raw = root / f"raw/{source}.bz2"
    raw.parent.mkdir(parents=True, exist_ok=True)
    raw.write_bytes(b"x" * 1000)
    digest = {"books": "b0", "wikipedia": "1c", "github": "91"}[source] * 32
    parquet = {"path": f"runs/demo/documents/{source}/00000.parquet", "bytes": 2_345_678, "sha256": digest}
    _write_manifest(
        root / f"runs/demo/documents/{source}",
        "documents",
        f"d0c5-{source}",
        config={"source": source},
        counts={"kept": 106, "characters": 6_412_345, "dropped: no licence": 31, "dropped: too short": 7},
        bad=2,
        inputs=[{"path": f"raw/{source}.bz2", "bytes": 1000, "sha256": digest[::-1]}],
        outputs=[{**parquet, "path": "00000.parquet"}],
    )
    _write_manifest(
        root / f"runs/demo/shards/{source}",
        "shards",
        f"54a2d5-{source}",
        counts={"documents": 106, "tokens": 1_812_000},
        tokenizer={"path": "runs/demo/tokenizer/tokenizer.model", "fingerprint": "7e" * 32},
        documents=[{"path": f"runs/demo/documents/{source}", "fingerprint": f"d0c5-{source}"}],
        inputs=[parquet],
    )


def _write_manifest(directory: Path, stage: str, mark: str, **fields) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    manifest = {
        "stage": stage,
        "fingerprint": mark,
        "code_version": "0.1.0+1a2b3c4d",
        "seconds": 12.5,
        **fields,
    }
    write_json(directory / "manifest.json", manifest)


def _write_metrics(run: Path, config: RunConfig, steps: int) -> dict:
    """Losses that fall from ln(vocabulary), with noise; returns the last validation."""
    noise = random.Random(1)
    lines, validation = [], {}
    for step in range(1, steps + 1):
        mean = 4.3 + 4.05 * (1 + step / 12) ** -0.8
        seconds = 0.62 * step
        record = {
            "kind": "train",
            "step": step,
            "loss": mean + noise.gauss(0, 0.13),
            "loss_by_source": {source: mean + noise.gauss(0, 0.2) for source in SOURCES},
            "lr": 1e-3 * min(step / 100, 0.55 + 0.45 * math.cos(math.pi * step / config.schedule.steps)),
            "grad_norm": 0.6 + 4 / (1 + step / 8) + abs(noise.gauss(0, 0.15)),
            "tokens": step * config.schedule.batch_tokens,
            "tokens_per_second": 6540 + noise.gauss(0, 240),
            "mfu": 0.412 + noise.gauss(0, 0.012),
            "seconds": seconds,
        }
        lines.append(record)
        if step % 40 == 0 or step == steps:
            by_source = {"books": mean + 0.35, "wikipedia": mean + 0.1, "github": mean - 0.4}
            validation = {
                "loss": sum(SOURCES[source] * loss for source, loss in by_source.items()),
                "loss_by_source": by_source,
                "bits_per_byte_by_source": {source: loss / 2.4 for source, loss in by_source.items()},
                "windows_by_source": dict.fromkeys(SOURCES, 32),
            }
            lines.append({"kind": "validation", "step": step, **validation, "final": step == steps})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return validation


def _write_run_manifest(run: Path, config: RunConfig, steps: int, validation: dict) -> None:
    tokens = steps * config.schedule.batch_tokens
    mixture = [
        {
            "source": source,
            "intended": share,
            "realised": share + shift,
            "sequences": round(steps * 8 * share),
            "tokens": round(tokens * share),
            "epochs": tokens * share / 1_812_000,
            "documents": 106,
            "bytes": 3_624_000,
        }
        for (source, share), shift in zip(SOURCES.items(), (0.0123, -0.0101, -0.0022), strict=True)
    ]
    _write_manifest(
        run,
        "run",
        "9d4ebe47c5a6fe44",
        config=to_dict(config),
        machine={
            "cpu": "A processor",
            "cores": 2,
            "matrix_gflops": 312.5,
            "torch": "2.13.0",
            "python": "3.11",
            "platform": "Linux",
        },
        counts={"parameters": 8_312_544, "steps": steps, "tokens": tokens},
        mixture=mixture,
        validation=validation,
        inputs=[
            {"path": f"runs/demo/shards/{source}", "fingerprint": f"54a2d5-{source}"} for source in SOURCES
        ],
        checkpoint=f"checkpoints/step-{steps:06d}",
    )


VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """A page as its reader gets it: text, and what is wrong with the tags."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.open_tags: list[str] = []
        self.tags: list[str] = []
        self.elements: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.ids: list[str] = []
        self.faults: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(self.source)
        self.close()
        self.faults += [f"<{tag}> is left open" for tag in self.open_tags]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.elements.append((tag, attrs))
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open_tags.append(tag)
        elif tag == "br":
            self.text += "\n"

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if not self.open_tags or self.open_tags[-1] != tag:
            self.faults.append(f"</{tag}> closes {self.open_tags[-1:]} at {self.getpos()}")
        else:
            self.open_tags.pop()
        if tag in ("td", "th", "dd", "dt"):
            self.text += " "

    def handle_data(self, data):
        if "script" in self.open_tags:
            self.scripts.append(data)
        elif "style" not in self.open_tags:
            self.text += data

    @property
    def words(self) -> str:
        """The text with every run of white space as one space."""
        return " ".join(self.text.split())


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


def page_of(run: Path) -> Page:
    page = Page(build_report(run))
    assert page.faults == []
    return page


def test_the_report_is_one_well_formed_page_beside_the_run(run):
    path = build_report(run)
    assert path == run / "report.html"
    page = Page(path)
    assert page.faults == []
    assert len(page.ids) == len(set(page.ids))
    assert page.source.lstrip().startswith("<!DOCTYPE html>")
    assert not list(run.glob(".*.partial"))


def test_the_page_needs_no_network_and_runs_its_own_script_alone(run):
    page = page_of(run)
    assert not {"link", "img", "iframe", "object", "embed"} & set(page.tags)
    kinds = [dict(attributes).get("type") for tag, attributes in page.elements if tag == "script"]
    assert kinds.count(None) == 1
    assert set(kinds) == {None, "application/json"}
    # The policy names the hash of that one script: a browser runs no other.
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    policy = next(value for _, name, value in page.attributes if name == "content" and "script-src" in value)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "eval(" not in page.scripts[-1]
    code = re.sub(r"// .*", "", page.scripts[-1].replace("http://www.w3.org/2000/svg", ""))
    assert "//" not in code
    references = [
        value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "data")
    ]
    assert references
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in references)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_what_the_model_wrote_is_shown_and_never_obeyed(run):
    page = page_of(run)
    assert not [script for script in page.scripts if "stolen" in script]
    assert "&lt;script&gt;" in page.source
    assert "The king\n   two  spaces, and <script>alert('stolen')</script> & a \ufffd and a ␇" in page.text


def test_names_from_files_are_escaped_everywhere(run):
    evil = '<img src="https://example.org/x">'
    for name in ("config.json", "metrics.jsonl", "manifest.json"):
        path = run / name
        path.write_text(path.read_text().replace("books", json.dumps(evil)[1:-1]))
    page = page_of(run)
    assert "img" not in page.tags
    assert page.text.count(evil) > 5


def test_the_summary_tells_size_tokens_loss_and_speed(run):
    words = page_of(run).words
    final = json.loads((run / "manifest.json").read_text())["validation"]["loss"]
    assert "8.34 million parameters" in words
    assert "trained on 491,520 tokens in 120 steps and 1 min 14 s" in words
    assert f"final validation loss is {final:.3f} nats per token" in words
    assert f"and a perplexity of {math.exp(final):,.1f}" in words
    assert f"{100 * final / math.log(VOCAB):.1f} % of the 8.32 nats (ln 4,096)" in words
    assert re.search(
        r"median step trained at 6,[45]\d\d tokens/s, 41\.\d % of the machine's matrix peak", words
    )


def test_the_mixture_stands_as_run_beside_the_intended_one(run):
    words = page_of(run).words
    assert "books 45.0 % 46.2 % +1.23 0.12 221,184 432 106 3.6 MB" in words
    assert "wikipedia 35.0 % 34.0 % −1.01" in words


def test_documents_are_told_kept_and_dropped_by_reason(run):
    words = page_of(run).words
    assert "github kept (6.41 million characters) 106 72.6 % dropped: no licence 31 21.2 %" in words
    assert "damaged, skipped 2 1.4 %" in words


def test_lineage_leads_from_the_run_back_to_the_raw_dumps(run):
    page = page_of(run)
    lineage = page.words.split("From the run back")[1]
    places = [lineage.index(name) for name in ("shards/books", "documents/books", "raw/books.bz2")]
    assert places == sorted(places)
    assert "fingerprint 9d4ebe47c5a6fe44 parameters 8,312,544" in lineage
    assert f"raw/books.bz2 · 1.0 kB · SHA-256 {'0b' * 6}…" in lineage
    assert ("code", "title", "0b" * 32) in page.attributes
    assert lineage.count("tokenizer runs/demo/tokenizer/tokenizer.model · fingerprint 70c0 pieces 4,096") == 1
    assert "documents runs/demo/documents/books · fingerprint d0c5-books · as above" in lineage


def test_raw_files_that_changed_or_went_are_said(run):
    raw = run.parent.parent / "raw"
    (raw / "books.bz2").write_bytes(b"longer" * 300)
    (raw / "github.bz2").unlink()
    words = page_of(run).words
    assert f"raw/books.bz2 · 1.0 kB · SHA-256 {'0b' * 6}… · is 1,800 bytes here now" in words
    assert f"raw/github.bz2 · 1.0 kB · SHA-256 {'19' * 6}… · not found here" in words
    assert f"raw/wikipedia.bz2 · 1.0 kB · SHA-256 {'c1' * 6}… ·" not in words


def test_missing_upstream_manifests_are_said_and_their_fingerprints_kept(run):
    shutil.rmtree(run / "shards/books")
    shutil.rmtree(run / "documents/github")
    words = page_of(run).words
    assert "shards runs/demo/shards/books · fingerprint 54a2d5-books · not found here" in words
    assert "documents runs/demo/documents/github · fingerprint d0c5-github · not found here" in words
    shutil.rmtree(run / "documents")
    shutil.rmtree(run / "shards")
    assert "so the counts are unknown" in page_of(run).words


def test_a_damaged_upstream_manifest_is_as_good_as_none(run):
    (run / "shards/books/manifest.json").write_text('{"stage": "sha')
    assert "shards runs/demo/shards/books · fingerprint 54a2d5-books · not found here" in page_of(run).words


def test_inputs_made_anew_since_the_run_are_not_taken_for_its_own(run):
    for path, mark in (("shards/books", "54a2d5-books"), ("documents/github", "d0c5-github")):
        manifest = run / path / "manifest.json"
        manifest.write_text(manifest.read_text().replace(mark, "another"))
    words = page_of(run).words
    said = "a different artefact is at this path now; not followed"
    assert f"shards runs/demo/shards/books · fingerprint 54a2d5-books · {said}" in words
    assert f"documents runs/demo/documents/github · fingerprint d0c5-github · {said}" in words


def test_fields_that_differ_from_the_recipe_are_marked(run):
    page = page_of(run)
    assert "vocab_size 4096 32000" in page.words
    assert "dim 288 same" in page.words
    assert page.source.count('<tr class="other">') == 4  # data, vocab_size, weights, steps


def test_the_page_ends_with_the_command_that_reproduces_the_run(run):
    assert f"puna train --config {run}/config.json --out {run}-again" in page_of(run).words


def test_an_unfinished_run_says_at_which_step_it_is(tmp_path):
    words = page_of(make_run(tmp_path, steps=90, finished=False)).words
    assert "running step 90 of 800, last loss " in words
    assert re.search(r"about \d+ min \d+ s left", words)
    assert "latest validation loss" in words
    assert "books 45.0 % — —" in words
    assert "raw/books.bz2" in words


def test_a_torn_last_line_is_passed_over_and_a_broken_one_is_named(run):
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + '{"kind": "train", "step": 121, "loss_by_source": {"bücher'.encode()[:-5])
    assert "in 120 steps" in page_of(run).words
    path.write_bytes(b'{"kind": "tr\n' + whole)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 .* delete that line"):
        build_report(run)


def test_a_run_that_has_not_begun_has_a_page(tmp_path):
    run = make_run(tmp_path, finished=False)
    (run / "metrics.jsonl").write_text("")
    (run / "samples.jsonl").unlink()
    words = page_of(run).words
    assert "not begun step 0 of 800" in words
    assert "No points yet." in words
    assert "No samples were written yet." in words


def test_a_line_separator_within_a_sample_does_not_break_the_file(run):
    # U+2028 ends a line for str.splitlines, not for JSON lines.
    sample = {"step": 120, "prompt": "a", "text": " b\u2028c\x85d"}
    (run / "samples.jsonl").write_text(json.dumps(sample, ensure_ascii=False) + "\n", encoding="utf-8")
    assert "a b\u2028c\ufffdd" in page_of(run).text


def test_losses_that_are_not_finite_are_counted_and_left_out(run):
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[5]["loss"], lines[6]["loss"] = math.nan, math.inf
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(run)
    assert "2 of 120 steps without a finite value are omitted" in page.words
    assert not [value for _, name, value in page.attributes if name == "d" and "nan" in value]


@pytest.mark.parametrize("make", ["missing", "empty", "file"])
def test_what_is_no_run_directory_is_refused_with_the_mend(tmp_path, make):
    path = tmp_path / "shards"
    if make == "empty":
        path.mkdir()
    elif make == "file":
        path.write_text("{}")
    with pytest.raises(ValueError, match=r"is not a run directory .*puna train"):
        build_report(path)
    assert not (path / "report.html").exists()


def test_two_reports_of_the_same_files_are_the_same_bytes(run):
    first = build_report(run).read_bytes()
    assert build_report(run).read_bytes() == first
