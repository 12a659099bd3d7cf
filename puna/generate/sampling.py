"""From logits to the next token: greedy, temperature, top-k, top-p."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 is greedy; the filters are applied in the order listed."""

    temperature: float = 0.8
    """0: always the likeliest token; 1: the model's own distribution."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0: all."""
    top_p: float = 0.95
    """Keep the fewest likeliest tokens whose probabilities reach p (Holtzman et al. 2020); 1: all."""
    seed: int = 1
    """The same seed draws the same tokens."""

    def validate(self) -> None:
        """Raise ValueError naming the option that cannot be."""
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if self.top_k < 0:
            raise ValueError(f"top-k is {self.top_k}; it must be 0 (all) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p is {self.top_p}; it must be above 0 and at most 1")


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
