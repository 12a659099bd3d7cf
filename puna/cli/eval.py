"""The verbs that evaluate a model and look at what came out."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from puna.cli.common import Json, Many, print_result, quoted, say
from puna.devices import DeviceName
from puna.evaluate.normalise import Normalisation
from puna.evaluate.options import Options

eval = App(name="eval", help="Evaluate a model on the paper's benchmarks; recount, view and compare results.")
Changes = Parameter(name="*", consume_multiple=True, negative=None, negative_bool="no-", negative_iterable=())


@eval.default
def evaluate(
    *,
    model: str,
    tasks: Annotated[tuple[str, ...], Many] = ("llama",),
    data: Path = Path("data/eval"),
    out: Path = Path("runs/eval"),
    options: Annotated[Options, Changes] = Options(),  # noqa: B008 (frozen)
    contamination: Path | None = None,
    weights: Literal["bf16", "int8", "int4", "fp32"] | None = None,
    max_batch: int = 16,
    device: DeviceName = "auto",
    endpoint_model: str = "",
    toxicity: str | None = None,
    truth: str | None = None,
    unsafe_exec: bool = False,
    json: Json = False,
) -> None:
    """Evaluate a model; run again, the same command resumes.

    Parameters
    ----------
    model
        A run directory, a converted model, a .gguf file, or the address of an OpenAI-compatible endpoint
        (http://…/v1), which can only do tasks that generate; its API key is read from OPENAI_API_KEY.
    tasks
        Names of tasks or groups (llama, commonsense, closed-book, reading, math, code, mmlu, bias), or files
        with your own (.py, .yaml).
    data
        Directory of the benchmark files in their original formats.
    out
        Directory of the results: a file of records per task, results.json.
    contamination
        Directory of token shards; count the test items that share 13 tokens in a row with them.
    weights
        Precision of the weights in memory. Default: as in `puna generate`.
    max_batch
        Maximum number of texts that are generated concurrently.
    device
        Device that computes. auto: a CUDA device if there is one, else the CPU.
    endpoint_model
        Model name to send to an endpoint; defaults to the first that it lists.
    toxicity
        Judge of toxicity: a directory with a Hugging Face classifier; or `perspective`, with the key in
        PERSPECTIVE_API_KEY. PerspectiveAPI closes at the end of 2026.
    truth
        Judge of truthfulness: the address of an OpenAI-compatible endpoint.
    unsafe_exec
        Run generated programs without isolation, with limits on resources only.
    """
    from puna import api
    from puna.carbon import Energy

    run = api.evaluate(
        model, tasks, data, out, weights, device, max_batch, toxicity, truth, unsafe_exec,
        contamination, endpoint_model, say, **vars(options),
    )  # fmt: skip
    _print_table(run, json)
    if not json:
        print(Energy(**run["energy"]))
        print(f"{out}/results.json   look at every example: puna eval view {quoted(out)}")


def _print_table(run: dict[str, Any], json: bool) -> None:
    from puna.evaluate import results

    if json:
        print_result(run, json, ())
    else:
        results.print_table(run["results"])


def _run(run: Path) -> dict[str, Any]:
    from puna.files import read_json

    if not (run / "results.json").is_file():
        raise ValueError(f"{run} holds no finished evaluation (no results.json); run: puna eval")
    found: dict[str, Any] = read_json(run / "results.json")
    return found


@eval.command
def recount(
    run: Path,
    *,
    tasks: Annotated[tuple[str, ...], Many] = (),
    normalisation: Normalisation | None = None,
    data: Path = Path("data/eval"),
    toxicity: str | None = None,
    truth: str | None = None,
    json: Json = False,
) -> None:
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
        Judge the texts again by the model at this OpenAI-compatible endpoint.
    """
    from puna.evaluate import harness, results
    from puna.evaluate.data import Data
    from puna.evaluate.run import judges_of
    from puna.evaluate.tasks import TASKS, find

    known = {**TASKS, **{task.name: task for task in find(tasks)}}
    judges = judges_of(toxicity, truth)
    found = []
    for before in _run(run)["results"]:
        if "label" not in before:
            found.append(before)
            continue
        task, path = known[before["task"]], run / f"{before['label']}.jsonl"
        count = before["n"] + before["skipped"]
        if task.judge in judges and task.judge != "sandbox":
            judge = judges[task.judge]
            records = list(harness.rejudged(task, path, Data(data), judge))[:count]
            found.append(before | results.summarised(task, records) | {"judge": judge.identity})
        else:
            found.append(before | results.recount(task, path, normalisation, count))
    _print_table({"results": found}, json)


@eval.command
def view(run: Path, *, out: Path | None = None) -> None:
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


@eval.command
def compare(first: Path, second: Path, *, flipped: int = 5, json: Json = False) -> None:
    """Compare two runs on the same examples: exact McNemar, paired bootstrap, Holm's correction.

    Parameters
    ----------
    first
        Directory of an evaluation.
    second
        Directory of another evaluation.
    flipped
        Number of examples to list per task that only one of the runs answers correctly.
    """
    from puna.evaluate.compare import compare_runs, print_comparison

    found = compare_runs(first, _run(first), second, _run(second))
    if json:
        print_result({"comparisons": found}, json, ())
    else:
        print_comparison(found, flipped)
