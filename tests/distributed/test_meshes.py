"""Training on every mesh of up to four ranks equals training in one process; each collective is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.worker import MESHES, MUTATIONS, OUTLIER, TRAINED, WHOLE, WORLD

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one start of four processes gave."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.distributed.worker", str(folder)]
    started = [
        subprocess.Popen([*command, str(rank)], env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(WORLD)
    ]
    errors = [process.communicate(timeout=600)[1] for process in started]
    assert not any(process.returncode for process in started), "\n".join(errors)
    return json.loads((folder / "results.json").read_text())


NAMES = {shape: "×".join(map(str, shape)) for shape in MESHES}
CASES = [(variant, NAMES[shape]) for variant, shapes in TRAINED.items() for shape in shapes]


@pytest.mark.parametrize(("variant", "mesh"), CASES)
def test_a_mesh_trains_like_one_process(results, variant, mesh):
    found, alone = results[variant][mesh], results[variant]["alone"]
    assert found["initial weights are equal"]
    assert found["gradients"] < 1e-5
    for step, (record, expected) in enumerate(zip(found["records"], alone, strict=True)):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-5), step
        assert record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5), step
        assert record["loss_by_source"] == pytest.approx(expected["loss_by_source"], rel=1e-5), step
        assert record["taken"] == expected["taken"] == (step != OUTLIER), step


@pytest.mark.parametrize("mesh", [NAMES[shape] for shape in WHOLE])
def test_a_checkpoint_loads_on_another_mesh_and_in_one_process_bitwise(results, mesh):
    found = results["checkpoints"][mesh]
    assert found["equal"]
    small, large = sorted(found["sizes"])
    assert large < 1.5 * small, "each machine writes about half"


def test_a_machine_whose_disk_is_full_ends_the_checkpoint_of_all(results):
    for found in results["checkpoints"].values():
        assert "step-000099 could not be written ([Errno 28]" in found["refusal"]
        assert "step-000099" not in found["complete"]


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_missing_or_wrong_collective_is_seen(results, name):
    assert results["mutations"][name]
