"""The layers of a block as functions of tensors (paper section 2.2).

    x ─> norm_linear ─> q, k, v ─> rotate ─> attention ─> linear ─┐
    └────────────────────────────── + <───────────────────────────┘
    h ─> norm_linear ─> gate, up ─> swiglu_linear ─┐
    └────────────────── + <────────────────────────┘

Shapes by the legend of `llama.py`. Weights may be of another precision than the activations (fp32 master
weights, bf16 products): each layer casts its weight to the precision of the product it computes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight, computed in fp32, in fp32 (Zhang & Sennrich 2019)."""
    x_BTD = x_BTD.float()
    return x_BTD * torch.rsqrt(x_BTD.square().mean(-1, keepdim=True) + eps) * weight_D.float()


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T in the precision of x."""
    return F.linear(x, weight.to(x.dtype))


def norm_linear(x_BTD: Tensor, norm_D: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """RMSNorm(x) @ weight.T, the product in `dtype`: the way into attention and into the feed-forward."""
    return linear(rms_norm(x_BTD, norm_D, eps).to(dtype), weight)


def swiglu_linear(gate_up_BT2F: Tensor, weight_DF: Tensor) -> Tensor:
    """(silu(gate) · up) @ weight.T (Shazeer 2020)."""
    gate_BTF, up_BTF = gate_up_BT2F.chunk(2, dim=-1)
    return linear(F.silu(gate_BTF) * up_BTF, weight_DF)


def rope_table(head_dim: int, context: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position · base^(-2i/E), each (context, E/2), fp32 (Su et al. 2021)."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(context, dtype=torch.float64), frequencies)
    return angles.cos().float(), angles.sin().float()


def rotate(x_BTHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + E/2]) by their position's angles; cos, sin (T, E/2).

    The two halves of a pair lie apart, as in Hugging Face's layout: contiguous halves are what vector units
    like. Meta's files interleave them; `formats.py` permutes the rows of wq and wk.
    """
    low, high = x_BTHE.float().chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x_BTHE.dtype)


def attention(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, is_causal: bool) -> Tensor:
    """Softmax attention; scores are never stored (flash kernels on GPU and CPU). K divides H."""
    grouped = q_BHTE.shape[1] != k_BKTE.shape[1]
    return F.scaled_dot_product_attention(q_BHTE, k_BKTE, v_BKTE, is_causal=is_causal, enable_gqa=grouped)
