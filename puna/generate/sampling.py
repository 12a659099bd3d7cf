"""From logits to the next token: greedy, temperature, top-k, top-p."""

import torch
from torch import Tensor

from puna.config import Sampling


def draw(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The id of the next token, from fp32 logits (V,)."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    logits_V = logits_V / sampling.temperature
    ordered_V, ids_V = logits_V.sort(descending=True, stable=True)
    if sampling.top_k:
        ordered_V, ids_V = ordered_V[: sampling.top_k], ids_V[: sampling.top_k]
    probabilities = ordered_V.softmax(0)
    if sampling.top_p < 1:
        # A token stays while what is likelier than it has not reached p: the first always stays.
        before = probabilities.cumsum(0) - probabilities
        probabilities = torch.where(before < sampling.top_p, probabilities, 0.0)
    return int(ids_V[torch.multinomial(probabilities, 1, generator=generator)])
