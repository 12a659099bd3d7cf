"""Model answers -> verdicts -> values of metrics. Pure: records alone are enough, the model is not asked.

options' log-likelihoods ──normalisation──> chosen ──> accuracy, mc1, mc2
sampled texts ──verdict each──> mean, pass@k, maj1@k
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from puna.evaluate.normalise import Normalisation, Option, choose, is_correct, mass_of_right, scores
from puna.evaluate.prompts import Prepared
from puna.evaluate.records import Record
from puna.evaluate.statistics import majority_at_k, pass_at_k
from puna.evaluate.task import Task, Verdict
from puna.generate.likelihood import Scored

KS = (1, 10, 80, 100, 256)  # of pass@k and maj1@k, as far as there are samples


def option_record(task: Task, prepared: Prepared, scored: Sequence[Scored]) -> Record:
    """The record's part that says what the model made of the options."""
    options = prepared.example.options
    count = len(options)
    bases: list[float | None] = [item.logprob for item in scored[count:]]
    bases = bases or [None] * count
    answers = [
        Option(text, item.logprob, len(row.continuation), base, item.greedy)
        for text, item, row, base in zip(options, scored[:count], prepared.rows[:count], bases, strict=True)
    ]
    record: Record = {"options": [asdict(answer) for answer in answers], "gold": list(prepared.example.gold)}
    return record | chosen(task, record)


def chosen(task: Task, record: Record, normalisation: Normalisation | None = None) -> Record:
    """Scores by all normalisations, the option chosen by one, and the metrics' values.

    Raises:
        ValueError: when the record lacks what the normalisation needs.
    """
    rule = normalisation or task.normalisation
    by_rule = scores([Option(**option) for option in record["options"]])
    values = _known(by_rule[rule], rule, record)
    gold = record["gold"]
    metrics = {task.metric: float(is_correct(values, gold, task.ties_are_wrong))}
    for other in task.also if normalisation is None else ():
        metrics[other] = float(is_correct(_known(by_rule[other], other, record), gold))
    if task.ties_are_wrong:
        metrics["mc2"] = mass_of_right([option["logprob"] for option in record["options"]], gold)
    best = choose(values)
    lead = "" if metrics[task.metric] else f"chose {best}, expected {', '.join(map(str, gold[:1]))} ({rule})"
    return {"scores": dict(by_rule), "chosen": best, "values": metrics, "why": lead}


def _known(values: Sequence[float | None], rule: str, record: Record) -> list[float]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        raise ValueError(
            f"example {record['id']} has no likelihoods given the answer context, which {rule} needs; "
            "score it again without --no-answer-context"
        )
    return known


def sample_values(task: Task, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics' values of one example with its judged samples; none where no judge scored them."""
    values = [sample["value"] for sample in samples]
    if any(value is None for value in values):
        return {}
    n = len(values)
    result: dict[str, float] = {}
    if task.passes:
        correct = sum(value == 1 for value in values)
        return {f"pass@{k}": pass_at_k(n, correct, k) for k in KS if k <= n}
    result[task.metric] = sum(values) / n
    for name in samples[0]["also"]:
        result[name] = sum(sample["also"][name] for sample in samples) / n
    if task.votes and n > 1:
        answers, right = [sample["answer"] for sample in samples], [value == 1 for value in values]
        result |= {f"maj1@{k}": majority_at_k(answers, right, k) for k in sorted({*KS, n}) if 1 < k <= n}
    return result


def sample_record(text: str, tokens: int, finish: str, verdict: Verdict) -> Record:
    """One sampled text with its verdict."""
    return {
        "text": text,
        "tokens": tokens,
        "finish": finish,
        "answer": verdict.answer,
        "value": verdict.value,
        "why": verdict.why,
        "also": dict(verdict.also),
    }
