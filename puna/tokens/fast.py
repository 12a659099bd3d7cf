"""Texts -> ids, several times as fast as the reference, with identical ids.

In:  a vocabulary that encodes (the reference), and its definition as a tokenizer.json.
Out: an encoder with the same ids, or None and one warning with the reason.

    reference ──definition──> gigatoken ──hard sample──┬─ identical ids: used
                     not installed, not supported ─────┴─ different ids: the reference is used

gigatoken caches the ids of words, which makes it fast and lets its memory grow with the text: the encoder is
recreated every RENEW_CHARACTERS. Byte-level vocabularies are not supported yet.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# Recreating an encoder takes 60 ms, and a few MB of text until its cache is warm; the words of this much text
# take 150 MB at most.
RENEW_CHARACTERS = 100_000_000

_log = logging.getLogger(__name__)


class Reference(Protocol):
    """The encoder that a fast one is built from and compared with."""

    table: list[bytes]
    marks_spaces: bool  # SentencePiece-like, not byte-level

    def encode(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """The ids of each text."""

    def definition(self) -> dict[str, Any]:
        """The vocabulary as a tokenizer.json."""


class FastEncoder:
    """gigatoken with a reference's vocabulary.

    Raises:
        ImportError: gigatoken is not installed.
        ValueError, RuntimeError: the vocabulary is not supported, or ids differ on the hard sample.
    """

    def __init__(self, reference: Reference) -> None:
        from gigatoken.gigatoken_rs import load_hf_json

        if not reference.marks_spaces:
            # Too rare for a sample: U+32467 before "'t" splits differently where the vocabulary joins them.
            raise ValueError("gigatoken 0.10 treats unassigned code points as letters")
        self._definition = json.dumps(reference.definition(), ensure_ascii=False)
        self._load = load_hf_json
        self._renew()
        texts = hard_sample(reference.table)
        for text, right, ours in zip(texts, reference.encode(texts, 1), self.encode(texts, 1), strict=True):
            if right != ours.tolist():
                raise ValueError(f"gigatoken encodes {text[:20]!r} differently")

    def _renew(self) -> None:
        self._encoder = self._load(self._definition)
        self.characters = 0  # encoded since: the bound of its memory

    def encode(self, texts: Sequence[str], threads: int) -> list[NDArray[np.uint32]]:
        """The ids of each text; `threads` above 1 use all cores.

        Arrays, because building lists of numbers takes twice the time of encoding.
        """
        if self.characters > RENEW_CHARACTERS:
            self._renew()
        self.characters += sum(map(len, texts))
        if threads > 1 and len(texts) > 1:
            return [
                np.asarray(row, np.uint32) for row in self._encoder.encode_batch(list(texts), parallel=True)
            ]
        return [self._encoder.encode(text) for text in texts]


def load_fast(reference: Reference) -> FastEncoder | None:
    """The fast encoder of a vocabulary, or None after a warning with the reason."""
    try:
        return FastEncoder(reference)
    except ImportError:
        reason = "gigatoken is not installed (pip install gigatoken)"
    except (ValueError, RuntimeError) as error:
        # The first line: gigatoken's errors continue with positions in its source.
        reason = str(error).split("\n")[0]
    except BaseException as error:
        # A panic of Rust code is not an Exception; Ctrl-C and exits are not caught.
        if type(error).__name__ != "PanicException":
            raise
        reason = "gigatoken fails on this vocabulary"
    _log.warning("falling back to the reference encoder (slower): %s", reason)
    return None


def hard_sample(table: Sequence[bytes]) -> list[str]:
    """Texts that encoders get wrong: some for every vocabulary, and overlaps of its own pieces.

    Where three pieces stand so that the first two and the last two join to the same piece ("ab|a|ba" to
    "aba"), that piece has one score, SentencePiece takes the left pair, and a list of merges ranks one above
    the other.
    """
    pieces = {data.decode("utf-8", "ignore") for data in table}
    texts = list(_HARD)
    for piece in sorted(pieces):
        for cut in range(1, len(piece)):
            left, middle, right = piece[:cut], piece[cut:], piece[len(piece) - cut :]
            if piece.startswith(middle) and {left, middle, right} <= pieces:
                texts += [left + piece, f"x{left}{piece} {piece}{right}"]
    return [text for text in texts if "\u2581" not in text]


_HARD = (
    "",
    " ",
    "a",
    "  two  spaces, three   and a trailing one ",
    "\n",
    "line\nline\r\n\n\tindented\n    four\n",
    "\0 nul \x01\x1f\x7f\x80\x85\xa0",
    "<s> </s> <unk> <0x0A> <0xE2><|endoftext|> [INST] <s",
    "It's we'll I'M don't 'tis ''s",
    "1 22 333 4444 3.14159 1,000,000 ٣٤٥ ½ ² 一二三",
    "naïve café e\u0301 \u0301 Ǆ ß ﬁ İ ς Σ",
    "日本語のテキスト 한국어 텍스트 ภาษาไทย हिन्दी العربية עברית",
    "🦙 👩‍👩‍👧‍👦 🇵🇪 \u200d \ufe0f",
    "\u2028 \u2029 \u3000 \u200b \ufeff \u2585 \ufffd \ufffe \uffff \ue000 \U0010ffff \U000e0001",
    "def f(x):\n\treturn {x: [x ** 2, x // 3]}  # ok\n\n\nclass A:\n    pass\n",
    "https://example.org/a?b=c&d=%20e#f user@example.org C:\\dir\\file",
    "=" * 81 + "\n" + "-" * 40 + "." * 7 + "!?" * 9,
    "aaaaaaaaaaaaaaaaaaaaaaaaa " + "ab" * 33 + " " + "haha" * 11 + "h",
    " " * 67 + "x" + " " * 5,
    "\n" * 33 + "\t" * 9 + " \t \n " * 4,
    "supercalifragilisticexpialidocious" * 30,
    "日" * 200 + "é" * 99,
)
