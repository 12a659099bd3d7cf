"""Line charts over tokens as inline SVG: points in, one <figure> with its legend out.

    Chart(title, series, levels) ─> axes with round ticks ─> <figure> caption · <svg> · legend </figure>

Colours and sizes are presentation attributes, which work with style sheets off; the page's style sheet
overrides them by class (`c0` to `c6`) for the dark theme and for narrow screens. Series never differ by
colour alone: lines differ in dashes, points in shape.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from markupsafe import Markup

Point = tuple[float, float]

# Contrast of at least 4.5:1 on white; the page's style sheet has the colours of the dark theme.
COLOURS = ("#0b62a4", "#b8400a", "#0f766e", "#9d2a8c", "#7a5c00", "#5b3fd6", "#4b5563")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2", "12 4")
# Marks around the origin: circle, square, diamond, triangle.
SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "M-3.5 -3.5h7v7h-7z",
    "M0 -5l5 5l-5 5l-5 -5z",
    "M0 -5l4.8 8.5h-9.6z",
)
BINS = 600  # about the width in pixels; more than two points per bin are indistinguishable


@dataclass(frozen=True)
class Series:
    """Points in order of x. `faint` is for raw values behind their mean, `points` marks each point."""

    name: str
    points: Sequence[Point]
    style: Literal["line", "faint", "points"] = "line"
    colour: int = 0


@dataclass(frozen=True)
class Level:
    """A horizontal reference line."""

    name: str
    y: float


@dataclass(frozen=True)
class Chart:
    """One chart over tokens. `name` is its id in the page; `note` describes how the points were processed."""

    name: str
    title: str
    description: str
    y_label: str
    series: Sequence[Series]
    levels: Sequence[Level] = ()
    note: str = ""
    wide: bool = False
    from_zero: bool = False
    log_y: bool = False


# ---- processing of points before they are drawn --------------------------------------------------


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over `window` values (odd); the window shrinks towards the ends to stay centred.

    Values that are not finite are excluded from the means and returned unchanged.
    """
    finite = [value if math.isfinite(value) else 0.0 for value in values]
    sums = [0.0, *accumulate(finite)]
    counts = [0, *accumulate(int(math.isfinite(value)) for value in values)]
    means = []
    for at, value in enumerate(values):
        half = min(window // 2, at, len(values) - 1 - at)
        first, end = at - half, at + half + 1
        is_known = math.isfinite(value)
        means.append((sums[end] - sums[first]) / (counts[end] - counts[first]) if is_known else value)
    return means


def thin(points: Sequence[Point], bins: int = BINS) -> list[Point]:
    """Reduce to `bins` runs of points: the lowest and highest of each, and a gap if it has one."""
    if len(points) <= 2 * bins:
        return list(points)
    size = math.ceil(len(points) / bins)
    kept: list[Point] = []
    for first in range(0, len(points), size):
        run = points[first : first + size]
        finite = [point for point in run if math.isfinite(point[1])]
        extremes = {min(finite, key=_y), max(finite, key=_y)} if finite else set()
        gap = [point for point in run if not math.isfinite(point[1])][:1]
        kept += sorted([*extremes, *gap])
    return kept


def _y(point: Point) -> float:
    return point[1]


# ---- axes -----------------------------------------------------------------------------------------


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
class _Axis:
    low: float
    high: float
    ticks: Sequence[float]
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """The position of `value`, in units of the viewBox."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def labels(self) -> tuple[list[tuple[float, str]], str]:
        """Each tick with its label, and the unit to add to the axis label."""
        divisor, unit = unit_of(max(abs(tick) for tick in self.ticks))
        if self.is_log:
            return [(tick, f"{tick / divisor:,g}") for tick in self.ticks], unit
        step = (self.ticks[1] - self.ticks[0]) / divisor if len(self.ticks) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(tick, f"{tick / divisor:,.{decimals}f}") for tick in self.ticks], unit


def _x_axis(values: Sequence[float], start: float, end: float) -> _Axis:
    low, high = 0.0, max(values) or 1.0
    inside = [tick for tick in round_ticks(low, high, round((end - start) / 90)) if tick <= high * 1.0001]
    return _Axis(low, high, inside, start, end)


def _y_axis(values: Sequence[float], start: float, end: float, chart: Chart) -> _Axis:
    low, high = min(values), max(values)
    if chart.log_y:
        ticks = log_ticks(low, high if high > low else low * 10)
        # Keep the used part of the decade: one tick below and one above the values.
        below = max((tick for tick in ticks if tick <= low * 1.0001), default=ticks[0])
        above = min((tick for tick in ticks if tick >= high * 0.9999), default=ticks[-1])
        ticks = [tick for tick in ticks if below <= tick <= above]
        return _Axis(ticks[0], ticks[-1], ticks, start, end, is_log=True)
    low = min(low, 0.0) if chart.from_zero else low
    if high - low <= abs(high) * 1e-9:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    ticks = round_ticks(low, high)
    return _Axis(ticks[0], ticks[-1], ticks, start, end)


# ---- drawing --------------------------------------------------------------------------------------


def draw(chart: Chart) -> Markup:
    """The chart as a <figure>; a sentence if there is nothing to draw yet."""
    series = [
        Series(
            one.name,
            [(x, y if _drawable(y, chart) else math.nan) for x, y in one.points],
            one.style,
            one.colour,
        )
        for one in chart.series
    ]
    finite = [(x, y) for one in series for x, y in one.points if math.isfinite(y)]
    kind = "wide" if chart.wide else "small"
    caption = Markup("<figcaption><strong>{}</strong></figcaption>").format(chart.title)
    note = Markup('<p class="note">{}</p>').format(chart.note) if chart.note else Markup("")
    if not finite:
        return Markup('<figure class="chart {}">{}<p>No points yet.</p></figure>').format(kind, caption)

    width, height, left, right, top, bottom = (
        (760, 370, 62, 18, 46, 62) if chart.wide else (480, 270, 62, 16, 40, 58)
    )
    x_axis = _x_axis([x for x, _ in finite], left, width - right)
    levels = [level for level in chart.levels if _drawable(level.y, chart)]
    y_values = [y for _, y in finite] + [level.y for level in levels]
    y_axis = _y_axis(y_values, height - bottom, top, chart)

    parts = [_axes(chart, x_axis, y_axis, width, height)]
    parts += [_draw_series(one, x_axis, y_axis) for one in series]
    # In a small chart a label on the line would cover the curve, so only the legend names it.
    parts += [_draw_level(level, x_axis, y_axis, chart.wide) for level in levels]
    svg = Markup(
        '<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" font-family="system-ui, sans-serif"'
        ' font-size="13" role="img" aria-labelledby="{name}-title {name}-desc">'
        '<title id="{name}-title">{title}</title><desc id="{name}-desc">{desc}</desc>{body}</svg>'
    ).format(
        w=width,
        h=height,
        name=chart.name,
        title=chart.title,
        desc=chart.description,
        body=Markup("").join(parts),
    )
    legend = Markup("").join(
        [_legend_item(one) for one in series if one.points] + [_legend_level(level) for level in levels]
    )
    return Markup('<figure class="chart {}">{}{}<ul class="legend">{}</ul>{}</figure>').format(
        kind, caption, svg, legend, note
    )


def _drawable(y: float, chart: Chart) -> bool:
    return math.isfinite(y) and (y > 0 or not chart.log_y)


def _axes(chart: Chart, x_axis: _Axis, y_axis: _Axis, width: int, height: int) -> Markup:
    parts = []
    line = Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}" stroke="{}"/>')
    label = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}" fill="#57606a">{}</text>')
    y_labels, y_unit = y_axis.labels()
    for tick, text in y_labels:
        y = y_axis.place(tick)
        parts.append(line.format(x_axis.start, y, x_axis.end, y, "grid", "#e3e3e3"))
        parts.append(label.format(x_axis.start - 8, y + 4, "end", "tick", text))
    x_labels, x_unit = x_axis.labels()
    base = y_axis.start
    for tick, text in x_labels:
        x = x_axis.place(tick)
        parts.append(line.format(x, base, x, base + 5, "axis", "#57606a"))
        parts.append(label.format(x, base + 22, "middle", "tick", text))
    parts.append(line.format(x_axis.start, base, x_axis.end, base, "axis", "#57606a"))
    log = ", log scale" if chart.log_y else ""
    parts.append(label.format(2, 20, "start", "name", f"{chart.y_label}{y_unit}{log}"))
    parts.append(label.format(x_axis.end, height - 9, "end", "name", f"tokens{x_unit}"))
    return Markup("").join(parts)


def _draw_level(level: Level, x_axis: _Axis, y_axis: _Axis, is_named: bool) -> Markup:
    y = y_axis.place(level.y)
    line = Markup(
        '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="level" stroke="#57606a"'
        ' stroke-width="1.5" stroke-dasharray="5 4"/>'
    ).format(x_axis.start, y, x_axis.end, y)
    if not is_named:
        return line
    # Below the line if there is no space above it.
    text_y = y + 18 if y - y_axis.end < 14 else y - 7
    return line + Markup(
        '<text x="{:.1f}" y="{:.1f}" text-anchor="end" class="level-name" fill="#24292f">{}</text>'
    ).format(x_axis.end - 4, text_y, level.name)


def _draw_series(series: Series, x_axis: _Axis, y_axis: _Axis) -> Markup:
    index = series.colour % len(COLOURS)
    steps, pen_is_down = [], False
    for x, y in thin(series.points):
        if not math.isfinite(y):
            pen_is_down = False
            continue
        steps.append(f"{'L' if pen_is_down else 'M'}{x_axis.place(x):.1f} {y_axis.place(y):.1f}")
        pen_is_down = True
    line = Markup(
        '<path d="{}" class="c{} {}" fill="none" stroke="{}" stroke-width="{}"'
        ' stroke-opacity="{}" stroke-linejoin="round"{}/>'
    ).format(
        "".join(steps),
        index,
        series.style,
        COLOURS[index],
        1 if series.style == "faint" else 2,
        0.35 if series.style == "faint" else 1,
        _dashes(series),
    )
    if series.style != "points":
        return line
    marks = [
        Markup(
            '<path d="{}" transform="translate({:.1f} {:.1f})" class="c{} mark" fill="{}">'
            "<title>{}: {:.3f} at {:,.0f} tokens</title></path>"
        ).format(
            SHAPES[index % len(SHAPES)],
            x_axis.place(x),
            y_axis.place(y),
            index,
            COLOURS[index],
            series.name,
            y,
            x,
        )
        for x, y in thin(series.points, BINS // 6)
        if math.isfinite(y)
    ]
    return line + Markup("").join(marks)


def _dashes(series: Series) -> Markup:
    dashes = DASHES[series.colour % len(DASHES)] if series.style == "points" else ""
    return Markup(' stroke-dasharray="{}"').format(dashes) if dashes else Markup("")


def _legend_item(series: Series) -> Markup:
    index = series.colour % len(COLOURS)
    mark = Markup("")
    if series.style == "points":
        mark = Markup('<path d="{}" transform="translate(16 7)" class="c{} mark" fill="{}"/>').format(
            SHAPES[index % len(SHAPES)], index, COLOURS[index]
        )
    return Markup(
        '<li><svg width="32" height="14" viewBox="0 0 32 14" aria-hidden="true">'
        '<path d="M1 7L31 7" class="c{} {}" fill="none" stroke="{}" stroke-width="{}"'
        ' stroke-opacity="{}"{}/>{}</svg> {}</li>'
    ).format(
        index,
        series.style,
        COLOURS[index],
        1 if series.style == "faint" else 2,
        0.5 if series.style == "faint" else 1,
        _dashes(series),
        mark,
        series.name,
    )


def _legend_level(level: Level) -> Markup:
    return Markup(
        '<li><svg width="32" height="14" viewBox="0 0 32 14" aria-hidden="true">'
        '<line x1="1" y1="7" x2="31" y2="7" class="level" stroke="#57606a" stroke-width="1.5"'
        ' stroke-dasharray="5 4"/></svg> {}</li>'
    ).format(level.name)
