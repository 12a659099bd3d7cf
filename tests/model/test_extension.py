"""C++ kernels are compiled once, share PyTorch's threads, and may be missing."""

import ctypes
import logging

import pytest
import torch

from puna.model import extension

SOURCE = """
#include <omp.h>
extern "C" int threads() { int n = 0;
#pragma omp parallel
#pragma omp single
n = omp_get_num_threads(); return n; }
extern "C" void twice(float* x, long n) { for (long i = 0; i < n; i++) x[i] *= 2; }
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "cache"))
    extension.load.cache_clear()
    extension.say_no_compiler.cache_clear()
    path = tmp_path / "twice.cpp"
    path.write_text(SOURCE)
    yield path
    extension.load.cache_clear()


needs_compiler = pytest.mark.skipif(extension.compiler() is None, reason="no C++ compiler")


@needs_compiler
def test_a_kernel_reads_and_writes_a_tensors_memory(source):
    library = extension.load(source)
    x = torch.arange(5.0)
    library.twice(ctypes.c_void_p(x.data_ptr()), ctypes.c_long(5))
    assert x.tolist() == [0, 2, 4, 6, 8]


@needs_compiler
def test_the_threads_are_pytorchs(source):
    library = extension.load(source)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert library.threads() == threads
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_a_kernel_is_compiled_once(source, tmp_path):
    extension.load(source)
    (library,) = (tmp_path / "cache" / "kernels").iterdir()
    written = library.stat().st_mtime_ns
    extension.load.cache_clear()
    extension.load(source)
    assert library.stat().st_mtime_ns == written


def test_without_a_compiler_there_is_one_line_and_no_kernel(source, monkeypatch, caplog):
    monkeypatch.setattr(extension, "compiler", lambda: None)
    with caplog.at_level(logging.WARNING):
        assert extension.load(source) is None
        assert extension.load(source.with_name("another.cpp")) is None
    assert len(caplog.records) == 1
    assert "g++" in caplog.text


@needs_compiler
def test_a_kernel_that_does_not_compile_is_named(source, caplog):
    source.write_text("this is not C++")
    with caplog.at_level(logging.WARNING):
        assert extension.load(source) is None
    assert "twice.cpp could not be compiled" in caplog.text


def test_it_can_be_switched_off(source, monkeypatch):
    monkeypatch.setenv("PUNA_NATIVE", "0")
    assert extension.load(source) is None
