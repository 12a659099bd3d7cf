"""The command starts itself again with the allocator's settings, once, and only when it is the command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from puna.compiler import compiler
from puna.train.allocator import KEEP, settings

SCRIPT = """
import os, sys
from puna.train.allocator import is_kept, keep_freed_memory
keep_freed_memory()
print(is_kept(), sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
@pytest.mark.parametrize(("name", "kept"), [("puna", True), ("pytest", False)])
def test_the_command_and_nothing_else_is_started_again(tmp_path, name, kept):
    script = tmp_path / name
    script.write_text(SCRIPT)
    environment = {key: value for key, value in os.environ.items() if key not in KEEP}
    done = subprocess.run(
        [sys.executable, str(script), "a", "b c"], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == f"{kept} ['a', 'b c']"


GROWTH = """
import torch

def resident():
    return 4096 * int(open("/proc/self/statm").read().split()[1])

before, kept = resident(), []
for _ in range(30):
    passing = torch.ones(2_000_000)      # 8 MB, freed at once
    kept.append(torch.ones(50_000))      # 0.2 MB, that stays
    del passing
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or compiler() is None, reason="glibc, and a compiler")
def test_a_freed_block_serves_the_next_tensor_of_its_size():
    grown = {}
    for name, values in (("reused", settings()), ("not", KEEP)):
        done = subprocess.run(
            [sys.executable, "-c", GROWTH],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | values,
        )
        assert not done.stderr
        grown[name] = int(done.stdout)
    assert grown["reused"] < 40e6  # 8 MB, and 30 times 0.2
    assert grown["reused"] <= grown["not"]


def test_a_library_that_the_user_preloads_stays(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "")
    assert settings() == KEEP


def test_without_a_compiler_the_settings_are_glibcs_alone(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setenv("PUNA_NATIVE", "0")
    assert settings() == KEEP


@pytest.mark.parametrize("folder", ["John Doe", "a:b", "$LIB"])
def test_a_cache_whose_name_cannot_be_preloaded_is_no_error(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / folder))
    assert settings() == KEEP


@pytest.mark.skipif(sys.platform != "linux" or compiler() is None, reason="glibc, and a compiler")
def test_a_library_that_does_not_load_is_not_preloaded(tmp_path, monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "own"))
    library = Path(settings()["LD_PRELOAD"])
    assert library.parent == tmp_path / "own" / "kernels"
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "other"))
    (tmp_path / "other" / "kernels").mkdir(parents=True)
    (tmp_path / "other" / "kernels" / library.name).write_bytes(b"of another machine")
    assert settings() == KEEP
