"""Where a run's weights come from: follow the manifests from the run back to the raw dumps.

In:  a run directory; its manifest names its inputs, theirs name theirs.
Out: a tree of stages, each with the facts of its manifest and the files that it read.

    run ─┬─> shards books ─────> documents books ─────> raw files (SHA-256)
         ├─> shards wikipedia ─> documents wikipedia ─> raw files
         └─> tokenizer ────────> documents (as above)

Only manifests are opened, never data. A path is looked up as it was recorded, from the working directory
and from each folder above the manifest that names it. Where an input is not found, or is no longer the one
that was read, the stage's `state` says so beside the recorded fingerprint; nothing is guessed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from puna.files import MANIFEST, human_bytes, human_seconds
from puna.manifest import Input, Manifest, load_manifest

NOT_FOUND = "not found here"
CHANGED = "a different artefact is at this path now; not followed"
AS_ABOVE = "as above"
DROPPED = "dropped: "
STEPS = "steps"


@dataclass(frozen=True)
class File:
    """An input file as its manifest recorded it; `state` is empty while it is here with that size."""

    path: str
    bytes: int | None
    sha256: str
    state: str = ""


@dataclass
class Stage:
    """One directory that a stage wrote, and what it was made from.

    `manifest` is None when it is not found or is not the one that was read.
    """

    kind: str
    path: str
    fingerprint: str
    state: str = ""
    manifest: Manifest | None = None
    facts: list[tuple[str, str]] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    inputs: list["Stage"] = field(default_factory=list)

    def walk(self) -> Iterator["Stage"]:
        """This stage and all that it was made from, each once."""
        yield self
        for stage in self.inputs:
            yield from stage.walk()


def read_lineage(run: Path, manifest: Manifest | None, data: Iterable[str]) -> Stage:
    """The tree of a run.

    Args:
        run: the run's directory.
        manifest: the run's manifest; None for an unfinished run.
        data: the token shards of the run's configuration, followed without a fingerprint to compare where
            there is no manifest.
    """
    root = _stage("run", str(run), manifest) if manifest else Stage("run", str(run), "")
    named = manifest.inputs if manifest else [Input(path, stage="shards") for path in data]
    root.files = [_file(entry, run) for entry in named if entry.sha256]
    seen: set[tuple[str, str]] = set()
    root.inputs = [_follow(entry, run, seen) for entry in named if not entry.sha256]
    # One tokenizer serves all shards: it is listed once, after them, not again under each.
    for shards in list(root.inputs):
        for entry in shards.manifest.inputs if shards.manifest else ():
            if entry.stage == "tokenizer":
                tokenizer = _follow(entry, run, seen)
                root.inputs += [tokenizer] if tokenizer.state != AS_ABOVE else []
    return root


def _follow(entry: Input, base: Path, seen: set[tuple[str, str]]) -> Stage:
    """The stage that `entry`, of a manifest in `base`, names, with everything that it was made from.

    It is recognised by its fingerprint, or by having written the file of that SHA-256 (a tokenizer's model).
    """
    # The path may be of a file that the stage wrote: then its manifest is beside it.
    places = [place for path in _candidates(entry.path, base) for place in (path, path.parent)]
    found = [(place, manifest) for place in places if (manifest := _manifest(place))]
    directory, manifest = next((pair for pair in found if _is_it(entry, pair[1])), (None, None))
    mark = manifest.fingerprint if manifest else entry.fingerprint
    if (entry.stage, mark or entry.path) in seen:
        return Stage(entry.stage, entry.path, mark, AS_ABOVE)
    seen.add((entry.stage, mark or entry.path))
    if directory is None or manifest is None:
        return Stage(entry.stage, entry.path, mark, CHANGED if found else NOT_FOUND)
    stage = _stage(entry.stage, entry.path, manifest)
    stage.files = [_file(one, directory) for one in manifest.inputs if not one.fingerprint]
    stages = [one for one in manifest.inputs if one.fingerprint and one.stage != "tokenizer"]
    stage.inputs = [_follow(one, directory, seen) for one in [*stages, *_step_before(manifest, directory)]]
    return stage


def _step_before(manifest: Manifest, directory: Path) -> list[Input]:
    """The step of a corpus source that ran before this one: it is beside it, or in its folder `steps`."""
    if not (before := str(manifest.config.get("after", ""))):
        return []
    folder = directory.parent if directory.parent.name == STEPS else directory / STEPS
    for place in sorted(folder.glob("*")):
        if (found := _manifest(place)) and found.fingerprint == before:
            return [Input(str(place), stage=found.stage, fingerprint=before)]
    return [Input(str(folder), stage="step", fingerprint=before)]


def _is_it(entry: Input, manifest: Manifest) -> bool:
    written = [output.sha256 for output in manifest.outputs]
    return entry.fingerprint in ("", manifest.fingerprint, *written)


def _candidates(recorded: str, base: Path) -> Iterator[Path]:
    if not recorded:
        return
    path = Path(recorded)
    yield path
    if not path.is_absolute():
        resolved = base.resolve()
        yield from (folder / path for folder in (resolved, *resolved.parents))


def _manifest(directory: Path) -> Manifest | None:
    """The manifest in `directory`; None when there is none, or none that can be read."""
    try:
        return load_manifest(directory / MANIFEST)
    except (OSError, ValueError):
        return None


def _size(path: Path) -> int | None:
    """A file's bytes; None when there is no such file, or it may not be read."""
    try:
        return path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):
        return None


def _file(entry: Input, base: Path) -> File:
    sizes = [here for path in _candidates(entry.path, base) if (here := _size(path)) is not None]
    state = "" if entry.bytes in sizes else f"is {sizes[0]:,} bytes here now" if sizes else NOT_FOUND
    return File(entry.path, entry.bytes, entry.sha256, state)


def _stage(kind: str, path: str, manifest: Manifest) -> Stage:
    """A stage with the facts of its manifest: counts, bytes, seconds, code."""
    kept = {name: count for name, count in manifest.counts.items() if not name.startswith(DROPPED)}
    dropped = sum(count for name, count in manifest.counts.items() if name.startswith(DROPPED))
    facts = [
        ("source", str(manifest.config.get("source", ""))),
        *((name, f"{count:,}") for name, count in kept.items()),
        ("dropped", f"{dropped:,}" if dropped else ""),
        ("damaged", f"{manifest.damaged:,}" if manifest.damaged else ""),
        ("size", human_bytes(manifest.bytes) if manifest.bytes else ""),
        ("time", human_seconds(manifest.seconds) if manifest.seconds else ""),
        ("code", manifest.code_version),
    ]
    known = [(name, text) for name, text in facts if text]
    return Stage(kind, path, manifest.fingerprint, manifest=manifest, facts=known)
