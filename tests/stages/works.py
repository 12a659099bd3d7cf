"""Stages to be killed: importable, as worker processes need them, and runnable in a process of their own.

python -m tests.stages.works INPUTS OUT WORKERS
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from puna.files import atomic_file
from puna.stages.stage import Executor, Shard, plan_shards, run_stage


def slow_copy(shard: Shard, out: Path) -> dict[str, Any]:
    """Copies the inputs into one file, slowly, so that a kill finds it half written."""
    path = out / f"{shard.name}.txt"
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        for source in shard.inputs:
            for line in source.read_bytes().splitlines(keepends=True):
                file.write(line)
                file.flush()
                time.sleep(0.03)
    return {"outputs": [path], "counts": {"kept": len(shard.inputs)}, "bad": 0}


def die(shard: Shard, out: Path) -> dict[str, Any]:
    """What the kernel does to a worker when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def copy_all(inputs: Path, out: Path, workers: int) -> dict[str, Any]:
    shards = plan_shards(sorted(inputs.iterdir()), shard_bytes=1)
    return run_stage("copies", slow_copy, shards, out, {"speed": "slow"}, workers)


def copy(shard: Shard, out: Path) -> dict[str, Any]:
    """Copies the inputs into one file at once."""
    path = out / f"{shard.name}.txt"
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"".join(source.read_bytes() for source in shard.inputs))
    return {"outputs": [path], "counts": {"kept": len(shard.inputs)}, "bad": 0}


def copy_and_lose_a_worker_once(marker: Path, shard: Shard, out: Path) -> dict[str, Any]:
    """As `copy`, but the first worker to come is killed in the middle."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return copy(shard, out)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def copy_with(inputs: Path, out: Path, executor: Executor) -> dict[str, Any]:
    shards = plan_shards(sorted(inputs.iterdir()), shard_bytes=1)
    return executor.stage("copies", copy, shards, out, {"speed": "quick"})


if __name__ == "__main__":
    copy_all(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
