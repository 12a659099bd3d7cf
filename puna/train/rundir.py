"""A run directory's own papers: whose run it is, written first; what it was made of, written last."""

import shutil
from pathlib import Path
from typing import Any

from puna.config import CONFIG, RunConfig, from_dict, to_dict
from puna.devices import Machine
from puna.files import MANIFEST, code_version, fingerprint, read_json, write_json
from puna.model.sizes import parameters
from puna.tokens.mixture import Mixture
from puna.train.checkpoint import TrainState, latest
from puna.train.metrics import machine_record


def claim(out: Path, config: RunConfig, mixture: Mixture) -> None:
    """Write the configuration and the tokenizer into `out`, or refuse when it holds another run's.

    Raises:
        ValueError: naming the first field that differs.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / CONFIG
    if path.is_file():
        held, wanted = to_dict(from_dict(RunConfig, read_json(path))), to_dict(config)
        if held != wanted:
            raise ValueError(
                f"{out} holds a run of another configuration ({_first_difference(held, wanted)}); "
                "choose another --out, or delete it to begin again"
            )
        return
    shutil.copyfile(mixture.tokenizer, out / "tokenizer.model")
    write_json(path, to_dict(config))


def _first_difference(held: dict[str, Any], wanted: dict[str, Any], path: str = "") -> str:
    for key in wanted:
        if held.get(key) != wanted[key]:
            if isinstance(wanted[key], dict) and isinstance(held.get(key), dict) and wanted[key]:
                return _first_difference(held[key], wanted[key], f"{path}{key}.")
            return f"{path}{key} is {held.get(key)!r} there, {wanted[key]!r} here"
    extra = next(key for key in held if key not in wanted)
    return f"{path}{extra} is {held[extra]!r} there"


def write_manifest(
    out: Path,
    config: RunConfig,
    mixture: Mixture,
    state: TrainState,
    validation: dict[str, Any],
    machine: Machine,
) -> None:
    """Say that the run is finished, and what came of it."""
    newest = latest(out)
    assert newest is not None
    write_json(
        out / MANIFEST,
        {
            "stage": "run",
            "fingerprint": fingerprint([to_dict(config), mixture.fingerprint]),
            "config": to_dict(config),
            "code_version": code_version(),
            "machine": machine_record(machine),
            "counts": {"parameters": parameters(config.model), "steps": state.step, "tokens": state.tokens},
            "mixture": mixture.report(state.step),
            "validation": validation,
            "inputs": [
                {"path": str(path), "fingerprint": manifest["fingerprint"]}
                for path, manifest in zip(mixture.directories, mixture.manifests, strict=True)
            ],
            "seconds": round(state.seconds, 3),
            "checkpoint": str(newest.relative_to(out)),
        },
    )
