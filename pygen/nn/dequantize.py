"""From grey levels to real numbers and back."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._arguments import check_integer
from ..ops import dequantize

__all__ = ["Logit", "dequantize", "quantize"]


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
