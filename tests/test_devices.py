"""Where puna computes and in which precision: chosen by what the machine does well, said in one line."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from puna import devices
from puna.cli import main
from puna.devices import Machine, choose_device, configure, fast_precision, matrix_rate, measure

CPU = torch.device("cpu")
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


@pytest.fixture
def settings():
    """PyTorch's process-wide settings, put back afterwards."""
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision, torch.get_num_threads()
    yield matmul
    matmul.fp32_precision = before[0]
    torch.set_num_threads(before[1])
    torch.use_deterministic_algorithms(False)


@no_cuda
def test_auto_is_the_cpu_where_there_is_no_cuda_device():
    assert choose_device("auto") == choose_device("cpu") == CPU


def test_auto_is_a_cuda_device_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"


@no_cuda
def test_a_device_that_is_missing_is_one_line_and_leaves_nothing(shards, tmp_path, capsys):
    command = ["train", "--recipe", "tiny", "--model.vocab-size", "512", "--data", str(shards)]
    assert main([*command, "--out", str(tmp_path / "run"), "--device", "cuda"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --device cuda: PyTorch ")
    assert line.endswith("use --device cpu")
    assert not (tmp_path / "run").exists()


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match=r"device is 'tpu'; expected one of: auto, cpu, cuda, mps"):
        choose_device("tpu")


@pytest.mark.parametrize(("speed", "expected"), [(2.0, "bf16"), (1.0, "bf16"), (0.9, "fp32"), (0.02, "fp32")])
def test_auto_takes_bf16_only_where_it_is_at_least_as_fast(speed, expected, monkeypatch):
    rates = {"bf16": speed * 1e9, "fp32": 1e9}
    monkeypatch.setattr(devices, "matrix_rate", lambda device, precision, *_: rates[precision])
    assert fast_precision(CPU) == expected


def test_the_probe_agrees_with_the_instructions_that_the_processor_has():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    if not flags:
        pytest.skip("the system does not say which instructions this processor has")
    limited = os.environ.get("PUNA_CPU") == "avx2"
    if "avx512f" not in flags or limited:
        assert fast_precision(CPU) == "fp32"
    elif flags & {"avx512_bf16", "amx_bf16"}:
        assert fast_precision(CPU) == "bf16"


def test_a_slow_precision_is_measured_in_the_same_time(monkeypatch):
    """A CPU that computes bf16 at a thousandth of its rate: sizes stop growing before time runs out."""
    sizes = []

    def slow(a, b):
        sizes.append(len(a))
        seconds = 2 * len(a) ** 3 / 4e9
        time.sleep(seconds)
        return seconds

    monkeypatch.setattr(devices, "_seconds_of", slow)
    started = time.perf_counter()
    assert matrix_rate(CPU, "bf16", 0.05) == pytest.approx(4e9)
    assert time.perf_counter() - started < 0.5  # much room, for a busy machine
    assert max(sizes) <= 256


def test_the_peak_is_the_best_of_several_sizes(monkeypatch):
    """Other work disturbs the first products, and the largest ones always."""
    sizes = []

    def disturbed(a, b):
        sizes.append(len(a))
        return 2 * len(a) ** 3 / (9e12 if len(sizes) > 20 and len(a) < max(sizes) else 5e12)

    monkeypatch.setattr(devices, "_seconds_of", disturbed)
    monkeypatch.setattr(devices, "LARGEST_ON_CPU", 512)
    assert matrix_rate(CPU, "fp32", 0.1, 512) == pytest.approx(9e12)


def test_a_machine_says_what_was_chosen_and_why():
    machine = Machine(CPU, "AMD EPYC", 2, "fp32", 1 / 63, 137e9)
    assert str(machine) == "cpu, AMD EPYC, 2 threads, fp32 (bf16 is 63 times slower here), 137 GFLOP/s"
    machine = replace(machine, bf16_speed=1 / 2.25, peak=1.5e12)
    assert str(machine) == "cpu, AMD EPYC, 2 threads, fp32 (bf16 is 2.2 times slower here), 1,500 GFLOP/s"
    machine = replace(machine, threads=1, precision="bf16", bf16_speed=1.9, peak=137e9)
    assert str(machine) == "cpu, AMD EPYC, 1 thread, bf16 (bf16 is 1.9 times as fast here), 137 GFLOP/s"


def test_bf16_where_it_is_slow_is_warned_of_once_with_the_factor(monkeypatch, caplog):
    rates = {"bf16": 2e9, "fp32": 126e9}
    monkeypatch.setattr(devices, "matrix_rate", lambda device, precision, *_: rates[precision])
    machine = measure(CPU, "bf16")
    (record,) = caplog.records
    assert "63 times slower than fp32" in record.message
    assert "--compute.precision auto" in record.message
    assert "\n" not in record.message
    # bf16 widened to fp32 reaches fp32's rate, so MFU is relative to that.
    assert machine.peak == 126e9
    caplog.clear()
    measure(CPU, "fp32")
    rates["bf16"] = 200e9
    assert measure(CPU, "bf16").peak == 200e9
    assert not caplog.records


def test_the_matrix_peak_is_a_rate_of_this_machine():
    assert 1e7 < matrix_rate(CPU, "fp32", 0.05) < 1e15


def test_threads_and_determinism_are_set_in_one_place(settings):
    configure(CPU, threads=1, deterministic=True)
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()


def test_fp32_products_are_fp32_afterwards_on_any_cpu(settings):
    configure(CPU)
    assert devices.fp32_error() < devices.FP32_TOLERANCE


def test_where_products_would_be_rounded_the_setting_is_taken_back(settings, monkeypatch):
    before = settings.fp32_precision
    monkeypatch.setattr(devices, "fp32_error", lambda: 2e-3)  # what a CPU with AMX gives
    assert not devices.use_onednn_for_fp32()
    assert settings.fp32_precision == before


# Only the name of torch is looked for; to import it would take seconds.
AFTER_TORCH = "import sys, types; sys.modules['torch'] = types.ModuleType('torch'); import puna"


def run_python(script: str, **environment: str) -> subprocess.CompletedProcess:
    limits = {"PUNA_CPU", *devices.CPU_LEVELS["avx2"]}
    clean = {name: value for name, value in os.environ.items() if name not in limits}
    return subprocess.run(
        [sys.executable, "-c", script], env=clean | environment, capture_output=True, text=True
    )


def test_one_switch_limits_every_library_and_child_processes():
    script = "import os, puna, torch; print(torch.backends.cpu.get_cpu_capability(), dict(os.environ))"
    done = run_python(script, PUNA_CPU="avx2")
    assert done.returncode == 0, done.stderr
    assert "AVX512" not in done.stdout
    for name, value in devices.CPU_LEVELS["avx2"].items():
        assert f"{name!r}: {value!r}" in done.stdout
    # A child finds all set, and may import in any order.
    child = run_python(AFTER_TORCH, PUNA_CPU="avx2", **devices.CPU_LEVELS["avx2"])
    assert child.returncode == 0, child.stderr


def test_a_limit_that_comes_too_late_is_an_error():
    done = run_python(AFTER_TORCH, PUNA_CPU="avx2")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: PUNA_CPU=avx2 is set, but torch was imported first; import puna before it"
    )


def test_an_unknown_limit_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("PUNA_CPU", "avx9000")
    assert main(["report", "x"]) == 2
    assert capsys.readouterr().err == "error: PUNA_CPU is 'avx9000'; expected avx2, or unset it\n"
    with pytest.raises(ValueError, match="PUNA_CPU is 'avx9000'"):
        choose_device()


def test_a_cpus_copies_do_not_change_with_their_originals():
    tensors = {"a": torch.ones(3)}
    copies, wait = devices.copy_to_cpu(tensors)
    tensors["a"].zero_()
    wait()
    assert copies["a"].tolist() == [1.0, 1.0, 1.0]
