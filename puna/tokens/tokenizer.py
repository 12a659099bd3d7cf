"""Text <-> token ids, whatever format the vocabulary comes in.

In:  a vocabulary: tokenizer.model (SentencePiece: ours, LLaMA's, Mistral's), tokenizer.json (Hugging Face),
     or a GGUF file; told apart by what they hold, not by their names.
Out: ids of texts, texts of ids.

    "Year 1066\\n" ──encode──> ▁Year ▁ 1 0 6 6 <0x0A>
                   <──decode──

The library of the format is the reference. A faster encoder replaces it when there is enough text to be worth
its start, and only if it gives the same ids (puna.tokens.fast).
"""

import codecs
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from puna.extras import require
from puna.files import write_file
from puna.tokens.fast import FastEncoder, load_fast
from puna.tokens.training import MODEL
from puna.tokens.vocabularies.sentencepiece import SPACE, UNKNOWN, PieceModel, extended
from puna.tokens.vocabularies.settings import (
    Settings,
    is_tiktoken,
    puts_bos,
    puts_space_behind_control,
    settings_beside,
)

if TYPE_CHECKING:
    from puna.tokens.vocabularies.tokenizer_json import HubModel

__all__ = ["GGUF", "HUB", "MODEL", "StreamDecoder", "Tokenizer"]

HUB = "tokenizer.json"
GGUF = "tokenizer.gguf"  # the vocabulary of a GGUF file, as `puna convert` writes it
# Characters after which the fast encoder, which takes half a second to build, pays off.
FAST_FROM = 4_000_000


class Tokenizer:
    """A vocabulary: text to ids and back, exactly.

    `path` is a file, or a directory that holds `tokenizer.model` or `tokenizer.json`. Text is only ever text:
    a literal "<s>" is encoded as its characters; only `bos` and `eos` give control tokens. `fast` False
    always uses the reference, True builds the fast encoder at once.

    Raises:
        ValueError: naming the path, when there is no such vocabulary or it cannot spell every text.
    """

    def __init__(self, path: Path | str, fast: bool | None = None) -> None:
        self.path = _find(Path(path))
        try:
            self._model, self._own_settings = _read(self.path)
        except ValueError as error:
            if str(error).startswith(str(self.path)):
                raise
            raise ValueError(f"{self.path} {error}") from error
        self.fingerprint = hashlib.sha256(self._model.data).hexdigest()
        self.vocab_size: int = self._model.vocab_size
        self.bos_id: int = self._model.bos_id
        self.eos_id: int = self._model.eos_id
        self.controls: dict[str, int] = self._model.controls
        """The control tokens: how files write them -> id. In a text they are never looked for."""
        self._control_texts = {id: text for text, id in self.controls.items()}
        self.strips: frozenset[str] = self._model.strips
        """The control tokens that take the white space behind them along."""
        self.adds_space: bool = self._model.adds_space
        """Whether encoding puts a space before the first word, which is not a part of the text."""
        self._bytes = self._model.table
        self._fast: FastEncoder | None = None
        self._waits = -1 if fast is False else FAST_FROM
        if fast:
            self._start_fast()

    @property
    def is_fast(self) -> bool:
        """Whether the fast encoder has replaced the reference."""
        return self._fast is not None

    @cached_property
    def settings(self) -> Settings:
        """BOS, end tokens and chat template, as the vocabulary's files give them."""
        model, own = self._model, self._own_settings
        if own is not None:
            if self.path.name != GGUF:
                return own
            # A vocabulary alone, apart from its model: files beside it say what a finetuned run changed.
            beside = settings_beside(self.path, own.adds_bos)
            template = beside.chat_template or own.chat_template
            return replace(own, chat_template=template, end_ids=own.end_ids | beside.end_ids)
        if isinstance(model, PieceModel):
            return settings_beside(self.path, adds_bos=True)
        # A vocabulary that we wrote is one that we trained with, and there every document began with BOS.
        # So does Meta's own code with Llama 3's tiktoken file, which says nothing of it.
        is_meta = is_tiktoken(self.path)
        adds_bos = model.is_ours or is_meta or puts_bos(model.source, self.control_text(self.bos_id))
        return settings_beside(self.path, adds_bos)

    @property
    def adds_bos(self) -> bool:
        """Whether BOS precedes the text of a prompt."""
        return self.settings.adds_bos

    def definition(self) -> dict[str, Any]:
        """The vocabulary as a tokenizer.json in which control tokens are not looked for."""
        return self._model.definition()

    def control_text(self, id: int) -> str:
        """How files write a control token, as "<s>"; of other tokens what they add to a text."""
        return self._control_texts.get(id) or self.piece(id).decode("utf-8", "replace")

    @property
    def special_texts(self) -> dict[str, str]:
        """How special tokens are written, by the names that chat templates know: bos_token, eos_token …"""
        if self.settings.special is not None:
            return self.settings.special
        return {"bos_token": self.control_text(self.bos_id), "eos_token": self.control_text(self.eos_id)}

    @cached_property
    def longest_piece(self) -> int:
        """The bytes of the longest piece: a text of n tokens has at most n times as many."""
        return max(map(len, self._bytes))

    def piece(self, id: int) -> bytes:
        """What a token adds to a text, in bytes: a part of a character perhaps; of a control token none."""
        return self._bytes[id]

    def save(self, path: Path) -> None:
        """Write the vocabulary, whole and without weights, as one file that gives the same fingerprint."""
        write_file(path, self._model.data)

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """The ids of a text, after BOS and before EOS where asked for.

        Raises:
            ValueError: text with half a surrogate pair, which is not Unicode text; a byte that a foreign
            vocabulary does not have.
        """
        ids: list[int] = self.encode_arrays([text])[0].tolist()
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def encode_behind(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts that follow a control token, where they are not the beginning.

        Raises:
            ValueError: as `encode`, at the first text that cannot be encoded.
        """
        marked = self._checked(texts)
        ids = self._model.encode_behind(texts)
        for place in marked:
            ids[place] = self._encode_marked(texts[place], self._model.encode_behind)
        return ids

    def encode_arrays(self, texts: Sequence[str], threads: int = 1) -> list[NDArray[np.uint32]]:
        """The ids of each text, without BOS or EOS, as arrays; `threads` only make it faster.

        Raises:
            ValueError: as `encode`, at the first text that cannot be encoded.
        """
        marked = self._checked(texts)
        ids = self._encode(texts, threads)
        for place in marked:
            ids[place] = np.array(self._encode_marked(texts[place], self._model.encode), np.uint32)
        return ids

    def _checked(self, texts: Sequence[str]) -> list[int]:
        """Where texts hold a literal U+2581, which SentencePiece takes for a space."""
        for text in texts:
            self._require_spelled(text)
        return (
            [place for place, text in enumerate(texts) if SPACE in text] if self._model.marks_spaces else []
        )

    def _require_spelled(self, text: str) -> None:
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text is not valid Unicode (half a surrogate pair): {text[:40]!r}") from error
        # Vocabularies that lack some bytes (SmolLM2's, StarCoder's) would drop them silently.
        if self._model.unspelled and (missing := self._model.unspelled.intersection(data)):
            raise ValueError(
                f"{self.path} has no piece for the byte 0x{min(missing):02X} of {text[:40]!r}; "
                f"take it out of the text, or choose another tokenizer"
            )

    def _encode(self, texts: Sequence[str], threads: int) -> list[NDArray[np.uint32]]:
        if self._waits > 0:
            self._waits -= sum(map(len, texts))
            if self._waits <= 0:
                self._start_fast()
        if self._fast:
            return self._fast.encode(texts, threads)
        return [np.array(ids, np.uint32) for ids in self._model.encode(texts, threads)]

    def stay_with_reference(self) -> None:
        """Never build the fast encoder: that takes half a second, during which no other thread runs."""
        self._waits = -1

    def _start_fast(self) -> None:
        self._waits = -1
        self._fast = load_fast(self._model)

    def _encode_marked(self, text: str, encode: Callable[[Sequence[str]], list[list[int]]]) -> list[int]:
        """Encode a text with a literal U+2581: as a stand-in that has no piece, then with its own bytes."""
        stand_in = next(
            character
            for character in map(chr, range(0x10FFFF, 0xE000, -1))
            if character not in text and character.encode() not in self._pieces
        )
        (ids,) = encode([text.replace(SPACE, stand_in)])
        sought = self._spelled(stand_in)
        spelled = self._spelled(SPACE)
        result: list[int] = []
        place = 0
        while place < len(ids):
            found = ids[place : place + len(sought)] == sought
            result += spelled if found else ids[place : place + 1]
            place += len(sought) if found else 1
        return result

    @cached_property
    def _pieces(self) -> frozenset[bytes]:
        return frozenset(self._bytes)

    def _spelled(self, character: str) -> list[int]:
        return [self._model.byte_ids[bytes([value])] for value in character.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; control tokens add nothing, bytes that are no UTF-8 become U+FFFD."""
        stream = self.stream_decoder()
        return "".join([stream.push(id) for id in ids]) + stream.flush()

    def stream_decoder(self, after: Sequence[int] = ()) -> "StreamDecoder":
        """A decoder fed one id at a time; with the ids of a prompt, its text continues the prompt's.

        Raises:
            ValueError: an id of the prompt outside the vocabulary.
        """
        stream = StreamDecoder(self._bytes, self.adds_space)
        if after and not 0 <= min(after) <= max(after) < len(self._bytes):
            raise ValueError(f"token id {max(after)} is not in a vocabulary of {len(self._bytes)} pieces")
        # A character has at most four bytes, so only the last few tokens can have begun one.
        begin, count = len(after), 0
        while begin and count < 4:
            begin -= 1
            count += len(self._bytes[after[begin]])
        if any(self._bytes[id] for id in after[:begin]):
            stream.push_behind_text()
        for id in after[begin:]:
            stream.push(id)
        return stream


class StreamDecoder:
    """Ids in, text out as soon as its characters are whole: the pieces joined equal `decode` of all ids.

    `adds_space`: encoding put a space before the first word, which is not a part of the text.
    """

    def __init__(self, table: Sequence[bytes], adds_space: bool) -> None:
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = adds_space

    def push(self, id: int) -> str:
        """The text that this id completes; empty in the middle of a character.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        if not 0 <= id < len(self._table):
            raise ValueError(f"token id {id} is not in a vocabulary of {len(self._table)} pieces")
        data = self._table[id]
        if self._at_start and data:
            self._at_start = False
            data = data if data == UNKNOWN else data.removeprefix(b" ")
        return self._utf8.decode(data)

    def push_behind_text(self) -> None:
        """Note that a text comes before: the next word's space is a part of the text."""
        self._at_start = False

    def flush(self) -> str:
        """What is left of an unfinished character, as U+FFFD."""
        return self._utf8.decode(b"", final=True)


def _find(path: Path) -> Path:
    """The vocabulary's file, in a directory or itself."""
    files = [path / name for name in (GGUF, MODEL, HUB)] if path.is_dir() else [path]
    found = next((file for file in files if file.is_file()), None)
    # Llama 3's tokenizer.model is tiktoken's; beside it lies the same as a tokenizer.json.
    if found and found.name == MODEL and path.is_dir() and (path / HUB).is_file() and is_tiktoken(found):
        found = path / HUB
    if found is None:
        missing = path / MODEL if path.is_dir() else path
        raise ValueError(f"no tokenizer at {missing}; make one with: puna tokenizer train DOCS… --out DIR")
    return found


def _read(file: Path) -> "tuple[PieceModel | HubModel, Settings | None]":
    """The model in a file, by what it begins with, and the settings where the file itself holds them."""
    with file.open("rb") as stream:
        begins = stream.read(4)
    # Imported here, for most vocabularies need neither.
    if begins == b"GGUF":
        require("gguf")
        from puna.tokens.vocabularies.gguf import read_gguf

        return read_gguf(file)
    if begins.lstrip()[:1] == b"{":
        from puna.tokens.vocabularies.tokenizer_json import read_hub

        return read_hub(file), None
    if is_tiktoken(file):
        from puna.tokens.vocabularies.tiktoken import read_tiktoken

        return read_tiktoken(file), None
    return PieceModel(extended(file), puts_space_behind_control(file.parent)), None
