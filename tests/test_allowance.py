"""What a process may use of its machine: also in a container that shows it all of it."""

import os

import pytest
import torch

from puna import allowance
from puna.devices import configure, limit_threads


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A function that writes control groups: the lines of /proc/self/cgroup, and their files."""
    monkeypatch.setattr(allowance, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(allowance, "MOUNTED", tmp_path / "mounted")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)

    def write(lines: str, files: dict[str, str]) -> None:
        (tmp_path / "cgroup").write_text(lines + "\n")
        for name, text in files.items():
            (tmp_path / "mounted" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "mounted" / name).write_text(text + "\n")

    return write


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),  # half a core
        ("0::/a/b", {"a/cpu.max": "350000 100000", "a/b/cpu.max": "max 100000"}, 3),  # the group above
        ("0::/../../kubepods", {"cpu.max": "400000 100000"}, 4),  # a path as it is outside the container
        ("1:name=systemd:/\n0::/x", {"unified/x/cpu.max": "100000 50000"}, 2),
        (
            "4:cpu,cpuacct:/docker/1\n0::/",
            {"cpu/cpu.cfs_quota_us": "800000", "cpu/cpu.cfs_period_us": "100000"},
            8,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("4:cpuset:/", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("0::/", {"cpu.max": ""}, 64),
        ("", {}, 64),
    ],
)
def test_cores_are_the_smallest_quota_of_the_groups(groups, lines, files, expected):
    groups(lines, files)
    assert allowance.cores() == expected


def test_cores_are_the_affinity_without_a_quota(monkeypatch, tmp_path):
    monkeypatch.setattr(allowance, "GROUPS", tmp_path / "none")  # as on macOS
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert allowance.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert allowance.cores() == 10


def test_memory_is_the_smallest_limit_of_the_groups(groups):
    groups("0::/job", {})
    whole = allowance.memory()
    assert whole > 1 << 28
    groups("0::/job", {"memory.max": "max", "job/memory.max": "3000000"})
    assert allowance.memory() == 3_000_000
    groups("9:memory:/", {"memory/memory.limit_in_bytes": "2000000"})
    assert allowance.memory() == 2_000_000
    groups("9:memory:/", {"memory/memory.limit_in_bytes": str((1 << 63) - 4096)})  # version 1: none
    assert allowance.memory() == whole


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("wish", "expected"), [("", 2), ("6", 6)])
def test_no_more_threads_than_cores_unless_asked_for(groups, threads, monkeypatch, wish, expected):
    groups("0::/", {"cpu.max": "200000 100000"})
    monkeypatch.setenv("OMP_NUM_THREADS", wish)
    torch.set_num_threads(6)
    limit_threads()
    assert torch.get_num_threads() == expected
    torch.set_num_threads(1)
    limit_threads()
    assert torch.get_num_threads() == 1


def test_training_has_no_more_threads_than_cores_unless_it_is_configured(groups, threads, monkeypatch):
    groups("0::/", {"cpu.max": "200000 100000"})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(6)
    configure(torch.device("cpu"))
    assert torch.get_num_threads() == 2
    configure(torch.device("cpu"), threads=5)
    assert torch.get_num_threads() == 5
