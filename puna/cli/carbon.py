"""The verb carbon: energy and emissions, of runs or by the paper's formula."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from puna.carbon import (
    INTENSITY,
    PUE,
    WATTS,
    Footprint,
    grid_intensity,
    human_energy,
    human_mass,
    table_15,
    total,
)
from puna.cli.common import Json, print_result
from puna.energy import recorded_in


def carbon(
    *runs: Path,
    gpu_hours: float | None = None,
    watts: float = WATTS,
    pue: float = PUE,
    intensity: str = str(INTENSITY),
    json: Json = False,
) -> None:
    """Energy and emissions of runs or GPU-hours; by default those of the paper's Table 15.

    Parameters
    ----------
    runs
        Directories of runs, documents, shards, tokenizers and evaluations, whose recorded energy is summed.
    gpu_hours
        GPU-hours of a computation, instead of runs.
    watts
        Power of one GPU under load, in W; for GPU-hours and Table 15. The paper's is that of an A100.
    pue
        Power usage effectiveness: the data centre's energy divided by that of its computers.
    intensity
        tCO2eq per MWh, which is kgCO2eq per kWh; or a country's name or ISO code (FRA), which needs the extra
        `carbon`. The paper's is that of the US grid.
    """
    per_mwh, basis = grid_intensity(intensity)
    one = Footprint(gpu_hours or 0.0, watts, pue, per_mwh)
    grid = f"PUE {pue:g}, {per_mwh:g} tCO2eq per MWh ({basis})"
    if runs and gpu_hours is not None:
        raise ValueError("--gpu-hours was given beside directories of runs; give one of them")
    result: dict[str, Any]
    if runs:
        found = {str(run): recorded_in(run).at(pue, per_mwh) for run in runs}
        whole = total(list(found.values()))
        result = {"runs": {run: asdict(energy) for run, energy in found.items()}, "total": asdict(whole)}
        lines = [f"{run}: {energy}" for run, energy in found.items()]
        with_pue = human_energy(whole.kWh * pue)
        lines.append(f"in all {with_pue} with PUE, {human_mass(whole.tCO2eq)} CO2eq")
    elif gpu_hours is not None:
        result = {"gpu_hours": gpu_hours, "watts": watts, "MWh": one.mwh, "tCO2eq": one.tco2eq}
        lines = [f"{gpu_hours:,g} GPU-hours at {watts:g} W: {one.mwh:,.4g} MWh, {one.tco2eq:,.4g} tCO2eq"]
    else:
        result, lines = table_15(one)
    print_result({**result, "pue": pue, "intensity": per_mwh, "basis": basis}, json, [*lines, grid])
