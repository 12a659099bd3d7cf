"""Small C++ kernels, compiled where they run: for what PyTorch has no kernel for on CPUs.

In:  a .cpp file beside the module that uses it, its functions `extern "C"` over plain pointers; what it
     includes stands in .h files beside it.
Out: the loaded library, from the cache when this source was compiled for this processor before.

No PyTorch header is included, so that a kernel compiles in a second or two and suits any build of PyTorch.
OpenMP's threads are PyTorch's own: both use the one libgomp that is loaded, and `torch.set_num_threads` holds
for both. Without a compiler the callers have another way to the same numbers.
"""

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch  # noqa: F401 (loads the OpenMP runtime that ours must find)

from puna.files import atomic_file, cache_dir
from puna.model.kernels import compiler

_log = logging.getLogger(__name__)

FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno"),
    *("-fopenmp", "-fPIC", "-shared"),
)


@cache
def load(source: Path) -> ctypes.CDLL | None:
    """The functions of a C++ file, compiled for this machine; None when they cannot be.

    PUNA_NATIVE=0 gives None always. A failure is said once, in one line, on the log.
    """
    if os.environ.get("PUNA_NATIVE") == "0":
        return None
    command = compiler()
    if command is None:
        say_no_compiler()
        return None
    library = cache_dir() / "kernels" / f"{source.stem}-{_key(source, command)}.so"
    if not library.is_file():
        try:
            with atomic_file(library) as temporary:
                subprocess.run(
                    [command, *FLAGS, str(source), "-o", str(temporary)],
                    check=True,
                    capture_output=True,
                    text=True,
                )
        except (subprocess.CalledProcessError, OSError) as error:
            said = getattr(error, "stderr", "") or str(error)
            _log.warning(
                "%s could not be compiled (%s); PyTorch does its work, slower",
                source.name,
                (said.strip().splitlines() or ["no reason given"])[0],
            )
            return None
    return ctypes.CDLL(str(library))


@cache
def say_no_compiler() -> None:
    """One line, however many kernels there are."""
    _log.warning("no C++ compiler: PyTorch does the work of puna's kernels, slower; install g++")


def _key(source: Path, command: str) -> str:
    """A name for what the compiled library depends on: source, headers, flags, compiler, processor."""
    digest = hashlib.sha256()
    for file in (source, *sorted(source.parent.glob("*.h"))):
        digest.update(file.read_bytes())
    digest.update(" ".join((command, *FLAGS, platform.machine(), _processor())).encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """The instruction sets of this processor: a library compiled for more of them would be killed."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
