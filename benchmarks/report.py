"""The report of a long run: time and size of the page.

    python benchmarks/report.py             a run of 100,000 steps; targets: < 3 s, < 10 MB
    python benchmarks/report.py --quick     10,000 steps, one round

In:  nothing; a run directory is written as the trainer writes it: seven sources, a validation and six scores
     every 500 steps, norms of 80 layers every 1,000 steps.
Out: a line per number of runs on the page: steps, seconds (median and range), megabytes.
"""

import argparse
import json
import math
import random
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from puna.config import to_dict
from puna.files import write_json
from puna.recipes import recipe
from puna.report.page import build_report

SOURCES = ("commoncrawl", "c4", "github", "wikipedia", "books", "arxiv", "stackexchange")
TASKS = ("triviaqa", "hellaswag", "nq", "siqa", "winogrande", "piqa")


def write_run(run: Path, steps: int) -> None:
    run.mkdir(parents=True)
    config = recipe("7b")
    config = replace(config, data=("shards",), schedule=replace(config.schedule, steps=steps))
    write_json(run / "config.json", to_dict(config))
    noise = random.Random(1)
    names = [f"layers.{layer}.{name}" for layer in range(80) for name in ("wq", "wk", "wv", "wo", "w1")]
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            loss = 1.7 + 8 * (1 + step / 50) ** -0.4
            tokens = step * config.schedule.batch_tokens
            record = {
                "kind": "train", "step": step, "lr": 3e-4 * (1 - 0.9 * step / steps), "tokens": tokens,
                "tokens_per_second": 3.2e6 + noise.gauss(0, 1e5), "mfu": 0.5 + noise.gauss(0, 0.01),
                "seconds": 1.3 * step, "loss": loss + noise.gauss(0, 0.03),
                "loss_by_source": {source: loss + noise.gauss(0, 0.1) for source in SOURCES},
                "grad_norm": 0.3 + abs(noise.gauss(0, 0.1)) + (5 if noise.random() < 1e-4 else 0),
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")
            if step % 500 == 0:
                score = {"score": 60 - 30 * math.exp(-step / steps), "error": 0.5, "chance": 25.0, "n": 1000}
                by_source = dict.fromkeys(SOURCES, loss)
                record = {"kind": "validation", "step": step, "loss": loss, "loss_by_source": by_source,
                          "bits_per_byte_by_source": by_source,
                          "evaluation": dict.fromkeys(TASKS, score)}  # fmt: skip
                file.write(json.dumps(record) + "\n")
            if step % 1000 == 0:
                record = {"kind": "layers", "step": step, "tokens": tokens,
                          "norm": {name: 50 + noise.random() for name in names},
                          "update": {name: 1e-3 * noise.random() for name in names}}  # fmt: skip
                file.write(json.dumps(record) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    steps, rounds = (10_000, 1) if quick else (100_000, 3)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first", Path(folder) / "second"
        write_run(first, steps)
        shutil.copytree(first, second)
        for runs in ([first], [first, second]):
            seconds = []
            for _ in range(rounds):
                began = time.perf_counter()
                page = build_report(runs, Path(folder) / "page.html")
                seconds.append(time.perf_counter() - began)
            print(
                f"{len(runs)} run{'s' if len(runs) > 1 else ''} of {steps:,} steps: "
                f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
                f"{page.stat().st_size / 1e6:.2f} MB"
            )


if __name__ == "__main__":
    main()
