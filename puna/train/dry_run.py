"""The formulas of plan.py checked by the model itself: two steps on tensors without values, the peak bytes.

    the model, its mesh, its optimiser ─> two optimiser steps under FakeTensorMode, a process group that sends
    nothing ─> every storage that is made and freed is counted ─> the most bytes at one time

It runs on a CPU in seconds, whatever the number of ranks; it is rank 0 of the mesh. Elementwise kernels count
as one operation each, as they are where they are compiled.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from puna.config import MeshConfig, OptimConfig
from puna.kernels.elementwise import Kernel
from puna.model.llama import Llama
from puna.train.optim import build_optimizer
from puna.train.parallel import AXES, parallelize, reduce_gradients
from puna.train.plan import Job
from puna.train.shares import clip_gradients, own


def peak_bytes(job: Job, mesh: MeshConfig, micro_batch: int) -> int:
    """The most bytes that a rank's tensors take during a training step.

    Weights are gathered in fp32 (`job.gather_bytes` 4), as training on CPUs does.

    Raises:
        ValueError: this process is one of a run, or the mesh does not divide the model.
    """
    if dist.is_initialized():
        raise ValueError("a dry run imitates a process group, and this process has one; run it on its own")
    mesh.divide(job.model, job.sequences)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=mesh.ranks)
    try:
        return _two_steps(job, mesh, micro_batch)
    finally:
        dist.destroy_process_group()


def _two_steps(job: Job, mesh: MeshConfig, micro_batch: int) -> int:
    shape = mesh.dp_replicate, mesh.dp_shard, mesh.tp
    ranks = init_device_mesh("cpu", shape, mesh_dim_names=AXES) if mesh.ranks > 1 else None
    compute = torch.bfloat16 if job.compute_bytes == 2 else torch.float32
    sizes = micro_batch, job.model.context
    with FakeTensorMode():
        model = Llama(job.model, compute, job.activations, "cpu")
        if ranks is not None:
            parallelize(model, ranks)
        model.reset_buffers()
        optimizer = build_optimizer(model, OptimConfig())
        storages = Storages([*model.parameters(), *model.buffers()])
        with storages:
            for _ in range(2):  # the first makes the moments
                micro_batches = min(2, job.sequences // mesh.dp // micro_batch)
                for number in range(micro_batches):
                    reduce_gradients(model, number == micro_batches - 1)
                    tokens = torch.zeros(sizes, dtype=torch.long)
                    total, losses = model.loss(tokens, tokens, 1.0)
                    total.backward()
                    del total, losses, tokens
                clip_gradients(model, 1.0, ranks)
                optimizer.step()
                optimizer.zero_grad()
    return storages.peak


class Storages(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and their peak, while it is active."""

    def __init__(self, before: list[Tensor]) -> None:
        """`before`: the tensors that are alive already."""
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._inside_kernel = False
        self._count(before)

    def __enter__(self) -> "Storages":
        self._patches = [
            patch.object(torch.UntypedStorage, "resize_", self._resize(torch.UntypedStorage.resize_)),
            patch.object(Kernel, "__call__", self._one_operation(Kernel.__call__)),
        ]
        for each in self._patches:
            each.start()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for each in self._patches:
            each.stop()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it makes."""
        if function is torch.ops.aten._local_scalar_dense.default:
            return 1.0  # the one value that is read: the gradient that `backward` begins with
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            # In the order of memory that attention on GPUs returns, where no copy is needed.
            result = (result[0].transpose(1, 2).contiguous().transpose(1, 2), *result[1:])
        if not self._inside_kernel:
            self._count(result)
        return result

    def _count(self, result: Any) -> None:
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = own(tensor).untyped_storage()
                key = storage._cdata
                if key not in self._sizes:
                    weakref.finalize(storage, self._free, key)
                self._set(key, storage.nbytes())

    def _set(self, key: int, size: int) -> None:
        self.now += size - self._sizes.get(key, 0)
        self.peak = max(self.peak, self.now)
        self._sizes[key] = size

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def _resize(self, resize: Any) -> Any:
        """FSDP2 frees gathered weights by resizing their storage, which is no operation."""

        def counted(storage: torch.UntypedStorage, size: int) -> None:
            resize(storage, size)
            if storage._cdata in self._sizes:
                self._set(storage._cdata, size)

        return counted

    def _one_operation(self, call: Any) -> Any:
        def counted(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            with self._inside():
                result = call(kernel, *args, **kwargs)
            self._count(result)
            return result

        return counted

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._inside_kernel = True
        try:
            yield
        finally:
            self._inside_kernel = False
