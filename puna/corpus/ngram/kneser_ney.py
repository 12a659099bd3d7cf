"""Token ids -> an n-gram model with modified Kneser-Ney smoothing, as an ARPA file that `kenlm` reads.

In:  lines of word ids, and the words (ids 0, 1, 2 are <unk>, <s>, </s>).
Out: one ARPA file: log10 probabilities and back-off weights.

    lines ─> n-grams of every order (puna.corpus.ngram.counts) ─> by context: discounted(w | h), weight(h) ─┐
    ARPA  <─ p(w | h) = discounted(w | h) + weight(h) * p(w | h without its first word)  <────────────┘

Chen and Goodman (1998), section 3: three discounts per order, from the numbers of n-grams with count 1, 2, 3
and 4 (their equation 26); the discounted mass is the weight of the shorter n-grams. Single words are
interpolated with the uniform distribution over the vocabulary and <unk>, which is the whole probability of
unseen words.
"""

import shutil
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from puna.corpus.ngram.counts import (
    BOS,
    GRAM,
    MAX_ORDER,
    MAX_WORDS,
    SPECIALS,
    WORKING,
    Grams,
    count_ngrams,
    ending_mask,
    is_real,
    shorten,
    word_at,
    write_tokens,
)
from puna.corpus.ngram.external_sort import Buckets, append, begins_of, pieces, split_keys
from puna.files import atomic_file

FALLBACK = (0.5, 1.0, 1.5)  # the fallback of lmplz

_IN_CONTEXT = np.dtype([("key", "<u8"), ("row", "<u4"), ("count", "<u4"), ("kept", "?")])
_WEIGHED = np.dtype([("row", "<u4"), ("prob", "<f4"), ("weight", "<f4")])
MIN_MEMORY = 1 << 20
_LINES = 1 << 20  # lines of ARPA that are formatted at once


@dataclass(frozen=True)
class Level:
    """The n-grams of one order: file, number, number kept, and the discounts of counts 0, 1, 2, 3+."""

    order: int
    path: Path
    rows: int
    kept: int
    discounts: NDArray[np.float64]
    threshold: int


def train_kneser_ney(
    lines: Iterable[Sequence[int]],
    words: Sequence[str],
    out: Path,
    order: int = 5,
    prune: Sequence[int] = (),
    memory: int = 1 << 30,
    fallback: tuple[float, float, float] | None = None,
) -> dict[str, Any]:
    """Write the model of the lines as ARPA to `out`; returns its tokens, n-grams and discounts.

    `prune` holds a threshold per order, the last for all longer n-grams: n-grams that occur that often or
    less are omitted, so (0, 0, 1) prunes n-grams of three words or more that occur once. `fallback` holds the
    discounts of counts 1, 2 and 3+ for orders whose discounts cannot be estimated. `memory` is the
    approximate number of bytes in memory; it does not affect the result.

    Raises:
        ValueError: options out of range, invalid ids, a corpus too small to estimate discounts.
    """
    thresholds = _thresholds(order, prune)
    if not len(SPECIALS) < len(words) <= MAX_WORDS or tuple(words[: len(SPECIALS)]) != SPECIALS:
        raise ValueError(f"words must begin with {' '.join(SPECIALS)} and number at most {MAX_WORDS}")
    if memory < MIN_MEMORY:
        raise ValueError(f"memory is {memory} bytes; give at least {MIN_MEMORY}")
    folder = out.with_name(f".{out.name}.grams.partial")  # a name that remove_partials knows
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        n_tokens = write_tokens(lines, len(words), folder / "tokens")
        if not n_tokens:
            raise ValueError("no lines to train a language model on; give documents with text")
        paths = [count_ngrams(folder, n_tokens, order, memory)]
        for n in range(order - 1, 0, -1):
            paths.insert(0, shorten(paths[0], n, folder, memory))
        levels = [
            _level(n, path, threshold, fallback, memory)
            for n, path, threshold in zip(range(1, order + 1), paths, thresholds, strict=True)
        ]
        weighed = [_weigh(level, below, memory) for below, level in pairwise(levels)]
        with atomic_file(out) as temporary:
            _write_arpa(temporary, levels, weighed, pa.array(words, pa.string()), memory)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "tokens": n_tokens,
        "ngrams": [level.kept for level in levels],
        "discounts": [[round(float(value), 6) for value in level.discounts[1:]] for level in levels],
    }


def _thresholds(order: int, prune: Sequence[int]) -> list[int]:
    if not 2 <= order <= MAX_ORDER:
        raise ValueError(f"order is {order}; choose one from 2 to {MAX_ORDER}")
    given = [*prune] or [0]
    if len(given) > order or given[0] != 0 or given != sorted(given):
        raise ValueError(
            f"prune is {' '.join(map(str, given))}; give at most {order} counts, the first 0, none below "
            f"the one before it, as in 0 0 1"
        )
    return given + given[-1:] * (order - len(given))


# ---- discounts and weights ------------------------------------------------------------------------


def _level(
    order: int, path: Path, threshold: int, fallback: tuple[float, float, float] | None, memory: int
) -> Level:
    having = np.zeros(6, np.int64)  # n-grams with count 0, 1, 2, 3, 4, more
    rows = kept = 0
    for _, grams in pieces(path, GRAM, memory // WORKING):
        real = is_real(grams, order)
        having += np.bincount(np.minimum(grams["count"][real], 5), minlength=6)
        kept += int((real & _kept(grams, order, threshold)).sum())
        rows += len(grams)
    discounts = np.array([0.0, *_discounts(order, having.tolist(), fallback)])
    return Level(order, path, rows, kept, discounts, threshold)


def _discounts(
    order: int, having: list[int], fallback: tuple[float, float, float] | None
) -> tuple[float, float, float]:
    """D1, D2, D3+ from the numbers of n-grams with each count (Chen and Goodman, equation 26)."""
    _, one, two, three, four, _ = having
    if one and two and three:
        y = one / (one + 2 * two)
        found = (1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three)
        if all(0 <= value <= count for count, value in enumerate(found, 1)):
            return found
    if fallback is None:
        raise ValueError(
            f"the discounts of {order}-grams cannot be estimated: {one}, {two}, {three}, {four} of them have "
            f"count 1, 2, 3, 4; give more text, or --discount-fallback to take "
            f"{', '.join(map(str, FALLBACK))}"
        )
    return fallback


def _kept(grams: Grams, order: int, threshold: int) -> NDArray[np.bool_]:
    return grams["seen"] > threshold if order > 1 else np.ones(len(grams), bool)


def _contexts(grams: Grams) -> NDArray[np.uint64]:
    """The key of each n-gram without its last word."""
    return (grams["key"] << np.uint64(16)) | grams["first"].astype(np.uint64)


@dataclass(frozen=True)
class Weighed:
    """Probabilities and weights by the rows of an order; back-offs by the rows of the order below."""

    rows: Buckets
    backoffs: Path


def _weigh(level: Level, below: Level, memory: int) -> Weighed:
    """The discounted probability of each n-gram, and the weight that its context leaves to shorter ones."""
    folder, n = level.path.parent, level.order
    sample = np.memmap(level.path, GRAM, "r")[:: max(level.rows // (1 << 18), 1)]
    splits = split_keys(_contexts(sample), level.rows * _IN_CONTEXT.itemsize * WORKING, memory)
    del sample
    buckets = Buckets(folder / f"{n}-contexts", _IN_CONTEXT, splits)
    for start, grams in pieces(level.path, GRAM, memory // WORKING):
        records = np.zeros(len(grams), _IN_CONTEXT)
        records["key"], records["count"] = _contexts(grams), grams["count"]
        records["row"] = np.arange(start, start + len(grams))
        records["kept"] = _kept(grams, n, level.threshold)
        records = records[is_real(grams, n)]
        buckets.add(records, records["key"])

    step = _rows_at_once(memory)
    weighed = Weighed(
        Buckets(folder / f"{n}-weighed", _WEIGHED, np.arange(step, level.rows, step, dtype=np.uint64)),
        folder / f"{n - 1}-backoffs",
    )
    edges = [0, *(_find(below.path, split) for split in splits), below.rows]
    for number in range(buckets.count):
        records = buckets.take(number)
        keys = _keys(below.path, edges[number], edges[number + 1])
        backoffs = np.zeros(len(keys), "<f4")
        if len(records):
            records = records[np.argsort(records["key"], kind="stable")]
            begins = begins_of(records["key"])
            result, weights = _discounted(records, begins, level.discounts)
            weighed.rows.add(result, result["row"].astype(np.uint64))
            places = np.searchsorted(keys, records["key"][begins])
            assert (keys[places] == records["key"][begins]).all(), "a context that is not an n-gram"
            backoffs[places] = _log10(weights)
        append(weighed.backoffs, backoffs)
    return weighed


def _discounted(
    records: Grams, begins: NDArray[np.intp], discounts: NDArray[np.float64]
) -> tuple[Grams, NDArray[np.float64]]:
    """(the kept records with probabilities, the weight of each context); records are sorted by context."""
    count = records["count"].astype(np.float64)
    total = np.add.reduceat(count, begins)
    # A pruned n-gram gives its whole mass to the shorter ones.
    taken = np.where(records["kept"], discounts[np.minimum(records["count"], 3)], count)
    weights = np.add.reduceat(taken, begins) / total
    group = np.repeat(np.arange(len(begins)), np.diff(begins, append=len(records)))
    result = np.zeros(len(records), _WEIGHED)
    result["row"] = records["row"]
    result["prob"] = (count - taken) / total[group]
    result["weight"] = weights[group]
    return result[records["kept"]], weights


def _find(path: Path, key: np.uint64) -> int:
    """The first row of a sorted file whose key is not below `key`."""
    return bisect_left(np.memmap(path, GRAM, "r"), key, key=lambda gram: gram["key"])


def _keys(path: Path, start: int, stop: int) -> NDArray[np.uint64]:
    grams = np.fromfile(path, GRAM, stop - start, offset=start * GRAM.itemsize)
    return np.ascontiguousarray(grams["key"])


# ---- interpolation and the ARPA file --------------------------------------------------------------


def _log10(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """log10, limited to the range from -99, which is ARPA's zero probability, to 0."""
    return np.minimum(np.log10(np.maximum(values, 1e-99)), 0)


def _rows_at_once(memory: int) -> int:
    return min(_LINES, memory // 512)


def _write_arpa(
    path: Path, levels: Sequence[Level], weighed: Sequence[Weighed], words: pa.Array, memory: int
) -> None:
    with path.open("wb") as file:
        file.write(b"\\data\\\n")
        for level in levels:
            file.write(f"ngram {level.order}={level.kept}\n".encode())
        for level in levels:
            file.write(f"\n\\{level.order}-grams:\n".encode())
            n = level.order
            backoffs = weighed[n - 1].backoffs if n < len(levels) else None
            blocks = (
                _single_words(level)
                if n == 1
                else _interpolated(level, levels[n - 2], weighed[n - 2], memory)
            )
            for start, grams, probs in blocks:
                append(level.path.with_name(f"{n}-probs"), probs.astype("<f4"))
                columns = [_log10(probs)]
                if backoffs:
                    columns.append(np.fromfile(backoffs, "<f4", len(grams), offset=4 * start))
                chosen = is_real(grams, n) & _kept(grams, n, level.threshold)
                file.write(_lines(grams[chosen], n, words, [column[chosen] for column in columns]))
        file.write(b"\n\\end\\\n")


def _single_words(level: Level) -> Iterator[tuple[int, Grams, NDArray[np.float64]]]:
    """Probabilities of single words, interpolated with the uniform distribution; 1 for <s>."""
    grams = np.fromfile(level.path, GRAM)
    count = grams["count"].astype(np.float64)
    taken = level.discounts[np.minimum(grams["count"], 3)]
    probs = (count - taken + taken.sum() / (len(grams) - 1)) / count.sum()  # <s> is never predicted
    probs[word_at(grams, 0) == BOS] = 1  # so that it may be scored as part of a sentence, as in lmplz
    yield 0, grams, probs


def _interpolated(
    level: Level, below: Level, weighed: Weighed, memory: int
) -> Iterator[tuple[int, Grams, NDArray[np.float64]]]:
    """Probabilities row by row, from those of the shorter n-grams, which are in the same order."""
    shorter = below.path.with_name(f"{below.order}-probs")
    step = _rows_at_once(memory)
    for number, (start, grams) in enumerate(pieces(level.path, GRAM, step * GRAM.itemsize)):
        records = weighed.rows.take(number)
        probs, weights = np.zeros((2, len(grams)))
        probs[records["row"] - start] = records["prob"]
        weights[records["row"] - start] = records["weight"]
        endings = grams["key"] & ending_mask(below.order)
        first, last = _find(below.path, endings[0]), _find(below.path, endings[-1]) + 1
        lower = np.fromfile(shorter, "<f4", last - first, offset=4 * first)
        places = np.searchsorted(_keys(below.path, first, last), endings)
        yield start, grams, probs + weights * lower[places]


def _lines(grams: Grams, order: int, words: pa.Array, columns: Sequence[NDArray[Any]]) -> bytes:
    """One line per n-gram: `probability <tab> words [<tab> back-off]`."""
    if not len(grams):
        return b""
    spelled = [words.take(pa.array(word_at(grams, place))) for place in range(order - 1, -1, -1)]
    text = pc.binary_join_element_wise(*spelled, " ")
    numbers = [pc.cast(pa.array(column.astype(np.float32)), pa.string()) for column in columns]
    lines = pc.binary_join_element_wise(numbers[0], text, *numbers[1:], "\t")
    joined = pc.binary_join_element_wise(lines, "", "\n")
    _, offsets, data = joined.buffers()
    return bytes(data.slice(0, int(np.frombuffer(offsets, "<i4")[len(joined)])))
