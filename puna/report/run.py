"""The contents of a run directory, read once for the report.

RUN/config.json       the configuration          always there
    metrics.jsonl     one line per step, validation, start and norms by layer; the last may be truncated
    samples.jsonl     continuations
    manifest.json     once the run is finished; its inputs lead to the stages before it
"""

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import from_json

from puna.config import RunConfig, read_config
from puna.files import MANIFEST
from puna.manifest import Manifest, load_manifest
from puna.model.sizes import parameters, train_flops_per_token
from puna.report.lineage import Stage, read_lineage
from puna.report.series import Array, Series, series
from puna.rundir import CONFIG, METRICS, SAMPLES

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Everything that the page shows. `manifest` is None while the run is unfinished."""

    path: Path
    config: RunConfig
    manifest: Manifest | None
    train: list[Record]
    validations: list[Record]
    samples: list[Record]
    starts: list[Record]
    """The starts of the run: the first, and one per restart."""
    layers: list[Record]
    """Norms of the weights, and of the updates relative to them."""
    lineage: Stage
    written: float = 0.0
    """When the metrics were last written, in seconds since the epoch."""

    @property
    def name(self) -> str:
        """The directory's own name."""
        path = self.path if self.path.name not in ("", "..") else self.path.resolve()
        return path.name

    @property
    def step(self) -> int:
        """The last step that is recorded."""
        return max([record["step"] for record in self.train[-1:] + self.validations[-1:]], default=0)

    @property
    def uniform_loss(self) -> float:
        """The loss, in nats per token, of predicting every token with equal probability."""
        return math.log(self.config.model.vocab_size)

    @property
    def validation(self) -> Record:
        """The final validation, or the newest there is."""
        return self.details.get("validation") or (self.validations[-1] if self.validations else {})

    @property
    def details(self) -> Record:
        """The mixture, validation and machine of a finished run's manifest; empty while it is unfinished."""
        return self.manifest.details if self.manifest else {}

    @cached_property
    def flops(self) -> float:
        """Training FLOPs per token."""
        return train_flops_per_token(self.config.model)

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return parameters(self.config.model)

    def column(self, key: str) -> Array:
        """A figure of every step; what is missing is not a number."""
        if key not in self._columns:
            values = [record.get(key) for record in self.train]
            try:
                self._columns[key] = np.array(values, np.float64)  # None becomes NaN
            except (TypeError, ValueError):
                self._columns[key] = np.array([number(value) for value in values])
        return self._columns[key]

    @cached_property
    def _columns(self) -> dict[str, Array]:
        return {}

    def series(self, key: str, name: str, **more: Any) -> Series:
        """A figure over the steps; steps that lack it are not a number."""
        steps, tokens = self.column("step"), self.column("tokens")
        return Series(name, steps, tokens, self.column(key), flops=self.flops, **more)

    @cached_property
    def step_seconds(self) -> Array:
        """The time of every step."""
        return np.diff(self.column("seconds"), prepend=0.0)

    def median(self, key: str) -> float | None:
        """The median of a figure over the steps; None where no step has it."""
        column = self.column(key)
        known = column[np.isfinite(column)]
        return float(statistics.median(known.tolist())) if len(known) else None

    def held_out(self, name: str, part: str = "loss", source: str = "", **more: Any) -> Series:
        """A figure of every validation, of all sources or of one."""
        points = []
        for record in self.validations:
            value = record.get(part)
            if source:
                value = value.get(source) if isinstance(value, dict) else None
            if value is not None:
                points.append((record["step"], self.tokens_at(record["step"]), number(value)))
        return series(name, points, flops=self.flops, **more)

    def tokens_at(self, step: int) -> int:
        """Tokens seen by the end of a step, from its record, or by the batch size where it has none."""
        tokens: int = self._tokens_of.get(step, step * self.config.schedule.batch_tokens)
        return tokens

    @cached_property
    def _tokens_of(self) -> dict[int, int]:
        return {record["step"]: record["tokens"] for record in self.train}


def read_run(run: Path) -> Run:
    """Read a run directory.

    Raises:
        ValueError: when it is none, or one of its files is damaged; the message names the fix.
    """
    if not (run / CONFIG).is_file():
        raise ValueError(
            f"{run} is not a run directory (no {CONFIG} in it); "
            "give the --out of puna train, or make one with: puna train --recipe 15m --data DIR --out RUN"
        )
    config = read_config(run)
    manifest = load_manifest(run / MANIFEST) if (run / MANIFEST).is_file() else None
    if manifest and manifest.stage != "run":
        raise ValueError(f"{run / MANIFEST} is not a run's; delete it and run puna train again")
    records = _read_lines(run / METRICS, ("step",))
    train = _by_step(record for record in records if record.get("kind") == "train")
    for record in train:
        record.setdefault("tokens", record["step"] * config.schedule.batch_tokens)
    return Run(
        path=run,
        config=config,
        manifest=manifest,
        train=train,
        validations=_by_step(record for record in records if record.get("kind") == "validation"),
        samples=_read_lines(run / SAMPLES, ("step", "prompt", "text")),
        starts=[record for record in records if record.get("kind") == "start"],
        layers=_by_step(record for record in records if record.get("kind") == "layers"),
        written=(run / METRICS).stat().st_mtime if (run / METRICS).is_file() else 0.0,
        lineage=read_lineage(run, manifest, config.data),
    )


def _read_lines(path: Path, required: tuple[str, ...]) -> list[Record]:
    """A JSON-lines file's records; a truncated last line, which a killed run leaves, is skipped."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = _json(line)
        except ValueError:  # also of bytes that are not UTF-8
            if not any(rest.strip() for rest in lines[number:]):
                break
            record = None
        if not isinstance(record, dict) or any(key not in record for key in required):
            raise ValueError(
                f"{path}, line {number} is not a record of {', '.join(required)}; "
                "delete that line and build the report again"
            )
        records.append(record)
    return records


def _json(line: bytes) -> Any:
    """A line's value. pydantic's reader is twice as fast as json, which reads lone surrogates as well."""
    try:
        return from_json(line)
    except ValueError:
        return json.loads(line.decode())


def _by_step(records: Iterable[Record]) -> list[Record]:
    """One record per step, in order; the later one of a step that was repeated after a restart."""
    return [record for _, record in sorted({record["step"]: record for record in records}.items())]


def number(value: Any) -> float:
    """A JSON value as a float; what is no number is NaN."""
    return float(value) if isinstance(value, int | float) else math.nan
