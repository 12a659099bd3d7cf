"""GitHub: files of permissively licensed projects -> documents (paper section 2.1).

In:  archives (`*.whl`, `*.zip`, `*.tar.gz`, `*.tgz`, `*.tar.bz2`, `*.tar.xz`), exports of BigQuery's
     github_repos as JSON lines (`*.json`, `*.jsonl`, `*.json.gz`), or folders of unpacked projects.
Out: one Document per file of source code or prose, without licence boilerplate, each content once.

    flask-3.1.3.whl ─┬─> METADATA: BSD-3-Clause ─────────────────┐
                     ├─> flask/app.py ─> SourceFile(licence) ────┴─> Document("flask-3.1.3/flask/app.py")
                     └─> flask/logo.png ─> SourceFile ─────────────> Drop("not source code or prose")

    steps/digests      the digest of every file's original content, by ranges
    steps/duplicates   files with the same content: all but the first
    .                  the other files, filtered and cleaned

Of several files with the same content, the one with the smallest hash of (project, path) is the first,
whatever the order of the inputs. A project without a permitted licence gives no documents. Members are read
in memory, bounded in size; nothing is unpacked to disk and no code is run.
"""

import codecs
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from puna.corpus.dedup.hash_ranges import RangeWriter
from puna.corpus.dedup.lines import orders, repeated_in, write_repeated
from puna.corpus.document import DamagedRecord, Document, Drop
from puna.corpus.github.archives import PATTERNS as ARCHIVES
from puna.corpus.github.headers import LANGUAGES, is_generated, without_licence_header
from puna.corpus.github.licence import is_permitted
from puna.corpus.github.projects import (
    EXPORT,
    LICENCE_FILE,
    SUFFIX,
    SourceFile,
    own_licence,
    read_archive,
    read_export,
    read_loose,
    refusal,
)
from puna.corpus.parquet import ShardWriter
from puna.corpus.pipeline import Pipeline
from puna.manifest import Manifest
from puna.stages.stage import Executor, Shard
from puna.validation import Fraction, Positive, PositiveNumber, strict

_EXPORTS = ("*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz")
PATTERNS: tuple[str, ...] = (*ARCHIVES, *_EXPORTS)


@strict
@dataclass(frozen=True)
class Options:
    """Which files become documents."""

    max_line: Positive = 1000
    """Maximum line length in characters; files with a longer line are dropped."""
    max_mean_line: PositiveNumber = 100
    """Maximum mean line length in characters; files above it are dropped."""
    min_alphanumeric: Fraction = 0.25
    """Minimum share of letters and digits among a file's characters; files below it are dropped."""
    deduplicate: bool = True
    """Keep one file of each content over all inputs."""


# ---- reading --------------------------------------------------------------------------------------


def find(folder: Path) -> list[Path]:
    """A folder's archives, exports and files of unpacked projects (with their licences); sorted.

    A project is a folder with a licence, packaging metadata or `.git`; archives in it are part of it.
    """
    found = []
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if ".git" in parts or path.is_symlink() or not path.is_file():
            continue
        suffix = path.suffix.lower()
        if SUFFIX.search(path.name) or EXPORT.fullmatch(path.name):
            if not any(own_licence(above)[1] for above in path.parents[: len(parts)]):
                found.append(path)
        elif suffix in LANGUAGES or LICENCE_FILE.match(path.name) or path.name == "PKG-INFO":
            found.append(path)
    return sorted(found, key=str)


def read(path: Path, options: Options = Options()) -> Iterator[SourceFile | DamagedRecord]:
    """Stream the files of an archive, the records of an export, or the one file of an unpacked project.

    The offset of a DamagedRecord is the start of its member or line.
    """
    if EXPORT.fullmatch(path.name):
        yield from read_export(path)
    elif SUFFIX.search(path.name):
        yield from read_archive(path)
    else:
        yield read_loose(path)


# ---- cleaning -------------------------------------------------------------------------------------


def clean(file: SourceFile, options: Options = Options()) -> Document | Drop:
    """A source file under a permitted licence, or the reason why it is dropped."""
    if file.licence is None or not is_permitted(file.licence):
        return Drop("licence not permitted", detail=f"{file.project}: {file.licence or 'none stated'}")
    if refused := refusal(file.path, file.size):
        return refused
    text = _decode(file.data)
    if text is None:
        return Drop("binary", detail=file.path)
    language = LANGUAGES[PurePosixPath(file.path).suffix.lower()]
    whole, text = text, without_licence_header(text, language).strip("\n")
    if is_generated(whole, language) or (len(text) < len(whole) - 2 and is_generated(text, language)):
        return Drop("generated", detail=file.path)
    if not text.strip():
        return Drop("empty", detail=file.path)
    lines = text.split("\n")
    if max(map(len, lines)) > options.max_line:
        return Drop("longest line too long", detail=file.path)
    if len(text) > options.max_mean_line * len(lines):
        return Drop("mean line too long", detail=file.path)
    if _count_alphanumeric(text) < options.min_alphanumeric * len(text):
        return Drop("few letters or digits", detail=file.path)
    return Document(
        id=f"{file.project}/{file.path}",
        source="github",
        text=text + "\n",
        meta={"licence": file.licence, "path": file.path, "language": language},
    )


_UTF_16_OR_32 = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# The encoding declarations of Python, Ruby, Emacs and Vim, in the first two lines of a file.
_COOKIE = re.compile(rb"^[^\n]{0,200}?(?:coding|fileencoding|\bfenc)[:=][ \t]*['\"]?([-\w.]+)", re.IGNORECASE)
_XML_ENCODING = re.compile(
    rb"\s*<\?xml\s[^>]{0,200}?encoding\s*=\s*['\"]([-\w.]+)|@charset \"([-\w.]+)\"|"
    rb"(?s:.{0,1024}?)<meta\s[^>]{0,200}?charset\s*=\s*['\"]?([-\w.]+)",
    re.IGNORECASE,
)


def _decode(data: bytes) -> str | None:
    """The text of a file, decoded by its byte order mark, else as UTF-8, else by the encoding it declares."""
    text = _decoded(data)
    if text is None or "\0" in text:
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(data: bytes) -> str | None:
    for mark, encoding in _UTF_16_OR_32:
        if data.startswith(mark):
            return _decoded_as(encoding, data)
    if b"\0" in data:
        return None
    text = _decoded_as("utf-8-sig", data)
    if text is not None:
        return text
    cookies = (_COOKIE.match(line) for line in data.split(b"\n", 2)[:2])
    named = next(filter(None, cookies), None) or _XML_ENCODING.match(data)
    name = next(filter(None, named.groups()), b"").decode("ascii") if named else ""
    # Emacs appends the kind of line ends.
    name = re.sub(r"-(?:unix|dos|mac)$", "", name, flags=re.IGNORECASE)
    return _decoded_as(name, data) if name else None


def _decoded_as(encoding: str, data: bytes) -> str | None:
    try:
        text = data.decode(encoding)
    except (UnicodeError, LookupError):  # unknown, or not an encoding of text
        return None
    return text.removeprefix("\ufeff")


_ASCII = re.compile(r"[\x00-\x7f]+")
_ALPHANUMERIC = bytes(byte for byte in range(128) if chr(byte).isalnum())


def _count_alphanumeric(text: str) -> int:
    ascii_part = text.encode("ascii", "ignore")  # counted 40 times as fast as other characters
    count = len(ascii_part) - len(ascii_part.translate(None, _ALPHANUMERIC))
    return count if text.isascii() else count + sum(map(str.isalnum, _ASCII.sub("", text)))


# ---- the steps ------------------------------------------------------------------------------------

# The digest of the content; a hash of project and path, which decides the first; the place in its shard.
_FIELDS = [("key", "<u8"), ("first", "<u8"), ("order", "<u8")]
_BATCH = 4096


def pipeline(inputs: Sequence[Path], out: Path, options: Options, executor: Executor) -> Manifest:
    """Run every step; returns the last one's manifest, whose counts are those of all steps."""
    config: dict[str, Any] = {"source": "github", "options": asdict(options)}
    steps = Pipeline("github", inputs, out, executor)
    repeated: tuple[Path, ...] = ()
    if options.deduplicate:
        held = {"source": "github", "ranges": steps.n_ranges}
        steps.map("digests", "digest files", partial(write_digests, steps.n_ranges), held)
        digests = steps.files("digests", ".ranges")
        steps.reduce("duplicates", "compare files", partial(write_repeated, digests, True, ()), held)
        repeated = steps.files("duplicates", ".npy")
    write = partial(write_cleaned, options, repeated, executor.keep_dropped)
    return steps.documents("clean github", write, config)


def _is_compared(record: SourceFile) -> bool:
    data = record.data
    return bool(data) and (b"\0" not in data or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)))


def write_digests(n_ranges: int, shard: Shard, out: Path) -> dict[str, Any]:
    """The digest of the original content of each file that could become a document."""
    path = out / f"{shard.name}.ranges"
    seen = 0
    with RangeWriter(path, _FIELDS, n_ranges) as writer:
        held: list[tuple[int, int]] = []

        def write() -> None:
            records = np.empty(len(held), _FIELDS)
            if held:
                records["key"], records["first"] = np.array(held, np.uint64).T
            records["order"] = orders(shard.number, seen - len(held), len(held))
            writer.add(records)
            held.clear()

        for source in shard.inputs:
            for record in read(source):
                if isinstance(record, SourceFile) and _is_compared(record):
                    held.append((_digest(record.data), _digest(f"{record.project}/{record.path}".encode())))
                    seen += 1
                    if len(held) == _BATCH:
                        write()
        write()
    return {"outputs": [path], "counts": {"files compared": seen}, "bad": 0}


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def write_cleaned(
    options: Options, repeated: tuple[Path, ...], keep_dropped: bool, shard: Shard, out: Path
) -> dict[str, Any]:
    """The files of a shard, cleaned, without duplicates."""
    gone = set(repeated_in(repeated, shard.number).tolist())
    seen = 0
    with ShardWriter(out, shard.name, "github", keep_dropped) as writer:
        for record in writer.read(shard.inputs, read):
            compared = _is_compared(record)
            is_copy = compared and seen in gone
            seen += compared
            writer.add(Drop("duplicate", detail=record.path) if is_copy else clean(record, options), record)
    return writer.result()
