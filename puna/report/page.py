"""One HTML page about one run, or several overlaid.

In:  run directories, finished or not: config.json, metrics.jsonl, samples.jsonl, manifest.json, the manifests
     of the stages before them as far as they are on this machine, and results of `puna eval`.
Out: one file that loads nothing, readable with style sheets and scripts off.

    files ─> Run ─┬─> curves ─> charts (SVG and data) ──┬─> page.html.j2 (autoescape) ─> report.html
                  └─> tables, health, evaluations ──────┘
"""

import base64
import gc
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from puna.carbon import INTENSITY, PUE, TABLE_15, WATTS
from puna.files import human_bytes, human_seconds, write_file
from puna.paper import LLAMA_I, RESULTS, SIZES
from puna.report import curves, tables
from puna.report.charts import draw
from puna.report.evaluations import before_and_after, read_evaluations
from puna.report.evaluations import tables as result_tables
from puna.report.health import SHOWN, health, outliers, stalls, time_by_part
from puna.report.heat import heat_map
from puna.report.run import Run, number, read_run
from puna.report.series import Unit
from puna.rundir import REPORT

HERE = Path(__file__).parent
NO_BREAK = "\N{NO-BREAK SPACE}"
COMPARISON = "comparison.html"

_CELL = str.maketrans({"|": "\\|", "\n": " ", "\r": " ", "<": "&lt;", ">": "&gt;", "`": "'"})
# Samples may contain any character. Control characters (except tab and line ends) become their pictures, and
# what UTF-8 cannot encode becomes the replacement character: the page stays valid and nothing is invisible.
_VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD),
}


def build_report(
    runs: Path | Sequence[Path],
    out: Path | None = None,
    evaluations: Iterable[Path] = (),
    unit: Unit = "tokens",
    comparisons: Sequence[dict[str, Any]] = (),
    refresh: int = 0,
) -> Path:
    """Write the page atomically and return its path.

    Args:
        runs: a run directory, or several to overlay.
        out: the file; RUN/report.html by default, and comparison.html here for several runs.
        evaluations: directories of `puna eval`; by default those in the run directories.
        unit: the horizontal axis of the charts.
        comparisons: paired tests between the evaluations of two runs, as `puna eval compare` makes them.
        refresh: seconds after which a browser loads the page again; 0 for never.

    Raises:
        ValueError: a directory that is not a run, or a corrupt file.
        OSError: when the page cannot be written.
    """
    paths = [runs] if isinstance(runs, Path) else list(runs)
    path = out or (paths[0] / REPORT if len(paths) == 1 else Path(COMPARISON))
    with _without_collection():
        found = _by_name([read_run(path) for path in paths])
        page = _render(found, list(evaluations), unit, comparisons, refresh).translate(_VISIBLE)
    write_file(path, page)
    return path


@contextmanager
def _without_collection() -> Iterator[None]:
    """Spare the records of a long run, all of which stay, the repeated search for garbage among them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _by_name(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by the shortest names that tell them apart: the directory's, its path, or a number."""
    for key in (lambda run: run.name, lambda run: str(run.path)):
        names = [key(run) for run in runs]
        if len(set(names)) == len(runs):
            return dict(zip(names, runs, strict=True))
    return {f"{run.name} ({place})": run for place, run in enumerate(runs, 1)}


def _render(
    runs: dict[str, Run],
    evaluations: list[Path],
    unit: Unit,
    comparisons: Sequence[dict[str, Any]],
    refresh: int,
) -> str:
    script = (HERE / "charts.js").read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    scored = {name: read_evaluations(run.path, evaluations if len(runs) == 1 else ())
              for name, run in runs.items()}  # fmt: skip
    shared = {
        "runs": runs,
        "names": list(runs),
        "health": {name: health(run) for name, run in runs.items()},
        "loss_chart": draw(curves.loss_chart(runs, unit)),
        "course_charts": [draw(chart) for chart in curves.course_charts(runs, unit)],
        "score_charts": [draw(chart) for chart in curves.score_charts(runs, unit)],
        "sizes": tables.sizes(runs),
        "evaluated": [
            f"{name}: {one.path.name}" if len(runs) > 1 else one.path.name
            for name, found in scored.items()
            for one in found
        ],
        "results": result_tables([one for found in scored.values() for one in found]),
        "paper_sizes": SIZES,
        "llama_i": LLAMA_I,
        "finetuned": {name: rows for name, run in runs.items() if (rows := before_and_after(run))},
        "llama": RESULTS["mmlu"]["accuracy"][-1],
        "refresh": refresh,
        # Only this script may run: its hash is in the page's content security policy.
        "script": Markup(script),
        "policy": f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "style": Markup((HERE / "page.css").read_text(encoding="utf-8")),
    }
    if len(runs) > 1:
        return environment().get_template("comparison.html.j2").render(
            **shared,
            difference_charts=[draw(chart) for chart in curves.difference_charts(runs, unit)],
            differences=tables.differences(runs),
            comparisons=comparisons,
        )  # fmt: skip
    ((name, run),) = runs.items()
    return environment().get_template("page.html.j2").render(**shared, **_facts(name, run))


def _facts(name: str, run: Run) -> dict[str, Any]:
    """What the page says of a single run."""
    sources = tables.sources(run)
    odd, slow = outliers(run), stalls(run)
    shares = time_by_part(run)
    return {
        "run": run,
        "name": name,
        "tokens": run.train[-1]["tokens"] if run.train else None,
        "seconds": run.train[-1].get("seconds") if run.train else None,
        "speed": run.median("tokens_per_second"),
        "mfu": run.median("mfu"),
        "sources": sources,
        "bits_chart": draw(curves.bits_chart(run, sources)),
        "outliers": odd[-SHOWN:],
        "n_outliers": len(odd),
        "stalls": slow[:SHOWN],
        "n_stalls": len(slow),
        "time_by_part": shares,
        "heat_maps": [
            heat_map(run.layers, "norm", "Norm of the weights, by layer", "Colours are on a log scale."),
            heat_map(
                run.layers,
                "update",
                "Update relative to the weights, by layer",
                "The norm of a step's update over that of the weights; colours are on a log scale.",
            ),
        ],
        "mixture": tables.mixture(run),
        "documents": tables.documents(run.lineage),
        "samples": tables.samples(run),
        "settings": tables.settings(run.config),
        "machine": tables.machine(run),
        "table_15": TABLE_15,
        "paper_watts": WATTS,
        "paper_pue": PUE,
        "paper_intensity": INTENSITY,
        "commands": tables.commands(run),
    }


# ---- figures as text ------------------------------------------------------------------------------


def _or_not_recorded(form: Callable[[float], str]) -> Callable[[Any], str]:
    def text(value: Any) -> str:
        if value is None:
            return "—"
        # A figure and its unit are kept on one line.
        return form(number(value)).replace(" ", NO_BREAK) if math.isfinite(number(value)) else "not finite"

    return text


def _in_words(count: float) -> str:
    """A large count with three significant figures: `3.28 million`."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:#.3g}".rstrip(".") + f" {word}"
    return f"{count:,.0f}"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):,.1f}" if loss < 50 else "over 10²¹"


def cell(value: object) -> str:
    """Text that neither ends a cell of a Markdown table nor is HTML."""
    return str(value).translate(_CELL)


def _short(digest: str) -> str:
    return digest if len(digest) <= 16 else f"{digest[:12]}…"


@cache
def environment() -> jinja2.Environment:
    """What renders the templates: HTML, with the figures' filters."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "count": _or_not_recorded(lambda value: f"{value:,.0f}"),
        "words": _or_not_recorded(_in_words),
        "share": _or_not_recorded(_share),
        "points": _or_not_recorded(lambda value: f"{100 * value:+.2f}".replace("-", "−")),
        "loss": _or_not_recorded(lambda value: f"{value:.3f}"),
        "perplexity": _or_not_recorded(_perplexity),
        "decimal": _or_not_recorded(lambda value: f"{value:.2f}"),
        "figure": _or_not_recorded(lambda value: f"{value:.1f}" if value >= 1 else f"{value:g}"),
        "general": _or_not_recorded(lambda value: f"{value:.3g}"),
        "bytes": _or_not_recorded(human_bytes),
        "seconds": _or_not_recorded(human_seconds),
        "short": _short,
        "cell": cell,
        "json": partial(json.dumps, ensure_ascii=False),
    }
    return made
