"""A tokenizer as GGUF's metadata, which is where llama.cpp looks for it.

tokenizer.model  (SentencePiece)   ─> tokens, scores, types, ids of <unk> <s> </s>, the leading space
tokenizer.gguf   (vocabulary only) ─> its own keys, as they are
"""

from pathlib import Path
from typing import Any

import sentencepiece
from gguf import GGUFValueType, GGUFWriter, TokenType

from puna.model.fields import one_line, read_object
from puna.model.gguf_header import Entry, read_header
from puna.model.parts import VOCABULARY

MODEL, GENERATION = "tokenizer.model", "generation_config.json"
_KEY = "tokenizer.ggml."


def add_vocabulary(writer: GGUFWriter, tokenizer: dict[str, Path | bytes], vocab_size: int) -> None:
    """Add the keys of a model's tokenizer to a GGUF file.

    Raises:
        ValueError: when there is no tokenizer, one that GGUF has no keys for, or one too large for the model.
    """
    if MODEL in tokenizer:
        _add_sentencepiece(writer, tokenizer[MODEL], vocab_size)
    elif VOCABULARY in tokenizer:
        for key, entry in vocabulary_entries(tokenizer[VOCABULARY]).items():
            kind = GGUFValueType.ARRAY if entry.is_array else entry.kind
            writer.add_key_value(key, entry.value, kind, entry.kind if entry.is_array else None)
    else:
        held = ", ".join(tokenizer) or "no tokenizer"
        raise ValueError(
            f"a GGUF file carries its tokenizer, and beside the weights lies {held}; "
            f"put SentencePiece's {MODEL} or a vocabulary-only {VOCABULARY} there"
        )


def vocabulary_entries(file: Path | bytes) -> dict[str, Entry]:
    """The tokenizer's keys of a vocabulary-only GGUF file."""
    header = read_header(Path(VOCABULARY), file) if isinstance(file, bytes) else read_header(file)
    return {key: entry for key, entry in header.entries.items() if key.startswith("tokenizer.")}


def special_ids(tokenizer: dict[str, Path | bytes]) -> dict[str, Any]:
    """`bos_token_id` and `eos_token_id` as the tokenizer's files say; SentencePiece's 1 and 2 otherwise."""
    names = ("bos_token_id", "eos_token_id")
    ids: dict[str, Any] = dict(zip(names, (1, 2), strict=True))
    said: dict[str, Any] = {}
    if VOCABULARY in tokenizer:
        entries = vocabulary_entries(tokenizer[VOCABULARY])
        said = {name: entries[_KEY + name].value for name in names if _KEY + name in entries}
    elif isinstance(file := tokenizer.get(GENERATION), Path):
        said = read_object(file)
    return ids | {name: said[name] for name in names if name in said}


def _add_sentencepiece(writer: GGUFWriter, file: Path | bytes, vocab_size: int) -> None:
    assert isinstance(file, Path), "only a GGUF file holds its tokenizer within, and not as this one"
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
    except RuntimeError as error:
        raise ValueError(f"{file} is not a SentencePiece model ({one_line(error)})") from error
    count = len(pieces)
    if count > vocab_size:
        raise ValueError(
            f"{file} has {count} pieces, and the model's vocabulary {vocab_size}; give the model's own"
        )
    tokens = [pieces.id_to_piece(i) for i in range(count)]
    scores = [pieces.get_score(i) for i in range(count)]
    types = [int(_type(pieces, i)) for i in range(count)]
    # Embedding rows beyond the pieces are padding, as some models have.
    for i in range(count, vocab_size):
        tokens.append(f"[PAD{i}]")
        scores.append(-10000.0)
        types.append(int(TokenType.UNUSED))
    # A leading space is added to a text, unless the model was trained without.
    has_prefix = pieces.encode("a", out_type=str)[0].startswith("\u2581")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(pieces.unk_id())
    writer.add_bos_token_id(pieces.bos_id())
    writer.add_eos_token_id(pieces.eos_id())
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(has_prefix)


def _type(pieces: sentencepiece.SentencePieceProcessor, i: int) -> TokenType:
    if pieces.is_unknown(i):
        return TokenType.UNKNOWN
    if pieces.is_control(i):
        return TokenType.CONTROL
    if pieces.is_byte(i):
        return TokenType.BYTE
    if pieces.is_unused(i):
        return TokenType.UNUSED
    return TokenType.NORMAL
