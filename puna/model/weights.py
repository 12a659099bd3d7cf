"""A model's weights as safetensors, in one file or several; names as in `llama.py`.

Older files hold a block's wq, wk, wv as one tensor `wqkv`, and w1, w3 as one tensor `w13`. They are still
read, as is the optimiser's state beside them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from puna.config import ModelConfig
from puna.model.llama import Llama
from puna.rundir import WEIGHTS, parts_of


def trained(model: Llama) -> dict[str, nn.Parameter]:
    """The parameters that train, by name; the others are frozen."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


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
    """Fill the parameters that train in place, converting to the precision that they have, and its buffers.

    Raises:
        ValueError: the file is corrupt, or a name or shape differs; the message names the first.
    """
    path = directory / WEIGHTS
    try:
        files = [load_file(part) for part in parts_of(path) or [path]]
        tensors = split_fused({name: file[name] for file in files for name in file}, model.config)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); delete {directory} to use the one before"
        ) from error
    parameters = trained(model)
    for name in sorted(parameters.keys() | tensors.keys()):
        expected = tuple(parameters[name].shape) if name in parameters else "absent"
        found = tuple(tensors[name].shape) if name in tensors else "absent"
        if expected != found:
            raise ValueError(f"{path}: {name} is {found}, for this configuration it must be {expected}")
        parameters[name].copy_(tensors[name])
    model.reset_buffers()


@contextmanager
def open_tensors(path: Path, config: ModelConfig) -> Iterator[Callable[[str, tuple[slice, ...]], Tensor]]:
    """A function that reads some slices of a tensor of a file, or of its parts, without reading the rest.

    Raises:
        ValueError: the file is corrupt, or lacks a tensor.
    """
    try:
        with ExitStack() as stack:
            files = [
                stack.enter_context(safe_open(part, framework="pt")) for part in parts_of(path) or [path]
            ]
            names = {name: file for file in files for name in file.keys()}  # noqa: SIM118
            # Older files: which fused tensor holds a parameter, and from which row on.
            fused: dict[str, tuple[str, int]] = {}
            for name in names:
                first = 0
                for part, count in fused_rows(name, config).items():
                    fused[part], first = (name, first), first + count

            def read(name: str, region: tuple[slice, ...]) -> Tensor:
                held, first = (name, 0) if name in names else fused[name]
                if not region:
                    return (
                        names[held].get_tensor(held).clone()
                    )  # parameters of one fused tensor share its bytes
                if any(part.start == part.stop for part in region):
                    return torch.empty([part.stop - part.start for part in region])
                rows = slice(region[0].start + first, region[0].stop + first)
                return names[held].get_slice(held)[(rows, *region[1:])]

            yield read
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); delete {path.parent} to use the one before"
        ) from error
