"""Conversations as the model was trained to read them: messages -> token ids.

    [{"role": "user", "content": "Hi"}] ─> the model's Jinja template ─> "<|im_start|>user\\nHi<|im_end|>\\n…"
        ─> cut at the control tokens' texts ─> <|im_start|> u s e r \\n H i <|im_end|> \\n …

What a message says is only ever text: where it holds the text of a control token, a mark is put into that
text before the template runs, and taken out again after the cut. Nobody can end their turn from within it.

Templates are programs out of downloaded files: they run in a process of their own (rendering.py), within
limits of time, memory and output, and whatever they do is a ValueError of one line.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from puna.tokens.rendering import MAX_OUTPUT, RENDERER, Item
from puna.tokens.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
Message = Mapping[str, str]
ROLES = ("system", "user", "assistant", "tool")
_REFUSES = "the chat template refuses these messages"


class ChatTemplate:
    """A model's chat template with its vocabulary."""

    def __init__(self, source: str, tokenizer: Tokenizer, strict: bool = True) -> None:
        """Compile a template. With `strict` False one that is not valid is kept, and refuses to encode.

        Raises:
            ValueError: when it is not valid, or not a template for conversations.
        """
        self.source, self._tokenizer = source, tokenizer
        self.fault: str | None = None
        """Why it cannot be used, if so."""
        self._controls = tokenizer.controls
        self._control = _control_pattern(tokenizer)
        self._begun = re.compile(f"(?={self._control.pattern})")
        self.end_ids: frozenset[int] = frozenset()
        try:
            RENDERER.check(source)
        except ValueError as error:
            message = f"the chat template is not valid ({error}); convert the model again"
            if strict:
                raise ValueError(message) from error
            self.fault = message
        else:
            self.end_ids = self._end_ids()

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "ChatTemplate | None":
        """The template that comes with a vocabulary, or None: a model that continues texts.

        A template that is not valid is one that refuses, with a warning: the model still continues texts.
        """
        source = tokenizer.settings.chat_template
        if not source:
            return None
        template = cls(source, tokenizer, strict=False)
        if template.fault:
            _log.warning("%s: %s; texts are continued, conversations refused", tokenizer.path, template.fault)
        return template

    def encode(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation, up to where the assistant begins its answer.

        Raises:
            ValueError: a message without role or content, or one that the template refuses.
        """
        return self.ids(*self.lay_out(messages, add_generation_prompt))

    def encode_all(self, requests: Sequence[tuple[Sequence[Message], bool]]) -> list[list[int] | ValueError]:
        """As `encode`, for many conversations at once, which is faster.

        What they have in common, as the beginnings of one conversation do, is encoded once. The error of a
        conversation that the template refuses, or that cannot be encoded, is returned instead of its ids.
        """
        mark = self._mark([message for messages, _ in requests for message in messages])
        marked = cache(lambda content: self._marked(content, mark))
        items = [self._item(self._checked(messages, marked), goes_on) for messages, goes_on in requests]
        return _ids_of_all(
            self._tokenizer,
            [
                ValueError(f"{_REFUSES}: {text}") if isinstance(text, ValueError) else self._parts(text, mark)
                for text in RENDERER.render_all(self.source, items)
            ],
        )

    def lay_out(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> tuple[str, str]:
        """The conversation as one text for `ids`, and the mark that it has within messages.

        Raises:
            ValueError: as `encode`.
        """
        mark = self._mark(messages)
        marked = self._checked(messages, lambda content: self._marked(content, mark))
        return self._render(marked, add_generation_prompt), mark

    def _checked(self, messages: Sequence[Message], marked: Callable[[str], str]) -> list[dict[str, str]]:
        """The messages as the template gets them, with marks."""
        if self.fault:
            raise ValueError(self.fault)
        for place, message in enumerate(messages):
            if message.get("role") not in ROLES:
                raise ValueError(f"messages[{place}].role must be one of: {', '.join(ROLES)}")
            if not isinstance(message.get("content"), str):
                raise ValueError(f"messages[{place}].content must be a text")
        return [{**message, "content": marked(message["content"])} for message in messages]

    def ids(self, text: str, mark: str) -> list[int]:
        """The ids of a text of `lay_out`."""
        return _ids(self._tokenizer, self._parts(text, mark))

    def _parts(self, text: str, mark: str) -> list[int | str]:
        return _parts(self._tokenizer, self._control.split(text), mark)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as one text, to look at: in it a message's words may look like control tokens."""
        return self._render([dict(message) for message in messages], add_generation_prompt)

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return RENDERER.render(self.source, *self._item(messages, add_generation_prompt))
        except ValueError as error:
            raise ValueError(f"{_REFUSES}: {error}") from error

    def _item(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> Item:
        """The values of a template, and the largest number of characters that it may write."""
        values = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
            **self._tokenizer.special_texts,
        }
        # What the messages say may be laid out more than once, but not without end.
        said = sum(len(message["content"]) for message in messages)
        return values, min(MAX_OUTPUT, 4 * said + (1 << 20))

    def _mark(self, messages: Sequence[Message]) -> str:
        """A character for private use that occurs nowhere else."""
        said = "".join({str(message.get("content")) for message in messages}) + self.source
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
        roles = {"a": "user", "b": "assistant", "c": "user"}
        talk = [{"role": role, "content": content} for content, role in roles.items()]
        ends = self._controls_behind(talk[:2])
        if not ends:  # some templates write the end with the next message
            ends = self._controls_behind(talk) & ({self._tokenizer.eos_id} | self._tokenizer.settings.end_ids)
        return ends

    def _controls_behind(self, talk: Sequence[Message]) -> frozenset[int]:
        """The control token that follows the second of these messages, before the third."""
        try:
            text, mark = self.lay_out(talk, add_generation_prompt=False)
        except ValueError:
            return frozenset()
        # Each message has a mark before it and one behind.
        behind = text.rpartition(f"{mark}b{mark}")[2].partition(mark)[0]
        end = self._control.search(behind)
        return frozenset([self._controls[end[0]]] if end else [])


def encode_special(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text in which control tokens are written as files write them."""
    return _ids(tokenizer, _parts(tokenizer, _control_pattern(tokenizer).split(text)))


def _control_pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    return re.compile(f"({_any_of(list(filter(None, tokenizer.controls)))})")


def _parts(tokenizer: Tokenizer, split: Sequence[str], mark: str = "") -> list[int | str]:
    """Control tokens as ids, and the texts between, of a text that was split at its control tokens.

    A text that begins with a control token has an empty text before it.
    """
    parts: list[int | str] = []
    for place, part in enumerate(split):
        if place % 2:
            parts.append(tokenizer.controls[part])
            continue
        words = part.replace(mark, "") if mark else part
        parts.append(words.lstrip() if place and split[place - 1] in tokenizer.strips else words)
    return parts


def _ids(
    tokenizer: Tokenizer, parts: Sequence[int | str], known: Mapping[str, list[int]] = MappingProxyType({})
) -> list[int]:
    """The ids of `_parts`; those of texts behind control tokens may be `known`."""
    first, *others = parts
    ids = tokenizer.encode(first) if isinstance(first, str) and first else []
    for part in others:
        if isinstance(part, int):
            ids.append(part)
        elif part:
            ids += known[part] if part in known else tokenizer.encode_behind([part])[0]
    return ids


def _ids_of_all(
    tokenizer: Tokenizer, all_parts: Sequence[list[int | str] | ValueError]
) -> list[list[int] | ValueError]:
    """As `_ids`, encoding what several have in common once, and all of it together."""
    texts = {part: None for parts in all_parts if isinstance(parts, list) for part in parts[1:] if part}
    behind = [text for text in texts if isinstance(text, str)]
    known: dict[str, list[int]] = {}
    with suppress(ValueError):  # a text that cannot be encoded: below, each conversation encodes its own
        known = dict(zip(behind, tokenizer.encode_behind(behind), strict=True))
    found: list[list[int] | ValueError] = []
    for parts in all_parts:
        try:
            found.append(parts if isinstance(parts, ValueError) else _ids(tokenizer, parts, known))
        except ValueError as error:
            found.append(error)
    return found


def _any_of(texts: Sequence[str]) -> str:
    """A regular expression of any of these texts, the longest first: "<|end|>" is not found in "<|end|>x".

    Hundreds of alternatives that all begin with "<|" would be tried one after the other at each "<".
    """
    if not texts:
        return r"(?!)"
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}

    def expression(node: dict[str, Any]) -> str:
        ends = "" in node
        branches = [
            re.escape(character) + expression(below) for character, below in node.items() if character
        ]
        if not branches:
            return ""
        joined = branches[0] if len(branches) == 1 and not ends else f"(?:{'|'.join(branches)})"
        return joined + "?" * ends

    return expression(tree)
