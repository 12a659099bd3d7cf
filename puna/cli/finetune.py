"""The verb finetune: a model and instruction data to a model that answers."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from puna.cli.common import Json, Many, quoted
from puna.cli.train import evaluator_of, print_outcome
from puna.config import (
    ComputeConfig,
    EvalConfig,
    FinetuneConfig,
    LoraConfig,
    ParallelConfig,
    Sampling,
    SaveConfig,
    TuneConfig,
    WatchConfig,
)
from puna.devices import DeviceName


def finetune(
    *,
    data: Annotated[list[str], Many],
    out: Path,
    options: Annotated[FinetuneConfig, Parameter(name="*")] = FinetuneConfig(),  # noqa: B008 (frozen)
    seed: int = 1,
    lora: Annotated[LoraConfig | None, Many] = None,
    compute: ComputeConfig = ComputeConfig(),  # noqa: B008
    parallel: ParallelConfig = ParallelConfig(),  # noqa: B008
    save: SaveConfig = SaveConfig(),  # noqa: B008
    watch: WatchConfig = WatchConfig(),  # noqa: B008
    evaluation: Annotated[EvalConfig, Parameter(name="--eval", consume_multiple=True)] = EvalConfig(),  # noqa: B008
    prompts: Annotated[list[str], Many] = [],  # noqa: B006 (cyclopts copies it)
    preview: int = 0,
    device: DeviceName = "auto",
    json: Json = False,
) -> int:
    """Finetune a model on instruction data; the same command resumes from the newest checkpoint.

    Only the assistant's answers, with the token that ends them, are trained on. All weights train, or with an
    option such as --lora.r 16 low-rank adapters, which generate, chat, serve and convert merge as they read
    the run.

    Parameters
    ----------
    data
        Files of instruction data, FILE or FILE=weight: JSON lines, JSON or Parquet with messages, prompts and
        completions, Alpaca's, ShareGPT's or FLAN's fields, or plain texts. Default weights: by size.
    out
        Run directory to write.
    seed
        Random seed for the order of the data, the adapters and their dropout.
    prompts
        Prompts whose continuations are written to samples.jsonl.
    preview
        Print this many examples of each file with the trained tokens marked, and train nothing.
    device
        Device to train on. auto: a CUDA device if there is one, else the CPU.
    """
    from puna.api_models import find_model

    if not options.model:
        raise ValueError("no model to start from; give one with --model")
    options = replace(options, model=str(find_model(options.model).resolve()))
    config = TuneConfig(
        data=tuple(data), seed=seed, finetune=options, lora=lora,
        compute=compute, parallel=parallel, save=save, watch=watch, eval=evaluation,
    )  # fmt: skip
    if compute.allocator == "keep" and not preview:
        from puna.train.allocator import keep_freed_memory

        keep_freed_memory()
    import sys

    from puna.finetune import run

    job = run.prepare(config)
    if preview:
        from puna.finetune.preview import preview as shown

        print(shown(job.sets, preview, job.tokenizer, sys.stdout.isatty()))
        return 0
    sample = None
    if prompts:
        from puna.generate.samples import sampler

        sample = sampler(out, prompts, Sampling())
    outcome = run.finetune(job, out, sample, evaluator_of(config, out), device)
    lines: list[str] = []
    merged: dict[str, Any] = {}
    if outcome.finished and lora is not None:
        lines.append(f"adapter in PEFT's layout: {out / run.ADAPTER}")
        if (losses := run.merged_losses(job, out)) is not None:
            merged["merged"] = {"fp32": losses[0], "bf16": losses[1]}
            lines.append(f"merged: held-out loss {losses[0]:.5f} in fp32, {losses[1]:.5f} rounded to bf16")
    after = f"next: puna chat --model {quoted(out)}   or: puna convert {quoted(out)} NAME --to hf"
    return print_outcome(outcome, out, json, after, "target tokens", lines, **merged)
