"""Log-probabilities in the two forms that OpenAI's clients read.

In:  the engine's tokens: id, bytes, log-probability, the likeliest alternatives.
Out: four parallel lists with offsets into the text (completions), or one record a token (chat).

A token need not be whole characters. Where its bytes are not UTF-8 it is written "bytes:\\xe2\\x9c", as
OpenAI does; chat has the bytes beside it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from puna.generate.request import Token

# JSON knows no infinity: what cannot happen has this log-probability, as OpenAI has it.
LEAST = -9999.0


def token_text(piece: bytes) -> str:
    """A token as text."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _finite(logprob: float) -> float:
    """A number that JSON has: what is below LEAST, or no number at all, is LEAST; none is above 0."""
    return min(logprob, 0.0) if logprob > LEAST else LEAST


class CompletionLogprobs:
    """The lists of one answer, chunk after chunk; offsets go on from the chunk before.

    `push` is a stream decoder's, fed with what comes before the text; `piece` gives a token's bytes.
    """

    def __init__(self, push: Callable[[int], str], piece: Callable[[int], bytes]) -> None:
        self._push, self._piece = push, piece
        self._offset = 0

    def lists(self, tokens: Sequence[Token]) -> dict[str, list[Any]]:
        """The four lists of these tokens."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._push(token.id))
        return {
            "tokens": [token_text(token.piece) for token in tokens],
            "token_logprobs": [None if t.logprob is None else _finite(t.logprob) for t in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": offsets,
        }

    def _top(self, token: Token) -> dict[str, float] | None:
        """The likeliest tokens and the chosen one; of tokens that read alike, the likeliest."""
        if token.logprob is None:
            return None
        top: dict[str, float] = {}
        for id, logprob in (*token.top, (token.id, token.logprob)):
            text = token_text(self._piece(id))
            top[text] = max(top.get(text, LEAST), _finite(logprob))
        return top


def joined(parts: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """The lists of several chunks as those of one."""
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [value for part in parts for value in part[name]] for name in names}


def chat_logprobs(tokens: Sequence[Token], piece: Callable[[int], bytes]) -> list[dict[str, Any]]:
    """One record a token."""

    def record(data: bytes, logprob: float) -> dict[str, Any]:
        return {"token": token_text(data), "logprob": _finite(logprob), "bytes": list(data)}

    return [
        record(token.piece, LEAST if token.logprob is None else token.logprob)
        | {"top_logprobs": [record(piece(id), logprob) for id, logprob in token.top]}
        for token in tokens
    ]
