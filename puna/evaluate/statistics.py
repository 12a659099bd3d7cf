"""Means with standard errors, pass@k, maj1@k, and paired comparisons of two runs. numpy alone.

A standard error is that of a mean over independent examples; examples of one cluster (an article's
questions) are summed first. Two runs are compared on the same examples only: an unpaired z is not offered.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from puna.evaluate.answers import majority


@dataclass(frozen=True)
class Mean:
    """A mean over n examples with its standard error; the error of a single one is not known."""

    value: float
    error: float | None
    n: int


def mean(values: Sequence[float], clusters: Sequence[str] = ()) -> Mean:
    """The mean, and its standard error with clusters as the independent units.

    Raises:
        ValueError: when there are no values.
    """
    if not len(values):
        raise ValueError("no values to average")
    x = np.asarray(values, np.float64)
    average = float(x.mean())
    deviations = x - average
    if clusters:
        _, places = np.unique(np.asarray(clusters), return_inverse=True)
        deviations = np.bincount(places, weights=deviations).astype(np.float64)
    units = len(deviations)
    if units < 2:
        return Mean(average, None, len(x))
    # The sample variance, with units - 1; for unclustered values this is s / sqrt(n).
    error = math.sqrt(float((deviations**2).sum()) * units / (units - 1)) / len(x)
    return Mean(average, error, len(x))


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased estimate of P(at least one of k samples passes): 1 - C(n - c, k) / C(n, k).

    Raises:
        ValueError: when there are fewer samples than k: nothing is extrapolated.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} samples passed; expected a number from 0 to {n}")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples, got {n}; raise --samples")
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def majority_at_k(answers: Sequence[str], correct: Sequence[bool], k: int) -> float:
    """Whether the answer given most often among the first k samples is correct (maj1@k).

    Raises:
        ValueError: when there are fewer samples than k.
    """
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj1@{k} needs at least {k} samples, got {len(answers)}; raise --samples")
    winner = majority(answers[:k])
    return float(bool(winner) and correct[answers.index(winner)])


def chance(options: Sequence[int], gold: Sequence[int]) -> float:
    """The expected accuracy of a uniform guess over examples with so many options and right ones."""
    return float(np.mean([right / count for right, count in zip(gold, options, strict=True)]))


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same examples."""

    n: int
    first: float
    second: float
    difference: float
    """second - first."""
    low: float
    high: float
    """Its 95 % interval, by the paired bootstrap."""
    only_first: int
    only_second: int
    """Examples that only one run has right."""
    p: float | None
    """Exact McNemar, two-sided; None where values are not 0 or 1."""


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value that discordant pairs fall either way with equal probability."""
    n = only_first + only_second
    if n == 0:
        return 1.0
    few = min(only_first, only_second)
    # Sums of integers are exact; a double cannot hold 2**n beyond n of about 1,000.
    tail = sum(math.comb(n, i) for i in range(few + 1))
    return min(
        1.0, float(2 * tail / (1 << n)) if n < 1000 else math.exp(math.log(2 * tail) - n * math.log(2))
    )


def compare(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[str] = (), draws: int = 10_000
) -> Comparison:
    """Compare two runs example by example. The bootstrap draws clusters, where there are any.

    Raises:
        ValueError: when the lengths differ, or there are no examples.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or not len(a):
        raise ValueError(f"the runs have {len(a)} and {len(b)} examples; compare runs of the same examples")
    names = np.asarray(clusters) if clusters else np.arange(len(a))
    _, places = np.unique(names, return_inverse=True)
    sums, sizes = np.bincount(places, weights=b - a), np.bincount(places)
    rng = np.random.default_rng(0)
    means = np.empty(draws)
    for start in range(0, draws, 500):  # bounded memory
        rows = rng.integers(0, len(sums), (min(500, draws - start), len(sums)))
        means[start : start + len(rows)] = sums[rows].sum(1) / sizes[rows].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    only_first, only_second = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    is_binary = bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all())
    p = mcnemar(only_first, only_second) if is_binary else None
    difference = float(b.mean() - a.mean())
    values = float(a.mean()), float(b.mean()), difference, float(low), float(high)
    return Comparison(len(a), *values, only_first, only_second, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for several comparisons by Holm's step-down rule."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
