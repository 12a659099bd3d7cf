"""Code generation (paper section 3.5, Table 8): HumanEval, zero-shot, and MBPP, 3-shot.

pass@1 is sampled at temperature 0.1, pass@100 and pass@80 at 0.8 [P], by the unbiased estimator. Generated
programs run only in the sandbox.
"""

import ast
from collections.abc import Iterator, Sequence
from functools import partial

from puna.config import Sampling
from puna.evaluate.data import Data, Row
from puna.evaluate.task import Example, Task

HUMANEVAL_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
MBPP_TEST = range(11, 511)
MBPP_SHOTS = (2, 3, 4)


def humaneval(data: Data) -> Iterator[Example]:
    """A function's head and docstring; the model writes its body."""
    for row in data.json_lines("humaneval/HumanEval.jsonl.gz", "humaneval/HumanEval.jsonl"):
        yield Example(
            id=row["task_id"],
            question=row["prompt"],
            fields={
                "prompt": row["prompt"],
                "tests": f"{row['test']}\ncheck({row['entry_point']})\n",
                "entry": row["entry_point"],
                "solution": row["canonical_solution"],
            },
        )


def mbpp_tests(row: Row) -> str:
    """The program that tests a solution: its set-up, then all of `test_list`."""
    setup = row["test_setup_code"] + "\n" if row["test_setup_code"] else ""
    return (setup + "\n".join(row["test_list"]) + "\n").replace("\r\n", "\n")


def mbpp_example(row: Row) -> Example:
    """One of the 974 problems, whatever its split."""
    code = row["code"].replace("\r\n", "\n")
    return Example(
        id=str(row["task_id"]),
        question=_mbpp_question(row),
        fields={"prompt": "", "tests": mbpp_tests(row), "entry": _defined(code), "solution": code},
    )


def _defined(code: str) -> str:
    """The functions that a solution defines: one shadows a builtin, sum."""
    return " ".join(node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef))


def _mbpp_question(row: Row) -> str:
    tests = "\n".join(row["test_list"]).replace("\r\n", "\n")
    return (
        f"You are an expert Python programmer, and here is your task: {row['text']} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def mbpp(data: Data) -> Iterator[Example]:
    """The 500 test problems; all their tests are shown."""
    for row in data.json_lines("mbpp/mbpp.jsonl"):
        if row["task_id"] in MBPP_TEST:
            yield mbpp_example(row)


def mbpp_prefix(data: Data, shots: int, topic: str) -> tuple[str, Sequence[str]]:
    """Problems 2, 3 and 4 with their solutions."""
    rows = {row["task_id"]: row for row in data.json_lines("mbpp/mbpp.jsonl") if row["task_id"] in MBPP_SHOTS}
    if shots > len(MBPP_SHOTS):
        raise ValueError(f"mbpp has {len(MBPP_SHOTS)} shots, not {shots}; use fewer")
    shown = [mbpp_example(rows[id]) for id in MBPP_SHOTS[:shots]]
    return "", [f"{example.question}{example.fields['solution']}\n[DONE]\n\n" for example in shown]


_task = partial(
    Task,
    group="code",
    metric="pass@1",
    max_tokens=512,
    sampling=Sampling(temperature=0.1, top_p=0.95),
    passes=True,
    judge="sandbox",
)

TASKS = (
    _task(
        name="humaneval",
        source="Chen et al. 2021; HumanEval.jsonl.gz",
        basis={"prompt": "[P]", "shots": "[P]", "metric": "[P]", "temperature": "[P]", "stops": "[C]"},
        total=164,
        read=humaneval,
        stop=HUMANEVAL_STOPS,
    ),
    _task(
        name="mbpp",
        source="Austin et al. 2021; mbpp.jsonl, ids 11-510",
        basis={"prompt": "[C]", "shots": "[P]", "metric": "[P]", "temperature": "[P]", "stops": "[C]"},
        total=500,
        read=mbpp,
        prefix=mbpp_prefix,
        shots=3,
        stop=("\n[DONE]",),
    ),
)
