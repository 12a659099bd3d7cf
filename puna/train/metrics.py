"""What a run tells about itself: JSON lines, and the machine's measured matrix peak for MFU.

RUN/metrics.jsonl
    {"kind": "train", "step": 1, "loss": 8.32, "loss_by_source": {"books": 8.31}, "lr": ..., ...}
    {"kind": "validation", "step": 200, "loss": 5.9, "loss_by_source": {...}, ...}
"""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from puna.files import atomic_file

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
        "matrix_gflops": round(peak / 1e9, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
