"""ArXiv: LaTeX sources -> documents (paper section 2.1).

In:  arXiv's monthly tars of per-paper files, one paper's archive, a folder of papers, a `.tex` file.
Out: one Document per paper: from the first section on, its files joined, comments and bibliography removed,
     the author's macros expanded.

    2003/2003.01234.gz ─┐
    2003/2003.01235.gz ─┼─> Paper ─> lift comments ─> inline files, expand macros ─> cut ─> Document
    2003/2003.01236.pdf ┘                                                            └──> Drop("only a PDF")

Every folder with a main file is a paper; a `.tex` file named by an arXiv number is a paper by itself. Nothing
is unpacked to disk, and a paper's text in memory is bounded.
"""

import gzip
import io
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from puna.corpus.arxiv import latex, paper_body
from puna.corpus.arxiv.macros import Expander, FindFile
from puna.corpus.arxiv.main_file import is_document, is_withdrawn, main_file
from puna.corpus.arxiv.tex_reader import MacroLimits, MacroLoop, UnbalancedBraces
from puna.corpus.document import DamagedRecord, Document, Drop
from puna.validation import Positive, strict

PATTERNS: tuple[str, ...] = ("*.tar", "*.tar.gz", "*.tgz", "*.gz", "*.tex", "*.ltx")

MIN_CHARACTERS = 50
MAX_FILE_BYTES = 8 << 20  # limit for one TeX file; the longest are books and tables of a few MB
MAX_PAPER_BYTES = 32 << 20  # limit for all TeX files of a paper
MAX_PACKED_BYTES = 256 << 20  # limit for one paper in a monthly tar
MAX_UNPACKED_BYTES = 2 << 30  # limit for a paper with its figures; more is a decompression bomb

_TEX = frozenset({".tex", ".ltx", ".latex", ".sty", ".tikz", ".pgf", ".inc", ".def"})
_OTHER = (
    ".eps .ps .epsf .pdf .png .jpg .jpeg .gif .svg .fig .mp4 .avi .bib .bst .bbl .cls .clo .log .aux .out "
    ".ttf .otf .pfb .tfm .csv .dat .xml .html .py .md .gz .zip .tar"
)
_NOT_TEX = frozenset(_OTHER.split())
_SUFFIX = re.compile(r"(?:\.tex|\.ltx|\.tar|\.pdf|\.ps|\.html?)?(?:\.gz)?$|\.tgz$", re.IGNORECASE)
_NUMBER = re.compile(r"(\d{4}\.\d{4,5}(?:v\d+)?)|([a-z-]+(?:\.[A-Z]{2})?)/?(\d{7}(?:v\d+)?)")
Stream = BinaryIO | gzip.GzipFile
_DAMAGE = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError)


@strict
@dataclass(frozen=True)
class Options:
    """How papers are cleaned."""

    max_depth: Positive = 200
    """Maximum nesting of macro expansions; beyond it a macro counts as one that expands forever."""
    max_growth: Positive = 30
    """Maximum growth of a paper by macro expansion, as a multiple of its size."""


@dataclass(frozen=True)
class Paper:
    """One paper's TeX files by path. `kind` is the kind of the paper's file where it has no TeX."""

    id: str
    files: dict[str, str] = field(default_factory=dict)
    main: str | None = None
    kind: str = ""


# ---- finding --------------------------------------------------------------------------------------


def find(folder: Path) -> list[Path]:
    """A folder's archives, and the main file of every unpacked paper in it; sorted."""
    found: list[Path] = []
    folders: dict[Path, list[Path]] = {}
    for path in sorted((path for path in folder.rglob("*") if path.suffix in (".tex", ".ltx")), key=str):
        if path.is_file():
            folders.setdefault(path.parent, []).append(path)
    mains: dict[Path, Path] = {}
    for parent, paths in folders.items():
        loose = [path for path in paths if _NUMBER.fullmatch(path.stem)]
        found += loose
        texts = {path.name: decode(path.read_bytes()[:MAX_FILE_BYTES]) for path in paths if path not in loose}
        if main := main_file(texts):
            mains[parent] = parent / main
    for parent, paths in folders.items():
        if parent not in mains and not any(above in mains for above in parent.parents):
            # A paper without a main file: one of its files is returned, so that the drop is counted.
            found += [path for path in paths if not _NUMBER.fullmatch(path.stem)][:1]
    for pattern in PATTERNS[:4]:
        for path in folder.rglob(pattern):
            # Archives in a paper's folder are figures and code, not papers.
            inside = any(above in mains for above in path.parents)
            if path.is_file() and (not inside or _NUMBER.fullmatch(_SUFFIX.sub("", path.name))):
                found.append(path)
    return sorted({*found, *mains.values()}, key=str)


# ---- reading --------------------------------------------------------------------------------------


def read(path: Path, options: Options = Options()) -> Iterator[Paper | DamagedRecord]:
    """The papers in an archive or a `.tex` file. The offset of a DamagedRecord is where its member begins."""
    if path.suffix in (".tex", ".ltx"):
        yield _read_folder(path)
        return
    with path.open("rb") as raw:
        is_packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not is_packed:
            yield from _read_tar(path, raw)
            return
        with gzip.open(raw) as unpacked:
            try:
                is_tar = _begins_tar(unpacked)
                if not is_tar:
                    yield _single(path.name, unpacked)
            except _DAMAGE as error:
                yield DamagedRecord(str(path), 0, f"the archive is damaged or cut ({error})")
                return
            if is_tar:
                yield from _read_tar(path, unpacked)


def _read_folder(path: Path) -> Paper | DamagedRecord:
    if _NUMBER.fullmatch(path.stem):
        return Paper(_id(path.name), {path.name: decode(path.read_bytes()[:MAX_FILE_BYTES])}, path.name)
    files: dict[str, str] = {}
    total = 0
    folder = path.parent
    for file in sorted((file for file in folder.rglob("*") if file.suffix in _TEX), key=str):
        size = file.stat().st_size if file.is_file() else MAX_FILE_BYTES + 1
        if size <= MAX_FILE_BYTES and total + size <= MAX_PAPER_BYTES:
            total += size
            files["/".join(file.parts[len(folder.parts) :])] = decode(file.read_bytes())
    if path.name not in files:
        return DamagedRecord(str(path), 0, f"larger than {MAX_FILE_BYTES} bytes: not a paper")
    return Paper(f"{folder.name}/{path.stem}" if folder.name else path.stem, files, path.name)


def _read_tar(path: Path, file: Stream) -> Iterator[Paper | DamagedRecord]:
    """The papers of a monthly tar, or the one whose archive the tar is."""
    own: dict[str, str] = {}  # its files, if the tar is one paper's archive
    total = offset = 0
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps all members in memory
                offset = member.offset
                name = posixpath.normpath(member.name)
                number = _NUMBER.fullmatch(_SUFFIX.sub("", posixpath.basename(name)))
                suffix = PurePosixPath(name).suffix.lower()
                if not member.isfile():
                    continue
                if suffix == ".gz" and (number or not own):
                    if member.size > MAX_PACKED_BYTES:
                        yield DamagedRecord(f"{path}!{name}", offset, f"{member.size} bytes: not a paper")
                        continue
                    packed = tar.extractfile(member)
                    assert packed
                    yield from _read_packed(path, name, packed.read(), offset)
                elif number and suffix == ".pdf":
                    yield Paper(_id(name), kind="PDF")
                elif (text := _tex(tar, member, MAX_PAPER_BYTES - total)) is not None:
                    total += len(text)
                    own[name] = decode(text)
        if own:
            yield Paper(_id(path.name), own)
    except _DAMAGE as error:
        yield DamagedRecord(str(path), offset, f"the archive is damaged or cut ({error})")


def _tex(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes | None:
    """The bytes of a tar's member, if it is TeX and has at most `most` of them."""
    if not _may_be_tex(member.name) or member.size > min(MAX_FILE_BYTES, most):
        return None
    file = tar.extractfile(member)
    assert file
    data = file.read()
    is_tex = PurePosixPath(member.name).suffix.lower() in _TEX or _looks_like_tex(data)
    return data if is_tex else None


def _read_packed(path: Path, name: str, data: bytes, offset: int) -> Iterator[Paper | DamagedRecord]:
    """The paper in a `.gz` of a monthly tar, which holds one file or a tar."""
    try:
        with gzip.open(io.BytesIO(data)) as unpacked:
            if not _begins_tar(unpacked):
                yield _single(name, unpacked)
                return
            files: dict[str, str] = {}
            total = unpacked_bytes = 0
            with tarfile.open(fileobj=unpacked, mode="r|") as tar:
                for member in tar:
                    unpacked_bytes += member.size
                    if unpacked_bytes > MAX_UNPACKED_BYTES:
                        raise ValueError(f"it unpacks to more than {MAX_UNPACKED_BYTES} bytes")
                    if member.isfile() and (text := _tex(tar, member, MAX_PAPER_BYTES - total)) is not None:
                        total += len(text)
                        files[posixpath.normpath(member.name)] = decode(text)
            yield Paper(_id(name), files)
    except _DAMAGE as error:
        yield DamagedRecord(f"{path}!{name}", offset, f"the paper is damaged or cut ({error})")


def _single(name: str, file: Stream) -> Paper:
    """The paper in a `.gz` that holds one file: TeX, or another kind that the author submitted."""
    data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        return Paper(_id(name), kind="a file too large for TeX")
    start = data[:1024].lstrip()
    for mark, kind in (
        (b"%PDF", "PDF"),
        (b"%!PS", "PostScript"),
        (b"<", "HTML"),
        (b"%auto-ignore", "withdrawn"),
    ):
        if start.startswith(mark):
            return Paper(_id(name), kind=kind)
    if b"\0" in start:
        return Paper(_id(name), kind="binary")
    return Paper(_id(name), {_SUFFIX.sub("", posixpath.basename(name)) + ".tex": decode(data)})


def _begins_tar(file: Stream) -> bool:
    """Whether a file, which is at its beginning and stays there, is a tar."""
    head = file.read(tarfile.BLOCKSIZE)
    file.seek(0)
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _may_be_tex(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() not in _NOT_TEX


def _looks_like_tex(data: bytes) -> bool:
    """Whether a file without a TeX suffix is TeX: old papers have files without a suffix."""
    return b"\0" not in data[:8192] and (b"\\document" in data or b"\\begin" in data or b"\\def" in data)


def _id(name: str) -> str:
    """`2003.01234` for `2003/2003.01234.gz`, `hep-th/9901001` for `hep-th9901001.gz`."""
    stem = _SUFFIX.sub("", posixpath.basename(name))
    match = _NUMBER.fullmatch(stem)
    return f"{match[2]}/{match[3]}" if match and match[2] else stem


def decode(data: bytes) -> str:
    """A TeX file's text: UTF-8, else Latin-1; Unix line ends."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


# ---- cleaning -------------------------------------------------------------------------------------

_NO_MACROS = ("", "if", "edef")  # names under which conditions and definitions are charged to the budget
_NOTICE = re.compile(
    r"\bth(?:is|e) (?:paper|article|\w*print|manuscript|submission|work) (?:has been|is|was) withdrawn|"
    r"\bwithdrawn by the author",
    re.IGNORECASE,
)
_MAX_NOTICE = 1500  # characters of a paper that says that it is withdrawn, and why
_MAX_LEFT = 4  # macros without end; with more of them, no macro of the paper is expanded


def clean(paper: Paper, options: Options = Options()) -> Document | Drop:
    """The paper's body, or the reason why it is dropped."""
    if not paper.files:
        reasons = {"PDF": "only a PDF", "withdrawn": "withdrawn"}
        return Drop(
            reasons.get(paper.kind, "no TeX source"), detail=f"{paper.id}: {paper.kind or 'no TeX file'}"
        )
    main = paper.main or main_file(paper.files)
    if all(map(is_withdrawn, [paper.files[main]] if main else paper.files.values())):
        return Drop("withdrawn", detail=paper.id)
    if main is None or not is_document(paper.files[main]):
        return Drop("no main file", detail=paper.id)
    kept: list[str] = []
    comments = latex.own_comments(paper.files.values())
    files = _Files(paper.files, main, kept, comments)
    limits = MacroLimits(options.max_depth, options.max_growth)
    try:
        text, n_left = _expanded(latex.lift(paper.files[main], kept, comments), main, files.find, limits)
    except MacroLoop as loop:
        return Drop("macro expands forever", detail=f"{paper.id}: \\{loop.name}")
    except UnbalancedBraces:
        return Drop("unbalanced braces", detail=paper.id)
    # TeX closes groups that are open at the end of a paper.
    if (at := latex.unbalanced_at(text)) is not None and text[at] == "}":
        return Drop("unbalanced braces", detail=paper.id)
    title = paper_body.title_of(text)
    body = paper_body.tidy(paper_body.without_bibliography(paper_body.body_of(text)))
    body = latex.restore(body, kept)
    if len(body) < MIN_CHARACTERS:
        return Drop("too short" if body else "empty", detail=paper.id)
    if len(body) < _MAX_NOTICE and _NOTICE.search(body):
        return Drop("withdrawn", detail=paper.id)
    meta = {"title": latex.restore(title, kept), "main": main}
    if n_left:
        meta["macros_left"] = str(n_left)
    return Document(
        id=paper.id, source="arxiv", text=body, meta={key: value for key, value in meta.items() if value}
    )


def _expanded(text: str, main: str, find: FindFile, limits: MacroLimits) -> tuple[str, int]:
    """The paper with its macros expanded, and the number of those that are not because they never end.

    If such a macro has an internal name (with `@`), the macro in the author's text that uses it is left
    unexpanded. If too many never end, none is expanded, so that the paper is kept in any case.
    """
    unexpanded: set[str] = set()
    for _ in range(_MAX_LEFT):
        try:
            return Expander(find, limits, frozenset(unexpanded)).expand(text, main), len(unexpanded)
        except MacroLoop as loop:
            hidden = loop.name in _NO_MACROS or "@" in loop.name
            unexpanded.add(loop.origin if hidden and loop.origin not in unexpanded else loop.name)
    return Expander(find, limits, None).expand(text, main), len(unexpanded)


class _Files:
    """Finds the paper's files as `\\input` does, without comments; each is lifted once."""

    def __init__(
        self, files: dict[str, str], main: str, kept: list[str], comments: latex.OwnComments
    ) -> None:
        self._files, self._kept, self._comments = files, kept, comments
        self._folder = posixpath.dirname(main)
        self._lifted: dict[str, str] = {}

    def find(self, name: str, folder: str) -> tuple[str, str] | None:
        """The path and the lifted text of a file named as in `\\input{name}`.

        It is looked for in the main file's folder, then in the top folder.
        """
        for base in dict.fromkeys((self._folder, "")):
            place = posixpath.normpath(posixpath.join(base, folder.strip("/"), name))
            for path in (f"{place}.tex", place):
                if path in self._files:
                    if path not in self._lifted:
                        self._lifted[path] = _part(latex.lift(self._files[path], self._kept, self._comments))
                    return path, self._lifted[path]
        return None


def _part(text: str) -> str:
    """The text of an input file; of a document of its own (`subfiles`), the text between begin and end."""
    if not (begin := re.search(r"\\begin\s*\{document\}", text)):
        return text
    end = text.find("\\end{document}", begin.end())
    return text[begin.end() : end if end >= 0 else len(text)]
