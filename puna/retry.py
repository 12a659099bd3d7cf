"""Doing again what may succeed the next time: requests to publishers, package indexes and object storage."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

_LONGEST_WAIT = 600.0
_LONGEST_LINE = 200

T = TypeVar("T")


class TryAgain(Exception):
    """A failure that may pass; `wait` is how many seconds the server asks to wait."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def retry(
    action: Callable[[], T], waits: Sequence[float], has_progressed: Callable[[], bool] = lambda: False
) -> T:
    """Call `action` until it no longer raises TryAgain; returns its result.

    Args:
        action: what to do; every other exception passes through.
        waits: seconds between attempts; one more attempt than there are waits.
        has_progressed: asked after a failure; when true, the count of attempts begins anew.

    Raises:
        TryAgain: the last failure.
    """
    failures = 0
    while True:
        try:
            return action()
        except TryAgain as error:
            failures = 0 if has_progressed() else failures + 1
            if failures > len(waits):
                raise
            wait = waits[max(0, failures - 1)] if waits else 0.0
            time.sleep(min(max(error.wait, wait), _LONGEST_WAIT))


def one_line(error: BaseException) -> str:
    """An exception's message on one line of at most 200 characters; its type when it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_LINE else text[:_LONGEST_LINE] + "..."
