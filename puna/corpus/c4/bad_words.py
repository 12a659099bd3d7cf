"""Words of a list, found in many texts at once (C4's rule; Raffel et al., section 2.2).

In:  a list of words, one per line: the user's own, or LDNOOBW, which C4 used.
Out: for each text, whether it contains one of them.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from puna.files import fingerprint

# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
)


class BadWords:
    """Finds words of a list in texts: whole words, in any case; anywhere in scripts without spaces."""

    def __init__(self, words: Sequence[str]) -> None:
        words = sorted({word.strip().lower() for word in words} - {""})
        spaced = "|".join(re.escape(word) for word in words if not _UNSPACED.search(word))
        unspaced = "|".join(re.escape(word) for word in words if _UNSPACED.search(word))
        self.fingerprint = fingerprint(words)
        self._regex = re.compile(_either(rf"(?:\W|^)(?:{spaced})(?:\W|$)" if spaced else "", unspaced))
        # Python's engine tries one word after the other, Rust's all at once, 50 times as fast. But they
        # differ on which non-ASCII characters belong to words. So Rust searches for certain matches, words
        # between ASCII characters, and for possible matches, which Python then checks.
        rust, free = (re.sub(r"\\([^!-/:-@\[-`{-~])", r"\1", pattern) for pattern in (spaced, unspaced))
        edge = r"[\x00-/:-@\[-^`{-\x7f]"  # ASCII characters that do not belong to words
        self._certain = _either(f"(?:{edge}|^)(?:{rust})(?:{edge}|$)" if spaced else "", free)
        self._possible = f"(?:[^0-9A-Za-z_]|^)(?:{rust})(?:[^0-9A-Za-z_]|$)" if spaced else ""

    def in_text(self, text: str) -> bool:
        """Whether one of the words is in the text."""
        return self._regex.search(text.lower()) is not None

    def in_each(self, texts: Sequence[str]) -> list[bool]:
        """The same of many texts."""
        import polars  # imported here, because most processes do not need it

        lower = [text.lower() for text in texts]
        found: list[bool] = polars.Series(lower, dtype=polars.String).str.contains(self._certain).to_list()
        open_ = [place for place, text in enumerate(lower) if not found[place] and not text.isascii()]
        if open_ and self._possible:
            chosen = polars.Series([lower[place] for place in open_], dtype=polars.String)
            for place, possible in zip(open_, chosen.str.contains(self._possible).to_list(), strict=True):
                found[place] = possible and self._regex.search(lower[place]) is not None
        return found


def _either(*patterns: str) -> str:
    return "|".join(pattern for pattern in patterns if pattern)


@cache
def bad_words(path: str) -> BadWords:
    """The words of a file.

    Raises:
        ValueError: when the file cannot be read, or contains no word.
    """
    try:
        words = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"bad-words {path} cannot be read ({error}); give a text file, one word per line"
        ) from None
    if not any(word.strip() for word in words):
        raise ValueError(f"bad-words {path} holds no word; give a text file, one word per line")
    return BadWords(words)
