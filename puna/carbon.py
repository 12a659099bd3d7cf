"""Energy and carbon of a computation (paper section 6), and the record of a run's energy.

    MWh = GPU-hours × watts × PUE / 10⁶        tCO2eq = MWh × intensity

The paper's PUE (power usage effectiveness of the data centre) is 1.1, its intensity that of the US grid.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from puna.extras import require
from puna.files import human_number, human_seconds, read_json

WATTS = 400.0
"""Power of one A100-80GB, in W."""
PUE = 1.1
INTENSITY = 0.385
"""tCO2eq per MWh, which is kgCO2eq per kWh."""
COUNTRIES = "data/private_infra/global_energy_mix.json"  # in codecarbon: gCO2eq per kWh, by country
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Footprint:
    """The energy and the emissions of some GPU-hours."""

    gpu_hours: float
    watts: float
    """Power of one GPU under load."""
    pue: float = PUE
    intensity: float = INTENSITY
    """tCO2eq per MWh."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the first invalid field."""
        for name, least in (("gpu_hours", 0.0), ("watts", 0.0), ("pue", 1.0), ("intensity", 0.0)):
            if not getattr(self, name) >= least:  # also NaN
                raise ValueError(f"{name} is {getattr(self, name):g}; it must be at least {least:g}")

    @property
    def mwh(self) -> float:
        """Energy, in MWh, with what the data centre adds."""
        return self.gpu_hours * self.watts * self.pue / 1e6

    @property
    def tco2eq(self) -> float:
        """Emissions, in tonnes of CO2 equivalent."""
        return self.mwh * self.intensity


@dataclass(frozen=True)
class Published:
    """A row of the paper's Table 15; OPT's and BLOOM's are the authors' figures, on A100s as well."""

    model: str
    gpu_hours: int
    mwh: int
    tco2eq: int


TABLE_15 = (
    Published("OPT-175B", 809_472, 356, 137),
    Published("BLOOM-175B", 1_082_880, 475, 183),
    Published("LLaMA-7B", 82_432, 36, 14),
    Published("LLaMA-13B", 135_168, 59, 23),
    Published("LLaMA-33B", 530_432, 233, 90),
    Published("LLaMA-65B", 1_022_362, 449, 173),
)
# The paper's text: 2,048 GPUs for "about 5 months" in all.
TOTAL_MWH, TOTAL_TCO2EQ, TOTAL_GPUS, TOTAL_MONTHS = 2638, 1015, 2048, 5


@dataclass(frozen=True)
class Energy:
    """The energy of a run in its manifest."""

    kWh: float
    """Energy of the CPUs and GPUs that did the work, without what the data centre adds."""
    estimated_kWh: float
    """The part of it that no counter measured."""
    measured: bool
    """Whether counters measured all of it."""
    source: str
    """The counters, and the power that estimates rest on."""
    why: str
    """Why it is not measured; empty when it is."""
    watts: float
    """Mean power: the energy over `seconds`."""
    seconds: float
    """Time of the work, added up over its processes and starts."""
    pue: float
    intensity: float
    """tCO2eq per MWh."""
    tCO2eq: float

    def __str__(self) -> str:
        """`energy 0.0125 kWh (estimated: 9.7 W for 1 h 17 min; 5 W per busy CPU, typical), 5.3 g CO2eq`."""
        word = "measured" if self.measured else "estimated"
        if not self.measured and self.estimated_kWh < self.kWh:
            word = f"{self.estimated_kWh / self.kWh:.0%} of it estimated"
        time = human_seconds(self.seconds)
        return (
            f"energy {human_energy(self.kWh)} ({word}: {self.watts:.3g} W for {time}; {self.source}), "
            f"{human_mass(self.tCO2eq)} CO2eq"
        )

    def at(self, pue: float, intensity: float) -> "Energy":
        """The same energy in another data centre or on another grid."""
        return replace(self, pue=pue, intensity=intensity, tCO2eq=self.kWh / 1e3 * pue * intensity)


def total(parts: Sequence[Energy]) -> Energy:
    """The energy of several computations together; its PUE and intensity are means over the energy."""
    assert parts
    kwh, seconds = sum(part.kWh for part in parts), sum(part.seconds for part in parts)
    with_pue = sum(part.kWh * part.pue for part in parts)
    emissions = sum(part.tCO2eq for part in parts)
    return Energy(
        kWh=kwh,
        estimated_kWh=sum(part.estimated_kWh for part in parts),
        measured=all(part.measured for part in parts),
        source=listed(part.source for part in parts),
        why=listed(part.why for part in parts),
        watts=kwh * JOULES_PER_KWH / seconds if seconds else 0.0,
        seconds=seconds,
        pue=round(with_pue / kwh, 6) if kwh else parts[0].pue,
        intensity=round(1e3 * emissions / with_pue, 6) if with_pue else parts[0].intensity,
        tCO2eq=emissions,
    )


def listed(items: Iterable[str]) -> str:
    """The different items, in order of appearance, on one line."""
    return "; ".join(dict.fromkeys(item for item in items if item))


def human_energy(kwh: float) -> str:
    """`1.25 Wh`, `0.0125 kWh`, `36.3 MWh`: an energy in a sensible unit."""
    factor, unit = (1e3, "Wh") if kwh < 0.01 else (1, "kWh") if kwh < 1000 else (1e-3, "MWh")
    return f"{human_number(kwh * factor)} {unit}"


def human_mass(tonnes: float) -> str:
    """`4.6 g`, `12 kg`, `14 t`: a mass in a sensible unit."""
    units = (1e9, "mg"), (1e6, "g"), (1e3, "kg"), (1, "t")
    factor, unit = units[sum(tonnes >= least for least in (1e-6, 1e-3, 1))]
    return f"{human_number(tonnes * factor)} {unit}"


def grid_intensity(given: str) -> tuple[float, str]:
    """tCO2eq per MWh of a number or a country, and where it is from.

    A country is a name or an ISO code of three letters. Its figure is read from the table in the package
    codecarbon, whose code is neither imported nor asked to find out where this machine is.

    Raises:
        ValueError: there is no such country.
        MissingExtra: codecarbon is not installed.
    """
    try:
        value = float(given)
    except ValueError:
        pass
    else:
        if not value >= 0:
            raise ValueError(f"intensity is {given}; expected at least 0 tCO2eq per MWh")
        return value, "the paper's, of the US grid" if value == INTENSITY else "given"
    require("codecarbon")
    from importlib.metadata import version  # here, because every command imports this module
    from importlib.util import find_spec

    spec = find_spec("codecarbon")
    assert spec is not None and spec.submodule_search_locations
    table = Path(spec.submodule_search_locations[0]) / COUNTRIES
    rows = read_json(table, "install codecarbon again").values()
    for row in rows:
        if given.casefold() in (row["iso_code"].casefold(), row["country_name"].casefold()):
            basis = f"{row['country_name']} in {row['year']}, from codecarbon {version('codecarbon')}"
            return row["carbon_intensity"] / 1e3, basis
    near = [
        f"{row['iso_code']} ({row['country_name']})"
        for row in rows
        if given[:3].casefold() in row["country_name"].casefold()
    ]
    hint = f"; did you mean {' or '.join(near[:3])}?" if near else ""
    raise ValueError(
        f"intensity is {given!r}; expected tCO2eq per MWh, or a country's name or code such as FRA{hint}"
    )


def table_15(at: Footprint) -> tuple[dict[str, Any], list[str]]:
    """Table 15 at a PUE, power and intensity, beside the printed figures."""
    rows = [(row, Footprint(row.gpu_hours, at.watts, at.pue, at.intensity)) for row in TABLE_15]
    lines = [
        "Table 15: MWh = GPU-hours × watts × PUE / 10⁶, tCO2eq = MWh × intensity",
        f"{'model':<12}{'watts':>6}{'GPU-hours':>12}{'MWh':>10}{'printed':>9}{'tCO2eq':>10}{'printed':>9}",
        *(
            f"{row.model:<12}{at.watts:>6g}{row.gpu_hours:>12,}{found.mwh:>10,.2f}{row.mwh:>9,}"
            f"{found.tco2eq:>10,.2f}{row.tco2eq:>9,}"
            for row, found in rows
        ),
    ]
    result: dict[str, Any] = {
        "rows": [
            {
                "model": row.model,
                "gpu_hours": row.gpu_hours,
                "MWh": found.mwh,
                "tCO2eq": found.tco2eq,
                "printed": {"MWh": row.mwh, "tCO2eq": row.tco2eq},
            }
            for row, found in rows
        ],
        "watts": at.watts,
    }
    if (at.watts, at.pue, at.intensity) == (WATTS, PUE, INTENSITY):
        lines += _beside_the_paper(rows)
    return result, lines


def _beside_the_paper(rows: Sequence[tuple[Any, Footprint]]) -> list[str]:
    tonnes = sum(round(found.tco2eq) == row.tco2eq for row, found in rows)
    off = {row.model: found.mwh - row.mwh for row, found in rows if abs(found.mwh - row.mwh) >= 1}
    others = "".join(f"; {model} is {by:.2f} MWh off" for model, by in off.items())
    hours = TOTAL_MWH * 1e6 / (WATTS * PUE)
    return [
        f"tCO2eq rounds to the printed figure in {tonnes} of {len(rows)} rows; MWh is within 1 of it in "
        f"{len(rows) - len(off)} of {len(rows)}{others}",
        "",
        f"The paper's total: {TOTAL_MWH:,} MWh, {TOTAL_TCO2EQ:,} tCO2eq, {TOTAL_GPUS:,} GPUs for about "
        f"{TOTAL_MONTHS} months.",
        f"From {TOTAL_MWH:,} MWh at {WATTS * PUE:g} W per GPU: {hours / 1e6:.3f} million GPU-hours, "
        f"{hours / TOTAL_GPUS / 24:.0f} days of {TOTAL_GPUS:,} GPUs; {TOTAL_MWH * INTENSITY:,.1f} tCO2eq.",
    ]
