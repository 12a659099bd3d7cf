"""puna's own format: a directory that is laid as a run's, so that every verb that takes a run takes it.

config.json           RunConfig; its model section are the sizes
weights.safetensors   names as in llama.py; a run keeps it in checkpoints/step-NNNNNN/
tokenizer.model       SentencePiece; or tokenizer.json, or tokenizer.gguf, where the model came with that
manifest.json         what was converted, written last
"""

import json
from collections.abc import Callable, Iterator
from functools import reduce
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from puna.config import ModelConfig, RunConfig, TrainConfig, from_dict, to_dict
from puna.files import read_object, write_json
from puna.formats.safetensors_stream import SafetensorsReader, SafetensorsWriter
from puna.model.parts import Part, Source, cast, check_shapes, parts, tokenizer_beside
from puna.rundir import CONFIG, WEIGHTS, newest_weights


class NativeSource:
    """A run directory, or one that `convert` wrote."""

    def __init__(self, directory: Path) -> None:
        """Read the configuration and the header of the newest weights.

        Raises:
            ValueError: naming the file and what is wrong with it.
        """
        file = directory / CONFIG
        try:
            self.config = from_dict(RunConfig, read_object(file)).model
            self.config.validate()
        except ValueError as error:
            raise ValueError(str(error) if str(file) in str(error) else f"{file}: {error}") from error
        self.tokenizer = tokenizer_beside(directory)
        path = newest_weights(directory) / WEIGHTS
        self._reader = SafetensorsReader([path])
        wanted = ((name, shape) for name, _, shape in tensors(self.config))
        check_shapes(path, wanted, self._reader.shapes)
        for part in parts(self.config):
            self.dtype(part)

    def dtype(self, part: Part) -> torch.dtype:
        """The precision that `read` gives."""
        return self._reader.dtype(part.tensor)

    def read(self, part: Part) -> Tensor:
        """One part: some rows of one of our tensors."""
        return self._reader.rows(part.tensor, part.start, part.shape)


def tensors(
    config: ModelConfig,
) -> Iterator[tuple[str, list[Part], tuple[int, ...]]]:
    """Our tensors in order: name, the parts that are its rows, shape."""
    for name, group in groupby(parts(config), key=lambda part: part.tensor):
        members = list(group)
        yield name, members, (sum(part.shape[0] for part in members), *members[0].shape[1:])


def write_native(
    source: Source, directory: Path, dtype: torch.dtype | None, advance: Callable[[Part], None]
) -> None:
    """Write config.json and the weights. Parts of a tensor are its rows in order, so they come one by one."""
    layout = {}
    for name, members, shape in tensors(source.config):
        # Quantised files mix precisions even within what we fuse: the widest holds them all.
        widest = reduce(torch.promote_types, (source.dtype(part) for part in members))
        layout[name] = dtype or widest, shape
    with SafetensorsWriter(directory / WEIGHTS, layout) as writer:
        for part in parts(source.config):
            writer.append(part.tensor, cast(source.read(part), layout[part.tensor][0], part.tensor))
            advance(part)
    precision: Literal["bf16", "fp32"] = "fp32" if layout["embedding"][0] == torch.float32 else "bf16"
    train = TrainConfig(precision=precision)
    write_json(directory / CONFIG, to_dict(RunConfig(recipe="converted", model=source.config, train=train)))


def is_native(directory: Path) -> bool:
    """Whether a directory's config.json is a run's. False, too, where it cannot be read."""
    try:
        values = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and isinstance(values.get("model"), dict)
