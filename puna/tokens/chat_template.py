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
from collections.abc import Mapping, Sequence
from itertools import pairwise

from puna.tokens.rendering import MAX_OUTPUT, RENDERER
from puna.tokens.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
Message = Mapping[str, str]
ROLES = ("system", "user", "assistant", "tool")


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
        # The longest first: "<|end|>" must not be found within "<|end|>x", if there are both.
        pattern = _any_of(list(filter(None, self._controls)))
        self._control = _control_pattern(tokenizer)
        self._begun = re.compile(f"(?=(?:{pattern}))")
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

    def lay_out(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> tuple[str, str]:
        """The conversation as one text for `ids`, and the mark that it has within messages.

        Raises:
            ValueError: as `encode`.
        """
        if self.fault:
            raise ValueError(self.fault)
        mark = self._mark(messages)
        marked = []
        for place, message in enumerate(messages):
            if message.get("role") not in ROLES:
                raise ValueError(f"messages[{place}].role must be one of: {', '.join(ROLES)}")
            if not isinstance(message.get("content"), str):
                raise ValueError(f"messages[{place}].content must be a text")
            marked.append({**message, "content": self._marked(message["content"], mark)})
        return self._render(marked, add_generation_prompt), mark

    def ids(self, text: str, mark: str) -> list[int]:
        """The ids of a text of `lay_out`."""
        return _special_ids(self._tokenizer, self._control.split(text), mark)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as one text, to look at: in it a message's words may look like control tokens."""
        return self._render([dict(message) for message in messages], add_generation_prompt)

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        values = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
            **self._tokenizer.special_texts,
        }
        # What the messages say may be laid out more than once, but not without end.
        said = sum(len(message["content"]) for message in messages)
        try:
            return RENDERER.render(self.source, values, min(MAX_OUTPUT, 4 * said + (1 << 20)))
        except ValueError as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error

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


def encode_special(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text in which control tokens are written as files write them."""
    return _special_ids(tokenizer, _control_pattern(tokenizer).split(text))


def _control_pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    return re.compile(f"({_any_of(list(filter(None, tokenizer.controls)))})")


def _special_ids(tokenizer: Tokenizer, parts: Sequence[str], mark: str = "") -> list[int]:
    """The ids of a text that was split at its control tokens, which are every second part."""
    ids: list[int] = []
    for place, part in enumerate(parts):
        if place % 2:
            ids.append(tokenizer.controls[part])
            continue
        words = part.replace(mark, "") if mark else part
        if place and parts[place - 1] in tokenizer.strips:
            words = words.lstrip()
        if words:
            # An empty first part means that the text begins with a control token.
            ids += tokenizer.encode_behind(words) if place else tokenizer.encode(words)
    return ids


def _any_of(texts: Sequence[str]) -> str:
    """A regular expression of any of these texts, the longest first; common beginnings are read once.

    Hundreds of alternatives that all begin with "<|" would be tried one after the other at each "<".
    """
    if not texts:
        return r"(?!)"
    tree: dict[str, dict] = {}
    for text in texts:
        node = tree
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}

    def expression(node: dict[str, dict]) -> str:
        ends = "" in node
        branches = [
            re.escape(character) + expression(below) for character, below in node.items() if character
        ]
        if not branches:
            return ""
        joined = branches[0] if len(branches) == 1 and not ends else f"(?:{'|'.join(branches)})"
        return joined + "?" * ends

    return expression(tree)
