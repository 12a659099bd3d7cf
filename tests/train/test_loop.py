"""A run: learns, resumes exactly, refuses what is not its own, and leaves nothing half-written."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from puna.config import RunConfig, read_config
from puna.recipes import recipe
from puna.tokens.mixture import Mixture
from puna.train import checkpoint, loop
from puna.train.loop import train
from tests.conftest import read_lines

STEPS = 30


def tiny(shards: Path, **changes) -> RunConfig:
    """The tiny recipe on the tests' shards, some seconds long."""
    base = recipe("tiny")
    settings = {"steps": STEPS, "save_every": 10, "validate_every": 15, "validation_windows": 4} | changes
    return replace(
        base,
        data=(str(shards),),
        model=replace(base.model, vocab_size=512),
        train=replace(base.train, **settings),
    )


def curve(run: Path) -> list[tuple]:
    """What must be the same in a resumed run: all but the times."""
    return [
        (
            record["kind"],
            record["step"],
            record["loss"],
            str(record["loss_by_source"]),
            record.get("grad_norm"),
        )
        for record in read_lines(run / "metrics.jsonl")
    ]


def final_weights(run: Path) -> bytes:
    newest = checkpoint.latest(run)
    assert newest is not None
    return (newest / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(tiny(shards), run).finished
    return run


def test_the_model_learns(undisturbed):
    losses = [
        record["loss"] for record in read_lines(undisturbed / "metrics.jsonl") if record["kind"] == "train"
    ]
    assert losses[0] == pytest.approx(np.log(512), abs=0.2)  # untrained: a uniform guess
    assert losses[-1] < 0.6 * losses[0]


def test_a_run_tells_what_it_was_made_of(undisturbed, shards):
    manifest = loop.read_json(undisturbed / "manifest.json")
    assert manifest["stage"] == "run"
    assert manifest["inputs"] == [
        {"path": str(shards), "fingerprint": loop.read_json(shards / "manifest.json")["fingerprint"]}
    ]
    assert manifest["counts"]["steps"] == STEPS
    assert {row["source"] for row in manifest["mixture"]} == {"books", "github"}
    assert sum(row["tokens"] for row in manifest["mixture"]) == manifest["counts"]["tokens"]


def test_metrics_hold_the_loss_of_each_source(undisturbed):
    records = read_lines(undisturbed / "metrics.jsonl")
    training = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in training] == list(range(1, STEPS + 1))
    for record in training:
        assert {"lr", "grad_norm", "tokens_per_second", "mfu", "tokens"} <= record.keys()
        assert (
            min(record["loss_by_source"].values()) <= record["loss"] <= max(record["loss_by_source"].values())
        )
    assert [record["step"] for record in records if record["kind"] == "validation"] == [15, 30]


def test_the_configuration_read_back_reproduces_the_run(undisturbed, tmp_path):
    again = tmp_path / "again"
    assert train(read_config(undisturbed), again).finished
    assert curve(again) == curve(undisturbed)
    assert final_weights(again) == final_weights(undisturbed)


def test_accumulated_micro_batches_give_the_gradient_of_the_whole(shards):
    from puna.model.llama import Llama
    from puna.train.optim import build_optimizer

    def gradient(micro_batch: int) -> tuple[torch.Tensor, float]:
        # a last window with padding among the rows, so that micro-batches hold different numbers of targets
        config = tiny(shards, micro_batch=micro_batch, precision="fp32")
        mixture = Mixture([shards], {}, 1, 64, 16)
        step = next(s for s in range(1000) if (mixture.batch(s).targets == -100).any())
        model = Llama(config.model)
        model.init_weights(1)
        optimizer = build_optimizer(model, config.optim)
        taken: list[torch.Tensor] = []
        optimizer.register_step_pre_hook(
            lambda *_: taken.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        )
        record = loop.train_step(model, optimizer, mixture.batch(step), mixture.sources, 1e-3, config)
        return taken[0], record["loss"]

    whole, loss = gradient(16)
    parts, loss_of_parts = gradient(4)
    assert loss == pytest.approx(loss_of_parts, rel=1e-6)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


SCRIPT = """
import sys
from pathlib import Path
from puna.config import read_config
from puna.train.loop import train
train(read_config(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def start(config: Path, run: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(config), str(run)], stderr=subprocess.PIPE)


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        metrics = run / "metrics.jsonl"
        if metrics.is_file() and metrics.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.01)


def test_killed_at_any_moment_it_ends_with_the_same_curve_and_weights(undisturbed, tmp_path):
    run = tmp_path / "killed"
    for step in (3, 13, 24):
        process = start(undisturbed, run)
        wait_for_step(run, step, process)
        process.kill()
        process.wait()
    assert not (run / "manifest.json").exists()
    process = start(undisturbed, run)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert curve(run) == curve(undisturbed)
    assert final_weights(run) == final_weights(undisturbed)


def test_ctrl_c_saves_and_the_next_start_goes_on(undisturbed, tmp_path, shards):
    run = tmp_path / "interrupted"

    def interrupt(model):
        os.kill(os.getpid(), signal.SIGINT)
        return []

    config = tiny(shards, sample_every=7)
    outcome = train(config, run, interrupt)
    assert not outcome.finished
    assert outcome.state.step == 7
    assert checkpoint.read_state(checkpoint.latest(run)).step == 7
    assert train(config, run, lambda model: []).finished
    assert curve(run) == curve(undisturbed)


def test_a_finished_run_is_not_trained_again(undisturbed):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    outcome = train(read_config(undisturbed), undisturbed)
    assert outcome.finished
    assert outcome.state.step == STEPS
    assert outcome.validation["loss"] == read_lines(undisturbed / "metrics.jsonl")[-1]["loss"]
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_a_run_of_another_configuration_is_refused_by_field(undisturbed):
    config = read_config(undisturbed)
    other = replace(config, optim=replace(config.optim, lr=0.5))
    with pytest.raises(ValueError, match=r"another configuration \(optim\.lr is 0\.003 there, 0\.5 here\)"):
        train(other, undisturbed)


def test_changed_data_is_refused_by_fingerprint(shards, tmp_path, undisturbed):
    import shutil

    copy, run = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(shards, copy)
    config = tiny(copy, steps=10)
    train(config, run)
    (run / "manifest.json").unlink()
    manifest = loop.read_json(copy / "manifest.json")
    loop.write_json(copy / "manifest.json", manifest | {"fingerprint": "0123456789abcdef"})
    with pytest.raises(ValueError, match=r"is not what .* was trained on"):
        train(config, run)


def test_another_vocabulary_is_refused_with_the_mend(shards, tmp_path):
    config = tiny(shards)
    with pytest.raises(ValueError, match=r"give --model\.vocab-size 512"):
        train(replace(config, model=replace(config.model, vocab_size=1000)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_the_checkpoint_before_valid(shards, tmp_path, monkeypatch):
    run, config = tmp_path / "run", tiny(shards)
    saved = checkpoint.save_file

    def full_disk(tensors, path):
        if "step-000020" in str(path):
            Path(path).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        saved(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        train(config, run)
    monkeypatch.undo()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000010"]
    assert train(config, run).finished


def test_only_the_newest_checkpoints_are_kept(undisturbed):
    assert [path.name for path in checkpoint.checkpoints(undisturbed)] == ["step-000020", "step-000030"]


def test_divergence_is_named(shards, tmp_path):
    config = tiny(shards)
    config = replace(config, optim=replace(config.optim, lr=1e30, warmup_steps=0))
    with pytest.raises(FloatingPointError, match=r"diverged.*lower --optim\.lr"):
        train(config, tmp_path / "run")
