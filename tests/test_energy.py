"""The energy of work on a fake tree of RAPL counters and a fake NVML: measured where read, else estimated."""

import itertools
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from puna import energy
from puna.carbon import total
from puna.energy import Meter, Use, of_folder, of_uses
from puna.extras import MissingExtra
from puna.manifest import load_manifest
from tests.stages.works import copy_all

RANGE = 1_000_000_000  # µJ after which the fake counters wrap around
ONLY_CPU = Use(10.0, 8.0, 0, None, None, "no counter")


@pytest.fixture(autouse=True)
def undeclared(monkeypatch):
    for name in ("CPU_WATTS", "GPU_WATTS", "PUE", "INTENSITY"):
        monkeypatch.delenv(f"PUNA_{name}", raising=False)


@pytest.fixture
def rapl(tmp_path, monkeypatch) -> Path:
    """Two packages, one with memory; and zones that contain them or are contained in them."""
    tree = tmp_path / "powercap"
    zones = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    for zone, name in zones.items():
        (tree / zone).mkdir(parents=True)
        (tree / zone / "name").write_text(f"{name}\n")
        (tree / zone / "energy_uj").write_text("900000000\n")
        (tree / zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
    monkeypatch.setattr(energy, "POWERCAP", tree)
    monkeypatch.setattr(energy, "MOST_WATTS", 1e9)
    monkeypatch.setattr(energy, "POLL_SECONDS", 1000)
    # A machine whose CPUs work for nobody else: the whole energy is this process's.
    stat = tmp_path / "stat"
    stat.write_text("cpu 0 0 0 0 0 0 0 0 0 0\n")
    monkeypatch.setattr(energy, "STAT", stat)
    return tree


def advance(tree: Path, zone: str, joules: float) -> None:
    file = tree / zone / "energy_uj"
    new = tree / "new"
    new.write_text(str((int(file.read_text()) + int(joules * 1e6)) % RANGE))
    new.replace(file)  # a reader sees the old count or the new one


def busy(seconds: float = 0.05) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


class FakeNvml(SimpleNamespace):
    """The functions of pynvml that are used; a GPU draws 100 J between two readings."""

    class NVMLError(Exception):
        pass

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.readings = fails, {}

    def nvmlInit(self) -> None:
        if self.fails:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if not uuid.startswith("GPU-"):
            raise self.NVMLError("Invalid Argument")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return next(self.readings.setdefault(handle, itertools.count(5_000_000, 100_000)))


# ---- RAPL


def test_packages_and_memory_are_counted_once(rapl):
    with Meter() as meter:
        busy()
        for zone in list(rapl.iterdir()):
            advance(rapl, zone.name, 10)
    use = meter.use()
    assert use.cpu_joules == pytest.approx(30)
    found = of_uses([use])
    assert found.measured and found.source == "RAPL" and not found.why and found.estimated_kWh == 0
    assert found.kWh == pytest.approx(30 / 3.6e6)
    assert "measured" in str(found) and "estimated" not in str(found)


def test_a_counter_that_wraps_around_between_readings(rapl):
    with Meter() as meter:
        for _ in range(4):
            busy(0.01)
            advance(rapl, "intel-rapl:1", 300)
            meter.use()
    assert meter.use().cpu_joules == pytest.approx(1200)


def test_a_counter_that_was_reset_is_not_taken_to_have_wrapped(rapl, monkeypatch):
    monkeypatch.setattr(energy, "MOST_WATTS", 1.0)
    with Meter() as meter:
        busy()
        (rapl / "intel-rapl:0" / "energy_uj").write_text("7000000")
    assert meter.use().cpu_joules == pytest.approx(7)


def test_the_thread_reads_the_counters_meanwhile(rapl, monkeypatch):
    monkeypatch.setattr(energy, "POLL_SECONDS", 0.01)
    with Meter() as meter:
        for _ in range(3):  # each a whole turn but 100 J, which one reading at the end would take for 700 J
            advance(rapl, "intel-rapl:0", 900)
            busy(0.2)
    assert meter.use().cpu_joules == pytest.approx(2700)


def test_a_process_is_charged_its_share_of_the_cpu_time(rapl):
    hertz = os.sysconf("SC_CLK_TCK")
    with Meter() as meter:
        began = time.process_time()
        busy(0.2)
        advance(rapl, "intel-rapl:0", 100)
        used = time.process_time() - began
        energy.STAT.write_text(f"cpu {int(4 * used * hertz)} 0 0 77777 0 0 0 0 0 0\n")
    assert meter.use().cpu_joules == pytest.approx(25, rel=0.2)


def test_counters_that_only_root_may_read(rapl):
    file = rapl / "intel-rapl:0" / "energy_uj"
    file.unlink()
    file.symlink_to("/proc/1/mem" if os.geteuid() else "/nowhere")  # root may read any mode
    with Meter() as meter:
        pass
    found = of_uses([meter.use()])
    assert not found.measured and str(file) in found.why


def test_permission_denied_is_the_reason(rapl, monkeypatch):
    def denied(self: Path, *args: object) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", denied)
    with Meter() as meter:
        busy()
    found = of_uses([meter.use()])
    assert not found.measured and found.kWh > 0
    assert found.why.endswith("name: Permission denied") and found.source == "5 W per busy CPU, typical"


def test_a_machine_without_counters(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "absent")
    with Meter() as meter:
        busy()
    assert "absent does not exist" in of_uses([meter.use()]).why
    (tmp_path / "absent").mkdir()
    with Meter() as meter:
        busy()
    assert "no RAPL package" in of_uses([meter.use()]).why


def test_a_counter_that_disappears_makes_it_an_estimate(rapl):
    with Meter() as meter:
        busy()
        advance(rapl, "intel-rapl:0", 50)
        assert meter.use().cpu_joules
        (rapl / "intel-rapl:0" / "energy_uj").unlink()
    use = meter.use()
    assert use.cpu_joules is None and "No such file" in use.why
    assert of_uses([use]).kWh == pytest.approx(use.cpu_seconds * 5 / 3.6e6)


# ---- NVML


def test_gpus_are_measured_and_the_cpu_estimated(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    with Meter(("GPU-a", "GPU-b")) as meter:
        busy()
    use = meter.use()
    assert use.gpu_joules == 400  # 100 J, 2 GPUs, two readings after the first
    found = of_uses([use])
    assert not found.measured and found.source == "NVML; 5 W per busy CPU, typical"
    assert found.estimated_kWh == pytest.approx(use.cpu_seconds * 5 / 3.6e6)
    assert "% of it estimated" in str(found) or "0% of it" in str(found)


def test_everything_measured(rapl, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    with Meter(("GPU-a",)) as meter:
        busy()
        advance(rapl, "intel-rapl:0", 10)
    found = of_uses([meter.use()])
    assert found.measured and found.source == "NVML; RAPL"
    assert found.kWh == pytest.approx(210 / 3.6e6)


@pytest.mark.parametrize(
    ("module", "gpu", "reason"),
    [
        (None, "GPU-a", "nvidia-ml-py is not installed"),
        (FakeNvml(fails=True), "GPU-a", "Driver Not Loaded"),
        (FakeNvml(), "MIG-a", "Invalid Argument"),
    ],
)
def test_gpus_that_cannot_be_measured_are_estimated(monkeypatch, module, gpu, reason):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    with Meter((gpu,)) as meter:
        time.sleep(0.02)
    use = meter.use()
    found = of_uses([use])
    assert not found.measured and reason in found.why and "400 W per GPU, typical" in found.source
    assert found.kWh * 3.6e6 == pytest.approx(400 * use.seconds + 5 * use.cpu_seconds)


# ---- declarations


def test_declared_power_is_said_to_be_declared(monkeypatch):
    monkeypatch.setenv("PUNA_CPU_WATTS", "2.5")
    monkeypatch.setenv("PUNA_GPU_WATTS", "700")
    monkeypatch.setenv("PUNA_PUE", "1.2")
    monkeypatch.setenv("PUNA_INTENSITY", "0.05")
    found = of_uses([replace(ONLY_CPU, n_gpus=2)])
    assert found.source == "700 W per GPU, declared; 2.5 W per busy CPU, declared"
    assert found.kWh == pytest.approx((2 * 700 * 10 + 2.5 * 8) / 3.6e6)
    assert found.tCO2eq == pytest.approx(found.kWh / 1e3 * 1.2 * 0.05)
    assert (found.pue, found.intensity, found.watts) == (1.2, 0.05, pytest.approx(1402))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PUNA_CPU_WATTS", "many"),
        ("PUNA_GPU_WATTS", "-1"),
        ("PUNA_PUE", "nan"),
        ("PUNA_PUE", "0.9"),
        ("PUNA_INTENSITY", "-3"),
    ],
)
def test_invalid_declarations_are_errors_before_the_work(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"(?i){name.removeprefix('PUNA_')} is '?{value}"):
        Meter()


def test_a_country_needs_the_extra(monkeypatch):
    monkeypatch.setenv("PUNA_INTENSITY", "FRA")
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(MissingExtra, match=r"puna\[carbon\]"):
        Meter()


def test_an_estimate_says_so_with_its_watts():
    text = str(of_uses([ONLY_CPU]))
    assert text.startswith("energy 0.0111 Wh (estimated: 4 W for 10.0 s; 5 W per busy CPU, typical)")


# ---- several processes, starts and steps


def test_starts_and_processes_add_up(tmp_path):
    for _ in range(3):
        with Meter(folder=tmp_path / "energy") as meter:
            busy(0.02)
    files = list((tmp_path / "energy").iterdir())
    assert len(files) == 3
    found = of_folder(tmp_path / "energy")
    assert found.seconds == pytest.approx(sum(json.loads(file.read_text())["seconds"] for file in files))
    assert found.seconds > 2 * meter.use().seconds


def test_what_a_killed_process_used_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POLL_SECONDS", 0.01)
    meter = Meter(folder=tmp_path).__enter__()
    deadline = time.monotonic() + 10
    while of_folder(tmp_path).seconds < 0.05 and time.monotonic() < deadline:
        busy(0.02)
    killed = of_folder(tmp_path)  # nothing has ended the meter
    assert killed.seconds > 0 and killed.kWh >= 0
    meter.__exit__(None, None, None)


def test_measured_and_estimated_work_together():
    measured = of_uses([replace(ONLY_CPU, cpu_joules=360.0, why="")])
    both = total([measured, of_uses([ONLY_CPU])])
    assert both.kWh == pytest.approx(400 / 3.6e6) and both.estimated_kWh == pytest.approx(40 / 3.6e6)
    assert not both.measured and both.source == "RAPL; 5 W per busy CPU, typical"
    assert both == replace(of_uses([replace(ONLY_CPU, cpu_joules=360.0), ONLY_CPU]), why=both.why)


def test_a_stage_adds_up_its_shards(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.txt").write_text("a line\n")
    manifest = copy_all(tmp_path / "in", tmp_path / "out", workers=1)
    records = [json.loads((tmp_path / "out" / f"{n:05d}.json").read_text())["energy"] for n in range(3)]
    assert manifest.energy == of_uses([Use(**record) for record in records])
    assert manifest == load_manifest(tmp_path / "out" / "manifest.json")
    assert set(asdict(manifest.energy)) >= {"kWh", "measured", "why", "source", "watts", "tCO2eq", "seconds"}
