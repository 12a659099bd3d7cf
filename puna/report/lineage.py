"""Where a run's weights come from: walk the manifests from the run back to the raw dumps.

In:  a run directory; its manifest names its inputs, theirs name theirs.
Out: a tree of stages, each with what its manifest says and the files that it read.

    run ─┬─> shards books ─────> documents books ─────> raw files (SHA-256)
         ├─> shards wikipedia ─> documents wikipedia ─> raw files
         └─> tokenizer ────────> documents (as above)

Only manifests are opened, never data. A path is looked for as it was recorded, from the working
directory and from each folder above the manifest that names it. What is not found, or is not what was
read then, is said in the stage's `state` beside the recorded fingerprint; nothing is guessed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna.files import MANIFEST, human_bytes, human_seconds, read_json

NOT_FOUND = "not found here"
NOT_IT = "what lies there now is another, which is not followed"
AS_ABOVE = "as above"
DROPPED = "dropped: "


@dataclass(frozen=True)
class File:
    """An input file as its manifest recorded it; `state` is empty while it lies here with that size."""

    path: str
    bytes: int | None
    sha256: str
    state: str = ""


@dataclass
class Stage:
    """One directory that a stage wrote, and what it was made from.

    `manifest` is empty when it is not found or is not the one that was read.
    """

    kind: str
    path: str
    fingerprint: str
    state: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)
    facts: list[tuple[str, str]] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    inputs: list["Stage"] = field(default_factory=list)

    def walk(self) -> Iterator["Stage"]:
        """This stage and all that it was made from, each once."""
        yield self
        for stage in self.inputs:
            yield from stage.walk()


def read_lineage(run: Path, manifest: dict[str, Any], data: Iterable[str]) -> Stage:
    """The tree of a run. `manifest` is empty for an unfinished run: then `data`, from its
    configuration, names the shards, without fingerprints to hold them to.
    """
    root = _stage("run", str(run), manifest)
    named = _entries(manifest, "inputs") if manifest else [{"path": path} for path in data]
    seen: set[tuple[str, str]] = set()
    root.inputs = [_follow("shards", entry, run, seen) for entry in named]
    # One tokenizer serves all shards: it stands once, after them, not again under each.
    for shards in list(root.inputs):
        entry = shards.manifest.get("tokenizer")
        if isinstance(entry, dict):
            tokenizer = _follow("tokenizer", entry, run, seen)
            if tokenizer.state != AS_ABOVE:
                root.inputs.append(tokenizer)
    return root


def _follow(kind: str, entry: dict[str, Any], base: Path, seen: set[tuple[str, str]]) -> Stage:
    """The stage that `entry`, of a manifest in `base`, names, with all that lies behind it.

    It is known by its fingerprint, or by having written the file of that SHA-256 (a tokenizer's model).
    """
    recorded, named = str(entry.get("path", "")), str(entry.get("fingerprint", ""))

    def is_it(manifest: dict[str, Any]) -> bool:
        written = [str(one.get("sha256", "")) for one in _entries(manifest, "outputs")]
        return named in ("", str(manifest.get("fingerprint", "")), *written)

    # The path may be of a file that the stage wrote: then its manifest lies beside it.
    places = [place for path in _candidates(recorded, base) for place in (path, path.parent)]
    found = [(place, manifest) for place in places if (manifest := _manifest(place))]
    directory, manifest = next((pair for pair in found if is_it(pair[1])), (None, {}))
    mark = str(manifest.get("fingerprint", named))
    if (kind, mark or recorded) in seen:
        return Stage(kind, recorded, mark, AS_ABOVE)
    seen.add((kind, mark or recorded))
    if directory is None:
        return Stage(kind, recorded, named, NOT_IT if found else NOT_FOUND)

    stage = _stage(kind, recorded, manifest)
    entries = _entries(manifest, "inputs")
    stage.files = [_file(one, directory) for one in entries if "fingerprint" not in one]
    stages = [one for one in entries if "fingerprint" in one] + _entries(manifest, "documents")
    stage.inputs = [_follow("documents", one, directory, seen) for one in stages]
    return stage


def _candidates(recorded: str, base: Path) -> Iterator[Path]:
    if not recorded:
        return
    path = Path(recorded)
    yield path
    if not path.is_absolute():
        resolved = base.resolve()
        yield from (folder / path for folder in (resolved, *resolved.parents))


def _manifest(directory: Path) -> dict[str, Any]:
    """The manifest in `directory`; empty when there is none, or none that can be read."""
    try:
        manifest = read_json(directory / MANIFEST)
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _size(path: Path) -> int | None:
    """A file's bytes; None when there is no such file, or no leave to look."""
    try:
        return path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):
        return None


def _file(entry: dict[str, Any], base: Path) -> File:
    recorded, size = str(entry.get("path", "")), entry.get("bytes")
    sizes = [here for path in _candidates(recorded, base) if (here := _size(path)) is not None]
    state = "" if size in sizes else f"is {sizes[0]:,} bytes here now" if sizes else NOT_FOUND
    return File(recorded, size if isinstance(size, int) else None, str(entry.get("sha256", "")), state)


def _entries(manifest: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = manifest.get(key)
    if not isinstance(entries, list):
        return []
    return [entry if isinstance(entry, dict) else {"path": str(entry)} for entry in entries]


def _stage(kind: str, path: str, manifest: dict[str, Any]) -> Stage:
    """A stage with what its manifest tells of itself: counts, bytes, seconds, code."""
    config = manifest.get("config")
    source = config.get("source") if isinstance(config, dict) else None
    counts = {name: count for name, count in counts_of(manifest).items() if not name.startswith(DROPPED)}
    dropped = sum(count for name, count in counts_of(manifest).items() if name.startswith(DROPPED))
    facts = [("source", str(source))] if source else []
    facts += [(name, f"{count:,}") for name, count in counts.items()]
    if dropped:
        facts.append(("dropped", f"{dropped:,}"))
    if bad := _number(manifest, "bad"):
        facts.append(("damaged", f"{bad:,}"))
    if size := _number(manifest, "bytes"):
        facts.append(("size", human_bytes(size)))
    if seconds := _number(manifest, "seconds"):
        facts.append(("time", human_seconds(seconds)))
    if manifest.get("code_version"):
        facts.append(("code", str(manifest["code_version"])))
    mark = str(manifest.get("fingerprint", ""))
    return Stage(kind, path, mark, manifest=manifest, facts=facts)


def counts_of(manifest: dict[str, Any]) -> dict[str, int]:
    """What a manifest counted; what is no whole number there is left out."""
    counts = manifest.get("counts")
    if not isinstance(counts, dict):
        return {}
    return {name: count for name, count in counts.items() if isinstance(count, int)}


def _number(manifest: dict[str, Any], key: str) -> float:
    value = manifest.get(key)
    return value if isinstance(value, int | float) else 0
