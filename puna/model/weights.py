"""A model's weights as one safetensors file, names as in `llama.py`."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from puna.model.llama import Llama
from puna.rundir import WEIGHTS


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
