"""Documents -> the lines that a tokenizer is trained on, each source with its share of the bytes.

In:  directories of finished documents, a bound in bytes, weights (Table 1's when none are given).
Out: lines of text, and by source how many documents and bytes they are.

    books 600 kB  ──order by hash of the id──> as many documents as its share holds, the last one cut
    wiki   20 kB  ──order by hash of the id──> all of them, again and again until its share is full

The sample is what training will see: a source smaller than its share is repeated, as it is in Table 1's
epochs. The order of files does not matter, and no more than the bound is held in memory.
"""

import heapq
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from puna.corpus.finished import Finished
from puna.corpus.parquet import read_documents
from puna.tokens.order import digest64, shares

# SentencePiece silently skips longer sentences; in characters, of at most four bytes each.
LINE_CHARACTERS = 4000
# It also skips sentences with its own mark for unknown bytes, U+2585, and takes U+2581 for a space.
_BREAKS = re.compile("[\n\u2581\u2585]")


def sources_in(file: Path) -> set[str]:
    """The sources of a Parquet file's documents, reading nothing but that column."""
    return set(pc.unique(pq.read_table(file, columns=["source"])["source"]).to_pylist())


@dataclass(frozen=True)
class Sample:
    """Texts (UTF-8) by source, in sampling order, and how many bytes each source is to give."""

    texts: dict[str, list[bytes]]
    budgets: dict[str, int]

    @property
    def bytes(self) -> int:
        """Size of the lines, in UTF-8."""
        return sum(self.budgets.values())

    def lines(self) -> Iterator[str]:
        """What SentencePiece is given: never a newline, so that newlines stay single bytes, as in LLaMA."""
        for source, texts in self.texts.items():
            left = self.budgets[source]
            for text in cycle(texts):
                yield from split_lines(text[:left].decode("utf-8", "ignore"))
                left -= len(text)
                if left <= 0:
                    break

    def report(self) -> dict[str, dict[str, Any]]:
        """By source: documents and bytes given, share of the sample, times the documents are seen."""
        return {
            source: {
                "documents": len(texts),
                "bytes": self.budgets[source],
                "share": round(self.budgets[source] / self.bytes, 6),
                "epochs": round(self.budgets[source] / sum(map(len, texts)), 4),
            }
            for source, texts in self.texts.items()
        }


def sample_documents(
    documents: Sequence[Finished],
    sample_bytes: int,
    weights: Mapping[str, float],
    seed: int,
    on_file: Callable[[Path], None] = lambda _: None,
) -> Sample:
    """Choose documents until each source's share of `sample_bytes`, or of all text if that is less, is full.

    Raises:
        ValueError: no text, or weights that do not fit the sources.
    """
    files = [file for item in documents for file in item.files]
    share = shares(set().union(*map(sources_in, files)), weights)
    chosen = {source: _Smallest(int(part * sample_bytes)) for source, part in share.items()}
    total = 0
    for file in files:
        for document in read_documents(file):
            if document.source in chosen and document.text:
                text = document.text.encode()
                total += len(text)
                chosen[document.source].add(digest64("sample", seed, document.source, document.id), text)
        on_file(file)
    texts = {source: kept.in_order() for source, kept in chosen.items()}
    if missing := [source for source in texts if not texts[source]]:
        raise ValueError(f"source {missing[0]!r} has no text to train a tokenizer on; leave it out")
    if not texts:
        names = ", ".join(str(item.directory) for item in documents)
        raise ValueError(f"no document in {names}; give other inputs to: puna corpus SOURCE INPUT… --out DIR")
    budgets = {source: max(1, int(part * min(sample_bytes, total))) for source, part in share.items()}
    return Sample({source: _within(texts[source], budgets[source]) for source in texts}, budgets)


class _Smallest:
    """The texts of the smallest hashes, as few as fill a bound, however large the corpus."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.bytes = 0
        self._heap: list[tuple[int, bytes]] = []

    def add(self, key: int, text: bytes) -> None:
        heapq.heappush(self._heap, (-key, text))
        self.bytes += len(text)
        while self.bytes - len(self._heap[0][1]) >= self.bound and len(self._heap) > 1:
            self.bytes -= len(heapq.heappop(self._heap)[1])

    def in_order(self) -> list[bytes]:
        return [text for _, text in sorted(self._heap, reverse=True)]


def _within(texts: Sequence[bytes], budget: int) -> list[bytes]:
    """The first texts that together fill the budget."""
    sizes_before = accumulate(map(len, texts), initial=0)
    return [text for text, size in zip(texts, sizes_before, strict=False) if size < budget]


def split_lines(text: str) -> Iterator[str]:
    """A text's lines, long ones cut at a space where there is one: each begins a word, as the prefix does."""
    for line in _BREAKS.split(text):
        while len(line) > LINE_CHARACTERS:
            space = line.rfind(" ", 1, LINE_CHARACTERS)
            cut = LINE_CHARACTERS if space < 0 else space
            yield line[:cut]
            line = line[cut if space < 0 else cut + 1 :]
        if line:
            yield line
