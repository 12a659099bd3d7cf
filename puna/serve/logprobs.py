r"""Log-probabilities in the two forms of OpenAI's API.

In:  the engine's tokens: id, bytes, log-probability, the most likely alternatives.
Out: four parallel lists with offsets into the text (completions), or one record per token (chat).

A token need not be whole characters. If its bytes are not valid UTF-8, it is written "bytes:\xe2\x9c", as
OpenAI does; chat has the bytes as well.
"""

from collections.abc import Callable, Sequence
from typing import Any

from puna.generate.request import Token
from puna.serve.answers import ChatLogprobs, ChosenLogprob, CompletionLogprobs, TokenLogprob

# JSON has no infinity: impossible tokens get this log-probability, as OpenAI's do.
LEAST = -9999.0


def token_text(piece: bytes) -> str:
    """A token as text."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _finite(logprob: float) -> float:
    """Clamp to [LEAST, 0]; NaN becomes LEAST."""
    return min(logprob, 0.0) if logprob > LEAST else LEAST


class LogprobLists:
    """The lists of one answer, chunk by chunk; text offsets continue across chunks.

    `push` is a stream decoder's that has consumed what precedes the text; `piece` gives a token's bytes.
    """

    def __init__(self, push: Callable[[int], str], piece: Callable[[int], bytes]) -> None:
        self._push, self._piece = push, piece
        self._offset = 0

    def push(self, tokens: Sequence[Token]) -> CompletionLogprobs:
        """The lists of the next tokens."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._push(token.id))
        return CompletionLogprobs(
            tokens=[token_text(token.piece) for token in tokens],
            token_logprobs=[None if t.logprob is None else _finite(t.logprob) for t in tokens],
            top_logprobs=[self._top(token) for token in tokens],
            text_offset=offsets,
        )

    def _top(self, token: Token) -> dict[str, float] | None:
        """The most likely tokens and the chosen one; of tokens with the same text, the most likely."""
        if token.logprob is None:
            return None
        top: dict[str, float] = {}
        for id, logprob in (*token.top, (token.id, token.logprob)):
            text = token_text(self._piece(id))
            top[text] = max(top.get(text, LEAST), _finite(logprob))
        return top


def chat_logprobs(tokens: Sequence[Token], piece: Callable[[int], bytes]) -> ChatLogprobs:
    """One record per token."""
    content = []
    for token in tokens:
        logprob = LEAST if token.logprob is None else token.logprob
        top = [TokenLogprob(**_fields(piece(id), other)) for id, other in token.top]
        content.append(ChosenLogprob(**_fields(token.piece, logprob), top_logprobs=top))
    return ChatLogprobs(content=content)


def _fields(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_text(piece), "logprob": _finite(logprob), "bytes": list(piece)}
