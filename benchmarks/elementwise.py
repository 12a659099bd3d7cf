"""The elementwise kernels of training against a copy of memory, in GB/s: C++ and PyTorch, in turns.

    python benchmarks/elementwise.py --rows 8192 --dim 288 --ffn 768 --vocab 4096 --precision fp32 --threads 1

Bytes are those that a kernel must read and write at least. The default sizes are those of a 15M step. One
thread is timed by its CPU time, which other work on the machine disturbs less than the wall-clock.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from puna.kernels import elementwise


def work(rows: int, dim: int, ffn: int, vocab: int, dtype: torch.dtype) -> dict[str, tuple[tuple, float]]:
    """Arguments of each kernel, and its least traffic in bytes."""
    b = dtype.itemsize
    x, norm = torch.randn(rows, dim), torch.ones(dim)
    dn = torch.randn(rows, dim).to(dtype)
    r = x.square().mean(-1, keepdim=True).rsqrt()
    gate_up, dz = torch.randn(rows, 2 * ffn).to(dtype), torch.randn(rows, ffn).to(dtype)
    heads, E = dim // 48, 48
    T = min(rows, 512)
    turns = torch.randn(T, E // 2)
    qkv = torch.randn(rows // T, T, 3 * heads, E).to(dtype)
    q, k, v = (torch.randn(rows // T, heads, T, E).to(dtype) for _ in range(3))
    block = min(rows, 512)
    logits, targets = torch.randn(block, vocab).to(dtype), torch.randint(vocab, (block,))
    n, z = rows * dim, rows * ffn
    return {
        "rms_forward": ((x, norm, 1e-6, dtype), n * (4 + b)),
        "rms_recompute": ((x, r, norm, dtype), n * (4 + b)),
        "rms_backward": ((dn, x, r, norm), n * (8 + b)),
        "swiglu_forward": ((gate_up,), z * 3 * b),
        "swiglu_backward": ((dz, gate_up), z * 6 * b),
        "split_rotate": ((qkv, turns.cos(), turns.sin(), heads, heads), 6 * n * b),
        "split_rotate_backward": ((q, k, v, turns.cos(), turns.sin()), 6 * n * b),
        "cross_entropy_block": ((logits, targets, 1.0, -100), block * vocab * 2 * b),
    }


def seconds(call: Callable[[], object]) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    call()
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {
        "rows": 8192,
        "dim": 288,
        "ffn": 768,
        "vocab": 4096,
        "threads": 1,
        "rounds": 9,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--inductor", action="store_true", help="compare with torch.compile's kernels too")
    parser.add_argument("--quick", action="store_true", help="short: 512 rows, one round")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.rounds = 512, 1
    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    copied = torch.randn(options.rows, 2 * options.ffn)
    room = torch.empty_like(copied)
    third = "inductor" if options.inductor else ""
    print(f"{'GB/s':24}{'copy':>8}{'C++':>8}{'range':>14}{'eager':>8}{third:>10}")
    for name, (arguments, traffic) in work(
        options.rows, options.dim, options.ffn, options.vocab, dtype
    ).items():
        kernel = getattr(elementwise, name)
        ways = {"C++": kernel.in_cpp, "eager": kernel.function}
        if options.inductor:
            ways["inductor"] = torch.compile(kernel.function, fullgraph=True, dynamic=False)
        times: dict[str, list[float]] = {"copy": [], **{way: [] for way in ways}}
        for _ in range(2 + options.rounds):
            times["copy"].append(seconds(partial(room.copy_, copied)))
            for way, function in ways.items():
                times[way].append(seconds(partial(function, *arguments)))
        rates = {
            way: sorted((2 * copied.nbytes if way == "copy" else traffic) / t / 1e9 for t in taken[2:])
            for way, taken in times.items()
        }
        middle = {way: statistics.median(rate) for way, rate in rates.items()}
        spread = f"{rates['C++'][0]:.1f}-{rates['C++'][-1]:.1f}"
        print(
            f"{name:24}{middle['copy']:>8.1f}{middle['C++']:>8.1f}{spread:>14}{middle['eager']:>8.1f}"
            + (f"{middle['inductor']:>10.1f}" if options.inductor else "")
        )


if __name__ == "__main__":
    main()
