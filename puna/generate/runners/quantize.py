"""Weights in fewer bits: by groups of 32 columns, rounded to nearest. No calibration text is needed.

    int8   w = scale · q                      q in -127..127, scale in bf16              8.5 bits a weight
    int4   w = step · scale · (q - zero)      q in 0..15, scale a byte, zero a byte      4.5 bits a weight
                                              in sixteenths, step fp32 for each output

A group's largest weight is 127 of int8. Four bits cannot waste any: the group's whole range, 0 in it, is
0..15, which needs a zero. Both numbers fit the bits of one half-precision scale because scales are counted in
the output's own steps: q - zero is then right to a 32nd, scale to half a 255th of the output's largest.
"""

from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

Weights = Literal["fp32", "bf16", "int8", "int4"]
GROUP = 32  # columns that share a scale


class Int8(NamedTuple):
    """A matrix in 8 bits."""

    q_OI: Tensor
    """int8."""
    scale_OG: Tensor
    """bf16; G groups."""

    @classmethod
    def of(cls, weight_OI: Tensor) -> Self:
        """Round fp32 weights; I must be a multiple of 32."""
        w = weight_OI.unflatten(-1, (-1, GROUP))
        exact = w.abs().amax(-1, keepdim=True) / 127
        scale = exact.bfloat16()
        # Where bf16 lies below, the next one above: the largest weight would be cut.
        scale = torch.where(scale.float() < exact, (scale.view(torch.int16) + 1).view(torch.bfloat16), scale)
        q = (w * _inverse(scale.float())).round_().clamp_(-127, 127).to(torch.int8)
        return cls(q.flatten(-2), scale.squeeze(-1))

    def weights(self) -> Tensor:
        """What they stand for, fp32 (O, I)."""
        return (self.q_OI.unflatten(-1, (-1, GROUP)) * self.scale_OG[..., None].float()).flatten(-2)


class Int4(NamedTuple):
    """A matrix in 4 bits."""

    q_OI: Tensor
    """uint8, 0..15."""
    scale_OG: Tensor
    """uint8, in steps of the output."""
    zero_OG: Tensor
    """uint8, in sixteenths."""
    step_O: Tensor
    """fp32."""

    @classmethod
    def of(cls, weight_OI: Tensor) -> Self:
        """Round fp32 weights; I must be a multiple of 32."""
        w = weight_OI.unflatten(-1, (-1, GROUP))
        low, high = w.amin(-1, keepdim=True).clamp_(max=0), w.amax(-1, keepdim=True).clamp_(min=0)
        wanted = (high - low) / 15
        step = wanted.amax(1, keepdim=True) / 255
        scale = (wanted * _inverse(step)).round_().clamp_(1, 255)
        inverse = _inverse(step * scale)
        zero = (-16 * low * inverse).round_().clamp_(0, 255)
        q = torch.addcmul(zero / 16, w, inverse).round_().clamp_(0, 15)
        q, scale, zero = (x.to(torch.uint8) for x in (q.flatten(-2), scale.squeeze(-1), zero.squeeze(-1)))
        return cls(q, scale, zero, step.flatten())

    def weights(self) -> Tensor:
        """What they stand for, fp32 (O, I)."""
        scale = self.step_O[:, None] * self.scale_OG
        centred = self.q_OI.unflatten(-1, (-1, GROUP)) - self.zero_OG[..., None].float() / 16
        return (scale[..., None] * centred).flatten(-2)


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale; 0 where the scale is: those weights are 0."""
    return torch.where(scale == 0, 0, 1 / scale)
