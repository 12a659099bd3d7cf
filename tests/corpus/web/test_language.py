"""The language of a text is fastText's own answer, whichever library gives it."""

import logging
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.corpus.document import Drop
from puna.corpus.web import language
from puna.corpus.web.language import language_meta, language_of, model_path, predictor
from puna.files import sha256_file

REAL = os.environ.get("PUNA_REALDATA")
SAMPLES = {
    "en": "The llama carries salt across the high plain, and the shepherd follows it home.",
    "de": "Die Lamas tragen das Salz über die Hochebene, und der Hirte folgt ihnen nach Hause.",
    "fr": "Les lamas portent le sel à travers le haut plateau et le berger les suit.",
    "ru": "Ламы несут соль через плоскогорье, и пастух идёт за ними домой.",
    "zh": "这个图书馆里有很多关于历史的书，我们每天都去那里学习中文。",
}


@pytest.fixture(scope="module")
def both():
    return language.load_fasttext_new(model_path()), language.load_fasttext_predict(model_path())


@pytest.mark.parametrize("code", SAMPLES)
def test_languages_are_told_apart(code):
    found, score = language_of(SAMPLES[code])
    assert found == code and 0.5 < score <= 1.0001


def test_lines_are_joined_by_a_space():
    lines = SAMPLES["en"].replace(", ", "\n")
    assert language_of(lines) == language_of(lines.replace("\n", " "))


def test_parts_of_a_long_page_settle_its_language_only_where_they_are_sure():
    english, german = (" ".join([SAMPLES[code]] * 60) for code in ("en", "de"))
    found = language_meta(english, ["en"], 0.5)
    assert not isinstance(found, Drop) and found["language"] == "en"
    middle = len(english) // 2
    parts = f"{english[:300]} {english[middle : middle + 300]} {english[-300:]}"
    assert found["score"] == round(language_of(parts)[1], 4) >= 0.9
    strict = language_meta(english, ["en"], 0.6)  # a stricter threshold is of the whole page
    assert not isinstance(strict, Drop) and strict["score"] == round(language_of(english)[1], 4)
    mixed = english[:1500] + german[:2500] + english[:1500]
    whole, score = language_of(mixed)
    assert language_meta(mixed, [], 0.0) == {"language": whole, "score": round(score, 4)}


@pytest.mark.skipif(not REAL, reason="PUNA_REALDATA is not set")
def test_parts_of_a_long_page_have_its_language_in_400_languages():
    with zipfile.ZipFile(Path(REAL or "") / "text_extra" / "udhr2.zip") as archive:
        texts = [archive.read(name).decode("utf-8", "replace") for name in archive.namelist()]
    for text in texts[::4]:
        language, score = language_of(text)
        found = language_meta(text, [], 0.5)
        assert isinstance(found, Drop) == (score < 0.5)
        assert isinstance(found, Drop) or found["language"] == language


def test_the_model_is_the_published_one():
    # https://fasttext.cc/docs/en/language-identification.html: lid.176.ftz has 938,013 bytes.
    assert model_path().stat().st_size == 938_013
    assert sha256_file(model_path()).startswith("8f3472cfe8738a7b")


@settings(max_examples=300, deadline=None)
@given(text=st.text().map(lambda text: text.replace("\n", " ")))
def test_the_quick_library_says_what_fasttext_says_of_any_text(both, text):
    quick, plain = both
    assert quick(text) == plain(text)


@pytest.mark.skipif(not REAL, reason="PUNA_REALDATA is not set")
def test_the_quick_library_says_what_fasttext_says_in_400_languages(both):
    quick, plain = both
    with zipfile.ZipFile(Path(REAL or "") / "text_extra" / "udhr2.zip") as archive:
        texts = [archive.read(name).decode("utf-8", "replace") for name in archive.namelist()]
    lines = [text.replace("\n", " ")[:3000] for text in texts if text]
    assert len(lines) > 300
    assert [quick(line) for line in lines] == [plain(line) for line in lines]


def test_a_library_that_differs_is_not_used(monkeypatch, caplog):
    monkeypatch.setattr(language, "load_fasttext_new", lambda path: lambda line: ("xx", 1.0))
    predictor.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert language_of(SAMPLES["de"])[0] == "de"
        assert "fasttext-new differs from fastText" in caplog.text
    finally:
        predictor.cache_clear()


def test_without_the_quick_library_fasttext_answers(monkeypatch):
    def missing(path):
        raise ImportError

    monkeypatch.setattr(language, "load_fasttext_new", missing)
    predictor.cache_clear()
    try:
        assert language_of(SAMPLES["fr"])[0] == "fr"
    finally:
        predictor.cache_clear()
