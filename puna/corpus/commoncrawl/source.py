"""CommonCrawl: web pages cleaned as in CCNet, and a classifier of pages Wikipedia would cite (section 2.1).

In:  WARC or WET files (see web/pages.py); optionally a language model and a classifier.
Out: one Document per page in the selected languages: its lines that occur nowhere else in the corpus.

    steps/pages       read, lines stripped, short pages dropped        ─> pages, line hashes by range
    steps/duplicates  one range of hashes per task (dedup/lines.py)    ─> places of the lines to remove
    steps/scored      lines removed ─> language ─> perplexity ─> P(reference)    the last step without
    documents         percentiles of the corpus itself ─> head, middle, tail     a language model

Every step writes the same bytes with any number of workers. Without `deduplicate` the first two steps are
omitted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from puna.corpus.dedup import lines
from puna.corpus.dedup.hash_ranges import RangeWriter, load_array, save_array
from puna.corpus.document import DamagedRecord, Document, Drop
from puna.corpus.parquet import ShardWriter, read_all_documents
from puna.corpus.pipeline import Pipeline, by_size
from puna.corpus.web import pages
from puna.corpus.web.language import language_meta
from puna.corpus.web.pages import Page, page_text
from puna.files import to_path
from puna.manifest import Manifest
from puna.stages.stage import Executor, Shard
from puna.validation import Fraction, Positive, strict

PATTERNS = pages.PATTERNS


@strict
@dataclass(frozen=True)
class Options:
    """Parameters of CCNet and the paper; the defaults are their values."""

    languages: tuple[str, ...] = ("en",)
    """ISO codes of the languages to keep; an empty list keeps all 176."""
    language_threshold: Fraction = 0.5
    """Minimum language-ID probability (lid.176)."""
    min_characters: Positive = 300
    """Minimum length of a page in characters, before deduplication; shorter pages are dropped."""
    deduplicate: bool = True
    """Remove lines that occur more than once in the whole corpus."""
    keep_first: bool = False
    """Keep the first occurrence of a repeated line, in the order of the inputs; CCNet removes all of them."""
    language_model: str | None = None
    """Directory written by `puna corpus language-model`; enables perplexity filtering."""
    buckets: tuple[Literal["head", "middle", "tail"], ...] = ("head", "middle")
    """Perplexity buckets to keep: head (below the 30th percentile), middle (below the 60th), tail."""
    classifier: str | None = None
    """Directory written by `puna corpus classifier`; enables filtering by P(cited by Wikipedia)."""
    reference_threshold: Fraction = 0.5
    """Minimum P(cited by Wikipedia) of a page; used with a classifier."""

    def validate(self) -> None:
        """Raises ValueError when the options do not fit together."""
        if self.language_model and len(self.languages) != 1:
            raise ValueError("a language model needs exactly one language; give it with --languages")


def read(path: Path, options: Options = Options()) -> Iterator[Page | DamagedRecord]:
    """The pages of one file."""
    return pages.read_pages(path)


def clean(page: Page, options: Options = Options()) -> Document | Drop:
    """The rules for a single page: its stripped lines, or the reason to drop it."""
    text = page_text(page)
    if isinstance(text, Drop):
        return text
    text = "\n".join([stripped for line in text.split("\n") if (stripped := line.strip())])
    if len(text) < options.min_characters:
        return Drop(f"fewer than {options.min_characters} characters")
    meta = {"url": page.url, "date": page.date, "digest": page.digest or pages.text_digest(text)}
    return Document(page.id, "commoncrawl", text, meta)


def judge(documents: Sequence[Document], options: Options) -> list[Document | Drop]:
    """The documents with language, perplexity and P(reference), or the first reason to drop each."""
    results: list[Document | Drop] = []
    for document in documents:
        found = language_meta(document.text, options.languages, options.language_threshold)
        if isinstance(found, Drop):
            results.append(found)
            continue
        meta = {**document.meta, **found}
        if options.language_model:
            perplexity = language_model_in(options.language_model).perplexity(document.text)
            meta["perplexity"] = round(perplexity, 2)
        results.append(Document(document.id, document.source, document.text, meta))
    if options.classifier:
        kept = [(place, item) for place, item in enumerate(results) if isinstance(item, Document)]
        cited = classifier_in(options.classifier).probabilities([item.text for _, item in kept])
        for (place, item), probability in zip(kept, cited.tolist(), strict=True):
            if probability < options.reference_threshold:
                results[place] = Drop("unlike references", f"{probability:.2f}")
            else:
                item.meta["reference"] = round(probability, 4)
    return results


@cache
def language_model_in(directory: str) -> Any:
    """The language model of a directory or URL, read once."""
    from puna.corpus.commoncrawl.perplexity import load_language_model

    return load_language_model(to_path(directory))


@cache
def classifier_in(directory: str) -> Any:
    """The classifier of a directory or URL, read once."""
    from puna.corpus.commoncrawl.citation_classifier import load_classifier

    return load_classifier(to_path(directory))


# ---- the steps -----------------------------------------------------------------------------------


def pipeline(inputs: Sequence[Path], out: Path, options: Options, executor: Executor) -> Manifest:
    """Run every step; returns the last one's manifest, whose counts are those of all steps."""
    config = {"source": "commoncrawl", "options": _in_words(options)}
    steps, keep = Pipeline("commoncrawl", inputs, out, executor), executor.keep_dropped
    n_ranges, over = steps.n_ranges, None
    places: tuple[Path, ...] = ()
    if options.deduplicate:
        held = {"source": "commoncrawl", "min_characters": options.min_characters, "ranges": n_ranges}
        steps.map("pages", "read pages", partial(write_pages, options, n_ranges, keep), held)
        hashes, counted = steps.files("pages", ".ranges"), ["lines removed", "lines"]
        find = partial(lines.write_repeated, hashes, options.keep_first, counted)
        steps.reduce("duplicates", "find repeated lines", find, {"keep_first": options.keep_first})
        places, over = steps.files("duplicates", ".npy"), "pages"
    score = partial(write_scored, options, places, keep)
    if not options.language_model:
        return steps.documents("score pages", score, config, over)
    steps.map("scored", "score pages", score, config, over)
    bounds = perplexity_bounds(steps.files("scored", ".npy"))
    sort = partial(write_buckets, options.buckets, bounds, keep)
    described = {**config, "perplexity_bounds": list(bounds)}
    return steps.documents("sort into buckets", sort, described, over="scored")


def _in_words(options: Options) -> dict[str, Any]:
    """The options as JSON, models by their fingerprint instead of their path."""
    models: dict[str, str] = {}
    if options.language_model:
        models["language_model"] = language_model_in(options.language_model).fingerprint
    if options.classifier:
        models["classifier"] = classifier_in(options.classifier).fingerprint
    return {**asdict(options), **models}


def write_pages(
    options: Options, n_ranges: int, keep_dropped: bool, shard: Shard, out: Path
) -> dict[str, Any]:
    """Step 1: the pages of a shard as Parquet, the hashes of their lines by range."""
    path = out / f"{shard.name}.ranges"
    number, seen = shard.number, 0
    with (
        ShardWriter(out, shard.name, "commoncrawl", keep_dropped) as writer,
        RangeWriter(path, lines.LINE_FIELDS, n_ranges) as ranges,
    ):
        for batch in by_size(_cleaned(shard, options, writer), _characters):
            hashes = lines.line_hashes(document.text for document in batch)
            ranges.add(lines.line_records(hashes, number, seen))
            seen += len(hashes)
            for document in batch:
                writer.add(document)
    result = writer.result()
    return {**result, "outputs": [*result["outputs"], path], "lines": seen}


def write_scored(
    options: Options, places: tuple[Path, ...], keep_dropped: bool, shard: Shard, out: Path
) -> dict[str, Any]:
    """Step 3: pages without their repeated lines, with the scores of the models."""
    perplexities: list[float] = []
    with ShardWriter(out, shard.name, "commoncrawl", keep_dropped) as writer:
        stream = _without_repeated(shard, places, writer) if places else _cleaned(shard, options, writer)
        for batch in by_size(stream, _characters):
            for document, result in zip(batch, judge(batch, options), strict=True):
                writer.add(result, document)
                if options.language_model and isinstance(result, Document):
                    perplexities.append(result.meta["perplexity"])
    done = writer.result()
    if options.language_model:
        done["outputs"].append(path := out / f"{shard.name}.npy")
        save_array(path, np.array(perplexities))
    return done


def write_buckets(
    buckets: tuple[str, ...], bounds: tuple[float, float], keep_dropped: bool, shard: Shard, out: Path
) -> dict[str, Any]:
    """Step 4: the documents in the selected buckets."""
    from puna.corpus.commoncrawl.perplexity import bucket

    with ShardWriter(out, shard.name, "commoncrawl", keep_dropped) as writer:
        for document in read_all_documents(shard.inputs):
            found = bucket(document.meta["perplexity"], bounds)
            document.meta["bucket"] = found
            outside = Drop(f"in the {found} of perplexity")
            writer.add(document if found in buckets else outside, document)
    return writer.result()


def perplexity_bounds(files: Sequence[Path]) -> tuple[float, float]:
    """The corpus's own 30th and 60th percentiles."""
    from puna.corpus.commoncrawl.perplexity import bucket_bounds

    held = [load_array(path) for path in files]
    low, high = bucket_bounds(np.concatenate(held)) if any(map(len, held)) else (0.0, 0.0)
    return float(low), float(high)


def _cleaned(shard: Shard, options: Options, writer: ShardWriter) -> Iterator[Document]:
    for page in writer.read(shard.inputs, read):
        if isinstance(result := clean(page, options), Drop):
            writer.add(result, page)
        else:
            yield result


def _characters(document: Document) -> int:
    return len(document.text)


def _without_repeated(shard: Shard, places: tuple[Path, ...], writer: ShardWriter) -> Iterator[Document]:
    def count(document: Document) -> int:
        return document.text.count("\n") + 1

    documents, gone = read_all_documents(shard.inputs), lines.repeated_in(places, shard.number)
    for document, removed in lines.with_removed(documents, count, gone):
        if text := lines.without_lines(document.text, removed) if len(removed) else document.text:
            yield replace(document, text=text)
        else:
            writer.add(Drop("every line repeated"), document)
