"""Prompt lookup: guess the next tokens from what stood in the text before, verify them in one call.

    text    … the quick brown fox … the quick       the last tokens occurred before: "the quick"
    draft                                    brown fox …            what followed them then
    verify  one prefill of [quick, brown, fox, …] gives what the model says after each of them:
            brown ✓  fox ✓  jumps ✗ ─> jumps        two guesses taken, and the model's own next token

The answer is greedy decoding's own, because only tokens that the model itself says are taken. That holds to
the bit where prefill and decode compute the same bits (`Runner.prefill_is_decode`), and the engine refuses
elsewhere: with rounding that depends on how many tokens are in a call, a near tie could fall otherwise.
It is greedy alone: drawn tokens would need rejection sampling. Saxena 2023, after Leviathan et al. 2022.
"""

from collections.abc import Sequence

_LENGTHS = (4, 3, 2)  # tokens that must have occurred before, the longest first


class Drafts:
    """The endings of a text that occurred before, and what followed: found in constant time."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # some tokens -> where what followed them last begins
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """The text goes on with this token."""
        end = len(self._tokens)
        for n in _LENGTHS:
            if end >= n:
                self._after[tuple(self._tokens[-n:])] = end
        self._tokens.append(token)

    def draft(self, length: int) -> list[int]:
        """Up to `length` tokens that followed the longest known ending when it last occurred; or none."""
        for n in _LENGTHS:
            place = self._after.get(tuple(self._tokens[-n:]))
            if place is not None and len(self._tokens) >= n:
                return self._tokens[place : place + length]
        return []
