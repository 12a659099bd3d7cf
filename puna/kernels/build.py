"""Small C++ kernels, compiled where they run: for what PyTorch has no fast kernel for on CPUs.

In:  .cpp files beside the modules that use them, their functions `extern "C"` over plain pointers, the .h
     files beside them, and those in this folder.
Out: the loaded libraries, from the cache when these sources were compiled for this processor before.

No PyTorch header is included, so that a kernel compiles in seconds and suits any build of PyTorch. OpenMP's
threads are PyTorch's own: both use the one runtime that PyTorch loaded, and `torch.set_num_threads` holds for
both. Every caller has a fallback in PyTorch, with the same results to rounding.

Two environment variables limit the kernels: PUNA_NATIVE=0 disables them, and PUNA_CPU=avx2 compiles them for
AVX2 whatever the processor.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch  # also loads the OpenMP runtime that our libraries must find
from torch import nn

from puna.compiler import compiler
from puna.devices import cpu_limit
from puna.files import atomic_file, cache_dir

_log = logging.getLogger(__name__)

INCLUDE = Path(__file__).parent
"""The folder whose headers every source may include, beside those of its own folder."""
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared")
TIMEOUT = 600.0
"""Seconds after which a compiler is taken to hang."""

Command = tuple[str, ...]


def in_memory(x: torch.Tensor) -> bool:
    """Whether our kernels can read a tensor: a plain one on the CPU, none that only stands for one."""
    return x.is_cpu and type(x) in (torch.Tensor, nn.Parameter, nn.Buffer)


@cache
def load(source: Path) -> ctypes.CDLL | None:
    """The functions of a C++ file, compiled for this machine; None when it cannot be compiled.

    PUNA_NATIVE=0 gives None always. A failure is logged once, in one line.
    """
    if os.environ.get("PUNA_NATIVE") == "0":
        return None
    command = compiler()
    if command is None:
        say_no_compiler()
        return None
    library = library_path(source, command)
    if library.is_file():
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            _log.warning("%s could not be loaded (%s); compiling it again", library, error)
    try:
        return _compile_into_cache(source, command, library)
    except (subprocess.SubprocessError, OSError) as error:
        _log.warning(
            "%s could not be compiled (%s); fallback to PyTorch, slower", source.name, _reason(error)
        )
        return None


def prepare(sources: Sequence[Path], say: Callable[[str], None] = lambda _: None) -> None:
    """Compile the sources that are not in the cache, all at once, and load them all.

    `say` receives a line for the terminal before anything is compiled.
    """
    command = compiler()
    if command is None or os.environ.get("PUNA_NATIVE") == "0":
        return
    if not all(library_path(source, command).is_file() for source in sources):
        say("compiling kernels, once")
    with ThreadPoolExecutor(max_workers=len(sources)) as pool:
        list(pool.map(load, sources))


@cache
def say_no_compiler() -> None:
    """Log that there is no compiler, once however many kernels there are."""
    chosen = os.environ.get("CXX")
    _log.warning(
        "no C++ compiler%s: PyTorch does the work of puna's kernels, slower; install g++",
        f" (CXX is {chosen!r})" if chosen else "",
    )


@cache
def say_not_kept(directory: Path, error: str) -> None:
    """Warn once that compiled kernels cannot be cached."""
    _log.warning("compiled kernels are not kept in %s: %s", directory, error)


def _compile_into_cache(source: Path, command: Command, library: Path) -> ctypes.CDLL:
    """Compile `source` to `library`; if writing or loading that fails, for this process only."""
    try:
        with atomic_file(library) as temporary:
            # Inside the context: a library that cannot be loaded does not reach the cache.
            return _compile(source, command, temporary)
    except OSError as error:
        say_not_kept(library.parent, error.strerror or str(error))
    with tempfile.TemporaryDirectory(prefix="puna-") as directory:
        return _compile(source, command, Path(directory) / library.name)


def _compile(source: Path, command: Command, library: Path) -> ctypes.CDLL:
    """Compile and load; without OpenMP, on one thread, where the compiler has none that PyTorch shares."""
    compile_ = [*command, *FLAGS, *target_flags(), f"-I{INCLUDE}", str(source), "-o", str(library)]
    openmp = _openmp(command)
    failure = None
    if openmp:
        try:
            _run([*compile_, *openmp])
        except subprocess.CalledProcessError as error:
            failure = error
    if not openmp or failure:
        try:
            _run([*compile_, "-Wno-unknown-pragmas"])
        except subprocess.CalledProcessError as error:
            raise failure or error from None
        _log.warning(
            "%s runs on one thread: %s has no OpenMP that PyTorch shares%s; install g++",
            *(source.name, " ".join(command), f" ({_reason(failure)})" if failure else ""),
        )
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:  # in a folder from which the system runs no programs, say
        raise OSError(f"the library could not be loaded: {error}") from error


def _run(command: list[str]) -> None:
    """Run a compiler; one that hangs is ended with its children.

    Raises:
        subprocess.SubprocessError: when it fails, or takes longer than TIMEOUT.
    """
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        try:
            _, errors = process.communicate(timeout=TIMEOUT)
        except BaseException:  # the timeout, or Ctrl-C, which another process group does not receive
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=errors)


def _reason(error: Exception) -> str:
    """One line of what went wrong: the compiler's first error."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"the compiler was ended after {error.timeout:.0f} s"
    lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "no reason given")


def target_flags() -> tuple[str, ...]:
    """The processor to compile for."""
    if cpu_limit() == "avx2":
        return ("-march=x86-64-v3",)
    return ("-mcpu=native",) if platform.machine() in ("arm64", "aarch64") else ("-march=native",)


def _openmp(command: Command) -> tuple[str, ...]:
    """The flags for the OpenMP runtime that PyTorch has loaded; none when this compiler cannot share it."""
    if sys.platform == "darwin":
        # Apple's clang knows OpenMP, but neither its driver's flag nor a runtime comes with it.
        runtime = Path(torch.__file__).parent / "lib" / "libomp.dylib"
        flags = ("-Xclang", "-fopenmp", str(runtime), f"-Wl,-rpath,{runtime.parent}")
        return flags if runtime.is_file() else ()
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    # PyTorch's is GNU's; clang's would bring another runtime with other threads into the process.
    return () if "clang" in version else ("-fopenmp",)


def library_path(source: Path, command: Command) -> Path:
    """Where the library is cached: its name tells source, headers, flags, compiler and processor."""
    digest = hashlib.sha256()
    for file in (source, *sorted({*source.parent.glob("*.h"), *INCLUDE.glob("*.h")})):
        digest.update(file.read_bytes())
    processor = "" if cpu_limit() else describe_processor()
    digest.update(" ".join((*command, *FLAGS, *target_flags(), platform.machine(), processor)).encode())
    return cache_dir() / "kernels" / f"{source.stem}-{digest.hexdigest()[:16]}.so"


@cache
def describe_processor() -> str:
    """The instruction sets of this processor: a library compiled for more of them would be killed."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor()
