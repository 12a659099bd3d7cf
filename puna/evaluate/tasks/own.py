"""A user's own task: a Python file that defines TASKS, or a YAML file of prompt and fields.

    name: capitals
    file: capitals.jsonl            # beside the YAML file, or under --data; .jsonl, .csv or .tsv
    prompt: "Question: {question}\\nAnswer:"
    options: [" {a}", " {b}"]       # templates; or the name of a field that holds a list
    gold: label                     # field: index of the right option, its letter, or its text
    normalisation: char             # default

or, where the model generates:

    references: answers             # field: the right answer, or a list of them
    max_tokens: 24
    stop: ["\\n"]
"""

import runpy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from puna.evaluate.data import Data, Row
from puna.evaluate.normalise import NORMALISATIONS
from puna.evaluate.task import Example, Task
from puna.evaluate.tasks.closed_book import check

_KEYS = {"name", "file", "prompt", "options", "gold", "references", "normalisation", "max_tokens", "stop"}
_KEYS |= {"shots", "header"}


def read_tasks(path: Path) -> list[Task]:
    """The tasks of a file.

    Raises:
        ValueError: a file that is missing, is not valid, or holds an unknown field.
    """
    if not path.is_file():
        raise ValueError(f"no task file {path}")
    if path.suffix == ".py":
        try:
            tasks = runpy.run_path(str(path)).get("TASKS", ())
        except Exception as error:
            raise ValueError(f"{path} does not run ({type(error).__name__}: {error}); correct it") from error
        if not tasks or not all(isinstance(task, Task) for task in tasks):
            raise ValueError(f"{path} defines no TASKS; expected a sequence of puna.evaluate.task.Task")
        return list(tasks)
    import yaml

    try:
        fields = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected fields such as prompt and options, got {type(fields).__name__}")
    if unknown := set(fields) - _KEYS:
        raise ValueError(f"{path}: unknown field {min(unknown)!r}; expected {', '.join(sorted(_KEYS))}")
    for needed in ("file", "prompt", "gold" if "options" in fields else "references"):
        if needed not in fields:
            raise ValueError(f"{path}: no field {needed!r}")
    if (rule := fields.get("normalisation", "char")) not in NORMALISATIONS:
        raise ValueError(f"{path}: normalisation is {rule!r}; expected {', '.join(NORMALISATIONS)}")
    return [_task(path, fields)]


def _task(path: Path, fields: dict[str, Any]) -> Task:
    is_choice = "options" in fields
    shots = int(fields.get("shots", 0))

    def examples(data: Data) -> Iterator[Example]:
        rows = _rows(data, path.parent, fields["file"])
        for row in list(rows)[shots:]:  # the first rows are the shots
            yield _example(row, fields)

    def prefix(data: Data, count: int, topic: str) -> tuple[str, Sequence[str]]:
        rows = list(_rows(data, path.parent, fields["file"]))[: min(count, shots)]
        return fields.get("header", ""), [_solved(_example(row, fields)) for row in rows]

    return Task(
        name=fields.get("name", path.stem),
        group="",
        source=str(path),
        basis={},
        total=0,
        read=examples,
        prefix=prefix,
        shots=shots,
        metric="accuracy" if is_choice else "exact match",
        normalisation=fields.get("normalisation", "char"),
        check=None if is_choice else check,
        max_tokens=int(fields.get("max_tokens", 24)),
        stop=tuple(fields.get("stop", ("\n",))),
    )


def _rows(data: Data, folder: Path, name: str) -> Iterator[Row]:
    if (folder / name).is_file():
        own = Data(folder)
        rows = _opened(own, name)
        data.read |= own.read
        return rows
    return _opened(data, name)


def _opened(data: Data, name: str) -> Iterator[Row]:
    if name.endswith((".csv", ".tsv")):
        return data.table(name, separator="," if name.endswith(".csv") else "\t")
    return data.json_lines(name)


def _filled(template: str, row: Row) -> str:
    return template.format_map(row)


def _example(row: Row, fields: dict[str, Any]) -> Example:
    question = _filled(fields["prompt"], row)
    if "options" not in fields:
        value = row[fields["references"]]
        references = tuple(value) if isinstance(value, list) else (str(value),)
        return Example(id=str(row.number), question=question, references=references)
    given = fields["options"]
    texts = (
        [f" {text}" for text in row[given]] if isinstance(given, str) else [_filled(t, row) for t in given]
    )
    gold = row[fields["gold"]]
    readings: tuple[Callable[[], int], ...] = (
        lambda: int(gold),
        lambda: [text.strip() for text in texts].index(str(gold).strip()),
        lambda: "ABCDEFGH".index(str(gold).strip().upper()),
    )
    for read in readings:
        try:
            index = read()
        except ValueError:
            continue
        if 0 <= index < len(texts):
            return Example(id=str(row.number), question=question, options=tuple(texts), gold=(index,))
    raise row.error(f"{fields['gold']} is {gold!r}, which is none of the {len(texts)} options")


def _solved(example: Example) -> str:
    answer = example.options[example.gold[0]] if example.options else f" {example.references[0]}"
    return f"{example.question}{answer}\n\n"
