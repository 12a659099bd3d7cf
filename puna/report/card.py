"""A model card: what is known of a run, as the README.md beside its weights on Hugging Face.

In:  a run directory, evaluations.
Out: Markdown that begins with Hugging Face's metadata: tags, languages, data sets, scores. Fields whose
     value is not known, such as the licence, are omitted.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from puna.files import atomic_file, human_seconds
from puna.paper import RESULTS
from puna.report import tables
from puna.report.evaluations import read_evaluations
from puna.report.evaluations import tables as result_tables
from puna.report.run import Run, number, read_run

CARD = "README.md"
_DATASET = re.compile(r"(?:huggingface\.co/|hf://)datasets/([\w.-]+/[\w.-]+)")
_CELL = str.maketrans({"|": "\\|", "\n": " ", "\r": " ", "<": "&lt;", ">": "&gt;", "`": "'"})


def build_card(run: Path, out: Path | None = None, evaluations: Iterable[Path] = ()) -> Path:
    """Write the model card of a run atomically, by default as RUN/README.md; returns its path.

    Raises:
        ValueError: a directory that is not a run, or a corrupt file.
        OSError: when the card cannot be written.
    """
    path = out or run / CARD
    text = _card(read_run(run), list(evaluations))
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _card(run: Run, given: list[Path]) -> str:
    evaluations = read_evaluations(run.path, given)
    scores = [row for _, rows in result_tables(evaluations) for row in rows]
    scores = [row for row in scores if set(row.scores) - {"not scored"}]
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llama", "puna"],
        "language": _languages(run),
        "datasets": _datasets(run),
        "model-index": _index(run, [result for one in evaluations for result in one.results]),
    }
    config, model = run.config, run.config.model
    tokens = run.train[-1]["tokens"] if run.train else 0
    steps = f"{run.step:,} of {config.schedule.steps:,} steps"
    state = "" if run.manifest else f" Its training is not finished: {steps}."
    parts = [
        "---",
        # JSON is YAML: no value can break the header.
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in metadata.items() if value),
        "---",
        f"# {_text(run.name)}",
        "",
        f"A LLaMA of {run.parameters:,} parameters, trained on {tokens:,} tokens with puna.{state}",
        "",
        "```python",
        "from transformers import pipeline",
        f'pipeline("text-generation", model={json.dumps(run.name)})("Once upon a time")',
        "```",
        "",
        "## Training",
        "",
        *_table(
            ("", ""),
            [
                ("layers", model.n_layers),
                ("dimension", f"{model.dim:,}"),
                ("heads", model.n_heads),
                ("vocabulary", f"{model.vocab_size:,}"),
                ("context", f"{model.context:,} tokens"),
                ("steps", f"{run.step:,}"),
                ("batch", f"{config.schedule.batch_tokens:,} tokens"),
                ("peak learning rate", f"{config.optim.lr:g}"),
                *_result(run),
            ],
        ),
        "## Data",
        "",
        *_table(
            ("source", "proportion", "epochs", "tokens"),
            [
                (
                    row["source"],
                    f"{100 * number(row.get('realised', row.get('intended'))):.1f} %",
                    f"{number(row['epochs']):.2f}" if "epochs" in row else "",
                    f"{row['tokens']:,}" if "tokens" in row else "",
                )
                for row in tables.mixture(run)
            ],
        ),
    ]
    if scores:
        parts += [
            "## Evaluation",
            "",
            "Scores with standard errors, and the number of examples.",
            "",
            *_table(
                ("task", "metric", *(one.path.name for one in evaluations), "LLaMA 7B, published"),
                [
                    (row.task, row.metric, *row.scores, "" if row.paper[0] is None else f"{row.paper[0]:g}")
                    for row in scores
                ],
            ),
        ]
    if run.manifest and run.manifest.energy:
        parts += ["## Energy", "", f"{_text(str(run.manifest.energy))}.", ""]
    fingerprint = run.lineage.fingerprint or "not recorded yet"
    parts += ["## Lineage", "", f"Fingerprint of the run: `{fingerprint}`", ""]
    for stage in run.lineage.inputs:
        parts.append(f"- {_text(stage.kind)} `{_text(stage.path)}`, fingerprint `{_text(stage.fingerprint)}`")
    return "\n".join(parts).rstrip() + "\n"


def _result(run: Run) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    if run.train and "seconds" in run.train[-1]:
        rows.append(("time of the training steps", human_seconds(number(run.train[-1]["seconds"]))))
    if run.validation.get("loss") is not None:
        rows.append(("held-out loss", f"{number(run.validation['loss']):.3f} nats per token"))
    bits = run.validation.get("bits_per_byte_by_source", {})
    return rows + [
        (f"held-out bits per byte, {source}", f"{number(one):.3f}") for source, one in bits.items()
    ]


def _languages(run: Run) -> list[str]:
    """The languages that the stages of the documents were asked for."""
    found: list[str] = []
    for stage in run.lineage.walk():
        options = stage.manifest.config.get("options", {}) if stage.manifest else {}
        for key in ("language", "languages"):
            value = options.get(key, ())
            found += (
                [value] if isinstance(value, str) else [one for one in value or () if isinstance(one, str)]
            )
    return sorted(set(found))


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


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(_text(str(cell)) for cell in line) + " |" for line in lines] + [""]


def _text(value: str) -> str:
    """Text that is neither a cell's end nor HTML."""
    return value.translate(_CELL)
