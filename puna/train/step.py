"""One optimiser step: a global batch in, updated weights and the step's figures out.

    micro-batches ─> losses, gradients ─> clip ─> accepted? ─yes─> AdamW
                                                     └─no──> the weights do not change, the step is logged

Nothing here waits for the device: figures are tensors, which the log reads one step later, and a step that is
not accepted is skipped on the device itself, by the optimiser's `found_inf`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from puna.config import RunConfig
from puna.devices import to_device
from puna.model.llama import Llama
from puna.model.loss import IGNORE
from puna.tokens.mixture import Batch
from puna.train.graph import Gradients, launched
from puna.train.parallel import reduce_gradients
from puna.train.ranks import ALONE, Ranks
from puna.train.shares import clip_gradients

WINDOW = 64  # number of gradient norms whose median an outlier is compared with
WARM = 16  # number of norms that must be known before a step can be an outlier


@dataclass(frozen=True)
class StepResult:
    """A step's figures, on the device that computed them."""

    losses_S: Tensor  # sum of the losses of each source, nats
    tokens_S: Tensor  # target tokens of each source
    grad_norm: Tensor  # before clipping
    finite: Tensor  # whether loss and gradient norm are finite
    taken: Tensor  # whether the optimiser stepped

    def record(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The figures as JSON values; waits for the device."""
        losses, tokens = self.losses_S.tolist(), self.tokens_S.tolist()
        record = {
            "loss": sum(losses) / sum(tokens),
            "loss_by_source": {
                name: loss / count for name, loss, count in zip(names, losses, tokens, strict=True) if count
            },
            "grad_norm": self.grad_norm.item(),
        }
        return record if self.taken.item() else {**record, "skipped": True}


class OutlierGuard:
    """Rejects a step whose gradient norm is not finite, or `factor` times the median norm; 0: any finite one.

    Its state is the last norms of accepted steps (`norms`, NaN where there is none yet). It is saved with the
    run, so that a resumed run skips the same steps.
    """

    def __init__(self, factor: float, device: torch.device, norms: tuple[float, ...] = ()) -> None:
        self.factor = factor
        self.norms = torch.full((WINDOW,), float("nan"), device=device)
        if norms:
            self.norms[-len(norms) :] = torch.tensor(norms, device=device)

    def accept_step(self, norm: Tensor, finite: Tensor) -> Tensor:
        """Whether to take a step of this gradient norm; if so, the norm is added to the state."""
        accepted = finite
        if self.factor:
            known = ~self.norms.isnan()
            usual = norm <= self.factor * self.norms.nanmedian()
            accepted = finite & (usual | (known.sum() < WARM))
        # Outliers are not added: they would make the next one look usual.
        self.norms = torch.where(accepted, torch.cat((self.norms[1:], norm[None])), self.norms)
        return accepted

    def state(self) -> tuple[float, ...]:
        """The norms, oldest first; empty when outliers are not skipped."""
        return tuple(self.norms[~self.norms.isnan()].tolist()) if self.factor else ()


def train_step(
    model: Llama,
    optimizer: torch.optim.Optimizer,
    guard: OutlierGuard,
    batch: Batch,
    n_sources: int,
    lr: float,
    config: RunConfig,
    ranks: Ranks = ALONE,
    step: int = 0,
    gradients: Gradients | None = None,
) -> StepResult:
    """Accumulate the gradient of a global batch over micro-batches, clip it, and step if it is accepted.

    `batch` holds the rows of this process; the figures are those of the global batch. `gradients` None: by
    kernels that are launched one by one.
    """
    device = model.embedding.device
    inputs, targets = to_device(batch.inputs, device), to_device(batch.targets, device)
    sources_B = to_device(batch.sources, device)
    segments = None if batch.segments is None else to_device(batch.segments, device)
    micro = min(config.schedule.micro_batch, len(inputs))
    gradients = gradients or launched(model)
    # As a tensor on GPUs, where kernels that read a number from memory need not be compiled for each.
    weight = 1 / batch.global_tokens
    scale = torch.full((), weight, device=device) if device.type == "cuda" else weight
    first = (step * ranks.dp_world + ranks.dp_rank) * len(inputs)
    losses = []
    for rows in (slice(row, row + micro) for row in range(0, len(inputs), micro)):
        reduce_gradients(model, rows.stop >= len(inputs))
        # Divided by the target tokens of the whole global batch: each token has the same weight, on whichever
        # rank and in whichever micro-batch it is, also beside padding.
        examples = None if segments is None else segments[rows]
        losses_BT = gradients(inputs[rows], targets[rows], scale, examples, first + rows.start)
        losses.append(losses_BT.sum(1))
    losses_B = torch.cat(losses)

    tokens_B = (targets != IGNORE).sum(1)
    figures = torch.zeros(2, n_sources, dtype=torch.float64, device=device)
    figures.index_add_(1, sources_B, torch.stack((losses_B, tokens_B)).to(figures.dtype))
    losses_S, tokens_S = ranks.sum(figures)

    grad_norm = clip_gradients(model, config.optim.clip, ranks.mesh)
    finite = losses_S.isfinite().all() & grad_norm.isfinite()
    accepted = guard.accept_step(grad_norm, finite)
    optimizer.found_inf = (~accepted).float()  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()

    return StepResult(losses_S, tokens_S.long(), grad_norm, finite, accepted)
