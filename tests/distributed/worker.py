"""One of four ranks that form every mesh in turn and train on it; the first writes what happened.

python -m tests.distributed.worker FOLDER RANK
"""

import errno
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from puna.config import ComputeConfig, LoraConfig, ModelConfig, OptimConfig, RunConfig, ScheduleConfig
from puna.finetune.lora import LoraBlock, is_adapter
from puna.formats.adapters import MODULES
from puna.model.llama import Block, Llama
from puna.tokens.mixture import Batch
from puna.train import checkpoint, parallel, ranks, shares, tensor_parallel
from puna.train.checkpoint import Saver, TrainState
from puna.train.optim import build_optimizer
from puna.train.parallel import AXES, ranks_of
from puna.train.ranks import ALONE, Ranks
from puna.train.setup import initialise
from puna.train.shares import collect
from puna.train.step import OutlierGuard, train_step

WORLD, STEPS, SEQUENCES, OUTLIER = 4, 20, 12, 18
CONFIG = RunConfig(
    # Grouped-query heads; sizes that 2, 3 and 4 ranks divide, and a vocabulary that they do not.
    model=ModelConfig(dim=48, n_layers=2, n_heads=24, n_kv_heads=12, ffn_dim=96, vocab_size=1023, context=12),
    optim=OptimConfig(lr=1e-3, skip_outliers=3.0),
    schedule=ScheduleConfig(steps=STEPS, batch_tokens=12 * SEQUENCES, micro_batch=4),
    compute=ComputeConfig(precision="fp32"),
)
MESHES = [shape for shape in product(range(1, WORLD + 1), repeat=3) if np.prod(shape) <= WORLD]
WHOLE = [shape for shape in MESHES if np.prod(shape) == WORLD]
VARIANTS: dict[str, dict[str, Any]] = {
    "manual": {"activations": "manual"},
    "tied, full, kept gathered": {"activations": "full", "tied": True, "reshard": False},
    "adapters": {"lora": LoraConfig(4, 8.0)},
}
# The meshes of several processes that train each variant.
TRAINED = dict(zip(VARIANTS, (MESHES[1:], WHOLE, [(1, 2, 2)]), strict=True))


def batch(step: int, dp_rank: int, dp_world: int) -> Batch:
    """A rank's rows of a random batch with padded windows; one batch has one target: an outlier."""
    draw = np.random.default_rng(step)
    inputs, targets = draw.integers(0, 1023, (2, SEQUENCES, 12))
    for row, length in enumerate(draw.integers(0, 16, SEQUENCES)):
        targets[row, length:] = -100
    if step == OUTLIER:
        targets[0, 1:], targets[1:] = -100, -100
    sources = draw.integers(0, 2, SEQUENCES)
    total = int((targets != -100).sum())
    rows = slice(dp_rank * SEQUENCES // dp_world, (dp_rank + 1) * SEQUENCES // dp_world)
    return Batch(inputs[rows], targets[rows], sources[rows], total)


class Run:
    """A model on a mesh, and what training it gave."""

    def __init__(
        self,
        place: Ranks,
        activations: Any = "manual",
        tied: bool = False,
        reshard: bool = True,
        lora: LoraConfig | None = None,
    ):
        self.config = replace(
            CONFIG,
            model=replace(CONFIG.model, tied_embeddings=tied),
            compute=replace(CONFIG.compute, activations=activations),
        )
        self.place = place
        self.model = Llama(
            self.config.model,
            torch.float32,
            activations,
            "meta" if place.mesh is not None else "cpu",
            block=partial(LoraBlock, lora, tuple(MODULES), 1) if lora else Block,
        )
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(lora is None or is_adapter(name))
        if place.mesh is not None:
            parallel.parallelize(self.model, place.mesh, reshard)
            self.model.to_empty(device="cpu")
        self.optimizer = build_optimizer(self.model, self.config.optim)
        self.guard = OutlierGuard(self.config.optim.skip_outliers, torch.device("cpu"))
        initialise(self.model, 3, place)

    def weights(self) -> dict[str, Tensor]:
        named = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        return {name: value.clone() for name, value in collect(named, self.place).items()}

    def gradients(self) -> dict[str, Tensor]:
        """Of a whole batch without accumulation."""
        part = batch(0, self.place.dp_rank, self.place.dp_world)
        inputs, targets = torch.from_numpy(part.inputs), torch.from_numpy(part.targets)
        self.model.loss(inputs, targets, 1 / part.global_tokens)[0].backward()
        named = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        found = {name: value.clone() for name, value in collect(named, self.place).items()}
        self.optimizer.zero_grad()
        return found

    def train(self, steps: int = STEPS) -> list[dict[str, Any]]:
        records = []
        for step in range(steps):
            part = batch(step, self.place.dp_rank, self.place.dp_world)
            result = train_step(
                self.model, self.optimizer, self.guard, part, 2, 1e-3, self.config, self.place
            )
            records.append({**result.record(("a", "b")), "taken": bool(result.taken)})
        return records

    def moments(self) -> dict[str, Tensor]:
        named = {
            f"{key}.{name}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }
        return {name: value.clone() for name, value in collect(named, self.place).items()}


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative to the largest value of each tensor."""
    return max(
        ((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-30)).item()
        for name, value in expected.items()
    )


def is_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], v) for k, v in expected.items())


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class Done:
    def wait(self) -> None:
        """Nothing was sent."""


def no_gather(x: Tensor, group: Any) -> tensor_parallel.Pending:
    return tensor_parallel.Pending(torch.cat([x] * group.size(), 1), Done())


def no_scatter(x: Tensor, group: Any) -> tensor_parallel.Pending:
    return tensor_parallel.Pending(x[:, : x.shape[1] // group.size()].contiguous(), Done())


def no_reduction(tensor: Tensor, *arguments: Any, **keywords: Any) -> None:
    """An all-reduce that does not happen."""


class Averaging:
    """torch.distributed with AVG for SUM."""

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    @staticmethod
    def all_reduce(tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None) -> None:
        dist.all_reduce(tensor, op, group)
        if op == dist.ReduceOp.SUM:
            tensor /= group.size()


class Silent(Averaging):
    """torch.distributed without all-reduce."""

    all_reduce = staticmethod(no_reduction)  # type: ignore[assignment]


# What is broken -> how. Each must change the losses, the norms or the gradients.
MUTATIONS: dict[str, tuple[Any, str, Any]] = {
    "rows are not gathered over tp": (tensor_parallel, "gather", no_gather),
    "partial sums are not reduced over tp": (tensor_parallel, "scatter", no_scatter),
    "sums over tp are not taken": (tensor_parallel, "summed", lambda x, group: x),
    "the largest logit is not shared": (tensor_parallel, "dist", Silent()),
    "sums over tp are means": (tensor_parallel, "dist", Averaging()),
    "squares are not summed over ranks": (shares, "dist", Silent()),
    "squares are averaged over ranks": (shares, "dist", Averaging()),
    "figures are not summed over ranks": (ranks, "dist", Silent()),
    "gradients are averaged over ranks": (parallel.FSDPModule, "set_gradient_divide_factor", lambda *a: None),
    "gradients are never reduced": (parallel.FSDPModule, "set_requires_gradient_sync", None),
}


def never(model: Any, now: bool) -> None:
    original_sync(model, False)


original_sync: Callable[..., None] = parallel.FSDPModule.set_requires_gradient_sync


def mutation_is_seen(name: str, expected: list[dict[str, Any]], gradients: dict[str, Tensor]) -> bool:
    owner, attribute, value = MUTATIONS[name]
    place = ranks_of(DeviceMesh("cpu", torch.arange(WORLD).view(1, 2, 2), mesh_dim_names=AXES))
    with patched(owner, attribute, value or never):
        try:
            run = Run(place)
            found = {} if value is None or owner is shares else run.gradients()
            records = run.train(2)
        except (RuntimeError, AttributeError):
            return True
    if place.is_first and found and largest_difference(found, gradients) > 1e-4:
        return True
    pairs = [
        (a[key], b[key]) for a, b in zip(records, expected, strict=False) for key in ("loss", "grad_norm")
    ]
    return any(abs(found - wanted) > 1e-4 * wanted for found, wanted in pairs)


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=120))
    results: dict[str, Any] = {"meshes": {}, "mutations": {}}
    expected, gradients = {}, {}
    for variant, options in VARIANTS.items():
        alone = Run(ALONE, **options)
        initial = alone.weights()
        gradients[variant] = alone.gradients()
        expected[variant] = alone.train()
        results[variant] = {"alone": expected[variant]}
        for shape in TRAINED[variant]:
            size = int(np.prod(shape))
            mesh = DeviceMesh("cpu", torch.arange(size).view(shape), mesh_dim_names=AXES)
            if rank >= size:
                continue
            run = Run(ranks_of(mesh), **options)
            found = {"initial": run.weights(), "gradients": run.gradients()}
            records = run.train()
            if rank == 0:
                results[variant]["×".join(map(str, shape))] = {
                    "initial weights are equal": is_equal(found["initial"], initial),
                    "gradients": largest_difference(found["gradients"], gradients[variant]),
                    "records": records,
                }
            if variant == "manual" and size == WORLD:
                check_checkpoint(folder, run, shape, options, results)
    for name in MUTATIONS:
        seen = mutation_is_seen(name, expected["manual"], gradients["manual"])
        claims = [torch.zeros(1) for _ in range(WORLD)]
        dist.all_gather(claims, torch.tensor([float(seen)]))
        results["mutations"][name] = bool(torch.cat(claims).any())
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def full_disk(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def check_checkpoint(
    folder: Path, run: Run, shape: tuple[int, ...], options: dict[str, Any], results: dict[str, Any]
) -> None:
    """Written on this mesh, a checkpoint loads on the mesh with its axes turned, and in one process.

    The ranks are those of two machines, each of which writes a part.
    """
    writers = (0, 2)
    group = dist.new_group(list(writers), backend="gloo")
    two = replace(run.place, writers=writers, writing=group if run.place.rank in writers else None)
    saver = Saver(folder, 100, two)
    number = len(list((folder / "checkpoints").glob("step-*"))) + 1 if run.place.is_first else 0
    number = run.place.first(lambda: number)
    saver.save(TrainState(step=number), run.model, run.optimizer)
    saver.wait()
    path = folder / "checkpoints" / f"step-{number:06d}"
    with patched(checkpoint, "save_file", full_disk if run.place.rank == 2 else checkpoint.save_file):
        saver.save(TrainState(step=99), run.model, run.optimizer)
        try:
            saver.wait()
            refusal = ""
        except OSError as error:
            refusal = str(error)
    weights, moments = run.weights(), run.moments()
    turned = shape[1:] + shape[:1]
    mesh = DeviceMesh("cpu", torch.arange(WORLD).view(turned), mesh_dim_names=AXES)
    other, alone = Run(ranks_of(mesh), **options), Run(ALONE)
    checkpoint.load(path, other.model, other.optimizer, other.place)
    found = other.weights(), other.moments()
    if run.place.is_first:
        checkpoint.load(path, alone.model, alone.optimizer)
        single = alone.weights(), alone.moments()
        sizes = [file.stat().st_size for file in sorted(path.glob("weights-0000?-of-00002.safetensors"))]
        results.setdefault("checkpoints", {})["×".join(map(str, shape))] = {
            "equal": all(is_equal(a, weights) and is_equal(b, moments) for a, b in (found, single)),
            "sizes": sizes,
            "refusal": refusal,
            "complete": [one.name for one in checkpoint.checkpoints(folder)],
        }


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
