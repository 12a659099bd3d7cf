"""Verbs from tokens to weights: train, report."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from puna.cli.common import STOPPED, Json, Many, print_result
from puna.config import RunConfig, Sampling
from puna.devices import DeviceName
from puna.rundir import TOKENIZER


def train(
    *,
    out: Path,
    config: Annotated[RunConfig, Parameter(name="*")] = RunConfig(),  # noqa: B008 (frozen)
    config_file: Annotated[Path | None, Parameter(name="--config")] = None,
    prompts: Annotated[list[str], Many] = ["The"],  # noqa: B006 (cyclopts copies it)
    device: DeviceName = "auto",
    dry_run: bool = False,
    json: Json = False,
) -> int:
    """Train a model on token shards; the same command resumes from the newest checkpoint.

    Parameters
    ----------
    out
        The run directory to write.
    config_file
        Start from an existing run's configuration (its directory or config.json) instead of a recipe.
    prompts
        Prompts whose continuations are written to samples.jsonl.
    device
        Where to train; auto is a CUDA device where there is one, else the CPU. A run may be resumed on
        another device.
    dry_run
        Print parameters, memory, FLOPs and estimated time without training.
    """
    config.validate()  # before torch is imported: a wrong field is said at once
    if dry_run:
        return _dry_run(config, device, json)

    if config.train.allocator == "keep":
        from puna.train.allocator import keep_freed_memory

        keep_freed_memory()
    from puna.generate.samples import sampler
    from puna.train.loop import train as train_run

    sample = sampler(out / TOKENIZER, prompts, Sampling())
    outcome = train_run(config, out, sample, device=device)
    result = {"step": outcome.state.step, "finished": outcome.finished, "validation": outcome.validation}
    if not outcome.finished:
        print_result(result, json, [f"stopped after step {outcome.state.step}; the same command goes on"])
        return STOPPED
    print_result(
        result,
        json,
        [
            f"{out}: {outcome.state.step:,} steps, {outcome.state.tokens:,} tokens",
            *validation_lines(outcome.validation),
            f'next: puna generate --model {out} "Once upon a time"   or: puna report {out}',
        ],
    )
    return 0


def _dry_run(config: RunConfig, device: DeviceName, json: bool) -> int:
    from puna.files import human_bytes, human_seconds
    from puna.train.estimate import estimate

    needs = estimate(config, device)
    memory = needs["memory"]
    print_result(
        needs,
        json,
        [
            f"{needs['parameters']:,} parameters, {needs['tokens']:,} tokens, {needs['flops']:.3g} FLOPs",
            *(f"{human_bytes(size):>12}  {name}" for name, size in memory.items()),
            f"{human_bytes(sum(memory.values())):>12}  in all, in one process",
            f"{human_seconds(needs['seconds'])} at {needs['mfu']:.0%} of the matrix peak: {needs['machine']}",
        ],
    )
    return 0


def validation_lines(validation: dict[str, Any] | None) -> list[str]:
    """The held-out losses, a line a source."""
    if validation is None or validation["loss"] is None:
        return ["held-out loss: not measured, no document is held out"]
    lines = [f"held-out loss {validation['loss']:.3f} nats a token, weighted by the mixture"]
    for source, loss in validation["loss_by_source"].items():
        bits = validation["bits_per_byte_by_source"][source]
        lines.append(f"{source:>16}  {loss:.3f} nats a token, {bits:.3f} bits a byte")
    return lines


def report(run: Path, /, *, json: Json = False) -> int:
    """Write the report of a run as one HTML page.

    Parameters
    ----------
    run
        A run directory.
    """
    from puna.report.page import build_report

    page = build_report(run)
    print_result({"report": str(page)}, json, [f"report: {page}"])
    return 0
