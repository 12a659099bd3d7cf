"""The kernels in C++: the PyTorch functions' numbers, for any size, type and number of threads."""

import logging
import math

import pytest
import torch

from puna.kernels import build, elementwise

native = pytest.mark.skipif(elementwise.native_library() is None, reason="no C++ compiler, or PUNA_NATIVE=0")

TYPES = [torch.float32, torch.bfloat16]
WIDTHS = [1, 3, 8, 31, 288, 1000]  # vectors' tails of every kind
IGNORE = -100
# Relative to the greatest value, or to 1, the inputs' own size. fp32: sums of 1,000 terms, and an exponential
# good to 2e-7; bf16: half a step.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3}


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(*shape, generator=generator) * scale).to(dtype)


def angles(T: int, E: int) -> tuple[torch.Tensor, torch.Tensor]:
    turns = draw(T, E // 2, scale=3)
    return turns.cos(), turns.sin()


def calls(width: int, dtype: torch.dtype, rows: int = 37) -> list[tuple[elementwise.Kernel, tuple]]:
    """Every kernel with arguments of a width."""
    x, norm = draw(rows, width, scale=2), draw(width, seed=1)
    r = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    gate_up = draw(rows, 2 * width, dtype=dtype, scale=4)
    row = draw(rows, width, dtype=dtype, seed=2)
    targets = torch.randint(0, width, (rows,), generator=torch.Generator().manual_seed(3))
    targets[::5] = IGNORE
    E = 2 * width
    q, k, v = (draw(2, heads, 5, E, dtype=dtype, seed=heads) for heads in (3, 1, 1))
    logits = draw(rows, width, dtype=dtype, scale=8)
    return [
        (elementwise.rms_forward, (x, norm, 1e-6, dtype)),
        (elementwise.rms_recompute, (x, r, norm, dtype)),
        (elementwise.rms_backward, (row, x, r, norm)),
        (elementwise.swiglu_forward, (gate_up,)),
        (elementwise.swiglu_backward, (row, gate_up)),
        (elementwise.split_rotate, (draw(2, 5, 5, E, dtype=dtype), *angles(5, E), 3, 1)),
        (elementwise.split_rotate_backward, (q, k, v, *angles(5, E))),
        (elementwise.cross_entropy_block, (logits, targets, 0.25, IGNORE)),
    ]


def results(value: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def fresh(arguments: tuple) -> tuple:
    """Copies: a kernel may write over its first argument."""
    return tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in arguments)


def in_double(arguments: tuple) -> tuple:
    def double(x):
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            return x.double()
        return torch.float64 if isinstance(x, torch.dtype) else x

    return tuple(map(double, arguments))


@native
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_each_kernel_is_its_pytorch_function_in_fp64(width, dtype):
    for kernel, arguments in calls(width, dtype):
        exact = results(kernel.function(*in_double(arguments)))
        eager = results(kernel.function(*arguments))
        ours = results(kernel.in_cpp(*fresh(arguments)))
        for mine, theirs, right in zip(ours, eager, exact, strict=True):
            assert mine.shape == theirs.shape and mine.dtype == theirs.dtype, kernel.function.__name__
            error = (mine.double() - right).abs().max()
            limit = TOLERANCE[mine.dtype] * max(right.abs().max(), 1)
            assert error <= limit, f"{kernel.function.__name__}, {width}: {error:.1e} > {limit:.1e}"


@native
def test_the_number_of_threads_changes_no_bit():
    before = torch.get_num_threads()
    try:
        for width in (31, 288):
            for kernel, arguments in calls(width, torch.float32, rows=2001):
                outcomes = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    outcomes.append(results(kernel.in_cpp(*fresh(arguments))))
                for outcome in outcomes[1:]:
                    assert all(map(torch.equal, outcomes[0], outcome)), kernel.function.__name__
    finally:
        torch.set_num_threads(before)


@native
def test_inputs_may_lie_in_memory_in_any_way():
    for kernel, arguments in calls(24, torch.float32):
        spread = tuple(
            torch.stack((x, x), -1)[..., 0] if isinstance(x, torch.Tensor) else x for x in arguments
        )
        assert not spread[0].is_contiguous()
        ours, expected = kernel.in_cpp(*spread), kernel.in_cpp(*fresh(arguments))
        assert all(map(torch.equal, results(ours), results(expected))), kernel.function.__name__


@native
def test_no_rows_are_no_work():
    for kernel, arguments in calls(24, torch.float32, rows=0)[:5]:
        for ours, eager in zip(
            results(kernel.in_cpp(*arguments)), results(kernel.function(*arguments)), strict=True
        ):
            assert ours.shape == eager.shape and not ours.any()


@native
def test_the_norm_computed_again_is_the_first_to_the_bit():
    x, norm = draw(50, 288), draw(288, seed=1)
    for dtype in TYPES:
        n, r = elementwise.rms_forward(x, norm, 1e-6, dtype)
        assert torch.equal(elementwise.rms_recompute(x, r, norm, dtype), n)


@native
@pytest.mark.parametrize("dtype", TYPES)
def test_a_loss_that_is_not_finite_shows(dtype):
    targets = torch.zeros(4, dtype=torch.long)
    for value in (math.nan, math.inf):
        logits = draw(4, 2500, dtype=dtype)
        logits[1, 2100], logits[2, 0] = value, value
        losses, d = elementwise.cross_entropy_block(logits, targets, 1.0, IGNORE)
        assert losses.isfinite().tolist() == [True, False, False, True]
        assert d[0].isfinite().all() and not d[1].isfinite().all()
    x = draw(3, 64)
    x[1, 5] = math.nan
    n, _ = elementwise.rms_forward(x, torch.ones(64), 1e-6, dtype)
    assert n[1].isnan().all() and n[::2].isfinite().all()
    z = elementwise.swiglu_forward(x.to(dtype))
    assert z[1, 5].isnan() and z.isnan().sum() == 1


@native
def test_far_logits_neither_overflow_nor_vanish():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-3e38, 3e38, 0.0]])
    targets = torch.tensor([0, 1])
    losses, d = elementwise.cross_entropy_block(logits, targets, 1.0, IGNORE)
    assert losses.tolist() == [0, 0] and d.abs().max() < 1e-30
    gates = torch.tensor([[-200.0, -50.0, 50.0, 200.0, 1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(
        elementwise.swiglu_forward(gates), elementwise.swiglu_forward.function(gates), rtol=1e-6, atol=1e-30
    )


@native
def test_a_target_outside_the_vocabulary_is_an_error_as_in_pytorch():
    for target in (-1, 8, 1 << 40):
        for cross_entropy in (elementwise.cross_entropy_block, elementwise.cross_entropy_block.function):
            with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
                cross_entropy(draw(2, 8), torch.tensor([0, target]), 1.0, IGNORE)


def test_running_out_of_memory_is_not_the_compilers_fault(monkeypatch):
    def compile_(function, **options):
        def run(*arguments):
            raise torch.OutOfMemoryError("no memory")

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(elementwise, "native_library", lambda: None)
    monkeypatch.setattr(elementwise, "_is_on", lambda value, *devices: False)
    monkeypatch.setattr(elementwise.swiglu_forward, "compiled", None)
    monkeypatch.setattr(elementwise, "_compile", True)
    with pytest.raises(torch.OutOfMemoryError):
        elementwise.swiglu_forward(draw(2, 8))


def test_types_that_cpp_does_not_know_take_pytorchs_way():
    gates = draw(3, 8).half()
    assert torch.equal(elementwise.swiglu_forward(gates), elementwise.swiglu_forward.function(gates))
    assert elementwise.swiglu_forward(gates.double()).dtype == torch.float64


def test_kernels_run_on_the_meta_device():
    for kernel, arguments in calls(24, torch.float32):
        on_meta = tuple(x.to("meta") if isinstance(x, torch.Tensor) else x for x in arguments)
        for ours, eager in zip(results(kernel(*on_meta)), results(kernel.function(*arguments)), strict=True):
            assert ours.is_meta and ours.shape == eager.shape and ours.dtype == eager.dtype


def test_a_compiler_that_fails_leaves_one_warning_and_the_eager_results(monkeypatch, caplog):
    def compile_(function, **options):
        def run(*arguments):
            raise AssertionError("distutils was not found\nand more lines")

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    # A CPU's tensors stand for a GPU's, which this machine need not have.
    monkeypatch.setattr(elementwise, "native_library", lambda: None)
    monkeypatch.setattr(elementwise, "_is_on", lambda value, *devices: False)
    elementwise.compile_kernels()
    try:
        with caplog.at_level(logging.WARNING):
            for kernel, arguments in calls(24, torch.float32):
                expected = results(kernel.function(*arguments))
                assert all(map(torch.equal, results(kernel(*fresh(arguments))), expected))
    finally:
        elementwise.compile_kernels(False)
    (record,) = caplog.records
    assert "AssertionError: distutils was not found" in record.message and "\n" not in record.message


def test_without_cpp_the_same_functions_run_eagerly(monkeypatch):
    monkeypatch.setattr(elementwise, "native_library", lambda: None)
    for kernel, arguments in calls(24, torch.float32):
        expected = results(kernel.function(*arguments))
        assert all(map(torch.equal, results(kernel(*arguments)), expected))


def test_the_sources_of_training_exist():
    assert all(source.is_file() for source in elementwise.SOURCES)
    assert build.compiler() is None or elementwise.SOURCES[0].name == "elementwise.cpp"
