"""Massive multitask language understanding (paper section 3.6, Tables 9 and 16): 57 subjects, 5-shot.

The shots are the subject's five dev questions [P]; the prompt is that of Hendrycks et al. [C]. The average
is over all 14,042 questions, and anatomy counts under Other [A]: so Table 9 follows from Table 16.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from puna.evaluate.data import Data, Row
from puna.evaluate.task import Example, Task

CATEGORIES = {
    "humanities": """
        formal_logic high_school_european_history high_school_us_history high_school_world_history
        international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy
        prehistory professional_law world_religions""",
    "stem": """
        abstract_algebra astronomy college_biology college_chemistry college_computer_science
        college_mathematics college_physics computer_security conceptual_physics electrical_engineering
        elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science
        high_school_mathematics high_school_physics high_school_statistics machine_learning""",
    "social_sciences": """
        econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics
        high_school_microeconomics high_school_psychology human_sexuality professional_psychology
        public_relations security_studies sociology us_foreign_policy""",
    "other": """
        anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management
        marketing medical_genetics miscellaneous nutrition professional_accounting professional_medicine
        virology""",
}
CATEGORY = {subject: category for category, subjects in CATEGORIES.items() for subject in subjects.split()}
COLUMNS = ("question", "A", "B", "C", "D", "answer")


def rows_of(data: Data, split: str, subject: str) -> Iterator[Row]:
    """The rows of a subject's file.

    Raises:
        ValueError: an answer that is none of A, B, C, D.
    """
    for row in data.table(f"mmlu/{split}/{subject}_{split}.csv", columns=COLUMNS):
        row.index(row["answer"], "ABCD")  # that it is one of them
        yield row


def _question(row: Row, original: bool) -> str:
    options = "".join(f"\n{letter}. {row[letter]}" for letter in "ABCD")
    # White space around 963 of the questions moves a score by up to 0.1 nats; lm-eval removes it too.
    question = row["question"] if original else row["question"].strip()
    return f"{question}{options}\nAnswer:"


def mmlu(data: Data, original: bool = False) -> Iterator[Example]:
    """The test questions of all subjects whose file is there; at least one must be."""
    folder = data.first("mmlu/test")
    subjects = [subject for subject in sorted(CATEGORY) if (folder / f"{subject}_test.csv").is_file()]
    if not subjects:
        raise ValueError(f"{folder} holds no SUBJECT_test.csv; download MMLU again")
    for subject in subjects:
        for row in rows_of(data, "test", subject):
            yield Example(
                id=f"{subject}-{row.number}",
                question=_question(row, original),
                options=(" A", " B", " C", " D"),
                gold=("ABCD".index(row["answer"]),),
                topic=subject,
                groups=(CATEGORY[subject], subject),
            )


def prefix(data: Data, shots: int, topic: str, original: bool = False) -> tuple[str, Sequence[str]]:
    """The subject's header and its dev questions with their answers."""
    space = " " if original else ""
    name = topic.replace("_", " ")
    header = f"The following are multiple choice questions (with answers) about {space}{name}.\n\n"
    rows = list(rows_of(data, "dev", topic))[:shots]
    return header, [f"{_question(row, original)} {row['answer']}\n\n" for row in rows]


MMLU = Task(
    name="mmlu",
    group="mmlu",
    source="Hendrycks et al. 2021; test/*.csv, shots from dev/*.csv",
    basis={"prompt": "[C]", "shots": "[P]", "normalisation": "[C]", "average": "[A]", "metric": "[P]"},
    total=14042,
    read=mmlu,
    prefix=prefix,
    shots=5,
    normalisation="none",  # the options are single letters
)

TASKS = (
    MMLU,
    # As the original program writes them: "about  anatomy." with two spaces, and questions as they are.
    replace(
        MMLU,
        name="mmlu_original_header",
        variant_of="mmlu",
        group="",
        read=partial(mmlu, original=True),
        prefix=partial(prefix, original=True),
    ),
)
