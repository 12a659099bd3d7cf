"""Training speed and memory against peers, interleaved in one run.

    python benchmarks/train.py                    15m and 110m; bf16 where the CPU has it, fp32 elsewhere
    python benchmarks/train.py --size 15m --precision fp32 --steps 20
    python benchmarks/train.py --device cuda      110m and 1b, bf16
    python benchmarks/train.py --quick            15m, one turn: whether everything runs

Every contestant is a process of its own, idle while another trains, and they take turns of a few steps:
whatever else the machine does affects all alike. transformers is a development dependency of puna; litgpt
has an environment of its own (`make peers`), and is skipped if that is missing. Prints tokens/s (median
and range), the share of the machine's matrix peak measured in the same run (MFU), peak memory (of the
process; on a GPU of its tensors), and the loss after the last step, which must be alike. On a GPU all
contestants hold their memory at once: `--only` where it is too small for that.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from _peers import interpreter

from puna import devices
from puna.config import ModelConfig
from puna.model.sizes import train_flops_per_token
from puna.train.allocator import KEEP

HERE = Path(__file__).parent
CONTESTANTS = [
    "puna",
    "plain",
    "plain+compile",
    "transformers",
    "transformers+compile",
    "litgpt",
    "litgpt+compile",
]
ON_GPUS = ["puna", "plain+compile", "plain+graphs", "transformers+compile", "transformers+graphs"]
# Freed memory kept by the process instead of given back at every step; the same for all.
ALLOCATOR = KEEP


def start(name: str, size: str, precision: str, device: str) -> subprocess.Popen | None:
    """A contestant's process, or None where it is not installed."""
    python = interpreter("litgpt") if name.startswith("litgpt") else Path(sys.executable)
    if python is None:
        print(f"{name}: not installed, skipped; run: make peers", file=sys.stderr)
        return None
    return subprocess.Popen(
        [str(python), str(HERE / "_train_contestant.py"), name, size, precision, device],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ALLOCATOR,
    )


def ask(process: subprocess.Popen, steps: int) -> None:
    """Let a contestant train some steps."""
    with suppress(BrokenPipeError):
        process.stdin.write(f"{steps}\n")
        process.stdin.flush()


def answer(process: subprocess.Popen) -> dict | None:
    """What it measured; None when it has died."""
    line = process.stdout.readline()
    return json.loads(line) if line else None


def matrix_peak(precision: str, device: str) -> float:
    """The machine's matrix rate just now, in a process of its own, FLOP/s."""
    code = (
        f"import torch; from puna.devices import configure, measure; device = torch.device({device!r}); "
        f"configure(device); print(measure(device, {precision!r}).peak)"
    )
    return float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )


def compete(size: str, precision: str, device: str, steps: int, turn: int, names: list[str]) -> None:
    from _train_contestant import SIZES

    dim, layers, heads, ffn, vocabulary, context, on_cpu, on_gpu = SIZES[size]
    sequences = on_gpu if device == "cuda" else on_cpu
    shape = ModelConfig(
        dim=dim, n_layers=layers, n_heads=heads, ffn_dim=ffn, vocab_size=vocabulary, context=context
    )
    flops = train_flops_per_token(shape)
    tokens = context * sequences
    started = {name: start(name, size, precision, device) for name in names}
    processes = {name: process for name, process in started.items() if process is not None}
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    losses: dict[str, float] = {}
    memory: dict[str, int] = {}
    peaks = []
    for process in processes.values():  # warm up together: compile, touch memory
        ask(process, 3)
    for name in list(processes):
        if answer(processes[name]) is None:
            error = processes[name].stderr.read().strip().splitlines()
            print(f"{name}: did not run: {error[-1] if error else 'no message'}", file=sys.stderr)
            del processes[name], seconds[name]
    for _ in range(0, steps, turn):
        peaks.append(matrix_peak(precision, device))
        for name, process in processes.items():
            ask(process, turn)
            found = answer(process)
            assert found is not None, f"{name} died: {process.stderr.read()[-500:]}"
            seconds[name] += found["seconds"]
            losses[name], memory[name] = found["losses"][-1], found["peak"]
    for process in processes.values():
        process.stdin.close()
        process.wait()

    peak = statistics.median(peaks)
    best_peer = max(
        (tokens / statistics.median(times) for name, times in seconds.items() if name != "puna"), default=0.0
    )
    print(
        f"\n{size}, {precision}, {device}, {tokens:,} tokens per step, {steps} steps each in turns of {turn}"
    )
    print(f"matrix peak {peak / 1e9:.0f} GFLOP/s ({min(peaks) / 1e9:.0f}-{max(peaks) / 1e9:.0f})")
    print(f"{'':22}{'tokens/s':>10}{'range':>16}{'MFU':>8}{'memory':>12}{'last loss':>11}")
    for name, times in seconds.items():
        rates = sorted(tokens / time for time in times)
        rate = tokens / statistics.median(times)
        print(
            f"{name:22}{rate:>10,.0f}{f'{rates[0]:,.0f}-{rates[-1]:,.0f}':>16}{rate * flops / peak:>8.1%}"
            f"{memory[name] / 1e6:>9,.0f} MB{losses[name]:>11.3f}"
        )
    if "puna" in seconds and best_peer:
        print(f"puna is {tokens / statistics.median(seconds['puna']) / best_peer:.2f} times the best peer")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", action="append", choices=["15m", "110m", "1b"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["bf16", "fp32"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--turn", type=int, default=2)
    parser.add_argument("--only", action="append", choices=sorted({*CONTESTANTS, *ON_GPUS}))
    parser.add_argument("--quick", action="store_true", help="15m, one turn")
    options = parser.parse_args()
    precision = options.precision or devices.fast_precision(devices.choose_device(options.device))
    on_gpu = options.device == "cuda"
    sizes, contestants = (["110m", "1b"], ON_GPUS) if on_gpu else (["15m", "110m"], CONTESTANTS)
    for size in options.size or (["15m"] if options.quick else sizes):
        steps = options.turn if options.quick else options.steps
        compete(size, precision, options.device, steps, options.turn, options.only or contestants)


if __name__ == "__main__":
    main()
