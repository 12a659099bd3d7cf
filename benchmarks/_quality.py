"""The cost of quantisation: a model in some precision against itself in fp32, on the same text.

tokens ─> windows ─┬─> fp32 ─────> logits ─┐
                   └─> weights ──> logits ─┴─> perplexity of both, KL divergence, agreement of the top token
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.formats.convert import open_source
from puna.generate.load import load_runner
from puna.generate.runners.cache import BLOCK
from puna.generate.runners.quantize import Weights


@dataclass(frozen=True)
class Quality:
    """Means over all predicted tokens."""

    tokens: int
    perplexity: float
    perplexity_fp32: float
    kl: float
    """Σ p · log(p / q) in nats, p the fp32 model's distribution of the next token."""
    same_top: float
    """Share of the tokens whose most likely successor is the same."""


@torch.inference_mode()
def quality(path: Path, tokens: Sequence[int], weights: Weights, window: int = 512) -> Quality:
    """Measure a model's weights in the precision `weights`, with a bf16 cache, on windows of tokens.

    Both models are in memory together.

    Raises:
        ValueError: fewer than two tokens, or an invalid model.
    """
    if len(tokens) < 2:
        raise ValueError("the text is shorter than two tokens; give a longer one")
    blocks = ceil(window / BLOCK)
    source = open_source(path)[1]
    exact = load_runner(source, "fp32", blocks, torch.float32)
    tried = load_runner(source, weights, blocks)
    window = min(window, exact.config.context)
    sums = torch.zeros(4, dtype=torch.float64)
    count = 0
    for start in range(0, len(tokens) - 1, window):
        ids = tokens[start : start + window]
        if len(ids) < 2:
            break
        p = _log_probabilities(exact.prefill(ids, 0, range(blocks), all_logits=True))
        q = _log_probabilities(tried.prefill(ids, 0, range(blocks), all_logits=True))
        targets = torch.tensor(ids[1:])
        sums[0] += F.nll_loss(q, targets, reduction="sum")
        sums[1] += F.nll_loss(p, targets, reduction="sum")
        sums[2] += F.kl_div(q, p, reduction="sum", log_target=True)
        sums[3] += (p.argmax(-1) == q.argmax(-1)).sum()
        count += len(targets)
    loss, loss_fp32, kl, same = (sums / count).tolist()
    return Quality(count, exp(loss), exp(loss_fp32), kl, same)


def _log_probabilities(logits_TV: Tensor) -> Tensor:
    """Log-probabilities at the tokens that have a successor in the window."""
    return logits_TV[:-1].log_softmax(-1)
