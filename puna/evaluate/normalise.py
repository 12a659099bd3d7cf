"""An option's log-likelihood -> the score by which it is chosen. Five normalisations.

    none            log P(o | context)
    char            log P(o | context) / characters of o       the paper's rule for most tasks
    byte            log P(o | context) / UTF-8 bytes of o
    token           log P(o | context) / tokens of o
    answer-context  log P(o | context) - log P(o | "Answer:")  the paper's rule for BoolQ and OpenBookQA

Characters and bytes are those of the option without the white space before it, which is the same for all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Normalisation = Literal["none", "char", "byte", "token", "answer-context"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)


@dataclass(frozen=True)
class Option:
    """What the model says about one option."""

    text: str
    logprob: float
    """Sum of the log-probabilities of its tokens, given the context."""
    tokens: int
    base: float | None = None
    """The same given the answer context alone; None where it was not computed."""
    greedy: bool = False
    """Whether the model would generate exactly this text."""


def score(option: Option, normalisation: Normalisation) -> float | None:
    """The score of an option; None for answer-context where its base was not computed.

    An option has at least one character, byte and token.
    """
    text = option.text.strip()
    match normalisation:
        case "none":
            return option.logprob
        case "char":
            return option.logprob / max(1, len(text))
        case "byte":
            return option.logprob / max(1, len(text.encode()))
        case "token":
            return option.logprob / option.tokens
        case "answer-context":
            return None if option.base is None else option.logprob - option.base


def scores(options: Sequence[Option]) -> dict[Normalisation, list[float | None]]:
    """The scores of all options by every normalisation."""
    return {name: [score(option, name) for option in options] for name in NORMALISATIONS}


def choose(values: Sequence[float]) -> int:
    """The index of the largest score; the first of equal ones."""
    return max(range(len(values)), key=lambda index: values[index])


def is_correct(values: Sequence[float], gold: Sequence[int], ties_are_wrong: bool = False) -> bool:
    """Whether the chosen option is right. `ties_are_wrong`: the first right one must beat every wrong one."""
    if ties_are_wrong:
        return all(values[gold[0]] > value for index, value in enumerate(values) if index not in gold)
    return choose(values) in gold


def mass_of_right(logprobs: Sequence[float], gold: Sequence[int]) -> float:
    """The share of probability on right options, among all options (TruthfulQA's MC2)."""
    largest = max(logprobs)
    weights = [math.exp(value - largest) for value in logprobs]
    return sum(weights[index] for index in gold) / sum(weights)
