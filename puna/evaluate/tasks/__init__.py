"""All benchmarks, by name and group."""

from collections.abc import Sequence
from pathlib import Path

from puna.evaluate.task import Task
from puna.evaluate.tasks import (
    bias,
    closed_book,
    code,
    commonsense,
    mathematics,
    mmlu,
    reading,
    truthfulqa,
)

_ALSO = {"arc-e": "arc_easy", "arc-c": "arc_challenge"}
_MODULES = (commonsense, closed_book, reading, mathematics, code, mmlu, bias, truthfulqa)
TASKS: dict[str, Task] = {task.name: task for module in _MODULES for task in module.TASKS}
GROUPS: dict[str, list[str]] = {"llama": [task.name for task in TASKS.values() if task.group]}
for _task in TASKS.values():
    if _task.group:
        GROUPS.setdefault(_task.group, []).append(_task.name)


def find(names: Sequence[str]) -> list[Task]:
    """The tasks with these names, of these groups, or in these files (.py with TASKS, .yaml); each once.

    Names may also be separated by commas.

    Raises:
        ValueError: an unknown name, with those that exist.
    """
    found: dict[str, Task] = {}
    for name in (_ALSO.get(name, name) for given in names for name in given.split(",")):
        if name.endswith((".py", ".yaml", ".yml")):
            from puna.evaluate.tasks.own import read_tasks

            found |= {task.name: task for task in read_tasks(Path(name))}
        elif name in GROUPS:
            found |= {task: TASKS[task] for task in GROUPS[name]}
        elif name in TASKS:
            found[name] = TASKS[name]
        else:
            known = f"groups: {', '.join(GROUPS)}; tasks: {', '.join(TASKS)}"
            raise ValueError(f"no task {name!r}; give a .py or .yaml file, or one of {known}")
    return list(found.values())
