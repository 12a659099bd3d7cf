"""The verb tokens: what a model is trained on."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from puna.cli.common import Json, print_result
from puna.config import RunConfig, TuneConfig, read_config
from puna.recipes import recipe as recipe_of

app = App(name="tokens")


@app.command(name="inspect")
def inspect(
    data: list[str] = [],  # noqa: B006 (cyclopts copies it)
    /,
    *,
    step: int = 0,
    model: Annotated[Path | None, Parameter(name="--model")] = None,
    context: int | None = None,
    batch_tokens: int | None = None,
    seed: int | None = None,
    rows: int = 8,
    characters: int = 600,
    json: Json = False,
) -> int:
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
        return _inspect_finetuning(config, step, rows, characters, json)
    if not (data := data or list(config.data)):
        raise ValueError("no data; give directories of token shards, or a run with --model")
    window = context or config.model.context
    mixture = Mixture(
        data,
        config.mixture.weights,
        config.mixture.seed if seed is None else seed,
        window,
        max(1, (batch_tokens or config.schedule.batch_tokens) // window),
    )
    batch = inspect_batch(mixture, step)
    lines = []
    for row in batch[:rows]:
        lines.append(
            f"── row {row['row']}: {row['source']}, window {row['window'] + 1:,} of {row['windows']:,}, "
            f"epoch {row['epoch'] + 1}, {row['tokens']:,} tokens"
        )
        lines.append(shortened(row["text"], characters))
    lines.append(f"── step {step:,}: {len(batch):,} rows of {window:,} tokens; {min(rows, len(batch))} shown")
    print_result(
        {"step": step, "context": window, "fingerprint": mixture.fingerprint, "rows": batch}, json, lines
    )
    return 0


def _inspect_finetuning(config: TuneConfig, step: int, rows: int, characters: int, json: bool) -> int:
    """The batch of a step of finetuning: its packed rows, with what is trained on between ⟦ and ⟧."""
    from puna.finetune.preview import batch_rows
    from puna.finetune.run import prepare
    from puna.tokens.inspect import shortened

    job = prepare(config)
    batch = batch_rows(job.data, step, job.tokenizer)
    lines = []
    for row in batch[:rows]:
        counts = f"{row['examples']:,} examples, {row['tokens']:,} tokens trained on"
        lines += [f"── row {row['row']}: {row['source']}, {counts}", shortened(row["text"], characters)]
    lines.append(f"── step {step:,}: {len(batch):,} rows; {min(rows, len(batch))} shown")
    print_result({"step": step, "fingerprint": job.data.fingerprint, "rows": batch}, json, lines)
    return 0
