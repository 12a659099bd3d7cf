"""Which part of a parameter a rank holds, and the whole parameter from all ranks' parts.

name, whole shape ─> region: slices of the whole ─> initial values, a checkpoint's rows
own part          ─> whole: on every rank        ─> a checkpoint that does not depend on the mesh
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from puna.model.llama import Llama
from puna.model.parts import SPLIT_AXIS
from puna.train.ranks import Ranks

Read = Callable[[str, torch.Size, tuple[slice, ...]], Tensor]
"""Some slices of a parameter, from its name, its whole shape and the slices."""


def split_axis(name: str) -> int | None:
    """The axis along which a tp group splits a parameter; None for norms, which every rank holds whole.

    The embedding is split by rows, which are tokens; Meta's files split it by columns. Of an adapter B @ A,
    B has the rows of its matrix and A the columns; the other one is whole.
    """
    role, _, factor = name.rpartition(".")[2].partition("_lora_")
    axis = 0 if role == "embedding" else SPLIT_AXIS.get(role)
    return axis if factor in ("", "BA"[axis or 0]) else None


def share_of(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """Start and stop of a rank's share of `size` rows: equal shares, the last ones shorter or empty."""
    share = -(-size // ranks)
    return min(rank * share, size), min((rank + 1) * share, size)


def region(name: str, parameter: Tensor, shape: torch.Size, mesh: DeviceMesh | None) -> tuple[slice, ...]:
    """The slices of the whole parameter, of `shape`, that this rank holds."""
    start, length = [0] * len(shape), list(shape)
    axis = split_axis(name)
    if axis is not None and mesh is not None:
        first, last = share_of(shape[axis], mesh["tp"].get_local_rank(), mesh["tp"].size())
        start[axis], length[axis] = first, last - first
    if isinstance(parameter, DTensor):
        local, offset = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
        start, length = [a + b for a, b in zip(start, offset, strict=True)], list(local)
    return tuple(slice(first, first + count) for first, count in zip(start, length, strict=True))


def own(tensor: Tensor) -> Tensor:
    """The values in this process: a DTensor's local tensor, any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(name: str, tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """The whole tensor, on every rank; a collective of all of them."""
    local = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    axis, tp = split_axis(name), mesh["tp"]
    if axis is None or tp.size() == 1 or local.ndim == 0:
        return local
    # Shares may differ by rows, and a gather's must not: they are filled up to the largest.
    lengths = torch.zeros(tp.size(), dtype=torch.long, device=local.device)
    lengths[tp.get_local_rank()] = local.shape[axis]
    dist.all_reduce(lengths, group=tp.get_group())
    filled = local.new_zeros([int(lengths.max()) if i == axis else n for i, n in enumerate(local.shape)])
    filled.narrow(axis, 0, local.shape[axis]).copy_(local)
    shares = [torch.empty_like(filled) for _ in range(tp.size())]
    dist.all_gather(shares, filled, group=tp.get_group())
    pairs = zip(shares, lengths.tolist(), strict=True)
    return torch.cat([share.narrow(axis, 0, length) for share, length in pairs], axis)


def collect(tensors: Mapping[str, Tensor], ranks: Ranks, writers: Sequence[int] = (0,)) -> dict[str, Tensor]:
    """The whole tensors, in the first process or divided among `writers`; a collective.

    Each of the writers gets about as many bytes, other processes an empty dictionary.
    """
    if ranks.mesh is None:
        return dict(tensors)
    collected, given = {}, dict.fromkeys(writers, 0)
    for name, tensor in tensors.items():
        found = whole(name, tensor, ranks.mesh)
        writer = min(given, key=given.__getitem__)
        given[writer] += found.nbytes
        if ranks.rank == writer:
            collected[name] = found
    return collected


def whole_model(model: Llama, ranks: Ranks) -> Llama:
    """The model without its mesh, to sample from or to evaluate: on `meta` in all processes but the first."""
    if ranks.mesh is None:
        return model
    tensors = collect({name: value.detach() for name, value in model.named_parameters()}, ranks)
    plain = Llama(model.config, model.compute, model.activations, "meta", block=model.block)
    if ranks.is_first:
        plain.to_empty(device=own(model.norm).device)
        plain.load_state_dict(tensors)
        plain.reset_buffers()
    return plain


@torch.no_grad()
def fill(model: Llama, ranks: Ranks, read: Read, frozen: bool = True) -> None:
    """Fill a model's own shares with what `read` returns, and its buffers.

    `frozen`: also the parameters that do not train.
    """
    model.reset_buffers()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or frozen:
            where = region(name, parameter, model.shapes[name], ranks.mesh)
            own(parameter).copy_(read(name, model.shapes[name], where))


def clip_gradients(model: Llama, limit: float, mesh: DeviceMesh | None) -> Tensor:
    """Scale gradients down to a global norm of at most `limit`; returns the norm before, on every rank."""
    if mesh is None:
        return torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    gradients = {name: own(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    # What every rank of a tp group holds whole is counted once.
    counted = [
        gradient
        for name, gradient in gradients.items()
        if mesh["tp"].get_local_rank() == 0 or split_axis(name) is not None
    ]
    squares = torch.stack([norm.square() for norm in torch._foreach_norm(counted)]).sum()
    for axis in ("dp_shard", "tp"):
        if mesh[axis].size() > 1:
            dist.all_reduce(squares, group=mesh.get_group(axis))
    norm = squares.sqrt()
    torch._foreach_mul_(list(gradients.values()), (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
