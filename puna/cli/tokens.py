"""The verb tokens: what a model is trained on."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.types import NonNegativeInt, PositiveInt

from puna.cli.common import Json, print_result
from puna.config import RunConfig, TuneConfig, read_config
from puna.recipes import recipe as recipe_of

tokens = App(name="tokens")


@tokens.command(name="inspect")
def inspect(
    data: list[str] = [],  # noqa: B006 (cyclopts copies it)
    /,
    *,
    step: NonNegativeInt = 0,
    model: Annotated[Path | None, Parameter(name="--model")] = None,
    context: PositiveInt | None = None,
    batch_tokens: PositiveInt | None = None,
    seed: int | None = None,
    rows: int = 8,
    characters: int = 600,
    json: Json = False,
) -> None:
    """Show the decoded sequences of one training batch, and which document source each comes from.

    Parameters
    ----------
    data
        Directories or URLs of token shards, as written by `puna shards`. Default: the data of --model.
    step
        Training step whose batch is shown, from 0.
    model
        Run directory or config.json whose context, batch size, mixture and seed are used. Default: those of
        `puna train` without options.
    context
        Tokens per sequence; overrides the run's.
    batch_tokens
        Tokens per training step; overrides the run's.
    seed
        Random seed of the order of sequences; overrides the run's.
    rows
        Number of sequences to print.
    characters
        Maximum number of characters to print per sequence; the middle of a longer one is omitted. --json
        prints all.
    """
    from puna.tokens.inspect import inspect_batch, shortened
    from puna.tokens.mixture import Mixture

    config = read_config(model) if model else recipe_of(RunConfig.recipe)
    if isinstance(config, TuneConfig):
        if data or (context, batch_tokens, seed) != (None, None, None):
            raise ValueError(
                f"{model} is a finetuned run, which has its own data and batches; give --step alone"
            )
        result, titles = _finetuning_batch(config, step)
    else:
        if not (data := data or list(config.data)):
            raise ValueError("no data; give directories of token shards, or a run with --model")
        window = context or config.model.context
        seed = config.mixture.seed if seed is None else seed
        sequences = max(1, (batch_tokens or config.schedule.batch_tokens) // window)
        mixture = Mixture(data, config.mixture.weights, seed, window, sequences)
        batch = inspect_batch(mixture, step)
        result = {"context": window, "fingerprint": mixture.fingerprint, "rows": batch}
        titles = [
            f"window {row['window'] + 1:,} of {row['windows']:,}, epoch {row['epoch'] + 1}, "
            f"{row['tokens']:,} tokens"
            for row in batch
        ]
    lines = []
    for row, title in list(zip(result["rows"], titles, strict=True))[:rows]:
        lines += [f"── row {row['row']}: {row['source']}, {title}", shortened(row["text"], characters)]
    count = len(titles)
    width = f" of {result['context']:,} tokens" if "context" in result else ""
    lines.append(f"── step {step:,}: {count:,} rows{width}; {min(rows, count)} shown")
    print_result({"step": step, **result}, json, lines)


def _finetuning_batch(config: TuneConfig, step: int) -> tuple[dict[str, Any], list[str]]:
    """The packed rows of a step of finetuning, with what is trained on between ⟦ and ⟧; a title for each."""
    from puna.finetune.preview import batch_rows
    from puna.finetune.run import prepare

    job = prepare(config)
    batch = batch_rows(job.data, step, job.tokenizer)
    titles = [f"{row['examples']:,} examples, {row['tokens']:,} tokens trained on" for row in batch]
    return {"fingerprint": job.data.fingerprint, "rows": batch}, titles
