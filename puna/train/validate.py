"""The held-out loss of each source, and their mean weighted by the mixture."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from puna.devices import to_device
from puna.model.llama import Llama
from puna.model.loss import IGNORE
from puna.tokens.mixture import Batch
from puna.train.batches import BatchSource
from puna.train.parallel import reshard
from puna.train.ranks import ALONE, Ranks


@torch.no_grad()
def held_out_loss(
    model: Llama, data: BatchSource, micro_batch: int, limit: int | None, ranks: Ranks = ALONE
) -> dict[str, Any]:
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
    for source in data.sources:
        totals = torch.zeros(3, dtype=torch.float64)  # Σ losses, tokens, windows
        batches = data.validation_windows(source, limit, micro_batch)
        losses_BT = []
        for batch in ranks.share(batches, _without_targets):
            if device.type == "cuda":  # one shape, for which kernels are compiled
                batch = _filled(batch, micro_batch)
            inputs, targets = to_device(batch.inputs, device), to_device(batch.targets, device)
            segments = None if batch.segments is None else to_device(batch.segments, device)
            losses_BT.append(model.losses(inputs, targets, segments))
            is_target = batch.targets != IGNORE
            totals[1] += int(is_target.sum())
            totals[2] += int(is_target.any(1).sum())
        if losses_BT:
            totals[0] = torch.cat(losses_BT).cpu().sum(dtype=torch.float64)  # the only wait
        total, tokens, count = ranks.sum(totals.to(device) if device.type == "cuda" else totals).tolist()
        if tokens:
            losses[source], windows[source] = total / tokens, int(count)
            bits[source] = total / tokens / math.log(2) * data.tokens_per_byte(source)
    reshard(model)
    weight = sum(data.shares[source] for source in losses)
    mean = sum(data.shares[source] * loss for source, loss in losses.items()) / weight if weight else None
    return {
        "loss": mean,
        "loss_by_source": losses,
        "bits_per_byte_by_source": bits,
        "windows_by_source": windows,
    }


def _filled(batch: Batch, rows: int) -> Batch:
    """A batch of so many rows; what is added has no targets."""
    missing = ((0, rows - len(batch.inputs)), (0, 0))
    segments = None if batch.segments is None else np.pad(batch.segments, missing)
    return replace(
        batch,
        inputs=np.pad(batch.inputs, missing),
        targets=np.pad(batch.targets, missing, constant_values=IGNORE),
        segments=segments,
    )


def _without_targets(batch: Batch) -> Batch:
    return replace(batch, targets=np.full_like(batch.targets, IGNORE))
