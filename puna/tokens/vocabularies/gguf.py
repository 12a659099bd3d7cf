"""GGUF: the vocabulary inside a model file of llama.cpp.

In:  a GGUF file, with or without weights.
Out: a PieceModel for the kind `llama` (SentencePiece), a HubModel for the kind `gpt2` (byte-level).

    tokenizer.ggml.model   "llama": pieces and scores            "gpt2": pieces and merges
    tokenizer.ggml.pre     how byte-level text is cut into words before pieces are merged
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.gguf import read_header
from puna.tokens.vocabularies.definition import added_token, definition
from puna.tokens.vocabularies.sentencepiece import Kind, Piece, PieceModel, model_of_pieces
from puna.tokens.vocabularies.settings import Settings
from puna.tokens.vocabularies.tokenizer_json import SEPARATORS, HubModel

_PREFIX = "tokenizer.ggml."
_ENDS = ("eot_token_id", "eom_token_id")
# The vocabularies of llama.cpp that begin a text with BOS unless told otherwise.
_WITH_BOS = ("llama-bpe", "llama3", "llama-v3")

# ---- how text is cut into words ----------------------------------------------------------------

_CONTRACTED = "'s|'t|'re|'ve|'m|'ll|'d"
_END = r"\s+(?!\S)|\s+"  # white space leaves its last character to the word that follows
_GPT_2 = rf"{_CONTRACTED}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_END}"
_DIGIT = r"\p{N}"
# Letters take the sign before them, line ends stay with signs, three digits at most.
_LLAMA_3 = (
    rf"(?i:{_CONTRACTED})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_END}"
)


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
# Only vocabularies of models that puna loads; of others the tokenizer.json is read.
WORDS: dict[str, tuple[tuple[str, ...], bool]] = {
    "gpt-2": ((_GPT_2,), False),
    "smollm": ((_DIGIT, _GPT_2), False),
    "llama-bpe": ((_LLAMA_3,), True),
    "llama3": ((_LLAMA_3,), True),
    "llama-v3": ((_LLAMA_3,), True),
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


def read_gguf(file: Path) -> tuple[PieceModel | HubModel, Settings]:
    """The vocabulary of a GGUF file, and the settings of its use.

    Raises:
        ValueError: saying what is wrong with the file.
    """
    header = read_header(file).values
    fields = {key.removeprefix(_PREFIX): value for key, value in header.items() if key.startswith(_PREFIX)}
    kind = fields.get("model")
    if kind not in ("llama", "gpt2"):
        raise ValueError(f"holds a vocabulary of the kind {kind!r}; supported kinds are 'llama' and 'gpt2'")
    if not isinstance(fields.get("tokens"), list):
        fields.pop("tokens", None)
    missing = [key for key in ("tokens", "eos_token_id") if key not in fields]
    missing += [key for key in (["scores"] if kind == "llama" else ["merges"]) if key not in fields]
    if missing:
        raise ValueError(f"has no {_PREFIX}{missing[0]}; convert the model again with a newer converter")
    fields.setdefault("token_type", [Kind.NORMAL] * len(fields["tokens"]))
    fields.setdefault("bos_token_id", fields["eos_token_id"])
    _require_sound(fields)
    # Places behind the last token fill the embedding up; they are never drawn.
    count, kinds = len(fields["tokens"]), fields["token_type"]
    bos, eos = fields["bos_token_id"], fields["eos_token_id"]
    while kinds[count - 1] == Kind.UNUSED and count - 1 not in (bos, eos):
        count -= 1
    fields |= {key: fields[key][:count] for key in ("tokens", "token_type", "scores") if key in fields}
    settings = Settings(
        bool(fields.get("add_bos_token", kind == "llama" or fields.get("pre") in _WITH_BOS)),
        header.get("tokenizer.chat_template"),
        frozenset(fields[key] for key in _ENDS if key in fields),
    )
    if kind == "llama":
        return _pieces(fields), settings
    words = fields["tokens"], fields["token_type"], fields["merges"], str(fields.get("pre", ""))
    return byte_level_model(*words, bos, eos), settings


def _require_sound(fields: Mapping[str, Any]) -> None:
    """Raises ValueError where the keys contradict each other, after the file's name."""
    count = len(fields["tokens"])
    for key in ("token_type", "scores", "merges"):
        values = fields.get(key, fields["tokens"])
        if not isinstance(values, list) or (key != "merges" and len(values) != count):
            raise ValueError(f"has {count} tokens, but not as many values of {_PREFIX}{key}; get it again")
    for key in ("bos_token_id", "eos_token_id", "unknown_token_id", *_ENDS):
        id = fields.get(key, 0)
        if not isinstance(id, int) or not 0 <= id < count:
            raise ValueError(f"has {count} tokens, but {_PREFIX}{key} {id!r}; convert the model again")


def byte_level_fields(model: HubModel) -> tuple[list[str], list[int], list[str], str]:
    """A byte-level vocabulary as GGUF holds it: tokens, kinds, merges, and the name of how text is cut.

    Raises:
        ValueError: saying what GGUF cannot hold, after the file's name.
    """
    source = model.source
    cuts, whole_words = _cuts(source.get("pre_tokenizer")), bool(source["model"].get("ignore_merges"))
    pre = next((name for name, words in WORDS.items() if words == (cuts, whole_words)), None)
    if pre is None or source.get("normalizer"):
        raise ValueError(
            "prepares its text in a way that GGUF has no name for, as far as puna knows; "
            "convert it with llama.cpp's convert_hf_to_gguf.py"
        )
    tokens = [f"[PAD{id}]" for id in range(model.vocab_size)]
    kinds = [int(Kind.UNUSED)] * model.vocab_size
    for text, id in source["model"]["vocab"].items():
        tokens[id], kinds[id] = text, int(Kind.NORMAL)
    for token in source.get("added_tokens") or []:
        flags = [flag for flag in ("single_word", "lstrip", "rstrip") if token.get(flag)]
        if flags and not token["special"]:
            raise ValueError(f"has the added token {token['content']!r} with {flags[0]}, unknown to GGUF")
        kind = Kind.CONTROL if token["special"] else Kind.USER_DEFINED
        tokens[token["id"]], kinds[token["id"]] = token["content"], int(kind)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in source["model"]["merges"]]
    return tokens, kinds, merges, pre


def _cuts(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The patterns of a pre-tokenizer, in the form of WORDS; what has no such form is its type's name."""
    pre = pre_tokenizer or {}
    if pre.get("type") == "Sequence":
        return tuple(cut for part in pre["pretokenizers"] for cut in _cuts(part))
    if pre.get("type") == "Digits" and pre.get("individual_digits"):
        return (_DIGIT,)
    if pre.get("type") == "Split" and pre.get("behavior") == "Isolated" and not pre.get("invert"):
        return (str(pre["pattern"].get("Regex")),)
    if pre.get("type") == "ByteLevel" and not pre.get("add_prefix_space", True):
        return (_GPT_2,) if pre.get("use_regex", True) else ()
    return (str(pre.get("type")),)


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
    # Special is all that text never holds: control tokens, and places that no token fills.
    added = [
        added_token(id, text, special=kind_of[id] != Kind.USER_DEFINED)
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
    found = definition(
        vocab,
        [merge.split(" ", 1) for merge in merges],
        added,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*cuts, as_bytes]} if cuts else as_bytes,
        decoder=as_bytes,
        whole_words=whole_words,
    )
    return HubModel(found | {SEPARATORS: separators})
