"""Training speed and memory against peers, interleaved in one run.

    python benchmarks/train.py                    15m and 110m; bf16 where the CPU has it, fp32 elsewhere
    python benchmarks/train.py --size 15m --precision fp32 --steps 20
    python benchmarks/train.py --quick            15m, one turn: whether everything runs

Every contestant is a process of its own, idle while another trains, and they take turns of a few steps:
whatever else the machine does affects all alike. transformers is a development dependency of puna; litgpt
has an environment of its own (`make peers`), and is skipped if that is missing. Prints tokens/s (median
and range), the share of the machine's matrix peak measured in the same run (MFU), peak memory, and the loss
after the last step, which must be alike.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
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
# Freed memory kept by the process instead of given back at every step; the same for all.
ALLOCATOR = KEEP


def start(name: str, size: str, precision: str) -> subprocess.Popen | None:
    """A contestant's process, or None where it is not installed."""
    python = interpreter("litgpt") if name.startswith("litgpt") else Path(sys.executable)
    if python is None:
        print(f"{name}: not installed, skipped; run: make peers", file=sys.stderr)
        return None
    return subprocess.Popen(
        [str(python), str(HERE / "_train_contestant.py"), name, size, precision],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ALLOCATOR,
    )


def ask(process: subprocess.Popen, steps: int) -> dict | None:
    """Let a contestant train some steps; None when it has died."""
    try:
        process.stdin.write(f"{steps}\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    return json.loads(line) if line else None


def matrix_peak(precision: str) -> float:
    """The machine's matrix rate just now, in a process of its own, FLOP/s."""
    code = (
        "import torch; from puna.devices import configure, measure; cpu = torch.device('cpu'); "
        f"configure(cpu); print(measure(cpu, {precision!r}).peak)"
    )
    return float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )


def compete(size: str, precision: str, steps: int, turn: int, names: list[str]) -> None:
    from _train_contestant import SIZES

    dim, layers, heads, ffn, vocabulary, context, sequences = SIZES[size]
    shape = ModelConfig(
        dim=dim, n_layers=layers, n_heads=heads, ffn_dim=ffn, vocab_size=vocabulary, context=context
    )
    flops = train_flops_per_token(shape)
    tokens = context * sequences
    processes = {name: process for name in names if (process := start(name, size, precision)) is not None}
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    losses: dict[str, float] = {}
    memory: dict[str, int] = {}
    peaks = []
    for name in list(processes):  # warm up: compile, touch memory
        if ask(processes[name], 3) is None:
            error = processes[name].stderr.read().strip().splitlines()
            print(f"{name}: did not run: {error[-1] if error else 'no message'}", file=sys.stderr)
            del processes[name], seconds[name]
    for _ in range(0, steps, turn):
        peaks.append(matrix_peak(precision))
        for name, process in processes.items():
            answer = ask(process, turn)
            assert answer is not None, f"{name} died: {process.stderr.read()[-500:]}"
            seconds[name] += answer["seconds"]
            losses[name], memory[name] = answer["losses"][-1], answer["peak_rss"]
    for process in processes.values():
        process.stdin.close()
        process.wait()

    peak = statistics.median(peaks)
    best_peer = max(
        (tokens / statistics.median(times) for name, times in seconds.items() if name != "puna"), default=0.0
    )
    print(f"\n{size}, {precision}, {tokens:,} tokens per step, {steps} steps each in turns of {turn}")
    print(f"matrix peak {peak / 1e9:.0f} GFLOP/s ({min(peaks) / 1e9:.0f}-{max(peaks) / 1e9:.0f})")
    print(f"{'':22}{'tokens/s':>10}{'range':>16}{'MFU':>8}{'peak RSS':>12}{'last loss':>11}")
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
    parser.add_argument("--size", action="append", choices=["15m", "110m"])
    parser.add_argument("--precision", choices=["bf16", "fp32"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--turn", type=int, default=2)
    parser.add_argument("--only", action="append", choices=CONTESTANTS)
    parser.add_argument("--quick", action="store_true", help="15m, one turn")
    options = parser.parse_args()
    precision = options.precision or devices.fast_precision(devices.choose_device("cpu"))
    for size in options.size or (["15m"] if options.quick else ["15m", "110m"]):
        steps = options.turn if options.quick else options.steps
        compete(size, precision, steps, options.turn, options.only or CONTESTANTS)


if __name__ == "__main__":
    main()
