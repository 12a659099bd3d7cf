"""Does the input gradient's collective hide behind the weight gradients?

    python benchmarks/scale.py [--quick]

In one process, with a group that delays every collective by --delay seconds: a layer's backward with overlap,
and with each collective waited for as soon as it begins. The difference should be the delay, or the time of
the weight gradients if that is shorter. At the end, the profiler's trace of one backward with overlap.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from puna import devices
from puna.train import tensor_parallel
from puna.train.tensor_parallel import NormLinear, Pending

PARTS = "reduction begins", "weight gradients", "waits for the reduction"


class Delayed:
    """A collective that is there some time after it began."""

    def __init__(self, delay: float) -> None:
        self.delay, self.ready = delay, time.perf_counter() + delay

    def wait(self) -> None:
        with record_function(PARTS[2]) if self.delay else nullcontext():
            time.sleep(max(0.0, self.ready - time.perf_counter()))


def delayed(delay: float, at_once: bool):
    def start(x: Tensor, group: object) -> Pending:
        with record_function(PARTS[0]) if delay else nullcontext():
            work = Delayed(delay)
        if at_once:
            work.wait()
        return Pending(x, work)

    return start


def seconds_of(function, *arguments: object) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def trace(backward: Callable[[], None]) -> None:
    """Print when the parts of a backward begin and end."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        backward()
    parts = [event for event in profiler.events() if event.name in PARTS]
    begin = parts[0].time_range.start
    for event in parts:
        first, last = (1e-3 * (moment - begin) for moment in (event.time_range.start, event.time_range.end))
        bar = " " * round(first / 2) + "#" * max(1, round((last - first) / 2))
        print(f"{event.name:>24}  {first:6.1f} - {last:6.1f} ms  {bar}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds that a collective takes")
    options = parser.parse_args()
    devices.configure(torch.device("cpu"))
    gradients = tensor_parallel.weight_gradients

    def recorded(*tensors: Tensor) -> tuple[Tensor, ...]:
        with record_function(PARTS[1]):
            return gradients(*tensors)

    tensor_parallel.weight_gradients = recorded
    store = dist.FileStore(tempfile.mkstemp()[1], 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    N, D, O = (2048, 512, 1536)  # noqa: E741
    x, norm = torch.randn(1, N, D, requires_grad=True), torch.ones(D, requires_grad=True)
    weight = torch.randn(O, D, requires_grad=True)
    dy = torch.randn(1, N, O)
    times: dict[str, list[float]] = {"overlap": [], "in turn": [], "weight gradients alone": []}
    for _ in range(3 if options.quick else 15):
        for name, at_once in (("overlap", False), ("in turn", True)):
            tensor_parallel.gather = delayed(0.0, False)  # of the two, the reduction is measured
            tensor_parallel.scatter = delayed(options.delay, at_once)
            y = NormLinear.apply(dist.group.WORLD, x, norm, 1e-6, torch.float32, weight)
            times[name].append(seconds_of(y.backward, dy))
        times["weight gradients alone"].append(seconds_of(gradients, dy, x.detach(), weight))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name:>24}  {medians[name] * 1e3:7.1f} ms  ({min(values) * 1e3:.1f}-{max(values) * 1e3:.1f})")
    hidden = medians["in turn"] - medians["overlap"]
    possible = min(options.delay, medians["weight gradients alone"])
    tensor_parallel.gather = delayed(0.0, False)
    tensor_parallel.scatter = delayed(options.delay, False)
    y = NormLinear.apply(dist.group.WORLD, x, norm, 1e-6, torch.float32, weight)
    trace(lambda: y.backward(dy))
    print(f"hidden: {hidden * 1e3:.1f} of {possible * 1e3:.1f} ms ({hidden / possible:.0%})")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
