"""A model's weights as one safetensors file, names as in `llama.py`."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from puna.model.llama import Llama

WEIGHTS = "weights.safetensors"


def newest_weights(run: Path) -> Path:
    """The directory with a run's newest weights: a checkpoint, or `run` itself when it was converted.

    Raises:
        ValueError: when there are none.
    """
    if (run / WEIGHTS).is_file():
        return run
    found = [path for path in checkpoint_directories(run) if (path / WEIGHTS).is_file()]
    if not found:
        raise ValueError(f"{run} holds no checkpoint; train it first: puna train --out {run}")
    return found[-1]


def checkpoint_directories(run: Path) -> list[Path]:
    """A run's `checkpoints/step-N`, ordered by the number N: as text, step-1000000 precedes step-999900."""
    steps = {
        int(number): path
        for path in (run / "checkpoints").glob("step-*")
        if (number := path.name.removeprefix("step-")).isdecimal()
    }
    return [steps[step] for step in sorted(steps)]


def save_weights(model: Llama, directory: Path) -> None:
    """Write every parameter, in the precision it has."""
    tensors = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(tensors, directory / WEIGHTS)


@torch.no_grad()
def load_weights(directory: Path, model: Llama) -> None:
    """Fill a model's parameters in place, converting to the precision that they have.

    Raises:
        ValueError: when the file is damaged, or a name or shape differs; it names the first.
    """
    path = directory / WEIGHTS
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); delete {directory} to use the one before"
        ) from error
    parameters = dict(model.named_parameters())
    for name in sorted(parameters.keys() | tensors.keys()):
        wanted = tuple(parameters[name].shape) if name in parameters else "absent"
        held = tuple(tensors[name].shape) if name in tensors else "absent"
        if wanted != held:
            raise ValueError(f"{path}: {name} is {held}, for this configuration it must be {wanted}")
        parameters[name].copy_(tensors[name])
