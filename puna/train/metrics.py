"""What a run records: JSON lines, progress on the terminal, and the machine that it ran on.

RUN/metrics.jsonl
    {"kind": "start", "step": 0, "time": "2026-11-26T08:00:00+00:00"}
    {"kind": "train", "step": 1, "loss": 8.32, "loss_by_source": {"books": 8.31}, "lr": ..., ...}
    {"kind": "validation", "step": 200, "loss": 5.9, "loss_by_source": {...}, ...}
    {"kind": "layers", "step": 200, "tokens": ..., "norm": {"blocks.0.wq": ...}, "update": {...}}

A train record's `seconds_by_part` are those since the record before: a validation is in the record of the
step after it.
"""

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from puna.allowance import cores
from puna.config import RunConfig
from puna.devices import Machine, Mark, cpu_name, mark, seconds_between
from puna.files import atomic_file, named_when_full
from puna.model.sizes import train_flops_per_token
from puna.progress import Bar
from puna.rundir import METRICS, PROGRESS
from puna.train.allocator import is_kept
from puna.train.checkpoint import TrainState
from puna.train.observe import trackers
from puna.train.step import StepResult

CPU = torch.device("cpu")
Sink = Callable[[dict[str, Any]], None]
MOST_SKIPPED = 16  # consecutive steps that are not finite: more are no outliers, the run has diverged


class JsonLines:
    """Append records to a JSON-lines file, each on disk once written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        with named_when_full(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def rewind(self, step: int) -> None:
        """Truncate after `step`, and drop a partial last line: the run resumes from there."""
        if not self.path.is_file():
            return
        kept = []
        # Bytes, split at \n alone: str.splitlines would also cut at the line separators inside a text.
        for line in self.path.read_bytes().split(b"\n"):
            try:
                record = json.loads(line)
                is_repeated = step == 0 and record.get("kind") == "validation"  # before the first step
                if record["step"] <= step and not is_repeated:
                    kept.append(line + b"\n")
            except (ValueError, KeyError):
                break
        with atomic_file(self.path) as temporary:
            temporary.write_bytes(b"".join(kept))


class StepLog:
    """Turns steps into records, and measures their time.

    On a CPU a step is recorded when it is added. A GPU runs behind the host: a step is recorded when the next
    one has been launched, because reading its figures waits for it, and the device must have work meanwhile.
    A step lasts from `begin` to `add`, by the device's own clock.

    `seconds` is the time of all recorded steps, over all starts of the run. `sinks` get each record.
    Raises FloatingPointError at a step whose loss or gradient is not finite, unless such steps are skipped
    (`optim.skip_outliers`).
    """

    def __init__(
        self,
        names: tuple[str, ...],
        flops: float,
        peak: float,
        sinks: Sequence[Sink],
        seconds: float = 0.0,
        may_skip: bool = False,
        device: torch.device = CPU,
    ) -> None:
        self.device = device
        self.names, self.sinks, self.seconds, self.may_skip = names, sinks, seconds, may_skip
        self._mfu_by_rate = flops / peak
        self._pending: tuple[StepResult, dict[str, Any], int, Mark, Mark] | None = None
        self._began: Mark = 0.0  # of the current step
        self._parts: dict[str, float] = {}  # seconds since the last record
        self._not_finite = 0  # consecutive steps that were not finite

    def begin(self) -> None:
        """Start the clock of a step."""
        self._began = mark(self.device)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a part of the run's time; what is in none of them is `compute`."""
        began = time.perf_counter()
        yield
        self._parts[name] = self._parts.get(name, 0.0) + time.perf_counter() - began

    def add(self, state: TrainState, result: StepResult, lr: float, tokens: int) -> None:
        """Take the figures of the step that led to `state`; `tokens` are those of its global batch."""
        self.flush()
        record = {"kind": "train", "step": state.step, "lr": lr, "tokens": state.tokens}
        self._pending = result, record, tokens, self._began, mark(self.device)
        if result.grad_norm.is_cpu:
            self.flush()

    def flush(self) -> None:
        """Record the step that is pending; waits for the device."""
        if self._pending is None:
            return
        (result, record, tokens, began, ended), self._pending = self._pending, None
        figures = result.record(self.names)  # waits
        seconds = seconds_between(began, ended)
        self.seconds += seconds
        # The host reads a batch while a GPU is busy with the step before.
        compute = max(0.0, seconds - self._parts.get("data", 0.0))
        parts, self._parts = {**self._parts, "compute": compute}, {}
        rate = tokens / seconds
        record |= {
            "tokens_per_second": round(rate, 1),
            "mfu": round(rate * self._mfu_by_rate, 4),
            "seconds": round(self.seconds, 3),
            "seconds_by_part": {name: round(value, 4) for name, value in parts.items()},
            **figures,
        }
        self._send(record)
        self._not_finite = 0 if result.finite.item() else self._not_finite + 1
        if self._not_finite > (MOST_SKIPPED if self.may_skip else 0):
            raise FloatingPointError(
                f"step {record['step']}: loss {record['loss']:g}, gradient norm {record['grad_norm']:g}: "
                f"training has diverged; resume from the last checkpoint with an --optim.lr below "
                f"{record['lr']:g}, or with --optim.skip-outliers 10"
            )

    def validation(self, state: TrainState, figures: dict[str, Any], is_final: bool) -> None:
        """Record the held-out loss after `state`; the step before it must be flushed."""
        self._send({"kind": "validation", "step": state.step, **figures, "final": is_final})

    def layers(self, state: TrainState, figures: dict[str, dict[str, float]]) -> None:
        """Record the norms by parameter after `state`."""
        self._send({"kind": "layers", "step": state.step, "tokens": state.tokens, **figures})

    def _send(self, record: dict[str, Any]) -> None:
        for sink in self.sinks:
            sink(record)


@contextmanager
def open_log(
    out: Path,
    config: RunConfig,
    sources: tuple[str, ...],
    peak: float,
    state: TrainState,
    device: torch.device,
    is_written: bool,
) -> Iterator[StepLog]:
    """The log of a run that resumes from `state`: metrics.jsonl, a progress bar, the configured trackers.

    Where stderr is not a terminal, there is a line per record in place of the bar. `is_written` is false in
    all processes of a run but the first: their log only measures. `peak` is that of all processes.

    Raises:
        ValueError: a tracker is not installed.
    """
    flops, may_skip = train_flops_per_token(config.model), config.optim.skip_outliers > 0
    if not is_written:
        yield StepLog(sources, flops, peak, [], state.seconds, may_skip, device)
        return
    metrics = JsonLines(out / METRICS)
    metrics.rewind(state.step)
    began = datetime.now(UTC).isoformat(timespec="seconds")
    metrics.write({"kind": "start", "step": state.step, "time": began})
    steps = config.schedule.steps
    total = steps * config.schedule.batch_tokens
    with (
        trackers(out, config) as tracked,
        Bar("train", total, "tokens", out / PROGRESS, state.tokens) as bar,
    ):
        bar.advance(0)

        def show(record: dict[str, Any]) -> None:
            if record["kind"] == "train":
                bar.advance(record["tokens"] - bar.done, f"step {record['step']} loss {record['loss']:.3f}")
            if not sys.stderr.isatty() and record["kind"] != "layers":
                print(line(record, steps), file=sys.stderr, flush=True)

        sinks = [metrics.write, show, *tracked]
        yield StepLog(sources, flops, peak, sinks, state.seconds, may_skip, device)


def line(record: dict[str, Any], steps: int) -> str:
    """A record as one line of text: `step 20/1000: loss 5.123, learning rate 2.0e-04, ...`."""
    place = f"step {record['step']}/{steps}:"
    if record["kind"] == "validation":
        loss = record["loss"]
        return f"{place} held-out loss {'not measured' if loss is None else format(loss, '.3f')}"
    return (
        f"{place} loss {record['loss']:.3f}, learning rate {record['lr']:.1e}, "
        f"gradient norm {record['grad_norm']:.2f}, {record['tokens_per_second']:,.0f} tokens/s, "
        f"MFU {record['mfu']:.1%}{', skipped' if record.get('skipped') else ''}"
    )


def machine_record(machine: Machine) -> dict[str, Any]:
    """The machine that a run used, for its manifest."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": machine.threads,
        "device": machine.device.type,
        **({} if machine.device.type == "cpu" else {"device_name": machine.name}),
        "precision": machine.precision,
        "bf16_speed": round(machine.bf16_speed, 3),
        "matrix_gflops": round(machine.peak / 1e9, 1),
        "allocator": "keep" if is_kept() else "system",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
