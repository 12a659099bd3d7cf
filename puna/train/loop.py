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

import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from puna.config import CONFIG, RunConfig, from_dict, to_dict
from puna.files import MANIFEST, code_version, fingerprint, read_json, write_json
from puna.model.kernels import compile_kernels
from puna.model.llama import Llama
from puna.model.loss import IGNORE
from puna.model.sizes import parameters, train_flops_per_token
from puna.model.weights import load_weights
from puna.progress import Bar
from puna.tokens.mixture import Batch, Mixture
from puna.train import checkpoint
from puna.train.checkpoint import TrainState
from puna.train.metrics import METRICS, SAMPLES, JsonLines, machine, matrix_peak
from puna.train.optim import build_optimizer, learning_rate
from puna.train.validate import held_out_loss

# Given the model after a step, returns records for samples.jsonl. Generation is above training in the
# import order, so the caller hands it in.
Sampler = Callable[[Llama], list[dict[str, Any]]]


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    state: TrainState
    finished: bool
    """False when a signal stopped it; the same command goes on."""
    validation: dict[str, Any] | None
    """The last measurement of the held-out loss."""


def train(config: RunConfig, out: Path, sample: Sampler | None = None) -> Outcome:
    """Train as `config` says, in `out`, going on from its newest checkpoint if it has one.

    Raises:
        ValueError: an impossible configuration, data of another vocabulary, `out` of another run.
        OSError: a checkpoint could not be written; those before stay valid.
        FloatingPointError: the loss is no longer finite.
    """
    config.validate()
    mixture = Mixture(
        [Path(directory) for directory in config.data],
        weights=config.mixture.weights,
        seed=config.mixture.seed,
        context=config.model.context,
        batch_sequences=config.batch_sequences,
    )
    _check_vocabulary(config, mixture)
    _claim(out, config, mixture)
    if (out / MANIFEST).is_file() and (newest := checkpoint.latest(out)) is not None:
        return Outcome(checkpoint.read_state(newest), True, read_json(out / MANIFEST)["validation"])

    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    if config.train.compile and not compile_kernels():
        print("no C++ compiler found: kernels run uncompiled, slower; install g++", file=sys.stderr)
    compute = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    model = Llama(config.model, compute, config.train.activations)
    optimizer = build_optimizer(model, config.optim)
    state = _resume_or_begin(out, config, mixture, model, optimizer)
    metrics, samples = JsonLines(out / METRICS), JsonLines(out / SAMPLES)
    metrics.rewind(state.step)
    samples.rewind(state.step)
    peak = matrix_peak(compute)
    flops = train_flops_per_token(config.model)
    every = config.train
    validation = None

    with (
        _stop_signals() as stop,
        Bar("train", every.steps * every.batch_tokens, "tokens", out / "progress.jsonl", state.tokens) as bar,
    ):
        for step in range(state.step, every.steps):
            started = time.perf_counter()
            batch = mixture.batch(step)
            lr = learning_rate(step, every.steps, config.optim)
            record = train_step(model, optimizer, batch, mixture.sources, lr, config)
            seconds = time.perf_counter() - started

            last = step + 1 == every.steps
            state = replace(
                state, step=step + 1, tokens=state.tokens + batch.tokens, seconds=state.seconds + seconds
            )
            rate = batch.tokens / seconds
            metrics.write(
                {
                    "kind": "train",
                    "step": state.step,
                    **record,
                    "tokens": state.tokens,
                    "tokens_per_second": round(rate, 1),
                    "mfu": round(rate * flops / peak, 4),
                    "seconds": round(state.seconds, 3),
                }
            )
            bar.advance(batch.tokens, f"step {state.step} loss {record['loss']:.3f}")

            if last or _due(state.step, every.validate_every):
                limit = None if last else every.validation_windows
                validation = held_out_loss(model, mixture, every.micro_batch, limit)
                metrics.write({"kind": "validation", "step": state.step, **validation, "final": last})
            if sample is not None and (last or _due(state.step, every.sample_every)):
                for item in sample(model):
                    samples.write({"step": state.step, **item})
            if last or stop() or _due(state.step, every.save_every):
                checkpoint.save(out, state, model, optimizer, every.keep)
            if stop() and not last:
                return Outcome(state, False, validation)

    if validation is None:  # every step was already done, but the manifest was not written
        validation = held_out_loss(model, mixture, every.micro_batch, None)
    _write_manifest(out, config, mixture, state, validation, peak)
    return Outcome(state, True, validation)


def train_step(
    model: Llama,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    names: Sequence[str],
    lr: float,
    config: RunConfig,
) -> dict[str, Any]:
    """One optimiser step on a global batch, accumulated over micro-batches; gives the step's metrics.

    `names` are the sources that `batch.sources` counts.
    """
    inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
    micro = min(config.train.micro_batch, len(inputs))
    losses = []
    for rows in range(0, len(inputs), micro):
        # Divided by the tokens of the whole batch: a padded window counts for what it holds.
        total, losses_BT = model.loss(
            inputs[rows : rows + micro], targets[rows : rows + micro], 1 / batch.tokens
        )
        total.backward()
        losses.append(losses_BT)
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
    losses_BT = torch.cat(losses)
    loss = losses_BT.sum().item() / batch.tokens
    if not (torch.isfinite(grad_norm) and loss == loss):
        raise FloatingPointError(
            f"loss {loss:g}, gradient norm {grad_norm:g}: training has diverged; "
            f"go on from the last checkpoint with a lower --optim.lr than {config.optim.lr:g}"
        )
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return {
        "loss": loss,
        "loss_by_source": _by_source(losses_BT, targets, batch, names),
        "lr": lr,
        "grad_norm": grad_norm.item(),
    }


def _by_source(
    losses_BT: torch.Tensor, targets_BT: torch.Tensor, batch: Batch, names: Sequence[str]
) -> dict[str, float]:
    means = {}
    sources_B = torch.from_numpy(batch.sources)
    for index in sources_B.unique().tolist():
        rows = sources_B == index
        tokens = int((targets_BT[rows] != IGNORE).sum())
        means[names[index]] = losses_BT[rows].sum().item() / max(tokens, 1)
    return means


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


def _claim(out: Path, config: RunConfig, mixture: Mixture) -> None:
    """Write the configuration into `out`, or refuse when it holds another run's."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / CONFIG
    if path.is_file():
        held, wanted = to_dict(from_dict(RunConfig, read_json(path))), to_dict(config)
        if held != wanted:
            raise ValueError(
                f"{out} holds a run of another configuration ({_first_difference(held, wanted)}); "
                "choose another --out, or delete it to begin again"
            )
        return
    shutil.copyfile(mixture.tokenizer, out / "tokenizer.model")
    write_json(path, to_dict(config))


def _first_difference(held: dict[str, Any], wanted: dict[str, Any], path: str = "") -> str:
    for key in wanted:
        if held.get(key) != wanted[key]:
            if isinstance(wanted[key], dict) and isinstance(held.get(key), dict) and wanted[key]:
                return _first_difference(held[key], wanted[key], f"{path}{key}.")
            return f"{path}{key} is {held.get(key)!r} there, {wanted[key]!r} here"
    extra = next(key for key in held if key not in wanted)
    return f"{path}{extra} is {held[extra]!r} there"


def _resume_or_begin(
    out: Path, config: RunConfig, mixture: Mixture, model: Llama, optimizer: torch.optim.Optimizer
) -> TrainState:
    newest = checkpoint.latest(out)
    if newest is None:
        model.init_weights(config.train.seed)
        return TrainState(data=mixture.fingerprint)
    state = checkpoint.read_state(newest)
    if state.data != mixture.fingerprint:
        raise ValueError(
            f"the data in {', '.join(config.data)} is not what {newest} was trained on "
            f"({mixture.fingerprint}, not {state.data}); restore it, or choose another --out"
        )
    load_weights(newest, model)
    checkpoint.load_optimizer(newest, model, optimizer)
    return state


def _write_manifest(
    out: Path, config: RunConfig, mixture: Mixture, state: TrainState, validation: dict[str, Any], peak: float
) -> None:
    newest = checkpoint.latest(out)
    assert newest is not None
    write_json(
        out / MANIFEST,
        {
            "stage": "run",
            "fingerprint": fingerprint([to_dict(config), mixture.fingerprint]),
            "config": to_dict(config),
            "code_version": code_version(),
            "machine": machine(peak),
            "counts": {"parameters": parameters(config.model), "steps": state.step, "tokens": state.tokens},
            "mixture": mixture.report(state.step),
            "validation": validation,
            "inputs": [
                {"path": str(path), "fingerprint": manifest["fingerprint"]}
                for path, manifest in zip(mixture.directories, mixture.manifests, strict=True)
            ],
            "seconds": round(state.seconds, 3),
            "checkpoint": str(newest.relative_to(out)),
        },
    )
