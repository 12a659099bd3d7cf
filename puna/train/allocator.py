"""Let the process keep the memory it frees, instead of giving it back to the system at every step.

A training step takes and frees the same large tensors over and over. glibc maps each anew and unmaps it when
freed, so the kernel clears every page again, every step. The settings below are read when a process
starts: the command starts itself once more with them. `--compute.allocator system` leaves all as it was.
"""

import os
import platform
import sys
from pathlib import Path

KEEP = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),  # take large blocks from the heap, where they can be reused
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),  # and do not shrink the heap when they are freed
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # ask for huge pages: a sixth of the page faults
}


def is_kept() -> bool:
    """Whether this process was started with the settings."""
    return all(os.environ.get(name) == value for name, value in KEEP.items())


def keep_freed_memory() -> None:
    """Start the `puna` command again with the settings; does nothing when they are set, or are not glibc's.

    Only a process that is the command itself is replaced, never one that imported puna.
    """
    is_command = Path(sys.argv[0]).name == "puna"
    if is_command and not is_kept() and platform.libc_ver()[0] == "glibc":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **KEEP})
