"""What is nearly all inside another text is found, whatever the sizes; the sets decide, as in Python."""

import random
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.corpus.books import overlap
from puna.corpus.books.overlap import Overlap, Ranking, containment, removed, shingles_of


def words(n: int, seed: int = 0) -> str:
    chosen = random.Random(seed)
    return " ".join(f"word{chosen.randrange(5000)}" for _ in range(n))


def overlaps_of(texts: dict[str, str]) -> list[tuple[str, str, float]]:
    """(smaller, larger, share) of the candidates, through the sketches as the steps use them."""
    shingles = {name: shingles_of(text) for name, text in texts.items()}
    described = [overlap.describe(n, name, found) for n, (name, found) in enumerate(shingles.items())]
    ranking = Ranking(np.concatenate([table for _, table in described]))
    sketch = np.concatenate([records for records, _ in described])
    half = np.uint64(1 << 63)
    pairs = [
        overlap.pairs_in(sketch[side], ranking) for side in (sketch["key"] < half, sketch["key"] >= half)
    ]
    names = [list(texts)[number] for number in ranking.texts["text"]]
    return [
        (names[small], names[large], containment(shingles[names[small]], shingles[names[large]]))
        for small, large in overlap.candidates(np.concatenate(pairs), ranking)
    ]


@given(st.text(alphabet="ab ,.\nÉ_1", max_size=80), st.text(alphabet="ab ,.\nÉ_1", max_size=80))
def test_containment_is_the_share_of_the_set_of_word_5_grams(first, second):
    def grams(text: str) -> set[tuple[str, ...]]:
        found = re.findall(r"[^\W_]+", text.lower())
        return {tuple(found[n : n + 5]) for n in range(max(1, len(found) - 4))} if found else set()

    small, large = shingles_of(first), shingles_of(second)
    assert len(small) == len(grams(first))
    if len(small) and len(large):
        assert containment(small, large) == len(grams(first) & grams(second)) / len(grams(first))


def test_shingles_do_not_see_case_punctuation_line_breaks_or_italics():
    assert (
        shingles_of("Call me _Ishmael_. Some years ago—never")
        == shingles_of("call me ishmael some\nYEARS ago, never")
    ).all()


def test_a_long_text_has_the_same_shingles_in_pieces(monkeypatch):
    text = words(3000).replace(" word1", "\nword1")
    whole = shingles_of(text)
    monkeypatch.setattr(overlap, "PIECE_CHARACTERS", 100)
    assert (shingles_of(text) == whole).all()


@pytest.mark.parametrize("n_words", [60, 300, 3000])
def test_two_editions_of_a_text_of_any_length_are_candidates(n_words):
    first = words(n_words)
    second = first.replace("word1 ", "other ", 1) + " the end"
    assert [
        (small, large) for small, large, _ in overlaps_of({"a": first, "b": second, "c": words(n_words, 9)})
    ] == [("a", "b")]


@pytest.mark.parametrize("n_words", [500, 2000])
def test_a_short_book_inside_a_long_anthology_is_a_candidate(n_words):
    story = words(n_words, 1)
    anthology = " ".join([words(100_000, 2), story, words(100_000, 3)])
    assert overlaps_of({"story": story, "anthology": anthology}) == [("story", "anthology", 1.0)]


def test_texts_that_share_a_licence_are_no_candidates():
    licence = words(40, 5)
    assert overlaps_of({str(n): licence + " " + words(2000, 10 + n) for n in range(50)}) == []


def test_a_hundred_copies_are_each_compared_with_the_first():
    texts = {str(n): words(400) for n in range(100)} | {"other": words(500, 3)}
    found = overlaps_of(texts)
    (winner,) = set(texts) - {small for small, _, _ in found} - {"other"}
    assert {small for small, large, _ in found if large == winner} == set(texts) - {winner, "other"}
    assert len(found) < 100 * overlap._PARTNERS


def test_the_ranking_does_not_depend_on_the_order_of_the_texts():
    sizes = {"a": 300, "b": 300, "c": 200, "d": 400}
    orders = set()
    for seed in range(6):
        names = random.Random(seed).sample(sorted(sizes), 4)
        tables = [
            overlap.describe(n, name, shingles_of(words(sizes[name], 7)))[1] for n, name in enumerate(names)
        ]
        orders.add(tuple(names[number] for number in Ranking(np.concatenate(tables)).texts["text"]))
    (order,) = orders
    assert [sizes[name] for name in order] == [400, 300, 300, 200]


def test_only_what_is_kept_removes_another():
    # 2 is in 1, and 1 in 0, but 2 is not enough in 0: 1 goes, and 2 stays.
    chain = [Overlap(1, 0, 0.95), Overlap(2, 1, 0.95), Overlap(2, 0, 0.89)]
    assert set(removed(chain, 0.9)) == set(removed(chain[::-1], 0.9)) == {1}
    assert set(removed([*chain, Overlap(2, 0, 0.91)], 0.9)) == {1, 2}
    assert not removed([Overlap(1, 0, 0.9)], 0.9), "more than 90 %, not 90 %"


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=300, unique=True))
def test_bands_are_of_the_set_and_never_look_like_samples(values):
    shingles = np.sort(np.array(values, np.uint64))
    bands = overlap.bands_of(shingles)
    assert len(bands) == 32 and (bands % 2 == 1).all()
    assert (overlap.sample_of(shingles) % overlap.SAMPLE == 0).all()


def test_bands_meet_as_often_as_minhash_says():
    """1 - (1 - J^4)^32 of texts of Jaccard similarity J share a band: 0.08 at 0.225, 0.99 or more at 0.62."""
    generator = np.random.default_rng(0)
    met = {0.225: 0, 0.62: 0}
    for _, similarity in pairwise([None, *met] * 100):
        if similarity is None:
            continue
        union = np.sort(generator.integers(0, 2**64, 4000, np.uint64))
        draw = generator.random(4000)
        first = union[draw < (1 + similarity) / 2]
        second = union[(draw >= (1 - similarity) / 2)]
        met[similarity] += bool(set(overlap.bands_of(first)) & set(overlap.bands_of(second)))
    assert met[0.62] >= 95 and 1 <= met[0.225] <= 25
