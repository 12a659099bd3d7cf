"""The order of training sequences as arithmetic: the source of the n-th sequence, a source's k-th window.

In:  weights of the sources, a seed, integers; no data is read.
Out: for sequence n its source and the number of that source's sequences before it; for k a window.

    weights ──> shares ──> quotas: sequences of each source per block of 10,000, exactly
    n ──> block n // 10,000, place n % 10,000 ──> (source, k)      spread evenly, from (seed, block)
    k ──> epoch k // windows, place k % windows ──> window          permuted, from (seed, source, epoch)

Everything is a pure function of its arguments: no state to save, no sequences to replay, one block in
memory. It uses integers, IEEE division and Philox's raw words only, so it is the same on every platform.
"""

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from puna.corpus.document import TABLE_1

BLOCK = 10_000
# Version of the order, a part of a mixture's fingerprint. Raise it with any change of the order, so that a
# run that began with another order is refused instead of resumed with this one.
ORDER = 1
_ROUNDS = 6
_MASK_64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: keys of successive rounds differ in many bits


def digest64(*parts: object) -> int:
    """A 64-bit hash of `parts` that is the same on every machine, unlike `hash`."""
    joined = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "big")


def in_table_order(sources: Iterable[str]) -> list[str]:
    """Sources in the order of Table 1, then all others by name."""
    rank = {source: place for place, source in enumerate(TABLE_1)}
    return sorted(sources, key=lambda source: (rank.get(source, len(rank)), source))


def shares(present: Iterable[str], weights: Mapping[str, float]) -> dict[str, float]:
    """Each source's share of the tokens, which add up to 1; without weights that of Table 1.

    A single source needs no weight, whether Table 1 has it or not.

    Raises:
        ValueError: a weight of a source that is not present, or that is not positive; or no weights and a
            source that is not in Table 1.
    """
    known = set(present)
    names = ", ".join(in_table_order(known)) or "nothing"
    if unknown := [source for source in weights if source not in known]:
        raise ValueError(f"mixture.weights names {unknown[0]!r}, but the data has: {names}")
    if bad := [source for source, weight in weights.items() if not 0 < weight < float("inf")]:
        raise ValueError(f"mixture.weights.{bad[0]} is {weights[bad[0]]}; it must be positive and finite")
    if not weights and len(known) == 1:
        return dict.fromkeys(known, 1.0)
    if not weights and (unlisted := in_table_order(known - TABLE_1.keys())):
        raise ValueError(
            f"Table 1 has no weight for {unlisted[0]!r}; give one for each source to train on, of: {names} "
            f"(train: --mixture.weights.{unlisted[0]} 1; tokenizer train: --weights.{unlisted[0]} 1)"
        )
    chosen = dict(weights) or {source: TABLE_1[source] for source in known}
    total = sum(chosen[source] for source in in_table_order(chosen))
    return {source: chosen[source] / total for source in in_table_order(chosen)}


def quotas(share: Mapping[str, float]) -> dict[str, int]:
    """Sequences of each source per block, rounded by largest remainder so that they add up to BLOCK.

    Raises:
        ValueError: a share is less than one sequence per block.
    """
    exact = {source: part * BLOCK for source, part in share.items()}
    counts = {source: int(value) for source, value in exact.items()}
    # sorted is stable: of equal remainders the first source wins.
    by_remainder = sorted(exact, key=lambda source: counts[source] - exact[source])
    for source in by_remainder[: BLOCK - sum(counts.values())]:
        counts[source] += 1
    if small := [source for source, value in exact.items() if value < 1]:
        raise ValueError(
            f"mixture.weights.{small[0]} is {share[small[0]]:.6%} of the total, less than 1 sequence in "
            f"{BLOCK:,}; raise it, or leave the source out"
        )
    return counts


class Schedule:
    """The source of sequence n, and the number of that source's sequences before it.

    A source with q sequences per block has one in each q-th of the block, at a random place there: over any
    consecutive sequences, not only over whole blocks, each source's count is within a few of its share.
    """

    def __init__(self, counts: Mapping[str, int], seed: int) -> None:
        self.counts = np.array(list(counts.values()), dtype=np.int64)
        self._key = digest64("mixture", seed)
        # A step reads from one block, or from two where it straddles their border.
        self._block = lru_cache(maxsize=2)(self._make_block)

    def _make_block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        words = np.random.Philox(key=np.array([self._key, block], dtype=np.uint64)).random_raw(BLOCK)
        jitter = (words >> np.uint64(11)) * 2.0**-53
        source = np.repeat(np.arange(len(self.counts)), self.counts)
        occurrence = np.concatenate([np.arange(count) for count in self.counts])
        order = np.argsort((occurrence + jitter) / self.counts[source], kind="stable")
        return source[order], occurrence[order]

    def sequence(self, n: int) -> tuple[int, int]:
        """(index of the source, number of that source's sequences before) for the n-th sequence."""
        block, place = divmod(n, BLOCK)
        source, occurrence = self._block(block)
        index = int(source[place])
        return index, block * int(self.counts[index]) + int(occurrence[place])

    def given(self, n: int) -> NDArray[np.int64]:
        """The number of sequences of each source among the first n."""
        blocks, rest = divmod(n, BLOCK)
        total = blocks * self.counts
        if rest:
            total = total + np.bincount(self._block(blocks)[0][:rest], minlength=len(self.counts))
        return total


def _mix(value: int) -> int:
    """Mix a 64-bit number by two rounds of multiply and shift: every output bit depends on all input bits."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK_64
    return value ^ (value >> 31)


def permute(index: int, size: int, key: int) -> int:
    """The place of `index` in a random permutation of range(size) given by `key`, which is never stored.

    A Feistel network permutes the numbers of an even number of bits, at most 4 * size of them; a result
    outside the range is permuted again until it is inside, which keeps the map one to one.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix((right ^ key) + turn * _GOLDEN & _MASK_64) & mask)
        index = left << half | right
        if index < size:
            return index
