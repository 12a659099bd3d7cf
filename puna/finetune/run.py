"""Instruction finetuning (paper section 4): a model and instruction data -> a run that answers.

In:  a model in any format, files of instruction data, the name of a chat template.
Out: a run directory, as train/loop.py writes it; with LoRA also RUN/adapter in PEFT's layout.

    model ─> Source ──────────────────────────> initial weights ─┐
         └─> tokenizer, chat template ──┬─> files of the run ────┼─> train.loop.train ─> RUN
    data files ─> examples, loss mask ──┴─> packed batches ──────┘

The paper finetunes "following Chung et al. (2022)" and says no more. From them are the constant learning
rate, the packing, whose examples do not see each other, and the token that ends each answer. The rest is
puna's choice: AdamW in place of Adafactor, warm-up, and the defaults of `FinetuneConfig`.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from puna.config import MixtureConfig, OptimConfig, ScheduleConfig, TuneConfig
from puna.devices import DeviceName
from puna.files import human_bytes, human_seconds
from puna.finetune import lora
from puna.finetune.examples import Examples, read_examples
from puna.finetune.packing import PackedExamples
from puna.finetune.templates import choose_template, with_template
from puna.formats.adapters import adapted_roles, read_tensors, write_adapter
from puna.formats.contents import model_inputs
from puna.formats.convert import open_source
from puna.model.llama import Llama
from puna.model.parts import Source, parts
from puna.rundir import WEIGHTS, newest_weights
from puna.tokens.model_files import tokenizer_of
from puna.tokens.tokenizer import Tokenizer
from puna.train.here import plan_here
from puna.train.loop import Evaluator, Outcome, Sampler, train
from puna.train.ranks import ALONE
from puna.train.setup import Start
from puna.train.shares import fill
from puna.train.validate import held_out_loss
from puna.validation import check_typed, require

ADAPTER = "adapter"


@dataclass(frozen=True)
class Job:
    """What is to be trained; no weights are in memory yet."""

    config: TuneConfig
    """With the model's sizes, the schedule and the optimiser's settings filled in."""
    sets: tuple[Examples, ...]
    data: PackedExamples
    tokenizer: Tokenizer
    source: Source
    start: Start

    @property
    def trained(self) -> int:
        """Number of parameters that train."""
        held, adapters = parts(self.config.model), self.config.lora
        if adapters is None:
            return sum(part.elements for part in held)
        roles = adapted_roles(adapters.targets, self.config.model)
        return sum(adapters.r * sum(part.shape) for part in held if part.role in roles)


def prepare(config: TuneConfig) -> Job:
    """Open the model, encode and pack the data, and fill in what follows from both.

    Raises:
        ValueError: a model, data or settings that are not valid or do not fit together.
    """
    chosen = config.finetune
    check_typed(chosen)
    source = open_source(Path(chosen.model))[1]
    config = replace(config, model=source.config)
    tokenizer = tokenizer_of(Path(chosen.model), source.tokenizer)
    template = choose_template(tokenizer, chosen.template)
    row = config.row_tokens
    _check(config, tokenizer)
    paths, weights = _files(config.data)
    sets = tuple(
        read_examples(path, template, tokenizer, row, chosen.format, chosen.max_bad) for path in paths
    )
    data = PackedExamples(
        sets,
        {examples.name: weight for examples, weight in zip(sets, weights, strict=True) if weight},
        tokenizer,
        seed=config.seed,
        context=row,
        batch_sequences=config.finetune.batch_tokens // row,
        held_out=chosen.held_out,
    )
    steps = chosen.steps or data.steps_of(chosen.epochs)
    own = chosen.batch_tokens // row // config.parallel.dp
    micro = max(n for n in range(1, min(chosen.micro_batch, own) + 1) if own % n == 0)
    config = replace(
        config,
        recipe="finetune",
        mixture=MixtureConfig(data.shares, config.seed),
        schedule=ScheduleConfig(steps, chosen.batch_tokens, micro),
        optim=OptimConfig(
            lr=chosen.lr or (2e-5 if config.lora is None else 2e-4),
            final_lr_fraction=1.0,
            warmup_steps=round(chosen.warmup * steps),
            weight_decay=chosen.weight_decay,
        ),
    )
    files = with_template(source.tokenizer, template, tokenizer)
    start = lora.start(source, config.lora, config.seed, files)
    start = replace(start, inputs=partial(model_inputs, Path(chosen.model)))
    return Job(config, sets, data, tokenizer, source, start)


def _check(config: TuneConfig, tokenizer: Tokenizer) -> None:
    """Raises ValueError where the settings, the model and its vocabulary do not fit together."""
    row, tp = config.row_tokens, config.parallel.tp
    sequences, rest = divmod(config.finetune.batch_tokens, row)
    require(
        row <= config.model.context,
        f"--context is {row}, but the model was made for {config.model.context} tokens; lower it",
    )
    require(
        rest == 0,
        f"--batch-tokens is {config.finetune.batch_tokens}, not a multiple of --context {row}; change either",
    )
    require(row % tp == 0, f"--context is {row}, not a multiple of --parallel.tp {tp}; change either")
    require(
        tokenizer.vocab_size <= config.model.vocab_size,
        f"{tokenizer.path} has {tokenizer.vocab_size} tokens, the model {config.model.vocab_size}; "
        "give the model its own tokenizer",
    )
    config.parallel.divide(config.model, sequences)
    require(
        config.lora is None
        or not config.lora.dropout
        or (config.compute.activations == "manual" and tp == 1),
        "--lora.dropout needs --compute.activations manual and --parallel.tp 1; set it to 0, or change those",
    )


def _files(data: Sequence[str]) -> tuple[list[Path], list[float]]:
    """The files of `--data FILE[=weight]`, and their weights; 0 where there is none."""
    require(bool(data), "no data; give files of instruction data with --data FILE[=weight]")
    paths, weights = [], []
    for item in data:
        name, equals, weight = item.rpartition("=")
        try:
            share = float(weight) if equals and not Path(item).exists() else 0.0
        except ValueError:
            raise ValueError(
                f"--data {item}: the weight {weight!r} is not a number; expected FILE=2.5"
            ) from None
        require(not equals or Path(item).exists() or share > 0, f"--data {item}: the weight must be positive")
        paths.append(Path(name if share else item))
        weights.append(share)
    return paths, weights


def cost(job: Job, device: DeviceName = "auto") -> list[str]:
    """What a job takes, in lines: tokens, steps, time on this machine, memory.

    Raises:
        ValueError: a process needs more memory than it has.
    """
    config, row = job.config, job.config.row_tokens
    as_rows = replace(config, model=replace(config.model, context=row))
    whole = sum(part.elements for part in parts(config.model))
    plan, _ = plan_here(as_rows, device, job.trained / whole)
    seconds = plan.step_seconds * config.schedule.steps
    need, there = plan.total_memory, plan.machine.memory_gb * 1e9
    if not plan.fits:
        fix = "a lower --micro-batch or --context" + ("" if config.lora else ", --lora.r 16")
        raise ValueError(
            f"finetuning {config.finetune.model} needs {human_bytes(int(need))} of memory, and there are "
            f"{human_bytes(int(there))}; use {fix}, or more GPUs with --parallel.dp-shard"
        )
    report = job.data.report(config.schedule.steps)
    examples, epochs = sum(map(len, job.sets)), max(item["epochs"] for item in report)
    padding = sum(item["padding"] * item["realised"] for item in report)
    return [
        f"data: {examples:,} examples, {sum(len(found.ids) for found in job.sets):,} tokens, "
        f"{sum(int(found.is_target.sum()) for found in job.sets):,} of them trained on; "
        f"{len(job.data.malformed):,} records set aside",
        f"training: {config.schedule.steps:,} steps of {config.batch_sequences} rows of {row:,} tokens, "
        f"{padding:.1%} padding, {epochs:.1f} epochs; about {human_seconds(seconds)} on this machine",
        f"memory: about {human_bytes(int(need))} of {human_bytes(int(there))}; "
        f"{job.trained:,} of {whole:,} parameters train",
    ]


def finetune(
    job: Job,
    out: Path,
    sample: Sampler | None = None,
    evaluate: Evaluator | None = None,
    device: DeviceName = "auto",
) -> Outcome:
    """Finetune into the run directory `out`, or resume the run in it, after printing what it costs.

    Raises:
        ValueError: too little memory, or an `out` that holds another run.
        FloatingPointError: the loss is no longer finite.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    lines = cost(job, device)
    if is_first:
        print(*lines, sep="\n", file=sys.stderr)
    outcome = train(job.config, out, sample, evaluate, device, job.data, job.start)
    if outcome.finished and job.config.lora is not None and is_first:
        held = read_tensors(newest_weights(out) / WEIGHTS)
        write_adapter(out / ADAPTER, job.config, held, Path(job.config.finetune.model))
    return outcome


@torch.no_grad()
def merged_losses(job: Job, out: Path) -> tuple[float, float] | None:
    """Held-out losses of a finished run of LoRA: merged in fp32, and then rounded to bf16.

    None without held-out examples.
    """
    model = Llama(job.config.model, torch.float32, "manual")
    fill(model, ALONE, lora.initial_values(open_source(out)[1], job.config.seed))
    limit, micro_batch = job.config.watch.validation_windows, job.config.schedule.micro_batch
    exact = held_out_loss(model, job.data, micro_batch, limit)["loss"]
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    rounded = held_out_loss(model, job.data, micro_batch, limit)["loss"]
    return None if exact is None else (exact, rounded)
