"""Chat templates for models that come without one, and the files that carry a template with a run.

The template that trains is written beside the run's tokenizer, where chat, serve, evaluation and the
converters to Hugging Face and GGUF look for a model's template. Nothing is chosen silently: a model without a
template needs the name of one.

    chatml    <|im_start|>user⏎…<|im_end|>⏎            needs these two control tokens in the vocabulary
    alpaca    ### Instruction:⏎…⏎⏎### Response:⏎…</s>    the layout of Stanford Alpaca; any vocabulary
    puna      ### user:⏎…⏎⏎### assistant:⏎…</s>          any vocabulary; system messages and many turns
    plain     ……</s>                                    question and answer as they are: continued texts

Each begins with BOS where the vocabulary's texts do. `</s>` is the vocabulary's own end-of-text token.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from puna.added_tokens import CONFIG, GENERATION, TEMPLATE
from puna.formats.special_ids import read_beside
from puna.tokens.chat_template import ChatTemplate
from puna.tokens.tokenizer import MODEL, Tokenizer

TEMPLATES = {
    "chatml": """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "alpaca": """\
{% if messages[0]['role'] == 'system' %}
{{ messages[0]['content'] | trim + '\\n\\n' }}
{%- else %}
{{ 'Below is an instruction that describes a task. ' }}
{{- 'Write a response that appropriately completes the request.\\n\\n' }}
{%- endif %}
{% for message in messages if message['role'] != 'system' %}
{% if message['role'] == 'assistant' %}
{{ message['content'] | trim + eos_token + '\\n\\n' }}
{%- else %}
{{ '### Instruction:\\n' + message['content'] | trim + '\\n\\n### Response:\\n' }}
{%- endif %}
{% endfor %}""",
    "puna": """\
{% for message in messages %}
{{ '### ' + message['role'] + ':\\n' + message['content'] | trim }}
{{- eos_token if message['role'] == 'assistant' else '' }}{{ '\\n\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '### assistant:\\n' }}{% endif %}""",
    "plain": """\
{% for message in messages %}
{{ message['content'] + (eos_token if message['role'] == 'assistant' else '') }}
{%- endfor %}""",
}
_CONTROL = re.compile(r"<\|\w+\|>")  # how control tokens look in templates


def choose_template(tokenizer: Tokenizer, name: str | None) -> ChatTemplate:
    """The template of a name in TEMPLATES; None: the one that the model comes with.

    Raises:
        ValueError: an unknown name, a model without a template, a vocabulary without its control tokens.
    """
    names = ", ".join(TEMPLATES)
    if name is None:
        source = tokenizer.settings.chat_template
        if not source:
            raise ValueError(f"{tokenizer.path} has no chat template; choose one by --template: {names}")
    elif name in TEMPLATES:
        source = "{{ bos_token }}" * tokenizer.adds_bos + TEMPLATES[name]
    else:
        raise ValueError(f"template is {name!r}; it must be one of: {names}")
    template = ChatTemplate(source, tokenizer)
    said = "template" if name is None else f"template {name}"
    question = [{"role": "user", "content": "a"}]
    shown = template.render([*question, {"role": "assistant", "content": "b"}]) + template.render(question)
    if missing := [text for text in _CONTROL.findall(shown) if text not in tokenizer.controls]:
        raise ValueError(
            f"the {said} needs the control tokens {', '.join(dict.fromkeys(missing))}, which are not in "
            f"{tokenizer.path}; choose one that needs none: --template puna"
        )
    if not template.end_ids:
        raise ValueError(
            f"the {said} ends an answer with no control token, so that a model could not learn to end; "
            f"choose another by --template: {names}"
        )
    return template


def with_template(
    files: dict[str, Path | bytes], template: ChatTemplate, tokenizer: Tokenizer
) -> dict[str, Path | bytes]:
    """A tokenizer's files, by name, with this template: for the run's directory.

    The tokens that end an answer are named in generation_config.json, where other programs look for them.
    """
    ends = sorted({tokenizer.eos_id} | tokenizer.settings.end_ids | template.end_ids)
    found: dict[str, Path | bytes] = {**files, TEMPLATE: template.source.encode()}
    found[GENERATION] = _json(read_beside(files, GENERATION) | {"eos_token_id": ends})
    config = read_beside(files, CONFIG)
    if not config and MODEL in files:
        # Without it a text behind a control token begins with a space here and in llama.cpp, but not in
        # transformers, where the model would then be sent other tokens than it was trained on.
        config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": tokenizer.adds_bos}
        config |= {**tokenizer.special_texts, "unk_token": "<unk>"}
    if config:  # where older versions of transformers look for the template
        found[CONFIG] = _json(config | {"chat_template": template.source})
    return found


def _json(values: Mapping[str, object]) -> bytes:
    return json.dumps(values, indent=2, ensure_ascii=False).encode()
