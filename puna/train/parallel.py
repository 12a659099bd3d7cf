"""A model on many processes: the mesh, tensor parallelism inside a block, FSDP2 around it.

    torchrun --nproc-per-node 4 --no-python puna train --parallel.tp 2 --parallel.dp-shard 2 …

    dp_replicate × dp_shard × tp = the number of processes; neighbouring ranks share a tp group

    tp              the matrices of a block split among ranks (tensor_parallel.py)
    dp_shard        parameters, gradients and moments split among ranks, gathered a block at a time (FSDP2)
    dp_replicate    copies of that, whose gradients are summed (HSDP)

Outside a block a parameter is a DTensor of the data-parallel mesh, inside it a local tensor. The loss is divided
by the token count of the global batch, so gradients are summed over ranks and never averaged.
"""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from puna.config import RunConfig
from puna.model.llama import Llama
from puna.train import tensor_parallel
from puna.train.shares import global_norm, own, share_of, split_axis

AXES = ("dp_replicate", "dp_shard", "tp")


@dataclass(frozen=True)
class Ranks:
    """The processes that share a run. Without a mesh, this process alone: nothing is sent."""

    mesh: DeviceMesh | None = None
    rank: int = 0
    world: int = 1
    dp_rank: int = 0
    """Which rows of a batch are this process's; the ranks of a tp group share them."""
    dp_world: int = 1
    dp_group: dist.ProcessGroup | None = None

    def sum(self, figures: Tensor) -> Tensor:
        """Figures of different rows, summed over the data-parallel ranks, in place."""
        if self.dp_world > 1:
            dist.all_reduce(figures, group=self.dp_group)
        return figures

    def any(self, claim: bool) -> bool:
        """Whether any process claims it: all of them get the same answer."""
        if self.mesh is None:
            return claim
        claims = torch.tensor(int(claim))
        dist.all_reduce(claims, dist.ReduceOp.MAX)
        return bool(claims)

    def clip(self, model: Llama, limit: float) -> Tensor:
        """Scale the gradients down to a global norm of at most `limit`; returns the norm before."""
        if self.mesh is None:
            return nn.utils.clip_grad_norm_(model.parameters(), limit)
        norm = global_norm(dict(model.named_parameters()), self.mesh)
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        gradients = [own(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, scale)
        return norm


ALONE = Ranks()


def join(config: RunConfig, device: torch.device) -> Ranks:
    """Join the process group that torchrun describes in the environment; `ALONE` without it.

    Raises:
        ValueError: the mesh does not match the number of processes, or does not divide the model or the batch.
    """
    parallel, world = config.parallel, int(os.environ.get("WORLD_SIZE", "1"))
    config.check_mesh(world)
    if world == 1:
        return ALONE
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=parallel.timeout))
    shape = parallel.dp_replicate, parallel.dp_shard, parallel.tp
    return ranks_of(init_device_mesh(device.type, shape, mesh_dim_names=AXES))


def ranks_of(mesh: DeviceMesh) -> Ranks:
    """What a mesh with the three axes says of this process."""
    data = mesh["dp_replicate", "dp_shard"]._flatten("dp")
    return Ranks(mesh, dist.get_rank(), mesh.size(), data.get_local_rank(), data.size(), data.get_group())


def parallelize(model: Llama, mesh: DeviceMesh, reshard_after_forward: bool = True) -> None:
    """Split a model built on `meta` among the ranks of a mesh; `to_empty` and a fill of the own shares follow."""
    if mesh["tp"].size() > 1:
        _split_matrices(model, mesh["tp"])
    if mesh.size() > mesh["tp"].size():
        _shard_over_data(model, mesh, reshard_after_forward)


def reduce_gradients(model: Llama, now: bool) -> None:
    """Whether the next backward reduces gradients: only that of the last micro-batch does."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)


def _split_matrices(model: Llama, mesh: DeviceMesh) -> None:
    rank, size = mesh.get_local_rank(), mesh.size()
    for name, parameter in list(model.named_parameters()):
        if (axis := split_axis(name)) is not None:
            start, stop = share_of(parameter.shape[axis], rank, size)
            owner = model.get_submodule(name.rpartition(".")[0])
            own = parameter.detach().narrow(axis, start, stop - start)
            setattr(owner, name.rpartition(".")[2], nn.Parameter(torch.empty_like(own)))
    operations = tensor_parallel.by_hand if model.activations == "manual" else tensor_parallel.plain
    model.ops = operations(mesh.get_group(), share_of(model.config.vocab_size, rank, size)[0])


def _shard_over_data(model: Llama, mesh: DeviceMesh, reshard_after_forward: bool) -> None:
    data = mesh["dp_replicate", "dp_shard"] if mesh["dp_replicate"].size() > 1 else mesh["dp_shard"]
    # On CPUs puna's kernels read fp32 masters. On GPUs weights travel in the compute precision.
    gathered = None if mesh.device_type == "cpu" or model.compute == torch.float32 else model.compute
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=data, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=data, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Each setter acts on its own module alone. Without them gradients are averaged, and gloo, whose
            # reduce-scatter knows no average, sums them silently.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    for method in ("loss", "losses"):  # FSDP gathers weights before `forward` alone
        register_fsdp_forward_method(model, method)
