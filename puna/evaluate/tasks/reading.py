"""Reading comprehension (paper section 3.3, Table 6): RACE, zero-shot.

The paper follows GPT-3 and says no more; the prompt and both normalisations that GPT-3 used for such tasks
are [C]. Every question of every article is one example; an article's questions form a cluster.
"""

from collections.abc import Iterator
from functools import partial

from puna.evaluate.data import Data, Row
from puna.evaluate.task import Example, Task


def _race(data: Data, level: str) -> Iterator[Example]:
    names = (f"race/test/{level}", f"RACE/test/{level}", f"race/test/{level}.jsonl")
    path = data.first(*names, f"race/sample_test_{level}.jsonl")
    if path.is_dir():  # the original tree: one file per article, all its questions in lists
        for name, row in data.tree(str(path.relative_to(data.directory))):
            numbered = enumerate(zip(row["questions"], row["options"], row["answers"], strict=True))
            for number, (question, options, answer) in numbered:
                yield _example(row, f"{name}-{number}", name, question, options, answer)
        return
    for row in data.json_lines(str(path.relative_to(data.directory))):
        values = row["question"], row["options"], row["answer"]
        yield _example(row, f"{row['example_id']}-{row.number}", row["example_id"], *values)


def _example(row: Row, id: str, article_id: str, question: str, options: list[str], answer: str) -> Example:
    return Example(
        id=id,
        question=f"Article:\n{row['article']}\n\nQ: {question}\n\nA:",
        options=tuple(f" {option}" for option in options),
        gold=(row.index(answer, "ABCD"),),
        cluster=article_id,
    )


TASKS = tuple(
    Task(
        name=f"race_{level}",
        group="reading",
        source="Lai et al. 2017; test set",
        basis={"prompt": "[C]", "normalisation": "[C]", "metric": "[P]"},
        total=total,
        read=partial(_race, level=level),
        also=("answer-context",),
        answer_context="A:",
    )
    for level, total in (("middle", 1436), ("high", 3498))
)
