"""Everything before the first step: configuration and device in, everything the loop works with out.

RunConfig ─> open_run: data, device, precision, RUN/config.json              ─> Run
Run       ─> prepare: the machine's peak, model, optimiser, newest checkpoint ─> Trainer
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from puna import devices
from puna.config import RunConfig, read_config
from puna.devices import DeviceName, Machine
from puna.kernels import build, elementwise
from puna.model.llama import Llama
from puna.model.weights import load_weights
from puna.rundir import CONFIG
from puna.tokens.mixture import Mixture
from puna.train import checkpoint
from puna.train.checkpoint import TrainState
from puna.train.optim import build_optimizer
from puna.train.rundir import claim, settled
from puna.train.step import OutlierGuard


@dataclass(frozen=True)
class Run:
    """A run whose directory is claimed; no weights are in memory yet."""

    config: RunConfig
    """The configuration with its precision resolved."""
    mixture: Mixture
    device: torch.device
    rank: int = 0
    """Which part of each global batch this process takes."""
    world: int = 1
    """Number of processes that share a global batch."""


@dataclass(frozen=True)
class Trainer:
    """What the loop works with, on the device that trains."""

    model: Llama
    optimizer: torch.optim.Optimizer
    guard: OutlierGuard
    state: TrainState
    """The run's progress: step, tokens, seconds."""
    machine: Machine


def open_run(config: RunConfig, out: Path, device: DeviceName = "auto") -> Run:
    """Check the configuration and the data, choose device and precision, and claim the directory `out`.

    PyTorch's process-wide settings are set here, by `devices.configure`, and nowhere else in train/.

    Raises:
        ValueError: an invalid configuration, data of another vocabulary, a device that is missing, or an
            `out` that holds another run or a run on other data.
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
    if mixture.vocab_size != config.model.vocab_size:
        raise ValueError(
            f"model.vocab_size is {config.model.vocab_size}, but the shards' tokenizer has "
            f"{mixture.vocab_size} tokens; give --model.vocab-size {mixture.vocab_size}"
        )
    chosen = devices.choose_device(device)
    devices.configure(chosen, config.compute.threads, config.compute.deterministic)
    config = with_precision(config, out, chosen)
    claim(out, config, mixture)
    return Run(config, mixture, chosen)


def with_precision(config: RunConfig, out: Path, device: torch.device) -> RunConfig:
    """The configuration with `precision = auto` resolved: to that of the run in `out`, else by a probe.

    A run so keeps its precision when it is resumed on another machine.
    """
    if config.compute.precision != "auto":
        return config
    recorded = read_config(out).compute.precision if (out / CONFIG).is_file() else "auto"
    precision = devices.fast_precision(device) if recorded == "auto" else recorded
    return replace(config, compute=replace(config.compute, precision=precision))


def prepare(run: Run, out: Path) -> Trainer:
    """Build the model and its optimiser, new or from the newest checkpoint; measure the machine.

    Raises:
        ValueError: the checkpoint is corrupt.
    """
    config = run.config
    assert config.compute.precision != "auto"
    machine = devices.measure(run.device, config.compute.precision)
    print(machine, file=sys.stderr)
    model, optimizer = build_model(config, run.device)
    newest = checkpoint.latest(out)
    if newest is None:
        model.init_weights(config.seed)
        state = TrainState(data=run.mixture.fingerprint)
    else:
        state = checkpoint.read_state(newest)
        load_weights(newest, model)
        checkpoint.load_optimizer(newest, model, optimizer)
    guard = OutlierGuard(config.optim.skip_outliers, run.device, state.norms)
    return Trainer(model, optimizer, guard, state, machine)


def build_model(config: RunConfig, device: torch.device) -> tuple[Llama, torch.optim.AdamW]:
    """The model, with its weights not initialised, and its optimiser; compiles the kernels they need."""
    elementwise.compile_kernels(config.compute.compile)
    if device.type == "cpu":
        build.prepare(elementwise.SOURCES, lambda line: print(line, file=sys.stderr))
    compute = torch.bfloat16 if config.compute.precision == "bf16" else torch.float32
    model = Llama(config.model, compute, config.compute.activations, device)
    return model, build_optimizer(model, config.optim)
