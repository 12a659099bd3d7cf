"""lm-eval's own tasks, with their templates and metrics, on the original files: nothing is downloaded.

DIR/arc/ARC-Easy-Test.jsonl ──rows as lm-eval's data set has them──> lm-eval's task arc_easy
"""

import csv
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

Rows = Iterator[dict[str, Any]]
manager = cache(TaskManager)  # its index of all tasks takes seconds


def _json_lines(path: Path) -> Rows:
    return (json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip())


def _arc(path: Path) -> Rows:
    for row in _json_lines(path):
        choices = row["question"]["choices"]
        columns = {"text": [c["text"] for c in choices], "label": [c["label"] for c in choices]}
        yield {"question": row["question"]["stem"], "choices": columns, "answerKey": row["answerKey"]}


def _piqa(path: Path) -> Rows:
    labels = path.with_name("valid-labels.lst").read_text().split()
    for row, label in zip(_json_lines(path), labels, strict=True):
        yield {**row, "label": int(label)}


def _hellaswag(path: Path) -> Rows:
    for row in _json_lines(path):
        wanted = ("activity_label", "ctx_a", "ctx_b", "endings")
        yield {name: row[name] for name in wanted} | {"label": str(row["label"])}


def _winogrande(path: Path) -> Rows:
    for row in _json_lines(path):
        yield {name: row[name] for name in ("sentence", "option1", "option2", "answer")}


def _mmlu(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        for question, *choices, answer in csv.reader(file):
            yield {"question": question, "choices": choices, "answer": "ABCD".index(answer)}


FILES: dict[str, tuple[str, Callable[[Path], Rows]]] = {
    "arc_easy": ("arc/ARC-Easy-Test.jsonl", _arc),
    "arc_challenge": ("arc/ARC-Challenge-Test.jsonl", _arc),
    "piqa": ("piqa/valid.jsonl", _piqa),
    "hellaswag": ("hellaswag/hellaswag_val.jsonl", _hellaswag),
    "winogrande": ("winogrande/dev.jsonl", _winogrande),
}


def task_of(name: str, data: Path, count: int) -> ConfigurableTask:
    """lm-eval's task, with the first examples of the original file; MMLU's by subject: mmlu_anatomy."""
    if name.startswith("mmlu_"):
        subject = name.removeprefix("mmlu_")
        tested, shown = (list(_mmlu(data / f"mmlu/{s}/{subject}_{s}.csv")) for s in ("test", "dev"))
        splits = {"test": tested[:count], "dev": shown}
    else:
        file, read = FILES[name]
        rows = list(read(data / file))[:count]
        splits = dict.fromkeys(("train", "validation", "test"), rows)
    config = dict(load_yaml(manager().task_index[name].yaml_path, resolve_func=True))
    rows_of_splits = DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})
    config["custom_dataset"] = lambda **_: rows_of_splits
    return ConfigurableTask(config=config)
