"""puna's own format: a directory that is laid as a run's, so that every verb that takes a run takes it.

config.json           RunConfig; its model section are the sizes
weights.safetensors   names as in llama.py; a run keeps it in checkpoints/step-NNNNNN/
tokenizer.model       SentencePiece; or tokenizer.json, or tokenizer.gguf, where the model came with that
manifest.json         what was converted, written last
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from puna.config import ComputeConfig, RunConfig, run_config, to_dict
from puna.files import read_object, write_json
from puna.formats.fields import named
from puna.formats.safetensors_stream import SafetensorsReader, SafetensorsWriter
from puna.model.parts import Part, Source, cast, check_shapes, parts, tokenizer_beside
from puna.model.weights import fused_rows
from puna.rundir import CONFIG, WEIGHTS, newest_weights, parts_of


class NativeSource:
    """A run directory, or one that `convert` wrote."""

    def __init__(self, directory: Path) -> None:
        """Read the configuration and the header of the newest weights.

        Raises:
            ValueError: naming the file and what is wrong with it.
        """
        file = directory / CONFIG
        with named(file):
            self.config = run_config(read_object(file)).model
            self.config.validate()
        self.tokenizer = tokenizer_beside(directory)
        path = newest_weights(directory) / WEIGHTS
        self._reader = SafetensorsReader(parts_of(path))
        for name, shape in list(self._reader.shapes.items()):
            rows = fused_rows(name, self.config)
            if rows and shape[:1] == (sum(rows.values()),):
                self._reader.split(name, rows)
        wanted = ((part.parameter, part.shape) for part in parts(self.config))
        check_shapes(path, wanted, self._reader.shapes)
        for part in parts(self.config):
            self.dtype(part)

    def dtype(self, part: Part) -> torch.dtype:
        """The precision that `read` gives."""
        return self._reader.dtype(part.parameter)

    def read(self, part: Part) -> Tensor:
        """One parameter."""
        return self._reader.rows(part.parameter, 0, part.shape)


def write_native(
    source: Source, directory: Path, dtype: torch.dtype | None, advance: Callable[[Part], None]
) -> None:
    """Write config.json and the weights."""
    layout = {part.parameter: (dtype or source.dtype(part), part.shape) for part in parts(source.config)}
    with SafetensorsWriter(directory / WEIGHTS, layout) as writer:
        for part in parts(source.config):
            name = part.parameter
            writer.append(name, cast(source.read(part), layout[name][0], name))
            advance(part)
    precision: Literal["bf16", "fp32"] = "fp32" if layout["embedding"][0] == torch.float32 else "bf16"
    config = RunConfig(recipe="converted", model=source.config, compute=ComputeConfig(precision=precision))
    write_json(directory / CONFIG, to_dict(config))


def is_native(directory: Path) -> bool:
    """Whether a directory's config.json is a run's. False, too, where it cannot be read."""
    try:
        values = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and isinstance(values.get("model"), dict)
