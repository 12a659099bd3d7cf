"""Checkpoints: whole or absent, the newest few kept, resumed exactly.

    RUN/checkpoints/step-000200/
        weights.safetensors      fp32 master weights, named as in model/llama.py
        optimizer.safetensors    AdamW's two moments, `exp_avg.NAME` and `exp_avg_sq.NAME`
        state.json               step, tokens, seconds, the data's fingerprint; written last

The directory is written under a temporary name, synced, and renamed: a checkpoint that can be seen is
whole, whatever moment the process or the machine died.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from puna.files import atomic_directory, read_json, remove_partials, write_json
from puna.model.llama import Llama
from puna.model.weights import save_weights

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class TrainState:
    """Where a run stands: everything beside tensors that the next step needs."""

    step: int = 0
    """Optimiser steps done."""
    tokens: int = 0
    """Tokens trained on."""
    seconds: float = 0.0
    """Spent in steps so far, over all starts of the run."""
    data: str = ""
    """The mixture's fingerprint."""


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if (path / STATE).is_file())


def latest(run: Path) -> Path | None:
    """The newest checkpoint, or None."""
    found = checkpoints(run)
    return found[-1] if found else None


def save(run: Path, state: TrainState, model: Llama, optimizer: torch.optim.Optimizer, keep: int) -> Path:
    """Write a checkpoint atomically, then delete all but the newest `keep`.

    Raises:
        OSError: when it cannot be written (a full disk); the checkpoints before stay as they were.
    """
    path = run / "checkpoints" / f"step-{state.step:06d}"
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_partials(path.parent)
    moments: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            moments[f"{key}.{name}"] = value
    try:
        with atomic_directory(path) as temporary:
            save_weights(model, temporary)
            save_file(moments, temporary / OPTIMIZER)
            write_json(temporary / STATE, asdict(state))
    except SafetensorError as error:
        # safetensors wraps the system's error; a full disk should read as one.
        raise OSError(f"checkpoint {path} could not be written: {error}") from error
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return path


def read_state(checkpoint: Path) -> TrainState:
    """The state beside a checkpoint's tensors."""
    return TrainState(**read_json(checkpoint / STATE))


def load_optimizer(checkpoint: Path, model: Llama, optimizer: torch.optim.Optimizer) -> None:
    """Restore the moments and step counts of every parameter."""
    try:
        tensors = load_file(checkpoint / OPTIMIZER)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{checkpoint / OPTIMIZER} cannot be read ({error}); delete {checkpoint} to use the one before"
        ) from error
    for name, parameter in model.named_parameters():
        suffix = f".{name}"
        optimizer.state[parameter] = {
            key.removesuffix(suffix): value for key, value in tensors.items() if key.endswith(suffix)
        }
