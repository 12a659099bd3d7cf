"""A GGUF file's byte-level vocabulary as transformers reads it: tokenizer.json and its neighbours."""

from pathlib import Path
from typing import Any

from puna.added_tokens import CONFIG, HUB
from puna.files import write_json
from puna.formats.special_ids import GENERATION
from puna.tokens.vocabularies.gguf import read_gguf
from puna.tokens.vocabularies.tokenizer_json import SEPARATORS, HubModel

TEMPLATE = "chat_template.jinja"


def write_hub_vocabulary(file: Path) -> None:
    """Write tokenizer.json, its settings, the template and the end ids beside a vocabulary-only GGUF file.

    Files that are there already stay. Vocabularies of pieces (SentencePiece's) are left as they are.
    """
    model, settings = read_gguf(file)
    if not isinstance(model, HubModel):
        return
    names = {id: text for text, id in model.controls.items()}
    bos, eos = names[model.bos_id], names[model.eos_id]
    definition = {key: value for key, value in model.source.items() if key != SEPARATORS}
    # The library numbers added tokens anew unless the vocabulary holds them.
    added = {token["content"]: token["id"] for token in definition["added_tokens"]}
    vocab = sorted((definition["model"]["vocab"] | added).items(), key=lambda entry: entry[1])
    definition["model"] = {**definition["model"], "vocab": dict(vocab)}
    if settings.adds_bos:
        one = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        definition["post_processor"] = {
            "type": "TemplateProcessing",
            "single": one,
            "pair": [*one, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [model.bos_id], "tokens": [bos]}},
        }
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos}
    config |= {"eos_token": eos, "clean_up_tokenization_spaces": False}
    if settings.chat_template is not None:
        config["chat_template"] = settings.chat_template
        if not (file.parent / TEMPLATE).exists():
            (file.parent / TEMPLATE).write_text(settings.chat_template, encoding="utf-8")
    ends = sorted({model.eos_id} | settings.end_ids)
    generation = {"bos_token_id": model.bos_id, "eos_token_id": ends}
    for name, values in ((HUB, definition), (CONFIG, config), (GENERATION, generation)):
        if not (file.parent / name).exists():
            write_json(file.parent / name, values)
