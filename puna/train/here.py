"""`puna train --dry-run`: the plan of a run on this machine, whose matrix peak is measured now."""

import os

import torch

from puna import devices
from puna.config import RunConfig
from puna.devices import DeviceName, Precision
from puna.kernels.matmul import kernels_for
from puna.model.loss import block_rows
from puna.train.plan import Job, Machine, Plan, plan

MFU = {"cpu": 0.8, "cuda": 0.5}
"""Share of the matrix peak, by device: what benchmarks/train.py shows."""
HEAP_HOLES = 0.2
"""What benchmarks/plan.py shows: 0.12 to 0.25, more with small tensors."""


def plan_here(
    config: RunConfig, device: DeviceName = "auto", trained: float = 1.0
) -> tuple[Plan, devices.Machine]:
    """The plan of a run on this machine, and what was measured of the machine.

    `trained` is the share of the parameters that train. Its processes, if `config.parallel` has several,
    share a CPU; GPUs are counted one each.

    Raises:
        ValueError: this machine has no such device.
    """
    chosen = devices.choose_device(device)
    devices.configure(chosen, config.compute.threads)
    precision = config.compute.precision
    if precision == "auto":
        precision = devices.fast_precision(chosen)
    measured = devices.measure(chosen, precision)
    if chosen.type == "cuda":
        memory, share = torch.cuda.get_device_properties(chosen).total_memory, 1
    else:
        memory, share = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), config.parallel.ranks
    # Neither the traffic between processes of one machine nor its power is known.
    machine = Machine(measured.name, memory / share / 1e9, measured.peak / share / 1e12, share, 10, 10, 0)
    compute = 2 if precision == "bf16" else 4
    schedule = config.schedule
    job = Job(
        config.model,
        schedule.batch_tokens,
        float(schedule.batch_tokens) * schedule.steps,
        config.compute.activations,
        compute,
        gather_bytes=compute if chosen.type == "cuda" else 4,
        logits_rows=block_rows(chosen),
        packed_bytes=_packed_bytes(precision) if chosen.type == "cpu" else 0,
        heap_holes=HEAP_HOLES if chosen.type == "cpu" else 0.0,
        trained=trained,
    )
    rows = job.sequences // config.parallel.dp
    return plan(
        job, machine, config.parallel, min(schedule.micro_batch, rows), MFU.get(chosen.type, 0.5)
    ), measured


def _packed_bytes(precision: Precision) -> int:
    kernels = kernels_for(torch.bfloat16 if precision == "bf16" else torch.float32)
    return kernels.panel_dtype.itemsize if kernels else 0
