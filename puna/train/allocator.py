"""Let the process reuse the memory it frees, instead of returning it to the system at every step.

A training step allocates and frees the same large tensors again and again. glibc maps each of them and unmaps
it when it is freed, so the kernel clears every page again at every step. glibc reads the settings below when
a process starts, so the command restarts itself with them. `--compute.allocator system` does not.
"""

import os
import platform
import sys
from pathlib import Path

KEEP = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),  # allocate large blocks on the heap, where they can be reused
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),  # do not shrink the heap when they are freed
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # use huge pages: a sixth of the page faults
}


def is_kept() -> bool:
    """Whether this process was started with the settings."""
    return all(os.environ.get(name) == value for name, value in KEEP.items())


def keep_freed_memory() -> None:
    """Restart the `puna` command with the settings; does nothing when they are set, or without glibc.

    Only a process that is the command itself is restarted, never one that imported puna.
    """
    is_command = Path(sys.argv[0]).name == "puna"
    if is_command and not is_kept() and platform.libc_ver()[0] == "glibc":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **KEEP})
