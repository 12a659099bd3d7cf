"""How a run is doing: its state, one line of health, and the steps that deserve a look.

In:  a Run.
Out: a Health; the outlier steps and the stalls, each with the step that it is about.
"""

import shlex
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from puna.files import human_seconds
from puna.report.run import Record, Run, number
from puna.report.series import Array

QUIET_SECONDS = 300.0  # without a record for so long, and for 20 steps, a run counts as stopped
WINDOW = 64  # steps whose median a step is compared with
OUTLIER = 5.0  # times that median
STALL = 4.0  # times the median duration of all steps
SHOWN = 12  # rows of a table


@dataclass(frozen=True)
class Health:
    """`state` is finished, running, stopped, diverged or not begun; `line` says the rest in a sentence."""

    state: str
    line: str


def health(run: Run, now: float | None = None) -> Health:
    """The state of a run, from its records and the time of the last one."""
    state = _state(run, time.time() if now is None else now)
    steps, losses = run.config.schedule.steps, run.column("loss")
    facts = [f"step {run.step:,} of {steps:,}"]
    if len(losses):
        facts.append(f"last loss {losses[-1]:.3f}")
        facts += _trend(losses)
    held_out = run.validation.get("loss")
    if held_out is not None:
        facts.append(f"held-out loss {number(held_out):.3f}")
    missing = int((~np.isfinite(losses)).sum())
    skipped = sum(bool(record.get("skipped")) for record in run.train)
    facts.append(f"{missing:,} steps not finite" if missing else "every step finite")
    facts.append(f"{skipped:,} skipped" if skipped else "none skipped")
    if state == "running" and run.step < steps:
        left = (steps - run.step) * float(np.median(run.step_seconds[-200:]))
        facts.append(f"about {human_seconds(left)} left")
    return Health(state, ", ".join(facts) + ".")


def _state(run: Run, now: float) -> str:
    if run.manifest:
        return "finished"
    if not run.train:
        return "not begun"
    last = run.train[-1]
    # NaN steps may be skipped; a run that ends with one that was not skipped has diverged.
    if not np.isfinite(number(last.get("loss"))) and not last.get("skipped"):
        return "diverged"
    patience = max(QUIET_SECONDS, 20 * float(np.median(run.step_seconds)))
    return "running" if now - run.written < patience else "stopped"


def _trend(losses: Any) -> list[str]:
    """How the loss moved over the last tenth of the steps, if that is more than noise."""
    last = losses[-max(20, len(losses) // 10) :]
    last = last[np.isfinite(last)]
    if len(last) < 20:
        return []
    (slope, _), covariance = np.polyfit(np.arange(len(last)), last, 1, cov=True)
    if abs(slope) <= 2 * np.sqrt(covariance[0, 0]):
        return [f"level over the last {len(last):,} steps"]
    way = "rising" if slope > 0 else "falling"
    return [f"{way} by {abs(slope) * len(last):.3f} over the last {len(last):,} steps"]


def outliers(run: Run) -> list[Record]:
    """Steps that were skipped, are not finite, or have a gradient norm far above the median before them."""
    norms, losses = run.column("grad_norm"), run.column("loss")
    usual = _median_before(norms)
    is_finite = np.isfinite(norms) & np.isfinite(losses)
    skipped = np.array([bool(record.get("skipped")) for record in run.train], bool)
    found = []
    for at in np.flatnonzero(skipped | ~is_finite | (norms > OUTLIER * usual)).tolist():
        record, norm = run.train[at], norms[at]
        reasons = ["skipped"] if record.get("skipped") else []
        if not is_finite[at]:
            reasons.append("not finite")
        elif norm > OUTLIER * usual[at]:
            reasons.append(f"gradient norm {norm / usual[at]:.1f} times the median")
        command = _inspect(run, record["step"])
        found.append({**record, "why": ", ".join(reasons), "command": command})
    return found


def _median_before(norms: Array) -> Array:
    """The median of the WINDOW values before each; infinite where fewer than 16 are known."""
    padded = np.concatenate([np.full(WINDOW, np.nan), norms[:-1]])
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[: len(norms)]
    usual = np.full(len(norms), np.inf)
    lowest = np.fmin.reduce(windows, axis=1) if len(norms) else usual
    # A median is computed only where the norm is far above the lowest before it: elsewhere it is no outlier.
    for at in np.flatnonzero(norms > OUTLIER * lowest).tolist():
        known = windows[at][np.isfinite(windows[at])]
        if len(known) >= 16:
            usual[at] = np.median(known)
    return usual


def _inspect(run: Run, step: int) -> str:
    # The records count steps from 1, the mixture from 0.
    return f"puna tokens inspect --model {shlex.quote(str(run.path))} --step {step - 1}"


def stalls(run: Run) -> list[Record]:
    """Steps that lasted far longer than the median, the longest first."""
    seconds = run.step_seconds
    known = seconds[np.isfinite(seconds)]
    if len(known) < 10:
        return []
    usual = float(np.median(known))
    places = [at for at in np.argsort(-np.nan_to_num(seconds)).tolist() if seconds[at] > STALL * usual]
    return [
        {"step": run.train[at]["step"], "seconds": float(seconds[at]), "times": float(seconds[at]) / usual}
        for at in places
    ]


def time_by_part(run: Run) -> list[tuple[str, float]]:
    """Seconds by part of the run, the largest first; empty where the records do not say."""
    total: dict[str, float] = {}
    for record in run.train:
        for part, seconds in record.get("seconds_by_part", {}).items():
            total[part] = total.get(part, 0.0) + number(seconds)
    return sorted(total.items(), key=lambda item: -item[1])
