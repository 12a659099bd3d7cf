"""From logits to the next token, in one place.

    logits_V ─> bias, penalties ─> / temperature ─> top-k ─> top-p ─> min-p ─> one uniform number ─> id
        └─────> log-probabilities, of the model's own distribution

The order is transformers'. Each draw takes one number from the request's own generator, so what it draws
does not depend on what else is sampled.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from puna.config import Sampling

# How many of the likeliest are looked at first: nearly always they hold the nucleus, and nothing is sorted.
_FIRST = (256, 4096)


def draw(logits_V: Tensor, sampling: Sampling, generator: torch.Generator, seen: Tensor | None = None) -> int:
    """The id of the next token, from fp32 logits (V,).

    `seen` are the ids of prompt and answer so far, each once, for the repetition penalty.
    """
    if sampling.repetition_penalty != 1 and seen is not None:
        logits_V = _penalised(logits_V, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    likely, ids = _filtered(logits_V / sampling.temperature, sampling)
    sums = (likely - likely.max()).exp().cumsum(0, dtype=torch.float64)
    # Inverse of the cumulative distribution. Right: what has no probability at all is never hit.
    number = torch.rand((), dtype=torch.float64, generator=generator).to(sums.device)
    place = int(torch.searchsorted(sums, number * sums[-1], right=True))
    place = min(place, len(sums) - 1)
    return place if ids is None else int(ids[place])


def adjusted(
    logits_V: Tensor,
    bias: Sequence[tuple[int, float]],
    counts: Mapping[int, int],
    presence: float,
    frequency: float,
) -> Tensor:
    """Logits (V,) plus a bias by id, less the penalties of the ids that the answer holds, with how often.

    Raises nothing: ids outside the vocabulary are the caller's to refuse.
    """
    changes = dict(bias)
    if presence or frequency:
        for id, count in counts.items():
            changes[id] = changes.get(id, 0.0) - presence - frequency * count
    if not changes:
        return logits_V
    ids = torch.tensor(list(changes), device=logits_V.device)
    values = torch.tensor(list(changes.values()), dtype=logits_V.dtype, device=logits_V.device)
    return logits_V.index_add(0, ids, values)


def _penalised(logits_V: Tensor, seen: Tensor, penalty: float) -> Tensor:
    logits_V = logits_V.clone()
    old = logits_V[seen]
    logits_V[seen] = torch.where(old > 0, old / penalty, old * penalty)
    return logits_V


def _filtered(logits_V: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """The logits that stay, and their ids, in falling order; all, without ids, where nothing is filtered."""
    if not sampling.top_k and sampling.top_p == 1 and sampling.min_p == 0:
        return logits_V, None
    V = len(logits_V)
    if sampling.top_k:
        likely, ids = logits_V.topk(min(sampling.top_k, V))
        all_ = likely.logsumexp(0)
    else:
        all_ = logits_V.logsumexp(0)
        for count in (*_FIRST, V):
            likely, ids = logits_V.topk(count) if count < V else logits_V.sort(descending=True, stable=True)
            if count >= V or _is_enough(likely, all_, sampling):
                break
    if sampling.top_p < 1:
        # A token stays while what is likelier than it has not reached p: the first always stays.
        probabilities = (likely - all_).exp()
        before = probabilities.cumsum(0) - probabilities
        likely = likely[: max(1, int((before < sampling.top_p).sum()))]
    if sampling.min_p > 0:
        likely = likely[likely >= likely[0] + math.log(sampling.min_p)]
    return likely, ids


def _is_enough(likely: Tensor, all_: Tensor, sampling: Sampling) -> bool:
    """Whether all that the filters may keep is among the likeliest looked at."""
    if sampling.top_p < 1 and float((likely - all_).exp().sum()) > sampling.top_p:
        return True
    return sampling.min_p > 0 and bool(likely[-1] < likely[0] + math.log(sampling.min_p))


def logprobs(logits_V: Tensor, token: int, k: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """ln of a token's probability in the model's own distribution, and the k likeliest ids with theirs."""
    all_ = logits_V.logsumexp(0)
    values, ids = logits_V.topk(min(k, len(logits_V))) if k else (logits_V[:0], logits_V[:0])
    top = zip(ids.tolist(), (values - all_).tolist(), strict=True)
    return float(logits_V[token] - all_), tuple((int(id), value) for id, value in top)
