"""GitHub: archives of permissively licensed projects -> documents (paper section 2.1).

In:  wheels, sdists and GitHub's own archives: `*.whl`, `*.zip`, `*.tar.gz`, `*.tgz`, `*.tar.bz2`.
Out: one Document a file of source code or prose, its licence boilerplate gone.

    flask-3.1.3.whl ─┬─> METADATA: BSD-3-Clause ─────────────────┐
                     ├─> flask/app.py ─> SourceFile(licence) ────┴─> Document("flask-3.1.3/flask/app.py")
                     └─> flask/logo.png ─> SourceFile ─────────────> Drop("not source code or prose")

Members are read in memory, bounded in size; nothing is unpacked to disk and nothing is run.
"""

import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from puna.corpus.boilerplate import LANGUAGES, is_generated, without_licence_header
from puna.corpus.document import Bad, Document, Drop
from puna.corpus.licence import is_permitted, licence_of_metadata, licence_of_texts

PATTERNS: tuple[str, ...] = ("*.whl", "*.zip", "*.tar.gz", "*.tgz", "*.tar.bz2")

MAX_FILE_BYTES = 1_000_000
MAX_LINE = 1000
MAX_MEAN_LINE = 100
MIN_ALPHANUMERIC = 0.25

_SUFFIX = re.compile(r"\.(?:whl|zip|tar\.gz|tgz|tar\.bz2)$")
_LICENCE_FILE = re.compile(r"(?:un)?licen[sc]e|copying", re.IGNORECASE)
_METADATA = re.compile(r"PKG-INFO|[^/]+\.dist-info/METADATA")
_PROJECT_LICENCE = re.compile(
    r"(?:[^/]+\.dist-info/(?:licenses/)?)?(?:(?:un)?licen[sc]e|copying)(?:[.-][^/]*)?", re.IGNORECASE
)
_CODE = frozenset(LANGUAGES) - {".md", ".markdown", ".rst", ".html", ".htm", ".tex"}
_VENDORED = frozenset({"vendor", "_vendor", "vendored", "_vendored", "third_party", "node_modules", "extern"})
_MINIFIED = re.compile(r"[.-]min\.\w+$")

_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,  # a zip method that Python lacks
    RuntimeError,  # an encrypted zip
    ValueError,  # offsets that point outside the file
)


@dataclass(frozen=True)
class SourceFile:
    """One file of a project. `data` is empty where the path, the size or the licence already decides."""

    project: str
    licence: str | None
    path: str
    size: int
    data: bytes


# ---- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Member:
    path: str
    size: int
    offset: int
    data: bytes = b""
    damage: str = ""


# Whether a member's bytes are needed, from its path and size.
_Wanted = Callable[[str, int], bool]


def read(path: Path) -> Iterator[SourceFile | Bad]:
    """Stream the files of an archive. The offset of a Bad is where its member begins."""
    with path.open("rb") as raw:
        top, licence = _survey(path, raw)
        project = "-".join(path.name.split("-")[:2]) if path.suffix == ".whl" else _SUFFIX.sub("", path.name)
        permitted = licence is not None and is_permitted(licence)

        def is_wanted(name: str, size: int) -> bool:
            return permitted and _refusal(name.removeprefix(top), size) is None

        offset = 0
        try:
            for member in _members(path, raw, is_wanted):
                offset = member.offset
                if member.damage:
                    yield Bad(f"{path}!{member.path}", offset, member.damage)
                else:
                    name = member.path.removeprefix(top)
                    size = max(member.size, len(member.data))
                    yield SourceFile(project, licence, name, size, member.data)
        except _DAMAGE as error:
            yield Bad(str(path), offset, f"the archive is damaged or cut ({error})")


def _survey(path: Path, raw: BinaryIO) -> tuple[str, str | None]:
    """The folder that all members share (`flask-3.1.3/` in an sdist), and the project's licence."""
    found: dict[str, str] = {}
    tops: set[str] = set()

    def below_top(name: str) -> str:
        return name if path.suffix == ".whl" else name.partition("/")[2] or name

    def is_wanted(name: str, size: int) -> bool:
        names = (name, below_top(name))
        return size <= MAX_FILE_BYTES and any(
            _METADATA.fullmatch(name) or _is_project_licence(name) for name in names
        )

    try:
        for member in _members(path, raw, is_wanted):
            tops.add(member.path.partition("/")[0] + "/" if "/" in member.path else "")
            if member.data:
                found[member.path] = member.data.decode("utf-8", "replace")
    except _DAMAGE:
        pass  # named when the files are read; what was whole until there counts
    top = tops.pop() if len(tops) == 1 and path.suffix != ".whl" else ""
    texts = {name.removeprefix(top): text for name, text in found.items()}
    for name, text in sorted(texts.items()):
        if _METADATA.fullmatch(name) and (licence := licence_of_metadata(text)):
            return top, licence
    return top, licence_of_texts(text for name, text in sorted(texts.items()) if _is_project_licence(name))


def _is_project_licence(name: str) -> bool:
    return bool(_PROJECT_LICENCE.fullmatch(name)) and PurePosixPath(name).suffix.lower() not in _CODE


def _members(path: Path, raw: BinaryIO, is_wanted: _Wanted) -> Iterator[_Member]:
    """The regular files of an archive, in its order, with the bytes of those that are wanted."""
    raw.seek(0)
    yield from (_zip_members if path.suffix in (".whl", ".zip") else _tar_members)(raw, is_wanted)


def _zip_members(raw: BinaryIO, is_wanted: _Wanted) -> Iterator[_Member]:
    with zipfile.ZipFile(raw) as archive:
        for info in archive.infolist():
            if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
                continue
            name, size, offset = _posix(info.filename), info.file_size, info.header_offset
            if not is_wanted(name, size):
                yield _Member(name, size, offset)
                continue
            try:
                with archive.open(info) as file:  # bounded: a header may lie about the size
                    yield _Member(name, size, offset, file.read(MAX_FILE_BYTES + 1))
            except _DAMAGE as error:
                yield _Member(name, size, offset, damage=f"member is damaged ({error})")


def _tar_members(raw: BinaryIO, is_wanted: _Wanted) -> Iterator[_Member]:
    with tarfile.open(fileobj=raw) as archive:
        for info in archive:
            # Else the headers of all members stay in memory.
            archive.members = []  # type: ignore[attr-defined]
            if not info.isreg():
                continue
            name = _posix(info.name)
            file = archive.extractfile(info) if is_wanted(name, info.size) else None
            yield _Member(name, info.size, info.offset, file.read(MAX_FILE_BYTES + 1) if file else b"")
        # A damaged header ends the loop as an end mark does, so look at what ended it,
        # and read on to the end, where the checksum is.
        stream = archive.fileobj
        assert stream is not None
        stream.seek(archive.offset)
        if any(stream.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError("a member's header is damaged")
        while stream.read(1 << 16):
            pass


def _posix(name: str) -> str:
    return str(PurePosixPath(name.lstrip("/")))


# ---- cleaning -------------------------------------------------------------------------------------


def clean(file: SourceFile) -> Document | Drop:
    """A source file under a permitted licence, or why it is left out."""
    if file.licence is None or not is_permitted(file.licence):
        return Drop("licence not permitted", detail=f"{file.project}: {file.licence or 'none stated'}")
    if refusal := _refusal(file.path, file.size):
        return refusal
    text = _decode(file.data)
    if text is None:
        return Drop("binary", detail=file.path)
    if is_generated(text):
        return Drop("generated", detail=file.path)
    language = LANGUAGES[PurePosixPath(file.path).suffix.lower()]
    text = without_licence_header(text, language).strip("\n")
    if not text.strip():
        return Drop("empty", detail=file.path)
    lines = text.split("\n")
    if max(map(len, lines)) > MAX_LINE:
        return Drop("longest line too long", detail=file.path)
    if len(text) > MAX_MEAN_LINE * len(lines):
        return Drop("mean line too long", detail=file.path)
    if sum(map(str.isalnum, text)) < MIN_ALPHANUMERIC * len(text):
        return Drop("few letters or digits", detail=file.path)
    return Document(
        id=f"{file.project}/{file.path}",
        source="github",
        text=text + "\n",
        meta={"licence": file.licence, "path": file.path, "language": language},
    )


def _refusal(path: str, size: int) -> Drop | None:
    """What path and size alone decide, so that the bytes need not be read."""
    where = PurePosixPath(path)
    if not _VENDORED.isdisjoint(where.parts[:-1]):
        return Drop("vendored", detail=path)
    if _LICENCE_FILE.match(where.name) and where.suffix.lower() not in _CODE:
        return Drop("licence file", detail=path)
    if where.suffix.lower() not in LANGUAGES:
        return Drop("not source code or prose", detail=path)
    if _MINIFIED.search(where.name):
        return Drop("minified", detail=path)
    if size > MAX_FILE_BYTES:
        return Drop("larger than 1 MB", detail=path)
    return None


def _decode(data: bytes) -> str | None:
    if b"\0" in data:
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n")
