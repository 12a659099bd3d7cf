"""How many tokens of prompts and drafts fit into a step of the engine while others wait for it.

A token near the end of a long prompt costs several times what one at its beginning does, and machines differ:
the size of a chunk follows from the time that the last one took, and that decoding took.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

STEP_SECONDS = 0.13  # of a step that answers wait for: 0.2 s at most, with all else that happens
ALONE_SECONDS = 0.5  # of another: what is cancelled, or stopped by Ctrl-C, ends with the step
LEAST = 8  # tokens of a chunk, however slow the machine is


class Pace:
    """The time of the last steps, and the room that is left in this one."""

    def __init__(self) -> None:
        self.room = 0
        self._token_seconds, self._decode_seconds = 0.003, 0.0

    def begin(self, most: int, is_free: bool, is_shared: bool) -> None:
        """Begin a step of at most `most` tokens, or, without the freedom to compute fewer, of so many."""
        left = STEP_SECONDS - self._decode_seconds if is_shared else ALONE_SECONDS
        self.room = max(LEAST, min(most, int(left / self._token_seconds))) if is_free else most

    @contextmanager
    def chunk(self, tokens: int) -> Iterator[None]:
        """Measure what is done with a chunk of a prompt."""
        self.room -= tokens
        began = time.perf_counter()
        yield
        if tokens >= LEAST:
            self._token_seconds = (time.perf_counter() - began) / tokens

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Measure what is done for answers."""
        began = time.perf_counter()
        yield
        self._decode_seconds = time.perf_counter() - began
