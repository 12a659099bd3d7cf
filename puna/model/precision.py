"""fp32 matrix products by oneDNN instead of MKL, where both are fp32.

On CPUs that are not Intel's, MKL's fp32 kernels run at half the rate of oneDNN's, and PyTorch gives oneDNN
fp32 products only when told that they may be rounded to bf16 inside. CPUs with AMX would then really round;
those without have nothing to gain from it, and compute in fp32. So the setting is tried, and kept only if the
products come out with fp32's accuracy.
"""

from typing import Any

import torch

# Of a product of 512 terms: fp32 sums err by some 1e-7, operands rounded to bf16 by 2e-3.
TOLERANCE = 5e-6


def _error() -> float:
    """The relative error of a product on this machine as it is set now, against fp64."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(512, 512, generator=generator)
    b = torch.randn(512, 512, generator=generator)
    exact = a.double() @ b.double()
    return ((a @ b - exact).norm() / exact.norm()).item()


def use_onednn_for_fp32() -> bool:
    """Send the CPU's fp32 products to oneDNN if they stay fp32; returns whether they go there."""
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    if _error() < TOLERANCE:
        return True
    setting.fp32_precision = before
    return False
