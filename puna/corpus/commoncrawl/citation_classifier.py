"""A classifier of crawled pages: would Wikipedia cite them? (paper section 2.1)

In:  documents of cited pages and of other pages; or documents of a crawl and the list of cited URLs.
Out: weights.safetensors, manifest.json with accuracy and AUC on held-out pages.

    pages ─> 1,000 characters or more, no duplicates, equal classes ─> train ─> P(cited) ─> drop below 0.5

The model is a logistic regression. Its features are the words and pairs of words of a text, hashed into 2^20
buckets. Hashing is vectorised over the bytes of a whole text, so a page takes microseconds.
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from puna.corpus.document import Document
from puna.corpus.finished import Finished, as_inputs, find_finished
from puna.corpus.wikipedia.citations import page_key, read_references
from puna.files import atomic_file, sha256_file
from puna.manifest import Input, Manifest
from puna.progress import Bar
from puna.trained import Training

WEIGHTS = "weights.safetensors"
MIN_CHARACTERS = 1000
MAX_EACH = 50_000  # maximum pages of each class in memory, as features: about 400 MB

_COMMAND = "puna corpus classifier --positives DOCS --negatives DOCS --out DIR"
_TRAINING = Training("reference-classifier", _COMMAND, "corpus", (WEIGHTS,), "classifier", "pages")
_BUCKET_BITS = 20
_TEXT_BYTES = 1 << 16  # characters of a page that are used
_HELD_OUT = 10  # one page in this many is held out
_EPOCHS, _BATCH, _RATE = 8, 64, 0.3

Features = NDArray[np.uint32]

# ---- features -------------------------------------------------------------------------------------

_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
# Bytes of words: ASCII letters and digits, and all bytes of non-ASCII characters.
_IN_WORD = np.array([chr(byte).isalnum() or byte >= 0x80 for byte in range(256)])


@cache
def _powers() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers of an odd number and of its inverse, modulo 2^64."""
    steps = np.full(_TEXT_BYTES, _ODD)
    inverse = np.full(_TEXT_BYTES, np.uint64(pow(int(_ODD), -1, 1 << 64)))
    steps[0] = inverse[0] = 1
    return np.cumprod(steps), np.cumprod(inverse)


def features(text: str) -> Features:
    """The buckets of a text's words and pairs of neighbouring words, sorted, without duplicates."""
    data = np.frombuffer(text[:_TEXT_BYTES].lower().encode("utf-8", "replace")[:_TEXT_BYTES], np.uint8)
    edges = np.flatnonzero(np.diff(_IN_WORD[data], prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    # The hash of a word is a polynomial of its bytes: a difference of prefix sums, shifted to power 0.
    powers, inverses = _powers()
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((data + np.uint64(1)) * powers[: len(data)])])
    words = (sums[ends] - sums[starts]) * inverses[starts]
    grams = np.concatenate([words, words[:-1] * _MIX + words[1:]])
    grams ^= grams >> np.uint64(32)
    grams *= _MIX
    return np.unique((grams >> np.uint64(64 - _BUCKET_BITS)).astype(np.uint32))


def _margins(weights: NDArray[np.float32], bias: float, pages: Sequence[Features]) -> NDArray[np.float64]:
    """The log-odds of each page. Feature vectors have norm 1, so that long pages weigh no more."""
    sizes = np.array([len(page) for page in pages])
    if not sizes.sum():
        return np.full(len(pages), bias)
    owner = np.repeat(np.arange(len(pages)), sizes)
    sums = np.bincount(owner, weights[np.concatenate(pages)], len(pages))
    margins: NDArray[np.float64] = sums / np.sqrt(np.maximum(sizes, 1)) + bias
    return margins


def _sigmoid(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.clip(margins, -50, 50)))


# ---- training -------------------------------------------------------------------------------------


def train_classifier(
    out: Path,
    positives: Sequence[Path] = (),
    negatives: Sequence[Path] = (),
    pages: Sequence[Path] = (),
    references: Path | None = None,
    max_each: int = MAX_EACH,
    seed: int = 1,
) -> Manifest:
    """Train on documents of cited pages and of others, write the classifier into `out`, return the manifest.

    Either `positives` and `negatives` are given, or `pages`, documents whose meta has a `url`, and
    `references`, a list of the cited URLs. The sample of pages depends on their texts and `seed`, not on the
    order of the documents.

    Raises:
        ValueError: none or both of these are given, too few pages, `out` of another run.
    """
    if bool(positives and negatives) == bool(pages and references):
        raise ValueError("give --positives and --negatives, or --pages and --references")
    found = [find_finished(directories) for directories in ((pages,) if pages else (positives, negatives))]
    inputs = as_inputs(item for items in found for item in items)
    if references:
        inputs += (Input(str(references), fingerprint=sha256_file(references)[:16]),)
    config = {"max_each": max_each, "seed": seed, "kinds": len(found)}
    if max_each < 1:
        raise ValueError(f"max_each is {max_each}; give at least 1")

    def work() -> tuple[dict[str, int], dict[str, Any]]:
        trained_on, held_out = _choose(_labelled(found, references), max_each, seed, out)
        weights, bias = _fit(*trained_on, seed, out)
        with atomic_file(out / WEIGHTS) as temporary:
            temporary.write_bytes(save({"weights": weights, "bias": np.array([bias], np.float32)}))
        counts = {"trained on": len(trained_on[0]), "held out": len(held_out[0])}
        return counts, {"held_out": _measure(weights, bias, *held_out)}

    return _TRAINING.once(out, config, inputs, work)


def _labelled(
    found: Sequence[Sequence[Finished]], references: Path | None
) -> Iterator[tuple[bool, Document]]:
    """Documents, each with whether Wikipedia cites it."""
    if references is None:
        for is_cited, items in zip((True, False), found, strict=True):
            for item in items:
                yield from ((is_cited, document) for document in item.documents())
        return
    cited = Cited(read_references(references))
    for item in found[0]:
        for document in item.documents():
            if url := document.meta.get("url"):
                yield url in cited, document


class Cited:
    """A set of pages from a list of URLs, 8 bytes per page: 40 million take 320 MB."""

    def __init__(self, urls: Iterable[str]) -> None:
        self._keys = np.unique(np.fromiter(map(self._key, urls), np.uint64))

    @staticmethod
    def _key(url: str) -> int:
        return int.from_bytes(hashlib.blake2b(page_key(url).encode(), digest_size=8).digest(), "big")

    def __contains__(self, url: str) -> bool:
        key = np.uint64(self._key(url))
        place = int(np.searchsorted(self._keys, key))
        return bool(page_key(url)) and place < len(self._keys) and bool(self._keys[place] == key)


@dataclass
class _Lowest:
    """The `size` texts with the lowest hashes, without duplicates: a sample independent of the order."""

    size: int
    pages: dict[int, Features] = field(default_factory=dict)
    _heap: list[int] = field(default_factory=list)

    def add(self, key: int, text: str) -> None:
        if key in self.pages or (len(self._heap) == self.size and key > -self._heap[0]):
            return
        self.pages[key] = features(text)
        heapq.heappush(self._heap, -key)
        if len(self._heap) > self.size:
            del self.pages[-heapq.heappop(self._heap)]


Sample = tuple[list[Features], NDArray[np.bool_]]


def _choose(
    documents: Iterable[tuple[bool, Document]], max_each: int, seed: int, out: Path
) -> tuple[Sample, Sample]:
    """Training and held-out pages, both classes equal in number, ordered by their hashes."""
    kinds = {True: _Lowest(max_each), False: _Lowest(max_each)}
    with Bar("read pages", 0, "bytes", out / "progress.jsonl") as bar:
        for is_cited, document in documents:
            bar.advance(len(document.text))
            if len(document.text) >= MIN_CHARACTERS:
                digest = hashlib.blake2b(
                    document.text.encode("utf-8", "replace"), digest_size=8, salt=b"%d" % seed
                )
                kinds[is_cited].add(int.from_bytes(digest.digest(), "big"), document.text)
    others = {key: page for key, page in kinds[False].pages.items() if key not in kinds[True].pages}
    count = min(len(kinds[True].pages), len(others))
    if count < _HELD_OUT:
        raise ValueError(
            f"{len(kinds[True].pages)} cited pages and {len(others)} others of {MIN_CHARACTERS} characters "
            f"or more are too few; give at least {_HELD_OUT} different ones of each"
        )
    keys = sorted(
        (key, is_cited)
        for is_cited, pages in ((True, kinds[True].pages), (False, others))
        for key in sorted(pages)[:count]
    )
    # By rank within each class, so that both parts have equal classes.
    held: list[tuple[int, bool]] = []
    trained: list[tuple[int, bool]] = []
    seen = {True: 0, False: 0}
    for key, is_cited in keys:
        (held if seen[is_cited] % _HELD_OUT == 0 else trained).append((key, is_cited))
        seen[is_cited] += 1
    parts = [
        ([kinds[is_cited].pages[key] for key, is_cited in part], np.array([is_cited for _, is_cited in part]))
        for part in (trained, held)
    ]
    return parts[0], parts[1]


def _fit(
    pages: Sequence[Features], labels: NDArray[np.bool_], seed: int, out: Path
) -> tuple[NDArray[np.float32], float]:
    """Logistic regression by Adagrad (Duchi et al. 2011), one step per batch of pages."""
    weights = np.zeros((1 << _BUCKET_BITS) + 1, np.float32)  # the last weight is the bias
    squares = np.full_like(weights, 1e-6)
    rng = np.random.default_rng(seed)
    with Bar("train classifier", _EPOCHS * len(pages), "steps", out / "progress.jsonl") as bar:
        for _ in range(_EPOCHS):
            order = rng.permutation(len(pages))
            for batch in np.array_split(order, -(-len(pages) // _BATCH)):
                chosen = [pages[index] for index in batch]
                margins = _margins(weights, float(weights[-1]), chosen)
                errors = (_sigmoid(margins) - labels[batch]) / len(batch)
                sizes = np.array([len(page) for page in chosen])
                each = np.append(np.repeat(errors / np.sqrt(np.maximum(sizes, 1)), sizes), errors.sum())
                touched, owner = np.unique(
                    np.append(np.concatenate(chosen), 1 << _BUCKET_BITS), return_inverse=True
                )
                gradient = np.bincount(owner, each).astype(np.float32)
                squares[touched] += gradient**2
                weights[touched] -= _RATE * gradient / np.sqrt(squares[touched])
                bar.advance(len(batch))
    return weights[:-1], float(weights[-1])


def _measure(
    weights: NDArray[np.float32], bias: float, pages: Sequence[Features], labels: NDArray[np.bool_]
) -> dict[str, float]:
    """Accuracy at 0.5, and AUC: how often a cited page scores above another page (ties count half)."""
    margins = _margins(weights, bias, pages)
    _, place, counts = np.unique(margins, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n_cited = int(labels.sum())
    wins = ranks[labels].sum() - n_cited * (n_cited + 1) / 2
    auc = wins / (n_cited * (len(labels) - n_cited))
    return {"accuracy": round(float(((margins >= 0) == labels).mean()), 4), "auc": round(float(auc), 4)}


# ---- using ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classifier:
    """Computes the probability that Wikipedia would cite a page; created by load_classifier."""

    weights: NDArray[np.float32]
    bias: float
    fingerprint: str

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """P(cited) of each text, (N,)."""
        return _sigmoid(_margins(self.weights, self.bias, [features(text) for text in texts]))


def load_classifier(directory: Path) -> Classifier:
    """Read the classifier that train_classifier wrote.

    Raises:
        ValueError: no finished classifier, or a file that is damaged.
    """
    manifest = _TRAINING.read(directory)
    try:
        tensors = load((directory / WEIGHTS).read_bytes())
        weights, bias = tensors["weights"], float(tensors["bias"][0])
        if weights.shape != (1 << _BUCKET_BITS,):
            raise ValueError(f"weights of shape {weights.shape}")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{directory / WEIGHTS} cannot be read ({error}); make it again with: {_COMMAND}"
        ) from error
    return Classifier(weights, bias, manifest.fingerprint)
