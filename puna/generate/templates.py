"""Conversations as the model was trained to read them: messages -> token ids.

    [{"role": "user", "content": "Hi"}] ─> the model's Jinja template ─> "<|im_start|>user\\nHi<|im_end|>\\n…"
        ─> cut at the control tokens' texts ─> <|im_start|> u s e r \\n H i <|im_end|> \\n …

What a message says is only ever text: where it holds the text of a control token, a mark is put into that
text before the template runs, and taken out again after the cut. Nobody can end their turn from within it.

Templates are programs out of downloaded files. They run in Jinja's sandbox, which gives them no way to
anything but their own values; the names they are given are those that transformers gives.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from puna.tokens.tokenizer import Tokenizer

Message = Mapping[str, str]
ROLES = ("system", "user", "assistant", "tool")


class ChatTemplate:
    """A model's chat template with its vocabulary."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        """Compile a template.

        Raises:
            ValueError: when it is not valid, or not a template for conversations.
        """
        self.source, self._tokenizer = source, tokenizer
        self._controls = tokenizer.controls
        # The longest first: "<|end|>" must not be found within "<|end|>x", if there are both.
        texts = sorted(map(re.escape, filter(None, self._controls)), key=len, reverse=True)
        self._control = re.compile(f"({'|'.join(texts)})")
        self._begun = re.compile(f"(?=(?:{'|'.join(texts)}))")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ValueError(f"the chat template is not valid ({error}); convert the model again") from error
        self.end_ids = self._end_ids()

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "ChatTemplate | None":
        """The template that comes with a vocabulary, or None: a model that continues texts."""
        source = tokenizer.settings.chat_template
        return cls(source, tokenizer) if source else None

    def encode(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation, up to where the assistant begins its answer.

        Raises:
            ValueError: a message without role or content, or one that the template refuses.
        """
        mark = self._mark(messages)
        marked = []
        for place, message in enumerate(messages):
            if message.get("role") not in ROLES:
                raise ValueError(f"messages[{place}].role must be one of: {', '.join(ROLES)}")
            if not isinstance(message.get("content"), str):
                raise ValueError(f"messages[{place}].content must be a text")
            marked.append({**message, "content": self._marked(message["content"], mark)})
        ids: list[int] = []
        for place, part in enumerate(self._control.split(self._render(marked, add_generation_prompt))):
            if place % 2:  # what the expression caught stands between what it did not
                ids.append(self._controls[part])
            elif text := part.replace(mark, ""):
                ids += self._tokenizer.encode(text)
        return ids

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as one text, to look at: in it a message's words may look like control tokens."""
        return self._render([dict(message) for message in messages], add_generation_prompt)

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        tokenizer = self._tokenizer
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                bos_token=tokenizer.control_text(tokenizer.bos_id),
                eos_token=tokenizer.control_text(tokenizer.eos_id),
                tools=None,
                documents=None,
            )
        # A template is a program: it may also index what is not there, or add a text to a number.
        except (TemplateError, TypeError, KeyError, ValueError, OverflowError, ArithmeticError) as error:
            raise ValueError(f"the chat template refuses these messages: {_one_line(error)}") from error

    def _mark(self, messages: Sequence[Message]) -> str:
        """A character for private use that occurs nowhere else."""
        said = "".join(str(message.get("content")) for message in messages) + self.source
        return next(c for c in map(chr, range(0xF8FF, 0xE000, -1)) if c not in said)

    def _marked(self, content: str, mark: str) -> str:
        """A message's words with a mark within each control token's text.

        And one before the first word and after the last, so that none comes about where the template's own
        text adjoins; within white space, which templates trim.
        """
        # After the first character of every occurrence, overlapping ones too.
        places = [match.start() + 1 for match in self._begun.finditer(content)]
        content = mark.join(content[start:end] for start, end in pairwise([0, *places, len(content)]))
        words = content.strip()
        if not words:
            return content
        return content.replace(words, f"{mark}{words}{mark}", 1)

    def _end_ids(self) -> frozenset[int]:
        """The control token that follows an answer; found by laying one out."""
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        mark = self._mark(talk)
        marked = [{**message, "content": self._marked(message["content"], mark)} for message in talk]
        try:
            text = self._render(marked, add_generation_prompt=False)
        except ValueError:
            return frozenset()
        end = self._control.search(text, text.rfind(mark) + 1)
        return frozenset([self._controls[end[0]]] if end else [])


def _to_json(value: Any, indent: int | None = None) -> str:
    """As transformers has it: text as it is, not escaped for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
