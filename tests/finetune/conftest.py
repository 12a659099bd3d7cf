"""Vocabularies with and without control tokens, and templates of every kind, for the tests of finetuning."""

import json
from pathlib import Path

import pytest

from puna.finetune.templates import TEMPLATES
from puna.tokens.chat_template import ChatTemplate
from puna.tokens.tokenizer import Tokenizer
from tests.conftest import byte_level
from tests.formats.models import tokenizer_model
from tests.tokens.test_chat_template import CHATML, CONTROLS, LLAMA_3, MISTRAL

# The token that ends an answer is written with the next message.
LATE_END = (
    "{{ bos_token }}{% for m in messages %}{% if not loop.first and m.role == 'user' %}{{ eos_token }}"
    "{% endif %}{{ m.role + '\\n' + m.content | trim + '\\n' if m.role != 'assistant' else "
    "'answer\\n' + m.content | trim }}{% endfor %}{% if add_generation_prompt %}{{ 'answer\\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '<|end|>\\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content | trim + '<|eot|>' }}{% endgeneration %}{% else %}"
    "{{ m.content + '<|eot|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\\n' }}{% endif %}"
)
SOURCES = {
    **TEMPLATES,
    "published chatml": CHATML,
    "llama 3": LLAMA_3,
    "mistral": MISTRAL,
    "late end": LATE_END,
    "generation": MARKED,
}


@pytest.fixture(scope="session")
def pieces(tmp_path_factory) -> Tokenizer:
    """SentencePiece, with <s> and </s> alone."""
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "tokenizer.model").write_bytes(tokenizer_model())
    return Tokenizer(folder)


@pytest.fixture(scope="session")
def hub(tmp_path_factory) -> Tokenizer:
    """Byte-level, with the control tokens of all templates."""
    folder = tmp_path_factory.mktemp("hub")
    byte_level(list(CONTROLS)).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(folder)


@pytest.fixture(scope="session")
def template(pieces) -> ChatTemplate:
    """The template `puna` over the plain vocabulary."""
    return ChatTemplate("{{ bos_token }}" + TEMPLATES["puna"], pieces)


def write_rows(path: Path, rows: list) -> Path:
    """JSON lines of these values; a text is a line as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass") + b"\n")
    return path


def chat(*contents: str, system: str | None = None) -> dict:
    """A row of the format messages: question, answer, question, answer …"""
    messages = [
        {"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)
    ]
    before = [{"role": "system", "content": system}] if system is not None else []
    return {"messages": before + messages}
