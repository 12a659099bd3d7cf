"""GGUF: the vocabulary inside a model file of llama.cpp.

In:  a GGUF file, with or without weights.
Out: a PieceModel for the kind `llama` (SentencePiece), a HubModel for the kind `gpt2` (byte-level).

    magic "GGUF", version, counts, then the fields: key, type, value; the weights come after and are not read
    tokenizer.ggml.model   "llama": pieces and scores            "gpt2": pieces and merges
    tokenizer.ggml.pre     how byte-level text is cut into words before pieces are merged
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from puna.tokens.vocabularies.sentencepiece import Kind, Piece, PieceModel, model_of_pieces
from puna.tokens.vocabularies.tokenizer_json import SEPARATORS, HubModel

MAGIC = b"GGUF"
_PREFIX = "tokenizer.ggml."

# ---- how text is cut into words ----------------------------------------------------------------

# The suffixes that English contracts to; those who ignore case say so.
_CONTRACTED = "'s|'t|'re|'ve|'m|'ll|'d"
_ANY_CASE = f"(?i:{_CONTRACTED})"
_END = r"\s+(?!\S)|\s+"  # white space leaves its last character to the word that follows
_GPT_2 = rf"{_CONTRACTED}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_END}"
_DIGIT = r"\p{N}"


def _of_gpt_4(numbers: str, letters: str = r"\p{L}", others: str = r"\s\p{L}\p{N}") -> str:
    """The words of GPT-4 and after: letters take the sign before them, line ends stay with signs."""
    return rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{numbers}| ?[^{others}]+[\r\n]*|\s*[\r\n]+|{_END}"


# DeepSeek's letters: those with a case, of a Unicode version between others; as code points.
_CASED = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 37B-37D 37F 386 388-38A "
    "38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF "
    "1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D "
    "1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 "
    "1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F "
    "2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2-2CF3 A640-A66D A680-A69B A722-A76F "
    "A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 "
    "104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)


def _class(ranges: str) -> str:
    """Code points in hexadecimal, single or first-last, as the inside of a character class."""
    return "".join("-".join(chr(int(point, 16)) for point in part.split("-")) for part in ranges.split())


_HAN_AND_HANGUL = "[一-龥ࠀ-一가-퟿]+"
# By tokenizer.ggml.pre: patterns that cut one after the other, and if a whole word is taken before merging.
WORDS: dict[str, tuple[tuple[str, ...], bool]] = {
    "gpt-2": ((_GPT_2,), False),
    "mpt": ((_GPT_2,), False),
    "olmo": ((_GPT_2,), False),
    "phi-2": ((_GPT_2,), False),
    "starcoder": ((_DIGIT, _GPT_2), False),
    "refact": ((_DIGIT, _GPT_2), False),
    "command-r": ((_DIGIT, _GPT_2), False),
    "smollm": ((_DIGIT, _GPT_2), False),
    "codeshell": ((_DIGIT, _GPT_2), False),
    "falcon": ((r"[\p{P}$+<=>^~|`]+", _GPT_2.removesuffix(r"|\s+"), "[0-9][0-9][0-9]"), False),
    "llama-bpe": ((_of_gpt_4(r"\p{N}{1,3}"),), True),
    "llama3": ((_of_gpt_4(r"\p{N}{1,3}"),), True),
    "llama-v3": ((_of_gpt_4(r"\p{N}{1,3}"),), True),
    "dbrx": ((_of_gpt_4(r"\p{N}{1,3}"),), False),
    "smaug-bpe": ((_of_gpt_4(r"\p{N}{1,3}"),), False),
    "qwen2": ((_of_gpt_4(_DIGIT),), False),
    "deepseek-r1-qwen": ((_of_gpt_4(_DIGIT),), False),
    "stablelm2": ((_of_gpt_4(_DIGIT),), False),
    "qwen35": ((_of_gpt_4(_DIGIT, r"[\p{L}\p{M}]", r"\s\p{L}\p{M}\p{N}"),), False),
    "deepseek-coder": ((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_HANGUL, _DIGIT), False),
    "deepseek-llm": (
        (
            r"[\r\n]",
            rf"\s?[{_class(_CASED)}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            _HAN_AND_HANGUL,
            r"\p{N}+",
        ),
        False,
    ),
}


# ---- the vocabulary ----------------------------------------------------------------------------


def read_gguf(file: Path) -> PieceModel | HubModel:
    """The vocabulary of a GGUF file.

    Raises:
        ValueError: saying what is wrong, after the file's name.
    """
    fields = read_fields(file, _PREFIX)
    kind = fields.get("model")
    if kind not in ("llama", "gpt2"):
        raise ValueError(f"holds a vocabulary of the kind {kind!r}; 'llama' and 'gpt2' are read")
    missing = [key for key in ("tokens", "eos_token_id") if key not in fields]
    missing += [key for key in (["scores"] if kind == "llama" else ["merges"]) if key not in fields]
    if missing:
        raise ValueError(f"has no {_PREFIX}{missing[0]}; convert the model again with a newer converter")
    fields.setdefault("token_type", [Kind.NORMAL] * len(fields["tokens"]))
    fields.setdefault("bos_token_id", fields["eos_token_id"])
    return _pieces(fields) if kind == "llama" else _byte_level(fields)


def _pieces(fields: Mapping[str, Any]) -> PieceModel:
    texts, kinds = fields["tokens"], fields["token_type"]
    separators = (fields["bos_token_id"], fields["eos_token_id"])
    # SentencePiece knows one unknown piece; converters give that kind also to places that no token fills.
    kinds = [Kind.UNUSED if kind == Kind.UNKNOWN else Kind(kind) for kind in kinds]
    kinds[fields.get("unknown_token_id", 0)] = Kind.UNKNOWN
    for id in separators:
        kinds[id] = Kind.CONTROL
    pieces = [Piece(*item) for item in zip(texts, fields["scores"], kinds, strict=True)]
    bos, eos = (texts[id] for id in separators)
    return PieceModel(model_of_pieces(pieces, bos, eos, bool(fields.get("add_space_prefix", True))))


def _byte_level(fields: Mapping[str, Any]) -> HubModel:
    return byte_level_model(
        fields["tokens"],
        fields["token_type"],
        fields["merges"],
        fields.get("pre", ""),
        fields["bos_token_id"],
        fields["eos_token_id"],
    )


def byte_level_model(
    tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[str], pre: str, bos_id: int, eos_id: int
) -> HubModel:
    """A byte-level vocabulary; `kinds` are GGUF's, a merge is two tokens with a space between.

    Raises:
        ValueError: saying what is wrong, after the file's name.
    """
    if pre not in WORDS:
        raise ValueError(
            f"cuts its text in the way {pre or 'default'!r}, which is not known here; "
            f"known: {', '.join(WORDS)}"
        )
    patterns, whole_words = WORDS[pre]
    separators = {"bos_id": bos_id, "eos_id": eos_id}
    kind_of = {id: Kind(kind) for id, kind in enumerate(kinds)}
    kind_of |= dict.fromkeys(separators.values(), Kind.CONTROL)
    vocab = {text: id for id, text in enumerate(tokens) if kind_of[id] == Kind.NORMAL}
    added = [
        {
            "id": id,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            # All that text never holds: control tokens, and places that no token fills.
            "special": kind_of[id] != Kind.USER_DEFINED,
        }
        for id, text in enumerate(tokens)
        if kind_of[id] != Kind.NORMAL
    ]
    # The usual patterns by their names, as published files have them: that is how fast encoders know them.
    cuts = [
        {"type": "Digits", "individual_digits": True}
        if pattern == _DIGIT
        else {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
        if pattern != _GPT_2
    ]
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    as_bytes["use_regex"] = _GPT_2 in patterns
    return HubModel(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, as_bytes]} if cuts else as_bytes,
            "post_processor": None,
            "decoder": as_bytes,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": whole_words,
                "vocab": vocab,
                "merges": [merge.split(" ", 1) for merge in merges],
            },
            SEPARATORS: separators,
        }
    )


# ---- the fields of a GGUF file -----------------------------------------------------------------

_STRING, _ARRAY = 8, 9
# By type: uint8, int8, uint16, int16, uint32, int32, float32, bool, then uint64, int64, float64.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read_fields(file: Path, prefix: str) -> dict[str, Any]:
    """The fields whose keys begin with `prefix`, by the rest of the key.

    Written here because the `gguf` package takes 19 s for the vocabulary of Llama 3, this 0.4 s.

    Raises:
        ValueError: saying what is wrong, after the file's name.
    """
    with file.open("rb") as stream:
        magic, version, _, count = _unpack(stream, "4sIQQ")
        if magic != MAGIC or version not in (2, 3):
            raise ValueError("is no GGUF file of version 2 or 3; convert the model again")
        fields = {}
        for _ in range(count):
            key = _string(stream)
            (kind,) = _unpack(stream, "I")
            value = _value(stream, kind)
            if key.startswith(prefix):
                fields[key.removeprefix(prefix)] = value
    return fields


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(stream)
    if kind != _ARRAY:
        return _unpack(stream, _number(kind))[0]
    kind, length = _unpack(stream, "IQ")
    if kind in _NUMBERS:
        return list(_unpack(stream, f"{length}{_NUMBERS[kind]}"))
    read: Callable[[], Any] = (lambda: _string(stream)) if kind == _STRING else (lambda: _value(stream, kind))
    return [read() for _ in range(length)]


def _number(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"has a field of the unknown type {kind}; the file is damaged, fetch it again")
    return _NUMBERS[kind]


def _string(stream: BinaryIO) -> str:
    (length,) = _unpack(stream, "Q")
    return _read(stream, length).decode("utf-8", "replace")


def _unpack(stream: BinaryIO, shape: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{shape}", _read(stream, struct.calcsize(f"<{shape}")))


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise ValueError("ends in the middle of its fields; fetch it again")
    return data
