"""What an engine is asked for, and what it answers: requests in, chunks of text out.

Request(prompt=(1, 450, …), sampling, max_tokens, stop) ──submit──> Engine ──step──> (id, Chunk) …

Chunk.text    whole characters, never part of a stop string; the chunks joined are the answer
Chunk.finish  None until the last chunk: "stop" (end of text, or a stop string) or "length"
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from puna.config import Sampling
from puna.generate.json_schema import Grammar

Finish = Literal["stop", "length"]


class Limits(NamedTuple):
    """What one request may ask of an engine."""

    context: int
    cache_positions: int
    """Size of the KV cache, in tokens."""
    embeddings: int
    """Rows of the embedding: prompt ids are below."""
    vocab_size: int
    """Tokens that can be sampled."""
    lookup_is_exact: Callable[[], bool]
    """Whether several tokens in one call round as one does; a runner measures it when first asked."""


@dataclass(frozen=True)
class Request:
    """A generation request."""

    prompt: tuple[int, ...]
    """Token ids, including BOS."""
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 128
    """Maximum number of generated tokens; the context may end an answer earlier. 0, with prompt_logprobs:
    score the prompt only."""
    stop: tuple[str, ...] = ()
    """Stop strings: the answer ends before the first of them, however tokens divide it."""
    logprobs: int | None = None
    """Return each token's log-probability and the k most likely alternatives; 0: the token's own only."""
    prompt_logprobs: bool = False
    """Also return the prompt's tokens with their log-probabilities and `logprobs` alternatives."""
    ignore_eos: bool = False
    """Continue after the end of text, to measure speed."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that occurs in the answer (as in OpenAI's API)."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of each token for each time that it occurs in the answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Values to add to the logits of token ids."""
    grammar: Grammar | None = None
    """The answer is JSON that conforms to a schema (`Engine.grammars`)."""
    lookup: int = 0
    """Maximum number of draft tokens of prompt-lookup decoding (lookup.py); 0 disables."""

    @property
    def n_logprobs(self) -> int:
        """How many log-probabilities the answer may hold, alternatives included."""
        tokens = len(self.prompt) * self.prompt_logprobs + self.max_tokens
        return 0 if self.logprobs is None else tokens * (self.logprobs + 1)

    def cache_positions(self, end: int) -> int:
        """KV-cache positions that `end` tokens in total need: the last sampled token needs none."""
        return end - bool(self.max_tokens)

    def check(self, limits: Limits) -> None:
        """Raises ValueError naming the invalid field, if the request can never run."""
        self.sampling.validate()
        size, context = len(self.prompt), limits.context
        if self.max_tokens < (0 if self.prompt_logprobs else 1):
            raise ValueError(f"max-tokens is {self.max_tokens}; it must be positive")
        if not self.prompt:
            raise ValueError("the prompt is empty; give at least one token")
        if size + bool(self.max_tokens) > context:
            raise ValueError(
                f"the prompt is {size} tokens long, and model.context {context} must hold the answer too; "
                "shorten the prompt"
            )
        if not 0 <= min(self.prompt) <= max(self.prompt) < limits.embeddings:
            raise ValueError(f"the prompt holds an id outside 0..{limits.embeddings - 1}")
        needed = self.cache_positions(min(context, size + self.max_tokens))
        if needed > limits.cache_positions:
            raise ValueError(
                f"the prompt of {size} tokens and max-tokens {self.max_tokens} need {needed} KV-cache "
                f"positions, and the cache has {limits.cache_positions}; lower one, or raise cache-tokens"
            )
        if not all(self.stop):
            raise ValueError("stop holds an empty string; leave it out")
        if self.logprobs is not None and not 0 <= self.logprobs <= limits.vocab_size:
            raise ValueError(f"logprobs is {self.logprobs}; it must be from 0 to {limits.vocab_size}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from -2 to 2")
        for id, bias in self.logit_bias:
            if not 0 <= id < limits.vocab_size:
                raise ValueError(f"logit_bias names token {id}; ids are below {limits.vocab_size}")
            if not -100 <= bias <= 100:
                raise ValueError(f"logit_bias of token {id} is {bias}; it must be from -100 to 100")
        if self.grammar and self.ignore_eos:
            raise ValueError("ignore_eos would continue behind the end of the JSON; leave it out")
        if self.lookup < 0:
            raise ValueError(f"lookup is {self.lookup}; it must be 0 (off) or above")
        if self.lookup and self.sampling.temperature > 0:
            raise ValueError("lookup is exact only for greedy decoding; set temperature 0, or leave it out")
        if self.lookup and not limits.lookup_is_exact():
            raise ValueError(
                "lookup would not be exact: with these weights on this machine several tokens in one call "
                "round differently from one token; leave it out, or choose other weights"
            )


@dataclass(frozen=True)
class Token:
    """One token of an answer or prompt."""

    id: int
    piece: bytes
    """The bytes that it adds to the text: maybe part of a character; empty for a control token."""
    logprob: float | None
    """Its log-probability in the model's own distribution, before temperature and filters; None if not
    requested, and for the first token of a prompt."""
    top: tuple[tuple[int, float], ...]
    """The most likely token ids with their log-probabilities, in falling order."""


@dataclass(frozen=True)
class Chunk:
    """What one step added to an answer.

    A token belongs to the chunk of the step that sampled it; its text may come in a later one, because
    unfinished characters and possible stop strings are held back.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    """The sampled tokens, without the end-of-text token."""
    prompt: tuple[Token, ...] = ()
    """The prompt's tokens, once, if prompt_logprobs is set."""
    finish: Finish | None = None
    error: str | None = None
    """Why the answer could not be continued; no chunk follows."""
    end: Token | None = None
    """The end-of-text token that ended the answer, if log-probabilities were asked for."""
