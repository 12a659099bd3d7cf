"""A vocabulary as transformers reads it: tokenizer.json, its settings, the template and the end ids.

In:  a tokenizer whose files transformers does not read (GGUF, tiktoken), or reads with other ids where
     spaces stand together (tokenizer.model).
Out: the files of Hugging Face's format, beside those that are there already, which stay.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers

from puna.added_tokens import CONFIG, GENERATION, HUB, TEMPLATE
from puna.files import write_json
from puna.tokens.fast import hard_sample
from puna.tokens.tokenizer import MODEL, Tokenizer
from puna.tokens.vocabularies.definition import added_token
from puna.tokens.vocabularies.sentencepiece import SPACE

# What transformers takes for a LLaMA's tokenizer.model; without it, one without <s> and leading space.
_LLAMA = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "unk_token": "<unk>", "add_eos_token": False}
_OWN = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}


def write_hub_vocabulary(folder: Path, tokenizer: Tokenizer) -> None:
    """Write what transformers needs to give the ids of `tokenizer`; nothing where its makers have said it."""
    if (folder / HUB).exists() or (folder / CONFIG).exists():
        return
    settings, names = tokenizer.settings, {id: text for text, id in tokenizer.controls.items() if text}
    bos, eos = names[tokenizer.bos_id], names[tokenizer.eos_id]
    definition = tokenizer.definition()
    config: dict[str, Any] = {"bos_token": bos, "eos_token": eos, "add_bos_token": settings.adds_bos}
    if _has_same_ids(definition, tokenizer) or not (folder / MODEL).exists():
        write_json(folder / HUB, _complete(definition, names, tokenizer))
        config |= _OWN
    else:  # text is normalized, or pieces overlap: transformers has a conversion of its own
        config |= _LLAMA
    if settings.chat_template is not None:
        config["chat_template"] = settings.chat_template
        (folder / TEMPLATE).write_text(settings.chat_template, encoding="utf-8")
    write_json(folder / CONFIG, config)
    if not (folder / GENERATION).exists():
        ends = sorted({tokenizer.eos_id} | settings.end_ids)
        write_json(folder / GENERATION, {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends})


def _has_same_ids(definition: dict[str, Any], tokenizer: Tokenizer) -> bool:
    """Whether the library of tokenizer.json encodes as SentencePiece does; byte-level text is its own."""
    if not definition["model"]["byte_fallback"]:
        return True
    theirs = tokenizers.Tokenizer.from_str(json.dumps(definition))
    texts = hard_sample([tokenizer.piece(id) for id in range(tokenizer.vocab_size)])
    found = theirs.encode_batch_fast(texts, add_special_tokens=False)
    return [item.ids for item in found] == [tokenizer.encode(text) for text in texts]


def _complete(definition: dict[str, Any], names: dict[int, str], tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer.json with control tokens, BOS where a text has it, and the way back to text."""
    added = [added_token(id, text, special=True) for id, text in names.items()]
    added = sorted([*definition["added_tokens"], *added], key=lambda token: token["id"])
    # The library numbers added tokens anew unless the vocabulary holds them.
    vocab = definition["model"]["vocab"] | {token["content"]: token["id"] for token in added}
    vocab = dict(sorted(vocab.items(), key=lambda entry: entry[1]))
    found = definition | {"added_tokens": added, "model": definition["model"] | {"vocab": vocab}}
    if definition["decoder"] is None:
        as_text: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
        as_text += [{"type": "ByteFallback"}, {"type": "Fuse"}]
        if tokenizer.adds_space:
            as_text.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        found["decoder"] = {"type": "Sequence", "decoders": as_text}
    if tokenizer.adds_bos:
        bos = names[tokenizer.bos_id]
        one = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        found["post_processor"] = {
            "type": "TemplateProcessing",
            "single": one,
            "pair": [*one, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        }
    return found
