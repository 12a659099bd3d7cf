"""tokenizer.json: byte-pair encodings in the format of the Hugging Face hub.

In:  a tokenizer.json, with tokenizer_config.json beside it where there is one.
Out: a HubModel: ids of texts by the library of that format, and the bytes that each id stands for.

    SentencePiece-like  "▁Year", "<0x0A>"   spaces are ▁, what has no piece becomes bytes   LLaMA, Mistral
    byte-level          "ĠYear", "Ċ"        each byte is one of 256 printable characters    GPT-2, Llama 3

Special tokens are taken out before encoding: a literal "<s>" is text. Added tokens that are not special
are a part of the text, and stay.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import tokenizers

from puna.added_tokens import LARGEST_ID
from puna.files import read_object
from puna.retry import one_line
from puna.tokens.vocabularies.sentencepiece import SPACE

# The field in which a tokenizer.json of ours keeps what its neighbours said.
SEPARATORS = "puna_separators"
# Where nothing says which tokens separate documents: the names that the models of this family give them.
_BOS = ("<s>", "<|begin_of_text|>", "<|begin▁of▁sentence|>", "<|endoftext|>")
_EOS = ("</s>", "<|end_of_text|>", "<|end▁of▁sentence|>", "<|endoftext|>")


_LONG = 2000  # characters, a millisecond
# The bytes that occur in UTF-8.
_IN_UTF8 = [value for value in range(0xF5) if value not in (0xC0, 0xC1)]


class HubModel:
    """A byte-pair encoding in the form of a tokenizer.json.

    Raises:
        ValueError: saying what is wrong, after the file's name.
    """

    def __init__(self, definition: Mapping[str, Any]) -> None:
        self.source = dict(definition)
        separators = self.source.get(SEPARATORS) or {}
        model = definition.get("model") or {}
        if model.get("type") != "BPE":
            raise ValueError(f"holds a {model.get('type')} model; only byte-pair encoding (BPE) is read")
        self.data = json.dumps(self.source, ensure_ascii=False, separators=(",", ":")).encode()
        self.bos_id, self.eos_id = separators["bos_id"], separators["eos_id"]
        self.is_ours = False

        added = {token["id"]: token for token in definition.get("added_tokens") or []}
        names: dict[int, str] = {id: piece for piece, id in model["vocab"].items()}
        self.vocab_size = max([*names, *added]) + 1
        if self.vocab_size > LARGEST_ID:
            raise ValueError(f"has a token with the id {self.vocab_size - 1}; ids are below {LARGEST_ID}")
        if model.get("dropout"):
            raise ValueError(f"drops merges at random (dropout {model['dropout']}); set it to null")
        is_byte_level = "ByteLevel" in _types(definition.get("pre_tokenizer"))
        self.marks_spaces = not is_byte_level
        spell = _byte_level if is_byte_level else _with_marks
        self.table = [spell(names[id]) if id in names else b"" for id in range(self.vocab_size)]
        for id, token in added.items():
            self.table[id] = b"" if token["special"] else token["content"].encode()
        self.controls = {token["content"]: id for id, token in added.items() if token["special"]}
        # Control tokens that take the white space behind them along.
        self.strips = frozenset(
            token["content"] for token in added.values() if token["special"] and token.get("rstrip")
        )
        self.byte_ids: dict[bytes, int] = {}
        if self.marks_spaces:
            pieces = {bytes([value]): f"<0x{value:02X}>" for value in range(256)}
            self.byte_ids = {
                data: model["vocab"][name] for data, name in pieces.items() if name in model["vocab"]
            }
            if len(self.byte_ids) != 256 or not model.get("byte_fallback"):
                raise ValueError("has no byte fallback, so it cannot spell every text; give another model")
        characters = characters_of_bytes()
        self.unspelled = frozenset(
            value for value in _IN_UTF8 if is_byte_level and characters[value] not in model["vocab"]
        )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(self.definition(), ensure_ascii=False))
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"is not a valid tokenizer.json ({one_line(error)}); fetch it again") from error
        first = self.encode(["a"])[0][0]
        self.adds_space = self.table[first].startswith(b" ")

    def encode(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """The ids of each text, which begins a document; `threads` only make it faster."""
        # Unlike `encode`, this lets other threads run meanwhile; for a short text it is slower.
        if (threads > 1 and len(texts) > 1) or max(map(len, texts), default=0) > _LONG:
            found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            return [item.ids for item in found]
        return [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    def encode_behind(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts that follow control tokens: Metaspace may put a space at the start alone."""
        return [item.ids for item in self._behind.encode_batch_fast(list(texts), add_special_tokens=False)]

    @cached_property
    def _behind(self) -> tokenizers.Tokenizer:
        definition = self.definition()
        pre = json.dumps(definition.get("pre_tokenizer"), ensure_ascii=False)
        if '"prepend_scheme": "first"' not in pre:
            return self._tokenizer
        pre = pre.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
        definition["pre_tokenizer"] = json.loads(pre)
        return tokenizers.Tokenizer.from_str(json.dumps(definition, ensure_ascii=False))

    def definition(self) -> dict[str, Any]:
        """The tokenizer.json without special tokens, and without what is put around a text."""
        added = self.source.get("added_tokens") or []
        kept = [token for token in added if not token["special"]]
        special = {token["content"] for token in added if token["special"]}
        model = dict(self.source["model"])
        # With ignore_merges a word that is in the vocabulary is its id, "<s>" too if it is left there. Added
        # tokens have the ids that the vocabulary gives them, whatever was taken out before them.
        model["vocab"] = {
            piece: id
            for piece, id in model["vocab"].items()
            if piece not in special or piece == model.get("unk_token")
        } | {token["content"]: token["id"] for token in kept}
        without = {"truncation": None, "padding": None, "post_processor": None}
        definition = {**self.source, **without, "added_tokens": kept, "model": model}
        definition.pop(SEPARATORS, None)
        return definition


def read_hub(file: Path) -> HubModel:
    """The model of a tokenizer.json.

    Raises:
        ValueError: saying what is wrong, after the file's name.
    """
    definition = read_object(file)
    if "model" not in definition:
        raise ValueError("is not a tokenizer.json; give one, or a tokenizer.model")
    is_ours = SEPARATORS in definition
    try:
        if not is_ours:
            definition[SEPARATORS] = _separators(definition, file.parent)
        model = HubModel(definition)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"is not a valid tokenizer.json ({one_line(error)}); fetch it again") from error
    model.is_ours = is_ours
    return model


def _separators(definition: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """The ids of the tokens before and after a document; if there is but one, it serves for both."""
    ids = dict(definition["model"].get("vocab") or {})
    ids |= {token["content"]: token["id"] for token in definition.get("added_tokens") or []}
    settings = read_object(folder / "tokenizer_config.json", optional=True)

    def named(key: str, usual: Sequence[str]) -> int | None:
        value = settings.get(key)
        name = value.get("content") if isinstance(value, dict) else value
        names = [name] if name else [] if key in settings else usual
        return next((ids[name] for name in names if name in ids), None)

    bos, eos = named("bos_token", _BOS), named("eos_token", _EOS)
    if eos is None:
        raise ValueError(
            "does not say which token ends a document; "
            "put its tokenizer_config.json beside it, with eos_token"
        )
    return {"bos_id": eos if bos is None else bos, "eos_id": eos}


def _types(part: object) -> set[str]:
    """The types of a normalizer, pre-tokenizer or decoder, and of those that it is a sequence of."""
    if isinstance(part, dict):
        return {str(part.get("type"))}.union(*map(_types, part.values()))
    return set().union(*map(_types, part)) if isinstance(part, list) else set()


@cache
def characters_of_bytes() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary.

    Printable Latin-1 stands for itself, the other 68 bytes are the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {
        value: chr(0x100 + place) for place, value in enumerate(others)
    }


@cache
def _bytes_of_characters() -> dict[str, int]:
    return {character: value for value, character in characters_of_bytes().items()}


def _byte_level(piece: str) -> bytes:
    try:
        return bytes(map(_bytes_of_characters().__getitem__, piece))
    except KeyError:  # an added token's text, which stands for itself
        return piece.encode()


def _with_marks(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE, " ").encode()
