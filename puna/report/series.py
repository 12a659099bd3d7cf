"""What a chart draws: series of points over tokens, steps or FLOPs, smoothed and thinned.

one value per step ─┬─ smooth ─> centred mean                       thin ─> at most two points per bin,
                    └───────────────────────────────────────────┘          no extreme lost
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Unit = Literal["tokens", "steps", "FLOPs"]
BINS = 600  # about the width in pixels; more than two points per bin are indistinguishable
KEPT = 4000  # points of a series that the script gets, to zoom into


@dataclass(frozen=True)
class Series:
    """Points in the order of training.

    `raw` is for the values behind their `mean`, which follows them; `points` marks each point.
    """

    name: str
    steps: Array
    tokens: Array
    y: Array
    style: Literal["line", "raw", "mean", "points"] = "line"
    colour: int = 0
    band: Array | None = None
    """Half the height of a band around y: a standard error."""
    flops: float = 0.0
    """Training FLOPs per token."""

    def x(self, unit: Unit) -> Array:
        """The places of the points along the horizontal axis."""
        return {"tokens": self.tokens, "steps": self.steps, "FLOPs": self.tokens * self.flops}[unit]


def series(name: str, points: Sequence[tuple[float, float, float]], **more: Any) -> Series:
    """A series of (step, tokens, value)."""
    steps, tokens, y = np.asarray(points, np.float64).reshape(-1, 3).T
    return Series(name, steps, tokens, y, **more)


def smooth(values: Sequence[float] | Array, window: int) -> Array:
    """Centred mean over `window` values (odd); the window shrinks towards the ends to stay centred.

    Values that are not finite are excluded from the means and returned unchanged.
    """
    y = np.asarray(values, np.float64)
    known = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    at = np.arange(len(y))
    half = np.minimum(window // 2, np.minimum(at, len(y) - 1 - at))
    first, end = at - half, at + half + 1
    return np.where(known, (sums[end] - sums[first]) / np.maximum(counts[end] - counts[first], 1), y)


def thin(values: Sequence[float] | Array, bins: int = BINS) -> NDArray[np.int64]:
    """The indices of the lowest and the highest value of each of `bins` runs, and of a gap if it has one."""
    y = np.asarray(values, np.float64)
    if len(y) <= 2 * bins:
        return np.arange(len(y))
    table = _binned(y, bins)
    known = np.isfinite(table)
    rows = np.flatnonzero(known.any(1)) * table.shape[1]
    lowest = np.where(known, table, np.inf).argmin(1)[known.any(1)] + rows
    highest = np.where(known, table, -np.inf).argmax(1)[known.any(1)] + rows
    gaps = np.flatnonzero((~known).any(1)) * table.shape[1] + (~known).argmax(1)[(~known).any(1)]
    kept = np.unique(np.concatenate([lowest, highest, gaps]))
    return kept[kept < len(y)]


def _binned(values: Array, bins: int) -> Array:
    """The values as a table of a row per bin, filled up with NaN."""
    size = math.ceil(len(values) / bins)
    rows = math.ceil(len(values) / size)
    return np.concatenate([values, np.full(rows * size - len(values), np.nan)]).reshape(rows, size)


def for_script(one: Series, of: int) -> dict[str, Any]:
    """A series as the page's script reads it; `of` is the place of the series that a mean is the mean of."""
    record: dict[str, Any] = {"name": one.name, "style": one.style, "colour": one.colour, "flops": one.flops}
    if one.style == "mean":
        return record | {"of": of}
    steps, tokens, y = one.steps, one.tokens, one.y
    if len(y) > KEPT and one.style == "raw":
        table = _binned(np.where(np.isfinite(y), y, np.nan), KEPT)
        known = np.isfinite(table)
        middle = np.minimum(np.arange(len(table)) * table.shape[1] + table.shape[1] // 2, len(y) - 1)
        steps, tokens = steps[middle], tokens[middle]
        y = np.where(known, table, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)
        record["low"] = _numbers(np.where(known.any(1), np.where(known, table, np.inf).min(1), np.nan))
        record["high"] = _numbers(np.where(known.any(1), np.where(known, table, -np.inf).max(1), np.nan))
    elif len(y) > KEPT:
        kept = thin(y, KEPT // 2)
        steps, tokens, y = steps[kept], tokens[kept], y[kept]
    if one.band is not None:
        record["band"] = _numbers(one.band)
    whole = {"steps": steps.astype(np.int64).tolist(), "tokens": tokens.astype(np.int64).tolist()}
    return record | whole | {"y": _numbers(y)}


def _numbers(values: Array) -> list[float | None]:
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]
