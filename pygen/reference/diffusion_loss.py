"""The training loss of diffusion models in plain PyTorch: what every other implementation is judged against."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .diffusion_step import along, arithmetic, coefficients, normalised

CLEAN, NOISE, WEIGHT = range(3)  # columns of a table
COLUMNS = 3


def difference(
    output: Tensor, x0: Tensor, table: Tensor, index: Tensor | int, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """output - (a x0 + s z) and the weights that go with its squares, in the type of the arithmetic."""
    dtype = arithmetic(output, [x0])
    n = coefficients(table, index, output, dtype)
    target = n[CLEAN] * normalised(x0, dtype)
    if noise is not None:
        target = target + n[NOISE] * noise.to(dtype)
    return output.to(dtype) - target, n[WEIGHT]


def weighted_mean(difference: Tensor, weight: Tensor) -> Tensor:
    """Of the squares, over each sample's elements."""
    return (weight * difference.square())[..., None].flatten(1).mean(1)


def diffusion_loss(
    output: Tensor, x0: Tensor, table: Tensor, index: Tensor | int, *, noise: Tensor | None = None
) -> Tensor:
    """See `pygen.ops.diffusion_loss`. In the type of the arithmetic."""
    return weighted_mean(*difference(output, x0, table, index, noise))


def diffusion_loss_backward(
    grad: Tensor, difference: Tensor, table: Tensor, index: Tensor | int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of output, x0 and noise by formula, in the type of the arithmetic: f (output - target) with
    f = 2 w G / n for n elements of a sample, and that times -a and -s."""
    wide = torch.promote_types(difference.dtype, grad.dtype)
    n = coefficients(table, index, difference, wide)
    elements = max(1, math.prod(difference.shape[1:]))
    slope = along(grad, difference) * (2 / elements * n[WEIGHT]) * difference.to(wide)
    return slope, -n[CLEAN] * slope, -n[NOISE] * slope
