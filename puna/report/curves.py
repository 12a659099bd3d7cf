"""Runs -> charts: losses, scores, optimiser, speed, memory, and differences between runs.

With one run its raw values are drawn behind their mean; with several, each run has a colour and its means.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from puna.report.charts import Chart, Level
from puna.report.run import Run
from puna.report.series import BINS, Series, Unit, series, smooth

Runs = dict[str, Run]
"""The runs of a page, by the names that tell them apart."""


def loss_chart(runs: Runs, unit: Unit = "tokens") -> Chart:
    """Training loss, each step and smoothed, and held-out loss: the paper's Figure 1."""
    drawn, note = _smoothed(runs, "loss", "training")
    points = [
        run.held_out(_named(runs, name, "held-out, sources weighted by the mixture"), style="points",
                     colour=_colour(runs, place, 1))
        for place, (name, run) in enumerate(runs.items())
    ]  # fmt: skip
    guesses = {run.config.model.vocab_size: run.uniform_loss for run in runs.values()}
    scale = "in nats per token"
    courses = [_course(one, f"{one.name} loss") for one in (*drawn, *points) if one.style != "raw"]
    return Chart(
        name="loss-chart",
        title="Training and held-out loss (Figure 1 of the paper)",
        description="; ".join(courses)
        + f", {scale}. "
        + " ".join(
            f"A uniform guess over {size:,} tokens scores {loss:.2f}." for size, loss in guesses.items()
        ),
        y_label="loss, nats per token",
        series=[*drawn, *points],
        levels=[
            Level(f"uniform guess, ln {size:,} = {loss:.2f}", loss)
            for size, loss in guesses.items()
            if len(guesses) == 1
        ],
        note=note,
        unit=unit,
        wide=True,
    )


def bits_chart(run: Run, sources: Sequence[str]) -> Chart:
    """Bits per byte of the held-out documents, by source."""
    drawn = [
        run.held_out(source, "bits_per_byte_by_source", source, style="points", colour=place)
        for place, source in enumerate(sources)
    ]
    return Chart(
        name="source-chart",
        title="Held-out bits per byte, by source",
        description="; ".join(_course(one, one.name) for one in drawn) + ", in bits per UTF-8 byte.",
        y_label="bits per byte",
        series=drawn,
    )


def course_charts(runs: Runs, unit: Unit = "tokens") -> list[Chart]:
    """Gradient norm, learning rate, speed, MFU, and memory where it is recorded."""
    norms, norm_note = _smoothed(runs, "grad_norm", "gradient norm")
    clips = sorted({run.config.optim.clip for run in runs.values()})
    finite = np.concatenate([run.column("grad_norm") for run in runs.values()])
    finite = finite[np.isfinite(finite)]
    if len(finite) and len(runs) == 1:
        norm_note += f" {_share(float((finite > clips[0]).mean()))} of the steps are above the threshold."
    speeds, speed_note = _smoothed(runs, "tokens_per_second", "tokens/s")
    mfu, _ = _smoothed(runs, "mfu", "MFU")
    mfu = [replace(one, y=100 * one.y) for one in mfu]
    only = next(iter(runs.values()))
    speed, use = only.median("tokens_per_second"), only.median("mfu")
    rates = _each(runs, "lr", "learning rate")
    is_alone = len(runs) == 1
    charts = [
        _small(
            "norm-chart",
            "Gradient norm before clipping",
            "gradient norm",
            norms,
            levels=[Level(f"clip at {clip:g}", clip) for clip in clips],
            note=norm_note,
            from_zero=True,
            # On a linear axis a few early spikes would flatten the rest.
            log_y=bool(len(finite)) and bool(finite.max() > 30 * max(float(finite.min()), 1e-12)),
        ),
        _small("lr-chart", "Learning rate", "learning rate", rates, from_zero=True),
        _small(
            "speed-chart",
            "Training speed",
            "tokens/s",
            speeds,
            levels=[Level(f"median {speed:,.0f} tokens/s", speed)] if is_alone and speed else [],
            note=speed_note,
            from_zero=True,
        ),
        _small(
            "mfu-chart",
            "Model FLOPs utilisation",
            "MFU, % of the matrix peak",
            mfu,
            levels=[Level(f"median {_share(use)}", 100 * use)] if is_alone and use else [],
            from_zero=True,
        ),
    ]
    memory = [replace(one, y=one.y / 1e9) for one in _each(runs, "memory", "peak memory")]
    if any(np.isfinite(one.y).any() for one in memory):
        charts.append(_small("memory-chart", "Memory", "peak so far, GB", memory, from_zero=True))
    return [replace(chart, unit=unit) for chart in charts]


def score_charts(runs: Runs, unit: Unit = "tokens") -> list[Chart]:
    """The scores of evaluations during training, with standard errors and chance: the paper's Figure 2."""
    tasks = dict.fromkeys(
        task for run in runs.values() for record in run.validations for task in record.get("evaluation") or {}
    )
    charts = []
    for number_, task in enumerate(tasks):
        drawn, chances = [], []
        for place, (name, run) in enumerate(runs.items()):
            found = [
                (record["step"], record["evaluation"][task])
                for record in run.validations
                if task in (record.get("evaluation") or {})
            ]
            rows = [(step, run.tokens_at(step), _number(score, "score")) for step, score in found]
            errors = np.array([_number(score, "error") for _, score in found])
            band = np.nan_to_num(errors) if len(found) else None
            drawn.append(
                series(_named(runs, name, task), rows, style="points", colour=_colour(runs, place, 0),
                       band=band, flops=run.flops)
            )  # fmt: skip
            chances += [_number(score, "chance") for _, score in found]
        known = sorted({chance for chance in chances if math.isfinite(chance)})
        charts.append(
            _small(
                f"score-chart-{number_}",
                task,
                "score",
                drawn,
                levels=[Level(f"chance {chance:.3g}", chance) for chance in known[:1]],
                note="Band: one standard error.",
                unit=unit,
            )
        )
    return charts


def difference_charts(runs: Runs, unit: Unit = "tokens") -> list[Chart]:
    """Loss of each further run minus that of the first at the same place."""
    charts = []
    (base_name, base), *others = runs.items()
    for kind, title in (("training", "Training loss, smoothed"), ("held-out", "Held-out loss")):
        drawn = []
        for place, (name, run) in enumerate(others, 1):
            a, b = (_loss_of(one, kind) for one in (base, run))
            known = [np.isfinite(one.y) for one in (a, b)]
            if not all(mask.sum() > 1 for mask in known):
                continue
            there, own = a.x(unit)[known[0]], b.x(unit)[known[1]]
            inside = (own >= there.min()) & (own <= there.max())
            gap = b.y[known[1]] - np.interp(own, there, a.y[known[0]])
            drawn.append(
                Series(f"{name} − {base_name}", b.steps[known[1]][inside], b.tokens[known[1]][inside],
                       gap[inside], "points" if kind == "held-out" else "line", place, flops=run.flops)
            )  # fmt: skip
        charts.append(
            _small(
                f"difference-chart-{kind}",
                f"{title}: difference from {base_name}",
                "difference, nats per token",
                drawn,
                levels=[Level(base_name, 0.0)],
                unit=unit,
            )
        )
    return charts


def _loss_of(run: Run, kind: str) -> Series:
    if kind == "held-out":
        return run.held_out("")
    loss = run.series("loss", "")
    return replace(loss, y=smooth(loss.y, _window(len(loss.y))))


def _window(n: int) -> int:
    return n // 40 | 1


def _smoothed(runs: Runs, key: str, name: str) -> tuple[list[Series], str]:
    """A figure of each step and its centred mean, with a note on how it was drawn."""
    drawn: list[Series] = []
    notes = []
    for place, (run_name, run) in enumerate(runs.items()):
        raw = run.series(key, f"{name}, each step", style="raw", colour=_colour(runs, place, 0))
        window, n = _window(len(raw.y)), len(raw.y)
        if n > 2 * BINS:
            notes.append(f"Of every {math.ceil(n / BINS)} steps the lowest and the highest are drawn.")
        if missing := int((~np.isfinite(raw.y)).sum()):
            notes.append(f"{missing} of {n:,} steps without a finite value are omitted.")
        if window < 3:
            drawn.append(replace(raw, name=_named(runs, run_name, name), style="line"))
            continue
        mean = replace(raw, y=smooth(raw.y, window), style="mean")
        mean = replace(mean, name=_named(runs, run_name, f"{name}, centred mean of {window} steps"))
        drawn += [replace(raw, name=_named(runs, run_name, f"{name}, each step")), mean]
    return drawn, " ".join(dict.fromkeys(notes)) or "Every step is drawn."


def _each(runs: Runs, key: str, name: str) -> list[Series]:
    return [
        run.series(key, _named(runs, run_name, name), colour=_colour(runs, place, 0))
        for place, (run_name, run) in enumerate(runs.items())
    ]


def _named(runs: Runs, name: str, what: str) -> str:
    return what if len(runs) == 1 else f"{name}: {what}"


def _colour(runs: Runs, place: int, alone: int) -> int:
    return alone if len(runs) == 1 else place


def _small(name: str, title: str, y_label: str, drawn: list[Series], **more: Any) -> Chart:
    description = "; ".join(_course(one, one.name) for one in drawn if one.style != "raw") + "."
    return Chart(name, title, description, y_label, drawn, **more)


def _course(one: Series, name: str) -> str:
    """A curve in words, for screen readers."""
    known = one.y[np.isfinite(one.y)]
    return f"{name} went from {known[0]:.4g} to {known[-1]:.4g}" if len(known) else f"{name}: no points yet"


def _number(score: Any, key: str) -> float:
    value = score.get(key) if isinstance(score, dict) else score if key == "score" else None
    return float(value) if isinstance(value, int | float) else math.nan


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
