"""SentencePiece models, as files and as the lists of pieces that other formats hold.

In:  the bytes of a tokenizer.model, or pieces with scores and kinds.
Out: a PieceModel: ids of texts by SentencePiece itself, and the same vocabulary in the form of a
     tokenizer.json, which faster encoders read.

    tokenizer.model ─────────────┐
    pieces, scores, kinds ──────>┴─ PieceModel ──> ids
    (a GGUF file's)                            └─> {"model": {"type": "BPE", "vocab", "merges"}, ...}
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece

from puna.added_tokens import HUB, added_tokens
from puna.files import read_object
from puna.tokens.vocabularies.definition import added_token, definition

# SentencePiece writes a space as U+2581 and so would decode a literal one as a space.
SPACE = "\u2581"
# What SentencePiece decodes <unk> to.
UNKNOWN = " \u2047 ".encode()


class Kind(IntEnum):
    """The kinds of pieces; SentencePiece and GGUF number them alike."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """A piece of a vocabulary, as SentencePiece writes it: a space is U+2581."""

    text: str
    score: float
    kind: Kind


class PieceModel:
    """A SentencePiece model.

    Raises:
        ValueError: saying what is wrong, after the file's name.
    """

    marks_spaces = True
    unspelled: frozenset[int] = frozenset()
    strips: frozenset[str] = frozenset()

    def __init__(self, data: bytes, space_behind_control: bool = True) -> None:
        """`space_behind_control`: a text behind a control token begins with a space, as at the start."""
        self.data = data
        self._space_behind_control = space_behind_control
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(data)
        except RuntimeError as error:
            raise ValueError("is not a SentencePiece model; give a tokenizer.model") from error
        self.vocab_size: int = self._model.vocab_size()
        self.bos_id: int = self._model.bos_id()
        self.eos_id: int = self._model.eos_id()
        if self.bos_id < 0 or self.eos_id < 0:
            raise ValueError("has no <s> or no </s>, which separate documents; give another model")
        self.table = [self._bytes_of(id) for id in range(self.vocab_size)]
        self.byte_ids = {self.table[id]: id for id in range(self.vocab_size) if self._model.is_byte(id)}
        if len(self.byte_ids) != 256:
            raise ValueError("has no byte fallback, so it cannot spell every text; give another model")
        ids = range(self.vocab_size)
        self.controls = {self._model.id_to_piece(id): id for id in ids if self._model.is_control(id)}
        self.adds_space = self._model.id_to_piece(self._model.encode("a")[0]).startswith(SPACE)

    @cached_property
    def _user_defined(self) -> dict[int, str]:
        """The pieces that are one token wherever their text occurs."""
        kinds = kinds_of(self.data)
        return {id: self._model.id_to_piece(id) for id, kind in enumerate(kinds) if kind == Kind.USER_DEFINED}

    def _bytes_of(self, id: int) -> bytes:
        """What a token adds to the text, as UTF-8 bytes; a byte token may add a part of a character."""
        piece: str = self._model.id_to_piece(id)
        if self._model.is_byte(id):
            return bytes([int(piece[1:-1], 16)])
        if self._model.is_control(id):
            return b""
        return UNKNOWN if self._model.is_unknown(id) else piece.replace(SPACE, " ").encode()

    def encode(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """The ids of each text, which begins a document; `threads` only make it faster."""
        ids: list[list[int]] = self._model.encode(list(texts), num_threads=threads)
        return ids

    def encode_behind(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts that follow control tokens."""
        model = self._model if self._space_behind_control else self._without_prefix
        ids: list[list[int]] = model.encode(list(texts))
        return ids

    @cached_property
    def _without_prefix(self) -> sentencepiece.SentencePieceProcessor:
        # Of a field that occurs twice, protocol buffers take the later.
        return sentencepiece.SentencePieceProcessor(model_proto=self.data + _message(3, _number(3, 0)))

    def definition(self) -> dict[str, Any]:
        """This vocabulary as a tokenizer.json without special tokens: a literal "<s>" is text.

        SentencePiece merges the pair whose joined piece has the highest score, the leftmost of equals. Of the
        ways to split one piece the longer left part goes first, which agrees except for overlaps of repeated
        text; an encoder made from this has to be compared with SentencePiece (puna.tokens.fast does so).
        """
        pieces = [self._model.id_to_piece(id) for id in range(self.vocab_size)]
        plain = {
            piece: self._model.get_score(id)
            for id, piece in enumerate(pieces)
            if not (self._model.is_control(id) or self._model.is_unknown(id) or self._model.is_byte(id))
            and id not in self._user_defined
        }
        merges = [
            (-score, -cut, piece[:cut], piece[cut:])
            for piece, score in plain.items()
            for cut in range(1, len(piece))
            if piece[:cut] in plain and piece[cut:] in plain
        ]
        merges.sort()
        prefix = [{"type": "Prepend", "prepend": SPACE}] if self.adds_space else []
        spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        return definition(
            {piece: id for id, piece in enumerate(pieces)},
            [[left, right] for _, _, left, right in merges],
            [added_token(id, text, special=False) for id, text in self._user_defined.items()],
            normalizer={"type": "Sequence", "normalizers": [*prefix, spaces]},
            unknown=pieces[self._model.unk_id()],
        )


def extended(file: Path) -> bytes:
    """A tokenizer.model with the tokens that the files beside it add to its vocabulary.

    Raises:
        ValueError: naming two files that disagree.
    """
    data = file.read_bytes()
    added = added_tokens(file.parent)
    hub = file.parent / HUB
    if not added and not hub.is_file():
        return data
    base = sentencepiece.SentencePieceProcessor()
    try:
        base.LoadFromSerializedProto(data)
    except RuntimeError:
        return data  # PieceModel says what is wrong
    size = base.vocab_size()
    _require_same(file, [base.id_to_piece(id) for id in range(size)], hub, added)
    if not added:
        return data
    for id, token in added.items():
        if id < size and base.id_to_piece(id) != token.content:
            raise ValueError(
                f"{token.file} says that token {id} is {token.content!r}, and {file} that it is "
                f"{base.id_to_piece(id)!r}; delete the file that is wrong"
            )
        if id >= size and base.piece_to_id(token.content) != base.unk_id():
            raise ValueError(
                f"{token.file} gives {token.content!r} the id {id}, and {file} the id "
                f"{base.piece_to_id(token.content)}; delete the file that is wrong"
            )
    for id in range(size, max(size, max(added) + 1)):
        if id in added:
            kind = Kind.CONTROL if added[id].special else Kind.USER_DEFINED
            piece = Piece(added[id].content, 0.0, kind)
        else:
            piece = Piece(f"<unused {id}>", 0.0, Kind.UNUSED)
        data += _piece(piece)  # a protocol buffer's lists may continue anywhere
    return data


def _require_same(file: Path, pieces: Sequence[str], hub: Path, added: Mapping[int, Any]) -> None:
    """Raises ValueError when a tokenizer.json beside a tokenizer.model has other tokens."""
    vocab = (read_object(hub, optional=True).get("model") or {}).get("vocab")
    if not isinstance(vocab, dict):
        return
    texts = {id: text for text, id in vocab.items()}
    for id in sorted({*range(len(pieces)), *texts} - {id for id in added if id >= len(pieces)}):
        here, there = pieces[id] if id < len(pieces) else None, texts.get(id)
        if here != there and not (id in added and added[id].content == here):
            raise ValueError(
                f"{hub} says that token {id} is {there!r}, and {file} that it is {here!r}; "
                "delete the file that is wrong"
            )


def kinds_of(data: bytes) -> list[int]:
    """The kinds of a model's pieces, in order, which its library does not tell in full."""
    kinds = []
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            kinds.append(next((number for key, number in _fields(value) if key == 3), Kind.NORMAL))
    return kinds  # type: ignore[return-value]


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: number, and value or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        yield key >> 3, data[at : at + size]
        at += size


# ---- a model file out of pieces ----------------------------------------------------------------


def model_of_pieces(pieces: Sequence[Piece], bos: str, eos: str, adds_space: bool) -> bytes:
    """A SentencePiece BPE model file (a protocol buffer) of these pieces, text kept as it is.

    The numbers are the fields of sentencepiece_model.proto.
    """
    unknown = next(piece.text for piece in pieces if piece.kind == Kind.UNKNOWN)
    parts = [_piece(piece) for piece in pieces]
    trainer = _number(3, 2) + _number(4, len(pieces)) + _number(35, 1)  # BPE, size, byte fallback
    trainer += _text(45, unknown) + _text(46, bos) + _text(47, eos)
    normalizer = _text(1, "identity") + _number(3, adds_space) + _number(4, 0) + _number(5, 1)
    return b"".join(parts) + _message(2, trainer) + _message(3, normalizer)


def _piece(piece: Piece) -> bytes:
    return _message(1, _text(1, piece.text) + _float(2, piece.score) + _number(3, piece.kind))


def _varint(value: int) -> bytes:
    """Seven bits per byte, lowest first; the high bit is set when more follow."""
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _message(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())
