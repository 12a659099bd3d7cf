"""`puna carbon`: Table 15, GPU-hours, and the recorded energy of runs."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from puna.carbon import Energy
from puna.cli import main
from puna.energy import Meter
from puna.files import write_json
from puna.manifest import Manifest, write_manifest
from tests.test_carbon import TABLE_15

RUN = Energy(
    2.0, 0.5, False, "NVML; 5 W per busy CPU, typical", "no counter", 100.0, 72_000.0, 1.1, 0.385, 0.000847
)


def finished(directory: Path, energy: Energy | None) -> Path:
    directory.mkdir()
    write_manifest(
        directory,
        Manifest(stage="run", fingerprint="0", config={}, code_version="", counts={}, energy=energy),
    )
    return directory


def test_table_15(capsys):
    assert main(["carbon", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["model"] for row in rows] == list(TABLE_15)
    for row in rows:
        hours, mwh, tonnes = TABLE_15[row["model"]]
        assert (row["gpu_hours"], row["printed"]) == (hours, {"MWh": mwh, "tCO2eq": tonnes})
        assert round(row["tCO2eq"]) == tonnes
        assert abs(row["MWh"] - mwh) < 1 or row["model"] == "BLOOM-175B"


def test_the_table_says_where_the_paper_differs(capsys):
    assert main(["carbon"]) == 0
    out = capsys.readouterr().out
    assert "6 of 6 rows" in out and "5 of 6; BLOOM-175B is 1.47 MWh off" in out
    assert "2,638 MWh, 1,015 tCO2eq" in out and "122 days of 2,048 GPUs; 1,015.6 tCO2eq" in out


def test_other_assumptions_give_another_table(capsys):
    assert main(["carbon", "--pue", "1.2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][2]["MWh"] == pytest.approx(82_432 * 480 / 1e6)
    assert main(["carbon", "--watts", "700"]) == 0
    assert "of 6 rows" not in capsys.readouterr().out  # no claim about the paper's figures


def test_gpu_hours_in_a_country(capsys):
    if find_spec("codecarbon") is None:
        pytest.skip("codecarbon is not installed: pip install 'puna[carbon]'")
    for country in ("FRA", "fra", "France"):
        options = ["--gpu-hours", "1000", "--watts", "500", "--intensity", country]
        assert main(["carbon", *options, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["MWh"] == pytest.approx(0.55)
        assert 0.02 < found["intensity"] < 0.1 and found["basis"].startswith("France in 20")
    assert "codecarbon" not in sys.modules  # its table is read without importing it
    assert main(["carbon", "--intensity", "Frankreich"]) == 2
    assert "did you mean FRA (France)" in capsys.readouterr().err


def test_runs_are_added_up_and_said_to_be_estimated(tmp_path, capsys):
    run = finished(tmp_path / "run", RUN)
    evaluation = tmp_path / "eval"
    write_json(evaluation / "results.json", {"results": [], "energy": vars(RUN)})
    with Meter(folder=tmp_path / "killed" / "energy"):  # a run that has no manifest yet
        pass
    places = [str(run), str(evaluation), str(tmp_path / "killed")]
    assert main(["carbon", *places, "--pue", "1", "--intensity", "0.1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["kWh"] == pytest.approx(4, abs=1e-3) and not found["total"]["measured"]
    assert found["total"]["tCO2eq"] == pytest.approx(0.0004, abs=1e-6)
    assert list(found["runs"]) == places
    assert main(["carbon", *places]) == 0
    out = capsys.readouterr().out
    assert "energy 2 kWh (25% of it estimated: 100 W for 20 h 0 min; NVML; 5 W per busy CPU, typical)" in out
    assert "in all 4.4 kWh with PUE" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["absent"], "no record of energy"),
        (["old"], "no record of energy"),
        (["run", "--gpu-hours", "3"], "give one of them"),
        (["--gpu-hours", "-3"], "gpu_hours is -3"),
        (["--pue", "0.5"], "pue is 0.5"),
        (["--intensity", "Atlantis"], "puna[carbon]"),
    ],
)
def test_invalid_calls(tmp_path, monkeypatch, capsys, options, message):
    if "Atlantis" in options:
        monkeypatch.setitem(sys.modules, "codecarbon", None)
    finished(tmp_path / "old", None)
    finished(tmp_path / "run", RUN)
    monkeypatch.chdir(tmp_path)
    assert main(["carbon", *options]) == 2
    assert message in capsys.readouterr().err


def test_it_imports_no_torch():
    code = "import sys; from puna.cli import main; main(['carbon']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
