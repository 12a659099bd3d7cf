"""A run's metadata: configuration and tokenizer, written first; the manifest, written last."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from puna.config import RunConfig, read_config, to_dict
from puna.devices import Machine
from puna.energy import of_folder
from puna.files import code_version, fingerprint, read_json, write_json
from puna.manifest import Input, Manifest, write_manifest
from puna.model.sizes import parameters
from puna.rundir import CONFIG, ENERGY, TOKENIZER
from puna.train.batches import BatchSource
from puna.train.checkpoint import TrainState, latest, read_state
from puna.train.metrics import machine_record

_log = logging.getLogger(__name__)

Files = Mapping[str, Path | bytes]
"""Files by name: their paths, or their bytes."""


# Settings that change neither the weights nor the order of the data: they may change when a run is resumed.
# (The number of threads changes rounding, as another machine does.)
_FREE_SECTIONS = ("save", "watch", "eval", "parallel")
_FREE_FIELDS = (("compute", "threads"), ("compute", "allocator"))


def settled(config: RunConfig) -> RunConfig:
    """The configuration with a warm-up that is longer than the run shortened to a tenth of the run.

    The learning rate would otherwise never reach its peak. A warning is logged.
    """
    steps, warmup = config.schedule.steps, config.optim.warmup_steps
    if warmup < steps or warmup == 0:
        return config
    shortened = max(1, steps // 10)
    _log.warning(
        "optim.warmup_steps is %d, but the run has %d steps: warm-up is shortened to %d",
        warmup,
        steps,
        shortened,
    )
    return replace(config, optim=replace(config.optim, warmup_steps=shortened))


def decisive(config: RunConfig) -> dict[str, Any]:
    """The settings that decide a run's result, without the paths of its data: its fingerprint counts."""
    values = to_dict(config)
    del values["data"]
    for section in _FREE_SECTIONS:
        del values[section]
    for section, field in _FREE_FIELDS:
        del values[section][field]
    return values


def claim(out: Path, config: RunConfig, data: BatchSource, files: Files) -> None:
    """Write the configuration and the tokenizer into `out`, or refuse if it holds another run.

    `files` are the tokenizer's, by name; when empty, it is the one file of `data`.

    Settings that do not change the result may differ from those of an earlier start, and so may the path of
    the data if its fingerprint is the same; the new ones are written.

    Raises:
        ValueError: naming the first field that differs, or the data.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / CONFIG
    if path.is_file():
        held, wanted = decisive(read_config(path)), decisive(config)
        if held != wanted:
            raise ValueError(
                f"{out} holds a run of another configuration ({_first_difference(held, wanted)}); "
                "choose another --out, or delete it to begin again"
            )
        newest = latest(out)
        if newest is not None and (trained := read_state(newest).data) != data.fingerprint:
            raise ValueError(
                f"the data in {', '.join(config.data)} is not what {newest} was trained on "
                f"({data.fingerprint}, not {trained}); restore it, or choose another --out"
            )
    for name, file in (files or {TOKENIZER: data.tokenizer}).items():
        (out / name).write_bytes(file if isinstance(file, bytes) else file.read_bytes())
    if not path.is_file() or read_json(path) != to_dict(config):
        write_json(path, to_dict(config))


def _first_difference(held: dict[str, Any], wanted: dict[str, Any], path: str = "") -> str:
    for key in wanted:
        if held.get(key) != wanted[key]:
            if isinstance(wanted[key], dict) and isinstance(held.get(key), dict) and wanted[key]:
                return _first_difference(held[key], wanted[key], f"{path}{key}.")
            return f"{path}{key} is {held.get(key)!r} there, {wanted[key]!r} here"
    extra = next(key for key in held if key not in wanted)
    return f"{path}{extra} is {held[extra]!r} there"


def write_run_manifest(
    out: Path,
    config: RunConfig,
    data: BatchSource,
    state: TrainState,
    validation: dict[str, Any],
    machine: Machine,
    start: Callable[[], tuple[Input, ...]],
) -> None:
    """Write the manifest of a finished run: its data, what else it read to start, its result, its machine."""
    newest = latest(out)
    assert newest is not None
    write_manifest(
        out,
        Manifest(
            stage="run",
            fingerprint=fingerprint([decisive(config), data.fingerprint]),
            config=to_dict(config),
            code_version=code_version("train"),
            counts={"parameters": parameters(config.model), "steps": state.step, "tokens": state.tokens},
            inputs=(*data.inputs, *start()),
            seconds=round(state.seconds, 3),
            energy=of_folder(out / ENERGY),
            details={
                "machine": machine_record(machine),
                "mixture": data.report(state.step),
                "validation": validation,
                "checkpoint": str(newest.relative_to(out)),
            },
        ),
    )
