"""The energy of work: read from the machine's counters where it can be, else estimated, and said to be.

    with Meter(folder=RUN/energy) as meter:          with Meter() as meter:
        ...                                              ...
    of_folder(RUN/energy) -> Energy                  of_uses([meter.use(), ...]) -> Energy

    CPU   RAPL's counters of the packages and their memory, times    else   CPU-seconds × watts per busy CPU
          the process's share of the machine's CPU time
    GPU   NVML's counters of the GPUs that the process uses          else   seconds × watts per GPU

A process measures itself, so uses add up over workers, ranks, machines and starts. With `folder` its use is
written there every POLL_SECONDS: what a killed process has used is not lost.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from puna.carbon import INTENSITY, JOULES_PER_KWH, PUE, WATTS, Energy, grid_intensity, listed
from puna.files import MANIFEST, read_json, write_json
from puna.manifest import load_manifest
from puna.rundir import ENERGY

POWERCAP = Path("/sys/class/powercap")
STAT = Path("/proc/stat")
POLL_SECONDS = 10.0
"""RAPL counters wrap around: the smallest, of 65 kJ, in two minutes at 500 W."""
CPU_WATTS = 5.0
"""Per busy hardware thread: twice a server's 280 W over 128 threads, for memory and the rest."""
MOST_WATTS = 2000.0
"""Of one RAPL counter: a counter that went back by more than this was reset, and did not wrap around."""


@dataclass(frozen=True)
class Use:
    """What a process used; None for joules that no counter measured, and why."""

    seconds: float
    cpu_seconds: float
    """CPU time of the process and of its children that have ended."""
    n_gpus: int
    cpu_joules: float | None
    gpu_joules: float | None
    why: str


@dataclass(frozen=True)
class Power:
    """What an estimate rests on: watts per busy CPU or GPU, declared or typical."""

    watts: float
    unit: str
    basis: str

    def __str__(self) -> str:
        """`5 W per busy CPU, typical`."""
        return f"{self.watts:g} W per {self.unit}, {self.basis}"


@dataclass(frozen=True)
class Assumptions:
    """What estimates and emissions rest on: the environment's declarations, else typical figures."""

    cpu: Power
    gpu: Power
    pue: float
    intensity: float

    @classmethod
    def read(cls) -> "Assumptions":
        """Read PUNA_CPU_WATTS, PUNA_GPU_WATTS, PUNA_PUE and PUNA_INTENSITY (a number or a country).

        Raises:
            ValueError: naming the first invalid one.
            MissingExtra: PUNA_INTENSITY is a country, and codecarbon is not installed.
        """
        cpu, gpu = _declared("PUNA_CPU_WATTS"), _declared("PUNA_GPU_WATTS")
        pue, intensity = _declared("PUNA_PUE", least=1), os.environ.get("PUNA_INTENSITY")
        return cls(
            Power(CPU_WATTS, "busy CPU", "typical") if cpu is None else Power(cpu, "busy CPU", "declared"),
            Power(WATTS, "GPU", "typical") if gpu is None else Power(gpu, "GPU", "declared"),
            PUE if pue is None else pue,
            grid_intensity(intensity)[0] if intensity else INTENSITY,
        )


def _declared(name: str, least: float = 0) -> float | None:
    given = os.environ.get(name)
    if not given:
        return None
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not value >= least:  # also NaN
        raise ValueError(f"{name} is {given!r}; expected a number of at least {least:g}")
    return value


class _Rapl:
    """Joules of the packages and their memory, times this process's share of the machine's CPU time."""

    def __init__(self) -> None:
        if not POWERCAP.is_dir():
            raise OSError(f"{POWERCAP} does not exist (no Linux, or a virtual machine)")
        # Not intel-rapl-mmio:*, the same packages again, nor psys, which contains them, nor core and uncore,
        # which they contain.
        zones = [zone for zone in sorted(POWERCAP.glob("intel-rapl:*")) if _is_counted(zone)]
        if not zones:
            raise OSError(f"{POWERCAP} has no RAPL package")
        self._ranges = {zone / "energy_uj": _number(zone / "max_energy_range_uj") for zone in zones}
        self._counts = {file: _number(file) for file in self._ranges}
        self._time, self._own, self._busy = time.monotonic(), cpu_seconds(), _busy_seconds()
        self._joules = 0.0

    def read(self) -> float:
        """Joules since the counter was opened."""
        counts = {file: _number(file) for file in self._ranges}
        now, own, busy = time.monotonic(), cpu_seconds(), _busy_seconds()
        most = MOST_WATTS * 1e6 * (now - self._time)
        used = 0.0
        for file, before in self._counts.items():
            since = counts[file] - before
            if since < 0:
                wrapped = since + self._ranges[file]
                since = wrapped if wrapped <= most else counts[file]
            used += since / 1e6
        mine = own - self._own
        self._joules += used * mine / max(mine, busy - self._busy, 1e-9)
        self._counts, self._time, self._own, self._busy = counts, now, own, busy
        return self._joules


def _is_counted(zone: Path) -> bool:
    name = (zone / "name").read_text().strip()
    return name.startswith("package") or name == "dram"


def _number(file: Path) -> int:
    return int(file.read_text())


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def _busy_seconds() -> float:
    """CPU time of all processes of the machine."""
    user, nice, system, _, _, irq, softirq, steal = map(int, STAT.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class _Nvml:
    """Joules of whole GPUs, by NVML's counters (NVIDIA's Volta and later)."""

    def __init__(self, gpus: Sequence[str]) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise OSError('nvidia-ml-py is not installed (pip install "puna[energy]")') from error
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            self._gpus = [pynvml.nvmlDeviceGetHandleByUUID(gpu) for gpu in gpus]
        except pynvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from error
        self._first = self._count()

    def read(self) -> float:
        """Joules since the counter was opened."""
        return self._count() - self._first

    def _count(self) -> float:
        try:
            millijoules = [self._nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) for gpu in self._gpus]
            return float(sum(millijoules)) / 1e3
        except self._nvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from error


class Meter:
    """Measures this process from `__enter__` to `__exit__`; a thread reads the counters meanwhile.

    `gpus` are the UUIDs of the GPUs that the process uses (see `devices.gpus`). Where no counter can be read,
    it takes the time alone. Raises ValueError for an invalid declaration in the environment.
    """

    def __init__(self, gpus: Sequence[str] = (), folder: Path | None = None) -> None:
        Assumptions.read()  # an invalid one is reported before the work, not after it
        self._gpus = tuple(gpus)
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.json"
        self._file = folder / name if folder else None
        self._counters: dict[str, _Rapl | _Nvml] = {}
        self._joules: dict[str, float] = {}
        self._why: list[str] = []
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._attempt("cpu", lambda: self._counters.update(cpu=_Rapl()))
        if self._gpus:
            self._attempt("gpu", lambda: self._counters.update(gpu=_Nvml(self._gpus)))
        self._began, self._cpu_began = time.monotonic(), cpu_seconds()
        self._use = self.use()
        self._write()
        if self._counters or self._file:
            self._thread = threading.Thread(target=self._poll, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._use = self.use()
        self._end.set()
        if self._thread:
            self._thread.join()
        self._write()

    def use(self) -> Use:
        """What has been used until now, or until the end."""
        if self._end.is_set():
            return self._use
        with self._lock:
            for name, counter in list(self._counters.items()):
                self._attempt(name, lambda: self._joules.update({name: counter.read()}))  # noqa: B023
        return Use(
            time.monotonic() - self._began,
            cpu_seconds() - self._cpu_began,
            len(self._gpus),
            self._joules.get("cpu"),
            self._joules.get("gpu"),
            listed(self._why),
        )

    def _attempt(self, name: str, work: Callable[[], None]) -> None:
        """Do what a counter is for; one that cannot be read is dropped, and its energy estimated."""
        try:
            work()
        except (OSError, ValueError) as error:
            file = getattr(error, "filename", None)
            self._why.append(f"{file}: {getattr(error, 'strerror', '')}" if file else str(error))
            self._counters.pop(name, None)
            self._joules.pop(name, None)

    def _poll(self) -> None:
        while not self._end.wait(POLL_SECONDS):
            self._use = self.use()
            with suppress(OSError):  # the next time, or the end, writes it all
                self._write()

    def _write(self) -> None:
        if self._file:
            write_json(self._file, asdict(self._use))


def of_uses(uses: Iterable[Use]) -> Energy:
    """The energy of what processes used: as measured, the rest estimated."""
    uses, assumed = list(uses), Assumptions.read()
    parts = [(use.gpu_joules, use.seconds * use.n_gpus, "NVML", assumed.gpu) for use in uses if use.n_gpus]
    parts += [(use.cpu_joules, use.cpu_seconds, "RAPL", assumed.cpu) for use in uses]
    measured = sum(joules for joules, *_ in parts if joules is not None)
    estimated = sum(busy * power.watts for joules, busy, _, power in parts if joules is None)
    seconds = sum(use.seconds for use in uses)
    return Energy(
        kWh=(measured + estimated) / JOULES_PER_KWH,
        estimated_kWh=estimated / JOULES_PER_KWH,
        measured=bool(parts) and all(joules is not None for joules, *_ in parts),
        source=listed(str(power) if joules is None else counter for joules, _, counter, power in parts),
        why=listed(use.why for use in uses),
        watts=(measured + estimated) / seconds if seconds else 0.0,
        seconds=seconds,
        pue=assumed.pue,
        intensity=assumed.intensity,
        tCO2eq=0.0,
    ).at(assumed.pue, assumed.intensity)


def of_folder(folder: Path) -> Energy:
    """The energy of all processes and starts that a Meter wrote down in `folder`."""
    return of_uses(Use(**read_json(file)) for file in sorted(folder.glob("*.json")))


def recorded_in(run: Path) -> Energy:
    """The energy that a directory's manifest, or an evaluation's results, or a run in progress has recorded.

    Raises:
        ValueError: there is none.
    """
    if (run / MANIFEST).is_file():
        energy = load_manifest(run / MANIFEST).energy
    elif (run / "results.json").is_file():
        values = read_json(run / "results.json").get("energy")
        energy = Energy(**values) if values else None
    else:
        energy = of_folder(run / ENERGY) if (run / ENERGY).is_dir() else None
    if energy is None:
        raise ValueError(f"{run} has no record of energy; puna writes one since version 0.2")
    return energy
