"""The special tokens of a model, as its tokenizer's files say: BOS, EOS and what else ends an answer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.added_tokens import CONFIG, AddedToken, added_tokens
from puna.extras import require
from puna.files import read_object
from puna.model.parts import VOCABULARY

if TYPE_CHECKING:
    from puna.gguf import Entry

MODEL, GENERATION = "tokenizer.model", "generation_config.json"
_KEY = "tokenizer.ggml."


def vocabulary_entries(file: Path | bytes) -> dict[str, "Entry"]:
    """The tokenizer's keys of a vocabulary-only GGUF file."""
    require("gguf")
    from puna.gguf import read_header  # here, because formats other than GGUF do without its package

    header = read_header(Path(VOCABULARY), file) if isinstance(file, bytes) else read_header(file)
    return {key: entry for key, entry in header.entries.items() if key.startswith("tokenizer.")}


def special_ids(tokenizer: dict[str, Path | bytes]) -> dict[str, Any]:
    """`bos_token_id` and `eos_token_id` as the tokenizer's files say; SentencePiece's 1 and 2 otherwise."""
    names = ("bos_token_id", "eos_token_id")
    ids: dict[str, Any] = dict(zip(names, (1, 2), strict=True))
    said: dict[str, Any] = {}
    if VOCABULARY in tokenizer:
        entries = vocabulary_entries(tokenizer[VOCABULARY])
        said = {name: entries[_KEY + name].value for name in names if _KEY + name in entries}
    else:
        said = named_ids(tokenizer) | read_beside(tokenizer, GENERATION)
    return ids | {name: said[name] for name in names if said.get(name) is not None}


def read_beside(tokenizer: dict[str, Path | bytes], name: str) -> dict[str, Any]:
    """What one of a tokenizer's JSON files says; nothing where it is missing."""
    file = tokenizer.get(name)
    if file is None:
        return {}
    return json.loads(file) if isinstance(file, bytes) else read_object(file)


def added_to_pieces(tokenizer: dict[str, Path | bytes]) -> dict[int, AddedToken]:
    """The tokens that files beside tokenizer.model add to it, by id."""
    file = tokenizer.get(MODEL)
    return added_tokens(file.parent) if isinstance(file, Path) else {}


def named_ids(tokenizer: dict[str, Path | bytes]) -> dict[str, int]:
    """`bos_token_id` and `eos_token_id` by the names that tokenizer_config.json gives."""
    file = tokenizer.get(MODEL)
    if not isinstance(file, Path):
        return {}
    ids = {token.content: id for id, token in added_to_pieces(tokenizer).items()}
    found = {}
    for name in ("bos", "eos"):
        value = read_beside(tokenizer, CONFIG).get(f"{name}_token")
        text = value.get("content") if isinstance(value, dict) else value
        if text in ids:
            found[f"{name}_token_id"] = ids[text]
    return found
