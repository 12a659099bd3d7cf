"""A loaded model from Python: prompts and conversations in, texts out. `puna.load` makes one."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack, overload

from puna.config import Sampling
from puna.generate.engine import Engine
from puna.generate.request import Request

Conversation = Sequence[Mapping[str, str]]


class Options(TypedDict, total=False):
    """Options of one call."""

    max_tokens: int
    """Maximum number of generated tokens; default 128."""
    stop: str | Sequence[str]
    """Generation ends before the first of these strings."""
    temperature: float
    """Sampling temperature, default 0.8; 0 always picks the most likely token."""
    top_k: int
    """Sample from the k most likely tokens; 0, the default, disables."""
    top_p: float
    """Sample from the fewest most likely tokens of total probability p; default 0.95, 1 disables."""
    min_p: float
    """Sample from tokens at least p times as likely as the best one; 0, the default, disables."""
    repetition_penalty: float
    """Penalty on the logits of tokens already in the text; 1, the default, disables."""
    seed: int
    """Random seed of sampling, default 1: the same seed gives the same text."""
    schema: Mapping[str, Any]
    """JSON schema that the answer conforms to, if it ends before max_tokens; needs the extra `json`."""


class LanguageModel:
    """A model that generates text.

    All methods take the keywords of `Options`: max_tokens, stop, temperature, top_k, top_p, min_p,
    repetition_penalty, seed, schema. They raise a ValueError when an option is invalid or the prompt does not
    fit into the model's context. Not thread-safe: use one from one thread.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str
        self, prompt: str, **options: Unpack[Options]
    ) -> str: ...
    @overload
    def generate(self, prompt: Sequence[str], **options: Unpack[Options]) -> list[str]: ...
    def generate(self, prompt: str | Sequence[str], **options: Unpack[Options]) -> str | list[str]:
        """The continuation of a prompt, without the prompt; of several prompts, a list, computed together.

        >>> texts = model.generate(["The", "A"], max_tokens=8, temperature=0)
        >>> len(texts)
        2
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        requests = [self._request(self.engine.encode(text), **options) for text in prompts]
        texts = [""] * len(requests)
        for index, chunk in self.engine.answers(requests):
            texts[index] += chunk.text
        return texts[0] if isinstance(prompt, str) else texts

    def chat(self, messages: Conversation, **options: Unpack[Options]) -> str:
        """The assistant's answer to a conversation of messages with "role" and "content".

            model.chat([{"role": "user", "content": "What is the capital of France?"}])

        Raises:
            ValueError: also when the model has no chat template.
        """
        return "".join(self.stream(messages, **options))

    def stream(self, prompt: str | Conversation, **options: Unpack[Options]) -> Iterator[str]:
        """The continuation of a prompt, or the answer to a conversation, in chunks as it is generated.

        Each chunk is whole characters; joined, they are what `generate` or `chat` returns.

        >>> chunks = list(model.stream("The", max_tokens=8, temperature=0))
        >>> "".join(chunks) == model.generate("The", max_tokens=8, temperature=0)
        True
        """
        for _, chunk in self.engine.answers([self._request(self._ids(prompt), **options)]):
            if chunk.text:
                yield chunk.text

    def _ids(self, prompt: str | Conversation) -> list[int]:
        if isinstance(prompt, str):
            return self.engine.encode(prompt)
        if self.engine.template is None:
            raise ValueError("this model has no chat template; continue a text with generate instead")
        return self.engine.template.encode([dict(message) for message in prompt])

    def _request(
        self,
        ids: list[int],
        *,
        max_tokens: int = 128,
        stop: str | Sequence[str] = (),
        schema: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> Request:
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        grammar = None if schema is None else self.engine.grammars.compile(json.dumps(schema))
        return Request(tuple(ids), Sampling(**sampling), max_tokens, stops, grammar=grammar)
