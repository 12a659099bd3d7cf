"""A run: learns, resumes exactly, refuses what is not its own, and leaves nothing half-written."""

import errno
import os
import shutil
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
from puna.extras import MissingExtra
from puna.files import read_json, read_json_lines, write_json
from puna.manifest import Input, load_manifest
from puna.model.llama import Llama
from puna.recipes import recipe
from puna.rundir import newest_weights
from puna.tokens.mixture import Mixture
from puna.train import checkpoint
from puna.train.loop import train
from puna.train.optim import build_optimizer
from puna.train.step import OutlierGuard, train_step
from tests.conftest import changed

STEPS = 30


def tiny(shards: Path, **sections) -> RunConfig:
    """The tiny recipe on the tests' shards, some seconds long."""
    settings = {
        "model": {"vocab_size": 512},
        "schedule": {"steps": STEPS},
        "compute": {"threads": 1},  # so small a model is slower with more
        "save": {"every": 10},
        "watch": {"validate_every": 15, "validation_windows": 4},
    }
    settings = {name: fields | sections.pop(name, {}) for name, fields in settings.items()} | sections
    return changed(replace(recipe("tiny"), data=(str(shards),)), **settings)


def curve(run: Path) -> list[tuple]:
    """What must be the same in a resumed run: all but the times and the starts."""
    return [
        (
            record["kind"],
            record["step"],
            record["loss"],
            str(record["loss_by_source"]),
            record.get("grad_norm"),
        )
        for record in read_json_lines(run / "metrics.jsonl")
        if record["kind"] != "start"
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
        record["loss"]
        for record in read_json_lines(undisturbed / "metrics.jsonl")
        if record["kind"] == "train"
    ]
    assert losses[0] == pytest.approx(np.log(512), abs=0.2)  # untrained: a uniform guess
    assert losses[-1] < 0.6 * losses[0]


def test_a_run_tells_what_it_was_made_of(undisturbed, shards):
    manifest = load_manifest(undisturbed / "manifest.json")
    assert manifest.stage == "run"
    mark = load_manifest(shards / "manifest.json").fingerprint
    assert manifest.inputs == (Input(str(shards), stage="shards", fingerprint=mark),)
    assert manifest.counts["steps"] == STEPS
    assert {row["source"] for row in manifest.details["mixture"]} == {"books", "github"}
    assert sum(row["tokens"] for row in manifest.details["mixture"]) == manifest.counts["tokens"]


def test_metrics_hold_the_loss_of_each_source(undisturbed):
    records = read_json_lines(undisturbed / "metrics.jsonl")
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
    def gradient(micro_batch: int) -> tuple[torch.Tensor, float]:
        # a last window with padding among the rows, so that micro-batches hold different numbers of targets
        config = tiny(shards, schedule={"micro_batch": micro_batch}, compute={"precision": "fp32"})
        mixture = Mixture([shards], {}, 1, 64, 16)
        step = next(s for s in range(1000) if (mixture.batch(s).targets == -100).any())
        model = Llama(config.model)
        model.init_weights(1)
        optimizer = build_optimizer(model, config.optim)
        taken: list[torch.Tensor] = []
        optimizer.register_step_pre_hook(
            lambda *_: taken.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        )
        guard = OutlierGuard(0, torch.device("cpu"))
        result = train_step(model, optimizer, guard, mixture.batch(step), len(mixture.sources), 1e-3, config)
        return taken[0], result.record(mixture.sources)["loss"]

    whole, loss = gradient(16)
    parts, loss_of_parts = gradient(4)
    assert loss == pytest.approx(loss_of_parts, rel=1e-6)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


SCRIPT = """
import sys
from pathlib import Path
from puna.config import read_config
from puna.train.loop import train
from puna.train.optim import build_optimizer
from puna.train.step import OutlierGuard, train_step
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
    # Every start has written down what it used, the killed ones too (up to some seconds before).
    starts = list((run / "energy").glob("*.json"))
    energy = load_manifest(run / "manifest.json").energy
    assert len(starts) == 4
    assert energy.seconds == pytest.approx(sum(read_json(start)["seconds"] for start in starts))


def test_ctrl_c_saves_and_the_next_start_goes_on(undisturbed, tmp_path, shards):
    run = tmp_path / "interrupted"

    def interrupt(model):
        os.kill(os.getpid(), signal.SIGINT)
        return []

    config = tiny(shards, watch={"sample_every": 7})
    outcome = train(config, run, interrupt)
    assert not outcome.finished
    assert outcome.state.step == 7
    assert checkpoint.read_state(checkpoint.latest(run)).step == 7
    assert train(config, run, lambda model: []).finished
    assert curve(run) == curve(undisturbed)


def test_a_run_begun_by_version_0_1_resumes_to_the_same_weights(undisturbed, tmp_path, shards):
    run = tmp_path / "old"

    def interrupt(model):
        os.kill(os.getpid(), signal.SIGINT)
        return []

    config = tiny(shards, watch={"sample_every": 7})
    assert not train(config, run, interrupt).finished
    write_json(run / "config.json", old_layout(read_json(run / "config.json")))
    assert read_config(run) == changed(config, compute={"precision": read_config(run).compute.precision})
    assert train(config, run).finished
    assert curve(run) == curve(undisturbed)
    assert final_weights(run) == final_weights(undisturbed)
    assert "train" not in read_json(run / "config.json")


def old_layout(values: dict) -> dict:
    """A config.json as version 0.1 wrote it: one section `train`, flat RoPE fields."""
    schedule, compute, save, watch = (values.pop(name) for name in ("schedule", "compute", "save", "watch"))
    assert values["model"].pop("rope_scaling") is None
    rope = {"rope_factor": None, "rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0}
    values["model"] |= {**rope, "rope_original_context": 8192}
    values["train"] = {
        **schedule,
        **compute,
        "seed": values.pop("seed"),
        "skip_outliers": values["optim"].pop("skip_outliers"),
        "save_every": save["every"],
        "keep": save["keep"],
        "validate_every": watch["validate_every"],
        "validation_windows": watch["validation_windows"],
        "sample_every": watch["sample_every"],
        "track": watch["trackers"],
        "profile": watch["profile_steps"],
    }
    return values


def test_a_finished_run_is_not_trained_again(undisturbed):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    outcome = train(read_config(undisturbed), undisturbed)
    assert outcome.finished
    assert outcome.state.step == STEPS
    assert outcome.validation["loss"] == read_json_lines(undisturbed / "metrics.jsonl")[-1]["loss"]
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
    config = tiny(copy, schedule={"steps": 10})
    train(config, run)
    (run / "manifest.json").unlink()
    manifest = read_json(copy / "manifest.json")
    write_json(copy / "manifest.json", manifest | {"fingerprint": "0123456789abcdef"})
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
    with pytest.raises(
        OSError, match=r"step-000020 could not be written.*No space left.*step-000010 before it is complete"
    ):
        train(config, run)
    monkeypatch.undo()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000010"]
    assert train(config, run).finished


def test_only_the_newest_checkpoints_are_kept(undisturbed):
    assert [path.name for path in checkpoint.checkpoints(undisturbed)] == ["step-000020", "step-000030"]


def test_checkpoints_are_ordered_by_their_number(undisturbed, tmp_path):
    """From step 1,000,000 on the names have a digit more, and sort before those with six as texts."""
    run = tmp_path / "run"
    source = checkpoint.latest(undisturbed)
    for step in (999_900, 1_000_000, 1_000_100):
        shutil.copytree(source, run / f"checkpoints/step-{step:06d}")
    (run / "checkpoints/step-notes").mkdir()
    names = ["step-999900", "step-1000000", "step-1000100"]
    assert [path.name for path in checkpoint.checkpoints(run)] == names
    assert checkpoint.latest(run).name == newest_weights(run).name == "step-1000100"
    config = tiny(undisturbed)
    model = Llama(config.model)
    saver = checkpoint.Saver(run, keep=2)
    saver.save(checkpoint.TrainState(step=1_000_200), model, build_optimizer(model, config.optim))
    saver.wait()
    assert [path.name for path in checkpoint.checkpoints(run)] == ["step-1000100", "step-1000200"]


def test_a_run_resumes_with_its_data_elsewhere_and_with_settings_that_do_not_matter(
    shards, tmp_path, monkeypatch, undisturbed
):
    run = tmp_path / "run"
    stop = iter([True])

    def interrupt(model):
        if next(stop, False):
            os.kill(os.getpid(), signal.SIGINT)
        return []

    assert not train(tiny(shards, watch={"sample_every": 12}), run, interrupt).finished
    shutil.copytree(shards, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    moved = tiny(Path("moved"), save={"every": 7, "keep": 1}, compute={"threads": torch.get_num_threads()})
    assert train(moved, run).finished
    held = read_config(run)
    assert changed(held, compute={"precision": moved.compute.precision}) == moved
    assert [point[:3] for point in curve(run)] == [point[:3] for point in curve(undisturbed)]
    assert final_weights(run) == final_weights(undisturbed)
    # Finished, it is known by its data wherever that lies, and refuses other data.
    assert train(tiny(shards), run).finished
    manifest = read_json(tmp_path / "moved/manifest.json")
    write_json(tmp_path / "moved/manifest.json", manifest | {"fingerprint": "0" * 16})
    with pytest.raises(ValueError, match=r"the data in moved is not what .*step-000030 was trained on"):
        train(moved, run)


def test_a_warm_up_longer_than_the_run_is_shortened_and_said(shards, tmp_path, caplog):
    config = tiny(shards, schedule={"steps": 20})
    config = replace(config, optim=replace(config.optim, warmup_steps=2000))
    assert train(config, tmp_path / "run").finished
    assert "optim.warmup_steps is 2000, but the run has 20 steps: warm-up is shortened to 2" in caplog.text
    assert read_config(tmp_path / "run").optim.warmup_steps == 2
    rates = [r["lr"] for r in read_json_lines(tmp_path / "run/metrics.jsonl") if r["kind"] == "train"]
    assert max(rates) == config.optim.lr


def test_divergence_is_named(shards, tmp_path):
    config = tiny(shards)
    config = replace(config, optim=replace(config.optim, lr=1e30, warmup_steps=0))
    with pytest.raises(FloatingPointError, match=r"diverged.*--optim\.lr below"):
        train(config, tmp_path / "run")


def test_a_step_that_is_an_outlier_is_skipped_and_logged(shards, tmp_path):
    """One poisoned gradient: with the guard the weights do not move at that step, without it they do."""

    def weights_around_the_poison(factor: float) -> tuple[bool, list[dict]]:
        config = tiny(shards)
        model, mixture = Llama(config.model), Mixture([shards], {}, 1, 64, 16)
        model.init_weights(1)
        optimizer, guard = build_optimizer(model, config.optim), OutlierGuard(factor, torch.device("cpu"))
        records = []
        for step in range(24):
            hook = None
            if step == 20:
                hook = model.embedding.register_hook(lambda grad: grad + 1000.0)
            before = model.output.detach().clone()
            result = train_step(model, optimizer, guard, mixture.batch(step), 2, 1e-3, config)
            records.append(result.record(mixture.sources))
            if hook is not None:
                hook.remove()
                moved = not torch.equal(before, model.output)
        return moved, records

    moved, records = weights_around_the_poison(10.0)
    assert not moved
    assert [step for step, record in enumerate(records) if record.get("skipped")] == [20]
    assert records[20]["grad_norm"] > 1000
    moved, records = weights_around_the_poison(0.0)
    assert moved
    assert not any(record.get("skipped") for record in records)


def test_a_step_that_is_not_finite_never_moves_the_weights(shards):
    config = tiny(shards)
    model, mixture = Llama(config.model), Mixture([shards], {}, 1, 64, 16)
    model.init_weights(1)
    optimizer, guard = build_optimizer(model, config.optim), OutlierGuard(0, torch.device("cpu"))
    model.embedding.register_hook(lambda grad: grad * float("nan"))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    result = train_step(model, optimizer, guard, mixture.batch(0), 2, 1e-3, config)
    assert not result.finite
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_skipping_survives_a_restart(shards, tmp_path):
    config = tiny(
        shards, optim={"skip_outliers": 0.8}
    )  # far below what one would set, so that steps are skipped
    train(config, tmp_path / "whole")
    skipped = [r["step"] for r in read_json_lines(tmp_path / "whole/metrics.jsonl") if r.get("skipped")]
    assert skipped

    run = tmp_path / "stopped"
    stops = iter([True, False])

    def interrupt(model):
        if next(stops, False):
            os.kill(os.getpid(), signal.SIGINT)
        return []

    sampled = changed(config, watch={"sample_every": 18})
    train(sampled, run, interrupt)
    train(sampled, run, interrupt)
    assert curve(run) == curve(tmp_path / "whole")


def test_evaluation_is_called_at_the_end_and_recorded_beside_the_held_out_loss(shards, tmp_path):
    train(tiny(shards), tmp_path / "run", evaluate=lambda model: {"score": float(model.config.dim)})
    records = [r for r in read_json_lines(tmp_path / "run/metrics.jsonl") if r["kind"] == "validation"]
    assert [record.get("evaluation") for record in records] == [None, {"score": 64.0}]


def test_pytorchs_distributed_checkpoint_reads_a_checkpoint_as_it_is(undisturbed):
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    newest = checkpoint.latest(undisturbed)
    weights = load_file(newest / "weights.safetensors")
    state = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    state["exp_avg.embedding"] = torch.zeros_like(weights["embedding"])
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(newest)), no_dist=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    assert state["exp_avg.embedding"].abs().sum() > 0


def test_a_profile_is_written_on_demand(shards, tmp_path):
    train(tiny(shards, watch={"profile_steps": 2}), tmp_path / "run")
    trace = read_json(tmp_path / "run/trace.json")
    assert any("AdamW" in event.get("name", "") for event in trace["traceEvents"])


def test_tensorboard_gets_the_same_figures(shards, tmp_path, undisturbed):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tiny(shards, watch={"trackers": ("tensorboard",)}), tmp_path / "run")
    accumulator = events.EventAccumulator(str(tmp_path / "run/tensorboard"))
    accumulator.Reload()
    losses = [r["loss"] for r in read_json_lines(undisturbed / "metrics.jsonl") if r["kind"] == "train"]
    assert [event.value for event in accumulator.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)


def test_a_tracker_that_is_not_installed_is_named(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"pip install \"puna\[observe\]\""):
        train(tiny(shards, watch={"trackers": ("wandb",)}), tmp_path / "run")


def test_data_may_lie_where_fsspec_reaches(shards, tmp_path, monkeypatch, undisturbed):
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "cache"))
    config = tiny(shards)
    remote = replace(config, data=(f"file://{shards}",))
    assert train(remote, tmp_path / "run").finished
    assert [point[:3] for point in curve(tmp_path / "run")] == [point[:3] for point in curve(undisturbed)]


@pytest.mark.slow
def test_with_compiled_kernels_too_a_killed_run_ends_with_the_same_curve(shards, tmp_path):
    import json
    import random

    config = tiny(
        shards,
        model={"vocab_size": 512, "dim": 96, "context": 256, "ffn_dim": 256},
        schedule={"steps": 60, "batch_tokens": 2048, "micro_batch": 4},
        compute={"compile": True},
    )
    whole = tmp_path / "whole"
    train(config, whole)
    draw = random.Random()
    for attempt in range(3):
        run = tmp_path / f"killed-{attempt}"
        steps = sorted(draw.sample(range(1, 58), 2))
        print("killed at steps", steps)
        for step in steps:
            process = start(whole, run)
            wait_for_step(run, step, process)
            time.sleep(draw.random() / 5)
            process.kill()
            process.communicate()
        process = start(whole, run)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
        assert curve(run) == curve(whole), json.dumps(steps)
        assert final_weights(run) == final_weights(whole)
