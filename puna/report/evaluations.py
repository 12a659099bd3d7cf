"""Results of `puna eval` beside the paper's Tables 3 to 14.

In:  directories of evaluations, given or found beside the run: those with results.json.
Out: tables of rows: task, metric, score with its error, chance, n of N or "not scored", four paper figures.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.files import read_json
from puna.paper import RESULTS, TABLES, Figures
from puna.report.run import Run, number

FILE = "results.json"
MMLU = 14_042  # questions of its test set
Result = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A row of a table. `scores` has one text per evaluation."""

    task: str
    metric: str
    scores: tuple[str, ...]
    chance: float | None
    paper: Figures


@dataclass(frozen=True)
class Evaluation:
    """One directory of results."""

    path: Path
    results: list[Result]

    def of(self, task: str) -> list[Result]:
        """The results of a task: one per number of shots."""
        return [result for result in self.results if result.get("task") == task]


def read_evaluations(run: Path, given: Iterable[Path] = ()) -> list[Evaluation]:
    """The evaluations given, else those in the run's own folders.

    Raises:
        ValueError: when a directory has no results, or they cannot be read.
    """
    given = list(given)
    for directory in given:
        if not (directory / FILE).is_file():
            raise ValueError(f"{directory} holds no {FILE}; make it with: puna eval --model {run} --out DIR")
    found = given or sorted(path.parent for path in run.glob(f"*/{FILE}"))
    return [_read(directory) for directory in found]


def before_and_after(run: Run) -> list[tuple[str, str, str, str, str]]:
    """Task, score before finetuning, after it, change, examples; empty unless both were scored.

    The error of the change is an upper bound: before and after, the same questions are asked.
    """
    scored = [record for record in run.validations if isinstance(record.get("evaluation"), dict)]
    # Only finetuning scores its model before the first step.
    if len(scored) < 2 or scored[0]["step"] != 0:
        return []
    rows = []
    for task, before in scored[0]["evaluation"].items():
        after = scored[-1]["evaluation"].get(task) or {}
        scores = [number(one.get("score")) for one in (before, after)]
        errors = [number(one.get("error")) for one in (before, after)]
        texts = [_with_error(score, error) for score, error in zip(scores, errors, strict=True)]
        change = _with_error(scores[1] - scores[0], math.hypot(*errors), "+")
        of = f" of {MMLU:,}" if task == "mmlu" and after.get("n", 0) < MMLU else ""
        rows.append((task, *texts, change, f"{after.get('n', 0):,}{of}"))
    return rows


def _with_error(value: float, error: float, sign: str = "") -> str:
    if not math.isfinite(value):
        return "not scored"
    return f"{value:{sign}.1f}" + (f" ± {error:.1f}" if math.isfinite(error) else "")


def _read(directory: Path) -> Evaluation:
    path = directory / FILE
    values = read_json(path, "delete it and run puna eval again")
    results = values.get("results") if isinstance(values, dict) else None
    if not isinstance(results, list) or not all(isinstance(one, dict) and "task" in one for one in results):
        raise ValueError(f"{path} was not written by puna eval; delete it and run puna eval again")
    return Evaluation(directory, results)


def tables(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[Row]]]:
    """Tables 3 to 14 with their titles, then one of the tasks that the paper does not have."""
    found = [
        (f"Table {place}. {title}", [row for task in tasks for row in _rows(task, evaluations)])
        for place, (title, tasks) in TABLES.items()
    ]
    others = dict.fromkeys(
        result["task"] for one in evaluations for result in one.results if result["task"] not in RESULTS
    )
    rows = [row for task in others for row in _rows(task, evaluations)]
    return found + ([("Other tasks", rows)] if rows else [])


def _rows(task: str, evaluations: Sequence[Evaluation]) -> list[Row]:
    """The rows of a task: those of the paper, and those of further metrics that were scored."""
    paper = RESULTS.get(task, {})
    results = [result for one in evaluations for result in one.of(task)]
    metrics = dict.fromkeys(paper)
    for result in results:
        shots = f"{result.get('shots')}-shot"
        scored = list(result.get("metrics", {}))
        # NaturalQuestions and TriviaQA: the paper's rows are numbers of shots, of the first metric.
        metrics |= dict.fromkeys([shots, *scored[1:]] if shots in paper else scored)
    unit = next((result["unit"] for result in results if "unit" in result), None)
    figures = [figure for row in paper.values() for figure in row if figure is not None]
    decimals = 3 if unit == 1 or (unit is None and figures and max(figures) <= 1) else 1
    return [
        Row(
            task,
            metric,
            tuple(_score(one.of(task), metric, decimals) for one in evaluations),
            next((number(result["chance"]) for result in results if result.get("chance") is not None), None)
            if place == 0
            else None,
            paper.get(metric, (None,) * 4),
        )
        for place, metric in enumerate(metrics or {"": None})
    ]


def _score(results: Sequence[Result], metric: str, decimals: int) -> str:
    """`45.0 ± 7.9 (40 of 1,838)`, or that it was not scored, and why."""
    for result in results:
        scored = {**result.get("groups", {}), **result.get("metrics", {})}
        if metric == f"{result.get('shots')}-shot" and result.get("metrics"):
            found = next(iter(result["metrics"].values()))
        elif metric in scored:
            found = scored[metric]
        else:
            continue
        error = f" ± {found['error']:.{decimals}f}" if found.get("error") is not None else ""
        n, of = found.get("n", result.get("n", 0)), result.get("of", 0)
        whole = metric in result.get("groups", {}) or result.get("n") == of
        return f"{found['value']:.{decimals}f}{error} ({n:,}{'' if whole else f' of {of:,}'})"
    return "not scored"
