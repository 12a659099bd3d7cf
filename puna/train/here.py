"""`puna train --dry-run`: the plan of a run on this machine, whose matrix peak is measured now."""

import socket
import threading
import time
from dataclasses import replace
from typing import Literal

import torch

from puna import allowance, devices
from puna.config import RunConfig
from puna.devices import DeviceName, Precision
from puna.kernels.matmul import kernels_for
from puna.model.loss import block_rows
from puna.train.machines import Machine
from puna.train.plan import Job, Plan, plan

MFU = {"cpu": 0.75, "cuda": 0.5}
"""Share of the matrix peak, by device: what benchmarks/train.py shows."""
HEAP_HOLES = 0.2
"""What benchmarks/plan.py shows: 0.12 to 0.25, more with small tensors."""

LOOPBACK_SHARE = 5.0
"""How much slower gloo sends a byte than the loopback: both ends send, receive and copy on the same cores,
and its reduce-scatter is an all-reduce for each rank."""


def plan_here(
    config: RunConfig, device: DeviceName = "auto", trained: float = 1.0
) -> tuple[Plan, devices.Machine]:
    """The plan of a run on this machine, and what was measured of the machine.

    `trained` is the share of the parameters that train. Its processes, if `config.parallel` has several,
    share a CPU; GPUs are counted one each.

    Raises:
        ValueError: this machine has no such device.
    """
    machine, measured = machine_here(
        config.parallel.ranks, device, config.compute.precision, config.compute.threads
    )
    schedule = config.schedule
    job = Job(
        config.model,
        schedule.batch_tokens,
        float(schedule.batch_tokens) * schedule.steps,
        config.compute.activations,
        trained=trained,
    )
    rows = job.sequences // config.parallel.dp
    micro_batch = min(schedule.micro_batch, rows)
    kind = measured.device.type
    return plan(job_here(job, measured), machine, config.parallel, micro_batch, MFU.get(kind, 0.5)), measured


def machine_here(
    ranks: int = 1,
    device: DeviceName = "auto",
    precision: Precision | Literal["auto"] = "auto",
    threads: int = 0,
) -> tuple[Machine, devices.Machine]:
    """What each of `ranks` processes has of this machine, and what was measured of the machine.

    Raises:
        ValueError: this machine has no such device.
    """
    chosen = devices.choose_device(device)
    devices.configure(chosen, threads)
    measured = devices.measure(chosen, devices.fast_precision(chosen) if precision == "auto" else precision)
    on_cpu = chosen.type == "cpu"
    if chosen.type == "cuda":
        memory, share = torch.cuda.get_device_properties(chosen).total_memory, 1
    else:
        memory, share = allowance.memory(), ranks
    link = loopback_rate() / LOOPBACK_SHARE / 1e9 if on_cpu and ranks > 1 else 10.0
    machine = Machine(
        measured.name,
        memory / share / 1e9,
        measured.peak / share / 1e12,
        ranks,
        link,
        link,
        watts=0,  # not known
        overlaps=not on_cpu,
    )
    return machine, measured


def job_here(job: Job, measured: devices.Machine) -> Job:
    """A job in the precision of a measured machine, with what its device needs."""
    on_cpu, compute = measured.device.type == "cpu", 2 if measured.precision == "bf16" else 4
    return replace(
        job,
        compute_bytes=compute,
        gather_bytes=4 if on_cpu else compute,
        logits_rows=block_rows(measured.device),
        packed_bytes=_packed_bytes(measured.precision) if on_cpu else 0,
        heap_holes=HEAP_HOLES if on_cpu else 0.0,
    )


def loopback_rate(size: int = 1 << 24, rounds: int = 3) -> float:
    """Bytes per second that two threads pass through a local connection, in the best of some rounds."""
    sent, received, best = bytes(size), bytearray(size), 0.0
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as first,
        server.accept()[0] as second,
    ):
        for _ in range(rounds):
            sender = threading.Thread(target=first.sendall, args=(sent,))
            started, count = time.perf_counter(), 0
            sender.start()
            while count < size:
                count += second.recv_into(memoryview(received)[count:])
            sender.join()
            best = max(best, size / (time.perf_counter() - started))
    return best


def _packed_bytes(precision: Precision) -> int:
    kernels = kernels_for(torch.bfloat16 if precision == "bf16" else torch.float32)
    return kernels.panel_dtype.itemsize if kernels else 0
