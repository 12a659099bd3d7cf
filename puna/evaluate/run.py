"""One evaluation from the model to results.json: what `puna eval` and `puna.evaluate` do.

tasks, data, judges ─> jobs ─announced─> records of each job ─> results.json: scores, digests, energy
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from puna.devices import DeviceName, choose_device, gpus
from puna.energy import Meter, of_folder
from puna.evaluate import harness, judges, sandbox
from puna.evaluate.contamination import overlap
from puna.evaluate.data import Data
from puna.evaluate.harness import Job, Judges
from puna.evaluate.model import EngineModel, Model, rates
from puna.evaluate.options import Options
from puna.evaluate.task import Task
from puna.extras import require
from puna.files import human_seconds, write_json
from puna.progress import Bar
from puna.rundir import ENERGY


def evaluate(
    model: Model,
    tasks: Sequence[Task],
    data: Data,
    out: Path,
    options: Options,
    found_judges: Judges,
    device: DeviceName = "auto",
    contamination: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    weights: str | None = None,
) -> dict[str, Any]:
    """Score the tasks and write results.json; returns its contents.

    Args:
        model: what is evaluated.
        tasks: what it is evaluated on; a task whose data is missing is named, and not scored.
        data: the benchmark files.
        out: directory of the records, which an interrupted evaluation resumes from.
        options: changes to the tasks' protocols.
        found_judges: see `judges_of`.
        device: device that computes; its energy is measured.
        contamination: directory of token shards, in which the tasks' examples are looked for.
        say: called with a line on what will be computed, and with one for each task that is not scored.
        weights: precision of the weights in memory, for the record.

    Raises:
        ValueError: no task can be scored, no example fits the model's context, a file or a server fails.
    """
    jobs, missing = harness.plan(tasks, data, model, options, found_judges)
    for row in missing:
        say(f"{row['task']} is not scored: {row['why']}")
    read, generated = harness.estimate(jobs)
    say(_announcement(jobs, model, read, generated))
    began = time.monotonic()
    also = overlap(contamination, {job.label: job.examples for job in jobs}, model) if contamination else {}
    measured = gpus(choose_device(device)) if isinstance(model, EngineModel) else ()
    with (
        Meter(measured, out / ENERGY),
        Bar("eval", read + generated, "tokens", out / "progress.jsonl") as bar,
    ):
        found = harness.run(jobs, model, out, options, lambda label, n: bar.advance(n, label))
    for result in found:
        result |= also.get(result["label"], {})
    run: dict[str, Any] = {
        "model": model.name,
        "model_digest": model.digest,
        "weights": weights,
        "data": data.digests(),
        "options": dataclasses.asdict(options),
        "seconds": round(time.monotonic() - began, 3),
        "energy": dataclasses.asdict(of_folder(out / ENERGY)),
        "results": [*found, *missing],
    }
    write_json(out / "results.json", run)
    if not any(result["n"] for result in found):
        raise ValueError(
            f"no example fits the model's context of {model.context:,} tokens; "
            "give fewer --shots or --max-tokens, or a model with a longer context"
        )
    return run


def judges_of(
    toxicity: str | None = None, truth: str | None = None, unsafe: bool = False, tasks: Sequence[Task] = ()
) -> Judges:
    """The judges of texts that are not compared with references, by the kind that tasks name.

    Args:
        toxicity: directory of a Hugging Face classifier, or `perspective`.
        truth: address of an OpenAI-compatible endpoint.
        unsafe: run generated programs without isolation.
        tasks: what is evaluated: programs are run if one of them has any.

    Raises:
        ValueError: programs are to be run, and cannot be isolated here.
        MissingExtra: an endpoint needs the extra `fetch`.
    """
    found: dict[str, judges.Judge] = {"sandbox": judges.Sandbox(unsafe)}
    has_code = any(task.judge == "sandbox" for task in tasks)
    if has_code and not unsafe and (why := sandbox.problem()):
        raise ValueError(why)
    if toxicity == "perspective":
        require("httpx2")
        from puna.evaluate.perspective import Perspective

        found["toxicity"] = Perspective(os.environ.get("PERSPECTIVE_API_KEY", ""))
    elif toxicity:
        found["toxicity"] = judges.Classifier(Path(toxicity))
    if truth:
        require("httpx2")
        from puna.evaluate.endpoint import Endpoint

        found["truth"] = judges.TruthJudge(Endpoint(truth, key=os.environ.get("OPENAI_API_KEY", "")))
    return found


def _announcement(jobs: Sequence[Job], model: Model, read: int, generated: int) -> str:
    """What will be computed, and about how long it takes."""
    examples = sum(len(job.examples) for job in jobs)
    said = f"{len(jobs)} tasks, {examples:,} examples: about {read:,} tokens of prompts and options"
    said += f", at most {generated:,} generated" if generated else ""
    measured = rates(model, bool(generated))
    if measured:
        seconds = read / measured[0] + (generated / measured[1] if generated else 0)
        said += f"; about {human_seconds(seconds)}"
    return said
