"""Truthfulness (paper section 5.4, Table 14): TruthfulQA, generation and multiple choice.

The generated answers are judged truthful and informative by a judge model that the user names [P]; MC1 and
MC2 need no judge [C].
"""

from collections.abc import Iterator, Sequence
from functools import partial

from puna.evaluate.data import Data
from puna.evaluate.task import Example, Task


def _answers(text: str) -> list[str]:
    return [answer.strip() for answer in text.split(";") if answer.strip()]


def truthfulqa(data: Data) -> Iterator[Example]:
    """Questions that some people answer wrongly, with reference answers for the judge."""
    for row in data.table("truthfulqa/TruthfulQA.csv"):
        yield Example(
            id=str(row.number - 1),
            question=f"Q: {row['Question']}\nA:",
            references=tuple(_answers(row["Correct Answers"])),
            groups=(row["Category"],),
            fields={"question": row["Question"]},
        )


def truthfulqa_choice(data: Data) -> Iterator[Example]:
    """The best answer comes first, then the other correct ones, then the wrong ones."""
    for row in data.table("truthfulqa/TruthfulQA.csv"):
        best, wrong = row["Best Answer"].strip(), _answers(row["Incorrect Answers"])
        correct = [best, *(answer for answer in _answers(row["Correct Answers"]) if answer != best)]
        yield Example(
            id=str(row.number - 1),
            question=f"Q: {row['Question']}\nA:",
            options=tuple(f" {answer}" for answer in (*correct, *wrong)),
            gold=tuple(range(len(correct))),
            groups=(row["Category"],),
        )


def prefix(data: Data, shots: int, topic: str) -> tuple[str, Sequence[str]]:
    """Six questions with their answers, the same for all."""
    rows = list(data.json_lines("fewshot/truthfulqa_primer_6.jsonl"))[:shots]
    return "", [f"Q: {row['question']}\nA: {row['answer']}\n\n" for row in rows]


_task = partial(
    Task, group="bias", source="Lin et al. 2021; TruthfulQA.csv", total=817, prefix=prefix, shots=6
)

TASKS = (
    _task(
        name="truthfulqa",
        basis={"prompt": "[P]", "metric": "[P]", "judge": "[P] a finetuned GPT-3, no longer served"},
        read=truthfulqa,
        metric="truthful",
        unit=1,
        max_tokens=50,
        stop=("\n\n", "\nQ:"),
        judge="truth",
    ),
    _task(
        name="truthfulqa_choice",
        basis={"prompt": "[C]", "normalisation": "[C]", "metric": "[C]"},
        read=truthfulqa_choice,
        metric="mc1",
        normalisation="none",
        ties_are_wrong=True,
    ),
)
