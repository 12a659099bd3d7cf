"""C4: web pages by the rules of the Colossal Clean Crawled Corpus (section 2.1; Raffel et al., section 2.2).

In:  WARC, WET or JSON lines (see web/pages.py); optionally a list of bad words.
Out: one Document per page: its lines that are sentences, each line of the corpus in one page only.

    steps/pages      line and page rules ─> language ─> bad words             ─> pages, URLs by range
    steps/urls       pages of one URL: all but one                            ─> places of the pages to remove
    steps/lines      lines (or spans of three sentences) of the other pages   ─> their hashes by range
    steps/repeated   one line in many pages: all but one                      ─> places of the lines to remove
    documents        pages without these lines, if enough sentences are left

The code that made C4 and the paper differ (`compat`): a line needs 5 words and a page 3 sentences in the
code, 3 and 5 in the paper; the code removes repeated lines, the paper repeated spans of three sentences. Of
several pages that share one, the page with the smallest hash of its URL and text keeps it, whatever the order
of the inputs. Rules for single pages come first, so that no dropped page keeps a line from others.

C4 required a probability of 0.99 from langdetect, whose probabilities are 0 or 1 except for texts in two
languages. Those of lid.176 are lower: it gives 0.99 to none of 30 real English pages, langdetect to all. On
pages mixed with text in 14 other languages, a threshold of 0.5 with lid.176 decides like 0.99 with
langdetect, at 90 times its speed.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from puna.corpus.c4.bad_words import bad_words
from puna.corpus.dedup.hash_ranges import RangeWriter
from puna.corpus.dedup.lines import hashes_of, orders, repeated_in, with_removed, write_repeated
from puna.corpus.document import DamagedRecord, Document, Drop
from puna.corpus.parquet import ShardWriter, read_all_documents
from puna.corpus.pipeline import Pipeline, by_size
from puna.corpus.web import pages
from puna.corpus.web.language import language_meta
from puna.corpus.web.pages import Page, page_text
from puna.manifest import Manifest
from puna.stages.stage import Executor, Shard
from puna.validation import Fraction, strict

PATTERNS = pages.PATTERNS
FIELDS = [("key", "<u8"), ("page", "<u8"), ("order", "<u8")]  # of one key, the smallest page keeps it
LONGEST_PAGE = 190_000
LONGEST_WORD = 1_000

_ENDS = (".", "?", "!", '"')
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
# A full stop after these does not end a sentence. C4 used punkt, which recognises titles and initials.
_TITLED = """Dr Mr Mrs Ms Prof St Jr Sr Rev Hon Gov Sen Rep Gen Col Capt Lt Sgt Maj Adm Messrs Mt Ft No vs Fig
    cf Vol pp Jan Feb Mar Apr Aug Sept Oct Nov Dec Inc Corp Ltd Co Bros"""
_ABBREVIATIONS = "".join(rf"(?<!\b{title}\.)" for title in [*_TITLED.split(), "e.g", "i.e", "[A-HJ-Z]"])
_SENTENCE_END = re.compile(rf"(?<=[.?!]){_ABBREVIATIONS}\s+(?![a-z])|(?<=[.?!][\"')\]])\s+")
_POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
# Each phrase above and below contains one of these, so that most pages are searched only once.
_SPECIAL = ("{", "cookie", "javascript", "lorem ipsum", "privacy policy", "terms of use")


@strict
@dataclass(frozen=True)
class Options:
    """Differences between the code that made C4 and the paper, and parameters."""

    compat: Literal["code", "paper"] = "code"
    """Thresholds and deduplication unit: those of the code that made C4, or those of its paper."""
    languages: tuple[str, ...] = ("en",)
    """ISO codes of the languages to keep; an empty list keeps all 176."""
    language_threshold: Fraction = 0.5
    """Minimum language-ID probability (lid.176); 0.5 matches C4's langdetect at 0.99."""
    bad_words: str | None = None
    """File of bad words, one per line: pages with one of them are dropped. C4 used the LDNOOBW list."""
    deduplicate: bool = True
    """Keep one page per URL, and each line (or three-sentence span) in one page only."""

    @property
    def min_words(self) -> int:
        """Minimum words of a line."""
        return 5 if self.compat == "code" else 3

    @property
    def min_sentences(self) -> int:
        """Minimum sentences of a page."""
        return 3 if self.compat == "code" else 5

    def validate(self) -> None:
        """Raises ValueError when the list of bad words cannot be read."""
        if self.bad_words is not None:
            bad_words(self.bad_words)


# ---- rules on a page -----------------------------------------------------------------------------


def read(path: Path, options: Options = Options()) -> Iterator[Page | DamagedRecord]:
    """The pages of one file."""
    return pages.read_pages(path)


def clean(page: Page, options: Options = Options()) -> Document | Drop:
    """One page by all rules for single pages."""
    return clean_batch([page], options)[0]


def clean_batch(batch: Sequence[Page], options: Options) -> list[Document | Drop]:
    """Many pages by the rules for single pages; faster, because bad words are searched in all at once."""
    texts: list[str | Drop] = []
    for page in batch:
        text = page_text(page)
        texts.append(text if isinstance(text, Drop) else clean_lines(text, options))
    if options.bad_words is not None:
        kept = [place for place, text in enumerate(texts) if isinstance(text, str)]
        found = bad_words(options.bad_words).in_each([text for text in texts if isinstance(text, str)])
        for place, is_bad in zip(kept, found, strict=True):
            if is_bad:
                texts[place] = Drop("a bad word")
    return [
        text if isinstance(text, Drop) else _in_language(page, text, options)
        for page, text in zip(batch, texts, strict=True)
    ]


def _in_language(page: Page, text: str, options: Options) -> Document | Drop:
    # The last rule for single pages, because it takes the longest.
    found = language_meta(text, options.languages, options.language_threshold)
    if isinstance(found, Drop):
        return found
    return Document(page.id, "c4", text, {"url": page.url, "date": page.date, **found})


def clean_lines(text: str, options: Options) -> str | Drop:
    """The lines of a page that are sentences, or the reason why it is dropped. The rules, in their order:

    drop pages over 190,000 characters; remove lines with a word over 1,000 characters; remove `[12]`,
    `[edit]`, `[citation needed]`; a line must end like a sentence and have 5 words or more; `lorem ipsum`
    drops the page, `javascript` the line, `{` the page, a phrase of policies the line; a page needs 3
    sentences.
    """
    if len(text) > LONGEST_PAGE:
        return Drop(f"more than {LONGEST_PAGE:,} characters")
    lines = []
    min_words, min_sentences = options.min_words, options.min_sentences
    for line in text.splitlines():
        line = line.strip()
        if len(line) > LONGEST_WORD and max(map(len, line.split())) > LONGEST_WORD:
            continue
        if "[" in line:
            line = _CITATION.sub("", line)
        if not line.endswith(_ENDS) or line.endswith("..."):
            continue
        if len(line.split(None, min_words)) >= min_words:
            lines.append(line)
    # Few pages contain any of these; the lines of other pages need no check.
    whole = "\n".join(lines).lower()
    if any(special in whole for special in _SPECIAL):
        ordinary = []
        for line in lines:
            lower = line.lower()
            if "lorem ipsum" in lower:
                return Drop("lorem ipsum")
            if "javascript" in lower:
                continue
            if "{" in line:
                return Drop("a curly bracket")
            if not any(policy in lower for policy in _POLICIES):
                ordinary.append(line)
        lines = ordinary
    # Each kept line is at least one sentence.
    if len(lines) < min_sentences and sum(map(n_sentences, lines)) < min_sentences:
        return Drop(f"fewer than {min_sentences} sentences")
    return "\n".join(lines).strip()


def sentences(line: str) -> list[str]:
    """The sentences of a line: they end with . ? or !, perhaps a closing quote or bracket, and a space."""
    return [sentence for sentence in _SENTENCE_END.split(line) if sentence]


def n_sentences(line: str) -> int:
    """How many sentences a line has."""
    return len(sentences(line))


# ---- what pages share ----------------------------------------------------------------------------


def normal_url(url: str) -> str:
    """A URL without scheme, `www.`, tracking parameters and final slash, which do not distinguish pages."""
    url = re.sub(r"^https?://(www\.)?", "", url)
    return re.sub(r"\?(utm_|ref|feed).*", "", url).rstrip("/")


def units(text: str, compat: str) -> list[str]:
    """The units of deduplication: the lines of a page, or its spans of three sentences, in lower case."""
    if compat == "code":
        return [line.strip().lower() for line in text.split("\n")]
    parts = [sentence.strip().lower() for line in text.split("\n") for sentence in sentences(line)]
    return [" ".join(parts[place : place + 3]) for place in range(len(parts) - 2)]


def without_units(text: str, removed: Sequence[int], options: Options) -> str | Drop:
    """The page without the units of these numbers; a span goes with its three sentences."""
    if not removed:
        return text
    lines = text.split("\n")
    if options.compat == "code":
        gone = set(removed)
        kept = [line for place, line in enumerate(lines) if place not in gone]
    else:
        gone = {place + further for place in removed for further in range(3)}
        kept, seen = [], 0
        for line in lines:
            parts = sentences(line)
            left = [part for place, part in enumerate(parts, seen) if place not in gone]
            seen += len(parts)
            if left:
                kept.append(line if len(left) == len(parts) else " ".join(left))
    if sum(map(n_sentences, kept)) < options.min_sentences:
        return Drop(f"fewer than {options.min_sentences} sentences that are in no other page")
    return "\n".join(kept)


# ---- the steps -----------------------------------------------------------------------------------


def pipeline(inputs: Sequence[Path], out: Path, options: Options, executor: Executor) -> Manifest:
    """Run every step; returns the last one's manifest, whose counts are those of all steps."""
    path = options.bad_words
    words = {"bad_words": bad_words(path).fingerprint} if path is not None else {}
    config: dict[str, Any] = {"source": "c4", "options": {**asdict(options), **words}}
    steps, keep = Pipeline("c4", inputs, out, executor), executor.keep_dropped
    if not options.deduplicate:
        return steps.documents("clean c4", partial(write_pages, options, 0, keep), config)

    n_ranges = steps.n_ranges
    config["ranges"] = n_ranges
    steps.map("pages", "clean pages", partial(write_pages, options, n_ranges, keep), config)
    urls = steps.files("pages", ".ranges")
    steps.reduce("urls", "compare URLs", partial(write_repeated, urls, True, ["URLs seen again"]), config)
    losers = steps.files("urls", ".npy")
    steps.map("lines", "hash lines", partial(write_units, options, losers, n_ranges), config, over="pages")
    lines = steps.files("lines", ".ranges")
    steps.reduce("repeated", "compare lines", partial(write_repeated, lines, True, ["lines removed"]), config)
    repeated = steps.files("repeated", ".npy")
    write = partial(write_documents, options, losers, repeated, keep)
    return steps.documents("remove lines", write, config, over="pages")


def write_pages(
    options: Options, n_ranges: int, keep_dropped: bool, shard: Shard, out: Path
) -> dict[str, Any]:
    """The pages of a shard that pass alone; with ranges, where each stands among the pages of its URL."""
    with ExitStack() as stack:
        writer = stack.enter_context(ShardWriter(out, shard.name, "c4", keep_dropped))
        path = out / f"{shard.name}.ranges"
        ranges = stack.enter_context(RangeWriter(path, FIELDS, n_ranges)) if n_ranges else None
        seen = 0
        for batch in by_size(writer.read(shard.inputs, read), _characters):
            kept = []
            for page, result in zip(batch, clean_batch(batch, options), strict=True):
                writer.add(result, page)
                if isinstance(result, Document):
                    kept.append(result)
            if ranges:
                keys = hashes_of([normal_url(document.meta["url"]).encode() for document in kept])
                ranges.add(_records(keys, page_keys(kept), shard.number, seen))
            seen += len(kept)
    done = writer.result()
    if n_ranges:
        done["outputs"].append(path)
    return done


def write_units(
    options: Options, losers: tuple[Path, ...], n_ranges: int, shard: Shard, out: Path
) -> dict[str, Any]:
    """The hashes of the lines or spans of the pages whose URL they keep."""
    path = out / f"{shard.name}.ranges"
    number, seen = shard.number, 0
    with RangeWriter(path, FIELDS, n_ranges) as ranges:
        for batch in by_size(_winners(shard, losers), lambda document: len(document.text)):
            found = [units(document.text, options.compat) for document in batch]
            keys = hashes_of([unit.encode("utf-8", "surrogatepass") for of_page in found for unit in of_page])
            of_pages = np.repeat(page_keys(batch), [len(of_page) for of_page in found])
            ranges.add(_records(keys, of_pages, number, seen))
            seen += len(keys)
    return {"outputs": [path], "counts": {"lines compared": seen}, "bad": 0}


def write_documents(
    options: Options,
    losers: tuple[Path, ...],
    repeated: tuple[Path, ...],
    keep_dropped: bool,
    shard: Shard,
    out: Path,
) -> dict[str, Any]:
    """The pages of a shard without the lines that others keep."""
    places = repeated_in(repeated, shard.number)

    def count(document: Document) -> int:
        return len(units(document.text, options.compat))

    with ShardWriter(out, shard.name, "c4", keep_dropped) as writer:
        for document, removed in with_removed(_winners(shard, losers, writer), count, places):
            text = without_units(document.text, removed.tolist(), options)
            writer.add(text if isinstance(text, Drop) else replace(document, text=text), document)
    return writer.result()


def page_keys(documents: Sequence[Document]) -> NDArray[np.uint64]:
    """The hash of each page's URL and text: which of several keeps what they share."""
    named = [f"{document.meta['url']}\n{document.text}" for document in documents]
    return hashes_of([name.encode("utf-8", "surrogatepass") for name in named])


def _records(keys: NDArray[np.uint64], page: NDArray[np.uint64], shard: int, first: int) -> NDArray[Any]:
    records = np.empty(len(keys), FIELDS)
    records["key"], records["page"], records["order"] = keys, page, orders(shard, first, len(keys))
    return records


def _characters(page: Page) -> int:
    return len(page.content)


def _winners(shard: Shard, losers: tuple[Path, ...], writer: ShardWriter | None = None) -> Iterator[Document]:
    """The pages of a shard that keep their URL."""
    lost = set(repeated_in(losers, shard.number).tolist())
    for number, document in enumerate(read_all_documents(shard.inputs)):
        if number not in lost:
            yield document
        elif writer:
            writer.add(Drop("another page of the same URL"), document)
