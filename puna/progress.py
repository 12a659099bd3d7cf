"""Progress bars for terminals, and progress as JSON lines for programs.

On a terminal: one bar on stderr, with the rate and the time left. Always: at most one JSON line per second,
appended to a log file.
"""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from puna.files import human_bytes, named_when_full

Unit = Literal["bytes", "tokens", "steps", "shards", "seconds"]


def _amount(count: float, unit: Unit) -> str:
    return human_bytes(count) if unit == "bytes" else f"{count:,.0f} {unit}"


class _Rate(ProgressColumn):
    def __init__(self, unit: Unit) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{_amount(speed, self.unit)}/s", style="progress.data.speed")


class _Done(ProgressColumn):
    def __init__(self, unit: Unit) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        total = "" if task.total is None else f" of {_amount(task.total, self.unit)}"
        return Text(_amount(task.completed, self.unit) + total)


class Bar:
    """One line of progress over `total` units; a context manager.

    `done` units were completed before. `log` is a JSON-lines file to append to, with lines of
    {"label", "done", "total", "unit", "rate", "seconds"}.
    """

    def __init__(
        self, label: str, total: float, unit: Unit, log: Path | None = None, done: float = 0
    ) -> None:
        console = Console(stderr=True)
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self._first = done
        self._log = log
        self._started = self._logged = time.monotonic()
        self._note = ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _Done(unit),
            _Rate(unit),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=20,
        )
        self._task = self._bar.add_task(label, total=total or None, note="")
        self._bar.update(self._task, completed=done)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write_log()
        self._bar.stop()

    def advance(self, count: float, note: str = "") -> None:
        """Count `count` more units as done; `note` is a short text shown at the end of the line."""
        self.done += count
        self._bar.update(self._task, completed=self.done, note=note)
        if time.monotonic() - self._logged > 1:
            self._write_log()

    def _write_log(self) -> None:
        if self._log is None:
            return
        self._logged = now = time.monotonic()
        seconds = now - self._started
        line = {
            "label": self.label,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "rate": round((self.done - self._first) / max(seconds, 1e-9), 3),
            "seconds": round(seconds, 3),
        }
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with named_when_full(self._log), self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
