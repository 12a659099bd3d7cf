"""What a run tells about itself: JSON lines, and the machine that it ran on.

RUN/metrics.jsonl
    {"kind": "train", "step": 1, "loss": 8.32, "loss_by_source": {"books": 8.31}, "lr": ..., ...}
    {"kind": "validation", "step": 200, "loss": 5.9, "loss_by_source": {...}, ...}
"""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from puna.devices import Machine, cpu_name
from puna.files import atomic_file
from puna.train.allocator import is_kept
from puna.train.checkpoint import TrainState
from puna.train.step import StepResult

Sink = Callable[[dict[str, Any]], None]
MOST_SKIPPED = 16  # steps in a row that are not finite: no outliers any more


class JsonLines:
    """Append records to a JSON-lines file, each on disk once written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def rewind(self, step: int) -> None:
        """Truncate after `step`, and drop a partial last line: the run resumes from there."""
        if not self.path.is_file():
            return
        kept = []
        # Bytes, split at \n alone: str.splitlines would also cut at the line separators inside a text.
        for line in self.path.read_bytes().split(b"\n"):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + b"\n")
            except (ValueError, KeyError):
                break
        with atomic_file(self.path) as temporary:
            temporary.write_bytes(b"".join(kept))


class StepLog:
    """Turns steps into records, and keeps their time.

    On a CPU a step is recorded when it is added. A GPU runs behind: a step is recorded when the next one has
    been launched, because reading its figures waits for it, and the device must have work meanwhile. A step
    lasts from when it was begun, or when the one before it was done, until its figures are there.

    `seconds` is the time of all recorded steps, over all starts of the run. `sinks` get each record.
    Raises FloatingPointError at a step that was not finite, unless such steps are skipped
    (`train.skip_outliers`).
    """

    def __init__(
        self,
        names: tuple[str, ...],
        flops: float,
        peak: float,
        sinks: Sequence[Sink],
        seconds: float = 0.0,
        may_skip: bool = False,
    ) -> None:
        self.names, self.sinks, self.seconds, self.may_skip = names, sinks, seconds, may_skip
        self._mfu_by_rate = flops / peak
        self._held: tuple[StepResult, dict[str, Any], int, float] | None = None
        self._ended = 0.0  # when the last recorded step was done
        self._unsound = 0  # steps in a row that were not finite

    def add(self, state: TrainState, result: StepResult, lr: float, tokens: int, started: float) -> None:
        """Take the figures of the step that led to `state`, begun at `started` on `time.perf_counter`."""
        self.flush()
        record = {"kind": "train", "step": state.step, "lr": lr, "tokens": state.tokens}
        self._held = result, record, tokens, started
        if result.grad_norm.is_cpu:
            self.flush()

    def flush(self) -> None:
        """Write the step that is held; waits for it."""
        if self._held is None:
            return
        (result, record, tokens, started), self._held = self._held, None
        figures = result.record(self.names)
        ended = time.perf_counter()
        seconds, self._ended = ended - max(started, self._ended), ended
        self.seconds += seconds
        rate = tokens / seconds
        record |= {
            "tokens_per_second": round(rate, 1),
            "mfu": round(rate * self._mfu_by_rate, 4),
            "seconds": round(self.seconds, 3),
            **figures,
        }
        for sink in self.sinks:
            sink(record)
        self._unsound = 0 if result.finite.item() else self._unsound + 1
        if self._unsound > (MOST_SKIPPED if self.may_skip else 0):
            raise FloatingPointError(
                f"step {record['step']}: loss {record['loss']:g}, gradient norm {record['grad_norm']:g}: "
                f"training has diverged; go on from the last checkpoint with a lower --optim.lr than "
                f"{record['lr']:g}, or with --train.skip-outliers 10"
            )


def machine_record(machine: Machine) -> dict[str, Any]:
    """The machine a run used, for its manifest."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
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
