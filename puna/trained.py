"""Stages that train one thing in one piece: a tokenizer, a language model, a classifier.

    documents, configuration ─> is it in `out` already? ─yes─> its manifest
                                       └─no──> work: writes the files ─> manifest.json, last

A killed training starts over; the same inputs and configuration give the same bytes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.energy import Meter, of_uses
from puna.files import MANIFEST, code_version, fingerprint, remove_partials
from puna.manifest import Input, Manifest, Output, read_manifest, write_manifest

# Writes the files; returns the counts and the details of the manifest.
Work = Callable[[], tuple[dict[str, int], dict[str, Any]]]


@dataclass(frozen=True)
class Training:
    """A stage that trains something."""

    stage: str
    command: str
    """Command that runs it, for error messages."""
    wing: str
    """Folder of the package whose code does the work."""
    files: tuple[str, ...]
    """Names of the files that it writes."""
    noun: str
    """What is trained, for error messages."""
    learned_from: str = "documents"
    """What it is trained on, for error messages."""

    def once(self, out: Path, config: dict[str, Any], inputs: Sequence[Input], work: Work) -> Manifest:
        """The manifest of what is in `out`, after `work` has trained it unless it was there.

        Raises:
            ValueError: when `out` holds one of another configuration, or from other inputs.
        """
        if (existing := self._existing(out, config, inputs)) is not None:
            return existing
        started = time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        remove_partials(out)
        with Meter() as meter:
            counts, details = work()
        outputs = tuple(Output.file(out / name) for name in self.files)
        digests = [item.sha256 for item in outputs]
        marks = [self.stage, config, [item.fingerprint for item in inputs]]
        manifest = Manifest(
            stage=self.stage,
            fingerprint=fingerprint([*marks, digests if len(digests) > 1 else digests[0]]),
            config=config,
            code_version=code_version(self.wing),
            counts=counts,
            inputs=tuple(inputs),
            outputs=outputs,
            bytes=sum(item.bytes for item in outputs),
            seconds=round(time.monotonic() - started, 3),
            energy=of_uses([meter.use()]),
            details=details,
        )
        write_manifest(out, manifest)
        return manifest

    def _existing(self, out: Path, config: dict[str, Any], inputs: Sequence[Input]) -> Manifest | None:
        if not all((out / name).is_file() for name in (MANIFEST, *self.files)):
            return None
        manifest = self.read(out)
        differing = [key for key in config if manifest.config.get(key) != config[key]]
        if [item.fingerprint for item in manifest.inputs] != [item.fingerprint for item in inputs]:
            differing.append(self.learned_from)
        if differing:
            raise ValueError(
                f"{out} holds a {self.noun} trained with another {' and '.join(differing)}; "
                f"choose another --out, or delete {out} to train again"
            )
        return manifest

    def read(self, directory: Path) -> Manifest:
        """The manifest of a finished training.

        Raises:
            ValueError: when there is none, or it is another stage's.
        """
        return read_manifest(directory, self.stage, self.command)
