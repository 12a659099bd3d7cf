"""CCNet's road: short pages, repeated lines, other languages, the tail of perplexity are left out."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.corpus.clean import check_options, clean_source
from puna.corpus.commoncrawl import source as commoncrawl
from puna.corpus.commoncrawl.source import Options, clean, pipeline
from puna.corpus.dedup.lines import normalise
from puna.corpus.document import Document, Drop
from puna.corpus.parquet import read_documents
from puna.corpus.web.pages import Page
from puna.manifest import load_manifest
from puna.stages.stage import Executor, Unfinished, plan_shards
from tests.conftest import sentences, write_corpus
from tests.corpus.web.archives import wet, write_wet, zipped

REAL = Path(os.environ.get("PUNA_REALDATA", ""))
real = pytest.mark.skipif(not os.environ.get("PUNA_REALDATA"), reason="PUNA_REALDATA is not set")
ROOT = Path(__file__).parents[3]
HERE = Executor(workers=1, max_bad=1.0)

ENGLISH = [sentences(seed, 8) for seed in range(200)]
GERMAN = "Die Lamas tragen das Salz über die Hochebene, und der Hirte folgt ihnen bis in das Tal hinab. " * 4
MENU = "Home | About us | Contact"


def texts(out: Path) -> dict[str, str]:
    return {
        document.meta["url"]: document.text
        for path in sorted(out.glob("*.parquet"))
        for document in read_documents(path)
    }


def documents(out: Path) -> list[Document]:
    return [document for path in sorted(out.glob("*.parquet")) for document in read_documents(path)]


def shard_a_file(monkeypatch) -> None:
    """Small inputs are one shard; here each file is one."""
    monkeypatch.setattr("puna.corpus.pipeline.plan_shards", partial(plan_shards, shard_bytes=1))


@pytest.fixture
def crawl(tmp_path) -> Path:
    """Six files of four pages: own lines, a menu on all, a licence line on two pages of two files."""
    folder = tmp_path / "crawl"
    folder.mkdir()
    number = 0
    for file in range(6):
        pages = {}
        for _ in range(4):
            own = "\n".join(ENGLISH[number * 3 : number * 3 + 3])
            shared = "All rights reserved, 1999." if number in (2, 13) else f"Only on page {'x' * number}."
            pages[f"https://example.org/{number}"] = f"  {MENU}\n\n{own}  \r\n{shared}\n"
            number += 1
        write_wet(folder / f"{file}.warc.wet.gz", pages)
    return folder


# ---- pages


def test_a_page_is_its_stripped_lines():
    page = Page("x:1", "https://a.org", "2024-05-18T01:58:10Z", f"  {ENGLISH[0]}\r\n\n \u3000{ENGLISH[1]} \n")
    document = clean(page)
    assert isinstance(document, Document)
    assert document.text == f"{ENGLISH[0]}\n{ENGLISH[1]}"
    assert document.meta["url"] == "https://a.org" and document.meta["date"] == "2024-05-18T01:58:10Z"
    assert document.meta["digest"].startswith("sha1:")


@pytest.mark.parametrize(("length", "kept"), [(299, False), (300, True)])
def test_pages_under_300_characters_are_dropped(length, kept):
    result = clean(Page("x:1", "https://a.org", "", "y" * length))
    assert isinstance(result, Document) == kept
    if not kept:
        assert result == Drop("fewer than 300 characters")


# ---- the whole road


def test_lines_on_several_pages_are_gone_and_all_others_stay(crawl, tmp_path, monkeypatch):
    shard_a_file(monkeypatch)
    manifest = clean_source("commoncrawl", [crawl], tmp_path / "out", Options(), HERE)
    found = texts(tmp_path / "out")
    assert len(found) == manifest.counts["kept"] == 24
    for number in range(24):
        expected = ENGLISH[number * 3 : number * 3 + 3]
        if number not in (2, 13):
            expected = [*expected, f"Only on page {'x' * number}."]
        assert found[f"https://example.org/{number}"] == "\n".join(expected)
    assert manifest.counts["lines"] == 24 * 5 and manifest.counts["lines removed"] == 26


def test_keep_first_keeps_the_first_in_the_order_of_the_inputs(crawl, tmp_path, monkeypatch):
    shard_a_file(monkeypatch)
    clean_source("commoncrawl", [crawl], tmp_path / "out", Options(keep_first=True), HERE)
    found = texts(tmp_path / "out")
    assert [url for url, text in found.items() if MENU in text] == ["https://example.org/0"]
    assert [url for url, text in found.items() if "All rights" in text] == ["https://example.org/2"]


def test_without_deduplication_every_line_stays(crawl, tmp_path):
    clean_source("commoncrawl", [crawl], tmp_path / "out", Options(deduplicate=False), HERE)
    assert all(MENU in text for text in texts(tmp_path / "out").values())
    assert not (tmp_path / "out" / "steps").exists()


def test_the_last_manifest_counts_what_every_step_dropped(crawl, tmp_path):
    lost = "\n".join(ENGLISH[150:153])
    short = {f"https://s.org/{n}": "too short" for n in range(3)}
    pages = {**short, "https://a.org": lost, "https://b.org": lost, "https://d.org": GERMAN}
    write_wet(crawl / "6.warc.wet.gz", pages)
    damaged = b"".join(zipped([wet("one"), wet("two", length=1)]))
    (crawl / "7.warc.wet.gz").write_bytes(damaged)
    manifest = clean_source("commoncrawl", [crawl], tmp_path / "out", Options(), HERE)
    assert manifest.damaged == 1
    assert {name: count for name, count in manifest.counts.items() if name.startswith("dropped")} == {
        "dropped: another language": 1,
        "dropped: every line repeated": 2,
        "dropped: fewer than 300 characters": 4,
    }
    assert manifest.counts["kept"] == 24


def test_what_was_dropped_can_be_kept_aside(crawl, tmp_path):
    write_wet(crawl / "6.warc.wet.gz", {"https://d.org": GERMAN, "https://s.org": "short"})
    clean_source("commoncrawl", [crawl], tmp_path / "out", Options(), Executor(workers=1, keep_dropped=True))
    rows = [
        row
        for folder in (tmp_path / "out" / "steps" / "pages", tmp_path / "out")
        for row in pq.read_table(folder / "dropped" / "00000.parquet").to_pylist()
    ]
    assert [(row["reason"], row["detail"]) for row in rows] == [
        ("fewer than 300 characters", ""),
        ("another language", "de"),
    ]
    assert json.loads(rows[0]["record"])["url"] == "https://s.org"


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_the_corpus_is_what_counting_lines_in_memory_leaves(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("crawl")
    line = st.sampled_from(
        [*ENGLISH[:12], MENU, MENU.upper(), "Página 7", "Página 8", "“Yes”", "Yes", "🦙 yes"]
    )
    files = data.draw(
        st.lists(st.lists(st.lists(line, min_size=1, max_size=9), max_size=4), min_size=1, max_size=3)
    )
    pages: dict[str, list[str]] = {}
    for number, of_file in enumerate(files):
        held = {f"https://e.org/{number}/{place}": "\n".join(page) for place, page in enumerate(of_file)}
        write_wet(folder / f"{number}.warc.wet.gz", held)
        pages |= {url: text.split("\n") for url, text in held.items()}
    counts = Counter(normalise(line) for page in pages.values() for line in page)
    left = {url: "\n".join(row for row in page if counts[normalise(row)] == 1) for url, page in pages.items()}
    left = {url: text for url, text in left.items() if text}
    out = tmp_path_factory.mktemp("out")
    options = Options(languages=(), language_threshold=0, min_characters=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("puna.corpus.pipeline.plan_shards", partial(plan_shards, shard_bytes=1))
        if not left:
            with pytest.raises(ValueError, match="no commoncrawl document was kept"):
                pipeline(sorted(folder.iterdir()), out, options, HERE)
            return
        pipeline(sorted(folder.iterdir()), out, options, HERE)
    assert texts(out) == left


# ---- language, perplexity, references


def test_languages_and_threshold_are_options(tmp_path):
    pages = {"https://e.org": "\n".join(ENGLISH[:5]), "https://d.org": GERMAN}
    path = write_wet(tmp_path / "x.warc.wet.gz", pages)
    kept = {}
    for name, options in {
        "en": Options(),
        "de": Options(languages=("de",)),
        "both": Options(languages=("de", "en")),
        "all": Options(languages=()),
    }.items():
        clean_source("commoncrawl", [path], tmp_path / name, options, HERE)
        kept[name] = [
            (document.meta["language"], document.meta["url"]) for document in documents(tmp_path / name)
        ]
    english, german = ("en", "https://e.org"), ("de", "https://d.org")
    assert kept == {"en": [english], "de": [german], "both": [english, german], "all": [english, german]}
    with pytest.raises(ValueError, match=r"no commoncrawl document was kept.*language uncertain"):
        clean_source("commoncrawl", [path], tmp_path / "sure", Options(language_threshold=1), HERE)


class LengthModel:
    """Stands in for a language model: the longer, the more surprising."""

    fingerprint = "length"

    def perplexity(self, text: str) -> float:
        return len(text) / 10


class LlamaClassifier:
    """Stands in for a classifier: Wikipedia would cite pages about llamas."""

    fingerprint = "llamas"

    def probabilities(self, given):
        return np.array([0.9 if "llama" in text.lower() else 0.2 for text in given])


@pytest.fixture
def models(monkeypatch):
    monkeypatch.setattr(commoncrawl, "language_model_in", lambda directory: LengthModel())
    monkeypatch.setattr(commoncrawl, "classifier_in", lambda directory: LlamaClassifier())


def test_head_and_middle_are_the_first_sixty_per_cent_of_the_corpus_itself(tmp_path, models, monkeypatch):
    shard_a_file(monkeypatch)
    for number in range(5):
        pages = {
            f"https://e.org/{place}": "\n".join(ENGLISH[:3])[: 300 + place] for place in range(number, 100, 5)
        }
        write_wet(tmp_path / f"{number}.warc.wet.gz", pages)
    files = sorted(tmp_path.glob("*.gz"))
    options = Options(deduplicate=False, language_model="model")
    manifest = clean_source("commoncrawl", files, tmp_path / "out", options, HERE)
    found = {int(item.meta["url"].rpartition("/")[2]): item.meta for item in documents(tmp_path / "out")}
    buckets = Counter(meta["bucket"] for meta in found.values())
    assert set(found) == set(range(len(found))) and 58 <= len(found) <= 62
    assert abs(buckets["head"] - 30) <= 1 and abs(buckets["middle"] - 30) <= 1
    assert found[0]["perplexity"] == 30.0 and found[0]["bucket"] == "head" and found[50]["bucket"] == "middle"
    assert manifest.counts["dropped: in the tail of perplexity"] == 100 - len(found)
    assert manifest.config["options"]["language_model"] == "length"
    only = Options(deduplicate=False, language_model="model", buckets=("tail",))
    clean_source("commoncrawl", files, tmp_path / "tail", only, HERE)
    others = {int(item.meta["url"].rpartition("/")[2]) for item in documents(tmp_path / "tail")}
    assert others == set(range(100)) - set(found)


def test_pages_unlike_references_are_dropped(crawl, tmp_path, models):
    clean_source("commoncrawl", [crawl], tmp_path / "all", Options(), HERE)
    manifest = clean_source("commoncrawl", [crawl], tmp_path / "out", Options(classifier="model"), HERE)
    about = {url for url, text in texts(tmp_path / "all").items() if "llama" in text.lower()}
    assert set(texts(tmp_path / "out")) == about
    assert manifest.counts.get("dropped: unlike references", 0) == 24 - len(about)
    assert all(document.meta["reference"] == 0.9 for document in documents(tmp_path / "out"))
    loose = Options(classifier="model", reference_threshold=0.2)
    assert clean_source("commoncrawl", [crawl], tmp_path / "loose", loose, HERE).counts["kept"] == 24


def test_pages_that_read_like_the_language_models_texts_are_the_head(tmp_path):
    pytest.importorskip("kenlm")
    from puna.corpus.commoncrawl.perplexity import train_language_model

    alike = [sentences(seed, 40) for seed in range(1000, 1060)]
    model = tmp_path / "model"
    train_language_model(
        [write_corpus(tmp_path / "wiki", "wikipedia", alike)],
        model,
        200,
        3,
        whole=True,
        discount_fallback=True,
    )
    draw = random.Random(1)
    turned = [" ".join(draw.sample(words := text.split(), len(words))) for text in ENGLISH[:14]]
    pages = {f"https://like.org/{number}": text for number, text in enumerate(ENGLISH[20:26])}
    pages |= {f"https://other.org/{number}": text for number, text in enumerate(turned)}
    path = write_wet(tmp_path / "x.warc.wet.gz", pages)
    options = Options(deduplicate=False, language_model=str(model), min_characters=100, buckets=("head",))
    manifest = clean_source("commoncrawl", [path], tmp_path / "out", options, HERE)
    assert {url.split("/")[2] for url in texts(tmp_path / "out")} == {"like.org"}
    assert manifest.counts["kept"] in (5, 6)
    bounds = manifest.config["perplexity_bounds"]
    assert all(item.meta["perplexity"] < bounds[0] for item in documents(tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (Options(language_threshold=1.5), "language-threshold is 1.5"),
        (Options(reference_threshold=-1), "reference-threshold is -1"),
        (Options(min_characters=0), "min-characters is 0"),
        (Options(buckets=("head", "foot")), "buckets.1 is 'foot'"),
        (Options(language_model="m", languages=("en", "de")), "language model needs exactly one language"),
    ],
)
def test_options_that_cannot_be_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        check_options(options)


# ---- the same bytes


def everything(out: Path) -> dict[str, object]:
    """All that a run wrote: data as bytes, of each manifest what does not name places and times."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.name == "manifest.json":
            manifest = load_manifest(path)
            found[name] = (manifest.fingerprint, manifest.counts, manifest.damaged)
        elif path.suffix in (".parquet", ".npy", ".ranges") or path.name.endswith(".bad.jsonl"):
            found[name] = path.read_bytes()
    return found


def test_two_workers_and_the_parts_of_an_array_job_write_the_same_bytes(crawl, tmp_path, monkeypatch):
    shard_a_file(monkeypatch)
    (crawl / "9.warc.wet.gz").write_bytes(zipped([wet("cut")])[0][:-20])
    clean_source("commoncrawl", [crawl], tmp_path / "one", Options(), Executor(workers=1))
    clean_source("commoncrawl", [crawl], tmp_path / "two", Options(), Executor(workers=2))
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    assert len(everything(tmp_path / "one")) > 20
    for part in ["1/2", "2/2"] * 3:  # each part ends at a step that the other has not done
        with contextlib.suppress(Unfinished):
            clean_source(
                "commoncrawl", [crawl], tmp_path / "parts", Options(), Executor(workers=1, part=part)
            )
    assert everything(tmp_path / "parts") == everything(tmp_path / "one")


SCRIPT = """
import sys
from functools import partial
from pathlib import Path
from puna.corpus import pipeline
from puna.corpus.{source} import source
from puna.stages.stage import Executor, Unfinished, plan_shards

pipeline.plan_shards = partial(plan_shards, shard_bytes=1)
if __name__ == "__main__":
    inputs = sorted(Path(sys.argv[1]).iterdir())
    source.pipeline(inputs, Path(sys.argv[2]), source.Options(), Executor(workers=2))
"""


def killed_in_the_middle(source: str, folder: Path, out: Path, sign: Path) -> bool:
    """Run a source in a process of its own, kill -9 it once `sign` is there. Whether that came in time."""
    script = folder.parent / "script.py"
    script.write_text(SCRIPT.format(source=source))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, script, folder, out],
        env=environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not sign.exists() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    # Its workers notice and end on their own; until then one may still be writing a partial file.
    deadline = time.monotonic() + 30
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.01)
        pytest.fail("the workers of a killed run did not end within 30 s")
    return not (out / "manifest.json").exists()


@pytest.mark.parametrize(
    "sign",
    [
        pytest.param("steps/pages/00001.json", marks=pytest.mark.slow),
        "steps/duplicates/range-00000.json",
        pytest.param("00002.json", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_step_and_run_again_the_bytes_are_those_of_an_undisturbed_run(
    crawl, tmp_path, monkeypatch, sign
):
    shard_a_file(monkeypatch)
    clean_source("commoncrawl", [crawl], tmp_path / "whole", Options(), HERE)
    out = tmp_path / "out"
    assert killed_in_the_middle("commoncrawl", crawl, out, out / sign)
    clean_source("commoncrawl", [crawl], out, Options(), HERE)
    assert everything(out) == everything(tmp_path / "whole")
    assert not list(out.rglob("*.partial"))


# ---- real inputs


@real
def test_real_pages_are_cleaned(tmp_path):
    inputs = [REAL / "commoncrawl", REAL / "ccnet_output"]
    manifest = clean_source("commoncrawl", inputs, tmp_path, Options(), HERE)
    # 3 whole pages of CCNet's sample, 22 of Dolma's, iana.org, 3 times example.com, one page as WARC and as
    # WET, 30 of CCNet's output; damaged: the clipped archive, and a wrong length.
    counts = manifest.counts
    seen = counts["kept"] + sum(count for name, count in counts.items() if name.startswith("dropped: "))
    assert seen == 3 + 22 + 1 + 3 + 2 + 30 and manifest.damaged == 2
    found = texts(tmp_path)
    assert "http://sample_english.com" in found
    assert {"http://sample_chinese.zh", "http://sample_russian.ru", "http://example.com/"}.isdisjoint(found)
    assert counts["dropped: another language"] == 3  # Russian, and Aragonese twice
    # The blog's header stands on all its pages, and is gone from each.
    blog = [text for url, text in found.items() if url.startswith("https://maria-antoniak.github.io/20")]
    assert len(blog) == 5 and not any(text.startswith("Maria Antoniak") for text in blog)
