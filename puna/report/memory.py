"""One page with a picture of a GPU's memory: what a planned run holds, beside what the GPU has.

In:  bytes by name.
Out: one HTML file, readable without style sheets and scripts.
"""

from collections.abc import Mapping
from html import escape
from pathlib import Path

from puna.files import human_bytes, write_file
from puna.report.charts import COLOURS

_WIDTH, _ROW, _LABEL = 900, 26, 250


def memory_page(path: Path, title: str, held: Mapping[str, float], memory: float, usable: float) -> None:
    """Write the page. `memory` is the GPU's, in bytes; `usable` the share of it that tensors may fill.

    Raises:
        OSError: the file cannot be written.
    """
    total = sum(held.values())
    scale = (_WIDTH - _LABEL - 90) / max(memory, total)
    rows, start = [], 0.0
    for place, (name, size) in enumerate(held.items()):
        y = place * _ROW
        rows.append(
            f'<text x="0" y="{y + 17}">{escape(name)}</text>'
            f'<rect x="{_LABEL + start * scale:.1f}" y="{y + 4}" width="{max(size * scale, 1):.1f}" '
            f'height="{_ROW - 8}" fill="{COLOURS[place % len(COLOURS)]}"/>'
            f'<text x="{_LABEL + (start + size) * scale + 6:.1f}" y="{y + 17}">{human_bytes(size)}</text>'
        )
        start += size
    height = len(held) * _ROW
    for share, name in ((usable, f"{usable:.0%}"), (1.0, human_bytes(memory))):
        x = _LABEL + memory * share * scale
        rows.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}" stroke="currentColor"/>'
            f'<text x="{x:.1f}" y="{height + 18}" text-anchor="middle">{name}</text>'
        )
    verdict = "fits" if total <= usable * memory else "does not fit"
    summary = f"{human_bytes(total)} of {human_bytes(memory)} per GPU: {verdict}."
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}: memory per GPU</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: {_WIDTH}px; margin: 2rem auto; padding: 0 1rem }}
svg {{ width: 100%; height: auto }}
text {{ font-size: 13px; fill: currentColor }}
</style></head><body>
<h1>{escape(title)}</h1>
<p>{summary} Tensors may fill {usable:.0%}; the rest is for the libraries and for fragmentation.</p>
<svg viewBox="0 0 {_WIDTH} {height + 24}" role="img" aria-label="{escape(summary)}">{"".join(rows)}</svg>
</body></html>
"""
    write_file(path, page)
