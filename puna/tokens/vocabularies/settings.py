"""What a vocabulary's makers say of its use: in its file, or in files beside it.

GGUF               tokenizer.chat_template, tokenizer.ggml.add_bos_token, …eot_token_id
Hugging Face       tokenizer_config.json, chat_template.jinja, generation_config.json
SentencePiece      nothing of its own; the same files beside it, where there are any
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.added_tokens import GENERATION, TEMPLATE, end_ids, named_template
from puna.files import read_object

_SPECIAL = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True)
class Settings:
    """How texts are begun, ended, and laid out as conversations."""

    adds_bos: bool = True
    """Whether a text begins with BOS."""
    chat_template: str | None = None
    """In Jinja's language, as transformers runs it."""
    end_ids: frozenset[int] = frozenset()
    """Tokens that end an answer, besides EOS."""
    special: dict[str, str] | None = None
    """How the special tokens are written, by the names that chat templates know; None: nothing says so."""


def settings_beside(file: Path, adds_bos: bool) -> Settings:
    """The settings in the neighbours of a file; `adds_bos` where they do not say.

    Raises:
        ValueError: naming a neighbour that is damaged.
    """
    config = read_object(file.parent / "tokenizer_config.json", optional=True)
    template = file.parent / TEMPLATE
    generation = file.parent / GENERATION
    return Settings(
        bool(config.get("add_bos_token", adds_bos)),
        template.read_text(encoding="utf-8") if template.is_file() else named_template(config),
        frozenset(end_ids(read_object(generation, optional=True), generation)),
        _special(read_object(file.parent / "special_tokens_map.json", optional=True) | config),
    )


def _special(config: Mapping[str, Any]) -> dict[str, str] | None:
    """The special tokens that are named, as transformers hands them to a template; null is none."""
    found = {}
    for name in _SPECIAL:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found if any(name in config for name in ("bos_token", "eos_token")) else None


def puts_bos(definition: Mapping[str, Any], bos: str) -> bool:
    """Whether a tokenizer.json puts BOS before a text."""
    processor = json.dumps(definition.get("post_processor") or {}, ensure_ascii=False)
    return f'"SpecialToken": {{"id": {json.dumps(bos, ensure_ascii=False)}' in processor


def puts_space_behind_control(folder: Path) -> bool:
    """Whether a text behind a control token gets a leading space, as the one at the start does.

    transformers does so where nothing is said or `legacy` is true, and llama.cpp always; otherwise it puts
    one at the start alone.
    """
    pre = json.dumps(read_object(folder / "tokenizer.json", optional=True).get("pre_tokenizer"))
    if '"prepend_scheme": "first"' in pre:
        return False
    config = read_object(folder / "tokenizer_config.json", optional=True)
    is_llama = str(config.get("tokenizer_class", "")).startswith("LlamaTokenizer")
    if (folder / "tokenizer.json").is_file() or not is_llama:
        return True
    return config.get("legacy") is True


def is_tiktoken(file: Path) -> bool:
    """Whether a tokenizer.model is tiktoken's: lines of a token in base64 and its rank."""
    with file.open("rb") as stream:
        return re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\r?\n", stream.readline(200)) is not None
