"""Records -> the table: means with standard errors and chance, beside the paper's figures.

Nothing here asks the model, so `puna eval recount` computes every number again from the records alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from puna.evaluate.normalise import Normalisation
from puna.evaluate.records import Record, iterate_records
from puna.evaluate.scoring import chosen, sample_values
from puna.evaluate.statistics import Mean, chance, mean
from puna.evaluate.task import Task
from puna.paper import SIZES

Result = dict[str, Any]


def recounted(task: Task, record: Record, normalisation: Normalisation | None) -> Record:
    """A record with its values recomputed from what the model said."""
    if record.get("skipped"):
        return record
    if "options" in record:
        return record | chosen(task, record, normalisation)
    return record | {"values": sample_values(task, record["samples"])}


def summarised(task: Task, records: Iterable[Record], normalisation: Normalisation | None = None) -> Result:
    """One task's result: every metric over all examples, and the main metric by group."""
    values: dict[str, list[float]] = {}
    by_group: dict[str, list[float]] = {}
    clusters: list[str] = []
    counts: list[tuple[int, int]] = []
    total = skipped = 0
    for record in records:
        total += 1
        if record.get("skipped"):
            skipped += 1
            continue
        if "options" in record:
            gold = 1 if task.ties_are_wrong else len(record["gold"])
            counts.append((len(record["options"]), gold))
        if not record["values"]:
            continue
        clusters.append(record.get("cluster", ""))
        for name, value in record["values"].items():
            values.setdefault(name, []).append(value)
        for group in record.get("groups", ()):
            by_group.setdefault(group, []).append(next(iter(record["values"].values())))
    shared = clusters if any(clusters) else ()
    means = {
        name: mean(found, shared if len(found) == len(clusters) else ()) for name, found in values.items()
    }
    result: Result = {
        "task": task.name,
        "n": total - skipped,
        "of": task.total or total,
        "skipped": skipped,
        "metrics": {name: _shown(task, found) for name, found in means.items()},
        "groups": {name: _shown(task, mean(found)) for name, found in sorted(by_group.items())},
        "normalisation": (normalisation or task.normalisation) if counts else None,
        "chance": chance(*zip(*counts, strict=True)) * task.unit if counts else None,
        "basis": dict(task.basis),
        "source": task.source,
        "paper": {name: list(figures) for name, figures in task.paper.items()},
    }
    return result


def _shown(task: Task, found: Mean) -> Result:
    values = asdict(found)
    values["value"] *= task.unit
    values["error"] = None if found.error is None else found.error * task.unit
    return values


def recount(
    task: Task, path: Path, normalisation: Normalisation | None = None, n: int | None = None
) -> Result:
    """A task's result from its records alone."""
    records = (record for place, record in enumerate(iterate_records(path)) if n is None or place < n)
    return summarised(task, (recounted(task, record, normalisation) for record in records), normalisation)


def figure(value: float | None, unit: float = 100, sign: str = "-") -> str:
    """A score as text: one decimal of per cent, three of other units; `sign` "+" marks positive ones too."""
    return "" if value is None else f"{value:{sign}.{1 if unit == 100 else 3}f}"


def table_rows(result: Result) -> list[tuple[str, ...]]:
    """The table's rows of one task: task, metric, value, chance, n of N, control, the paper's figures."""
    empty = ("",) * len(SIZES)
    if "why" in result:
        return [(result["task"], "", "not scored", "", "", "", *empty)]
    n = f"{result['n']:,}" if result["n"] == result["of"] else f"{result['n']:,} of {result['of']:,}"
    unit = result.get("unit", 100)
    if not result["metrics"]:
        why = "no judge" if result["n"] else "none fits the context"
        return [(result["label"], why, "not scored", "", n, "", *empty)]
    rows = []
    named = {**result["metrics"], **{g: v for g, v in result["groups"].items() if g in result["paper"]}}
    for place, (name, found) in enumerate(named.items()):
        paper = result["paper"].get(name)
        if paper is None and place == 0:  # NQ and TriviaQA: by the number of shots
            paper = result["paper"].get(f"{result.get('shots')}-shot")
        error = f" ± {figure(found['error'], unit)}" if found["error"] else ""
        control = result.get("control", {}).get(name)
        head = (result["label"], figure(result["chance"], unit), n) if place == 0 else ("", "", "")
        row = (head[0], name, figure(found["value"], unit) + error, *head[1:])
        rows.append(
            (
                *row,
                figure(control["value"], unit) if control else "",
                *(figure(one, unit) for one in paper or (None,) * 4),
            )
        )
    return rows


def wide_console() -> Console:
    """Standard output; where it is no terminal, wide enough for a table."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


def plain_table(columns: Sequence[str]) -> Table:
    """A table without lines, of two columns of words and others of figures; the paper's are dim."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, name in enumerate(columns):
        style = "dim" if name in SIZES else ""
        table.add_column(name, justify="left" if place < 2 else "right", style=style, no_wrap=True)
    return table


COLUMNS = ("task", "metric", "value", "chance", "n", "swapped", *SIZES)


def print_table(results: Sequence[Result]) -> None:
    """Print the table of all tasks, and why tasks were not scored."""
    rows = [row for result in results for row in table_rows(result)]
    shown = [
        place for place, name in enumerate(COLUMNS) if name != "swapped" or any(row[place] for row in rows)
    ]
    table = plain_table([COLUMNS[place] for place in shown])
    table.caption, table.caption_justify = "LLaMA 7B to 65B: the paper's figures", "right"
    for row in rows:
        table.add_row(*(row[place] for place in shown))
    console = wide_console()
    console.print(table)
    for result in results:
        if "why" in result:
            console.print(f"{result['task']} is not scored: {result['why']}", soft_wrap=True, highlight=False)
        if found := result.get("contamination"):
            count = f"{found['items']:,} of {found['of']:,} items"
            console.print(f"{result['label']}: {count} share 13 tokens in a row with the shards")
