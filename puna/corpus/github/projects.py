"""Projects in archives, BigQuery exports or unpacked folders -> their files, each with its licence.

In:  one archive, one export, or one file of an unpacked project.
Out: a SourceFile for each file, with its bytes if licence, path and size permit it.

    {"repo_name": "a/b", "path": "x.py", "license": "mit", "content": "…"}   a line of an export

A folder whose own licence is not permitted gives no documents, whatever its project's licence.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from puna.corpus.document import DamagedRecord, Drop
from puna.corpus.github.archives import DAMAGE, members
from puna.corpus.github.headers import LANGUAGES
from puna.corpus.github.licence import (
    SETTINGS,
    all_stated,
    is_permitted,
    licence_of_metadata,
    licence_of_settings,
    licence_of_text,
    licence_of_texts,
)
from puna.corpus.json_lines import Line, read_json_lines

MAX_FILE_BYTES = 1_000_000

SUFFIX = re.compile(r"\.(?:whl|zip|tar\.gz|tgz|tar\.bz2|tar\.xz|tar)$")
EXPORT = re.compile(r".*\.jsonl?(?:\.gz)?")
LICENCE_FILE = re.compile(r"(?:un)?licen[sc]e|copying", re.IGNORECASE)
_METADATA = re.compile(r"PKG-INFO|[^/]+\.dist-info/METADATA")
_KNOWN_LICENCE = r"(?:mit|expat|bsd|apache|[al]?gpl|mpl|epl|isc|x11|zlib|boost|cddl|ms-?pl)[-_.v]*[\d.]*"
_PROJECT_LICENCE = re.compile(
    rf"(?:[^/]+\.dist-info/(?:licenses/)?)?"
    rf"(?:(?:(?:{_KNOWN_LICENCE}|project)[-_.]?)?(?:un)?licen[sc]es?"
    rf"(?:[._-][^/]*)?|"
    rf"copying(?:[._-][^/]*)?|{_KNOWN_LICENCE}\.(?:txt|md|rst)|[al]?gpl[-_.v]*[\d.]*)",
    re.IGNORECASE,
)
_REUSE = re.compile(
    r"(?:[^/]+/)?LICENSES/[^/]+\.txt"
)  # all licences of a project, by the REUSE specification
_PAGES = frozenset({".md", ".markdown", ".rst", ".html", ".htm", ".tex"})
_CODE = frozenset(LANGUAGES) - _PAGES
# Folders of third-party code: those of GitHub's linguist, and those usual in Python.
_VENDORED_NAMES = """
    vendor vendors _vendor vendored _vendored third_party third-party thirdparty 3rdparty 3rd-party 3rd_party
    node_modules bower_components extern external externals deps _deps godeps pods carthage cordova-js
    .yarn .bundle site-packages _build dist-packages
"""
_VENDORED = frozenset(_VENDORED_NAMES.split())
_MINIFIED = re.compile(r"[.-]min\.\w+$")


@dataclass(frozen=True)
class SourceFile:
    """One file of a project. `data` is empty if path, size or licence alone exclude the file."""

    project: str
    licence: str | None
    path: str
    size: int
    data: bytes


# ---- archives -------------------------------------------------------------------------------------


def read_archive(path: Path) -> Iterator[SourceFile | DamagedRecord]:
    """The files of an archive; the offset of a DamagedRecord is where its member begins."""
    with path.open("rb") as raw:
        top, licences = _survey(path, raw)
        project = "-".join(path.name.split("-")[:2]) if path.suffix == ".whl" else SUFFIX.sub("", path.name)

        def is_wanted(name: str, size: int) -> bool:
            name = name.removeprefix(top)
            return is_permitted(_licence_at(name, licences) or "") and refusal(name, size) is None

        offset = 0
        try:
            for member in members(path.name, raw, is_wanted, MAX_FILE_BYTES):
                offset = member.offset
                if member.damage:
                    yield DamagedRecord(f"{path}!{member.path}", offset, member.damage)
                else:
                    name = member.path.removeprefix(top)
                    size = max(member.size, len(member.data))
                    yield SourceFile(project, _licence_at(name, licences), name, size, member.data)
        except DAMAGE as error:
            yield DamagedRecord(str(path), offset, f"the archive is damaged or cut ({error})")


def _survey(path: Path, raw: BinaryIO) -> tuple[str, dict[str, str]]:
    """The folder that all members share (`flask-3.1.3/` in an sdist), and each folder's own licence.

    The project's licence is that of the folder "".
    """
    found: dict[str, str] = {}
    tops: set[str] = set()

    def is_wanted(name: str, size: int) -> bool:
        if size > MAX_FILE_BYTES:
            return False
        below_top = name if path.suffix == ".whl" else name.partition("/")[2] or name
        return bool(_METADATA.fullmatch(name) or _METADATA.fullmatch(below_top) or below_top in SETTINGS) or (
            _is_licence_file(name)
        )

    try:
        for member in members(path.name, raw, is_wanted, MAX_FILE_BYTES):
            tops.add(member.path.partition("/")[0] + "/" if "/" in member.path else "")
            if member.data:
                found[member.path] = member.data.decode("utf-8", "replace")
    except DAMAGE:
        pass  # reported when the files are read; intact members before the damage count
    top = tops.pop() if len(tops) == 1 and path.suffix != ".whl" else ""
    return top, _licences({name.removeprefix(top): text for name, text in found.items()})


def _licences(texts: Mapping[str, str]) -> dict[str, str]:
    """Folder -> its own licence, from the texts of metadata and licence files by path."""
    licences: dict[str, str] = {}
    ours = {
        name: text
        for name, text in sorted(texts.items())
        if _PROJECT_LICENCE.fullmatch(name) or _REUSE.fullmatch(name)
    }
    stated = (licence_of_metadata(text) for name, text in sorted(texts.items()) if _METADATA.fullmatch(name))
    licence = next(filter(None, stated), None)
    if licence is None:
        # If several state a licence, all must be permitted.
        said = [licence_of_settings(name, texts[name]) for name in SETTINGS if name in texts]
        licence = all_stated(filter(None, [*said, licence_of_texts(ours.values())]))
    if licence:
        licences[""] = licence
    for name, text in sorted(texts.items()):
        folder = name.rpartition("/")[0]
        # A page of the manual about the licence is not a licence of the manual.
        is_page = PurePosixPath(name).suffix.lower() in _PAGES
        if not (
            name in ours
            or is_page
            or name.endswith(SETTINGS)
            or _METADATA.fullmatch(name)
            or ".dist-info" in folder
        ):
            licence = licence_of_text(text) or "unrecognised"
            licences[folder] = f"{licences[folder]} AND {licence}" if folder in licences else licence
    return licences


def _licence_at(name: str, licences: Mapping[str, str]) -> str | None:
    """The licence of a file: the project's, unless a folder that it is in has one that is not permitted."""
    if len(licences) <= ("" in licences):
        return licences.get("")
    above = [str(folder) for folder in PurePosixPath(name).parents if str(folder) in licences]
    refused = [licences[folder] for folder in above if not is_permitted(licences[folder])]
    return refused[0] if refused else licences.get("")


def _is_licence_file(name: str) -> bool:
    last = PurePosixPath(name)
    is_named = _PROJECT_LICENCE.fullmatch(last.name) or _REUSE.fullmatch(name)
    return bool(is_named) and last.suffix.lower() not in _CODE


# ---- BigQuery exports


# The names of each field in the tables (files, contents, licenses, sample_*) and in joins of them.
_NAMES = {
    "repo_name": ("repo_name", "sample_repo_name", "repo", "repository", "max_stars_repo_name"),
    "path": ("path", "sample_path", "file_path", "max_stars_repo_path"),
    "license": ("license", "licence", "licenses", "max_stars_repo_licenses"),
    "content": ("content", "contents", "text", "code"),
}
_OTHERS = "id size binary copies ref mode symlink_target sample_ref sample_mode sample_symlink_target"
_KNOWN = {name for names in _NAMES.values() for name in names}.union(_OTHERS.split())


def read_export(path: Path) -> Iterator[SourceFile | DamagedRecord]:
    """The records of an export; the offset of a DamagedRecord is where its line begins.

    Raises:
        ValueError: when the fields are not those of the tables; the message names them.
    """
    for line in read_json_lines(path):
        yield line if isinstance(line, DamagedRecord) else _parse_record(path, line)


def _parse_record(path: Path, line: Line) -> SourceFile | DamagedRecord:
    record, offset = line.values, line.offset
    values = {
        field: next((record[name] for name in names if record.get(name) is not None), None)
        for field, names in _NAMES.items()
    }
    missing = [field for field, value in values.items() if value is None]
    # BigQuery omits null fields: the content of a binary file, the licence of a repository without one.
    unknown = sorted(set(record) - _KNOWN)
    if "repo_name" in missing or "path" in missing or (missing and unknown):
        raise ValueError(
            f"{path}: a record at byte {offset} has no {' or '.join(missing)}, but {', '.join(record)}; "
            "export repo_name, path, license and content under these names"
        )
    licence = values["license"]
    if isinstance(licence, list):
        licence = " AND ".join(map(str, licence)) or None
    content = values["content"]
    try:
        # BigQuery has no content of binary files; a NUL marks them as binary here too.
        data = b"\0" if content is None or record.get("binary") in (True, "true") else str(content).encode()
    except UnicodeEncodeError:
        return DamagedRecord(str(path), offset, "content with half a surrogate pair")
    size = max(int(record.get("size") or 0), len(data))
    file = SourceFile(str(values["repo_name"]), licence, str(values["path"]).lstrip("/"), size, data)
    if not is_permitted(licence or "") or refusal(file.path, size):
        return SourceFile(file.project, licence, file.path, size, b"")
    return file


# ---- unpacked projects


def read_loose(path: Path) -> SourceFile:
    """A file of an unpacked project.

    The project is the nearest parent folder with `.git`, else the topmost one with a licence.
    """
    above = list(path.parents)
    repository = next((place for place, folder in enumerate(above) if (folder / ".git").exists()), None)
    inside = above if repository is None else above[: repository + 1]
    marked = [folder for folder in inside if own_licence(folder)[1]]
    root = inside[repository] if repository is not None else marked[-1] if marked else path.parent
    name = path.relative_to(root).as_posix()
    licences = {
        "" if folder == root else folder.relative_to(root).as_posix(): licence
        for folder in marked
        if (licence := own_licence(folder)[0])
    }
    licence = _licence_at(name, licences)
    size = path.stat().st_size
    wanted = is_permitted(licence or "") and refusal(name, size) is None
    return SourceFile(root.name, licence, name, size, path.read_bytes() if wanted else b"")


@lru_cache(maxsize=4096)
def own_licence(folder: Path) -> tuple[str | None, bool]:
    """(the licence that the folder itself states, whether the folder is marked as a project)."""
    texts = {}
    for path in sorted([*folder.iterdir(), *folder.glob("LICENSES/*.txt")], key=str):
        name = path.relative_to(folder).as_posix()
        if (_is_licence_file(name) or name in ("PKG-INFO", *SETTINGS)) and path.is_file():
            with path.open("rb") as file:
                texts[name] = file.read(MAX_FILE_BYTES).decode("utf-8", "replace")
    return _licences(texts).get(""), bool(texts) or (folder / ".git").exists()


def refusal(path: str, size: int) -> Drop | None:
    """The reason to drop a file by path and size alone, so that its bytes need not be read."""
    where = PurePosixPath(path)
    if not _VENDORED.isdisjoint(part.lower() for part in where.parts[:-1]):
        return Drop("vendored", detail=path)
    if LICENCE_FILE.match(where.name) and where.suffix.lower() not in _CODE:
        return Drop("licence file", detail=path)
    if where.suffix.lower() not in LANGUAGES:
        return Drop("not source code or prose", detail=path)
    if _MINIFIED.search(where.name):
        return Drop("minified", detail=path)
    if size > MAX_FILE_BYTES:
        return Drop("larger than 1 MB", detail=path)
    return None
