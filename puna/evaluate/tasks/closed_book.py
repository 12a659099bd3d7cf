"""Closed-book question answering (paper section 3.2, Tables 4 and 5): NaturalQuestions and TriviaQA.

The model generates greedily; the answer is cut at the first line break and compared with the references by
exact match after lower-casing and removing articles, punctuation and repeated spaces [P].
"""

import random
from collections.abc import Iterator, Sequence
from functools import partial

from puna.evaluate.answers import Cut, exact_match, f1, first_line, normalised
from puna.evaluate.data import Data
from puna.evaluate.task import Example, Task, Verdict

HEADER = "Answer these questions:\n"
# The paper's one-shot examples (Figure 3 of Appendix A).
NQ_ONE_SHOT = ("Who sang who wants to be a millionaire in high society?", "Frank Sinatra")
TRIVIAQA_ONE_SHOT = ("In Scotland a bothy/bothie is a?", "House")
SEED = 2302
LONGEST_SHOT = 75  # characters of question and answer: 64 of them fit into 2,048 tokens [C]


def _asked(question: str) -> str:
    """The question with its first letter raised and one question mark."""
    question = question.strip()
    return question[:1].upper() + question[1:] + ("" if question.endswith("?") else "?")


def _shots(first: tuple[str, str], pool: list[tuple[str, str]], count: int) -> tuple[str, Sequence[str]]:
    """The paper's example, then others of the pool: the same for all questions."""
    short = [(q, a) for q, a in pool if len(q) + len(a) <= LONGEST_SHOT and q != first[0]]
    random.Random(SEED).shuffle(short)
    if count > len(short) + 1:
        raise ValueError(f"{count} shots, but the pool holds {len(short) + 1} short enough; use fewer")
    chosen = [first, *short][:count]
    return HEADER, [f"Q: {question}\nA: {answer}\n" for question, answer in chosen]


def nq(data: Data) -> Iterator[Example]:
    """Open questions without articles; any of several answers counts."""
    for row in data.json_lines("nq_open/NQ-open.dev.jsonl"):
        question = f"Q: {_asked(row['question'])}\nA:"
        yield Example(id=str(row.number), question=question, references=tuple(row["answer"]))


def nq_prefix(data: Data, shots: int, topic: str) -> tuple[str, Sequence[str]]:
    """Shots from EfficientQA's dev set, which shares no question with NQ-open's."""
    pool: list[tuple[str, str]] = []
    if shots > 1:
        rows = data.json_lines("nq_open/NQ-open.efficientqa.dev.1.1.jsonl")
        pool = [(_asked(row["question"]), row["answer"][0]) for row in rows]
    return _shots(NQ_ONE_SHOT, pool, shots)


def triviaqa(data: Data) -> Iterator[Example]:
    """The verified Wikipedia dev set: "the dev set of the filtered set"."""
    for row in data.json_lines("triviaqa/wikipedia-dev.nocontext.jsonl"):
        answer = row["Answer"]
        yield Example(
            id=row["QuestionId"],
            question=f"Q: {_asked(row['Question'])}\nA:",
            references=tuple(dict.fromkeys([answer["Value"], *answer["Aliases"]])),
        )


def triviaqa_prefix(data: Data, shots: int, topic: str) -> tuple[str, Sequence[str]]:
    """Shots from a published sample, less its questions that the test set holds: two thirds of them."""
    pool: list[tuple[str, str]] = []
    if shots > 1:
        tested = {normalised(example.question[2:-2]) for example in triviaqa(data)}
        for row in data.json_lines("triviaqa/triviaqa_sm_sub.llm-foundry.jsonl"):
            question = row["context"].removeprefix("Question: ").removesuffix("\nAnswer:")
            if normalised(question) not in tested and '""' not in question:
                pool.append((_asked(question), row["answer"]))
    return _shots(TRIVIAQA_ONE_SHOT, pool, shots)


def check(example: Example, text: str, cut: Cut = "final") -> Verdict:
    """Exact match; F1 beside it."""
    answer = first_line(text, cut)
    matches = exact_match(answer, example.references)
    return Verdict(float(matches), normalised(answer), also={"f1": f1(answer, example.references)})


_BASIS = {"prompt": "[P]", "shots": "[C]", "metric": "[P]", "cut": "[P]", "max tokens": "[C]"}

_task = partial(
    Task,
    group="closed-book",
    basis=_BASIS,
    metric="exact match",
    check=check,
    max_tokens=24,
    stop=("\n",),
)

TASKS = (
    _task(
        name="nq",
        source="Kwiatkowski et al. 2019, Lee et al. 2019; NQ-open.dev.jsonl",
        total=3610,
        read=nq,
        prefix=nq_prefix,
    ),
    _task(
        name="triviaqa",
        source="Joshi et al. 2017; wikipedia-dev",
        total=7993,
        read=triviaqa,
        prefix=triviaqa_prefix,
    ),
)

FIRST_CUT = partial(check, cut="first")
