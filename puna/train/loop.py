"""The training loop: batches -> weights, resumed exactly. `train` reads top to bottom.

In:  a RunConfig; token shards, or other batches with the weights to start from.
Out: a run directory:

    RUN/config.json          the whole configuration; `puna train --config RUN/config.json` reproduces the run
        tokenizer.model      so that the directory alone can generate
        metrics.jsonl        one line per step, validation and start
        samples.jsonl        continuations of fixed prompts
        checkpoints/         the newest few
        manifest.json        written last: the inputs and the results of the run
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from puna.config import RunConfig
from puna.devices import DeviceName, gpus
from puna.energy import Meter
from puna.files import MANIFEST
from puna.manifest import load_manifest
from puna.model.llama import Llama
from puna.rundir import ENERGY, SAMPLES
from puna.train import checkpoint
from puna.train.batches import BatchSource
from puna.train.checkpoint import TrainState
from puna.train.layers import layer_norms
from puna.train.metrics import JsonLines, open_log
from puna.train.observe import profiler
from puna.train.optim import learning_rate
from puna.train.rundir import write_run_manifest
from puna.train.setup import NEW, Start, open_run, prepare
from puna.train.shares import whole_model
from puna.train.step import train_step
from puna.train.validate import held_out_loss

# Given the model after a step, returns records for samples.jsonl. Generation is above training in the
# import order, so the caller passes the function.
Sampler = Callable[[Llama], list[dict[str, Any]]]
# Likewise evaluation: given the model, returns each task's score, error, chance and n for metrics.jsonl.
Evaluator = Callable[[Llama], dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    state: TrainState
    finished: bool
    """False when a signal stopped the run; the same command resumes it."""
    validation: dict[str, Any] | None
    """The last measurement of the held-out loss."""


@dataclass(frozen=True)
class Every:
    """The steps at which something is due: multiples of `steps` (none if it is 0), and the last step."""

    steps: int
    last: int

    def __contains__(self, step: int) -> bool:
        """`step in Every(100, last=1000)`; steps are counted from 1."""
        return step == self.last or (self.steps > 0 and step % self.steps == 0)


def train(
    config: RunConfig,
    out: Path,
    sample: Sampler | None = None,
    evaluate: Evaluator | None = None,
    device: DeviceName = "auto",
    data: BatchSource | None = None,
    start: Start = NEW,
) -> Outcome:
    """Train a model into the run directory `out`, resuming from its newest checkpoint if it has one.

    It trains on `data`; None: on the token shards that the configuration names. `sample` is called every
    `watch.sample_every` steps, `evaluate` every `eval.every`; both at the end, and `evaluate` also before the
    first step of a run that starts from given weights.

    Raises:
        ValueError: an invalid configuration, data of another vocabulary, a device that is missing, an `out`
            that holds another run.
        OSError: a checkpoint could not be written; older ones stay valid.
        FloatingPointError: the loss is no longer finite.
    """
    run = open_run(config, out, device, data, start)
    config, data, ranks = run.config, run.data, run.ranks
    if (out / MANIFEST).is_file() and (newest := checkpoint.latest(out)) is not None:
        validation = load_manifest(out / MANIFEST).details["validation"]
        return Outcome(checkpoint.read_state(newest), True, validation)

    trainer = prepare(run, out)
    model, optimizer, guard, state = trainer.model, trainer.optimizer, trainer.guard, trainer.state
    saver = checkpoint.Saver(out, config.save.keep, ranks)
    samples = JsonLines(out / SAMPLES)
    if ranks.is_first:
        samples.rewind(state.step)
    peak = trainer.machine.peak * config.parallel.ranks
    steps, watch = config.schedule.steps, config.watch
    save_steps = Every(config.save.every, steps)
    validate_steps = Every(watch.validate_every, steps)
    evaluate_steps = Every(config.eval.every, steps)
    sample_steps = Every(watch.sample_every, steps)
    validation = None

    def measured(is_evaluated: bool) -> dict[str, Any]:
        limit = None if state.step == steps else watch.validation_windows
        found = held_out_loss(model, data, config.schedule.micro_batch, limit, ranks)
        if evaluate is not None and is_evaluated:
            found["evaluation"] = ranks.first(partial(evaluate, whole_model(model, ranks)))
        return found

    with (
        Meter(gpus(run.device), out / ENERGY),
        _stop_signals() as stop,
        open_log(out, config, data.sources, peak, state, run.device, ranks.is_first) as log,
        profiler(out, watch.profile_steps if ranks.is_first else 0) as profile_step,
        ranks.named_failures(lambda: state.step),
    ):
        if evaluate is not None and start.weights is not None and state.step == 0:
            log.validation(state, measured(True), is_final=False)
        for step in range(state.step, steps):
            log.begin()
            with log.part("data"):
                batch = data.batch(step, ranks.dp_rank, ranks.dp_world)
            if not batch.global_tokens:
                raise ValueError(f"step {step + 1}: the batch has no target token; check the data's answers")
            lr = learning_rate(step, steps, config.optim)
            result = train_step(
                model, optimizer, guard, batch, len(data.sources), lr, config, ranks, step, trainer.gradients
            )
            state = state.after(batch.global_tokens)
            log.add(state, result, lr, batch.global_tokens)
            profile_step()

            if watch.layers_every and state.step % watch.layers_every == 0:
                log.flush()
                log.layers(state, layer_norms(model, optimizer, ranks))
            is_evaluated = evaluate is not None and state.step in evaluate_steps
            if is_evaluated or state.step in validate_steps:
                log.flush()  # the step's time is not to include what follows
                with log.part("validation"):
                    validation = measured(is_evaluated)
                log.validation(state, validation, is_final=state.step == steps)
            if sample is not None and state.step in sample_steps:
                log.flush()
                with log.part("samples"):
                    items = ranks.first(partial(sample, whole_model(model, ranks)))
                for item in items if ranks.is_first else ():
                    samples.write({"step": state.step, **item})
            stopping = ranks.any(stop())
            if state.step in save_steps or stopping:
                log.flush()  # no checkpoint is ahead of the metrics
                state = replace(state, seconds=log.seconds, norms=guard.state())
                with log.part("checkpoint"):
                    saver.save(state, model, optimizer)
            if stopping:
                break
        saver.wait()

    if state.step < steps:
        return Outcome(state, False, validation)
    ranks.any(False)  # waits until every process has written down its energy
    if validation is None:  # the last step was done by an earlier start, which ended before the manifest
        validation = held_out_loss(model, data, config.schedule.micro_batch, None, ranks)
    ranks.first(
        partial(write_run_manifest, out, config, data, state, validation, trainer.machine, start.inputs)
    )
    return Outcome(state, True, validation)


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM stop the run after the current step; a second Ctrl-C stops it at once."""
    requested = False

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
