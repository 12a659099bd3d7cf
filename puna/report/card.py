"""A model card: what is known of a run, as the README.md beside its weights on Hugging Face.

In:  a run directory, evaluations.
Out: Markdown that begins with Hugging Face's metadata: tags, languages, data sets, scores. Fields whose
     value is not known, such as the licence, are omitted.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from puna.config import RunConfig, TuneConfig
from puna.files import human_seconds, write_file
from puna.paper import RESULTS
from puna.report import tables
from puna.report.evaluations import read_evaluations
from puna.report.evaluations import tables as result_tables
from puna.report.page import cell, environment
from puna.report.run import Run, number, read_run

CARD = "README.md"
_DATASET = re.compile(r"(?:huggingface\.co/|hf://)datasets/([\w.-]+/[\w.-]+)")
_DUMP = re.compile(r"([a-z-]+)wiki-")


def build_card(run: Path, out: Path | None = None, evaluations: Iterable[Path] = ()) -> Path:
    """Write the model card of a run atomically, by default as RUN/README.md; returns its path.

    Raises:
        ValueError: a directory that is not a run, or a corrupt file.
        OSError: when the card cannot be written.
    """
    path = out or run / CARD
    text = _card(read_run(run), list(evaluations))
    write_file(path, text)
    return path


def _card(run: Run, given: list[Path]) -> str:
    evaluations = read_evaluations(run.path, given)
    rows = [row for _, rows in result_tables(evaluations) for row in rows]
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llama", "puna"],
        "language": _languages(run),
        "datasets": _datasets(run),
        "model-index": _index(run, [result for one in evaluations for result in one.results]),
    }
    markdown = environment().overlay(autoescape=False, keep_trailing_newline=True)
    return markdown.get_template("card.md.j2").render(
        run=run,
        metadata=metadata,
        trained=_trained(run.config),
        tokens=run.train[-1]["tokens"] if run.train else 0,
        training=_training(run),
        data=[
            (
                row["source"],
                f"{100 * number(row.get('realised', row.get('intended'))):.1f} %",
                f"{number(row['epochs']):.2f}" if "epochs" in row else "",
                f"{row['tokens']:,}" if "tokens" in row else "",
            )
            for row in tables.mixture(run)
        ],
        evaluated=[one.path.name for one in evaluations],
        scores=[
            (row.task, row.metric, *row.scores, "" if row.paper[0] is None else f"{row.paper[0]:g}")
            for row in rows
            if set(row.scores) - {"not scored"}
        ],
    )


def _trained(config: RunConfig) -> str:
    if not isinstance(config, TuneConfig):
        return "trained"
    base = Path(config.finetune.model).name
    return f"finetuned from `{cell(base)}`{' with LoRA' if config.lora else ''}"


def _training(run: Run) -> list[tuple[str, Any]]:
    config, model = run.config, run.config.model
    rows = [
        ("layers", model.n_layers),
        ("dimension", f"{model.dim:,}"),
        ("heads", model.n_heads),
        ("vocabulary", f"{model.vocab_size:,}"),
        ("context", f"{model.context:,} tokens"),
        ("steps", f"{run.step:,}"),
        ("batch", f"{config.schedule.batch_tokens:,} tokens"),
        ("peak learning rate", f"{config.optim.lr:g}"),
    ]
    if run.train and "seconds" in run.train[-1]:
        rows.append(("time of the training steps", human_seconds(number(run.train[-1]["seconds"]))))
    if run.validation.get("loss") is not None:
        rows.append(("held-out loss", f"{number(run.validation['loss']):.3f} nats per token"))
    bits = run.validation.get("bits_per_byte_by_source", {})
    return rows + [
        (f"held-out bits per byte, {source}", f"{number(one):.3f}") for source, one in bits.items()
    ]


def _languages(run: Run) -> list[str]:
    """The languages that the stages of the documents were asked for; for Wikipedia, those of its dumps."""
    found: set[str] = set()
    for stage in run.lineage.walk():
        options = stage.manifest.config.get("options", {}) if stage.manifest else {}
        asked: set[str] = set()
        for value in (options.get("language"), options.get("languages")):
            asked |= (
                {value} if isinstance(value, str) else {one for one in value or () if isinstance(one, str)}
            )
        dumps = {match[1] for file in stage.files if (match := _DUMP.match(Path(file.path).name))}
        found |= asked & dumps if dumps else asked
    return sorted(found)


def _datasets(run: Run) -> list[str]:
    """The data sets of Hugging Face among the inputs."""
    paths = [file.path for stage in run.lineage.walk() for file in stage.files]
    return sorted({found[1] for path in paths if (found := _DATASET.search(path))})


def _index(run: Run, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    scored = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": result["task"], "type": result["task"]},
            "metrics": [
                {"type": name, "name": f"{name}, n = {found['n']}", "value": round(found["value"], 4)}
                for name, found in result["metrics"].items()
            ],
        }
        for result in results
        if result["task"] in RESULTS and result.get("metrics")
    ]
    return [{"name": run.name, "results": scored}] if scored else []
