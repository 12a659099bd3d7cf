"""The C++ kernels compile for Arm, and the elementwise ones compute the same there (under qemu)."""

import shutil
import subprocess
from pathlib import Path

import pytest

import puna
from puna.kernels import build

COMPILER, MACHINE = "aarch64-linux-gnu-g++", "qemu-aarch64"
CHECK = str(Path(__file__).with_name("elementwise_check.cpp"))
BESIDE = f"-I{build.INCLUDE}"
SOURCES = sorted(Path(puna.__file__).parent.rglob("*.cpp"))
TARGET = [*build.FLAGS, "-march=armv8.2-a", "-fopenmp"]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")
@pytest.mark.parametrize("source", SOURCES, ids=[source.name for source in SOURCES])
def test_every_kernel_compiles_for_arm(source, tmp_path):
    run(COMPILER, *TARGET, BESIDE, str(source), "-o", str(tmp_path / "library.so"))


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(COMPILER) is None or shutil.which(MACHINE) is None,
    reason=f"{COMPILER} and {MACHINE} are not both installed",
)
def test_the_elementwise_kernels_compute_the_same_on_arm(tmp_path):
    program = str(tmp_path / "check")
    flags = [flag for flag in TARGET if flag != "-shared"]
    run(COMPILER, *flags, "-static", BESIDE, CHECK, "-o", program)
    assert "0 failures, vectors of 4" in run(MACHINE, program)


@pytest.mark.slow
@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
def test_the_check_itself_holds_here(tmp_path):
    program = str(tmp_path / "check")
    flags = [flag for flag in build.FLAGS if flag != "-shared"]
    run(*build.compiler(), *flags, *build.target_flags(), BESIDE, CHECK, "-o", program)
    assert "0 failures" in run(program)
