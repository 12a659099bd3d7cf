"""The tokenizer of a model in any format, from the files that belong to it."""

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from puna.tokens.tokenizer import Tokenizer


def tokenizer_of(model: Path, files: Mapping[str, Path | bytes]) -> Tokenizer:
    """The tokenizer of a model: `files` are its files by name, as their paths or their bytes.

    Raises:
        ValueError: when there is none, or it is not one that puna reads.
    """
    if not files:
        raise ValueError(f"{model} holds no tokenizer; put the model's own tokenizer beside its weights")
    if model.is_file():  # GGUF; of a split model, the first file holds the vocabulary
        return Tokenizer(model.with_name(re.sub(r"-\d{5}(-of-\d{5}\.gguf)$", r"-00001\1", model.name)))
    folders = {file.parent if isinstance(file, Path) else None for file in files.values()}
    if len(folders) == 1 and (folder := folders.pop()):
        return Tokenizer(folder)
    with TemporaryDirectory() as together:  # in two folders, or completed from other files in memory
        for name, file in files.items():
            (Path(together) / name).write_bytes(file if isinstance(file, bytes) else file.read_bytes())
        tokenizer = Tokenizer(together)
        _ = tokenizer.settings  # read while the files exist
    return tokenizer
