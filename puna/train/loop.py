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

import torch

from puna.config import RunConfig
from puna.files import MANIFEST, read_json
from puna.model.extension import say_no_compiler
from puna.model.kernels import compile_kernels
from puna.model.llama import Llama
from puna.model.precision import use_onednn_for_fp32
from puna.model.sizes import train_flops_per_token
from puna.model.weights import load_weights
from puna.progress import Bar
from puna.tokens.mixture import Mixture
from puna.train import checkpoint
from puna.train.checkpoint import TrainState
from puna.train.metrics import METRICS, SAMPLES, JsonLines, StepLog, matrix_peak
from puna.train.observe import profiler, trackers
from puna.train.optim import build_optimizer, learning_rate
from puna.train.rundir import claim, settled, write_manifest
from puna.train.step import OutlierGuard, train_step
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
    config: RunConfig, out: Path, sample: Sampler | None = None, evaluate: Evaluator | None = None
) -> Outcome:
    """Train as `config` says, in `out`, going on from its newest checkpoint if it has one.

    `sample` is called every `train.sample_every` steps, `evaluate` with every validation; both at the end.

    Raises:
        ValueError: an impossible configuration, data of another vocabulary, `out` of another run.
        OSError: a checkpoint could not be written; those before stay valid.
        FloatingPointError: the loss is no longer finite.
    """
    config.validate()
    config = settled(config)
    mixture = Mixture(
        config.data,
        weights=config.mixture.weights,
        seed=config.mixture.seed,
        context=config.model.context,
        batch_sequences=config.batch_sequences,
    )
    _check_vocabulary(config, mixture)
    claim(out, config, mixture)
    if (out / MANIFEST).is_file() and (newest := checkpoint.latest(out)) is not None:
        return Outcome(checkpoint.read_state(newest), True, read_json(out / MANIFEST)["validation"])

    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    if config.train.deterministic:
        torch.use_deterministic_algorithms(True)
    compiled = compile_kernels(config.train.compile)
    if config.train.compile and not compiled:
        say_no_compiler()
    compute = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    if compute == torch.float32:
        use_onednn_for_fp32()
    model = Llama(config.model, compute, config.train.activations)
    optimizer = build_optimizer(model, config.optim)
    state = _resume_or_begin(out, config, mixture, model, optimizer)
    guard = OutlierGuard(config.train.skip_outliers, model.embedding.device, state.norms)
    metrics, samples = JsonLines(out / METRICS), JsonLines(out / SAMPLES)
    metrics.rewind(state.step)
    samples.rewind(state.step)
    peak = matrix_peak(compute)
    saver = checkpoint.Saver(out, config.train.keep)
    every = config.train
    validation = None

    with (
        _stop_signals() as stop,
        trackers(out, config) as tracked,
        profiler(out, every.profile) as profile_step,
        Bar("train", every.steps * every.batch_tokens, "tokens", out / "progress.jsonl", state.tokens) as bar,
    ):

        def show(record: dict[str, Any]) -> None:
            bar.advance(record["tokens"] - bar.done, f"step {record['step']} loss {record['loss']:.3f}")

        log = StepLog(
            mixture.sources, train_flops_per_token(config.model), peak, [metrics.write, show, *tracked]
        )
        bar.advance(0, "compiling kernels, once" if compiled else "")
        for step in range(state.step, every.steps):
            started = time.perf_counter()
            batch = mixture.batch(step)
            lr = learning_rate(step, every.steps, config.optim)
            result = train_step(model, optimizer, guard, batch, len(mixture.sources), lr, config)
            seconds = time.perf_counter() - started
            state = state.after(batch.tokens, seconds)
            log.add(state, result, lr, batch.tokens / seconds, every.skip_outliers > 0)
            profile_step()

            last = state.step == every.steps
            if last or _due(state.step, every.validate_every):
                log.flush()
                validation = held_out_loss(
                    model, mixture, every.micro_batch, None if last else every.validation_windows
                )
                if evaluate is not None:
                    validation["evaluation"] = evaluate(model)
                for sink in (metrics.write, *tracked):
                    sink({"kind": "validation", "step": state.step, **validation, "final": last})
            if sample is not None and (last or _due(state.step, every.sample_every)):
                for item in sample(model):
                    samples.write({"step": state.step, **item})
            stopping = stop()
            if last or stopping or _due(state.step, every.save_every):
                log.flush()  # no checkpoint is ahead of the metrics
                saver.save(replace(state, norms=guard.state()), model, optimizer)
            if stopping and not last:
                saver.wait()
                return Outcome(state, False, validation)
        saver.wait()

    if validation is None:  # every step was already done, but the manifest was not written
        validation = held_out_loss(model, mixture, every.micro_batch, None)
    write_manifest(out, config, mixture, state, validation, peak)
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


def _check_vocabulary(config: RunConfig, mixture: Mixture) -> None:
    if mixture.vocab_size != config.model.vocab_size:
        raise ValueError(
            f"model.vocab_size is {config.model.vocab_size}, but the shards' tokenizer has "
            f"{mixture.vocab_size} pieces; give --model.vocab-size {mixture.vocab_size}"
        )


def _resume_or_begin(
    out: Path, config: RunConfig, mixture: Mixture, model: Llama, optimizer: torch.optim.Optimizer
) -> TrainState:
    newest = checkpoint.latest(out)
    if newest is None:
        model.init_weights(config.train.seed)
        return TrainState(data=mixture.fingerprint)
    state = checkpoint.read_state(newest)
    load_weights(newest, model)
    checkpoint.load_optimizer(newest, model, optimizer)
    return state
