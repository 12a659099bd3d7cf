"""The training loop: batches -> weights, resumed exactly, read aloud in `train`.

In:  token shards, a RunConfig.
Out: a run directory:

    RUN/config.json          the whole configuration; `puna train --config RUN/config.json` reproduces the run
        tokenizer.model      so that the directory alone can generate
        metrics.jsonl        a line a step, and one a validation
        samples.jsonl        continuations of fixed prompts
        checkpoints/         the newest few
        manifest.json        written last: what the run was made of and what came out
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from puna.config import RunConfig
from puna.devices import DeviceName
from puna.files import MANIFEST
from puna.manifest import load_manifest
from puna.model.llama import Llama
from puna.model.sizes import train_flops_per_token
from puna.progress import Bar
from puna.rundir import METRICS, PROGRESS, SAMPLES
from puna.train import checkpoint
from puna.train.checkpoint import TrainState
from puna.train.metrics import JsonLines, StepLog
from puna.train.observe import profiler, trackers
from puna.train.optim import learning_rate
from puna.train.rundir import write_run_manifest
from puna.train.setup import open_run, prepare
from puna.train.step import train_step
from puna.train.validate import held_out_loss

# Given the model after a step, returns records for samples.jsonl. Generation is above training in the
# import order, so the caller hands it in.
Sampler = Callable[[Llama], list[dict[str, Any]]]
# Likewise evaluation: given the model, returns scores for metrics.jsonl.
Evaluator = Callable[[Llama], dict[str, float]]


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    state: TrainState
    finished: bool
    """False when a signal stopped it; the same command goes on."""
    validation: dict[str, Any] | None
    """The last measurement of the held-out loss."""


def train(
    config: RunConfig,
    out: Path,
    sample: Sampler | None = None,
    evaluate: Evaluator | None = None,
    device: DeviceName = "auto",
) -> Outcome:
    """Train as `config` says, in `out`, going on from its newest checkpoint if it has one.

    `sample` is called every `train.sample_every` steps, `evaluate` with every validation; both at the end.

    Raises:
        ValueError: an impossible configuration, data of another vocabulary, a device that is missing, `out`
            of another run.
        OSError: a checkpoint could not be written; those before stay valid.
        FloatingPointError: the loss is no longer finite.
    """
    run = open_run(config, out, device)
    config, mixture, settings = run.config, run.mixture, run.config.train
    if (out / MANIFEST).is_file() and (newest := checkpoint.latest(out)) is not None:
        validation = load_manifest(out / MANIFEST).details["validation"]
        return Outcome(checkpoint.read_state(newest), True, validation)

    trainer = prepare(run, out)
    model, optimizer, guard, state = trainer.model, trainer.optimizer, trainer.guard, trainer.state
    metrics, samples = JsonLines(out / METRICS), JsonLines(out / SAMPLES)
    metrics.rewind(state.step)
    samples.rewind(state.step)
    saver = checkpoint.Saver(out, settings.keep)
    total_tokens = settings.steps * settings.batch_tokens
    validation = None

    with (
        _stop_signals() as stop,
        trackers(out, config) as tracked,
        profiler(out, settings.profile) as profile_step,
        Bar("train", total_tokens, "tokens", out / PROGRESS, state.tokens) as bar,
    ):

        def show(record: dict[str, Any]) -> None:
            bar.advance(record["tokens"] - bar.done, f"step {record['step']} loss {record['loss']:.3f}")

        log = StepLog(
            mixture.sources,
            train_flops_per_token(config.model),
            trainer.machine.peak,
            [metrics.write, show, *tracked],
            state.seconds,
            may_skip=settings.skip_outliers > 0,
        )
        bar.advance(0)
        for step in range(state.step, settings.steps):
            started = time.perf_counter()
            batch = mixture.batch(step)
            lr = learning_rate(step, settings.steps, config.optim)
            result = train_step(model, optimizer, guard, batch, len(mixture.sources), lr, config)
            state = state.after(batch.tokens)
            log.add(state, result, lr, batch.tokens, started)
            profile_step()

            last = state.step == settings.steps
            if last or _due(state.step, settings.validate_every):
                log.flush()
                limit = None if last else settings.validation_windows
                validation = held_out_loss(model, mixture, settings.micro_batch, limit)
                if evaluate is not None:
                    validation["evaluation"] = evaluate(model)
                for sink in (metrics.write, *tracked):
                    sink({"kind": "validation", "step": state.step, **validation, "final": last})
            if sample is not None and (last or _due(state.step, settings.sample_every)):
                log.flush()
                for item in sample(model):
                    samples.write({"step": state.step, **item})
            stopping = stop()
            if last or stopping or _due(state.step, settings.save_every):
                log.flush()  # no checkpoint is ahead of the metrics
                state = replace(state, seconds=log.seconds, norms=guard.state())
                saver.save(state, model, optimizer)
            if stopping and not last:
                saver.wait()
                return Outcome(state, False, validation)
        saver.wait()

    if validation is None:  # every step was already done, but the manifest was not written
        validation = held_out_loss(model, mixture, settings.micro_batch, None)
    write_run_manifest(out, config, mixture, state, validation, trainer.machine)
    return Outcome(state, True, validation)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask for a stop after the step; a second Ctrl-C stops at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
