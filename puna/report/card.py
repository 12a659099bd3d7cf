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

from puna.config import RunConfig, TuneConfig
from puna.files import atomic_file, human_seconds
from puna.paper import RESULTS
from puna.report import tables
from puna.report.evaluations import read_evaluations
from puna.report.evaluations import tables as result_tables
from puna.report.run import Run, number, read_run

CARD = "README.md"
_DATASET = re.compile(r"(?:huggingface\.co/|hf://)datasets/([\w.-]+/[\w.-]+)")
_DUMP = re.compile(r"([a-z-]+)wiki-")
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
    about = f"A LLaMA of {run.parameters:,} parameters, {_trained(config)} on {tokens:,} tokens with puna."
    parts = [
        "---",
        # JSON is YAML: no value can break the header.
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in metadata.items() if value),
        "---",
        f"# {_text(run.name)}",
        "",
        f"{about}{state}",
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
    parts += [f"- `{_text(one.path)}`, SHA-256 `{_text(one.sha256)}`" for one in run.lineage.files]
    for stage in run.lineage.inputs:
        parts.append(f"- {_text(stage.kind)} `{_text(stage.path)}`, fingerprint `{_text(stage.fingerprint)}`")
    return "\n".join(parts).rstrip() + "\n"


def _trained(config: RunConfig) -> str:
    if not isinstance(config, TuneConfig):
        return "trained"
    base = Path(config.finetune.model).name
    return f"finetuned from `{_text(base)}`{' with LoRA' if config.lora else ''}"


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


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(_text(str(cell)) for cell in line) + " |" for line in lines] + [""]


def _text(value: str) -> str:
    """Text that is neither a cell's end nor HTML."""
    return value.translate(_CELL)
