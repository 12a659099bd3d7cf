"""Checkpoints: complete or absent, written while training continues, the newest few kept, resumed exactly.

    RUN/checkpoints/step-000200/
        weights.safetensors      fp32 master weights that train, named as in model/llama.py
        optimizer.safetensors    AdamW's state, `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`
        state.json               step, tokens, seconds, the data's fingerprint

The directory is written under a temporary name, synced, and renamed: a visible checkpoint is complete, at
whatever moment the process or the machine crashed. Of several machines each writes a part of the tensors
(`weights-00001-of-00002.safetensors`), so that none needs memory for all; RUN is then on a file system that
they share. PyTorch's distributed checkpoint reads it unchanged (`HuggingFaceStorageReader`), on any mesh.
"""

import os
import shutil
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from puna import rundir
from puna.devices import copy_to_cpu
from puna.files import atomic_directory, disk_full, read_json, remove_partials, write_json
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
        writers = self.ranks.writers
        weights, weights_ready = copy_to_cpu(collect(names, self.ranks, writers))
        moments, moments_ready = copy_to_cpu(collect(moments, self.ranks, writers))
        if self.ranks.rank not in writers:
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
        if self._thread is not None:  # of each writer: two threads must not use the writers' group at once
            self._thread.join()
            self._thread = None
        self.ranks.first(self._report)

    def _report(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, state: TrainState, weights: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        path = rundir.checkpoint(self.run, state.step)
        agreed = False
        try:
            if self.ranks.is_first:
                path.parent.mkdir(parents=True, exist_ok=True)
                remove_partials(path.parent)
                with atomic_directory(path) as temporary:
                    agreed = True
                    self._agree(temporary)
                    write_json(temporary / STATE, asdict(state))
                    self._write_part(temporary, weights, moments)
                for old in checkpoints(self.run)[: -self.keep]:
                    shutil.rmtree(old)
            else:
                self._write_part(self._agree(None), weights, moments)
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.ranks.is_first and not agreed:
                self._agree(None)
            newest = latest(self.run)
            older = f"{newest.name} before it is complete" if newest else "there is none before it"
            number = error.errno if isinstance(error, OSError) else disk_full(error)
            self._error = OSError(number, f"checkpoint {path} could not be written ({error}); {older}")

    def _write_part(self, folder: Path, weights: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        """Write this process's tensors; returns when every writer has, and raises what one of them met."""
        number, count = self.ranks.writers.index(self.ranks.rank), len(self.ranks.writers)
        failure: Exception | None = None
        try:
            for name, tensors in ((WEIGHTS, weights), (OPTIMIZER, moments)):
                file = rundir.part_of(folder / name, number, count)
                save_file(tensors, file)
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        except (OSError, SafetensorError) as error:
            failure = error
        if self.ranks.writing is not None:
            failures: list[Exception | None] = [None] * count
            dist.all_gather_object(failures, failure, group=self.ranks.writing)
            failure = next(filter(None, failures), None)
        if failure is not None:
            raise failure

    def _agree(self, folder: Path | None) -> Path:
        """The first process's folder, in every writer; None of it means that it could not make one."""
        found = [folder]
        if self.ranks.writing is not None:
            dist.broadcast_object_list(found, src=0, group=self.ranks.writing)
        if found[0] is None and not self.ranks.is_first:
            raise OSError("the first process could not begin it")
        return found[0]  # type: ignore[return-value]


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
