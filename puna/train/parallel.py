"""A model on many processes: the mesh, tensor parallelism inside a block, FSDP2 around it.

    torchrun --nproc-per-node 4 --no-python puna train --parallel.tp 2 --parallel.dp-shard 2 …

    dp_replicate × dp_shard × tp = the number of processes; neighbouring ranks share a tp group

    tp              the matrices of a block split among ranks (tensor_parallel.py)
    dp_shard        parameters, gradients and moments split among ranks, gathered a block at a time (FSDP2)
    dp_replicate    copies of that, whose gradients are summed (HSDP)

Outside a block a parameter is a DTensor of the data-parallel mesh, inside it a local tensor. The loss is
divided by the token count of the global batch, so gradients are summed over ranks and never averaged.
"""

import os
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.rendezvous import rendezvous

from puna.config import ParallelConfig
from puna.model.llama import Llama
from puna.train import tensor_parallel
from puna.train.ranks import ALONE, Ranks
from puna.train.shares import share_of, split_axis

AXES = ("dp_replicate", "dp_shard", "tp")


def join(config: ParallelConfig, device: torch.device) -> Ranks:
    """Join the process group that torchrun describes in the environment; `ALONE` without torchrun.

    Raises:
        ValueError: the mesh is not one of as many processes as torchrun started.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if config.ranks != world:
        started = f"torchrun started {world}" if "WORLD_SIZE" in os.environ else "torchrun started none"
        raise ValueError(
            f"--parallel is {config}, which makes {config.ranks} ranks, but {started}; "
            f"change the mesh, or run: torchrun --nproc-per-node {config.ranks} --no-python puna train …"
        )
    if world == 1:
        return ALONE
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=config.timeout)
    store, rank, _ = next(rendezvous("env://", timeout=timeout))
    # After a restart torchrun's store still holds the addresses of the processes that have ended.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"attempt-{attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    shape = config.dp_replicate, config.dp_shard, config.tp
    place = ranks_of(init_device_mesh(device.type, shape, mesh_dim_names=AXES))
    writers = tuple(range(0, world, int(os.environ.get("LOCAL_WORLD_SIZE", world))))
    writing = dist.new_group(list(writers), backend="gloo") if len(writers) > 1 else None
    return replace(
        place,
        writers=writers,
        writing=writing if rank in writers else None,
        side=dist.new_group(backend="gloo"),
    )


def ranks_of(mesh: DeviceMesh) -> Ranks:
    """This process's place in a mesh with the three axes."""
    replica, shard, _ = mesh.get_coordinate() or (0, 0, 0)
    n_replicas, n_shards, _ = mesh.shape
    return Ranks(mesh, dist.get_rank(), replica * n_shards + shard, n_replicas * n_shards)


def parallelize(model: Llama, mesh: DeviceMesh, reshard: bool = True) -> None:
    """Split a model built on `meta` among the ranks of a mesh; `to_empty` and the own values follow."""
    if mesh["tp"].size() > 1:
        _split_matrices(model, mesh["tp"])
    if mesh.size() > mesh["tp"].size():
        _shard_over_data(model, mesh, reshard)


def reduce_gradients(model: Llama, now: bool) -> None:
    """Whether the next backward pass reduces gradients over ranks: only the last micro-batch's does."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)


def reshard(model: Llama) -> None:
    """After a forward pass without backward: drop gathered weights, and give parameters back their shards.

    FSDP2 leaves the root's weights gathered. Until its next pass they would be what `named_parameters`
    returns, and the optimiser has no state for them.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


def _split_matrices(model: Llama, mesh: DeviceMesh) -> None:
    rank, size = mesh.get_local_rank(), mesh.size()
    for name, parameter in list(model.named_parameters()):
        if (axis := split_axis(name)) is not None:
            start, stop = share_of(parameter.shape[axis], rank, size)
            owner = model.get_submodule(name.rpartition(".")[0])
            own = parameter.detach().narrow(axis, start, stop - start)
            part = nn.Parameter(torch.empty_like(own), parameter.requires_grad)
            setattr(owner, name.rpartition(".")[2], part)
    operations = tensor_parallel.by_hand if model.activations == "manual" else tensor_parallel.plain
    model.ops = operations(mesh.get_group(), share_of(model.config.vocab_size, rank, size)[0])


def _shard_over_data(model: Llama, mesh: DeviceMesh, reshard: bool) -> None:
    data = mesh["dp_replicate", "dp_shard"] if mesh["dp_replicate"].size() > 1 else mesh["dp_shard"]
    # On CPUs puna's kernels read fp32 masters. On GPUs weights travel in the compute precision.
    gathered = None if mesh.device_type == "cpu" or model.compute == torch.float32 else model.compute
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=data, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mesh=data, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Each setter acts on its own module alone. Without them gradients are averaged, and gloo, whose
            # reduce-scatter knows no average, sums them silently.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    for method in ("loss", "losses"):  # FSDP gathers weights before `forward` alone
        register_fsdp_forward_method(model, method)
