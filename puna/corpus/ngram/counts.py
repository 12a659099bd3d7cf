"""Token ids -> sorted files of n-grams of every order with counts, the input of Kneser-Ney smoothing.

In:  lines of word ids; 0, 1, 2 are <unk>, <s>, </s>.
Out: a file of n-grams for each order, each sorted by its last word first.

    lines ─> tokens ─> 5-grams, counted ─> 4-grams ─> 3-grams ─> 2-grams ─> words

Every list is a file and is processed in pieces, so memory is bounded by `memory` for any corpus. An n-gram is
a 64-bit key with its last word in the highest 16 bits, then the word before it, and so on; the first of five
words is a separate field. So the endings of an n-gram are prefixes of its key, and n-grams with the same
ending are adjacent.

The highest order counts occurrences. A lower order counts the distinct words before the n-gram, or
occurrences if it begins with <s>, which nothing precedes. An <unk> in the lines stands for many words:
n-grams that end with it are not counted, and contexts do not extend beyond it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.corpus.ngram.external_sort import Buckets, append, begins_of, pieces, split_keys

UNK, BOS, EOS = 0, 1, 2
SPECIALS = ("<unk>", "<s>", "</s>")
MAX_ORDER = 5
MAX_WORDS = 1 << 16
WORKING = 6  # memory for sorting a piece, as a multiple of its size

# `count` is the count that is discounted, `seen` the number of occurrences.
GRAM = np.dtype([("key", "<u8"), ("first", "<u2"), ("count", "<u4"), ("seen", "<u4")])
_LEAD = MAX_ORDER - 1  # tokens before the last of an n-gram
_HELD_TOKENS = 1 << 20

Grams = NDArray[Any]


def write_tokens(lines: Iterable[Sequence[int]], n_words: int, path: Path) -> int:
    """Write all ids to one file, </s> after each line; return their number."""
    held: list[int] = []
    n_lines = n_tokens = 0

    def write() -> None:
        nonlocal n_lines, n_tokens
        ids = np.array(held, np.int64)
        if len(ids) and (ids.min() < 0 or ids.max() >= n_words):
            raise ValueError(f"a line has an id outside of the {n_words} words")
        if (ids == BOS).any() or (ids == EOS).sum() != n_lines:
            raise ValueError("a line has <s> or </s>, which mark its ends; remove them")
        append(path, ids.astype("<u2"))
        n_tokens += len(ids)
        held.clear()
        n_lines = 0

    for line in lines:
        held.extend(line)
        held.append(EOS)
        n_lines += 1
        if len(held) > _HELD_TOKENS:
            write()
    write()
    if n_tokens >= 1 << 32:
        raise ValueError(f"{n_tokens} tokens are more than {(1 << 32) - 1}; train on fewer documents")
    return n_tokens


def _ngrams(tokens: NDArray[np.uint16], order: int) -> Grams:
    """The n-gram that ends at each token after the first four, which are context; <s> pads line starts."""
    length = len(tokens) - _LEAD
    grams = np.zeros(length, GRAM)
    key = tokens[_LEAD:].astype(np.uint64) << np.uint64(48)
    inside = np.ones(length, bool)
    last = tokens[_LEAD:]
    for back in range(1, order):
        before = tokens[_LEAD - back : len(tokens) - back]
        inside &= before != EOS
        word = np.where(inside, before, BOS)
        word[last == UNK] = UNK  # the context before an unknown word is dropped
        last = word
        if back < 4:
            key |= word.astype(np.uint64) << np.uint64(48 - 16 * back)
        else:
            grams["first"] = word
    grams["key"] = key
    grams["count"] = grams["seen"] = 1
    known: Grams = grams[tokens[_LEAD:] != UNK]
    return known


def _read_tokens(path: Path, start: int, stop: int) -> NDArray[np.uint16]:
    """Tokens `start` to `stop`, with the four tokens before them."""
    first = max(start - _LEAD, 0)
    tokens = np.fromfile(path, "<u2", stop - first, offset=2 * first)
    return np.concatenate([np.full(_LEAD - (start - first), EOS, "<u2"), tokens])


def _combined(grams: Grams) -> Grams:
    """Sorted n-grams without duplicates, their occurrences added up."""
    if not len(grams):
        return grams
    grams = grams[np.lexsort((grams["first"], grams["key"]))]
    begins = begins_of(grams["key"], grams["first"])
    result = grams[begins]
    result["seen"] = np.add.reduceat(grams["seen"], begins)
    result["count"] = result["seen"]
    return result


def count_ngrams(folder: Path, n_tokens: int, order: int, memory: int) -> Path:
    """The n-grams of the highest order, with their numbers of occurrences."""
    tokens, path = folder / "tokens", folder / f"{order}-grams"
    places = np.linspace(0, n_tokens, 257).astype(np.int64)[:-1]
    sampled = [_ngrams(_read_tokens(tokens, at, min(at + 1024, n_tokens)), order)["key"] for at in places]
    size = n_tokens * GRAM.itemsize * WORKING
    buckets = Buckets(folder / "counts", GRAM, split_keys(np.concatenate(sampled), size, memory))
    step = max(memory // (GRAM.itemsize * WORKING), 1)
    for start in range(0, n_tokens, step):
        grams = _combined(_ngrams(_read_tokens(tokens, start, min(start + step, n_tokens)), order))
        buckets.add(grams, grams["key"])
    for number in range(buckets.count):
        if len(grams := buckets.take(number)):
            append(path, _combined(grams))
    return path


def shorten(longer: Path, order: int, folder: Path, memory: int) -> Path:
    """The n-grams of an order, from those one word longer; n-grams with the same ending are adjacent."""
    path = folder / f"{order}-grams"
    held = np.zeros(0, GRAM)
    for _, grams in pieces(longer, GRAM, memory // WORKING):
        keys = grams["key"] & ending_mask(order)
        begins = begins_of(keys)
        part = np.zeros(len(begins), GRAM)
        part["key"] = keys[begins]
        part["count"] = np.diff(begins, append=len(keys))
        part["seen"] = np.add.reduceat(grams["seen"], begins)
        if len(held) and held["key"][0] == part["key"][0]:
            part["count"][0] += held["count"][0]
            part["seen"][0] += held["seen"][0]
        else:
            append(path, _adjusted(held, order))
        append(path, _adjusted(part[:-1], order))
        held = part[-1:]  # the next piece may begin with the same n-gram
    held = _adjusted(held, order)
    if order > 1:
        append(path, held)
        return path
    words = np.concatenate([np.fromfile(path, GRAM) if path.is_file() else held[:0], held])
    absent = np.zeros(2, GRAM)
    absent["key"] = np.array([UNK, BOS], np.uint64) << np.uint64(48)
    words = np.concatenate([words, absent[~np.isin(absent["key"], words["key"])]])
    words[np.argsort(words["key"])].tofile(path)
    return path


def _adjusted(grams: Grams, order: int) -> Grams:
    """The n-grams with `count` set to occurrences if they begin with <s>, which nothing precedes."""
    grams["count"] = np.where(word_at(grams, order - 1) == BOS, grams["seen"], grams["count"])
    return grams


def ending_mask(order: int) -> np.uint64:
    """The mask of the last `order` words in a key."""
    return np.uint64(((1 << 16 * min(order, 4)) - 1) << 16 * (4 - min(order, 4)))


def word_at(grams: Grams, place: int) -> NDArray[np.uint64]:
    """The word of each n-gram at `place`, counted from the last, which is 0."""
    if place == 4:
        return grams["first"].astype(np.uint64)
    return (grams["key"] >> np.uint64(48 - 16 * place)) & np.uint64(0xFFFF)


def is_real(grams: Grams, order: int) -> NDArray[np.bool_]:
    """Which records are n-grams of this order: not those padded with a second <s> or a dropped context."""
    if order == 1:
        return np.ones(len(grams), bool)
    real: NDArray[np.bool_] = (word_at(grams, order - 2) != BOS) & (word_at(grams, order - 1) != UNK)
    return real
