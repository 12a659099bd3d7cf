"""Tokens that were added to a vocabulary after it was trained, as the files beside it say.

In:  a directory in Hugging Face's layout.
Out: id -> AddedToken, agreed upon by all files.

    tokenizer.json         added_tokens          [{"id": 32000, "content": "<|im_start|>", "special": true}, …
    tokenizer_config.json  added_tokens_decoder  {"32000": {"content": "<|im_start|>", "special": true}, …
    added_tokens.json      {"<|im_start|>": 32000, …    special are those that special_tokens_map.json and
                                                        tokenizer_config.json name
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.files import read_object

HUB, CONFIG = "tokenizer.json", "tokenizer_config.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
ADDED, SPECIAL_MAP = "added_tokens.json", "special_tokens_map.json"


LARGEST_ID = 1 << 22
"""Larger ids than any vocabulary has are refused, because all ids below an added token's take memory."""


@dataclass(frozen=True)
class AddedToken:
    """One token, and the file that says so."""

    content: str
    special: bool
    """Whether it is a control token, which adds nothing to a text."""
    file: Path


def added_tokens(folder: Path) -> dict[int, AddedToken]:
    """The added tokens of a directory, by id.

    Raises:
        ValueError: naming a file that is malformed, or two that disagree.
    """
    found: dict[int, AddedToken] = {}
    ids: dict[str, int] = {}
    for id, token in _said(folder):
        if not 0 <= id <= LARGEST_ID:
            raise ValueError(f"{token.file} gives {token.content!r} the id {id}; expected 0 to {LARGEST_ID}")
        other = found.setdefault(id, token)
        if other.content != token.content:
            raise ValueError(
                f"{other.file} says that token {id} is {other.content!r}, and {token.file} that it is "
                f"{token.content!r}; delete the file that is wrong"
            )
        if ids.setdefault(token.content, id) != id:
            raise ValueError(
                f"{found[ids[token.content]].file} gives {token.content!r} the id {ids[token.content]}, and "
                f"{token.file} the id {id}; delete the file that is wrong"
            )
    return dict(sorted(found.items()))


def _said(folder: Path) -> Iterator[tuple[int, AddedToken]]:
    file = folder / HUB
    for entry in read_object(file, optional=True).get("added_tokens") or []:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
            raise ValueError(f"{file} holds an added token without an id: {entry!r:.80}; fetch it again")
        yield entry["id"], _token(file, entry)
    file = folder / CONFIG
    for id, entry in (read_object(file, optional=True).get("added_tokens_decoder") or {}).items():
        if not str(id).isdecimal() or not isinstance(entry, dict):
            raise ValueError(f"{file} holds an added token without an id: {id!r:.80}; fetch it again")
        yield int(id), _token(file, entry)
    file = folder / ADDED
    special = _special(read_object(folder / SPECIAL_MAP, optional=True))
    special |= _special(read_object(folder / CONFIG, optional=True))
    for content, id in read_object(file, optional=True).items():
        if not isinstance(id, int):
            raise ValueError(f"{file} gives {content!r} the id {id!r}; it must be a number")
        yield id, AddedToken(content, content in special, file)


def _token(file: Path, entry: Mapping[str, Any]) -> AddedToken:
    content = entry.get("content")
    if not isinstance(content, str) or not content:
        raise ValueError(f"{file} holds an added token without content: {entry!r:.80}; fetch it again")
    return AddedToken(content, bool(entry.get("special")), file)


def _special(values: Mapping[str, Any]) -> set[str]:
    """The texts of the tokens that a file names as special."""
    found = []
    for name, value in values.items():
        if name in ("additional_special_tokens", "extra_special_tokens"):
            found += list(value.values() if isinstance(value, dict) else value or [])
        elif name.endswith("_token"):
            found.append(value)
    texts = [value.get("content") if isinstance(value, dict) else value for value in found]
    return {text for text in texts if isinstance(text, str)}


def end_ids(values: Mapping[str, Any], file: Path) -> list[int]:
    """`eos_token_id` of a configuration, which is one id, several, or none.

    Raises:
        ValueError: naming the file, when it is anything else.
    """
    value = values.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise ValueError(f"{file}: eos_token_id is {value!r}; it must be a token id, or a list of them")
    return [id for id in ids if id >= 0]  # below 0: none


def named_template(config: Mapping[str, Any]) -> str | None:
    """The chat template of a tokenizer_config.json: the only one, or the one named "default" of several."""
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None
