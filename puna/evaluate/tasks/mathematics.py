"""Mathematical reasoning (paper section 3.4, Table 7): GSM8K and MATH.

The paper reports greedy decoding and maj1@k (k = 100 for GSM8K, 256 for MATH) [P]; the prompts are the chain
of thought of Wei et al. 2022 and the four examples of Lewkowycz et al. 2022 (Minerva) [C].
"""

from collections.abc import Iterator, Sequence
from functools import partial

from puna.evaluate import math_answers
from puna.evaluate.answers import gold_number, number
from puna.evaluate.data import Data
from puna.evaluate.task import Example, Task, Verdict


def gsm8k(data: Data) -> Iterator[Example]:
    """Grade-school problems; the answer is a number."""
    for row in data.json_lines("gsm8k/test.jsonl"):
        if "####" not in row["answer"]:
            raise row.error("the answer has no ####")
        question = f"Q: {row['question']}\nA:"
        yield Example(id=str(row.number), question=question, references=(gold_number(row["answer"]),))


def gsm8k_prefix(data: Data, shots: int, topic: str) -> tuple[str, Sequence[str]]:
    """Eight problems with their chains of thought."""
    rows = list(data.json_lines("fewshot/gsm8k_cot_8.jsonl"))[:shots]
    return "", [f"Q: {row['question']}\nA: {row['answer']}\n\n" for row in rows]


def gsm8k_check(example: Example, text: str) -> Verdict:
    """The number after the first answer mark equals the reference."""
    answer = number(text)
    return Verdict(float(answer == example.references[0]), answer, "" if answer else "no answer mark")


def math(data: Data) -> Iterator[Example]:
    """Competition problems; the answer is in the solution's last \\boxed{}."""
    for name, row in data.tree("math/test", "math/MATH.tar", "math/sample_test.tar.gz", suffixes=(".json",)):
        answer = math_answers.boxed(row["solution"])
        if answer is None:
            raise row.error("the solution has no \\boxed{}")
        subject, level = row["type"], row["level"]
        yield Example(
            id=name.removeprefix("MATH/test/").removesuffix(".json"),
            question=f"Problem:\n{row['problem']}\n\nSolution:",
            references=(answer,),
            groups=(subject, level),
        )


def math_prefix(data: Data, shots: int, topic: str) -> tuple[str, Sequence[str]]:
    """Four problems with their solutions, which end in "Final Answer: …"."""
    rows = list(data.json_lines("fewshot/math_minerva_4.jsonl"))[:shots]
    return "", [f"Problem:\n{row['problem']}\n\nSolution: {row['solution']}\n\n" for row in rows]


def math_check(example: Example, text: str) -> Verdict:
    """Minerva's rule on strings decides; where strings differ, computer algebra. Both are reported."""
    answer = math_answers.final_answer(text)
    if answer is None:
        return Verdict(0.0, "", "no final answer", {"strict": 0.0})
    reference = example.references[0]
    strict = math_answers.same_string(answer, reference)
    equal = strict or math_answers.same_value(answer, reference)
    why = "same string" if strict else "same value" if equal else ""
    return Verdict(float(equal), math_answers.normalised(answer), why, {"strict": float(strict)})


_BASIS = {"prompt": "[C]", "shots": "[C]", "metric": "[P]", "sampling": "[C]", "max tokens": "[C]"}

_task = partial(Task, group="math", basis=_BASIS, votes=True)

TASKS = (
    _task(
        name="gsm8k",
        source="Cobbe et al. 2021; test.jsonl",
        total=1319,
        read=gsm8k,
        prefix=gsm8k_prefix,
        shots=8,
        check=gsm8k_check,
        max_tokens=256,
        stop=("\n\nQ:", "\nQ:"),
    ),
    _task(
        name="math",
        source="Hendrycks et al. 2021; MATH/test",
        total=5000,
        read=math,
        prefix=math_prefix,
        shots=4,
        check=math_check,
        max_tokens=512,
        stop=("\n\nProblem:", "\nProblem:"),
    ),
)
