"""Draws: what the filters keep, the distribution, the seed; transformers as the oracle of the filters."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.config import Sampling
from puna.generate.sampling import draw, logprobs

logits_lists = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=50)


def drawn(logits: torch.Tensor, sampling: Sampling, seed: int = 0) -> int:
    return draw(logits, sampling, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -2}, "top-k"),
        ({"top_p": 0}, "top-p"),
        ({"top_p": math.nan}, "top-p"),
        ({"min_p": 1.5}, "min-p"),
        ({"min_p": -0.1}, "min-p"),
        ({"repetition_penalty": 0}, "repetition-penalty"),
        ({"seed": 1 << 63}, "seed"),
    ],
)
def test_an_impossible_option_is_named(options, name):
    with pytest.raises(ValueError, match=f"^{name} is "):
        Sampling(**options).validate()


@pytest.mark.parametrize("seed", [-(1 << 63), (1 << 63) - 1, 0])
def test_every_seed_of_64_bits_is_one(seed):
    Sampling(seed=seed).validate()
    torch.Generator().manual_seed(seed)


@given(logits=logits_lists, top_k=st.integers(1, 60), seed=st.integers(0, 99))
def test_top_k_draws_among_the_k_likeliest(logits, top_k, seed):
    logits_V = torch.tensor(logits)
    token = drawn(logits_V, Sampling(1.0, top_k, 1.0), seed)
    assert (logits_V > logits_V[token]).sum() < top_k


@given(logits=logits_lists, top_p=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_top_p_draws_within_the_nucleus(logits, top_p, seed):
    logits_V = torch.tensor(logits)
    token = drawn(logits_V, Sampling(1.0, 0, top_p), seed)
    likelier = logits_V.softmax(0)[logits_V > logits_V[token]].sum()
    assert likelier < top_p + 1e-5


@given(logits=logits_lists, min_p=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_min_p_draws_what_is_likely_enough(logits, min_p, seed):
    probabilities = torch.tensor(logits).softmax(0)
    token = drawn(torch.tensor(logits), Sampling(1.0, 0, 1.0, min_p), seed)
    assert probabilities[token] >= min_p * probabilities.max() * (1 - 1e-5)


def possible(logits: torch.Tensor, sampling: Sampling, seen: torch.Tensor) -> set[int]:
    """All that is drawn by many seeds."""
    generator = torch.Generator().manual_seed(0)
    return {draw(logits, sampling, generator, seen) for _ in range(300)}


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 3, 6]),
    top_p=st.sampled_from([0.3, 0.8, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.5]),
    penalty=st.sampled_from([1.0, 1.3, 0.8]),
)
def test_the_filters_keep_what_transformers_keeps(seed, temperature, top_k, top_p, min_p, penalty):
    from transformers.generation import logits_process as theirs

    logits = torch.randn(8, generator=torch.Generator().manual_seed(seed)) * 3
    seen = torch.tensor([1, 4, 5])
    processors = [
        theirs.RepetitionPenaltyLogitsProcessor(penalty),
        theirs.TemperatureLogitsWarper(temperature),
        *([theirs.TopKLogitsWarper(top_k)] if top_k else []),
        *([theirs.TopPLogitsWarper(top_p)] if top_p < 1 else []),
        *([theirs.MinPLogitsWarper(min_p)] if min_p else []),
    ]
    scores = logits[None].clone()
    for processor in processors:
        scores = processor(seen[None], scores)
    # What is drawn with a chance below 1 in 30 need not be among 300 draws.
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty)
    kept, found = scores[0].softmax(0), possible(logits, sampling, seen)
    assert {id for id in range(8) if kept[id] > 0.033} <= found <= {id for id in range(8) if kept[id] > 0}


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), sampling=st.sampled_from([Sampling(1.0, 0, 1.0), Sampling(1.0, 3, 1.0)]))
def test_draws_follow_the_distribution(seed, sampling):
    probabilities = torch.tensor([0.1, 0.6, 0.3])
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(3)
    for _ in range(3000):
        counts[draw(probabilities.log(), sampling, generator)] += 1
    # 5 standard deviations of a binomial share, sqrt(p (1 - p) / 3000)
    limit = 5 * (probabilities * (1 - probabilities) / 3000).sqrt()
    assert ((counts / 3000 - probabilities).abs() < limit).all()


def test_what_is_impossible_is_never_drawn():
    logits = torch.full((5000,), -math.inf)
    logits[4321] = 0.0
    generator = torch.Generator().manual_seed(0)
    for sampling in (Sampling(1.0, 0, 1.0), Sampling(1.0, 0, 0.9), Sampling(1.0, 9, 1.0)):
        assert {draw(logits, sampling, generator) for _ in range(50)} == {4321}


@pytest.mark.parametrize("scale", [0.01, 3.0])  # a nucleus of nearly all tokens, and of few
def test_a_large_vocabulary_is_filtered_as_a_sort_would(scale):
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * scale
    probabilities, ids = logits.softmax(0).sort(descending=True)
    nucleus = set(ids[: int((probabilities.cumsum(0) - probabilities < 0.9).sum())].tolist())
    generator = torch.Generator().manual_seed(2)
    found = {draw(logits, Sampling(1.0, 0, 0.9), generator) for _ in range(300)}
    assert found <= nucleus
    assert len(found) > 20


def test_every_draw_takes_one_number_whatever_the_filters():
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    states = []
    for sampling in (Sampling(1.0, 0, 1.0), Sampling(0.5, 20, 0.5, 0.1, 1.2)):
        generator = torch.Generator().manual_seed(7)
        draw(logits, sampling, generator, torch.tensor([1]))
        states.append(generator.get_state())
    assert torch.equal(*states)


@given(logits=logits_lists, k=st.integers(0, 60))
def test_logprobs_are_those_of_the_models_own_distribution(logits, k):
    logits_V = torch.tensor(logits)
    expected = logits_V.log_softmax(0)
    own, top = logprobs(logits_V, 0, k)
    assert own == pytest.approx(float(expected[0]), abs=1e-4)
    assert len(top) == min(k, len(logits))
    values = [value for _, value in top]
    assert values == sorted(values, reverse=True)
    assert values == pytest.approx(expected.sort(descending=True).values[: len(top)].tolist(), abs=1e-4)
    assert all(value == pytest.approx(float(expected[id]), abs=1e-4) for id, value in top)
