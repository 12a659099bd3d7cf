"""What a vocabulary's makers say of its use: in its file, or in files beside it.

GGUF               tokenizer.chat_template, tokenizer.ggml.add_bos_token, …eot_token_id
Hugging Face       tokenizer_config.json, chat_template.jinja, generation_config.json
SentencePiece      nothing of its own; the same files beside it, where there are any
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.files import read_json

_PREFIX = "tokenizer."
_ENDS = ("ggml.eot_token_id", "ggml.eom_token_id")
# The vocabularies of llama.cpp that begin a text with BOS unless told otherwise.
_WITH_BOS = ("llama-bpe", "llama3", "llama-v3")


@dataclass(frozen=True)
class Settings:
    """How texts are begun, ended, and laid out as conversations."""

    adds_bos: bool = True
    """Whether a text begins with BOS."""
    chat_template: str | None = None
    """In Jinja's language, as transformers runs it."""
    end_ids: frozenset[int] = frozenset()
    """Tokens that end an answer, besides EOS."""


def gguf_settings(file: Path) -> Settings:
    """The settings in a GGUF file."""
    from puna.tokens.gguf_vocab import read_fields

    fields = read_fields(file, _PREFIX)
    by_kind = fields.get("ggml.model") == "llama" or fields.get("ggml.pre") in _WITH_BOS
    return Settings(
        bool(fields.get("ggml.add_bos_token", by_kind)),
        fields.get("chat_template"),
        frozenset(fields[key] for key in _ENDS if key in fields),
    )


def settings_beside(file: Path, adds_bos: bool) -> Settings:
    """The settings in the neighbours of a file; `adds_bos` where they do not say.

    Raises:
        ValueError: naming a neighbour that is damaged.
    """
    config = _object(file.parent / "tokenizer_config.json")
    template = file.parent / "chat_template.jinja"
    ends = _object(file.parent / "generation_config.json").get("eos_token_id")
    return Settings(
        bool(config.get("add_bos_token", adds_bos)),
        template.read_text(encoding="utf-8") if template.is_file() else _template(config),
        frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends]),
    )


def puts_bos(definition: Mapping[str, Any], bos: str) -> bool:
    """Whether a tokenizer.json puts BOS before a text."""
    processor = json.dumps(definition.get("post_processor") or {}, ensure_ascii=False)
    return f'"SpecialToken": {{"id": {json.dumps(bos, ensure_ascii=False)}' in processor


def _object(file: Path) -> dict[str, Any]:
    value = read_json(file) if file.is_file() else {}
    if not isinstance(value, dict):
        raise ValueError(f"{file} is not a JSON object; fetch it again")
    return value


def _template(config: Mapping[str, Any]) -> str | None:
    """One template, or the one named "default" of several."""
    found = config.get("chat_template")
    if isinstance(found, list):
        found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
    return found if isinstance(found, str) else None
