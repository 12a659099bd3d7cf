"""Axes of charts: round ticks, logarithmic ticks, short labels, places in the picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, from at most `low` to at least `high`."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [index * step for index in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around low..high, with multiples of 2 and 5 if there are few powers."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1,) if last - first > 3 else (1, 2, 5)
    return [factor * 10.0**power for power in range(first, last) for factor in factors] + [10.0**last]


def unit_of(largest: float) -> tuple[float, str]:
    """The divisor that keeps tick labels short, and its text for the axis label."""
    for divisor, words in ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if largest >= (10 * divisor if divisor == 1e3 else divisor):
            return divisor, f", {words}"
    if 0 < largest < 0.01:
        power = 3 * math.floor(math.log10(largest) / 3 + 1e-9)
        superscript = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return 10.0**power, f", in units of 10{superscript}"
    return 1.0, ""


@dataclass(frozen=True)
class Axis:
    """A scale from values to places in the picture, with its ticks."""

    low: float
    high: float
    ticks: Sequence[float]
    start: float
    end: float
    is_log: bool = False

    def place(self, value: Any) -> Any:
        """The position of a value, or of an array of them, in units of the viewBox."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), np.log10(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def labels(self) -> tuple[list[tuple[float, str]], str]:
        """Each tick with its label, and the unit to add to the axis label."""
        divisor, unit = unit_of(max(abs(tick) for tick in self.ticks))
        if self.is_log:
            return [(tick, f"{tick / divisor:,g}") for tick in self.ticks], unit
        step = (self.ticks[1] - self.ticks[0]) / divisor if len(self.ticks) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(tick, f"{tick / divisor:,.{decimals}f}") for tick in self.ticks], unit


def x_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """From 0 to the largest value."""
    low, high = 0.0, max(values) or 1.0
    inside = [tick for tick in round_ticks(low, high, round((end - start) / 90)) if tick <= high * 1.0001]
    return Axis(low, high, inside, start, end)


def y_axis(
    values: Sequence[float], start: float, end: float, is_log: bool = False, from_zero: bool = False
) -> Axis:
    """Around all values, from tick to tick."""
    low, high = min(values), max(values)
    if is_log:
        ticks = log_ticks(low, high if high > low else low * 10)
        # Keep the used part of the decade: one tick below and one above the values.
        below = max((tick for tick in ticks if tick <= low * 1.0001), default=ticks[0])
        above = min((tick for tick in ticks if tick >= high * 0.9999), default=ticks[-1])
        ticks = [tick for tick in ticks if below <= tick <= above]
        return Axis(ticks[0], ticks[-1], ticks, start, end, True)
    low = min(low, 0.0) if from_zero else low
    if high - low <= abs(high) * 1e-9:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    ticks = round_ticks(low, high)
    return Axis(ticks[0], ticks[-1], ticks, start, end)
