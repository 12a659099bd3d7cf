"""Manifests: what a stage read, what it wrote, and with which configuration and code.

A directory that a stage writes counts only once `manifest.json` is in it, which is written last, atomically.
Inputs that other stages wrote are recorded by fingerprint: manifests lead from a run back to the raw dumps.

    run ──inputs──> shards ──inputs──> documents ──inputs──> raw files (SHA-256)
                       └────inputs───> tokenizer ──inputs──> documents

The fingerprint names the contents: the configuration and the digests of the files, never paths or times.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from puna.carbon import Energy
from puna.files import MANIFEST, read_json, sha256_file, write_json

FORMAT = 1


@dataclass(frozen=True)
class Input:
    """What a stage read: a file with its SHA-256, or a directory with the fingerprint of its manifest."""

    path: str
    """Path or URL as it was given."""
    bytes: int | None = None
    sha256: str = ""
    stage: str = ""
    """Name of the stage that wrote the directory."""
    fingerprint: str = ""
    """Fingerprint of the directory's manifest, or the SHA-256 of the one file that was read from it."""

    @classmethod
    def file(cls, path: Path) -> "Input":
        """A file, which is read for its digest."""
        return cls(str(path), path.stat().st_size, sha256_file(path))


@dataclass(frozen=True)
class Output:
    """A file that a stage wrote; the path is relative to the manifest's directory."""

    path: str
    bytes: int
    sha256: str = ""

    @classmethod
    def file(cls, path: Path) -> "Output":
        """A file beside the manifest, which is read for its digest."""
        return cls(path.name, path.stat().st_size, sha256_file(path))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record of a finished stage."""

    stage: str
    fingerprint: str
    config: dict[str, Any]
    """Everything beside the inputs that decides the output."""
    code_version: str
    """Release of puna, and a digest of the source that did the work (see `files.code_version`)."""
    counts: dict[str, int]
    """Records kept, records dropped by reason, documents, tokens …"""
    damaged: int = 0
    """Malformed records, which were listed and skipped."""
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    bytes: int = 0
    """Total size of the outputs."""
    seconds: float = 0.0
    """Time of the work, added up over its workers."""
    energy: Energy | None = None
    """Energy of the work, measured or estimated, and emissions; None in manifests of before the record."""
    details: dict[str, Any] = field(default_factory=dict)
    """What this stage alone records."""
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """The contents of `manifest.json`; unset fields of inputs and outputs are omitted."""
        values = asdict(self)
        for key in ("inputs", "outputs"):
            values[key] = [{k: v for k, v in item.items() if v not in (None, "")} for item in values[key]]
        return {"format": values.pop("format"), **values}


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Declare the directory finished; called after everything else in it has been written."""
    write_json(directory / MANIFEST, manifest.to_json())


def load_manifest(path: Path) -> Manifest:
    """Read a manifest of any stage; those without a format number are of puna before format 1.

    Raises:
        ValueError: when the file is not a manifest, or of a newer puna.
        OSError: when it cannot be read.
    """
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("stage"), str):
        raise ValueError(f"{path} is not a manifest; delete it and run its stage again")
    try:
        if "format" not in values:
            values = _upgraded(values)
        if values["format"] != FORMAT:
            raise ValueError(
                f"{path} has format {values['format']}; this puna reads formats up to {FORMAT}: update puna"
            )
        inputs = tuple(Input(**item) for item in values.pop("inputs"))
        outputs = tuple(Output(**item) for item in values.pop("outputs"))
        energy = values.pop("energy", None)
        energy = Energy(**energy) if energy else None
        return Manifest(**values, inputs=inputs, outputs=outputs, energy=energy)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is malformed ({error}); delete it and run its stage again") from error


def read_manifest(directory: Path, stage: str, command: str) -> Manifest:
    """The manifest of a finished `stage` in `directory`; `command` makes one, for the error message.

    Raises:
        ValueError: when there is none, or it is another stage's.
    """
    try:
        manifest = load_manifest(directory / MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"{directory} holds no finished {stage} (no {MANIFEST}); make it with: {command}"
        ) from error
    if manifest.stage != stage:
        raise ValueError(f"{directory} holds {manifest.stage!r}, not {stage!r}; make it with: {command}")
    return manifest


# ---- manifests before format 1 ------------------------------------------------------------------


_MOVED = {item.name for item in fields(Manifest)} | {"bad", "documents", "tokenizer", "files"}


def _upgraded(old: dict[str, Any]) -> dict[str, Any]:
    """The values of format 1 for a manifest without a format number."""
    stage, damaged = old["stage"], old.get("bad", 0)
    reads = "shards" if stage == "run" else "documents"
    inputs = [_old_input(item, reads) for item in old.get("inputs", [])]
    inputs += [_old_input(item, "documents") for item in old.get("documents", [])]
    if "tokenizer" in old:
        inputs.append(_old_input(old["tokenizer"], "tokenizer"))
    outputs = old.get("outputs", [])
    details = {key: value for key, value in old.items() if key not in _MOVED}
    for item in old.get("files", []):  # of a fetch
        inputs.append({"path": item["url"]})
        outputs.append({"path": item["name"], "bytes": item["bytes"], "sha256": item["sha256"]})
        digests = [f"{name}:{item[name]}" for name in ("md5", "sha1", "sha256") if name in item]
        details.setdefault("published", {})[item["name"]] = digests
    return {
        "format": FORMAT,
        "stage": stage,
        "fingerprint": old.get("fingerprint", ""),
        "config": old.get("config", {}),
        "code_version": old.get("code_version", ""),
        "counts": old.get("counts", {}),
        # The references of Wikipedia listed damaged pages; the others counted damaged records.
        "damaged": damaged if isinstance(damaged, int) else len(damaged),
        "inputs": inputs,
        "outputs": outputs,
        "bytes": old.get("bytes", sum(item["bytes"] for item in outputs)),
        "seconds": old.get("seconds", 0.0),
        "details": details,
    }


def _old_input(item: dict[str, Any], stage: str) -> dict[str, Any]:
    known = {name: item[name] for name in ("path", "bytes", "sha256", "fingerprint") if name in item}
    return known | ({"stage": stage} if "fingerprint" in item else {})
