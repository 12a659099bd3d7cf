"""One HTML page per run: configuration, data, training curves, samples, lineage.

In:  a run directory, finished or not: config.json, metrics.jsonl, samples.jsonl, manifest.json, and
     the manifests of the stages before it, as far as they are on this machine.
Out: RUN/report.html, one file: no script, no network, readable with style sheets off.

    files ─> Run ─┬─> charts (SVG) ──┬─> page.html.j2 (autoescape) ─> report.html
                  └─> tables, facts ─┘
"""

import math
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import jinja2

from puna.config import RunConfig, to_dict
from puna.files import atomic_file, human_bytes, human_seconds
from puna.recipes import recipe
from puna.report.charts import BINS, Chart, Level, Point, Series, draw, smooth
from puna.report.lineage import AS_ABOVE, DROPPED, Stage
from puna.report.run import Record, Run, number, read_run
from puna.rundir import CONFIG, REPORT

NO_BREAK = "\N{NO-BREAK SPACE}"

# Samples may contain any character. Control characters (except tab and line ends) become their pictures, and
# what UTF-8 cannot encode becomes the replacement character: the page stays valid and nothing is invisible.
_VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD),
}


def build_report(run: Path) -> Path:
    """Write `run/report.html` from the files in `run`, atomically, and return its path.

    Raises:
        ValueError: when `run` is not a run directory, or one of its files is corrupt.
        OSError: when the page cannot be written.
    """
    page = _render(read_run(run)).translate(_VISIBLE)
    path = run / REPORT
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


# ---- Run -> charts --------------------------------------------------------------------------------


def _smoothed(run: Run, key: str, name: str) -> tuple[list[Series], str]:
    """A metric over tokens, raw and as a centred mean, with a note on how it was drawn."""
    raw = run.series(key)
    window = len(raw) // 40 | 1
    note = "Every step is drawn."
    if len(raw) > 2 * BINS:
        note = f"Of every {math.ceil(len(raw) / BINS)} steps the lowest and the highest are drawn."
    if missing := sum(not math.isfinite(y) for _, y in raw):
        note += f" {missing} of {len(raw):,} steps without a finite value are omitted."
    if window < 3:
        return [Series(name, raw)], note
    means = smooth([y for _, y in raw], window)
    mean = [(x, y) for (x, _), y in zip(raw, means, strict=True)]
    return [
        Series(f"{name}, each step", raw, "faint"),
        Series(f"{name}, centred mean of {window} steps", mean),
    ], f"{note} The window shrinks towards both ends."


def _loss_chart(run: Run) -> Chart:
    series, note = _smoothed(run, "loss", "training")
    points = [(run.tokens_at(record["step"]), number(record.get("loss"))) for record in run.validations]
    vocab = run.config.model.vocab_size
    return Chart(
        name="loss-chart",
        title="Training and validation loss",
        description=f"{_course(run.series('loss'), 'training loss')}; {_course(points, 'validation loss')}, "
        f"in nats per token. A uniform guess over {vocab:,} tokens scores {run.uniform_loss:.2f}.",
        y_label="loss, nats per token",
        series=[*series, Series("validation, sources weighted by the mixture", points, "points", 1)],
        levels=[Level(f"uniform guess, ln {vocab:,} = {run.uniform_loss:.2f}", run.uniform_loss)],
        note=note,
        wide=True,
    )


def _source_chart(run: Run) -> Chart:
    series = [
        Series(
            source,
            [
                (run.tokens_at(record["step"]), number(record["loss_by_source"][source]))
                for record in run.validations
                if source in record.get("loss_by_source", {})
            ],
            "points",
            index,
        )
        for index, source in enumerate(_sources(run))
    ]
    ends = [_course(one.points, one.name) for one in series]
    return Chart(
        name="source-chart",
        title="Validation loss by source",
        description="; ".join(ends) + ", in nats per token.",
        y_label="loss, nats per token",
        series=series,
    )


def _small_charts(run: Run) -> list[Chart]:
    """Learning rate, gradient norm, speed, MFU."""
    clip = run.config.optim.clip
    norms, norm_note = _smoothed(run, "grad_norm", "gradient norm")
    finite = [y for _, y in run.series("grad_norm") if math.isfinite(y)]
    if finite:
        above = sum(y > clip for y in finite) / len(finite)
        norm_note += f" {_share(above)} of the steps are above the clipping threshold."
    speeds, speed_note = _smoothed(run, "tokens_per_second", "tokens/s")
    mfu = [(x, 100 * y) for x, y in run.series("mfu")]
    window = len(mfu) // 40 | 1
    smooth_mfu = list(zip([x for x, _ in mfu], smooth([y for _, y in mfu], window), strict=True))
    typical_speed, typical_mfu = _median(run, "tokens_per_second"), _median(run, "mfu")

    def small(name: str, title: str, y_label: str, series: list[Series], **more: Any) -> Chart:
        description = _course(series[-1].points, title.lower()) + "."
        return Chart(name, title, description, y_label, series, **more)

    return [
        small(
            "lr-chart",
            "Learning rate",
            "learning rate",
            [Series("learning rate", run.series("lr"))],
            from_zero=True,
        ),
        small(
            "norm-chart",
            "Gradient norm before clipping",
            "gradient norm",
            norms,
            levels=[Level(f"clip at {clip:g}", clip)],
            note=norm_note,
            from_zero=True,
            # On a linear axis a few early spikes would flatten the rest.
            log_y=bool(finite) and max(finite) > 30 * max(min(finite), 1e-12),
        ),
        small(
            "speed-chart",
            "Training speed",
            "tokens/s",
            speeds,
            levels=[]
            if typical_speed is None
            else [Level(f"median {typical_speed:,.0f} tokens/s", typical_speed)],
            note=speed_note,
            from_zero=True,
        ),
        small(
            "mfu-chart",
            "Model FLOPs utilisation",
            "MFU, % of the matrix peak",
            [Series(f"MFU, centred mean of {window} steps" if window > 1 else "MFU", smooth_mfu)],
            levels=[] if typical_mfu is None else [Level(f"median {_share(typical_mfu)}", 100 * typical_mfu)],
            from_zero=True,
        ),
    ]


def _course(points: Iterable[Point], name: str) -> str:
    """A curve in words, for screen readers."""
    finite = [y for _, y in points if math.isfinite(y)]
    return f"{name} went from {finite[0]:.4g} to {finite[-1]:.4g}" if finite else f"{name} has no points yet"


# ---- Run -> tables and facts ----------------------------------------------------------------------


def _sources(run: Run) -> list[str]:
    """The sources in the mixture's order, then those that only a validation names."""
    names = [str(row.get("source")) for row in run.details.get("mixture", [])]
    names += run.config.mixture.weights
    for record in [*run.validations, run.validation]:
        names += record.get("loss_by_source", {})
    return list(dict.fromkeys(names))


def _mixture(run: Run) -> list[Record]:
    """The rows of the mixture's table; for an unfinished run only the configured proportions."""
    if run.manifest:
        return list(run.details.get("mixture", []))
    weights = run.config.mixture.weights
    total = sum(weights.values())
    return [{"source": source, "intended": weight / total} for source, weight in weights.items()]


def _documents(lineage: Stage) -> list[Record]:
    """Counts of each source's records: kept, dropped by reason, damaged; no rows where unknown."""
    tables: dict[str, Record] = {}
    for stage in lineage.walk():
        if stage.kind != "documents" or stage.state == AS_ABOVE:
            continue
        counts = stage.manifest.counts if stage.manifest else {}
        dropped = sorted(
            (name for name in counts if name.startswith(DROPPED)), key=lambda name: -counts[name]
        )
        rows = [(name, counts[name]) for name in ["kept", *dropped] if name in counts]
        if stage.manifest and stage.manifest.damaged:
            rows.append(("damaged, skipped", stage.manifest.damaged))
        tables[stage.path] = {
            "source": dict(stage.facts).get("source", stage.path),
            "outcomes": rows,
            "total": sum(count for _, count in rows),
            "characters": counts.get("characters"),
        }
    return list(tables.values())


def _settings(config: RunConfig) -> list[tuple[str, list[tuple[str, str, str | None]]]]:
    """The configuration by section: field, value, and the recipe's value if it differs."""
    values = to_dict(config)
    try:
        defaults = to_dict(recipe(config.recipe))
    except ValueError:  # a recipe of another version of puna
        defaults = values
    sections: dict[str, list[tuple[str, str, str | None]]] = {"run": []}
    for key, value in values.items():
        fields = value.items() if isinstance(value, dict) else [(key, value)]
        recipe_values = defaults[key] if isinstance(value, dict) else {key: defaults[key]}
        section = sections.setdefault(key if isinstance(value, dict) else "run", [])
        for name, field in fields:
            default = recipe_values[name]
            other = None if name == "recipe" or field == default else _setting(default)
            section.append((name, _setting(field), other))
    return list(sections.items())


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item:g}" for key, item in value.items()) or "not set"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "not set"
    return f"{value:g}" if isinstance(value, float) else "not set" if value is None else str(value)


_MACHINE = {
    "cpu": ("CPU", "{}"),
    "cores": ("CPU cores", "{}"),
    "threads": ("threads used", "{}"),
    "matrix_gflops": ("matrix peak, measured", "{:,.1f} GFLOP/s"),
    "torch": ("PyTorch", "{}"),
    "python": ("Python", "{}"),
    "platform": ("system", "{}"),
}


def _machine(run: Run) -> list[tuple[str, str]]:
    rows = []
    for key, value in run.details.get("machine", {}).items():
        label, form = _MACHINE.get(key, (key, "{}"))
        rows.append((label, form.format(value) if isinstance(value, int | float) else str(value)))
    return rows + ([("puna", run.manifest.code_version)] if run.manifest else [])


def _median(run: Run, key: str) -> float | None:
    finite = [y for _, y in run.series(key) if math.isfinite(y)]
    return median(finite) if finite else None


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


def _short(digest: str) -> str:
    return digest if len(digest) <= 16 else f"{digest[:12]}…"


def _render(run: Run) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": _or_not_recorded(lambda value: f"{value:,.0f}"),
        "words": _or_not_recorded(_in_words),
        "share": _or_not_recorded(_share),
        "points": _or_not_recorded(lambda value: f"{100 * value:+.2f}".replace("-", "−")),
        "loss": _or_not_recorded(lambda value: f"{value:.3f}"),
        "perplexity": _or_not_recorded(_perplexity),
        "decimal": _or_not_recorded(lambda value: f"{value:.2f}"),
        "bytes": _or_not_recorded(human_bytes),
        "seconds": _or_not_recorded(human_seconds),
        "short": _short,
    }
    shown = run.path if run.path.name not in ("", "..") else run.path.resolve()
    last_step = max((sample["step"] for sample in run.samples), default=0)
    return environment.get_template("page.html.j2").render(
        run=run,
        name=shown.name,
        config=run.config,
        counts=run.manifest.counts if run.manifest else {},
        tokens=run.train[-1]["tokens"] if run.train else None,
        seconds=run.train[-1].get("seconds") if run.train else None,
        speed=_median(run, "tokens_per_second"),
        mfu=_median(run, "mfu"),
        validation=run.validation,
        uniform_loss=run.uniform_loss,
        sources=_sources(run),
        loss_chart=draw(_loss_chart(run)),
        source_chart=draw(_source_chart(run)),
        small_charts=[draw(chart) for chart in _small_charts(run)],
        mixture=_mixture(run),
        documents=_documents(run.lineage),
        samples=[sample for sample in run.samples if sample["step"] == last_step],
        earlier_samples=[sample for sample in run.samples if sample["step"] != last_step],
        settings=_settings(run.config),
        machine=_machine(run),
        command=f"puna train --config {shlex.quote(str(shown / CONFIG))} "
        f"--out {shlex.quote(f'{shown}-again')}",
    )
