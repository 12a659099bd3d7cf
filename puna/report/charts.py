"""Line charts as inline SVG: series in, one <figure> with its legend out.

    Chart(title, series, levels) ─> axes with round ticks ─> <figure> caption · svg · legend · data

The picture needs no script. charts.js, which the page inlines, draws it again from the data when a reader
zooms, smooths or changes an axis. Colours and sizes are presentation attributes, which work with style
sheets off; the page's style sheet overrides them by class (`c0` to `c6`) for the dark theme and for narrow
screens. Series never differ by colour alone: lines differ in dashes, points in shape.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup

from puna.report.axes import Axis, x_axis, y_axis
from puna.report.series import BINS, Array, Series, Unit, for_script, thin

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
# Width, height, left, right, top, bottom.
WIDE, SMALL = (760, 320, 62, 18, 40, 56), (480, 250, 62, 16, 38, 54)


@dataclass(frozen=True)
class Level:
    """A horizontal reference line."""

    name: str
    y: float


@dataclass(frozen=True)
class Chart:
    """One chart. `name` is its id in the page; `note` describes how the points were processed."""

    name: str
    title: str
    description: str
    y_label: str
    series: Sequence[Series]
    levels: Sequence[Level] = ()
    note: str = ""
    unit: Unit = "tokens"
    wide: bool = False
    from_zero: bool = False
    log_y: bool = False


def draw(chart: Chart) -> Markup:
    """The chart as a <figure>; a sentence if there is nothing to draw yet."""
    drawn = [replace(one, y=_drawable(one.y, chart)) for one in chart.series]
    known = [np.isfinite(one.y) for one in drawn]
    kind = "wide" if chart.wide else "small"
    caption = Markup("<figcaption><strong>{}</strong></figcaption>").format(chart.title)
    note = Markup('<p class="note">{}</p>').format(chart.note) if chart.note else Markup("")
    if not any(one.any() for one in known):
        return Markup('<figure class="chart {}">{}<p>No points yet.</p></figure>').format(kind, caption)

    width, height, left, right, top, bottom = size = WIDE if chart.wide else SMALL
    farthest = max(one.x(chart.unit)[is_known].max() for one, is_known in zip(drawn, known, strict=True)
                   if is_known.any())  # fmt: skip
    x = x_axis([float(farthest)], left, width - right)
    levels = [level for level in chart.levels if math.isfinite(level.y) and (level.y > 0 or not chart.log_y)]
    values = [level.y for level in levels]
    for one, is_known in zip(drawn, known, strict=True):
        # Behind a mean, a tenth of a per cent at either end may be cut: one spike would flatten the rest.
        ends = (0.001, 0.999) if one.style == "raw" and is_known.sum() > 50 and not chart.log_y else (0, 1)
        if is_known.any():
            values += [float(end) for end in np.quantile(one.y[is_known], ends)]
        if one.band is not None:
            values += [float(np.nanmin(one.y - one.band)), float(np.nanmax(one.y + one.band))]
    y = y_axis(values, height - bottom, top, chart.log_y, chart.from_zero)

    parts = [_axes(chart, x, y, height)]
    parts += [_draw_series(one, chart.unit, x, y) for one in drawn]
    # In a small chart a label on the line would cover the curve, so only the legend names it.
    parts += [_draw_level(level, x, y, chart.wide) for level in levels]
    svg = Markup(
        '<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" font-family="system-ui, sans-serif"'
        ' font-size="13" role="img" aria-labelledby="{name}-title {name}-desc">'
        '<title id="{name}-title">{title}</title><desc id="{name}-desc">{desc}</desc>'
        '<g class="plot">{body}</g></svg>'
    ).format(
        w=width,
        h=height,
        name=chart.name,
        title=chart.title,
        desc=chart.description,
        body=Markup("").join(parts),
    )
    legend = Markup("").join(
        [_legend_item(place, one) for place, one in enumerate(drawn)] + [_legend_level(one) for one in levels]
    )
    data = {
        "size": size,
        "unit": chart.unit,
        "name": chart.y_label,
        "log": chart.log_y,
        "zero": chart.from_zero,
        "x": [x.low, x.high],
        "y": [y.low, y.high],
        "levels": [[level.name, level.y] for level in levels],
        "series": [for_script(one, place - 1) for place, one in enumerate(chart.series)],
    }
    return Markup('<figure class="chart {}">{}{}<ul class="legend">{}</ul>{}{}</figure>').format(
        kind, caption, svg, legend, note, as_data(data)
    )


def as_data(value: Any) -> Markup:
    """A value as a block of JSON for the script; no text in it can end the block."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return Markup('<script type="application/json">{}</script>').format(Markup(text))


def tag(name: str, *inside: str, **attributes: object) -> Markup:
    """An element of SVG. Floats get one decimal; `_` in an attribute's name is `-`, at its end nothing."""
    text = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else value
        )
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>" if inside else "<{}{}/>").format(name, text, Markup("").join(inside))


def _drawable(y: Array, chart: Chart) -> Array:
    return np.where(np.isfinite(y) & ((y > 0) if chart.log_y else True), y, np.nan)


def _axes(chart: Chart, x: Axis, y: Axis, height: int) -> Markup:
    parts = []
    line = Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}" stroke="{}"/>')
    label = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}" fill="#57606a">{}</text>')
    y_labels, y_unit = y.labels()
    for tick, text in y_labels:
        at = y.place(tick)
        parts.append(line.format(x.start, at, x.end, at, "grid", "#e3e3e3"))
        parts.append(label.format(x.start - 8, at + 4, "end", "tick", text))
    x_labels, x_unit = x.labels()
    base = y.start
    for tick, text in x_labels:
        at = x.place(tick)
        parts.append(line.format(at, base, at, base + 5, "axis", "#57606a"))
        parts.append(label.format(at, base + 20, "middle", "tick", text))
    parts.append(line.format(x.start, base, x.end, base, "axis", "#57606a"))
    log = ", log scale" if chart.log_y else ""
    parts.append(label.format(2, 18, "start", "name", f"{chart.y_label}{y_unit}{log}"))
    parts.append(label.format(x.end, height - 8, "end", "name", f"{chart.unit}{x_unit}"))
    return Markup("").join(parts)


def _draw_level(level: Level, x: Axis, y: Axis, is_named: bool) -> Markup:
    at = float(y.place(level.y))
    line = _level_line(float(x.start), at, float(x.end))
    if not is_named:
        return line
    # Below the line if there is no space above it.
    text_y = at + 18 if at - y.end < 14 else at - 7
    place = {"x": float(x.end - 4), "y": text_y, "text_anchor": "end"}
    return line + tag("text", level.name, **place, class_="level-name", fill="#24292f")


def _level_line(start: float, at: float, end: float) -> Markup:
    return tag("line", x1=start, y1=at, x2=end, y2=at, class_="level", stroke="#57606a",
               stroke_width="1.5", stroke_dasharray="5 4")  # fmt: skip


def _path(x: Array, y: Array) -> str:
    """The points joined by lines, with gaps where y is not a number."""
    known = np.isfinite(y)
    follows = np.concatenate([[False], known[:-1]])
    rows = zip(x[known].tolist(), y[known].tolist(), follows[known].tolist(), strict=True)
    return "".join(f"{'L' if drawn else 'M'}{at:.1f} {height:.1f}" for at, height, drawn in rows)


def _draw_series(one: Series, unit: Unit, x: Axis, y: Axis) -> Markup:
    index = one.colour % len(COLOURS)
    places, heights = x.place(one.x(unit)), np.clip(y.place(one.y), y.end - 6, y.start + 6)
    kept = thin(one.y)
    parts = []
    if one.band is not None:
        low, high = (np.clip(y.place(one.y + sign * one.band), y.end, y.start) for sign in (-1, 1))
        known = np.isfinite(low + high)
        around = np.concatenate([places[known], places[known][::-1]])
        edge = np.concatenate([high[known], low[known][::-1]])
        parts.append(
            tag(
                "path",
                d=f"{_path(around, edge)}z",
                class_=f"c{index} band",
                fill=COLOURS[index],
                fill_opacity="0.18",
            )
        )
    parts.append(_stroke(_path(places[kept], heights[kept]), one))
    if one.style == "points":
        parts += [
            _mark(index, f"{places[at]:.1f} {heights[at]:.1f}",
                  tag("title", f"{one.name}: {one.y[at]:.4g} at {one.tokens[at]:,.0f} tokens"))
            for at in thin(one.y, BINS // 12)
            if math.isfinite(one.y[at])
        ]  # fmt: skip
    return Markup("").join(parts)


def _mark(index: int, place: str, *inside: Markup) -> Markup:
    shape = SHAPES[index % len(SHAPES)]
    return tag(
        "path",
        *inside,
        d=shape,
        transform=f"translate({place})",
        class_=f"c{index} mark",
        fill=COLOURS[index],
    )


def _stroke(path: str, one: Series) -> Markup:
    index, is_raw = one.colour % len(COLOURS), one.style == "raw"
    look: dict[str, object] = {"stroke": COLOURS[index], "stroke_width": 1 if is_raw else 2}
    look |= {"stroke_opacity": "0.35" if is_raw else 1, "stroke_linejoin": "round"}
    if one.style == "points" and DASHES[index]:
        look["stroke_dasharray"] = DASHES[index]
    return tag("path", d=path, class_=f"c{index} {one.style}", fill="none", **look)


_KEY = Markup('<svg width="32" height="14" viewBox="0 0 32 14" aria-hidden="true">{}</svg> ')


def _legend_item(place: int, one: Series) -> Markup:
    mark = _mark(one.colour % len(COLOURS), "16 7") if one.style == "points" else ""
    key = _KEY.format(_stroke("M1 7L31 7", one) + mark)
    return Markup('<li data-series="{}">{}{}</li>').format(place, key, one.name)


def _legend_level(level: Level) -> Markup:
    return Markup("<li>{}{}</li>").format(_KEY.format(_level_line(1, 7, 31)), level.name)
