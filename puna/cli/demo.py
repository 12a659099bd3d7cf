"""The verb demo: the whole pipeline on a small sample."""

from pathlib import Path

from puna.cli.common import Json


def demo(*, out: Path = Path("runs/demo"), json: Json = False) -> int:
    """Run the whole pipeline, from raw dumps to a trained model, in minutes on two CPU cores.

    Parameters
    ----------
    out
        Directory to write; the same command resumes an interrupted demo.
    """
    from puna.train.allocator import keep_freed_memory

    keep_freed_memory()
    from puna.demo import run_demo

    return run_demo(out, json)
