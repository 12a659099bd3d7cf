"""The language model: what it is trained on, what perplexity is, and that it tells prose from other text."""

import random
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.corpus.commoncrawl.perplexity import (
    ARPA,
    PIECES,
    WordPieces,
    bucket,
    bucket_bounds,
    load_language_model,
    normal_lines,
    opening_text,
    train_language_model,
)
from puna.corpus.document import Document
from puna.corpus.wikipedia import source as wikipedia
from puna.files import MANIFEST, read_json, to_path
from puna.manifest import load_manifest
from tests.corpus.finished import finish

kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed: pip install 'puna[perplexity]'")

SUBJECTS = ["the vicuña", "an old llama", "the herd", "a shepherd of Ólafsvík", "every train of 1899"]
VERBS = ["crosses", "saw", "has left", "returned to", "will never reach"]
PLACES = ["the high grassland", "a salt lake", "the valley of 12 wells", "Lima", "its mother's house"]


def sentences(seed: int, count: int) -> str:
    rng = random.Random(seed)
    made = [
        f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(PLACES)}.".capitalize() for _ in range(count)
    ]
    return "\n".join(made)


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> Path:
    texts = [f"{sentences(seed, 6)}\n\nHistory\n\nXylophone zebras {seed}." for seed in range(60)]
    folder = tmp_path_factory.mktemp("documents")
    return finish(folder, (Document(f"w/{n}", "wikipedia", text) for n, text in enumerate(texts)))


@pytest.fixture(scope="module")
def trained(documents, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    train_language_model([documents], out, vocab_size=120, discount_fallback=True)
    return out


# ---- text


def test_text_is_lower_case_without_accents_and_every_digit_is_0():
    assert normal_lines("  Été 1998 à ÅNGSTRÖM \n\n\t\nTwo — “lines” ٣") == [
        "ete 0000 a angstrom",
        "two — “lines” 0",
    ]


def test_words_on_two_lines_are_not_glued_together():
    assert normal_lines("the end\nBegin") == ["the end", "begin"]


@given(st.text())
def test_a_text_is_normal_line_by_line_and_once_and_for_all(text):
    lines = normal_lines(text)
    assert all(line and line == line.strip() for line in lines)
    assert [normal for line in text.splitlines() for normal in normal_lines(line)] == lines
    assert not any(character.isdecimal() and character != "0" for line in lines for character in line)


def test_the_opening_text_ends_at_the_first_heading():
    opening = "Llamas live here.\n\nThey eat grass; they spit."
    assert opening_text(f"{opening}\n\nHistory\n\nLong ago.\n\nToday\n\nNow.") == opening
    assert opening_text(opening) == opening
    assert opening_text("Llama") == "Llama"


# ---- the model


def test_only_opening_texts_are_learned_from(trained):
    manifest = load_manifest(trained / MANIFEST)
    assert manifest.counts["documents"] == 60
    assert manifest.counts["lines"] == 360
    assert not any("x" in name for name in WordPieces(trained / PIECES).names)  # of xylophone


def test_perplexity_is_ten_to_the_mean_of_minus_log10_p_over_the_tokens_and_the_ends_of_lines(trained):
    text = "The herd saw Lima.\n\nA salt lake returned."
    pieces = WordPieces(trained / PIECES)
    asked = kenlm.Model(str(trained / ARPA))
    log10, tokens = 0.0, 0
    for line in ["the herd saw lima.", "a salt lake returned."]:
        names = [pieces.names[id] for id in pieces.encode(line)]
        log10 += sum(log10 for log10, _, _ in asked.full_scores(" ".join(names)))
        tokens += len(names) + 1
    model = load_language_model(trained)
    assert model.score(text) == (pytest.approx(log10, abs=1e-4), tokens)
    assert model.perplexity(text) == pytest.approx(10 ** (-log10 / tokens), rel=1e-5)
    assert model.perplexity(" \n") == float("inf")


def test_pieces_word_by_word_are_the_pieces_of_the_line(trained):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(trained / PIECES))
    pieces = WordPieces(trained / PIECES)
    for line in normal_lines(sentences(999, 200) + "\nкамень qqq — “the herd” zzz 0.5%"):
        assert pieces.encode(line) == processor.encode(line)
        assert pieces.spell(line).split(" ") == [processor.id_to_piece(id) for id in processor.encode(line)]


def test_the_same_documents_give_the_same_bytes_whatever_the_memory(documents, trained, tmp_path):
    train_language_model([documents], tmp_path, vocab_size=120, discount_fallback=True, memory=1 << 20)
    for name in (PIECES, ARPA):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()
    assert read_json(tmp_path / MANIFEST)["fingerprint"] == load_language_model(trained).fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {PIECES, ARPA, MANIFEST, "progress.jsonl"}


def test_what_a_killed_run_left_is_cleared_away_and_changes_nothing(documents, trained, tmp_path):
    (tmp_path / f".{ARPA}.grams.partial").mkdir()
    (tmp_path / f".{ARPA}.grams.partial" / "tokens").write_bytes(b"half")
    (tmp_path / f".{ARPA}.77.partial").write_bytes(b"half")
    (tmp_path / PIECES).write_bytes(b"another run's")
    train_language_model([documents], tmp_path, vocab_size=120, discount_fallback=True)
    assert {path.name for path in tmp_path.iterdir()} == {PIECES, ARPA, MANIFEST, "progress.jsonl"}
    assert (tmp_path / ARPA).read_bytes() == (trained / ARPA).read_bytes()
    assert (tmp_path / PIECES).read_bytes() == (trained / PIECES).read_bytes()


def test_a_finished_model_is_not_trained_again_and_not_written_over(documents, trained):
    before = (trained / MANIFEST).read_bytes()
    train_language_model([documents], trained, vocab_size=120, discount_fallback=True)
    assert (trained / MANIFEST).read_bytes() == before
    with pytest.raises(ValueError, match="trained with another order"):
        train_language_model([documents], trained, vocab_size=120, order=3, discount_fallback=True)


def test_what_cannot_be_trained_or_read_is_named_with_its_mend(documents, trained, tmp_path):
    empty = finish(tmp_path / "empty", [Document("1", "wikipedia", " \n")])
    with pytest.raises(ValueError, match="hold no text"):
        train_language_model([empty], tmp_path / "a")
    with pytest.raises(ValueError, match=r"no pieces can be learned with vocab_size 5.*--vocab-size"):
        train_language_model([documents], tmp_path / "b", vocab_size=5)
    with pytest.raises(ValueError, match="--discount-fallback"):
        train_language_model([documents], tmp_path / "c", vocab_size=120)
    with pytest.raises(ValueError, match="no finished language-model"):
        load_language_model(tmp_path / "c")
    copy = tmp_path / "cut"
    copy.mkdir()
    for path in trained.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / ARPA).write_bytes((trained / ARPA).read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"model.arpa cannot be read.*make it again"):
        load_language_model(copy)


def test_a_model_in_object_storage_is_the_model(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path))
    there = to_path("memory://perplexity/model")
    there.mkdir(parents=True)
    for path in trained.iterdir():
        (there / path.name).write_bytes(path.read_bytes())
    text = sentences(5, 3)
    assert load_language_model(there).perplexity(text) == load_language_model(trained).perplexity(text)


# ---- buckets


def test_buckets_are_thirty_thirty_and_forty_per_cent_of_the_corpus():
    perplexities = np.random.default_rng(0).permutation(np.arange(100, 1100))
    bounds = bucket_bounds(perplexities)
    found = [bucket(value, bounds) for value in perplexities]
    assert [found.count(name) for name in ("head", "middle", "tail")] == [299, 300, 401]
    assert max(value for value, name in zip(perplexities, found, strict=True) if name == "head") < bounds[0]
    with pytest.raises(ValueError, match="no perplexities"):
        bucket_bounds([])


# ---- real text


def test_real_prose_is_less_perplexing_than_other_languages_shuffled_words_and_noise(realdata, tmp_path):
    (dump,) = (realdata / "wikipedia").glob("enwiki*.bz2")
    # The openings alone, because the rest would be parsed for seconds and is not learned from.
    pages = [
        replace(page, wikitext=page.wikitext[:8000])
        for page in wikipedia.read(dump)
        if isinstance(page, wikipedia.Page)
    ]
    cleaned = [wikipedia.clean(page) for page in pages]
    finish(tmp_path / "documents", [document for document in cleaned if isinstance(document, Document)])
    manifest = train_language_model(
        [tmp_path / "documents"], tmp_path / "model", vocab_size=4000, order=4, whole=False
    )
    assert manifest.counts["documents"] > 100
    model = load_language_model(tmp_path / "model")
    book = (realdata / "books" / "pg84.txt").read_text(encoding="cp1252")
    paragraphs = [" ".join(part.split()) for part in book[20_000:80_000].replace("\r", "").split("\n\n")]
    prose = model.perplexity("\n".join(paragraphs))
    words = " ".join(paragraphs).split()
    random.Random(0).shuffle(words)
    shuffled = model.perplexity("\n".join(" ".join(words[at : at + 60]) for at in range(0, len(words), 60)))
    noise = model.perplexity("qxz vvk plorp 1238 asdkjh sdjfh kjsd fhkj wq " * 40)
    assert prose < 0.85 * shuffled < 0.85 * noise
    with zipfile.ZipFile(realdata / "text_extra" / "udhr2.zip") as rights:
        of = {
            name: model.perplexity(rights.read(f"udhr2/{name}.txt").decode())
            for name in ("eng", "fra", "rus")
        }
    assert of["eng"] < 0.5 * of["fra"]
    assert of["eng"] < 0.5 * of["rus"]
