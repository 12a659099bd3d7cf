"""Modified Kneser-Ney: by hand, by its definition, by what kenlm reads, by what must hold of any model."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.corpus.ngram import counts, kneser_ney
from puna.corpus.ngram.kneser_ney import FALLBACK, train_kneser_ney

kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed: pip install 'puna[perplexity]'")

SPECIALS = ["<unk>", "<s>", "</s>"]


def vocabulary(n: int) -> list[str]:
    return SPECIALS + [f"w{number}" for number in range(n - len(SPECIALS))]


def train(folder: Path, lines, words, **options) -> tuple[dict, dict[str, tuple[float, float]]]:
    """What training returns, and the ARPA file: n-gram -> (log10 probability, log10 back-off)."""
    path = folder / "model.arpa"
    result = train_kneser_ney(lines, words, path, **options)
    model = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = line.split("\t")
        if len(fields) > 1:
            model[fields[1]] = (float(fields[0]), float(fields[2]) if len(fields) == 3 else 0.0)
    return result, model


def ask(path: Path) -> kenlm.Model:
    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    return kenlm.Model(str(path), config)


class Definition:
    """Chen and Goodman's modified Kneser-Ney (1998, section 3), written from the page, with dictionaries."""

    def __init__(self, lines, order, fallback=None, prune=()):
        self.order = order
        prune = [*prune] or [0]
        prune += prune[-1:] * (order - len(prune))
        seen = [Counter() for _ in range(order + 1)]
        for line in lines:
            sentence = (1, *line, 2)
            for n in range(1, order + 1):
                seen[n].update(sentence[at : at + n] for at in range(len(sentence) - n + 1))
        del seen[1][(1,)]  # <s> is never predicted
        before = [Counter() for _ in range(order + 1)]
        for n in range(2, order + 1):
            before[n - 1].update(gram[1:] for gram in seen[n])
        self.count = [Counter() for _ in range(order + 1)]
        for n in range(1, order + 1):
            for gram, times in seen[n].items():
                self.count[n][gram] = times if n == order or gram[0] == 1 else before[n][gram]
        self.kept = [set()] + [
            {gram for gram in seen[n] if n == 1 or seen[n][gram] > prune[n - 1]} for n in range(1, order + 1)
        ]
        self.discounts = [()] + [self.estimate(self.count[n], fallback) for n in range(1, order + 1)]
        self.after = defaultdict(list)
        for n in range(1, order + 1):
            for gram in self.count[n]:
                self.after[gram[:-1]].append(gram)
        self.n_words = len(self.count[1]) + 1  # and <unk>

    def estimate(self, counts, fallback):
        one, two, three, four = (sum(count == wanted for count in counts.values()) for wanted in (1, 2, 3, 4))
        if one and two and three:
            y = one / (one + 2 * two)
            found = (1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three)
            if all(0 <= value <= count for count, value in enumerate(found, 1)):
                return (0, *found)
        return (0, *fallback)

    def weight(self, context):
        grams = self.after[context]
        n = len(context) + 1
        taken = sum(
            self.discounts[n][min(self.count[n][gram], 3)] if gram in self.kept[n] else self.count[n][gram]
            for gram in grams
        )
        return taken / sum(self.count[n][gram] for gram in grams)

    def probability(self, word, context):
        context = tuple(context)[-(self.order - 1) :]
        n = len(context) + 1
        lower = self.probability(word, context[1:]) if context else 1 / self.n_words
        if not self.after[context]:
            return lower
        gram = (*context, word)
        count = self.count[n][gram] if gram in self.kept[n] else 0
        total = sum(self.count[n][other] for other in self.after[context])
        discounted = max(count - self.discounts[n][min(count, 3)], 0) / total
        return discounted + self.weight(context) * lower


corpora = st.integers(0, 2**32 - 1)


def random_lines(seed: int, n_words: int = 9, n_lines: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(n_words, 0.5))
    return [
        (rng.choice(n_words, rng.integers(0, 9), p=weights) + 3).tolist()
        for _ in range(rng.integers(1, n_lines))
    ]


# ---- by hand


def test_a_model_of_two_lines_has_the_values_computed_by_hand(tmp_path):
    """Order 2, lines `a b` and `a c`, discounts D1 = 0.5, D2 = 1, D3+ = 1.5.

    Bigrams, by occurrence: <s> a 2, a b 1, a c 1, b </s> 1, c </s> 1.
    Words, by how many words came before: a 1 (<s>), b 1 (a), c 1 (a), </s> 2 (b, c): 5 in all.
    Vocabulary without <s>, with <unk>: 5 words, each 1/5 by the uniform distribution.
        weight() = (0.5 + 0.5 + 0.5 + 1) / 5 = 0.5      so p(<unk>) = 0.5 / 5 = 0.1
        p(a) = p(b) = p(c) = (1 - 0.5) / 5 + 0.1 = 0.2   p(</s>) = (2 - 1) / 5 + 0.1 = 0.3     sum 1
        weight(<s>) = 1 / 2 = 0.5                        p(a | <s>) = (2 - 1) / 2 + 0.5 * 0.2 = 0.6
        weight(a) = (0.5 + 0.5) / 2 = 0.5                p(b | a) = (1 - 0.5) / 2 + 0.5 * 0.2 = 0.35
        weight(b) = 0.5 / 1 = 0.5                        p(</s> | b) = 0.5 + 0.5 * 0.3 = 0.65
    """
    words = [*SPECIALS, "a", "b", "c"]
    result, model = train(tmp_path, [[3, 4], [3, 5]], words, order=2, fallback=FALLBACK)
    probabilities = {gram: 10**log10 for gram, (log10, _) in model.items()}
    assert probabilities == pytest.approx(
        {
            **{"<unk>": 0.1, "<s>": 1, "</s>": 0.3, "a": 0.2, "b": 0.2, "c": 0.2},
            **{"<s> a": 0.6, "a b": 0.35, "a c": 0.35, "b </s>": 0.65, "c </s>": 0.65},
        },
        rel=1e-5,
    )
    weights = {gram: 10 ** model[gram][1] for gram in words}
    assert weights == pytest.approx(
        {"<unk>": 1, "<s>": 0.5, "</s>": 1, "a": 0.5, "b": 0.5, "c": 0.5}, rel=1e-5
    )
    assert result == {"tokens": 6, "ngrams": [6, 5], "discounts": [[*FALLBACK], [*FALLBACK]]}


def test_discounts_are_those_of_equation_26(tmp_path):
    """A word's count is how many words came before it. Ten words come after <s>, and after 0, 0, 0, 0, 1, 1,
    1, 2, 2 and 3 of three others, which come after <s> alone: n1 to n4 = 4 + 3, 3, 2, 1 (</s> has more).
        y = 7 / (7 + 2 * 3)    D1 = 1 - 2y * 3/7    D2 = 2 - 3y * 2/3    D3+ = 3 - 4y * 1/2
    """
    lines = []
    for word, others in enumerate([0, 0, 0, 0, 1, 1, 1, 2, 2, 3], 3):
        lines += [[word], *([other, word] for other in range(20, 20 + others))]
    result, _ = train(tmp_path, lines, vocabulary(40), order=2, fallback=FALLBACK)
    y = 7 / 13
    assert result["discounts"][0] == pytest.approx([1 - 6 * y / 7, 2 - 2 * y, 3 - 2 * y], abs=1e-6)


# ---- by definition


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=corpora, order=st.integers(2, 5), prune=st.sampled_from([(), (0, 0, 1), (0, 1), (0, 1, 2)]))
def test_the_model_is_that_of_the_definition(tmp_path, seed, order, prune):
    lines, prune = random_lines(seed), prune[:order]
    words = vocabulary(12)
    _, model = train(tmp_path, lines, words, order=order, fallback=FALLBACK, prune=prune)
    expected = Definition(lines, order, FALLBACK, prune)
    ids = {word: id for id, word in enumerate(words)}
    for text, (log10, backoff) in model.items():
        gram = tuple(ids[word] for word in text.split(" "))
        if gram == (1,):
            assert log10 == 0
        else:
            assert 10**log10 == pytest.approx(expected.probability(gram[-1], gram[:-1]), rel=1e-4)
        if len(gram) < order:
            weight = expected.weight(gram) if expected.after[gram] else 1
            assert 10**backoff == pytest.approx(weight, rel=1e-4)
    assert model.keys() >= {"<unk>", "<s>", "</s>"}
    kept = {" ".join(words[id] for id in gram) for n in range(1, order + 1) for gram in expected.kept[n]}
    assert model.keys() == kept | {"<unk>", "<s>"}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=corpora, order=st.integers(2, 5), prune=st.sampled_from([(), (0, 0, 1)]))
def test_kenlm_gives_the_probabilities_of_the_definition(tmp_path, seed, order, prune):
    lines, prune = random_lines(seed), prune[:order]
    words = vocabulary(12)
    train(tmp_path, lines, words, order=order, fallback=FALLBACK, prune=prune)
    model, expected = ask(tmp_path / "model.arpa"), Definition(lines, order, FALLBACK, prune)
    known = {gram[0] for gram in expected.count[1]}
    for line in random_lines(seed + 1, n_lines=10):
        sentence = [1, *line, 2]
        log10 = sum(
            np.log10(expected.probability(sentence[at] if sentence[at] in known else 0, sentence[:at]))
            for at in range(1, len(sentence))
        )
        text = " ".join(words[id] for id in line)
        assert model.score(text) == pytest.approx(log10, abs=1e-4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=corpora, order=st.integers(2, 5), prune=st.sampled_from([(), (0, 0, 1), (0, 1)]))
def test_after_any_context_the_probabilities_of_all_words_sum_to_one(tmp_path, seed, order, prune):
    lines = random_lines(seed)
    for line in lines[::3]:
        line.insert(len(line) // 2, counts.UNK)  # what the pieces cannot spell
    words = vocabulary(12)
    _, arpa = train(tmp_path, lines, words, order=order, fallback=FALLBACK, prune=prune[:order])
    model = ask(tmp_path / "model.arpa")
    predicted = [gram for gram in arpa if " " not in gram and gram != "<s>"]
    for context in [[], *([words[id] for id in line] for line in random_lines(seed + 1, n_lines=5))]:
        state = kenlm.State()
        model.BeginSentenceWrite(state)
        for word in context:
            after = kenlm.State()
            model.BaseScore(state, word, after)
            state = after
        total = sum(10 ** model.BaseScore(state, word, kenlm.State()) for word in predicted)
        assert total == pytest.approx(1, abs=1e-4)


# ---- promises


def test_memory_changes_no_byte(tmp_path, monkeypatch):
    """A few records at a time, so that n-grams and contexts cross the ends of pieces, against all at once."""
    monkeypatch.setattr(kneser_ney, "MIN_MEMORY", 1)
    lines = random_lines(5, n_words=30, n_lines=4000)
    words = vocabulary(40)
    train(tmp_path, lines, words, fallback=FALLBACK)
    whole = (tmp_path / "model.arpa").read_bytes()
    for memory in (20_000, 100_003):
        train(tmp_path, lines, words, fallback=FALLBACK, memory=memory)
        assert (tmp_path / "model.arpa").read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["model.arpa"]


def test_a_killed_run_leaves_nothing_that_the_next_one_trips_over(tmp_path):
    words = vocabulary(12)

    def broken():
        yield [3, 4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_kneser_ney(broken(), words, tmp_path / "model.arpa")
    assert not list(tmp_path.iterdir())


def test_an_unknown_word_gets_the_uniform_share_alone_however_often_it_was_in_the_lines(tmp_path):
    words = [*SPECIALS, "a", "b", "c"]
    _, with_unknown = train(tmp_path, [[3, 4], [3, 5], [0], [3, 0, 0]], words, order=3, fallback=FALLBACK)
    assert not [gram for gram in with_unknown if "<unk>" in gram and gram != "<unk>"]
    assert with_unknown["<unk>"][0] < with_unknown["a"][0]


def test_a_corpus_too_small_for_discounts_is_an_error_that_names_the_mend(tmp_path):
    with pytest.raises(ValueError, match=r"discounts of 1-grams cannot be estimated.*--discount-fallback"):
        train_kneser_ney([[3, 4], [3, 5]], vocabulary(12), tmp_path / "model.arpa")


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([], {}, "no lines"),
        ([[3, 99]], {}, "outside of the 12 words"),
        ([[3, 1, 4]], {}, "<s> or </s>"),
        ([[3]], {"order": 6}, "order is 6; choose one from 2 to 5"),
        ([[3]], {"prune": (1,)}, "the first 0"),
        ([[3]], {"prune": (0, 2, 1)}, "none below"),
        ([[3]], {"memory": 10}, "memory is 10"),
    ],
)
def test_what_cannot_be_trained_is_named(tmp_path, lines, options, message):
    with pytest.raises(ValueError, match=message):
        train_kneser_ney(lines, vocabulary(12), tmp_path / "model.arpa", fallback=FALLBACK, **options)
