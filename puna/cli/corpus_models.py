"""Verbs of what CommonCrawl's filters are trained from: language-model, references, classifier."""

from pathlib import Path
from typing import Annotated

from puna.cli.common import Json, Many, print_result, print_stage, quoted

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
) -> None:
    """Train the n-gram language model for perplexity filtering (SentencePiece, modified Kneser-Ney).

    Parameters
    ----------
    documents
        Directories that `puna corpus` wrote; the paper uses Wikipedia's.
    out
        Directory to write: sentencepiece.model, model.arpa, manifest.json.
    vocab_size
        Maximum size of the vocabulary, in pieces; a small corpus gives fewer.
    order
        Length of the longest n-grams, from 2 to 5.
    prune
        Pruning thresholds of orders 1, 2, …; the last one applies to all higher orders. N-grams that occur at
        most that often are omitted. 0 0 1 omits n-grams of three or more pieces that occur once, which are
        most of a model.
    max_documents
        Maximum number of documents to train on: the first ones.
    whole
        Train on whole documents; by default only on the part before the first heading.
    discount_fallback
        Use the discounts 0.5, 1 and 1.5 where a small corpus gives none for an order, instead of an error.
    memory
        Memory for sorting n-grams, in megabytes; larger models are sorted on disk, beside the output.
    """
    from puna.corpus.commoncrawl.perplexity import train_language_model

    manifest = train_language_model(
        documents, out, vocab_size, order, prune, max_documents, whole, discount_fallback, memory * _MEGABYTE
    )
    counts = manifest.counts
    lines = [
        f"{counts['documents']:>14,}  documents",
        f"{counts['tokens']:>14,}  tokens of {counts['pieces']:,} pieces",
        *(f"{kept:>14,}  {n}-grams" for n, kept in enumerate(manifest.details["ngrams"], 1)),
    ]
    after = f"puna corpus commoncrawl INPUT… --language-model {quoted(out)} --out documents/commoncrawl"
    print_stage(manifest, json, lines, out, after)


def references(dumps: list[Path], /, *, out: Path, max_bad: float = 0.1, json: Json = False) -> None:
    """List the URLs that the references of Wikipedia dumps cite.

    Parameters
    ----------
    dumps
        MediaWiki XML dumps, or folders to search for them.
    out
        File to write: one URL per line, sorted; its manifest is written beside it.
    max_bad
        Maximum share of damaged pages; more are an error.
    """
    from puna.corpus.wikipedia.citations import summary, write_references

    manifest = write_references(dumps, out, max_bad)
    lines = [f"{out}: {summary(manifest)}"]
    lines += [f"{manifest.damaged:>14,}  damaged (see {out}.json)"] if manifest.damaged else []
    lines += [f"next: puna corpus classifier --pages DOCS --references {quoted(out)} --out classifier"]
    print_result(manifest.to_json(), json, lines)


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
) -> None:
    """Train the classifier of pages that Wikipedia would cite.

    Parameters
    ----------
    out
        Directory to write: weights.safetensors, manifest.json.
    positives
        Directories of documents: pages that Wikipedia cites.
    negatives
        Directories of documents: other pages.
    pages
        Directories of crawled documents, used instead of both; --references says which are cited.
    references
        File of cited URLs, one per line, as `puna corpus references` writes it; required with --pages.
    max_each
        Maximum number of pages of each kind; the same number is taken of both.
    seed
        Random seed of the choice of pages and their order.
    """
    from puna.corpus.commoncrawl.citation_classifier import train_classifier

    manifest = train_classifier(out, positives, negatives, pages, references, max_each, seed)
    held_out = manifest.details["held_out"]
    lines = [f"{count:>14,}  pages {name}" for name, count in manifest.counts.items()]
    lines += [f"accuracy {held_out['accuracy']:.1%}, AUC {held_out['auc']:.3f} on the pages held out"]
    after = f"puna corpus commoncrawl INPUT… --classifier {quoted(out)} --out documents/commoncrawl"
    print_stage(manifest, json, lines, out, after)
