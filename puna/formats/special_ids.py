"""The special tokens of a model, as its tokenizer's files say: BOS, EOS and what else ends an answer."""

import json
from pathlib import Path
from typing import Any

from puna.added_tokens import CONFIG, GENERATION, added_tokens
from puna.files import read_object
from puna.tokens.tokenizer import MODEL, Tokenizer


def special_ids(files: dict[str, Path | bytes], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """`bos_token_id` and `eos_token_id` as the tokenizer's files say; SentencePiece's 1 and 2 without one."""
    ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
    if tokenizer:
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    said = named_ids(files) | read_beside(files, GENERATION)
    return ids | {name: said[name] for name in ids if said.get(name) is not None}


def read_beside(files: dict[str, Path | bytes], name: str) -> dict[str, Any]:
    """What one of a tokenizer's JSON files says; nothing where it is missing."""
    file = files.get(name)
    if file is None:
        return {}
    return json.loads(file) if isinstance(file, bytes) else read_object(file)


def named_ids(files: dict[str, Path | bytes]) -> dict[str, int]:
    """`bos_token_id` and `eos_token_id` by the names that tokenizer_config.json gives to added tokens."""
    file = files.get(MODEL)
    added = added_tokens(file.parent) if isinstance(file, Path) else {}
    ids = {token.content: id for id, token in added.items()}
    found = {}
    for name in ("bos", "eos"):
        value = read_beside(files, CONFIG).get(f"{name}_token") if ids else None
        text = value.get("content") if isinstance(value, dict) else value
        if text in ids:
            found[f"{name}_token_id"] = ids[text]
    return found
