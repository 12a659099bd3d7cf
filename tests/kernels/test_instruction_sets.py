"""One source for all instruction sets: compiled for lesser ones, the kernels give the same to rounding."""

import ctypes
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from puna.kernels import attention, build
from puna.model.attention import FusedAttention

SOURCES = ("matmul.cpp", "matmul_bf16.cpp", "attention.cpp", "attention_bf16.cpp")
KERNELS = Path(build.__file__).parent
LEVELS = {"x86-64": "sse2", "x86-64-v3": "avx2"}  # and a flag of the processors that can run it

pytestmark = [
    pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="levels of x86-64"),
]


def compiled(source: str, level: str, out: Path) -> Path:
    flags = [*build.FLAGS, f"-march={level}"]
    flags += ["-mavx512bf16"] if level == "x86-64-v4" else []
    command = [*build.compiler(), *flags, "-Werror=return-type", str(KERNELS / source), "-o", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "-march" in result.stderr:
        pytest.skip(f"this compiler does not know {level}")
    assert result.returncode == 0, result.stderr
    return out


@pytest.mark.parametrize("source", SOURCES)
def test_every_kernel_compiles_for_the_greatest_instruction_set(source, tmp_path):
    compiled(source, "x86-64-v4", tmp_path / "kernel.so")


def library(source: str, level: str, folder: Path) -> ctypes.CDLL:
    if LEVELS[level] not in build.describe_processor():
        pytest.skip(f"this processor has no {LEVELS[level]}")
    return ctypes.CDLL(str(compiled(source, level, folder / "kernel.so")))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.parametrize("level", LEVELS)
def test_products_are_the_same_to_rounding_at_every_level(level, tmp_path):
    kernel = library("matmul.cpp", level, tmp_path)
    width = kernel.products_panel_width()
    rows, O, I = 77, 70, 300  # noqa: E741
    x, weight, dy = torch.randn(rows, I), torch.randn(O, I), torch.randn(rows, O)
    panels = torch.empty(-(-O // width) * width * I)
    kernel.pack_outputs(pointer(weight), pointer(panels), *map(ctypes.c_long, (O, I, 0, O, 0)))
    y = torch.empty(rows, O)
    kernel.multiply_fp32(pointer(x), pointer(panels), pointer(y), *map(ctypes.c_long, (rows, I, O)))
    torch.testing.assert_close(y, (x.double() @ weight.double().T).float(), rtol=1e-5, atol=1e-4)
    gradient = torch.ones(O, I)
    numbers = map(ctypes.c_long, (rows, O, I, 0))
    kernel.add_gradient_fp32(pointer(dy), pointer(x), pointer(gradient), *numbers)
    torch.testing.assert_close(gradient, (1 + dy.double().T @ x.double()).float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_attention_is_the_same_to_rounding_at_every_level(level, tmp_path, monkeypatch):
    kernel = library("attention.cpp", level, tmp_path)
    functions = kernel.attention_forward_fp32, kernel.attention_backward_fp32
    monkeypatch.setattr(attention, "_kernel", lambda dtype, head_dim: functions)
    B, T, H, E = 2, 130, 2, 20
    qkv = torch.randn(B, T, 3 * H, E, requires_grad=True)
    none = torch.ones(T, E // 2), torch.zeros(T, E // 2)
    ours = FusedAttention.apply(qkv, *none, H, H)
    q, k, v = qkv.double().transpose(1, 2).split(H, dim=1)
    truth = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(ours, truth.float())
    do = torch.randn(B, T, H, E)
    (mine,), (exact,) = torch.autograd.grad(ours, qkv, do), torch.autograd.grad(truth, qkv, do.double())
    torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-5)
