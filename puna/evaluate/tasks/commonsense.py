"""Common sense reasoning (paper section 3.1, Table 3): eight zero-shot tasks with options.

The option with the largest log-likelihood per character is chosen [P]; for OpenBookQA and BoolQ the
likelihood is divided by that given the context "Answer:" [P]. The prompts are GPT-3's and lm-eval's [C].
"""

import re
from collections.abc import Iterator
from functools import partial

from puna.evaluate.data import Data, labelled
from puna.evaluate.task import Example, Task


def boolq(data: Data) -> Iterator[Example]:
    """SuperGLUE's rows: the label is "true" or "false"."""
    for row in data.json_lines("boolq/val.jsonl"):
        question = row["question"].removesuffix("?")
        yield Example(
            id=str(row.number),
            question=f"{row['passage']}\nquestion: {question}?\nanswer:",
            options=(" yes", " no"),
            gold=(row.index(str(row["label"]).lower(), ("true", "false")),),
        )


def piqa(data: Data) -> Iterator[Example]:
    """A goal and two ways to reach it."""
    rows = list(data.json_lines("piqa/valid.jsonl"))
    for row, label in labelled(rows, data.lines("piqa/valid-labels.lst")):
        yield Example(
            id=str(row.number),
            question=f"Question: {row['goal']}\nAnswer:",
            options=(f" {row['sol1']}", f" {row['sol2']}"),
            gold=(row.index(label, "01"),),
        )


def siqa(data: Data) -> Iterator[Example]:
    """A situation, a question about it, three answers."""
    rows = list(data.json_lines("siqa/dev.jsonl"))
    for row, label in labelled(rows, data.lines("siqa/dev-labels.lst")):
        yield Example(
            id=str(row.number),
            question=f"Q: {row['context']} {row['question']}\nA:",
            options=tuple(f" {row[f'answer{letter}']}" for letter in "ABC"),
            gold=(row.index(label, "123"),),
        )


def cleaned(text: str) -> str:
    """HellaSwag's text without the marks of WikiHow's markup."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def hellaswag(data: Data) -> Iterator[Example]:
    """The beginning of a description, four endings."""
    for row in data.json_lines("hellaswag/hellaswag_val.jsonl"):
        second = row["ctx_b"][:1].upper() + row["ctx_b"][1:]
        yield Example(
            id=str(row.number),
            question=cleaned(f"{row['activity_label']}: {row['ctx_a']} {second}"),
            options=tuple(f" {cleaned(ending)}" for ending in row["endings"]),
            gold=(row.index(str(row["label"]), "0123"),),
        )


def winogrande(data: Data) -> Iterator[Example]:
    """Each option fills the blank; what follows the blank is scored (partial scoring)."""
    for row in data.json_lines("winogrande/dev.jsonl"):
        before, blank, after = row["sentence"].partition("_")
        if not blank:
            raise row.error("the sentence has no blank (_)")
        contexts = (before + row["option1"], before + row["option2"])
        yield Example(
            id=row["qID"],
            question=contexts[0],
            contexts=contexts,
            options=(f" {after.strip()}",) * 2,
            gold=(row.index(row["answer"], "12"),),
        )


def _arc(data: Data, file: str) -> Iterator[Example]:
    for row in data.json_lines(file):
        choices = row["question"]["choices"]
        labels = [choice["label"] for choice in choices]
        if row["answerKey"] not in labels:
            raise row.error(f"answerKey is {row['answerKey']!r}; expected one of {', '.join(labels)}")
        yield Example(
            id=row["id"],
            question=f"Question: {row['question']['stem']}\nAnswer:",
            options=tuple(f" {choice['text']}" for choice in choices),
            gold=(labels.index(row["answerKey"]),),
        )


def openbookqa(data: Data) -> Iterator[Example]:
    """A stem that an option completes, without the facts of the open book."""
    for row in data.table("openbookqa/test.tsv", separator="\t"):
        before, *parts = re.split(r"\s*\(([A-D])\) ", row["Choices"])
        if before or parts[::2] != list("ABCD"):
            raise row.error("Choices is not of the form (A) … (B) … (C) … (D) …")
        yield Example(
            id=row["ID"],
            question=row["Question Stem"],
            options=tuple(f" {text.strip()}" for text in parts[1::2]),
            gold=(row.index(row["Answer Key"], "ABCD"),),
        )


_BASIS = {"prompt": "[C]", "normalisation": "[P]", "metric": "[P]"}
_task = partial(Task, group="commonsense", basis=_BASIS)

TASKS = (
    _task(
        name="boolq",
        source="Clark et al. 2019; SuperGLUE's val.jsonl",
        total=3270,
        read=boolq,
        normalisation="answer-context",
    ),
    _task(name="piqa", source="Bisk et al. 2020; valid.jsonl, valid-labels.lst", total=1838, read=piqa),
    _task(name="siqa", source="Sap et al. 2019; dev.jsonl, dev-labels.lst", total=1954, read=siqa),
    _task(name="hellaswag", source="Zellers et al. 2019; hellaswag_val.jsonl", total=10042, read=hellaswag),
    _task(
        name="winogrande",
        source="Sakaguchi et al. 2021; winogrande_1.1 dev.jsonl",
        basis=_BASIS | {"normalisation": "[C]"},
        total=1267,
        read=winogrande,
        normalisation="none",  # the same text is scored after either option
    ),
    _task(
        name="arc_easy",
        source="Clark et al. 2018; ARC-Easy-Test.jsonl",
        total=2376,
        read=partial(_arc, file="arc/ARC-Easy-Test.jsonl"),
    ),
    _task(
        name="arc_challenge",
        source="Clark et al. 2018; ARC-Challenge-Test.jsonl",
        total=1172,
        read=partial(_arc, file="arc/ARC-Challenge-Test.jsonl"),
    ),
    _task(
        name="openbookqa",
        source="Mihaylov et al. 2018; Main/test.tsv",
        total=500,
        read=openbookqa,
        normalisation="answer-context",
    ),
)
