"""From logits to the next token, in one place.

    logits_V ─> bias, penalties ─> JSON schema ─> / temperature ─> top-k ─> top-p ─> min-p ─> draw ─> id
        └─────> log-probabilities, of the model's own distribution

The order is that of transformers. Each call takes one number from the request's own generator, so a
request's tokens do not depend on other requests.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.config import Sampling

# How many of the most likely tokens are tried first: they nearly always hold the nucleus, without a sort.
_FIRST = (256, 4096)


def draw(
    logits_V: Tensor, sampling: Sampling, generator: torch.Generator, distinct: Tensor | None = None
) -> int:
    """The id of the next token, from fp32 logits (V,).

    `distinct` are the ids of prompt and answer so far, each once, for the repetition penalty.
    """
    if sampling.repetition_penalty != 1 and distinct is not None:
        logits_V = _penalised(logits_V, distinct, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    likely, ids = _filtered(logits_V / sampling.temperature, sampling)
    sums = (likely - likely.max()).exp().cumsum(0, dtype=torch.float64)
    # Inverse of the cumulative distribution. right=True: a token of zero probability is never picked.
    number = torch.rand((), dtype=torch.float64, generator=generator).to(sums.device)
    index = int(torch.searchsorted(sums, number * sums[-1], right=True))
    index = min(index, len(sums) - 1)
    return index if ids is None else int(ids[index])


def adjusted(
    logits_V: Tensor,
    bias: Sequence[tuple[int, float]],
    counts: Mapping[int, int],
    presence: float,
    frequency: float,
) -> Tensor:
    """Logits (V,) plus a bias by id, minus the penalties of the ids in `counts`, the answer's tokens.

    The caller checks that ids are inside the vocabulary.
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


def masked(logits_V: Tensor, allowed_V: NDArray[np.bool_]) -> Tensor:
    """Logits (V,) with those of the other tokens at -inf: they have no probability."""
    allowed = torch.from_numpy(allowed_V).to(logits_V.device)
    return logits_V.masked_fill(~allowed, -math.inf)


def _penalised(logits_V: Tensor, distinct: Tensor, penalty: float) -> Tensor:
    logits_V = logits_V.clone()
    old = logits_V[distinct]
    logits_V[distinct] = torch.where(old > 0, old / penalty, old * penalty)
    return logits_V


def _filtered(logits_V: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """The logits that pass the filters and their ids, in falling order; all, without ids, if none filters."""
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
        # A token is kept while the more likely ones have not reached p, so the first always is.
        probabilities = (likely - all_).exp()
        before = probabilities.cumsum(0) - probabilities
        likely = likely[: max(1, int((before < sampling.top_p).sum()))]
    if sampling.min_p > 0:
        likely = likely[likely >= likely[0] + math.log(sampling.min_p)]
    return likely, ids


def _is_enough(likely: Tensor, all_: Tensor, sampling: Sampling) -> bool:
    """Whether all tokens that the filters may keep are among the most likely ones tried."""
    if sampling.top_p < 1 and float((likely - all_).exp().sum()) > sampling.top_p:
        return True
    return sampling.min_p > 0 and bool(likely[-1] < likely[0] + math.log(sampling.min_p))


def logprobs(logits_V: Tensor, token: int, k: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """A token's log-probability in the model's own distribution, and the k most likely ids with theirs."""
    all_ = logits_V.logsumexp(0)
    values, ids = logits_V.topk(min(k, len(logits_V))) if k else (logits_V[:0], logits_V[:0])
    top = zip(ids.tolist(), (values - all_).tolist(), strict=True)
    return float(logits_V[token] - all_), tuple((int(id), value) for id, value in top)
