"""From grey levels to real numbers and back."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._arguments import check_integer

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def dequantize(x: Tensor, levels: int, noise: Tensor | float, dtype: torch.dtype) -> Tensor:
    """x + noise in [0, levels) for levels x in {0, ..., levels - 1} and noise u in [0, 1).

    A density p over it bounds the probability of x (Theis et al. 2016, section 3.1)::

        log P(x) = log int p(x + u) du >= E_u log p(x + u)

    Levels out of range raise ValueError on the CPU; on a GPU and under torch.compile they become NaN.
    """
    if x.dtype not in _INTEGERS:
        raise TypeError(f"expected integer levels 0 .. {levels - 1} (uint8 to int64), got {x.dtype}")
    if x.device.type == "cpu" and x.numel() and not torch.compiler.is_compiling():
        low, high = int(x.min()), int(x.max())
        if low < 0 or high >= levels:
            raise ValueError(f"expected levels in [0, {levels}), got {low if low < 0 else high}")
        return x.to(dtype) + noise
    return torch.where((x >= 0) & (x < levels), x.to(dtype), torch.nan) + noise


def quantize(v: Tensor, levels: int) -> Tensor:
    """The level floor(v), clamped to {0, ..., levels - 1}; uint8, or int64 past 256 levels."""
    return v.floor().clamp(0, levels - 1).to(torch.uint8 if levels <= 256 else torch.int64)


class Logit(nn.Module):
    """Flow layer from grey values x in [0, levels] to the real line (Dinh et al. 2017, section 4.1).

    p = alpha + (1 - 2 alpha) x / levels;   y = log p - log(1 - p);   dy / dx = (1 - 2 alpha) / (levels p (1 - p))

    The inverse reaches the open interval of p in (0, 1), which is a little wider than the grey values. y has the dtype
    of x; in between, and for the log-determinant, bfloat16 and float16 become float32.
    """

    def __init__(self, levels: int, alpha: float = 0.05) -> None:
        super().__init__()
        check_integer("levels", levels, 2)
        if not 0 < alpha < 0.5:
            raise ValueError(f"expected 0 < alpha < 0.5, got {alpha}")
        self.levels, self.alpha = levels, alpha

    def forward(
        self, x: Tensor, logdet: Tensor | None = None, condition: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        slope = (1 - 2 * self.alpha) / self.levels
        dtype = x.dtype
        x = x.to(torch.promote_types(dtype, torch.float32))
        if inverse:
            y = (x.sigmoid() - self.alpha) / slope
            total = F.logsigmoid(x) + F.logsigmoid(-x) - math.log(slope)
        else:
            p = self.alpha + slope * x
            y = p.log() - torch.log1p(-p)
            total = math.log(slope) - p.log() - torch.log1p(-p)
        total = total.flatten(1).sum(1)  # [B]
        return y.to(dtype), total if logdet is None else logdet + total
