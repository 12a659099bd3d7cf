"""The classifier of pages that Wikipedia would cite."""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.corpus.commoncrawl.citation_classifier import (
    WEIGHTS,
    Cited,
    _measure,
    features,
    load_classifier,
    train_classifier,
)
from puna.corpus.document import Document
from puna.files import MANIFEST
from tests.corpus.finished import finish

SCHOLARLY = "study century species river treaty population evidence museum survey journal census".split()  # noqa: SIM905
SHOPPING = "cheap shipping cart discount login casino deal click subscribe bonus sale".split()  # noqa: SIM905
COMMON = "the of and a to in is was for with on by that from at it".split()  # noqa: SIM905


def page(seed: int, words: list[str], n_words: int = 400) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(words if rng.random() < 0.2 else COMMON) for _ in range(n_words)) + "."


def crawl(count: int = 60) -> list[Document]:
    """Cited pages and others, by turns; some too short, some twice."""
    documents = []
    for seed in range(count):
        for name, words in (("museum", SCHOLARLY), ("shop", SHOPPING)):
            url = f"https://www.{name}.org/{seed}/"
            documents.append(Document(url, "commoncrawl", page(seed, words), {"url": url}))
        documents.append(Document(f"s{seed}", "commoncrawl", "short", {"url": f"http://museum.org/s{seed}"}))
    return documents + documents[:20]


@pytest.fixture(scope="module")
def cited(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("references") / "urls.txt"
    path.write_text("".join(f"http://museum.org/{seed}\n" for seed in range(60)))
    return path


def test_cited_pages_are_told_from_others_by_words_never_seen_in_those_pages(tmp_path, cited):
    pages = finish(tmp_path / "pages", crawl())
    manifest = train_classifier(tmp_path / "model", pages=[pages], references=cited)
    assert manifest.counts == {"trained on": 108, "held out": 12}
    assert manifest.details["held_out"] == {"accuracy": 1.0, "auc": 1.0}
    classifier = load_classifier(tmp_path / "model")
    found = classifier.probabilities([page(1000, SCHOLARLY), page(1001, SHOPPING), ""])
    assert found.shape == (3,)
    assert found[0] > 0.9 > 0.1 > found[1]
    assert classifier.fingerprint == manifest.fingerprint


def test_the_order_of_documents_and_the_way_they_are_given_change_no_byte(tmp_path, cited):
    documents = crawl()
    first = finish(tmp_path / "first", documents)
    again = finish(tmp_path / "again", reversed(documents))
    is_cited = Cited(cited.read_text().split())
    positives = finish(tmp_path / "positives", [item for item in documents if item.meta["url"] in is_cited])
    negatives = finish(
        tmp_path / "negatives", [item for item in documents if item.meta["url"] not in is_cited]
    )
    train_classifier(tmp_path / "a", pages=[first], references=cited, max_each=40)
    train_classifier(tmp_path / "b", pages=[again], references=cited, max_each=40)
    train_classifier(tmp_path / "c", [positives], [negatives], max_each=40)
    train_classifier(tmp_path / "d", [positives], [negatives], max_each=40, seed=2)
    weights = [(tmp_path / name / WEIGHTS).read_bytes() for name in "abcd"]
    assert weights[0] == weights[1] == weights[2] != weights[3]


def test_a_url_is_cited_however_its_address_is_written():
    cited = Cited(["http://a.org/x", "https://b.org/y?z=1"])
    assert "https://www.a.org/x/" in cited
    assert "http://b.org/y?z=1#top" in cited
    assert "http://b.org/y" not in cited
    assert "no url" not in cited
    assert "http://a.org/x" not in Cited([])


def test_both_kinds_are_of_the_same_number_and_a_text_of_both_is_a_cited_one(tmp_path):
    texts = [page(seed, SCHOLARLY) for seed in range(30)]
    positives = finish(tmp_path / "p", [Document(str(n), "x", text) for n, text in enumerate(texts)])
    negatives = finish(
        tmp_path / "n",
        [
            Document(str(n), "x", text)
            for n, text in enumerate([*texts, *(page(n, SHOPPING) for n in range(15))])
        ],
    )
    manifest = train_classifier(tmp_path / "model", [positives], [negatives])
    assert sum(manifest.counts.values()) == 30


@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), max_size=20))
def test_features_are_of_words_and_pairs_and_know_no_punctuation_or_case(words):
    found = features(" ".join(words))
    assert (np.diff(found.astype(np.int64)) > 0).all()
    lower = [word.lower() for word in words]
    assert len(found) <= len(set(lower)) + len(set(pairwise(lower)))
    assert (features("... " + " -- ".join(words).lower() + "!") == found).all()
    single = [features(word) for word in words]
    assert all(np.isin(one, found).all() for one in single)


def test_the_auc_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    weights = np.round(rng.normal(size=1 << 20), 1).astype(np.float32)  # ties
    pages = [np.array([bucket], np.uint32) for bucket in rng.integers(0, 1 << 20, 60)]
    labels = rng.random(60) < 0.4
    margins = np.array([weights[page[0]] for page in pages])
    ours, others = margins[labels][:, None], margins[~labels][None]
    pairs = ((ours > others) + 0.5 * (ours == others)).mean()
    assert _measure(weights, 0.0, pages, labels)["auc"] == pytest.approx(pairs, abs=1e-4)


def test_what_cannot_be_trained_or_read_is_named_with_its_mend(tmp_path, cited):
    pages = finish(tmp_path / "pages", crawl(5))
    with pytest.raises(ValueError, match=r"5 cited pages and 5 others .* are too few; give at least 10"):
        train_classifier(tmp_path / "a", pages=[pages], references=cited)
    for way in ({"pages": [pages]}, {"positives": [pages]}, {}):
        with pytest.raises(ValueError, match="give --positives and --negatives, or --pages and --references"):
            train_classifier(tmp_path / "a", **way)
    with pytest.raises(ValueError, match="no finished reference-classifier"):
        load_classifier(tmp_path / "a")
    more = finish(tmp_path / "more", crawl(20))
    train_classifier(tmp_path / "b", pages=[more], references=cited)
    before = (tmp_path / "b" / MANIFEST).read_bytes()
    train_classifier(tmp_path / "b", pages=[more], references=cited)
    assert (tmp_path / "b" / MANIFEST).read_bytes() == before
    with pytest.raises(ValueError, match="trained with another seed"):
        train_classifier(tmp_path / "b", pages=[more], references=cited, seed=3)
    (tmp_path / "b" / WEIGHTS).write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"weights.safetensors cannot be read"):
        load_classifier(tmp_path / "b")
