"""A tokenizer as GGUF's metadata, which is where llama.cpp looks for it.

tokenizer.model  (SentencePiece)   ─> tokens, scores, types, ids of <unk> <s> </s>, the leading space
the files beside it                ─> added tokens, BOS and EOS by name, all end ids, the chat template
tokenizer.json, or tiktoken's tokenizer.model (byte-level) ─> tokens, merges, types, how text is cut
tokenizer.gguf   (vocabulary only) ─> its own keys, as they are
"""

from pathlib import Path

import sentencepiece
from gguf import GGUFValueType, GGUFWriter, TokenType

from puna.added_tokens import CONFIG, GENERATION, HUB
from puna.formats.special_ids import named_ids, read_beside
from puna.gguf import read_header
from puna.model.parts import VOCABULARY
from puna.tokens.tokenizer import MODEL, Tokenizer
from puna.tokens.vocabularies.gguf import byte_level_fields
from puna.tokens.vocabularies.sentencepiece import extended, kinds_of
from puna.tokens.vocabularies.settings import is_tiktoken
from puna.tokens.vocabularies.tiktoken import read_tiktoken
from puna.tokens.vocabularies.tokenizer_json import read_hub

_ENDS = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}


def add_vocabulary(
    writer: GGUFWriter, files: dict[str, Path | bytes], tokenizer: Tokenizer | None, vocab_size: int
) -> None:
    """Add the keys of a model's tokenizer, whose files are `files`, to a GGUF file.

    Raises:
        ValueError: when there is no tokenizer, one that GGUF has no keys for, or one too large for the model.
    """
    if tokenizer is None:
        raise ValueError(
            "a GGUF file carries its tokenizer, and beside the weights lies no tokenizer; "
            f"put the model's {MODEL}, {HUB} or {VOCABULARY} there"
        )
    settings, eos = tokenizer.settings, tokenizer.eos_id
    file = files.get(MODEL)
    if (vocabulary := files.get(VOCABULARY)) is not None:
        name = Path(VOCABULARY)
        header = read_header(name, vocabulary) if isinstance(vocabulary, bytes) else read_header(vocabulary)
        # Files beside the vocabulary may say otherwise.
        beside = {"tokenizer.chat_template"} | (_ENDS if GENERATION in files else set())
        for key, entry in header.entries.items():
            if key.startswith("tokenizer.") and key not in beside:
                kind = GGUFValueType.ARRAY if entry.is_array else entry.kind
                writer.add_key_value(key, entry.value, kind, entry.kind if entry.is_array else None)
    elif isinstance(file, Path) and not is_tiktoken(file):
        eos = _add_sentencepiece(writer, file, files, tokenizer, vocab_size)
    else:
        file = files.get(HUB, file)
        assert isinstance(file, Path), "only a GGUF file holds its tokenizer within"
        _add_byte_level(writer, file, tokenizer, vocab_size)
    if settings.chat_template:
        writer.add_chat_template(settings.chat_template)
    if vocabulary is None or GENERATION in files:
        others = sorted(id for id in settings.end_ids - {eos} if id < vocab_size)
        if len(others) > 2:
            raise ValueError(
                f"{GENERATION} names {len(others) + 1} tokens that end an answer, and a GGUF file "
                "has keys for three; take the others out of eos_token_id"
            )
        for add, id in zip((writer.add_eot_token_id, writer.add_eom_token_id), others, strict=False):
            add(id)


def _add_sentencepiece(
    writer: GGUFWriter, file: Path, files: dict[str, Path | bytes], tokenizer: Tokenizer, vocab_size: int
) -> int:
    """Add the keys of a tokenizer.model and of what its neighbours add; gives EOS."""
    data = extended(file)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
    padding = range(_room(file, len(pieces), vocab_size), vocab_size)
    tokens = [pieces.id_to_piece(i) for i in range(len(pieces))] + [f"[PAD{i}]" for i in padding]
    scores = [pieces.get_score(i) for i in range(len(pieces))] + [-10000.0] * len(padding)
    types = kinds_of(data) + [int(TokenType.UNUSED)] * len(padding)
    named = named_ids(files)
    eos = named.get("eos_token_id", tokenizer.eos_id)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(pieces.unk_id())
    writer.add_bos_token_id(named.get("bos_token_id", tokenizer.bos_id))
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_eos_token(read_beside(files, CONFIG).get("add_eos_token") is True)
    writer.add_add_space_prefix(tokenizer.adds_space)
    return eos


def _add_byte_level(writer: GGUFWriter, file: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Add the keys of a tokenizer.json, or of tiktoken's tokenizer.model."""
    try:
        model = read_tiktoken(file) if is_tiktoken(file) else read_hub(file)
        if model.marks_spaces:
            raise ValueError(f"holds pieces as SentencePiece does; put the model's {MODEL} beside it")
        tokens, types, merges, pre = byte_level_fields(model)
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error
    padding = range(_room(file, len(tokens), vocab_size), vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, *(f"[PAD{i}]" for i in padding)])
    writer.add_token_types([*types, *(int(TokenType.UNUSED) for _ in padding)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_add_bos_token(tokenizer.adds_bos)


def _room(file: Path, count: int, vocab_size: int) -> int:
    """The number of tokens, if the model's embedding has room for them; its other rows are padding."""
    if count > vocab_size:
        raise ValueError(
            f"{file} has {count} tokens, and the model's vocabulary {vocab_size}; give the model's own"
        )
    return count
