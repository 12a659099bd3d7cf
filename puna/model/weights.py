"""A model's weights as one safetensors file, names as in `llama.py`.

Older files hold a block's wq, wk, wv as one tensor `wqkv`, and w1, w3 as one tensor `w13`. They are still
read, as is the optimiser's state beside them.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from puna.config import ModelConfig
from puna.model.llama import Llama
from puna.rundir import WEIGHTS


def save_weights(model: Llama, directory: Path) -> None:
    """Write every parameter, in the precision it has."""
    tensors = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(tensors, directory / WEIGHTS)


def fused_rows(name: str, config: ModelConfig) -> dict[str, int]:
    """The parameters that a tensor of an older file holds, and the rows of each, in order.

    `name` may have a prefix, as in the optimiser's state. For a tensor that is one parameter: empty.
    """
    prefix, _, field = name.rpartition(".")
    q, k = config.n_heads * config.head_dim, config.kv_heads * config.head_dim
    rows = {"wqkv": {"wq": q, "wk": k, "wv": k}, "w13": {"w1": config.ffn_dim, "w3": config.ffn_dim}}
    return {f"{prefix}.{part}": count for part, count in rows.get(field, {}).items()}


def split_fused(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a file by parameter: those of an older file are split, each in memory of its own."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        rows = fused_rows(name, config)
        if not rows or (tensor.ndim and len(tensor) != sum(rows.values())):
            split[name] = tensor
        elif tensor.ndim:
            pieces = tensor.split(list(rows.values()))
            split |= {part: piece.clone() for part, piece in zip(rows, pieces, strict=True)}
        else:  # the optimiser's step count
            split |= {part: tensor.clone() for part in rows}
    return split


@torch.no_grad()
def load_weights(directory: Path, model: Llama) -> None:
    """Fill a model's parameters in place, converting to the precision that they have, and its buffers.

    Raises:
        ValueError: the file is corrupt, or a name or shape differs; the message names the first.
    """
    path = directory / WEIGHTS
    try:
        tensors = split_fused(load_file(path), model.config)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); delete {directory} to use the one before"
        ) from error
    parameters = dict(model.named_parameters())
    for name in sorted(parameters.keys() | tensors.keys()):
        expected = tuple(parameters[name].shape) if name in parameters else "absent"
        found = tuple(tensors[name].shape) if name in tensors else "absent"
        if expected != found:
            raise ValueError(f"{path}: {name} is {found}, for this configuration it must be {expected}")
        parameters[name].copy_(tensors[name])
    model.reset_buffers()
