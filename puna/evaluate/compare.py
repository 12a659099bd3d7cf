"""Two runs -> their differences on the same examples.

records of A ─┐
              ├─ paired by example ─> exact McNemar, paired bootstrap, Holm over all tasks, flipped examples
records of B ─┘
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from puna.evaluate.records import iterate_records
from puna.evaluate.results import figure, plain_table, wide_console
from puna.evaluate.statistics import compare, holm

_SCALED = ("first", "second", "difference", "low", "high")  # in the unit of the results
_COLUMNS = ("task", "metric", "first", "second", "difference", "n", "only first", "only second", "p",
            "p (Holm)")  # fmt: skip


def _values(run: Path, result: dict[str, Any]) -> dict[str, tuple[float, str]]:
    """Main value and cluster of every scored example, by id."""
    count = result["n"] + result["skipped"]
    found: dict[str, tuple[float, str]] = {}
    for place, record in enumerate(iterate_records(run / f"{result['label']}.jsonl")):
        if place < count and record["values"]:
            found[record["id"]] = float(next(iter(record["values"].values()))), record.get("cluster", "")
    return found


def compare_runs(
    first: Path, first_run: dict[str, Any], second: Path, second_run: dict[str, Any]
) -> list[dict[str, Any]]:
    """The comparisons of all tasks that both runs scored, their values in the unit of `puna eval`'s table.

    Raises:
        ValueError: when they share no examples, or a task's metric, normalisation or shots differ.
    """
    others = {result.get("label"): result for result in second_run["results"] if result.get("metrics")}
    found = []
    for result in first_run["results"]:
        label = result.get("label")
        if label is None or label not in others or not result.get("metrics"):
            continue
        for name in ("normalisation", "shots", "samples", "judge"):
            if result[name] != others[label][name]:
                raise ValueError(
                    f"{label}: {name} is {result[name]} in {first} and {others[label][name]} in {second}; "
                    "score both alike"
                )
        a, b = _values(first, result), _values(second, others[label])
        shared = [id for id in a if id in b]
        if not shared:
            continue
        clusters = [a[id][1] for id in shared]
        unit = result.get("unit", 100)
        outcome = compare(
            [a[id][0] for id in shared],
            [b[id][0] for id in shared],
            clusters if any(clusters) else (),
        )
        found.append(
            {
                "task": label,
                "metric": next(iter(result["metrics"]), ""),
                "unit": unit,
                **asdict(outcome),
                **{name: unit * getattr(outcome, name) for name in _SCALED},
                "only_first_ids": [id for id in shared if a[id][0] > b[id][0]],
                "only_second_ids": [id for id in shared if a[id][0] < b[id][0]],
            }
        )
    if not found:
        raise ValueError(f"{first} and {second} share no scored examples; compare runs of the same tasks")
    tested = [row for row in found if row["p"] is not None]
    for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = corrected
    return found


def print_comparison(found: Sequence[dict[str, Any]], flipped: int) -> None:
    """Print a table of the tasks, and under it the examples that only one run has right."""
    table = plain_table(_COLUMNS)
    for row in found:
        figures = [figure(row[name], row["unit"]) for name in ("first", "second")]
        change, low, high = (
            figure(row[name], row["unit"], sign="+") for name in ("difference", "low", "high")
        )
        tests = [f"{row[name]:.2g}" if row.get(name) is not None else "" for name in ("p", "p_holm")]
        counts = [f"{row[name]:,}" for name in ("n", "only_first", "only_second")]
        table.add_row(row["task"], row["metric"], *figures, f"{change} [{low}, {high}]", *counts, *tests)
    console = wide_console()
    console.print(table)
    for row in found:
        for which in ("first", "second"):
            if ids := row[f"only_{which}_ids"]:
                more = " …" if len(ids) > flipped else ""
                shown = ", ".join(ids[:flipped]) + more
                console.print(
                    f"{row['task']}, only the {which} right: {shown}", soft_wrap=True, highlight=False
                )
    notes = (
        "difference: second - first, with its 95 % interval by the paired bootstrap; "
        "p: exact McNemar, and Holm's correction for the number of tasks"
    )
    console.print(notes, style="dim", soft_wrap=True, highlight=False)
