"""Let the process reuse the memory it frees, instead of returning it to the system at every step.

A training step allocates and frees the same large tensors again and again. glibc maps each of them and unmaps
it when it is freed, so the kernel clears every page again at every step. glibc reads the settings below when
a process starts, so the command restarts itself with them. `--compute.allocator system` does not.

Blocks that stay on the heap leave holes. Two remedies: the largest tensors are mapped after all, where
clearing them costs little beside computing them, and `reuse.cpp`, which is preloaded, lets a freed block
serve the next request of its size.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

from puna.compiler import compiler
from puna.files import atomic_file, cache_dir

KEEP = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),  # allocate smaller blocks on the heap, where they can be reused
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),  # do not shrink the heap when they are freed
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # use huge pages: a sixth of the page faults
}
PRELOAD = "LD_PRELOAD"
REUSE = Path(__file__).with_name("reuse.cpp")


def is_kept() -> bool:
    """Whether this process was started with the settings."""
    return all(os.environ.get(name) == value for name, value in KEEP.items())


def settings() -> dict[str, str]:
    """The environment variables to start a process with.

    `reuse.cpp` is not preloaded where it cannot be compiled, which costs memory alone, nor where the user
    preloads a library, which may be another allocator.
    """
    library = None if PRELOAD in os.environ else _reuse()
    return KEEP if library is None else {**KEEP, PRELOAD: str(library)}


def keep_freed_memory() -> None:
    """Restart the `puna` command with the settings; does nothing when they are set, or without glibc.

    Only a process that is the command itself is restarted, never one that imported puna.
    """
    is_command = Path(sys.argv[0]).parts[-2:] == ("puna", "__main__.py") or Path(sys.argv[0]).name == "puna"
    if is_command and not is_kept() and platform.libc_ver()[0] == "glibc":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **settings()})


def _reuse() -> Path | None:
    """The library of `reuse.cpp`, compiled once: without kernels/build.py, which imports torch."""
    command = compiler()
    if command is None or os.environ.get("PUNA_NATIVE") == "0" or platform.libc_ver()[0] != "glibc":
        return None
    digest = hashlib.sha256(REUSE.read_bytes() + f"{command} {platform.machine()}".encode()).hexdigest()
    library = (cache_dir() / "kernels" / f"reuse-{digest[:16]}.so").absolute()
    if set(str(library)) & set(" :$"):  # what separates and replaces names in LD_PRELOAD
        return None
    try:
        if not library.is_file():
            with atomic_file(library) as temporary:
                options = ["-O2", "-shared", "-fPIC", str(REUSE), "-o", str(temporary)]
                subprocess.run([*command, *options], check=True, capture_output=True, timeout=60)
        ctypes.CDLL(str(library))  # ld.so prints an error in every process if it is invalid
    except (OSError, subprocess.SubprocessError):
        return None
    return library
