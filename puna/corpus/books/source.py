"""Books: Project Gutenberg plain text -> documents (paper section 2.1).

In:  `*.txt`, one book per file, in any encoding that Gutenberg has used; Books3 has the same form.
Out: one Document per book: the author's text, its lines unchanged, without the licence before and after it;
     a book of which more than 90 % is in another kept book is removed.

    Title: Moby Dick                                     header: gives the title
    *** START OF THE PROJECT GUTENBERG EBOOK ... ***
    Produced by ...                                      producer's note: trimmed
    Call me Ishmael. ...                                 Document
    *** END OF THE PROJECT GUTENBERG EBOOK ... ***
    ...                                                  footer: the licence in full

    steps/books      clean ─> every book, and its sketch by ranges
    steps/pairs      books that share parts of their sketches
    steps/overlaps   how much of the smaller is in the larger, exactly
    .                every book that is not contained in another kept book
"""

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
from annotated_types import Ge, Le

from puna.corpus.books import overlap
from puna.corpus.books.gutenberg import split, without_illustrations, without_notes
from puna.corpus.books.overlap import Overlap, Ranking
from puna.corpus.dedup.hash_ranges import RangeWriter, load_array, read_range, save_array
from puna.corpus.document import DamagedRecord, Document, Drop
from puna.corpus.parquet import ShardWriter, read_documents
from puna.corpus.pipeline import Pipeline, unique_names
from puna.files import read_json, write_json
from puna.manifest import Manifest
from puna.stages.stage import Executor, Shard
from puna.validation import Count, strict

PATTERNS: tuple[str, ...] = ("*.txt",)

MAX_BYTES = 64 << 20  # the longest works are about 10 MB


@strict
@dataclass(frozen=True)
class Options:
    """Which books become documents."""

    min_characters: Count = 200
    """Minimum length of a book in characters; shorter books are dropped."""
    max_overlap: Annotated[float, Ge(0.5), Le(1)] = 0.9
    """Maximum share of a book's content that another kept book holds; 1 disables the comparison."""
    illustrations: bool = True
    """Keep the lines that replace pictures, such as [Illustration: The llama]."""


@dataclass(frozen=True)
class Book:
    """One file, decoded. `name` is its name without the suffix."""

    name: str
    text: str


# ---- reading --------------------------------------------------------------------------------------


def read(path: Path, options: Options = Options()) -> Iterator[Book | DamagedRecord]:
    """The book in a file; invalid bytes are reported as a DamagedRecord, and the rest is kept."""
    if path.stat().st_size > MAX_BYTES:
        yield DamagedRecord(str(path), 0, f"larger than {MAX_BYTES} bytes: not a book")
        return
    text, damaged_at = decode(path.read_bytes())
    if "\0" in text:
        yield DamagedRecord(str(path), 0, "not text: it holds NUL characters")
        return
    if damaged_at is not None:
        yield DamagedRecord(str(path), damaged_at, "damaged characters, replaced by U+FFFD")
    yield Book(path.stem, text)


def decode(data: bytes) -> tuple[str, int | None]:
    """The text, and the offset of its first invalid byte: by BOM, else as UTF-8, else as Windows-1252."""
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if data.startswith(mark):
            return _decode_as(encoding, data)
    text, damaged_at = _decode_as("utf-8-sig", data)
    if damaged_at is None:
        return text, None
    damaged = text.count("\ufffd")
    sound = sum(character > "\x7f" for character in text) - damaged
    if sound > damaged or data.startswith(codecs.BOM_UTF8):
        return text, damaged_at
    try:
        # A superset of Latin-1 in printable characters; the extra codes are quotation marks and dashes.
        return data.decode("cp1252"), None
    except UnicodeDecodeError:
        return data.decode("latin-1"), None


def _decode_as(encoding: str, data: bytes) -> tuple[str, int | None]:
    try:
        return data.decode(encoding), None
    except UnicodeDecodeError as error:
        return data.decode(encoding, "replace"), error.start


# ---- cleaning -------------------------------------------------------------------------------------

_LINES = re.MULTILINE | re.IGNORECASE
_TITLE = re.compile(r"^(?:Book )?Title:[ \t]*(\S.*(?:\n[ \t]+\S.*)*)", _LINES)
_AUTHOR = re.compile(r"^Author:[ \t]*(\S.*)$", _LINES)
_LANGUAGE = re.compile(r"^Language:[ \t]*(\S.*)$", _LINES)

_HEADER = 2000  # characters that are searched for the fields, if no header is found
_TRAILING_SPACE = re.compile(r"[ \t\f\v]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{4,}")


def clean(book: Book, options: Options = Options()) -> Document | Drop:
    """The book between its marks, or the reason why it is dropped."""
    text = book.text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    text = _TRAILING_SPACE.sub("", text)
    parts = split(text)
    body = without_notes(parts.book)
    if not options.illustrations:
        body = without_illustrations(body)
    body = _BLANK_LINES.sub("\n\n\n", body).strip("\n")
    if not body.strip():
        return Drop("empty", detail=book.name)
    if len(body) < options.min_characters:
        return Drop("too short", detail=book.name)
    fields = {"title": _TITLE, "author": _AUTHOR, "language": _LANGUAGE}
    found = {name: pattern.search(parts.header or text[:_HEADER]) for name, pattern in fields.items()}
    meta = {name: " ".join(match[1].split()) for name, match in found.items() if match}
    if parts.note:
        meta["boilerplate"] = parts.note
    return Document(id=book.name, source="books", text=body, meta=meta)


# ---- the steps ------------------------------------------------------------------------------------

_ROW_BITS = 32


def pipeline(inputs: Sequence[Path], out: Path, options: Options, executor: Executor) -> Manifest:
    """Run every step; returns the last one's manifest, whose counts are those of all steps."""
    config = {"source": "books", "options": asdict(options)}
    steps = Pipeline("books", inputs, out, executor)
    n_ranges = steps.n_ranges
    names = unique_names(inputs, lambda path: path.with_suffix(""))
    clean_books = partial(write_books, options, names, n_ranges, executor.keep_dropped)
    steps.map("books", "clean books", clean_books, {**config, "ranges": n_ranges})
    books = steps.files("books", "")
    steps.reduce("pairs", "compare sketches", partial(write_pairs, books, n_ranges), config)
    pairs = steps.files("pairs", ".ranges")
    steps.reduce("overlaps", "compare books", partial(write_overlaps, books, pairs), config)
    overlaps = steps.files("overlaps", ".overlaps.json")
    kept = partial(write_kept, options, books, overlaps, executor.keep_dropped)
    return steps.documents("remove books within books", kept, config, over="books")


def write_books(
    options: Options, names: Mapping[str, str], n_ranges: int, keep_dropped: bool, shard: Shard, out: Path
) -> dict[str, Any]:
    """A shard's books, cleaned; `.ranges` holds their sketches, `.npy` their sizes."""
    sketches, table = out / f"{shard.name}.ranges", out / f"{shard.name}.npy"
    texts = [np.empty(0, overlap.TEXT)]
    with ExitStack() as stack:
        writer = stack.enter_context(ShardWriter(out, shard.name, "books", keep_dropped))
        ranges = stack.enter_context(RangeWriter(sketches, overlap.SKETCH, n_ranges))
        for path in shard.inputs:
            for record in writer.take(read(path, options)):
                book = replace(record, name=names.get(str(path), record.name))
                result = clean(book, options)
                writer.add(result, book)
                if isinstance(result, Document):
                    number = (int(shard.name) << _ROW_BITS) + len(texts) - 1
                    sketch, text = overlap.describe(number, result.id, overlap.shingles_of(result.text))
                    ranges.add(sketch)
                    texts.append(text)
    save_array(table, np.concatenate(texts))
    done = writer.result()
    return {**done, "outputs": [*done["outputs"], sketches, table]}


def write_pairs(books: tuple[Path, ...], n_ranges: int, shard: Shard, out: Path) -> dict[str, Any]:
    """Pairs of books that share a hash of this range."""
    sketches = read_range([_with_suffix(book, ".ranges") for book in books], shard.number)
    pairs = overlap.pairs_in(sketches, _ranking(books))
    path = out / f"{shard.name}.ranges"
    with RangeWriter(path, overlap.PAIR, n_ranges) as writer:
        writer.add(pairs)
    return {"outputs": [path], "counts": {"pairs that share a hash": len(pairs)}, "bad": 0}


def write_overlaps(
    books: tuple[Path, ...], pairs: tuple[Path, ...], shard: Shard, out: Path
) -> dict[str, Any]:
    """The exact share of the smaller book that is in the larger, for each candidate pair of this range."""
    ranking = _ranking(books)
    chosen = overlap.candidates(read_range(pairs, shard.number), ranking)

    @lru_cache(maxsize=2)  # two books at a time
    def shingles(rank: int) -> overlap.Shingles:
        return overlap.shingles_of(_row(books, int(ranking.texts["text"][rank]), "text"))

    found = [Overlap(*pair, overlap.containment(shingles(pair[0]), shingles(pair[1]))) for pair in chosen]
    path = out / f"{shard.name}.overlaps.json"
    write_json(path, [asdict(item) for item in found])
    return {"outputs": [path], "counts": {"pairs compared": len(found)}, "bad": 0}


def write_kept(
    options: Options,
    books: tuple[Path, ...],
    overlaps: tuple[Path, ...],
    keep_dropped: bool,
    shard: Shard,
    out: Path,
) -> dict[str, Any]:
    """The books of a shard that are not contained in another kept book."""
    ranking = _ranking(books)
    every = [Overlap(**item) for path in overlaps for item in read_json(path)]
    gone = overlap.removed(every, options.max_overlap)
    first = int(shard.name) << _ROW_BITS
    (path,) = shard.inputs
    with ShardWriter(out, shard.name, "books", keep_dropped) as writer:
        for row, document in enumerate(read_documents(path, batch_rows=8)):
            rank = int(ranking.ranks(np.array([first + row], np.uint64))[0]) if gone else 0
            if (found := gone.get(rank)) is None:
                writer.add(document)
                continue
            text = int(ranking.texts["text"][found.large])
            larger = _row(books, text, "id")
            detail = f"{document.id}: {found.share:.1%} of it is in {larger}"
            writer.add(Drop("inside another book", detail=detail), document)
    return writer.result()


def _with_suffix(book: Path, suffix: str) -> Path:
    return book.with_name(book.name + suffix)


def _ranking(books: tuple[Path, ...]) -> Ranking:
    return Ranking(np.concatenate([load_array(_with_suffix(book, ".npy")) for book in books]))


def _row(books: tuple[Path, ...], number: int, column: str) -> str:
    """One value of the text of this number; only its row group is read."""
    book, row = books[number >> _ROW_BITS], number & ((1 << _ROW_BITS) - 1)
    with _with_suffix(book, ".parquet").open("rb") as raw, pq.ParquetFile(raw) as file:
        for group in range(file.num_row_groups):
            n_rows = file.metadata.row_group(group).num_rows
            if row < n_rows:
                return str(file.read_row_group(group, [column])[column][row].as_py())
            row -= n_rows
    raise AssertionError(f"{book} has no row {row}")
