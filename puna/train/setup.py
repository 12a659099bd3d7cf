"""Everything before the first step: configuration and device in, everything the loop works with out.

RunConfig ─> open_run: data, device, precision, RUN/config.json              ─> Run
Run       ─> prepare: the machine's peak, model, optimiser, newest checkpoint ─> Trainer
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from puna import devices
from puna.allowance import cores
from puna.config import RunConfig, read_config
from puna.devices import DeviceName, Machine
from puna.kernels import build, elementwise
from puna.manifest import Input
from puna.model.llama import Block, Llama, initial_weight
from puna.model.weights import trained
from puna.rundir import CONFIG
from puna.tokens.mixture import Mixture
from puna.train import checkpoint
from puna.train.batches import BatchSource
from puna.train.checkpoint import TrainState
from puna.train.graph import Gradients, gradients_of
from puna.train.optim import build_optimizer
from puna.train.parallel import join, parallelize
from puna.train.ranks import ALONE, Ranks
from puna.train.rundir import Files, claim, settled
from puna.train.shares import Read, fill
from puna.train.step import OutlierGuard


@dataclass(frozen=True)
class Start:
    """What a run starts from; by default a new model, all of whose parameters train."""

    weights: Read | None = None
    """Initial values; None: `initial_weight`."""
    trains: Callable[[str], bool] = lambda name: True
    """Whether the parameter of a name trains; frozen ones have no gradient, no moments, no checkpoint."""
    block: Callable[..., Block] = Block
    """Makes the layers of the model, as in `Llama`."""
    draws: bool = False
    """Whether the model draws at random in training: dropout."""
    files: Files = field(default_factory=dict)
    """The tokenizer's files, which are written into the run; when empty, it is the data's one file."""
    inputs: Callable[[], tuple[Input, ...]] = tuple
    """What `weights` are read from, for the manifest; called when the run has ended."""


NEW = Start()


@dataclass(frozen=True)
class Run:
    """A run whose directory is claimed; no weights are in memory yet."""

    config: RunConfig
    """The configuration with its precision resolved."""
    data: BatchSource
    device: torch.device
    ranks: Ranks
    start: Start


@dataclass(frozen=True)
class Trainer:
    """What the loop works with, on the device that trains."""

    model: Llama
    optimizer: torch.optim.Optimizer
    guard: OutlierGuard
    gradients: Gradients
    state: TrainState
    """The run's progress: step, tokens, seconds."""
    machine: Machine


def open_run(
    config: RunConfig,
    out: Path,
    device: DeviceName = "auto",
    data: BatchSource | None = None,
    start: Start = NEW,
) -> Run:
    """Check the configuration and the data, choose device and precision, and claim the directory `out`.

    PyTorch's process-wide settings are set here, by `devices.configure`, and nowhere else in train/.

    Raises:
        ValueError: an invalid configuration, data of another vocabulary, a device that is missing, or an
            `out` that holds another run or a run on other data.
    """
    config.validate()
    config = settled(config)
    data = data or token_shards(config)
    chosen = devices.choose_device(device)
    devices.configure(chosen, config.compute.threads or _threads(), config.compute.deterministic)
    ranks = join(config.parallel, chosen)
    config = ranks.first(partial(with_precision, config, out, chosen))
    ranks.first(partial(claim, out, config, data, start.files))
    return Run(config, data, chosen, ranks, start)


def token_shards(config: RunConfig) -> Mixture:
    """The batches of a configuration that names token shards.

    Raises:
        ValueError: shards that cannot be read, or of another vocabulary.
    """
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
    return mixture


def _threads() -> int:
    """CPU threads of a process that torchrun started: its share of the cores. Without torchrun 0: PyTorch's.

    torchrun sets OMP_NUM_THREADS to 1 whatever the machine has.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    return max(1, cores() // local) if local else 0


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
    if run.ranks.is_first:
        print(machine, file=sys.stderr)
    model, optimizer = build_model(config, run.device, run.ranks, run.start)
    newest = run.ranks.first(partial(checkpoint.latest, out))
    if newest is None or len(trained(model)) < len(model.shapes):
        initialise(model, config.seed, run.ranks, run.start.weights)
    if newest is None:
        state = TrainState(data=run.data.fingerprint)
    else:
        state = checkpoint.read_state(newest)
        checkpoint.load(newest, model, optimizer, run.ranks)
    guard = OutlierGuard(config.optim.skip_outliers, run.device, state.norms)
    return Trainer(
        model, optimizer, guard, gradients_of(model, config, run.ranks, run.start.draws), state, machine
    )


def build_model(
    config: RunConfig, device: torch.device, ranks: Ranks = ALONE, start: Start = NEW
) -> tuple[Llama, torch.optim.AdamW]:
    """The own share of the model, not initialised, and its optimiser; compiles the kernels they need."""
    elementwise.compile_kernels(config.compute.compile)
    if device.type == "cpu":
        build.prepare(elementwise.SOURCES, lambda line: print(line, file=sys.stderr))
    compute = torch.bfloat16 if config.compute.precision == "bf16" else torch.float32
    place = "meta" if ranks.mesh else device
    model = Llama(config.model, compute, config.compute.activations, place, block=start.block)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(start.trains(name))
    if ranks.mesh is not None:
        parallelize(model, ranks.mesh, config.parallel.reshard)
        model.to_empty(device=device)
    return model, build_optimizer(model, config.optim)


def initialise(model: Llama, seed: int, ranks: Ranks = ALONE, weights: Read | None = None) -> None:
    """Fill a model, or the own share of one, with `weights` or new ones: the same on every mesh."""

    def draw(name: str, shape: torch.Size, region: tuple[slice, ...]) -> Tensor:
        return initial_weight(model.config, name, shape, seed, region[0])[:, *region[1:]]

    fill(model, ranks, weights or draw)
