"""From sampled tokens to text that may be sent: whole characters, and nothing of a stop string.

tokens ─> bytes ─> whole characters ─> held back while they may begin a stop string ─> text
"""

from collections.abc import Sequence

from puna.tokens.tokenizer import StreamDecoder


class AnswerText:
    """The text of one answer as it grows; it does not depend on how tokens divide it."""

    def __init__(self, decoder: StreamDecoder, stop: Sequence[str]) -> None:
        self._decoder, self._stop = decoder, stop
        self._pending = ""
        self.stopped = False

    def push(self, id: int) -> str:
        """Add a token; returns the text that can be sent."""
        return self._release(self._decoder.push(id))

    def finish(self) -> str:
        """The remaining text, when no token will follow."""
        text = self._release(self._decoder.flush())
        rest, self._pending = self._pending, ""
        return text + rest

    def _release(self, text: str) -> str:
        if not self._stop or self.stopped:
            return "" if self.stopped else text
        self._pending += text
        # The stop string that ends first; of several, the longest.
        found = [(at + len(stop), at) for stop in self._stop if (at := self._pending.find(stop)) >= 0]
        if found:
            released, self._pending = self._pending[: min(found)[1]], ""
            self.stopped = True
            return released
        end = len(self._pending) - max(self._overlap(stop) for stop in self._stop)
        released, self._pending = self._pending[:end], self._pending[end:]
        return released

    def _overlap(self, stop: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        longest = min(len(stop) - 1, len(self._pending))
        return next((n for n in range(longest, 0, -1) if self._pending.endswith(stop[:n])), 0)
