"""Sums of first and second moments in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def accumulate_moments(x: Tensor, shift: Tensor, total: Tensor, scatter: Tensor) -> tuple[Tensor, Tensor]:
    """total + sum_i (x_i - shift), and scatter + the lower triangle of sum_i (x_i - shift)(x_i - shift)'.

    See `pygen.ops.accumulate_moments`, which adds in place."""
    centred = x.to(shift.dtype) - shift  # [N, d]
    return total + centred.sum(0), scatter + (centred.mT @ centred).tril()
