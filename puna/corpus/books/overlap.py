"""Books nearly contained in another: candidates by MinHash, then the exact share of their shingles.

In:  texts.
Out: each text of which more than a share (0.9) is in a larger, kept text, with that text and the share.

    text ─> words ─> hashed 5-grams, sorted, distinct (shingles) ─┬─> every 16th by hash  ─┐
                                                                  └─> 32 bands of MinHash ─┴─> sketch
    sketches by ranges of hashes ─> pairs of texts that share some ─> exact containment ─> overlaps ─> removed

A short book in a long anthology has a low Jaccard similarity with it, and LSH bands alone would miss it. The
sample finds it: the same hashes are sampled in every text. Bands find texts too short for a sample. Both only
give candidates; the shingle sets of the two texts decide.

The result does not depend on the order of processing: texts are ranked by their number of shingles, the
larger first, equal ones by a hash of their names, and each is compared with the kept texts before it.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Shingles = NDArray[np.uint64]  # sorted, distinct
Ranks = NDArray[np.int64]

WORDS_PER_SHINGLE = 5
SAMPLE = 16  # one shingle in this many is in the sketch
_BINS, _BANDS = 128, 32
# Texts that share a hash are each compared with this many of the largest among them: boilerplate in thousands
# of texts does not cost thousands squared, and the largest of a thousand copies is still compared with each.
_PARTNERS = 32
PIECE_CHARACTERS = 1 << 20

SKETCH = [("key", "<u8"), ("text", "<u8")]
PAIR = [("key", "<u8"), ("small", "<u4"), ("large", "<u4"), ("shared", "<u4"), ("banded", "<u4")]
TEXT = np.dtype([("text", "<u8"), ("shingles", "<u4"), ("sampled", "<u4"), ("tie", "<u8")])

# Letters and digits: case, punctuation, line breaks and _italics_ differ between editions.
_WORD = re.compile(r"[^\W_]+")
_HASHES: dict[str, int] = {}
_MOST_HASHES = 1 << 20
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Overlap:
    """`share` of the shingles of the text ranked `small` are in the larger one ranked `large`."""

    small: int
    large: int
    share: float


# ---- one text -------------------------------------------------------------------------------------


def shingles_of(text: str) -> Shingles:
    """The hashes of a text's word 5-grams; one hash of all its words if they are fewer."""
    words = np.concatenate([_word_hashes(piece) for piece in _pieces(text)] or [np.empty(0, np.uint64)])
    n = min(WORDS_PER_SHINGLE, len(words))
    if not n:
        return words
    mixed = np.zeros(len(words) - n + 1, np.uint64)
    for place in range(n):
        mixed = mixed * _FACTOR + words[place : place + len(mixed)]
    # Sorting is eight times as fast as NumPy's `unique`, which uses a hash table.
    ordered = np.sort(_mix(mixed))
    distinct: Shingles = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    return distinct


def _pieces(text: str) -> Iterable[str]:
    """A text in parts that end between lines, so that the words of a long text are never all in memory."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + PIECE_CHARACTERS) + 1 or len(text)
        yield text[start:end]
        start = end


def _word_hashes(piece: str) -> Shingles:
    words = _WORD.findall(piece.lower())
    if len(_HASHES) > _MOST_HASHES:
        _HASHES.clear()
    for word in set(words).difference(_HASHES):
        _HASHES[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    return np.fromiter(map(_HASHES.__getitem__, words), np.uint64, len(words))


def _mix(values: Shingles) -> Shingles:
    """Spread the bits (splitmix64's finish), so that ranges, bins and samples are of equal size."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def sample_of(shingles: Shingles) -> Shingles:
    """The shingles whose last four bits are 0: the same ones in every text that has them."""
    sampled: Shingles = shingles[shingles & np.uint64(SAMPLE - 1) == 0]
    return sampled


def bands_of(shingles: Shingles) -> Shingles:
    """32 keys, one per band of 4 MinHashes; texts of Jaccard similarity J share one with 1 - (1 - J^4)^32.

    One-permutation MinHash: the smallest shingle of each of 128 bins of the hash. An empty bin takes the
    value of the next non-empty one. The last bits of a key are not 0, so that keys differ from samples.
    """
    edges = np.arange(_BINS, dtype=np.uint64) << np.uint64(64 - _BINS.bit_length() + 1)
    firsts = np.searchsorted(shingles, edges)
    ends = np.append(firsts[1:], len(shingles))
    (filled,) = np.nonzero(firsts < ends)
    source = filled[np.searchsorted(filled, np.arange(_BINS)) % len(filled)]
    least = shingles[firsts[source]].reshape(_BANDS, _BINS // _BANDS)
    keys = np.arange(_BANDS, dtype=np.uint64)
    for column in least.T:
        keys = _mix(keys * _FACTOR + column)
    return keys | np.uint64(1)


def containment(small: Shingles, large: Shingles) -> float:
    """The share of `small` that is in `large`."""
    places = np.minimum(np.searchsorted(large, small), len(large) - 1)
    return float(np.count_nonzero(large[places] == small)) / len(small)


def describe(text: int, name: str, shingles: Shingles) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """(the sketch's records, the record of the text) of the text with this number and name."""
    sampled = sample_of(shingles)
    keys = np.concatenate([sampled, bands_of(shingles)]) if len(shingles) else sampled
    sketch = np.empty(len(keys), SKETCH)
    sketch["key"], sketch["text"] = keys, text
    tie = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return sketch, np.array([(text, len(shingles), len(sampled), tie)], TEXT)


# ---- all texts ------------------------------------------------------------------------------------


class Ranking:
    """All texts in the order of comparison: more shingles first, then by the hash of the name."""

    def __init__(self, texts: NDArray[np.void]) -> None:
        self.texts = texts[np.lexsort([texts["text"], texts["tie"], -texts["shingles"].astype(np.int64)])]
        self._by_number = np.argsort(self.texts["text"])
        self._numbers = self.texts["text"][self._by_number]

    def ranks(self, numbers: NDArray[np.uint64]) -> Ranks:
        """The rank of each text, by number."""
        return self._by_number[np.searchsorted(self._numbers, numbers)]


def pairs_in(sketch: NDArray[np.void], ranking: Ranking) -> NDArray[np.void]:
    """Pairs of texts that share hashes of one range, with the numbers of shared samples and bands."""
    keys, ranks = sketch["key"], ranking.ranks(sketch["text"])
    order = np.lexsort([ranks, keys])
    keys, ranks = keys[order], ranks[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.empty(0, np.int64)
    start_of = np.repeat(starts, np.diff(np.append(starts, len(keys))))
    place = np.arange(len(keys)) - start_of
    banded = keys & np.uint64(SAMPLE - 1) != 0
    codes, kinds = [], []
    for partner in range(_PARTNERS):
        later = np.flatnonzero(place > partner)
        if not len(later):
            break
        large = ranks[start_of[later] + partner]
        different = large != ranks[later]
        codes.append(((ranks[later] << 32) | large)[different])
        kinds.append(banded[later][different])
    if not codes:
        return np.empty(0, PAIR)
    pairs, place_of = np.unique(np.concatenate(codes), return_inverse=True)
    kind = np.concatenate(kinds)
    records = np.empty(len(pairs), PAIR)
    records["key"] = _mix(pairs.astype(np.uint64))
    records["small"], records["large"] = pairs >> 32, pairs & 0xFFFFFFFF
    records["shared"] = np.bincount(place_of[~kind], minlength=len(pairs))
    records["banded"] = np.bincount(place_of[kind], minlength=len(pairs))
    return records


def candidates(pairs: NDArray[np.void], ranking: Ranking) -> list[tuple[int, int]]:
    """Pairs (small, large) worth an exact comparison, from all records of pairs of one range.

    One common band is enough, or half of the smaller text's sample. If 0.9 of a text is in the larger one and
    its sample has 60 hashes, fewer than half are common once in 10^14 times.
    """
    codes = (pairs["small"].astype(np.int64) << 32) | pairs["large"]
    unique, place = np.unique(codes, return_inverse=True)
    shared = np.bincount(place, pairs["shared"], len(unique))
    banded = np.bincount(place, pairs["banded"], len(unique))
    small = unique >> 32
    chosen = (banded > 0) | ((shared > 0) & (2 * shared >= ranking.texts["sampled"][small]))
    return [(int(code) >> 32, int(code) & 0xFFFFFFFF) for code in unique[chosen]]


def removed(overlaps: Iterable[Overlap], most: float) -> Mapping[int, Overlap]:
    """The texts of which more than `most` is in a kept text, and that text, by rank."""
    gone: dict[int, Overlap] = {}
    for overlap in sorted(overlaps, key=lambda item: (item.small, item.large)):
        if overlap.share > most and overlap.small not in gone and overlap.large not in gone:
            gone[overlap.small] = overlap
    return gone
