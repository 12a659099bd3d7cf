"""How much of the machine this process may use: under taskset, in a Slurm job, in a container.

In:  the process's CPU affinity and, on Linux, its control groups (versions 1 and 2) and those above it.
Out: cores and bytes. A container that may use two cores of 64 sees all 64: with a thread on each, every
     product waits for threads that the system has stopped.
"""

import os
from collections.abc import Iterator
from pathlib import Path

GROUPS, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cores() -> int:
    """The number of cores that this process may use, at least 1; of a quota of 2.5 cores, 2."""
    # macOS has no affinity.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu"):
        version_1 = [*_read(group / "cpu.cfs_quota_us"), *_read(group / "cpu.cfs_period_us")]
        match _read(group / "cpu.max") or version_1:
            case [quota, period] if quota.isdecimal():  # not "max", nor -1
                count = min(count, int(quota) // int(period))
    return max(1, count)


def memory() -> int:
    """The memory that this process may use, in bytes: the machine's, or less in a control group."""
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            match _read(group / name):
                case [limit] if limit.isdecimal():
                    least = min(least, int(limit))
    return least


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the control groups that this process is in, as far as they are visible."""
    try:
        lines = GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:  # 5:cpu,cpuacct:/path in version 1, 0::/path in version 2
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        for root in (MOUNTED / controller,) if controllers else (MOUNTED, MOUNTED / "unified"):
            # A container may see its own group as the root, whatever its path is outside.
            parts = [part for part in path.split("/") if part not in ("", "..")]
            yield from (root.joinpath(*parts[:depth]) for depth in range(len(parts) + 1))


def _read(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []
