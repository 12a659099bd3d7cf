"""The verb train: token shards to weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, ArgumentCollection, Parameter
from cyclopts.config import Dict

from puna.cli.common import STOPPED, Json, Many, energy_lines, print_result, quoted
from puna.config import RunConfig, Sampling, read_config, to_dict
from puna.devices import DeviceName
from puna.files import MANIFEST
from puna.recipes import recipe

if TYPE_CHECKING:
    from puna.train.loop import Evaluator, Outcome


def fill_from_recipe(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give `train` the fields of the recipe, or of --config, that the command line does not set.

    cyclopts calls it with the options that were read, before it builds the RunConfig from them.
    """
    options = {argument.name: argument.tokens[0].value for argument in arguments if argument.tokens}
    if "--config" in options:
        defaults = read_config(Path(options["--config"]))
    else:
        defaults = recipe(options.get("--recipe", RunConfig.recipe))
    Dict(_without_empty(to_dict(defaults)), source="recipe", use_commands_as_keys=False)(
        app, commands, arguments
    )


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """Without None and empty lists and sections: a field that is not given has that value already."""
    return {
        name: _without_empty(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if value not in (None, [], {})
    }


train = App(name="train", config=fill_from_recipe)


@train.default
def start(
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
        Run directory to write.
    config_file
        Run directory or config.json whose configuration is used instead of a recipe's.
    prompts
        Prompts whose continuations are written to samples.jsonl.
    device
        Device to train on. auto: a CUDA device if there is one, else the CPU. A run can be resumed on
        another device.
    dry_run
        Print parameters, memory, FLOPs and estimated time without training.
    """
    config.validate()  # before torch is imported: an invalid field is reported at once
    if dry_run:
        _dry_run(config, device, json)
        return 0

    if config.compute.allocator == "keep":
        from puna.train.allocator import keep_freed_memory

        keep_freed_memory()
    from puna.generate.samples import sampler
    from puna.train.loop import train as train_run

    sample = sampler(out, prompts, Sampling())
    outcome = train_run(config, out, sample, evaluator_of(config, out), device)
    after = f'next: puna generate --model {quoted(out)} "Once upon a time"   or: puna report {quoted(out)}'
    return print_outcome(outcome, out, json, after)


def print_outcome(
    outcome: "Outcome",
    out: Path,
    json: bool,
    after: str,
    what: str = "tokens",
    lines: Sequence[str] = (),
    **result: Any,
) -> int:
    """Print how a run ended, with further `lines` and entries of the `result`; returns the exit code."""
    step = outcome.state.step
    result = {"step": step, "finished": outcome.finished, "validation": outcome.validation, **result}
    if not outcome.finished:
        print_result(result, json, [f"stopped after step {step}; to resume, run it again"])
        return STOPPED
    from puna.manifest import load_manifest  # here, because --help is to be quick

    ended = f"{out}: {step:,} steps, {outcome.state.tokens:,} {what}"
    energy = energy_lines(load_manifest(out / MANIFEST))
    print_result(result, json, [ended, *validation_lines(outcome.validation), *lines, *energy, after])
    return 0


def _dry_run(config: RunConfig, device: DeviceName, json: bool) -> None:
    from puna.train.here import plan_here
    from puna.train.plan import describe
    from puna.train.plan_text import plan_lines

    found, machine = plan_here(config, device)
    print_result(
        {**describe(found), "device": str(machine)}, json, [*plan_lines(found, config.recipe), str(machine)]
    )


def validation_lines(validation: dict[str, Any] | None) -> list[str]:
    """The held-out losses, one line per source."""
    if validation is None or validation["loss"] is None:
        return ["held-out loss: not measured, no document is held out"]
    lines = [f"held-out loss {validation['loss']:.3f} nats per token, weighted by the mixture"]
    for source, loss in validation["loss_by_source"].items():
        bits = validation["bits_per_byte_by_source"][source]
        lines.append(f"{source:>16}  {loss:.3f} nats per token, {bits:.3f} bits per byte")
    return lines


def evaluator_of(config: RunConfig, out: Path) -> "Evaluator | None":
    """What scores the model while it trains, if `--eval.tasks` names a task."""
    if not config.eval.tasks:
        return None
    from puna.evaluate.in_training import evaluator

    return evaluator(config.eval, out)
