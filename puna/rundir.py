"""The names inside a run directory: what training writes, and generation, reports and conversion read.

    RUN/
      config.json            the resolved configuration, written first
      tokenizer.model        the vocabulary of the data
      metrics.jsonl          a line per step, validation and start
      samples.jsonl          continuations of fixed prompts
      progress.jsonl         what the progress bar shows
      checkpoints/
        step-000100/         weights.safetensors, optimizer.safetensors, state.json; from several machines a
                             file of each: weights-00001-of-00002.safetensors
      energy/                what each process of each start used
      trace.json             the profile, when one was asked for
      report.html
      manifest.json          written last: what the run was made of, and its result

A converted model is such a directory with its weights beside the configuration.
"""

from pathlib import Path

CONFIG = "config.json"
TOKENIZER = "tokenizer.model"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
PROGRESS = "progress.jsonl"
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
TRACE = "trace.json"
ENERGY = "energy"
REPORT = "report.html"


def checkpoint(run: Path, step: int) -> Path:
    """Where a run keeps the checkpoint that was written after `step` steps."""
    return run / CHECKPOINTS / f"step-{step:06d}"


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, ordered by the step: as text, step-1000000 precedes step-999900."""
    steps = {
        int(number): path
        for path in (run / CHECKPOINTS).glob("step-*")
        if (number := path.name.removeprefix("step-")).isdecimal()
    }
    return [steps[step] for step in sorted(steps)]


def part_of(file: Path, number: int, count: int) -> Path:
    """The name of one of `count` files, counted from 0, that hold the tensors of `file` between them."""
    return file if count == 1 else file.with_stem(f"{file.stem}-{number + 1:05d}-of-{count:05d}")


def parts_of(file: Path) -> list[Path]:
    """`file`, or the files that hold its tensors between them; none if neither is there."""
    return [file] if file.is_file() else sorted(file.parent.glob(f"{file.stem}-*-of-*{file.suffix}"))


def newest_weights(run: Path) -> Path:
    """The directory with a run's newest weights: a checkpoint, or `run` itself when it was converted.

    Raises:
        ValueError: when there are none.
    """
    if (run / WEIGHTS).is_file():
        return run
    found = [path for path in checkpoints(run) if parts_of(path / WEIGHTS)]
    if not found:
        raise ValueError(f"{run} holds no checkpoint; train it first: puna train --out {run}")
    return found[-1]
