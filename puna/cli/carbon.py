"""The verb carbon: energy and emissions, of runs or by the paper's formula."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from puna.carbon import (
    INTENSITY,
    PUE,
    TABLE_15,
    TOTAL_GPUS,
    TOTAL_MONTHS,
    TOTAL_MWH,
    TOTAL_TCO2EQ,
    WATTS,
    Energy,
    Footprint,
    grid_intensity,
    human_energy,
    human_mass,
    total,
)
from puna.cli.common import Json, print_result
from puna.energy import of_folder
from puna.files import MANIFEST, read_json
from puna.manifest import load_manifest
from puna.rundir import ENERGY


def carbon(
    *runs: Path,
    gpu_hours: float | None = None,
    watts: float = WATTS,
    pue: float = PUE,
    intensity: str = str(INTENSITY),
    json: Json = False,
) -> int:
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
    if runs:
        result, lines = _of_runs(runs, one)
    elif gpu_hours is not None:
        result = {"gpu_hours": gpu_hours, "watts": watts, "MWh": one.mwh, "tCO2eq": one.tco2eq}
        lines = [f"{gpu_hours:,g} GPU-hours at {watts:g} W: {one.mwh:,.4g} MWh, {one.tco2eq:,.4g} tCO2eq"]
    else:
        result, lines = _table(one)
    print_result({**result, "pue": pue, "intensity": per_mwh, "basis": basis}, json, [*lines, grid])
    return 0


def _of_runs(runs: Sequence[Path], at: Footprint) -> tuple[dict[str, Any], list[str]]:
    found = {str(run): recorded(run).at(at.pue, at.intensity) for run in runs}
    whole = total(list(found.values()))
    lines = [f"{run}: {energy}" for run, energy in found.items()]
    with_pue = human_energy(whole.kWh * at.pue)
    lines.append(f"in all {with_pue} with PUE, {human_mass(whole.tCO2eq)} CO2eq")
    return {"runs": {run: asdict(energy) for run, energy in found.items()}, "total": asdict(whole)}, lines


def recorded(run: Path) -> Energy:
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


def _table(at: Footprint) -> tuple[dict[str, Any], list[str]]:
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
