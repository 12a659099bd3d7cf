"""The files that a model consists of: for digests, and for the record of what a finetuned run began from."""

import re
from glob import escape
from pathlib import Path

from puna.files import MANIFEST
from puna.formats.adapters import base_of
from puna.formats.convert import format_of
from puna.manifest import Input, load_manifest
from puna.model.parts import TOKENIZER_FILES
from puna.rundir import WEIGHTS, newest_weights, parts_of

_SUFFIXES = (".safetensors", ".pth")
_NAMES = ("config.json", "params.json", "adapter_config.json", *TOKENIZER_FILES)


def model_files(path: Path) -> list[Path]:
    """The files that a model's numbers and token ids come from; an adapter's, then those of its base.

    Raises:
        ValueError: no model is there, or its base model or its weights are missing.
    """
    kind = format_of(path)
    if kind == "gguf":
        together = re.sub(r"-\d{5}(-of-\d{5}\.gguf)$", r"-*\1", escape(path.name))
        return sorted(path.parent.glob(together))
    files = {file for file in path.iterdir() if file.suffix in _SUFFIXES or file.name in _NAMES}
    if kind == "puna":
        files.update(parts_of(newest_weights(path) / WEIGHTS))
    base = base_of(path)
    return sorted(files) + (model_files(base) if base else [])


def model_inputs(path: Path) -> tuple[Input, ...]:
    """A model as an input of what is made from it: its manifest's fingerprint, or its files' digests."""
    if format_of(path) == "puna" and (path / MANIFEST).is_file():
        manifest = load_manifest(path / MANIFEST)
        return (Input(str(path), stage=manifest.stage, fingerprint=manifest.fingerprint),)
    return tuple(Input.file(file) for file in model_files(path))
