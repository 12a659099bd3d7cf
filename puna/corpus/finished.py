"""Directories of finished documents -> their files: what a step that learns from documents begins with."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.corpus.document import Document
from puna.corpus.parquet import read_all_documents
from puna.manifest import Input, read_manifest

_COMMAND = "puna corpus SOURCE INPUT… --out DIR"


@dataclass(frozen=True)
class Finished:
    """A directory of finished documents: its manifest's fingerprint, its Parquet files."""

    directory: Path
    fingerprint: str
    files: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """Size of the files."""
        return sum(file.stat().st_size for file in self.files)

    def documents(self) -> Iterator[Document]:
        """All documents, in the order of the files."""
        return read_all_documents(self.files)


def find_finished(directories: Sequence[Path]) -> list[Finished]:
    """Look the directories up in their manifests.

    Raises:
        ValueError: no directory, one without a finished documents stage, a file missing or cut.
    """
    if not directories:
        raise ValueError(f"no documents given; name directories made by: {_COMMAND}")
    found = []
    for directory in directories:
        manifest = read_manifest(directory, "documents", _COMMAND)
        for item in manifest.outputs:
            path = directory / item.path
            if not path.is_file() or path.stat().st_size != item.bytes:
                raise ValueError(
                    f"{path} is missing or not the {item.bytes} bytes that its manifest says; "
                    f"delete {directory} and make it again with: {_COMMAND}"
                )
        names = [item.path for item in manifest.outputs if item.path.endswith(".parquet")]
        found.append(Finished(directory, manifest.fingerprint, tuple(directory / name for name in names)))
    return found


def as_inputs(found: Iterable[Finished]) -> tuple[Input, ...]:
    """The directories as inputs of another stage's manifest."""
    return tuple(
        Input(str(item.directory), stage="documents", fingerprint=item.fingerprint) for item in found
    )
