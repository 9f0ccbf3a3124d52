"""From grey levels to [-1, 1], as diffusion models and GANs take images, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from .dequantize import quantize


def normalize(x: Tensor, levels: int) -> Tensor:
    """2 x / (levels - 1) - 1 in float32: levels 0 .. levels - 1 spread over [-1, 1]."""
    return x.to(torch.float32) * 2 / (levels - 1) - 1


def denormalize(v: Tensor, levels: int) -> Tensor:
    """The level nearest to v in [-1, 1], clamped to {0, ..., levels - 1}; undoes `normalize`."""
    return quantize((v.to(torch.float32) + 1) * ((levels - 1) / 2) + 0.5, levels)
