"""Trackers and the profiler: TensorBoard, Weights & Biases, PyTorch's profiler.

The JSON lines in the run directory are always written. Trackers are optional, installed by `pip install
puna[observe]`, and receive the same records.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from puna.config import RunConfig, to_dict
from puna.extras import require
from puna.rundir import TRACE

Tracker = Callable[[dict[str, Any]], None]
PROFILE_AFTER = 10  # steps: kernels are compiled and caches warm by then


def _flat(record: dict[str, Any]) -> dict[str, float]:
    """A record as both trackers take it: `train/loss`, `train/loss_by_source/books`."""
    flat: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{key}/{name}": item for name, item in value.items()}
        elif isinstance(value, int | float):
            flat[key] = value
    return {f"{record['kind']}/{key}": value for key, value in flat.items() if key != "step"}


def _tensorboard(out: Path) -> tuple[Tracker, Callable[[], None]]:
    from torch.utils.tensorboard.writer import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard"))

    def track(record: dict[str, Any]) -> None:
        for name, value in _flat(record).items():
            writer.add_scalar(name, value, record["step"])

    return track, writer.close


def _wandb(out: Path, config: RunConfig) -> tuple[Tracker, Callable[[], None]]:
    import wandb

    run = wandb.init(project="puna", name=out.name, dir=str(out), config=to_dict(config), resume="allow")

    def track(record: dict[str, Any]) -> None:
        run.log(_flat(record), step=record["step"])

    return track, run.finish


@contextmanager
def trackers(out: Path, config: RunConfig) -> Iterator[list[Tracker]]:
    """The trackers that `watch.trackers` names, closed at the end.

    Raises:
        MissingExtra: when one is not installed.
    """
    opened: list[tuple[Tracker, Callable[[], None]]] = []
    try:
        for name in config.watch.trackers:
            require(name)
            opened.append(_tensorboard(out) if name == "tensorboard" else _wandb(out, config))
        yield [track for track, _ in opened]
    finally:
        for _, close in opened:
            close()


@contextmanager
def profiler(out: Path, steps: int) -> Iterator[Callable[[], None]]:
    """A function to call after each step; some `steps` of them are profiled into out/trace.json."""
    if not steps:
        yield lambda: None
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(wait=PROFILE_AFTER - 2, warmup=2, active=steps, repeat=1),
        on_trace_ready=lambda profile: profile.export_chrome_trace(str(out / TRACE)),
    ) as profile:
        yield profile.step
