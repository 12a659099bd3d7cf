"""What an engine is asked for, and what it answers: requests in, chunks of text out.

Request(prompt=(1, 450, …), sampling, max_tokens, stop) ──submit──> Engine ──step──> (id, Chunk) …

Chunk.text    whole characters, never a part of a stop string; chunks joined are the answer
Chunk.finish  None until the last chunk: "stop" (end of text, or a stop string) or "length"
"""

from dataclasses import dataclass, field
from typing import Literal

from puna.config import Sampling

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """One text to go on from."""

    prompt: tuple[int, ...]
    """Token ids, BOS included."""
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 128
    """Longest answer; it also ends where the context is full. 0, with prompt_logprobs: the prompt alone."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings, wherever their tokens divide them."""
    logprobs: int | None = None
    """Give each token's log-probability, and those of the k likeliest; 0: the token's own only."""
    prompt_logprobs: bool = False
    """Give the prompt's tokens with theirs too (with `logprobs` alternatives)."""
    ignore_eos: bool = False
    """Go on past the end of text, to measure speed."""
    presence_penalty: float = 0.0
    """Taken from the logit of each token that the answer holds already (as OpenAI has it)."""
    frequency_penalty: float = 0.0
    """Taken from the logit of each token as often as the answer holds it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of these ids."""
    lookup: int = 0
    """Guess up to this many tokens at once from what stood in the text before; see lookup.py."""


@dataclass(frozen=True)
class Token:
    """One token of an answer or prompt."""

    id: int
    piece: bytes
    """What it adds to the text, in bytes: perhaps a part of a character; nothing for a control token."""
    logprob: float | None
    """ln of its probability in the model's own distribution, before temperature and filters; None where not
    asked for, and for the first token of a prompt."""
    top: tuple[tuple[int, float], ...]
    """The likeliest ids with theirs, the likeliest first."""


@dataclass(frozen=True)
class Chunk:
    """What one step added to an answer. A token belongs to the chunk of the step that drew it, and its text
    may come in a later one: text is held back where a character or a stop string may be unfinished."""

    text: str
    tokens: tuple[Token, ...] = ()
    """The tokens drawn; the end-of-text token is not among them."""
    prompt: tuple[Token, ...] = ()
    """The prompt's tokens, once, where prompt_logprobs asked for them."""
    finish: Finish | None = None
