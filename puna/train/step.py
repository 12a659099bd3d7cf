"""One optimiser step: a global batch in, updated weights and the step's figures out.

    micro-batches ─> losses, gradients ─> clip ─> is it sound? ─yes─> AdamW
                                                     └─no──> the weights stay as they are, the step is logged

Nothing here waits for the device: figures are tensors, read by the log one step later, and an unsound step
is stopped on the device itself, by the optimiser's `found_inf`.
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

WINDOW = 64  # gradient norms that an outlier is measured against
WARM = 16  # norms that must be known before any step is called an outlier


@dataclass(frozen=True)
class StepResult:
    """A step's figures, on the device that computed them."""

    losses_S: Tensor  # Σ losses of each source, nats
    tokens_S: Tensor  # targets of each source
    grad_norm: Tensor  # before clipping
    finite: Tensor  # are loss and gradient norm finite?
    taken: Tensor  # did the optimiser step?

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
    """Tells whether a gradient norm is far above those before it; `factor` 0 never says so.

    The last norms of sound steps are its state (`norms`, NaN where there is none yet), saved with the run:
    a resumed run skips the same steps.
    """

    def __init__(self, factor: float, device: torch.device, norms: tuple[float, ...] = ()) -> None:
        self.factor = factor
        self.norms = torch.full((WINDOW,), float("nan"), device=device)
        if norms:
            self.norms[-len(norms) :] = torch.tensor(norms, device=device)

    def is_sound(self, norm: Tensor, finite: Tensor) -> Tensor:
        """Whether to take the step; remembers its norm if so."""
        sound = finite
        if self.factor:
            known = ~self.norms.isnan()
            usual = norm <= self.factor * self.norms.nanmedian()
            sound = finite & (usual | (known.sum() < WARM))
        # Outliers are not remembered: they would make the next one look usual.
        self.norms = torch.where(sound, torch.cat((self.norms[1:], norm[None])), self.norms)
        return sound

    def state(self) -> tuple[float, ...]:
        """The norms remembered, oldest first; none when the guard is off."""
        return tuple(self.norms[~self.norms.isnan()].tolist()) if self.factor else ()


def train_step(
    model: Llama,
    optimizer: torch.optim.Optimizer,
    guard: OutlierGuard,
    batch: Batch,
    n_sources: int,
    lr: float,
    config: RunConfig,
) -> StepResult:
    """Accumulate the gradient of a global batch over micro-batches, clip it, and step if it is sound."""
    device = model.embedding.device
    inputs, targets = to_device(batch.inputs, device), to_device(batch.targets, device)
    sources_B = to_device(batch.sources, device)
    micro = min(config.schedule.micro_batch, len(inputs))
    losses = []
    for rows in (slice(row, row + micro) for row in range(0, len(inputs), micro)):
        # Divided by the tokens of the whole batch: a padded window counts for what it holds.
        total, losses_BT = model.loss(inputs[rows], targets[rows], 1 / batch.tokens)
        total.backward()
        losses.append(losses_BT.sum(1))
    losses_B = torch.cat(losses)

    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
    finite = losses_B.isfinite().all() & grad_norm.isfinite()
    sound = guard.is_sound(grad_norm, finite)
    optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()

    tokens_B = (targets != IGNORE).sum(1)
    return StepResult(
        torch.zeros(n_sources, device=device).index_add_(0, sources_B, losses_B),
        torch.zeros(n_sources, dtype=torch.long, device=device).index_add_(0, sources_B, tokens_B),
        grad_norm,
        finite,
        sound,
    )
