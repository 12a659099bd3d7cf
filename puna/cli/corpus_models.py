"""Verbs of what CommonCrawl's filters are trained from: language-model, references, classifier."""

from pathlib import Path
from typing import Annotated

from puna.cli.common import Json, Many, print_result

_MEGABYTE = 1_000_000


def language_model(
    documents: list[Path],
    /,
    *,
    out: Path,
    vocab_size: int = 65_536,
    order: int = 5,
    prune: Annotated[tuple[int, ...], Many] = (),
    max_documents: int = 1_000_000,
    whole: bool = False,
    discount_fallback: bool = False,
    memory: int = 1000,
    json: Json = False,
) -> int:
    """Train the language model that perplexity is taken from: SentencePiece and a Kneser-Ney n-gram model.

    Parameters
    ----------
    documents
        Directories of finished documents, Wikipedia's for the paper.
    out
        The directory to write: sentencepiece.model, model.arpa, manifest.json.
    vocab_size
        Pieces, at most; little text gives fewer.
    order
        The longest n-grams, 2 to 5.
    prune
        Pruning thresholds for orders 1, 2, …; the last one holds for all longer n-grams. N-grams that occur
        that often or less are omitted. 0 0 1 omits n-grams of 3 and more pieces that occur once, which are
        most of a model.
    max_documents
        The first so many documents are taken.
    whole
        Take whole texts, not the part before the first heading.
    discount_fallback
        Where a small corpus gives no discounts for an order, take 0.5, 1 and 1.5 instead of stopping.
    memory
        Megabytes that are held while n-grams are sorted; the rest is on disk beside the output.
    """
    from puna.corpus.commoncrawl.perplexity import train_language_model
    from puna.files import human_bytes, human_seconds

    manifest = train_language_model(
        documents, out, vocab_size, order, prune, max_documents, whole, discount_fallback, memory * _MEGABYTE
    )
    counts = manifest.counts
    lines = [
        f"{counts['documents']:>14,}  documents",
        f"{counts['tokens']:>14,}  tokens of {counts['pieces']:,} pieces",
        *(f"{kept:>14,}  {n}-grams" for n, kept in enumerate(manifest.details["ngrams"], 1)),
        f"{out}: {human_bytes(manifest.bytes)} in {human_seconds(manifest.seconds)} of work",
        f"next: puna corpus commoncrawl INPUT… --language-model {out} --out documents/commoncrawl",
    ]
    print_result(manifest.to_json(), json, lines)
    return 0


def references(dumps: list[Path], /, *, out: Path, max_bad: float = 0.1, json: Json = False) -> int:
    """List the URLs that the references of Wikipedia dumps cite.

    Parameters
    ----------
    dumps
        MediaWiki XML dumps, or folders that are searched for them.
    out
        The file to write: one URL a line, sorted; its manifest is written beside it.
    max_bad
        The share of damaged pages above which the list is an error.
    """
    from puna.corpus.wikipedia.citations import summary, write_references

    manifest = write_references(dumps, out, max_bad)
    lines = [f"{out}: {summary(manifest)}"]
    lines += [f"{manifest.damaged:>14,}  damaged (see {out}.json)"] if manifest.damaged else []
    lines += [f"next: puna corpus classifier --pages DOCS --references {out} --out classifier"]
    print_result(manifest.to_json(), json, lines)
    return 0


def classifier(
    *,
    out: Path,
    positives: Annotated[tuple[Path, ...], Many] = (),
    negatives: Annotated[tuple[Path, ...], Many] = (),
    pages: Annotated[tuple[Path, ...], Many] = (),
    references: Path | None = None,
    max_each: int = 50_000,
    seed: int = 1,
    json: Json = False,
) -> int:
    """Train the classifier of pages that Wikipedia would cite.

    Parameters
    ----------
    out
        The directory to write: weights.safetensors, manifest.json.
    positives
        Documents of pages that Wikipedia cites.
    negatives
        Documents of other pages.
    pages
        Instead of both: documents of a crawl, told apart by their URLs.
    references
        With --pages: the list of cited URLs.
    max_each
        Pages of each kind, at most; both kinds give as many.
    seed
        Decides which pages are taken and in what order.
    """
    from puna.corpus.commoncrawl.citation_classifier import train_classifier
    from puna.files import human_bytes, human_seconds

    manifest = train_classifier(out, positives, negatives, pages, references, max_each, seed)
    held_out = manifest.details["held_out"]
    lines = [f"{count:>14,}  pages {name}" for name, count in manifest.counts.items()]
    lines += [
        f"accuracy {held_out['accuracy']:.1%}, AUC {held_out['auc']:.3f} on the pages held out",
        f"{out}: {human_bytes(manifest.bytes)} in {human_seconds(manifest.seconds)} of work",
        f"next: puna corpus commoncrawl INPUT… --classifier {out} --out documents/commoncrawl",
    ]
    print_result(manifest.to_json(), json, lines)
    return 0
