"""The held-out loss of each source, and their mean weighted by the mixture."""

import math
from typing import Any

import torch

from puna.devices import to_device
from puna.model.llama import Llama
from puna.tokens.mixture import Mixture


@torch.no_grad()
def held_out_loss(model: Llama, mixture: Mixture, micro_batch: int, limit: int | None) -> dict[str, Any]:
    """Mean loss on held-out documents, in nats per token: by source, and weighted by the mixture.

    Args:
        limit: maximum number of windows per source; None takes all.

    Returns:
        {"loss", "loss_by_source", "bits_per_byte_by_source", "windows_by_source"}; a source without held-out
        documents is in none of them. The loss is None if no source has any.
    """
    device = model.embedding.device
    losses: dict[str, float] = {}
    bits: dict[str, float] = {}
    windows: dict[str, int] = {}
    for source in mixture.sources:
        losses_BT, tokens = [], 0
        for batch in mixture.validation_windows(source, limit, micro_batch):
            inputs, targets = to_device(batch.inputs, device), to_device(batch.targets, device)
            losses_BT.append(model.losses(inputs, targets))
            tokens += batch.global_tokens
        if tokens:
            total = torch.cat(losses_BT).cpu().sum(dtype=torch.float64).item()  # the only wait for the device
            losses[source], windows[source] = total / tokens, sum(map(len, losses_BT))
            bits[source] = total / tokens / math.log(2) * mixture.tokens_per_byte(source)
    weight = sum(mixture.shares[source] for source in losses)
    mean = sum(mixture.shares[source] * loss for source, loss in losses.items()) / weight if weight else None
    return {
        "loss": mean,
        "loss_by_source": losses,
        "bits_per_byte_by_source": bits,
        "windows_by_source": windows,
    }
