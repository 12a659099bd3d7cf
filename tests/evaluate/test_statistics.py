"""Normalisations, means, pass@k, comparisons."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from puna.evaluate.normalise import NORMALISATIONS, Option, choose, is_correct, mass_of_right, scores
from puna.evaluate.statistics import compare, holm, mcnemar, mean, pass_at_k


def test_the_five_normalisations():
    found = scores([Option(" é b", -6.0, 2, base=-4.0), Option(" abc", -3.0, 1, base=-0.5)])
    assert found == {
        "none": [-6.0, -3.0],
        "char": [-2.0, -1.0],
        "byte": [-1.5, -1.0],
        "token": [-3.0, -3.0],
        "answer-context": [-2.0, -2.5],
    }
    assert tuple(found) == NORMALISATIONS
    assert scores([Option("x", -1.0, 1)])["answer-context"] == [None]


def test_ties_go_to_the_first_option_and_are_wrong_for_mc1():
    assert choose([-1.0, -1.0, -2.0]) == 0
    assert is_correct([-1.0, -1.0], (0,)) and not is_correct([-1.0, -1.0], (0,), ties_are_wrong=True)
    assert is_correct([-1.0, -1.0, -3.0], (0, 1), ties_are_wrong=True)
    assert mass_of_right([math.log(0.1), math.log(0.2), math.log(0.1)], (0, 1)) == pytest.approx(0.75)


@pytest.mark.parametrize("n", [1, 5, 9])
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    with pytest.raises(ValueError, match=f"needs at least {n + 1} samples"):
        pass_at_k(n, 0, n + 1)


def test_standard_errors_respect_clusters():
    values = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    independent, clustered = mean(values), mean(values, ["a", "a", "b", "b", "c", "c"])
    assert independent.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(6))
    assert clustered.value == independent.value and clustered.error == pytest.approx(1 / 3)
    assert mean(values, list("abcdef")).error == pytest.approx(independent.error)
    assert mean([1.0]).error is None


def test_mcnemar_is_the_exact_binomial_test():
    """If both are equally likely: the probability of all outcomes at most as likely as the one observed."""
    for a, b in ((0, 0), (3, 10), (7, 7), (40, 61), (0, 9), (900, 1100)):
        ways = [math.comb(a + b, few) for few in range(a + b + 1)]
        expected = Fraction(sum(way for way in ways if way <= ways[a]), sum(ways))
        assert mcnemar(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_a_comparison_is_paired():
    rng = np.random.default_rng(1)
    a = (rng.random(500) < 0.6).astype(float)
    b = a.copy()
    b[:20] = 1 - b[:20]
    found = compare(a.tolist(), b.tolist())
    assert found.only_first + found.only_second == 20
    assert found.low <= found.difference <= found.high
    se = float(np.std(b - a, ddof=1) / math.sqrt(500))
    assert (found.high - found.low) / (2 * 1.96 * se) == pytest.approx(1, abs=0.06)
    assert found == compare(a.tolist(), b.tolist())
    with pytest.raises(ValueError, match="500 and 499"):
        compare(a.tolist(), b.tolist()[1:])


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
