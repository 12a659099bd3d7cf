"""SentencePiece models, as files and as the lists of pieces that other formats hold.

In:  the bytes of a tokenizer.model, or pieces with scores and kinds.
Out: a PieceModel: ids of texts by SentencePiece itself, and the same vocabulary in the form of a
     tokenizer.json, which faster encoders read.

    tokenizer.model ─────────────┐
    pieces, scores, kinds ──────>┴─ PieceModel ──> ids
    (a GGUF file's)                            └─> {"model": {"type": "BPE", "vocab", "merges"}, ...}
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import sentencepiece

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

    def __init__(self, data: bytes) -> None:
        self.data = data
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

    def _bytes_of(self, id: int) -> bytes:
        """What a token adds to the text, as UTF-8 bytes; a byte token may add a part of a character."""
        piece: str = self._model.id_to_piece(id)
        if self._model.is_byte(id):
            return bytes([int(piece[1:-1], 16)])
        if self._model.is_control(id):
            return b""
        return UNKNOWN if self._model.is_unknown(id) else piece.replace(SPACE, " ").encode()

    def encode(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        ids: list[list[int]] = self._model.encode(list(texts), num_threads=threads)
        return ids

    def definition(self) -> dict[str, Any]:
        """This vocabulary as a tokenizer.json without special tokens: a literal "<s>" is text.

        SentencePiece merges the pair whose joined piece has the highest score, the leftmost of equals. Of the
        ways to split one piece the longer left part goes first, which agrees but for overlaps of repeated
        text; whoever encodes with this has to compare (puna.tokens.fast does).
        """
        pieces = [self._model.id_to_piece(id) for id in range(self.vocab_size)]
        plain = {
            piece: self._model.get_score(id)
            for id, piece in enumerate(pieces)
            if not (self._model.is_control(id) or self._model.is_unknown(id) or self._model.is_byte(id))
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
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": {"type": "Sequence", "normalizers": [*prefix, spaces]},
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": pieces[self._model.unk_id()],
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {piece: id for id, piece in enumerate(pieces)},
                "merges": [[left, right] for _, _, left, right in merges],
            },
        }


# ---- a model file out of pieces ----------------------------------------------------------------


def model_of_pieces(pieces: Sequence[Piece], bos: str, eos: str, adds_space: bool) -> bytes:
    """A SentencePiece BPE model file (a protocol buffer) of these pieces, text kept as it is.

    The numbers are the fields of sentencepiece_model.proto.
    """
    unknown = next(piece.text for piece in pieces if piece.kind == Kind.UNKNOWN)
    parts = [
        _message(1, _text(1, piece.text) + _float(2, piece.score) + _number(3, piece.kind))
        for piece in pieces
    ]
    trainer = _number(3, 2) + _number(4, len(pieces)) + _number(35, 1)  # BPE, size, byte fallback
    trainer += _text(45, unknown) + _text(46, bos) + _text(47, eos)
    normalizer = _text(1, "identity") + _number(3, adds_space) + _number(4, 0) + _number(5, 1)
    return b"".join(parts) + _message(2, trainer) + _message(3, normalizer)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the high bit says that more follow."""
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
