"""The verb report: a page about training runs, or a model card."""

import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts.types import PositiveInt

from puna.cli.common import Json, Many, print_result
from puna.files import MANIFEST


def report(
    runs: list[Path],
    /,
    *,
    eval: Annotated[tuple[Path, ...], Many] = (),
    out: Path | None = None,
    format: Literal["html", "md"] = "html",
    axis: Literal["tokens", "steps", "FLOPs"] = "tokens",
    watch: bool = False,
    every: PositiveInt = 10,
    json: Json = False,
) -> None:
    """Write the report of a training run as one HTML page; several runs are overlaid.

    Parameters
    ----------
    runs
        Run directories that `puna train` or `puna finetune` wrote.
    eval
        Directories that `puna eval` wrote; defaults to those in the run's directory.
    out
        File to write; defaults to RUN/report.html, comparison.html for several runs, RUN/README.md for md.
    format
        html: the page; md: a model card for Hugging Face.
    axis
        Horizontal axis of the charts; the page can change it where scripts run.
    watch
        Build the page again until the run ends or Ctrl-C is pressed; an open page reloads itself.
    every
        Seconds between builds with --watch.
    """
    from puna.report.card import build_card
    from puna.report.page import build_report

    if format == "md":
        if len(runs) > 1 or watch:
            raise ValueError("a model card describes one run, finished or not; give one, without --watch")
        card = build_card(runs[0], out, eval)
        print_result({"report": str(card)}, json, [f"model card: {card}"])
        return
    if len(runs) > 1 and eval:
        raise ValueError("--eval needs a single run; of several, the evaluations in their folders are shown")

    def build(refresh: int) -> Path:
        return build_report(runs, out, eval, axis, _paired_tests(runs), refresh)

    page = _watched(build, runs, every, json) if watch else build(0)
    print_result({"report": str(page)}, json, [f"report: {page}"])


def _watched(build: Callable[[int], Path], runs: list[Path], every: int, json: bool) -> Path:
    """Build the page until all runs are finished; the last one does not reload itself."""
    page = None
    try:
        while not all((run / MANIFEST).is_file() for run in runs):
            page = build(every)
            if not json:
                print(f"\r{page}, built at {time.strftime('%H:%M:%S')}; Ctrl-C ends", end="", flush=True)
            time.sleep(every)
    except KeyboardInterrupt:
        pass
    if page and not json:
        print()
    return build(0)


def _paired_tests(runs: list[Path]) -> list[dict[str, Any]]:
    """Paired tests between the evaluations of every two runs; a row that says why where there are none."""
    from puna.evaluate.compare import compare_runs
    from puna.report.evaluations import read_evaluations

    rows: list[dict[str, Any]] = []
    evaluated = [(run, found) for run in runs if len(runs) > 1 for found in read_evaluations(run)[:1]]
    for (first, a), (second, b) in combinations(evaluated, 2):
        names = [str(first), str(second)]
        try:
            found = compare_runs(a.path, {"results": a.results}, b.path, {"results": b.results})
        except ValueError as error:
            rows.append({"runs": names, "why": str(error)})
            continue
        rows += [{**row, "runs": names} for row in found]
    return rows
