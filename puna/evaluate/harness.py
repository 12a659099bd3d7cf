"""Tasks and a model -> records and results.

    examples ──a window at a time──> prepared ──> model ──> verdicts ──> records, in order, on disk at once

A window is what is computed together: rows that begin alike share what they begin with, and results do not
depend on where windows begin (see model.py). A run that was killed continues behind its last whole record.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from puna.evaluate import results
from puna.evaluate.data import Data
from puna.evaluate.judges import Judge, Nobody, Rule
from puna.evaluate.model import Model, Prompt
from puna.evaluate.options import Options
from puna.evaluate.prompts import Prepared, Prompter
from puna.evaluate.records import Record, RecordFile, described, iterate_records, record_key
from puna.evaluate.scoring import option_record, sample_record, sample_values
from puna.evaluate.task import Example, Task
from puna.evaluate.tasks import closed_book

WINDOW = 256  # examples that are computed together
_SAMPLED = 16  # examples per task that the estimate of tokens looks at


@dataclass(frozen=True)
class Job:
    """One task in one setting."""

    task: Task
    label: str
    """The name of its records."""
    shots: int
    examples: tuple[Example, ...]
    prompter: Prompter
    judge: Judge


Judges = Mapping[str, Judge]


def plan(
    tasks: Sequence[Task], data: Data, model: Model, options: Options, judges: Judges
) -> tuple[list[Job], list[results.Result]]:
    """The jobs of a run, and a row for every task whose data is missing.

    Raises:
        ValueError: when no task can be scored, with the first reason.
    """
    jobs: list[Job] = []
    missing: list[results.Result] = []
    for task in tasks:
        task = adjusted(task, options)
        try:
            examples = tuple(task.read(data))[: options.limit]
            if not examples:
                raise ValueError(f"{task.name} has no examples under {data.directory}")
            for shots in dict.fromkeys(options.shots if task.shots or "shots" in task.basis else ()) or [
                task.shots
            ]:
                prompter = Prompter(task, data, model, shots, options.answer_context)
                prompter.prefix(examples[0].topic)
                label = task.name if shots == task.shots else f"{task.name}-{shots}shot"
                judge = _judge(task, judges)
                jobs.append(Job(task, label, shots, examples, prompter, judge))
                if options.control:
                    jobs.append(Job(task, f"{label}.control", shots, swapped(examples), prompter, judge))
        except ValueError as error:
            missing.append({"task": task.name, "why": str(error)})
    if not jobs:
        raise ValueError(missing[0]["why"] if missing else "no tasks")
    return jobs, missing


def adjusted(task: Task, options: Options) -> Task:
    """A task with the options' sampling, and their cut of closed-book answers."""
    if task.is_choice:
        return task
    if options.cut == "first" and task.check is closed_book.check:
        task = replace(task, check=closed_book.FIRST_CUT)
    given = {"temperature": options.temperature, "top_p": options.top_p}
    drawn: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if "temperature" not in drawn and (options.samples or 1) > 1 and task.sampling.temperature == 0:
        drawn = {"temperature": 0.6, "top_p": 0.95} | drawn  # what maj1@k samples with [C]
    return replace(
        task,
        sampling=replace(task.sampling, seed=options.seed, **drawn),
        samples=options.samples or task.samples,
        max_tokens=options.max_tokens or task.max_tokens,
    )


def _judge(task: Task, judges: Judges) -> Judge:
    if task.check:
        return Rule(task.check)
    return judges.get(task.judge) or Nobody(f"no {task.judge} judge")


def swapped(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Each example with the question of the next one of its topic: a control that should score at chance."""
    topics: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        topics.setdefault(example.topic, []).append(index)
    result = list(examples)
    for places in topics.values():
        for place, index in enumerate(places):
            other = examples[places[(place + 1) % len(places)]]
            fits = len(other.contexts) == len(examples[index].contexts)
            contexts = other.contexts if fits else ()
            result[index] = replace(examples[index], question=other.question, contexts=contexts)
    return tuple(result)


def estimate(jobs: Sequence[Job]) -> tuple[int, int]:
    """About how many tokens a run computes: (of prompts and options, generated at most).

    What examples of a topic begin with is counted once for each topic.
    """
    read = generated = 0
    for job in jobs:
        step = max(1, len(job.examples) // _SAMPLED)
        sample = job.examples[::step][:_SAMPLED]
        topics = {example.topic for example in job.examples}
        header, shots = job.prompter.prefix(sample[0].topic)
        shared = len(header + "".join(shots))
        tokens = 0
        for prepared in job.prompter.prepare(sample):
            own = len(prepared.context) - shared if prepared.fits else 0
            tokens += int(len(prepared.tokens) * max(0, own) / max(1, len(prepared.context)))
            tokens += sum(len(row.continuation) for row in prepared.rows)
        read += tokens * len(job.examples) // len(sample) + shared // 4 * len(topics)
        if not job.task.is_choice:
            generated += job.task.max_tokens * job.task.samples * len(job.examples)
    return read, generated


def run(
    jobs: Sequence[Job], model: Model, out: Path, options: Options, progress: Callable[[str, int], None]
) -> list[results.Result]:
    """Score all jobs; `progress` is told of a job's label and tokens that were computed."""
    found = []
    for job in jobs:
        began, tokens = time.monotonic(), 0

        def count(n: int, job: Job = job) -> None:
            nonlocal tokens
            tokens += n
            progress(job.label, n)

        path = out / f"{job.label}.jsonl"
        file = RecordFile(path)
        try:
            for start in range(0, len(job.examples), WINDOW):
                window = job.examples[start : start + WINDOW]
                for records in _scored(job, job.prompter.prepare(window), model, file, count):
                    file.append(records)
        finally:
            file.close()
        result = results.recount(job.task, path, options.normalisation, len(job.examples))
        result |= {
            "label": job.label,
            "shots": job.shots,
            "samples": job.task.samples,
            "sampling": dataclasses.asdict(job.task.sampling),
            "judge": job.judge.identity if job.task.judge else None,
            "unit": job.task.unit,
            "seconds": round(time.monotonic() - began, 3),
            "tokens": tokens,
        }
        found.append(result)
    return with_controls(found)


def with_controls(found: Sequence[results.Result]) -> list[results.Result]:
    """Results, with those of controls inside the ones that they belong to."""
    controls = {result["label"]: result["metrics"] for result in found}
    kept = [result for result in found if not result["label"].endswith(".control")]
    for result in kept:
        if control := controls.get(f"{result['label']}.control"):
            result["control"] = control
    return kept


def _scored(
    job: Job, window: Sequence[Prepared], model: Model, file: RecordFile, count: Callable[[int], None]
) -> Iterator[list[Record]]:
    """The records of a window that are not in the file yet, in order."""
    task = job.task
    sampling = () if task.is_choice else (task.sampling, task.samples, task.max_tokens, task.stop)
    judge = job.judge.identity
    keys = [record_key(model, task, prepared, sampling, judge) for prepared in window]
    begin = 0
    while begin < len(window) and file.take(keys[begin]):
        begin += 1
    window, keys = window[begin:], keys[begin:]
    if not window:
        return
    known = [described(p, key, model.begins_with_bos) for p, key in zip(window, keys, strict=True)]
    for record, prepared in zip(known, window, strict=True):
        if not prepared.fits:
            record |= {"skipped": True, "values": {}, "why": f"{len(prepared.tokens)} tokens do not fit"}
    if task.is_choice:
        rows = [row for prepared in window for row in prepared.rows]
        scored = iter(model.score(rows, count))
        for record, prepared in zip(known, window, strict=True):
            if prepared.fits:
                record |= option_record(task, prepared, [next(scored) for _ in prepared.rows])
        yield known
        return
    yield from _generated(job, window, known, model, count)


def _generated(
    job: Job, window: Sequence[Prepared], known: list[Record], model: Model, count: Callable[[int], None]
) -> Iterator[list[Record]]:
    """Records of generated texts, as soon as all before them are done."""
    task, n = job.task, job.task.samples
    places = [place for place, prepared in enumerate(window) if prepared.fits]
    prompts = [
        Prompt(window[place].context, window[place].tokens, _seeded(task, window[place].example, sample),
               task.max_tokens, task.stop)
        for place in places
        for sample in range(n)
    ]  # fmt: skip
    texts: dict[int, list[Any]] = {place: [None] * n for place in places}
    written = ready = 0
    try:
        for index, generated in model.generate(prompts, count):
            texts[places[index // n]][index % n] = generated
            while ready < len(window) and (not window[ready].fits or all(texts[ready])):
                ready += 1
            if ready - written >= 8:
                begin, written = written, ready
                yield _judged(job, window[begin:ready], known[begin:ready], texts, begin)
    except ValueError:  # an endpoint that answers no more
        yield _judged(job, window[written:ready], known[written:ready], texts, written)
        raise
    yield _judged(job, window[written:], known[written:], texts, written)


def _judged(
    job: Job, window: Sequence[Prepared], known: list[Record], texts: Mapping[int, list[Any]], first: int
) -> list[Record]:
    pairs = [(p.example, g) for place, p in enumerate(window, first) for g in texts.get(place, ())]
    verdicts = iter(job.judge.judge([example for example, _ in pairs], [g.text for _, g in pairs]))
    for place, (record, prepared) in enumerate(zip(known, window, strict=True), first):
        if prepared.fits:
            samples = [sample_record(g.text, g.tokens, g.finish, next(verdicts)) for g in texts[place]]
            record |= {"references": list(prepared.example.references), "samples": samples}
            record["values"] = sample_values(job.task, samples)
    return known


def _seeded(task: Task, example: Example, sample: int) -> Any:
    """Sampling with a seed of the example's and sample's own, so that neither order nor limit matter."""
    text = f"{task.sampling.seed}/{task.name}/{example.id}/{sample}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    return replace(task.sampling, seed=seed)


def rejudged(task: Task, path: Path, data: Data, judge: Judge) -> Iterator[Record]:
    """Records with their texts judged again, without the model."""
    examples = {example.id: example for example in task.read(data)}
    for record in iterate_records(path):
        if "samples" in record and record["id"] in examples:
            texts = [sample["text"] for sample in record["samples"]]
            verdicts = judge.judge([examples[record["id"]]] * len(texts), texts)
            again = [
                sample_record(sample["text"], sample["tokens"], sample["finish"], verdict)
                for sample, verdict in zip(record["samples"], verdicts, strict=True)
            ]
            record |= {"samples": again, "values": sample_values(task, again)}
        yield record
