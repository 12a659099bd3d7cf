"""Directories of finished documents -> their files: what a step that learns from documents begins with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.corpus.document import Document
from puna.corpus.parquet import read_documents
from puna.files import MANIFEST, read_manifest

_COMMAND = "puna corpus SOURCE INPUT… --out DIR"


@dataclass(frozen=True)
class Finished:
    """A directory of finished documents: its manifest's fingerprint, its Parquet files."""

    directory: Path
    fingerprint: str
    files: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def documents(self) -> Iterator[Document]:
        """All documents, in the order of the files."""
        for file in self.files:
            yield from read_documents(file)


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
        for item in manifest["outputs"]:
            path = directory / item["path"]
            if not path.is_file() or path.stat().st_size != item["bytes"]:
                raise ValueError(
                    f"{path} is missing or not the {item['bytes']} bytes that its manifest says; "
                    f"delete {directory} and make it again with: {_COMMAND}"
                )
        names = [item["path"] for item in manifest["outputs"] if item["path"].endswith(".parquet")]
        found.append(Finished(directory, manifest["fingerprint"], tuple(directory / name for name in names)))
    return found


def as_inputs(found: Iterable[Finished]) -> list[dict[str, str]]:
    """What a manifest says of them."""
    return [{"path": str(item.directory), "fingerprint": item.fingerprint} for item in found]


def trained_before(
    out: Path,
    files: Sequence[str],
    stage: tuple[str, str],
    config: Mapping[str, Any],
    inputs: Sequence[Mapping[str, str]],
    kind: str,
    learned_from: str = "documents",
) -> dict[str, Any] | None:
    """The manifest of what was trained in `out`, None when that is not finished.

    `stage` is its name and the command that makes it, `files` what it must hold, `kind` what to call it.

    Raises:
        ValueError: when it was trained with another configuration, or from other inputs.
    """
    if not all((out / name).is_file() for name in (MANIFEST, *files)):
        return None
    manifest = read_manifest(out, *stage)
    differing = [key for key in config if manifest["config"].get(key) != config[key]]
    if [item["fingerprint"] for item in manifest["inputs"]] != [item["fingerprint"] for item in inputs]:
        differing.append(learned_from)
    if differing:
        raise ValueError(
            f"{out} holds a {kind} trained with another {' and '.join(differing)}; "
            f"choose another --out, or delete {out} to train again"
        )
    return manifest
