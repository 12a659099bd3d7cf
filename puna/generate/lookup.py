"""Prompt lookup: draft the next tokens from earlier text, verify them in one call.

    text    … the quick brown fox … the quick       the last tokens occurred before: "the quick"
    draft                                    brown fox …            what followed them then
    verify  one prefill of [quick, brown, fox, …] gives the model's own token after each of them:
            brown ✓  fox ✓  jumps ✗ ─> jumps        two draft tokens accepted, and the model's next token

Only the model's own tokens are accepted, so the answer is that of greedy decoding: bitwise, if prefill and
decode compute the same bits (`Runner.prefill_is_decode`). The engine refuses lookup otherwise, because
rounding that depends on the number of tokens per call could decide a near tie differently. Sampling would
need rejection sampling, so only greedy decoding is supported. Saxena 2023, after Leviathan et al. 2022.
"""

from collections.abc import Sequence

_LENGTHS = (4, 3, 2)  # how many of the last tokens must have occurred before; the longest is tried first


class Drafts:
    """An index of a text's n-grams and what followed them; lookups take constant time."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> position after its last occurrence
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """Append a token."""
        end = len(self._tokens)
        for n in _LENGTHS:
            if end >= n:
                self._after[tuple(self._tokens[-n:])] = end
        self._tokens.append(token)

    def draft(self, length: int) -> list[int]:
        """Up to `length` tokens that followed the last tokens when they last occurred; or none."""
        for n in _LENGTHS:
            start = self._after.get(tuple(self._tokens[-n:]))
            if start is not None and len(self._tokens) >= n:
                return self._tokens[start : start + length]
        return []
