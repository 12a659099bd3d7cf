"""Checkpoints: complete or absent, written while training continues, the newest few kept, resumed exactly.

    RUN/checkpoints/step-000200/
        weights.safetensors      fp32 master weights that train, named as in model/llama.py
        optimizer.safetensors    AdamW's state, `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`
        state.json               step, tokens, seconds, the data's fingerprint

The directory is written under a temporary name, synced, and renamed: a visible checkpoint is complete, at
whatever moment the process or the machine crashed. PyTorch's distributed checkpoint reads it unchanged
(`HuggingFaceStorageReader`), on any mesh.
"""

import shutil
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from puna import rundir
from puna.devices import copy_to_cpu
from puna.files import atomic_directory, read_json, remove_partials, write_json
from puna.model.llama import Llama
from puna.model.weights import load_weights, open_tensors, trained
from puna.rundir import OPTIMIZER, STATE, WEIGHTS
from puna.train.ranks import ALONE, Ranks
from puna.train.shares import collect, fill, own, region


@dataclass(frozen=True)
class TrainState:
    """A run's progress: everything but tensors that the next step needs."""

    step: int = 0
    """Number of optimiser steps done."""
    tokens: int = 0
    """Number of target tokens trained on, over all ranks."""
    seconds: float = 0.0
    """Seconds spent in steps, over all starts of the run."""
    data: str = ""
    """The mixture's fingerprint."""
    norms: tuple[float, ...] = ()
    """The last gradient norms, oldest first, when outliers are skipped; else empty."""

    def after(self, tokens: int) -> "TrainState":
        """The state after one more step on a batch of `tokens`."""
        return replace(self, step=self.step + 1, tokens=self.tokens + tokens)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, by their step, oldest first."""
    return [path for path in rundir.checkpoints(run) if (path / STATE).is_file()]


def latest(run: Path) -> Path | None:
    """The newest checkpoint, or None."""
    found = checkpoints(run)
    return found[-1] if found else None


class Saver:
    """Writes checkpoints of a run in a background thread; training waits only for the copy in memory."""

    def __init__(self, run: Path, keep: int, ranks: Ranks = ALONE) -> None:
        self.run, self.keep, self.ranks = run, keep, ranks
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, state: TrainState, model: Llama, optimizer: torch.optim.Optimizer) -> None:
        """Copy the state and begin to write it; waits until the previous checkpoint is written.

        Raises:
            OSError: the previous checkpoint could not be written (a full disk); older ones stay complete.
        """
        self.wait()
        names = trained(model)
        moments = {
            f"{key}.{name}": value
            for name, parameter in names.items()
            for key, value in optimizer.state[parameter].items()
        }
        weights, weights_ready = copy_to_cpu(collect(names, self.ranks))
        moments, moments_ready = copy_to_cpu(collect(moments, self.ranks))
        if not self.ranks.is_first:
            return

        def write() -> None:
            weights_ready()
            moments_ready()
            self._write(state, weights, moments)

        self._thread = threading.Thread(target=write)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk. Every process calls it, and gets the first one's error.

        Raises:
            OSError: it could not be written.
        """
        self.ranks.first(self._join)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, state: TrainState, weights: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        path = rundir.checkpoint(self.run, state.step)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_partials(path.parent)
            with atomic_directory(path) as temporary:
                save_file(weights, temporary / WEIGHTS)
                save_file(moments, temporary / OPTIMIZER)
                write_json(temporary / STATE, asdict(state))
            for old in checkpoints(self.run)[: -self.keep]:
                shutil.rmtree(old)
        except (OSError, SafetensorError) as error:
            newest = latest(self.run)
            older = f"{newest.name} before it is complete" if newest else "there is none before it"
            number = error.errno if isinstance(error, OSError) else None
            self._error = OSError(number, f"checkpoint {path} could not be written ({error}); {older}")


def read_state(checkpoint: Path) -> TrainState:
    """The state beside a checkpoint's tensors."""
    values = read_json(checkpoint / STATE)
    return TrainState(**{**values, "norms": tuple(values["norms"])})


def load(checkpoint: Path, model: Llama, optimizer: torch.optim.Optimizer, ranks: Ranks = ALONE) -> None:
    """Restore a model and its optimiser, or the own share of them; the mesh may differ from the writer's.

    Raises:
        ValueError: a file is corrupt, or does not belong to the model's configuration.
    """
    if ranks.mesh is None:
        load_weights(checkpoint, model)
    else:
        with open_tensors(checkpoint / WEIGHTS, model.config) as read:
            fill(model, ranks, lambda name, shape, region: read(name, region), frozen=False)
    with open_tensors(checkpoint / OPTIMIZER, model.config) as read, torch.no_grad():
        for name, parameter in trained(model).items():
            where = region(name, parameter, model.shapes[name], ranks.mesh)
            moments = {key: torch.empty_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            for key, moment in moments.items():
                own(moment).copy_(read(f"{key}.{name}", where))
            step = read(f"step.{name}", ()).to(parameter.device)
            optimizer.state[parameter] = {"step": step, **moments}
