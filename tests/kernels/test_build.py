"""C++ kernels are compiled once, share PyTorch's threads, and may be missing."""

import ctypes
import logging
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from puna import devices
from puna.kernels import build

SOURCE = """
#if defined(_OPENMP)  // without its header, which clang may not have
extern "C" int omp_get_num_threads(void);
#else
static int omp_get_num_threads() { return 1; }
#endif
extern "C" int threads() { int n = 0;
#pragma omp parallel
#pragma omp single
n = omp_get_num_threads(); return n; }
extern "C" void twice(float* x, long n) { for (long i = 0; i < n; i++) x[i] *= 2; }
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "cache"))
    for cached in (build.load, build.say_no_compiler, build.say_not_kept):
        cached.cache_clear()
    path = tmp_path / "twice.cpp"
    path.write_text(SOURCE)
    yield path
    build.load.cache_clear()


needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


@needs_compiler
def test_a_kernel_reads_and_writes_a_tensors_memory(source):
    library = build.load(source)
    x = torch.arange(5.0)
    library.twice(ctypes.c_void_p(x.data_ptr()), ctypes.c_long(5))
    assert x.tolist() == [0, 2, 4, 6, 8]


@needs_compiler
def test_the_threads_are_pytorchs(source, caplog):
    library = build.load(source)
    if "one thread" in caplog.text:
        pytest.skip("this compiler has no OpenMP that PyTorch shares")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert library.threads() == threads
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_a_kernel_is_compiled_once(source, tmp_path):
    build.load(source)
    (library,) = (tmp_path / "cache" / "kernels").iterdir()
    written = library.stat().st_mtime_ns
    build.load.cache_clear()
    build.load(source)
    assert library.stat().st_mtime_ns == written


def test_without_a_compiler_there_is_one_line_and_no_kernel(source, monkeypatch, caplog):
    monkeypatch.setattr(build, "compiler", lambda: None)
    with caplog.at_level(logging.WARNING):
        assert build.load(source) is None
        assert build.load(source.with_name("another.cpp")) is None
    assert len(caplog.records) == 1
    assert "g++" in caplog.text


@needs_compiler
def test_cxx_may_have_arguments(source, monkeypatch):
    real = build.compiler()
    monkeypatch.setenv("CXX", " ".join((*real, "-DTWO=2")))
    source.write_text('extern "C" int two() { return TWO; }')
    assert build.load(source).two() == 2


def test_a_cxx_that_does_not_exist_is_named(source, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "icpc -fast")
    with caplog.at_level(logging.WARNING):
        assert build.load(source) is None
    assert "no C++ compiler (CXX is 'icpc -fast')" in caplog.text


@needs_compiler
def test_a_kernel_that_does_not_compile_is_named(source, caplog):
    source.write_text("this is not C++")
    with caplog.at_level(logging.WARNING):
        assert build.load(source) is None
    assert "twice.cpp could not be compiled" in caplog.text


def test_it_can_be_switched_off(source, monkeypatch):
    monkeypatch.setenv("PUNA_NATIVE", "0")
    assert build.load(source) is None


def script(path: Path, *lines: str) -> str:
    """A program that stands for a compiler."""
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)
    return str(path)


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "kernels").iterdir())


@needs_compiler
def test_several_kernels_are_compiled_at_once_with_one_line(source, tmp_path, monkeypatch):
    """Each compiler waits for the other's start: one after another they would never end."""
    other = source.with_name("other.cpp")
    other.write_text(SOURCE)
    real = " ".join(build.compiler())
    meets = (
        f"touch {tmp_path}/started.$$",
        f'while [ "$(ls {tmp_path}/started.* | wc -l)" -lt 2 ]; do sleep 0.05; done',
        f'exec {real} "$@"',
    )
    slow = script(tmp_path / "meeting", '[ "$1" = --version ] && exec true', *meets)
    monkeypatch.setattr(build, "compiler", lambda: (slow,))
    monkeypatch.setattr(build, "TIMEOUT", 60.0)
    lines: list[str] = []
    build.prepare([source, other], lines.append)
    assert lines == ["compiling kernels, once"]
    assert len(cached(tmp_path)) == 2
    assert build.load(source) is not None and build.load(other) is not None
    build.load.cache_clear()
    build.prepare([source, other], lines.append)
    assert len(lines) == 1, "nothing was left to compile"


@needs_compiler
@pytest.mark.parametrize("folder", ["own", "shared"])
def test_a_header_is_part_of_what_is_compiled(source, tmp_path, monkeypatch, folder):
    header = source.with_name("factor.h")
    if folder == "shared":
        monkeypatch.setattr(build, "INCLUDE", tmp_path / "include")
        build.INCLUDE.mkdir()
        header = build.INCLUDE / "factor.h"
    header.write_text("#define FACTOR 2\n")
    source.write_text('#include "factor.h"\nextern "C" long factor() { return FACTOR; }')
    assert build.load(source).factor() == 2
    header.write_text("#define FACTOR 3\n")
    build.load.cache_clear()
    assert build.load(source).factor() == 3
    assert len(cached(tmp_path)) == 2


@needs_compiler
def test_a_library_of_another_processor_is_not_loaded(source, tmp_path, monkeypatch):
    build.load(source)
    monkeypatch.setattr(build, "describe_processor", lambda: "flags: sse2 and nothing else")
    build.load.cache_clear()
    assert build.load(source) is not None
    assert len(cached(tmp_path)) == 2


@needs_compiler
def test_a_cached_library_that_does_not_load_is_compiled_again(source, tmp_path, caplog):
    library = build.library_path(source, build.compiler())
    library.parent.mkdir(parents=True)
    library.write_bytes(b"not a library")
    with caplog.at_level(logging.WARNING):
        assert build.load(source) is not None
    assert "compiling it again" in caplog.text
    ctypes.CDLL(str(library))


@needs_compiler
def test_two_processes_may_compile_at_once(source, tmp_path):
    code = (
        "from pathlib import Path; from puna.kernels import build; "
        f"assert build.load(Path({str(source)!r})) is not None"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert len(cached(tmp_path)) == 1


@needs_compiler
def test_a_cache_that_cannot_be_written_is_one_line_and_the_kernel_runs(
    source, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").touch()  # root may write in any directory, so it is one in a file that forbids it
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert build.load(source).threads() >= 1
        other = source.with_name("other.cpp")
        other.write_text(SOURCE)
        assert build.load(other) is not None
    (record,) = (record for record in caplog.records if "one thread" not in record.message)
    assert "not kept" in record.message


@needs_compiler
def test_a_cache_from_which_no_program_runs_is_one_line_and_the_kernel_runs(
    source, tmp_path, tmp_path_factory, monkeypatch, caplog
):
    real = ctypes.CDLL

    def refuse(name):
        if name.startswith(str(tmp_path)):
            raise OSError(f"{name}: failed to map segment from shared object")
        return real(name)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("elsewhere")))
    with caplog.at_level(logging.WARNING):
        assert build.load(source).threads() >= 1
    (record,) = (record for record in caplog.records if "one thread" not in record.message)
    assert "not kept" in record.message and "failed to map segment" in record.message
    assert not cached(tmp_path)


@needs_compiler
def test_a_compiler_that_hangs_is_ended_with_its_children(source, tmp_path, monkeypatch, caplog):
    child = tmp_path / "child"
    hangs = script(tmp_path / "hangs", '[ "$1" = --version ] && exit', f"sleep 300 & echo $! > {child}; wait")
    monkeypatch.setattr(build, "compiler", lambda: (hangs,))
    monkeypatch.setattr(build, "TIMEOUT", 1.0)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert build.load(source) is None
    assert time.monotonic() - started < 60
    assert "ended after 1 s" in caplog.text
    stat = Path(f"/proc/{child.read_text().strip()}/stat")
    while stat.exists() and stat.read_text().split()[2] != "Z":  # the system takes a moment to end it
        assert time.monotonic() - started < 60
        time.sleep(0.05)
    assert not cached(tmp_path), "nothing half-written is left"


@needs_compiler
def test_without_openmp_the_kernel_runs_on_one_thread_and_says_so(source, tmp_path, monkeypatch, caplog):
    source.write_text('extern "C" int one() {\n#pragma omp parallel\n{}\nreturn 1; }')
    real = " ".join(build.compiler())
    refuses = (
        '[ "$1" = --version ] && exit',
        'case "$*" in *-fopenmp*) echo "error: no OpenMP here" >&2; exit 1;; esac',
    )
    command = script(tmp_path / "refuses", *refuses, f'exec {real} "$@"')
    monkeypatch.setattr(build, "compiler", lambda: (command,))
    with caplog.at_level(logging.WARNING):
        assert build.load(source).one() == 1
    (record,) = caplog.records
    assert "one thread" in record.message and "no OpenMP here" in record.message


def test_avx2_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setenv("PUNA_CPU", "avx2")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(ValueError, match=r"x86-64.*aarch64"):
        devices.cpu_limit()


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="not an x86-64 processor")
def test_a_processor_can_act_as_one_with_avx2(source, tmp_path, monkeypatch):
    source.write_text(
        "#if defined(__AVX512F__) || defined(__AVX512BF16__)\n#define LEVEL 512\n"
        "#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)\n#define LEVEL 256\n"
        '#else\n#define LEVEL 0\n#endif\nextern "C" int level() { return LEVEL; }'
    )
    build.load(source)
    monkeypatch.setenv("PUNA_CPU", "avx2")
    build.load.cache_clear()
    assert build.load(source).level() == 256
    assert len(cached(tmp_path)) == 2, "each level has its own library"
