"""Device and precision of a run: resolved once, written into it, kept wherever it is resumed."""

import json
from dataclasses import replace

import pytest

from puna import devices
from puna.cli import main
from puna.config import read_config
from puna.files import read_json
from puna.model.sizes import train_flops_per_token
from puna.recipes import recipe
from puna.train.here import plan_here
from puna.train.loop import train
from tests.conftest import changed


def tiny(shards, precision="auto", steps=2):
    base = recipe("tiny")
    return changed(
        replace(base, data=(str(shards),)),
        model={"vocab_size": 512},
        schedule={"steps": steps},
        compute={"threads": 1, "precision": precision},
        save={"every": 1},
        watch={"validate_every": 0},
    )


def test_auto_is_resolved_once_and_kept_where_a_run_is_resumed(shards, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    monkeypatch.setattr(devices, "fast_precision", lambda device: "fp32")
    assert train(tiny(shards), run, device="cpu").finished
    assert read_json(run / "config.json")["compute"]["precision"] == "fp32"
    errors = capsys.readouterr().err
    assert f"cpu, {devices.cpu_name()}, 1 thread, fp32 (bf16 is " in errors
    assert "step 2/2: loss " in errors  # one line per step where stderr is not a terminal
    assert "step 2/2: held-out loss " in errors
    machine = read_json(run / "manifest.json")["details"]["machine"]
    assert (machine["device"], machine["precision"], machine["threads"]) == ("cpu", "fp32", 1)
    assert machine["matrix_gflops"] > 0

    # On another machine, where bf16 is fast: the same command goes on in fp32.
    monkeypatch.setattr(devices, "fast_precision", lambda device: "bf16")
    (run / "manifest.json").unlink()
    assert train(tiny(shards), run).finished
    assert read_json(run / "config.json")["compute"]["precision"] == "fp32"
    with pytest.raises(ValueError, match=r"compute\.precision is 'fp32' there, 'bf16' here"):
        train(tiny(shards, precision="bf16"), run)


def test_a_run_of_a_release_without_auto_is_read(shards, tmp_path):
    run = tmp_path / "run"
    config = tiny(shards, precision="fp32", steps=1)
    train(config, run)
    assert read_config(run).compute.precision == "fp32"
    assert train(tiny(shards, steps=1), run).finished


@pytest.mark.parametrize(("precision", "bytes_"), [("bf16", 2), ("fp32", 4)])
def test_a_dry_run_uses_the_devices_own_peak(shards, monkeypatch, capsys, precision, bytes_):
    rates = {"bf16": 300e9, "fp32": 100e9}
    monkeypatch.setattr(devices, "matrix_rate", lambda device, precision, *_: rates[precision])
    config = tiny(shards, precision=precision, steps=100)
    found, machine = plan_here(config, "cpu")
    assert machine.peak == rates[precision]
    assert found.step_seconds == pytest.approx(
        train_flops_per_token(config.model) * 1024 / (found.mfu * rates[precision])
    )
    # x and h in fp32; q, k, v, o, gate, up in the compute precision; three statistics.
    saved = 2 * 64 * 4 + (4 * 64 + 2 * 256) * bytes_ + (2 + 4) * 4
    assert found.memory["activations"] == 1024 * 2 * saved

    command = ["train", "--recipe", "tiny", "--model.vocab-size", "512", "--data", str(shards), "--out", "x"]
    command += ["--compute.precision", precision, "--device", "cpu", "--dry-run"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"{precision} (bf16 is 3.0 times as fast here), {rates[precision] / 1e9:.0f} GFLOP/s" in out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"]
