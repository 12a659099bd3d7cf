"""A tokenizer as GGUF's metadata, which is where llama.cpp looks for it.

tokenizer.model  (SentencePiece)   ─> tokens, scores, types, ids of <unk> <s> </s>, the leading space
the files beside it                ─> added tokens, BOS and EOS by name, all end ids, the chat template
tokenizer.json, or tiktoken's tokenizer.model (byte-level) ─> tokens, merges, types, how text is cut
tokenizer.gguf   (vocabulary only) ─> its own keys, as they are
"""

from pathlib import Path

import sentencepiece
from gguf import GGUFValueType, GGUFWriter, TokenType

from puna.added_tokens import CONFIG, HUB, end_ids, named_template
from puna.formats.special_ids import (
    GENERATION,
    MODEL,
    added_to_pieces,
    named_ids,
    read_beside,
    vocabulary_entries,
)
from puna.model.parts import VOCABULARY
from puna.retry import one_line
from puna.tokens.tokenizer import Tokenizer
from puna.tokens.vocabularies.gguf import byte_level_fields
from puna.tokens.vocabularies.settings import is_tiktoken
from puna.tokens.vocabularies.tiktoken import read_tiktoken
from puna.tokens.vocabularies.tokenizer_json import read_hub

_KEY = "tokenizer.ggml."


def add_vocabulary(writer: GGUFWriter, tokenizer: dict[str, Path | bytes], vocab_size: int) -> None:
    """Add the keys of a model's tokenizer to a GGUF file.

    Raises:
        ValueError: when there is no tokenizer, one that GGUF has no keys for, or one too large for the model.
    """
    file = tokenizer.get(MODEL)
    is_pieces = isinstance(file, Path) and not is_tiktoken(file)
    if HUB in tokenizer and not is_pieces:
        file = tokenizer[HUB]
    if is_pieces:
        _add_sentencepiece(writer, tokenizer, vocab_size)
    elif VOCABULARY in tokenizer:
        entries = vocabulary_entries(tokenizer[VOCABULARY])
        beside = {"tokenizer.chat_template"} if (template := _template(tokenizer)) else set()
        if GENERATION in tokenizer:
            _add_ends(writer, tokenizer, entries[f"{_KEY}eos_token_id"].value)
            beside |= {f"{_KEY}eot_token_id", f"{_KEY}eom_token_id"}
        if template:
            writer.add_chat_template(template)
        for key, entry in entries.items():
            if key in beside:  # files beside the vocabulary say otherwise
                continue
            kind = GGUFValueType.ARRAY if entry.is_array else entry.kind
            writer.add_key_value(key, entry.value, kind, entry.kind if entry.is_array else None)
    elif isinstance(file, Path):
        _add_byte_level(writer, file, tokenizer, vocab_size)
    else:
        held = ", ".join(tokenizer) or "no tokenizer"
        raise ValueError(
            f"a GGUF file carries its tokenizer, and beside the weights lies {held}; "
            f"put the model's {MODEL}, {HUB} or {VOCABULARY} there"
        )


def _template(tokenizer: dict[str, Path | bytes]) -> str | None:
    file = tokenizer.get("chat_template.jinja")
    if isinstance(file, Path):
        return file.read_text(encoding="utf-8")
    return named_template(read_beside(tokenizer, CONFIG))


def _add_sentencepiece(writer: GGUFWriter, tokenizer: dict[str, Path | bytes], vocab_size: int) -> None:
    file = tokenizer[MODEL]
    assert isinstance(file, Path), "only a GGUF file holds its tokenizer within, and not as this one"
    added = added_to_pieces(tokenizer)
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
    except RuntimeError as error:
        raise ValueError(f"{file} is not a SentencePiece model ({one_line(error)})") from error
    base = len(pieces)
    count = max(base, max(added, default=-1) + 1)
    if count > vocab_size:
        raise ValueError(
            f"{file} has {count} pieces, and the model's vocabulary {vocab_size}; give the model's own"
        )
    tokens = [pieces.id_to_piece(i) for i in range(base)]
    scores = [pieces.get_score(i) for i in range(base)]
    types = [int(_type(pieces, i)) for i in range(base)]
    for i, token in added.items():
        if i < base and tokens[i] != token.content:
            raise ValueError(
                f"{token.file} says that token {i} is {token.content!r}, and {file} that it is "
                f"{tokens[i]!r}; delete the file that is wrong"
            )
    # Embedding rows beyond the pieces are added tokens, or padding, as some models have.
    for i in range(base, vocab_size):
        tokens.append(added[i].content if i in added else f"[PAD{i}]")
        scores.append(-10000.0)
        kind = TokenType.UNUSED
        if i in added:
            kind = TokenType.CONTROL if added[i].special else TokenType.USER_DEFINED
        types.append(int(kind))
    # A leading space is added to a text, unless the model was trained without.
    has_prefix = pieces.encode("a", out_type=str)[0].startswith("\u2581")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(pieces.unk_id())
    said = read_beside(tokenizer, CONFIG)
    named = named_ids(tokenizer)
    eos = named.get("eos_token_id", pieces.eos_id())
    writer.add_bos_token_id(named.get("bos_token_id", pieces.bos_id()))
    writer.add_eos_token_id(eos)
    _add_ends(writer, tokenizer, eos)
    writer.add_add_bos_token(said.get("add_bos_token") is not False)
    writer.add_add_eos_token(said.get("add_eos_token") is True)
    writer.add_add_space_prefix(has_prefix)
    if template := _template(tokenizer):
        writer.add_chat_template(template)


def _add_byte_level(
    writer: GGUFWriter, file: Path, tokenizer: dict[str, Path | bytes], vocab_size: int
) -> None:
    """Add the keys of a tokenizer.json, or of tiktoken's tokenizer.model."""
    read = Tokenizer(file)
    try:
        model = read_tiktoken(file) if is_tiktoken(file) else read_hub(file)
        if model.marks_spaces:
            raise ValueError(f"holds pieces as SentencePiece does; put the model's {MODEL} beside it")
        tokens, types, merges, pre = byte_level_fields(model)
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error
    if len(tokens) > vocab_size:
        raise ValueError(
            f"{file} has {len(tokens)} tokens, and the model's vocabulary {vocab_size}; give the model's own"
        )
    padding = range(len(tokens), vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, *(f"[PAD{i}]" for i in padding)])
    writer.add_token_types([*types, *(int(TokenType.UNUSED) for _ in padding)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(read.bos_id)
    writer.add_eos_token_id(read.eos_id)
    _add_ends(writer, tokenizer, read.eos_id)
    writer.add_add_bos_token(read.adds_bos)
    if template := _template(tokenizer):
        writer.add_chat_template(template)


def _add_ends(writer: GGUFWriter, tokenizer: dict[str, Path | bytes], eos: int) -> None:
    """Add the tokens besides EOS that end an answer, as generation_config.json names them."""
    file = tokenizer.get(GENERATION)
    name = file if isinstance(file, Path) else Path(GENERATION)
    others = [id for id in dict.fromkeys(end_ids(read_beside(tokenizer, GENERATION), name)) if id != eos]
    if len(others) > 2:
        raise ValueError(
            f"{name} names {len(others) + 1} tokens that end an answer, and a GGUF file "
            "has keys for three; take the others out of eos_token_id"
        )
    for add, id in zip((writer.add_eot_token_id, writer.add_eom_token_id), others, strict=False):
        add(id)


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
