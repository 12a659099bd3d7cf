"""Norms by layer over a run as a heat map: a row per layer, a column per moment.

    {"kind": "layers", "step", "tokens", "norm": {name: …}, "update": {name: …}} ─> layers ─> <figure>

Parameters of one layer are taken together: √Σ norm², and √Σ (update · norm)² / √Σ norm² for the updates.
"""

import math
import re
from collections.abc import Sequence
from functools import cache

from markupsafe import Markup

from puna.report.charts import tag
from puna.report.run import Record, number

COLUMNS = 120
# From dark to light, of equal steps in lightness, and legible to colour-blind readers.
SHADES = ("#2b1352", "#3f2a78", "#45468f", "#3f6297", "#377b98", "#2f9394", "#38ab89", "#5fc175", "#9ad35b",
          "#dfe14c")  # fmt: skip
_WIDTH, _LEFT, _TOP, _ROW = 480, 92, 8, 15


def heat_map(records: Sequence[Record], key: str, title: str, note: str) -> Markup:
    """The heat map of `norm` or `update`; nothing where no record has it."""
    records = [record for record in records if record.get("norm") and record.get(key)]
    records = records[:: math.ceil(len(records) / COLUMNS) or 1]
    columns = [_by_layer(record, key) for record in records]
    names = sorted({name for column in columns for name in column}, key=_order)
    values = [value for column in columns for value in column.values() if 0 < value < math.inf]
    if not values:
        return Markup("")
    low, high = math.log10(min(values)), math.log10(max(values))
    span = high - low or 1.0
    row = _ROW if len(names) <= 40 else max(4, 600 // len(names))
    width, height = (_WIDTH - _LEFT - 8) / len(columns), len(names) * row
    paths = [""] * len(SHADES)
    for at, column in enumerate(columns):
        for place, name in enumerate(names):
            value = column.get(name, math.nan)
            if 0 < value < math.inf:
                shade = min(int((math.log10(value) - low) / span * len(SHADES)), len(SHADES) - 1)
                x, y = _LEFT + at * width, _TOP + place * row
                paths[shade] += f"M{x:.1f} {y}h{width + 0.2:.1f}v{row}h-{width + 0.2:.1f}z"
    cells = [tag("path", d=path, fill=shade) for path, shade in zip(paths, SHADES, strict=True) if path]
    every = math.ceil(12 / row)
    label = Markup('<text x="{}" y="{:.1f}" text-anchor="{}" fill="#57606a">{}</text>')
    labels = [label.format(_LEFT - 6, _TOP + place * row + row / 2 + 4, "end", name)
              for place, name in enumerate(names) if place % every == 0]  # fmt: skip
    foot = _TOP + height + 16
    labels += [
        label.format(_LEFT, foot, "start", f"step {records[0]['step']:,}"),
        label.format(_WIDTH - 8, foot, "end", f"step {records[-1]['step']:,}"),
    ]
    key_width = (_WIDTH - _LEFT - 8 - 160) / len(SHADES)
    for place, colour in enumerate(SHADES):
        start, size = _LEFT + 80 + place * key_width, key_width + 0.2
        labels.append(tag("path", d=f"M{start:.1f} {foot + 12}h{size:.1f}v8h-{size:.1f}z", fill=colour))
    labels += [
        label.format(_LEFT + 74, foot + 20, "end", f"{10**low:.2g}"),
        label.format(_WIDTH - 82, foot + 20, "start", f"{10**high:.2g}"),
    ]
    svg = Markup(
        '<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" font-family="system-ui, sans-serif"'
        ' font-size="11" role="img" aria-label="{title}, from {low:.2g} to {high:.2g}">{body}</svg>'
    ).format(
        w=_WIDTH, h=foot + 26, title=title, low=10**low, high=10**high, body=Markup("").join(cells + labels)
    )
    return Markup(
        '<figure class="chart small heat"><figcaption><strong>{}</strong></figcaption>{}'
        '<p class="note">{}</p></figure>'
    ).format(title, svg, note)


def _by_layer(record: Record, key: str) -> dict[str, float]:
    """The figure of each layer, from those of its parameters."""
    squares: dict[str, float] = {}
    weights: dict[str, float] = {}
    figures = record[key]
    for name, value in record["norm"].items():
        layer, norm = _layer(name), number(value)
        weights[layer] = weights.get(layer, 0.0) + norm**2
        part = norm if key == "norm" else norm * number(figures.get(name, 0.0))
        squares[layer] = squares.get(layer, 0.0) + part**2
    if key == "norm":
        return {layer: math.sqrt(square) for layer, square in squares.items()}
    return {
        layer: math.sqrt(square / weights[layer]) for layer, square in squares.items() if weights[layer] > 0
    }


@cache
def _layer(name: str) -> str:
    """`blocks.3.wq` -> `layer 3`; a parameter outside the layers keeps its name."""
    found = re.match(r"blocks\.(\d+)\.", name)
    return f"layer {found[1]}" if found else name


def _order(name: str) -> tuple[int, int, str]:
    if name.startswith("layer "):
        return 1, int(name.split()[1]), name
    return (0 if "embed" in name else 2), 0, name
