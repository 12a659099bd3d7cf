"""The verbs that evaluate a model and look at what came out."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from puna.cli.common import Json, Many, print_result
from puna.devices import DeviceName
from puna.extras import require

if TYPE_CHECKING:
    from puna.evaluate.harness import Job, Judges
    from puna.evaluate.model import Model

Normalisation = Literal["none", "char", "byte", "token", "answer-context"]

app = App(name="eval", help="Evaluate a model on the paper's benchmarks; recount, view and compare results.")


@app.default
def evaluate(
    *,
    model: str,
    tasks: Annotated[tuple[str, ...], Many] = ("llama",),
    data: Path = Path("data/eval"),
    out: Path = Path("runs/eval"),
    limit: int | None = None,
    shots: Annotated[tuple[int, ...], Many] = (),
    samples: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    max_tokens: int | None = None,
    seed: int = 1,
    normalisation: Normalisation | None = None,
    answer_context: Annotated[bool, Parameter(negative="--no-answer-context")] = True,
    cut: Literal["final", "first"] = "final",
    control: bool = False,
    contamination: Path | None = None,
    weights: Literal["bf16", "int8", "int4", "fp32"] | None = None,
    max_batch: int = 16,
    device: DeviceName = "auto",
    endpoint_model: str = "",
    toxicity: str | None = None,
    truth: str | None = None,
    unsafe_exec: bool = False,
    json: Json = False,
) -> int:
    """Evaluate a model; run again, the same command resumes.

    Parameters
    ----------
    model
        A run directory, a converted model, a .gguf file, or the address of an OpenAI-compatible endpoint
        (http://…/v1), which can only do tasks that generate. The key of an endpoint: OPENAI_API_KEY.
    tasks
        Names of tasks or groups (llama, commonsense, closed-book, reading, math, code, mmlu, bias), or files
        with your own (.py, .yaml).
    data
        Directory of the benchmark files in their original formats.
    out
        Directory of the results: a file of records per task, results.json.
    limit
        Evaluate only the first examples of each task.
    shots
        Numbers of solved examples in the prompt; defaults to each task's own.
    samples
        Texts to sample per prompt: pass@k and maj1@k need at least k.
    temperature
        Sampling temperature; defaults to each task's own.
    top_p
        Sample from the fewest tokens of this total probability; defaults to each task's own.
    max_tokens
        Longest generated text; defaults to each task's own.
    seed
        Random seed of sampling.
    normalisation
        How likelihoods of options are normalised; defaults to each task's own.
    answer_context
        Also score options given "Answer:" alone, which the normalisation answer-context needs.
    cut
        Where a closed-book answer ends: at the line break, less one final dot or comma; or at the first one.
    control
        Also score each task with the questions of other examples; a score that does not fall is no score.
    contamination
        Directory of token shards; count the test items that share 13 tokens in a row with them.
    weights
        Precision of the weights in memory; defaults to the precision of training.
    max_batch
        Maximum number of texts that are generated concurrently.
    device
        Where to compute; auto is a CUDA device where there is one, else the CPU.
    endpoint_model
        Model name to send to an endpoint; defaults to the first that it lists.
    toxicity
        Judge of toxicity: a directory with a Hugging Face classifier; or `perspective`, with the key in
        PERSPECTIVE_API_KEY. PerspectiveAPI ends with 2026.
    truth
        Judge of truthfulness: a model behind this OpenAI-compatible endpoint.
    unsafe_exec
        Run generated programs without isolation, with limits on resources only.
    """
    import dataclasses
    import sys

    from puna.devices import choose_device, gpus
    from puna.energy import Meter, of_folder
    from puna.evaluate import harness, results
    from puna.evaluate.data import Data
    from puna.evaluate.harness import Options
    from puna.evaluate.tasks import closed_book, find
    from puna.files import write_json
    from puna.progress import Bar
    from puna.rundir import ENERGY

    chosen = find(tasks)
    if cut == "first":
        chosen = [dataclasses.replace(t, check=closed_book.FIRST_CUT) if t.check is closed_book.check else t
                  for t in chosen]  # fmt: skip
    sampling = limit, tuple(shots), samples, temperature, top_p, max_tokens, seed
    options = Options(*sampling, answer_context, normalisation, control)
    files = Data(data)
    judges = _judges(toxicity, truth, unsafe_exec, any(task.judge == "sandbox" for task in chosen))
    asked = _model(model, weights, max_batch, device, endpoint_model)
    jobs, missing = harness.plan(chosen, files, asked, options, judges)
    for row in missing:
        print(f"{row['task']} is not scored: {row['why']}", file=sys.stderr)
    read, generated = harness.estimate(jobs)
    print(_announcement(jobs, asked, read, generated), file=sys.stderr)
    began = time.monotonic()
    overlap = _contaminated(contamination, jobs, asked) if contamination else {}
    used = () if model.startswith("http") else gpus(choose_device(device))
    with (
        Meter(used, out / ENERGY),
        Bar("eval", read + generated, "tokens", out / "progress.jsonl") as bar,
    ):
        found = harness.run(jobs, asked, out, options, lambda label, n: bar.advance(n, label))
    for result in found:
        result |= overlap.get(result["label"], {})
    energy = of_folder(out / ENERGY)
    run: dict[str, Any] = {
        "model": asked.name,
        "model_digest": asked.digest,
        "weights": weights,
        "data": files.digests(),
        "options": dataclasses.asdict(options) | {"cut": cut},
        "seconds": round(time.monotonic() - began, 3),
        "energy": dataclasses.asdict(energy),
        "results": [*found, *missing],
    }
    write_json(out / "results.json", run)
    if not any(result["n"] for result in found):
        raise ValueError(
            f"no example fits the model's context of {asked.context:,} tokens; "
            "give fewer --shots or --max-tokens, or a model with a longer context"
        )
    if json:
        print_result(run, True, [])
    else:
        results.print_table(run["results"])
        print(energy)
        print(f"{out}/results.json   look at every example: puna eval view {out}")
    return 0


def _judges(toxicity: str | None, truth: str | None, unsafe: bool, has_code: bool) -> "Judges":
    from puna.evaluate import judges, sandbox
    from puna.evaluate.task import Task

    found: dict[str, Any] = {"sandbox": lambda task: judges.Sandbox(task, unsafe)}
    if has_code and not unsafe and (why := sandbox.problem()):
        raise ValueError(why)
    if toxicity == "perspective":
        require("httpx2")
        from puna.evaluate.perspective import Perspective

        perspective = Perspective(os.environ.get("PERSPECTIVE_API_KEY", ""))
        found["toxicity"] = lambda task: perspective
    elif toxicity:
        classifier = judges.Classifier(Path(toxicity))
        found["toxicity"] = lambda task: classifier
    if truth:
        require("httpx2")
        from puna.evaluate.endpoint import Endpoint

        judge = judges.TruthJudge(Endpoint(truth, key=os.environ.get("OPENAI_API_KEY", "")))

        def same(task: Task) -> judges.Judge:
            return judge

        found["truth"] = same
    return found


def _model(model: str, weights: str | None, max_batch: int, device: DeviceName, name: str) -> "Model":
    if model.startswith(("http://", "https://")):
        require("httpx2")
        from puna.evaluate.endpoint import Endpoint

        return Endpoint(model, name, os.environ.get("OPENAI_API_KEY", ""))
    from puna.api import find_model
    from puna.evaluate.model import load_model

    return load_model(find_model(model), model, weights, max_batch, device=device)


def _announcement(jobs: "list[Job]", model: "Model", read: int, generated: int) -> str:
    """What will be computed, and about how long it takes."""
    from puna.evaluate.model import rates
    from puna.files import human_seconds

    examples = sum(len(job.examples) for job in jobs)
    said = f"{len(jobs)} tasks, {examples:,} examples: about {read:,} tokens of prompts and options"
    said += f", at most {generated:,} generated" if generated else ""
    measured = rates(model, bool(generated))
    if measured:
        seconds = read / measured[0] + (generated / measured[1] if generated else 0)
        said += f"; about {human_seconds(seconds)}"
    return said


def _contaminated(shards: Path, jobs: "list[Job]", model: "Model") -> dict[str, dict[str, Any]]:
    from puna.evaluate.contamination import overlap

    return overlap(shards, {job.label: job.examples for job in jobs}, model)


def _run(run: Path) -> dict[str, Any]:
    from puna.files import read_json

    if not (run / "results.json").is_file():
        raise ValueError(f"{run} holds no finished evaluation (no results.json); run: puna eval")
    found: dict[str, Any] = read_json(run / "results.json")
    return found


@app.command
def recount(
    run: Path,
    *,
    tasks: Annotated[tuple[str, ...], Many] = (),
    normalisation: Normalisation | None = None,
    data: Path = Path("data/eval"),
    toxicity: str | None = None,
    truth: str | None = None,
    json: Json = False,
) -> int:
    """Compute every number of a run again from its records, without the model.

    Parameters
    ----------
    run
        Directory of an evaluation.
    tasks
        Files with your own tasks, if the run had any.
    normalisation
        Another normalisation of the options' likelihoods; defaults to each task's own.
    data
        Directory of the benchmark files; needed only to judge texts again.
    toxicity
        Judge the texts again by this judge of toxicity.
    truth
        Judge the texts again by the model behind this endpoint.
    """
    from puna.evaluate import harness, results
    from puna.evaluate.data import Data
    from puna.evaluate.tasks import TASKS, find

    known = {**TASKS, **{task.name: task for task in find(tasks)}}
    judges = _judges(toxicity, truth, False, False)
    found = []
    for before in _run(run)["results"]:
        if "label" not in before:
            found.append(before)
            continue
        task, path = known[before["task"]], run / f"{before['label']}.jsonl"
        count = before["n"] + before["skipped"]
        if task.judge in judges and task.judge != "sandbox":
            judge = judges[task.judge](task)
            records = list(harness.rejudged(task, path, Data(data), judge))[:count]
            found.append(before | results.summarised(task, records) | {"judge": judge.identity})
        else:
            found.append(before | results.recount(task, path, normalisation, count))
    if json:
        print_result({"results": found}, True, [])
    else:
        results.print_table(found)
    return 0


@app.command
def view(run: Path, *, out: Path | None = None) -> int:
    """Write one HTML file that shows every example of a run.

    Parameters
    ----------
    run
        Directory of an evaluation.
    out
        The HTML file; defaults to view.html in the run.
    """
    from puna.evaluate.view import write_page

    target = out or run / "view.html"
    write_page(run, _run(run), target)
    print(target)
    return 0


@app.command
def compare(first: Path, second: Path, *, flipped: int = 5, json: Json = False) -> int:
    """Compare two runs on the same examples: exact McNemar, paired bootstrap, Holm's correction.

    Parameters
    ----------
    first
        Directory of an evaluation.
    second
        Directory of another.
    flipped
        Examples to list per task that only one run has right.
    """
    from puna.evaluate.compare import compare_runs, lines

    found = compare_runs(first, _run(first), second, _run(second))
    print_result({"comparisons": found}, json, lines(found, flipped))
    return 0
