"""The verb report: a page about a training run."""

from pathlib import Path

from puna.cli.common import Json, print_result


def report(run: Path, /, *, json: Json = False) -> int:
    """Write the report of a training run as one HTML page.

    Parameters
    ----------
    run
        Run directory that `puna train` wrote.
    """
    from puna.report.page import build_report

    page = build_report(run)
    print_result({"report": str(page)}, json, [f"report: {page}"])
    return 0
