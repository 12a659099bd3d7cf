"""Two runs -> their differences on the same examples.

records of A ─┐
              ├─ paired by example ─> exact McNemar, paired bootstrap, Holm over all tasks, flipped examples
records of B ─┘
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from puna.evaluate.records import Record, iterate_records
from puna.evaluate.statistics import compare, holm


def _values(run: Path, result: dict[str, Any]) -> dict[str, tuple[float, str]]:
    """Main value and cluster of every scored example, by id."""
    count = result["n"] + result["skipped"]
    found: dict[str, tuple[float, str]] = {}
    for place, record in enumerate(iterate_records(run / f"{result['label']}.jsonl")):
        if place < count and record["values"]:
            found[record["id"]] = _value(record), record.get("cluster", "")
    return found


def _value(record: Record) -> float:
    return float(next(iter(record["values"].values())))


def compare_runs(
    first: Path, first_run: dict[str, Any], second: Path, second_run: dict[str, Any]
) -> list[dict[str, Any]]:
    """The comparisons of all tasks that both runs scored.

    Raises:
        ValueError: when they share no examples, or a task's metric, normalisation or shots differ.
    """
    others = {result.get("label"): result for result in second_run["results"]}
    found = []
    for result in first_run["results"]:
        label = result.get("label")
        if label is None or label not in others:
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
        outcome = compare(
            [a[id][0] for id in shared],
            [b[id][0] for id in shared],
            clusters if any(clusters) else (),
        )
        found.append(
            {
                "task": label,
                "metric": next(iter(result["metrics"]), ""),
                **asdict(outcome),
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


def lines(found: list[dict[str, Any]], flipped: int) -> list[str]:
    """The comparisons for a person."""
    said = ["task: first -> second, difference [95 % interval], only one right, p (exact McNemar), p (Holm)"]
    for row in found:
        line = (
            f"{row['task']} {row['metric']}: {row['first']:.4f} -> {row['second']:.4f}, "
            f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}], n {row['n']:,}, "
            f"only first {row['only_first']:,}, only second {row['only_second']:,}"
        )
        if row["p"] is not None:
            line += f", p {row['p']:.2g}, p (Holm) {row['p_holm']:.2g}"
        said.append(line)
        for name in ("only_first_ids", "only_second_ids"):
            if ids := row[name][:flipped]:
                which = "first" if name.startswith("only_first") else "second"
                said.append(
                    f"    better in the {which}: {', '.join(ids)}{' …' if len(row[name]) > flipped else ''}"
                )
    return said
