"""The device that computes, its precision and its speed: the one module that inspects the machine.

    --device auto ────> choose_device ────> a CUDA device where there is one, else the CPU
                        configure ────────> PyTorch's process-wide settings, all of them
    precision auto ───> fast_precision ───> bf16 where it multiplies at least as fast as fp32
                        measure ──────────> Machine: what was chosen, and the matrix peak of MFU

`auto` never chooses Apple's GPUs (`--device mps`): nothing has been run on them yet, while a Mac's CPU is
known to work.

PUNA_CPU=avx2 limits puna's kernels and PyTorch's libraries to AVX2 on CPUs that have more. The libraries read
their settings once, so it must be set before puna and torch are imported.
"""

import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from puna.allowance import cores

if TYPE_CHECKING:  # torch takes a second to import, and the command line reads the types below
    import torch

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["bf16", "fp32"]

CPU_LIMIT = "PUNA_CPU"
# Environment variables of the libraries under PyTorch at each level.
CPU_LEVELS = {
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}
PROBE_SECONDS = 0.025  # for each precision
PEAK_SECONDS = 0.3
SMALLEST, LARGEST_ON_CPU, LARGEST = 128, 2048, 8192  # sides of the matrices that are multiplied
# Relative error of a product of 512 terms: fp32 sums err by some 1e-7, operands rounded to bf16 by 2e-3.
FP32_TOLERANCE = 5e-6


def cpu_limit() -> str | None:
    """The level that PUNA_CPU limits this process to, or None.

    Raises:
        ValueError: there is no such level, or this processor is not an x86-64 one.
    """
    level = os.environ.get(CPU_LIMIT) or None
    if level is not None and level not in CPU_LEVELS:
        raise ValueError(f"{CPU_LIMIT} is {level!r}; expected {' or '.join(CPU_LEVELS)}, or unset it")
    if level is not None and platform.machine() not in ("x86_64", "AMD64"):
        raise ValueError(
            f"{CPU_LIMIT}={level} needs an x86-64 processor, and this one is {platform.machine()}; unset it"
        )
    return level


def limit_cpu() -> None:
    """Pass the limit of PUNA_CPU to the libraries under PyTorch; child processes inherit it.

    An unknown level is ignored here: `cpu_limit` refuses it where an error can be one line.

    Raises:
        ImportError: torch was imported before puna, so that the limit has no effect.
    """
    wanted = CPU_LEVELS.get(os.environ.get(CPU_LIMIT, ""), {})
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    if "torch" in sys.modules:
        raise ImportError(
            f"{CPU_LIMIT}={os.environ[CPU_LIMIT]} is set, but torch was imported first; import puna before it"
        )
    os.environ.update(wanted)


def choose_device(name: DeviceName = "auto") -> "torch.device":
    """The device of a name; `auto`: a CUDA device where there is one, else the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    import torch

    cpu_limit()
    if name not in get_args(DeviceName):
        raise ValueError(f"device is {name!r}; expected one of: {', '.join(get_args(DeviceName))}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        reason = "finds no CUDA device" if torch.backends.cuda.is_built() else "was built without CUDA"
        raise ValueError(f"--device cuda: PyTorch {torch.__version__} {reason}; use --device cpu")
    if name == "cuda":  # fp32 is to be fp32
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores for float32")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"--device mps: PyTorch {torch.__version__} finds no Apple GPU; use --device cpu")
    return torch.device(name)


def configure(device: "torch.device", threads: int = 0, deterministic: bool = False) -> None:
    """Set PyTorch's process-wide settings. `threads`: number of CPU threads; 0: as `limit_threads`."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    else:
        limit_threads()
    if deterministic:
        if device.type == "cuda":  # cuBLAS is deterministic only with a workspace of fixed size
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if device.type == "cpu":
        use_onednn_for_fp32()


def limit_threads() -> None:
    """Reduce PyTorch's CPU threads to the cores that this process may use, unless OMP_NUM_THREADS is set.

    PyTorch starts one for each core of the machine, also in a container with a quota of fewer.
    """
    import torch

    if torch.get_num_threads() > cores() and not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(cores())


def use_onednn_for_fp32() -> bool:
    """Compute the CPU's fp32 products by oneDNN if they stay fp32; returns whether they do.

    On CPUs that are not Intel's, MKL's fp32 kernels run at half the rate of oneDNN's, and PyTorch uses oneDNN
    for fp32 products only if they may be rounded to bf16 internally. CPUs with AMX do round; those without
    gain nothing from it, and compute in fp32. So the setting is tried, and stays only if the products have
    fp32's accuracy.
    """
    import torch

    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    if fp32_error() < FP32_TOLERANCE:
        return True
    setting.fp32_precision = before
    return False


def fp32_error() -> float:
    """The relative error of an fp32 product on this CPU as it is configured now, against fp64."""
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    return float((a @ b - exact).norm() / exact.norm())


def matrix_rate(device: "torch.device", precision: Precision, seconds: float, size: int = SMALLEST) -> float:
    """The highest rate at which PyTorch multiplies square matrices on a device, in FLOP/s.

    Sizes are doubled from `size` on while the next one certainly fits into `seconds`, so that a CPU that
    computes bf16 at a hundredth of its fp32 rate is measured in the same time. The rest of the time the last
    size takes turns with its half and its quarter: small products are the fastest where the threads are
    undisturbed, large ones where they compete with other work.
    """
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    largest = LARGEST_ON_CPU if device.type == "cpu" else LARGEST
    tile = torch.randn(SMALLEST, SMALLEST, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    best = 0.0
    _seconds_of(tile, tile)  # libraries and threads start with the first product
    deadline = time.perf_counter() + seconds
    while True:
        a, b = (tile.repeat(size // SMALLEST, size // SMALLEST) for _ in range(2))
        _seconds_of(a, b)  # some libraries generate the kernel of a size at its first use
        elapsed = _seconds_of(a, b)
        best = max(best, 2 * size**3 / elapsed)
        left = deadline - time.perf_counter()
        if size == largest or left < 3 * 8 * elapsed:  # twice the size is eight times the work
            break
        size *= 2
    turns = [
        (a[:side, :side].contiguous(), side) for side in (size // 4, size // 2, size) if side >= SMALLEST
    ]
    while time.perf_counter() + elapsed < deadline:
        for matrix, side in turns:
            best = max(best, 2 * side**3 / _seconds_of(matrix, matrix))
    return best


def _seconds_of(a: "torch.Tensor", b: "torch.Tensor") -> float:
    started = time.perf_counter()
    a @ b
    synchronize(a.device)
    return max(time.perf_counter() - started, 1e-9)


def synchronize(device: "torch.device") -> None:
    """Wait until a device has finished all queued work; a CPU always has."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


Mark = Any
"""A moment on a device's time line: seconds, or a `torch.cuda.Event`."""


def mark(device: "torch.device") -> Mark:
    """The present; on a GPU the moment when it has done what was launched so far, without a wait."""
    import torch

    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(first: Mark, last: Mark) -> float:
    """Seconds from one mark to a later one, which the device must have reached."""
    return last - first if isinstance(first, float) else first.elapsed_time(last) / 1e3


@contextmanager
def _one_thread() -> Iterator[None]:
    # On a busy machine threads wait for each other, which slows small products more than large ones.
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def probe(device: "torch.device") -> dict[Precision, float]:
    """The rates of both precisions, FLOP/s, measured in some 50 ms; on a CPU those of one core."""
    precisions: tuple[Precision, ...] = ("bf16", "fp32")
    size = LARGEST // 2 if device.type == "cuda" else SMALLEST  # a small product does not fill a GPU
    with _one_thread():
        return {precision: matrix_rate(device, precision, PROBE_SECONDS, size) for precision in precisions}


def fast_precision(device: "torch.device") -> Precision:
    """The precision of `precision = auto` on a device: bf16 where it multiplies at least as fast as fp32.

    GPUs say whether they have bf16 units; a measurement could be that of another program's work.
    """
    import torch

    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    rates = probe(device)
    return "bf16" if rates["bf16"] >= rates["fp32"] else "fp32"


@dataclass(frozen=True)
class Machine:
    """The device of a run and its measured speed."""

    device: "torch.device"
    name: str
    """The processor's or the GPU's name."""
    threads: int
    """CPU threads."""
    precision: Precision
    """Precision of the matrix products."""
    bf16_speed: float
    """The rate of bf16 products divided by that of fp32 products."""
    peak: float
    """The highest measured rate of a matrix product, FLOP/s; MFU is relative to it."""

    def __str__(self) -> str:
        """`cpu, AMD EPYC, 2 threads, fp32 (bf16 is 37 times slower here), 111 GFLOP/s`."""
        speed = self.bf16_speed
        said = f"{speed:.1f} times as fast" if speed >= 1 else f"{_times(1 / speed)} times slower"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        parts = [self.device.type, self.name, *([threads] if self.device.type == "cpu" else [])]
        rate = f"{self.peak / 1e9:,.0f} GFLOP/s"
        return ", ".join([*parts, f"{self.precision} (bf16 is {said} here)", rate])


def _times(factor: float) -> str:
    return f"{factor:.1f}" if factor < 10 else f"{factor:,.0f}"


def measure(device: "torch.device", precision: Precision) -> Machine:
    """Measure the device of a run, in well under a second; warns where bf16 is slow."""
    import logging  # here, because --help imports this module

    import torch

    rates = probe(device)
    speed = rates["bf16"] / rates["fp32"]
    if precision == "bf16" and speed < 0.5:
        logging.getLogger(__name__).warning(
            "the precision is bf16, which PyTorch multiplies %s times slower than fp32 on %s; "
            "for a new run use --compute.precision auto",
            _times(1 / speed),
            device_name(device),
        )
    # Converting bf16 to fp32 is exact, so where fp32 is faster, bf16 can be multiplied at the rate of fp32.
    fastest: Precision = "bf16" if precision == "bf16" and speed >= 1 else "fp32"
    # On a busy machine small products are no measure: begin with the largest one that a single core computes
    # in a part of the time.
    size = SMALLEST
    while size < LARGEST_ON_CPU and 2 * (2 * size) ** 3 / rates[fastest] < PEAK_SECONDS / 4:
        size *= 2
    peak = matrix_rate(device, fastest, PEAK_SECONDS, size)
    return Machine(device, device_name(device), torch.get_num_threads(), precision, speed, peak)


def device_name(device: "torch.device") -> str:
    """The GPU's or the processor's name."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def gpus(device: "torch.device") -> tuple[str, ...]:
    """The UUID of the GPU that a process computes on, as NVML knows it; none for a CPU."""
    import torch

    if device.type != "cuda":
        return () if device.type == "cpu" else (device.type,)
    return (f"GPU-{torch.cuda.get_device_properties(device).uuid}",)


def cpu_name() -> str:
    """The processor's name as the operating system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def to_device(array: Any, device: "torch.device") -> "torch.Tensor":
    """A NumPy array on a device; the copy to a CUDA device is asynchronous, from pinned memory."""
    import torch

    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def copy_to_cpu(tensors: "dict[str, torch.Tensor]") -> "tuple[dict[str, torch.Tensor], Callable[[], None]]":
    """Copies of tensors in the CPU's memory, and a function that waits until they are there.

    A CUDA device copies in stream order, after the work queued before and before the work queued later: later
    work may overwrite the tensors at once, without a wait.
    """
    import torch

    on_cuda = any(tensor.is_cuda for tensor in tensors.values())
    copies = {
        name: tensor.detach().to("cpu", copy=True, non_blocking=tensor.is_cuda)
        for name, tensor in tensors.items()
    }
    if not on_cuda:
        return copies, lambda: None
    done = torch.cuda.Event()
    done.record()
    return copies, done.synchronize
