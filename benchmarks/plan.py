"""What `puna train --dry-run` predicts beside what training takes: memory and time of a step.

    python benchmarks/plan.py            15m and 110m, in one process and in two (FSDP)
    python benchmarks/plan.py --quick    15m in one process

Trains real steps on random tokens. Memory is the peak of a process above that of the same run of a tiny
model, which is the interpreter, the libraries and the kernels. Time is the fastest step after the first, and
the machine is measured before and after the run: the plan is one of a machine without other work.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from _train_contestant import SIZES

from puna.config import ModelConfig, OptimConfig, ParallelConfig, RunConfig, ScheduleConfig, WatchConfig
from puna.files import human_bytes, read_json_lines
from puna.tokens.mixture import Batch
from puna.train.allocator import settings
from puna.train.here import plan_here

STEPS = 5
TINY = 32, 1, 2, 64, 256, 64, 2


def configuration(size: str, ranks: int) -> RunConfig:
    dim, layers, heads, ffn, vocabulary, context, sequences = TINY if size == "tiny" else SIZES[size][:-1]
    return RunConfig(
        model=ModelConfig(
            dim=dim, n_layers=layers, n_heads=heads, ffn_dim=ffn, vocab_size=vocabulary, context=context
        ),
        optim=OptimConfig(warmup_steps=1),
        schedule=ScheduleConfig(steps=STEPS, batch_tokens=sequences * context, micro_batch=sequences),
        watch=WatchConfig(validate_every=0, sample_every=0, layers_every=0),
        parallel=ParallelConfig(dp_shard=ranks),
        data=("random",),
    )


class RandomTokens:
    """Batches of random tokens, as training asks for them."""

    sources, shares, fingerprint, inputs = ("random",), {"random": 1.0}, "random", ()

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.config, self.vocab_size = config, config.model.vocab_size
        self.tokenizer = folder / "tokenizer.model"
        self.tokenizer.touch()

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        sequences = self.config.batch_sequences
        shape = sequences // world, self.config.model.context
        tokens = np.random.default_rng((step, rank)).integers(0, self.vocab_size, shape)
        return Batch(tokens, tokens, np.zeros(len(tokens), np.int64), sequences * shape[1])

    def validation_windows(self, *_: object) -> Iterator[Batch]:
        return iter(())

    def tokens_per_byte(self, source: str) -> float:
        return 1.0

    def report(self, steps: int) -> list[dict[str, object]]:
        return []


def peak_memory() -> int:
    """The most memory that this process had resident, bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def work(size: str, folder: Path) -> None:
    """One of a run's processes."""
    from puna.train.loop import train

    ranks, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    config = configuration(size, ranks)
    data = RandomTokens(config, folder)

    def sample(model: object) -> list[dict[str, object]]:  # at the last step, before its checkpoint
        (folder / f"memory-{rank}").write_text(str(peak_memory()), encoding="utf-8")
        return []

    train(config, folder / "run", sample, device="cpu", data=data)


def measured(size: str, ranks: int) -> tuple[float, int]:
    """Seconds of a step, and bytes of the first process."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable]
        if ranks > 1:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += [__file__, "--work", size, "--folder", name]
        subprocess.run(command, check=True, env=os.environ | settings(), stderr=subprocess.DEVNULL)
        records = read_json_lines(Path(name) / "run/metrics.jsonl")
        times = [record["seconds"] for record in records if record["kind"] == "train"]
        steps = [after - before for before, after in pairwise(times)]
        return min(steps), int((Path(name) / "memory-0").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="15m in one process")
    parser.add_argument("--work", choices=["tiny", *SIZES], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.folder)
        return
    print(f"{'':8}{'processes':>10}{'memory':>26}{'step, seconds':>30}")
    bases: dict[int, int] = {}
    for size, ranks in [("15m", 1)] if options.quick else [(s, n) for s in ("15m", "110m") for n in (1, 2)]:
        config = configuration(size, ranks)
        before = plan_here(config, "cpu")
        if ranks not in bases:
            bases[ranks] = measured("tiny", ranks)[1]
        seconds, whole = measured(size, ranks)
        peak = whole - bases[ranks]
        planned, machine = max(before, plan_here(config, "cpu"), key=lambda found: found[1].peak)
        total = planned.total_memory
        room = f"{human_bytes(total)} / {human_bytes(peak)} ({total / peak - 1:+.0%})"
        time = f"{planned.step_seconds:.2f} / {seconds:.2f} ({planned.step_seconds / seconds - 1:+.0%})"
        print(f"{size:8}{ranks:>10}{room:>26}{time:>30}", flush=True)
    print(f"predicted / measured; {machine}")


if __name__ == "__main__":
    main()
