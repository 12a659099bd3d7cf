"""What a run tells about itself: JSON lines, and the machine's measured matrix peak for MFU.

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

from puna.files import atomic_file
from puna.train.allocator import is_kept
from puna.train.checkpoint import TrainState
from puna.train.step import StepResult

Sink = Callable[[dict[str, Any]], None]
MOST_SKIPPED = 16  # steps in a row that are not finite: no outliers any more
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


class JsonLines:
    """Append records to a JSON-lines file, each on disk once written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def rewind(self, step: int) -> None:
        """Forget what lies after `step`, and a torn last line: the run goes on from there."""
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
    """Turns steps into records, one step behind: reading a step's figures waits for it, and by the time the
    next one has been launched a GPU has something to do meanwhile.

    `sinks` get each record. Raises FloatingPointError at a step that was not finite, unless such steps are
    skipped (`train.skip_outliers`).
    """

    def __init__(self, names: tuple[str, ...], flops: float, peak: float, sinks: Sequence[Sink]) -> None:
        self.names, self.sinks = names, sinks
        self._mfu_by_rate = flops / peak
        self._held: tuple[StepResult, dict[str, Any], bool] | None = None
        self._unsound = 0  # steps in a row that were not finite

    def add(self, state: TrainState, result: StepResult, lr: float, rate: float, may_skip: bool) -> None:
        """Take a step's figures, and write those of the step before."""
        self.flush()
        record = {
            "lr": lr,
            "tokens": state.tokens,
            "tokens_per_second": round(rate, 1),
            "mfu": round(rate * self._mfu_by_rate, 4),
            "seconds": round(state.seconds, 3),
        }
        self._held = result, {"kind": "train", "step": state.step, **record}, may_skip

    def flush(self) -> None:
        """Write the step that is held."""
        if self._held is None:
            return
        (result, record, may_skip), self._held = self._held, None
        record |= result.record(self.names)
        for sink in self.sinks:
            sink(record)
        self._unsound = 0 if result.finite.item() else self._unsound + 1
        if self._unsound > (MOST_SKIPPED if may_skip else 0):
            raise FloatingPointError(
                f"step {record['step']}: loss {record['loss']:g}, gradient norm {record['grad_norm']:g}: "
                f"training has diverged; go on from the last checkpoint with a lower --optim.lr than "
                f"{record['lr']:g}, or with --train.skip-outliers 10"
            )


def matrix_peak(dtype: torch.dtype, size: int = 2048, seconds: float = 0.5) -> float:
    """The fastest this machine multiplies square matrices just now, in FLOP/s: the ceiling of MFU."""
    a = torch.randn(size, size).to(dtype)
    b = torch.randn(size, size).to(dtype)
    a @ b
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(peak: float) -> dict[str, Any]:
    """The machine a run used, for its manifest."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "allocator": "keep" if is_kept() else "system",
        "matrix_gflops": round(peak / 1e9, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
