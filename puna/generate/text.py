"""From drawn tokens to text that may be shown: whole characters, and nothing of a stop string.

tokens ─> bytes ─> characters that are whole ─> held back while they may begin a stop string ─> text
"""

from collections.abc import Sequence

from puna.tokens.tokenizer import StreamDecoder


class AnswerText:
    """The text of one answer as it grows. It is the same however the tokens divide it."""

    def __init__(self, decoder: StreamDecoder, stop: Sequence[str]) -> None:
        self._decoder, self._stop = decoder, stop
        self._held = ""
        self.stopped = False

    def push(self, id: int) -> str:
        """The text that is sure now."""
        return self._sure(self._decoder.push(id))

    def finish(self) -> str:
        """The rest, when no token will follow."""
        text = self._sure(self._decoder.flush())
        rest, self._held = self._held, ""
        return text + rest

    def _sure(self, text: str) -> str:
        if not self._stop or self.stopped:
            return "" if self.stopped else text
        self._held += text
        # The one that is complete first; of those, the longest.
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            sure, self._held = self._held[: min(found)[1]], ""
            self.stopped = True
            return sure
        kept = max(self._begun(stop) for stop in self._stop)
        sure, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return sure

    def _begun(self, stop: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
