"""`torchrun puna train`: the same run as one process, on one mesh and then another, and through faults."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from puna.files import read_json, read_json_lines
from puna.train.checkpoint import latest

ROOT = Path(__file__).parents[2]
TINY = [
    *("--recipe", "tiny", "--model.n-layers", "1", "--model.context", "32"),
    *("--schedule.batch-tokens", "256", "--schedule.micro-batch", "2", "--compute.precision", "fp32"),
    *(
        "--save.every",
        "4",
        "--save.keep",
        "9",
        "--watch.validation-windows",
        "3",
        "--watch.validate-every",
        "4",
    ),
]


def command(
    shards: Path, out: Path, *options: str, ranks: int = 1, restarts: int = 0, steps: int = 8
) -> list[str]:
    vocabulary = str(read_json(shards / "manifest.json")["details"]["vocab_size"])
    sizes = ["--model.vocab-size", vocabulary, "--schedule.steps", str(steps)]
    verb = [*TINY, *sizes, "--data", str(shards), "--out", str(out), *options]
    start = ["-m", "puna.cli", "train"]
    if ranks > 1:
        elastic = [
            "--nproc-per-node",
            str(ranks),
            "--max-restarts",
            str(restarts),
            "--monitor-interval",
            "0.1",
        ]
        start = ["-m", "torch.distributed.run", "--standalone", "--monitor-interval", "0.1", *elastic, *start]
    return [sys.executable, *start, *verb]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments: object, **options: int) -> subprocess.CompletedProcess[str]:
    line = command(*arguments, **options)  # type: ignore[arg-type]
    return subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=300, check=False)


def start(*arguments: object, **options: int) -> subprocess.Popen[str]:
    line = command(*arguments, **options)  # type: ignore[arg-type]
    return subprocess.Popen(
        line, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )


def records(out: Path, kind: str = "train") -> list[dict[str, object]]:
    return [record for record in read_json_lines(out / "metrics.jsonl") if record["kind"] == kind]


def workers_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids by rank."""
    found = {}
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [entry for entry in variables if entry.startswith(b"RANK=")]
        if ranks:
            found[int(ranks[0][5:])] = int(child)
    return found


def after_step(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until the run has recorded a step."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        if (out / "metrics.jsonl").is_file() and any(record["step"] >= step for record in records(out)):
            return
        time.sleep(0.05)
    raise AssertionError("the run did not reach the step")


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    """The undisturbed run, in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    finished = run(shards, out)
    assert finished.returncode == 0, finished.stderr
    return out


def test_two_ranks_train_like_one_and_one_process_resumes_them(shards, alone, tmp_path):
    out = tmp_path / "run"
    two = run(shards, out, "--parallel.tp", "2", ranks=2)
    assert two.returncode == 0, two.stderr
    for found, expected in zip(records(out), records(alone), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["tokens"] == expected["tokens"]
    for found, expected in zip(records(out, "validation"), records(alone, "validation"), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["windows_by_source"] == expected["windows_by_source"]
    assert [sample["step"] for sample in read_json_lines(out / "samples.jsonl")] == [8]
    # From the checkpoint of two ranks one process continues, as if it had been alone.
    shutil.rmtree(out / "checkpoints/step-000008")
    (out / "manifest.json").unlink()
    resumed = run(shards, out)
    assert resumed.returncode == 0, resumed.stderr
    assert [record["step"] for record in records(out)] == [*range(1, 9)]
    for found, expected in zip(records(out), records(alone), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_a_mesh_that_is_not_that_of_torchrun_names_the_flag(shards, tmp_path):
    wrong = run(shards, tmp_path / "run", "--parallel.tp", "2")
    assert wrong.returncode == 2
    assert "--parallel is tp 2" in wrong.stderr and "torchrun --nproc-per-node 2" in wrong.stderr


def test_a_killed_rank_ends_all_and_a_restart_ends_as_undisturbed(shards, alone, tmp_path):
    out, reference = tmp_path / "run", tmp_path / "reference"
    process = start(shards, out, "--parallel.dp-shard", "2", ranks=2, restarts=1)
    after_step(out, 5, process)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    errors = process.communicate(timeout=240)[1]
    assert process.returncode == 0, errors
    undisturbed = run(shards, reference, "--parallel.dp-shard", "2", ranks=2)
    assert undisturbed.returncode == 0, undisturbed.stderr
    kept = ("step", "loss", "grad_norm", "loss_by_source", "tokens", "lr")
    found, expected = (
        [{key: record[key] for key in kept} for record in records(o)] for o in (out, reference)
    )
    assert found == expected
    newest = latest(out), latest(reference)
    weights = [load_file(path / "weights.safetensors") for path in newest if path is not None]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_a_rank_that_sleeps_is_named_within_the_timeout(shards, tmp_path):
    out = tmp_path / "run"
    options = ("--parallel.dp-shard", "2", "--parallel.timeout", "5")
    process = start(shards, out, *options, ranks=2, steps=2000)
    after_step(out, 3, process)
    sleeper = workers_of(process)[1]
    os.kill(sleeper, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        deadline = stopped + 60
        lines = ""
        assert process.stderr is not None
        while "error: rank 0 at step" not in lines and time.monotonic() < deadline:
            lines += process.stderr.readline()
        assert time.monotonic() - stopped < 5 + 5 + 5  # and what a busy machine takes
    finally:
        os.kill(sleeper, signal.SIGKILL)
        process.communicate(timeout=60)
    error = next(line for line in lines.splitlines() if line.startswith("error: rank 0"))
    assert "no answer from rank 1" in error


def test_sigterm_to_one_rank_stops_all_at_the_same_step(shards, tmp_path):
    out = tmp_path / "run"
    process = start(shards, out, "--parallel.dp-replicate", "2", ranks=2, steps=2000)
    after_step(out, 3, process)
    os.kill(workers_of(process)[1], signal.SIGTERM)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    newest = latest(out)
    assert newest is not None, errors
    last = records(out)[-1]["step"]
    assert newest.name == f"step-{last:06d}"


@pytest.mark.slow
def test_four_two_and_one_ranks_continue_one_run(shards, tmp_path):
    """Steps 1 to 8, 9 to 16 and 17 to 20 on three meshes: the global batches and losses of one process."""
    alone, out = tmp_path / "alone", tmp_path / "run"
    assert run(shards, alone, steps=20).returncode == 0
    fsdp = ("--parallel.dp-shard", "2")
    for options, ranks, last in (((*fsdp, "--parallel.tp", "2"), 4, 8), (fsdp, 2, 16), ((), 1, 20)):
        ended = run(shards, out, *options, ranks=ranks, steps=20)
        assert ended.returncode == 0, ended.stderr
        for checkpoint in (out / "checkpoints").iterdir():
            if int(checkpoint.name.partition("-")[2]) > last:
                shutil.rmtree(checkpoint)
        (out / "manifest.json").unlink()
    for found, expected in zip(records(out), records(alone), strict=True):
        assert found["tokens"] == expected["tokens"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
