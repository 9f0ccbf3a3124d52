"""Numbers of each sample of a batch in plain PyTorch: sums and a quantile, the truth that kernels are judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .diffusion_step import Columns, along, arithmetic, coefficients, normalised


def _rows(x: Tensor) -> Tensor:
    """[B, elements]."""
    return x[..., None].flatten(1)


def sample_stats(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Sums over each sample's elements, float64; see `pygen.ops.sample_stats`."""
    a = _rows(a.double())
    if b is None:
        return torch.stack([a.sum(1), (a * a).sum(1)], 1)
    b = _rows(b.double())
    return torch.stack([v.sum(1) for v in (a, b, a * a, a * b, b * b)], 1)


def sample_stats_backward(
    grad: Tensor, a: Tensor, b: Tensor | None, need_a: bool, need_b: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients by formula: of a G_a + 2 G_aa a + G_ab b, of b G_b + G_ab a + 2 G_bb b; None where not needed."""
    g = [along(column, a) for column in grad.unbind(1)]
    wide = a.double()
    if b is None:
        return ((g[0] + 2 * g[1] * wide).to(a.dtype) if need_a else None), None
    other = b.double()
    return (
        (g[0] + 2 * g[2] * wide + g[3] * other).to(a.dtype) if need_a else None,
        (g[1] + g[3] * wide + 2 * g[4] * other).to(b.dtype) if need_b else None,
    )


def rank_of(q: float, n: int) -> tuple[int, float]:
    """Where the quantile q of n numbers is among them, in order: the last that is not above it, and how far behind."""
    rank = q * (n - 1)
    return math.floor(rank), rank - math.floor(rank)


def between(below: Tensor, above: Tensor, weight: float) -> Tensor:
    """below + weight (above - below) for weights in [0, 1), from the nearer end, as torch.lerp has it, but of infinite
    ones too."""
    step = above - below
    value = below + weight * step if weight < 0.5 else above - (1 - weight) * step
    value = torch.where(above.isinf(), above, value)
    return torch.where((above == below) | (weight == 0), below, value)


def quantile_abs(
    x: Tensor,
    outputs: Sequence[Tensor],
    table: Tensor,
    index: Tensor | int,
    q: float,
    *,
    rescale: Tensor | None = None,
) -> Tensor:
    """The quantile of |p x + q g|, interpolated; see `pygen.ops.quantile_abs`."""
    dtype, at = arithmetic(x, outputs), Columns.of(len(outputs))
    n = coefficients(table, index, x, dtype)
    g = torch.zeros_like(x, dtype=dtype)
    for w, output in zip(n[: at.p], outputs, strict=True):
        g = g + w * output.to(dtype)
    if rescale is not None:
        g = g * along(rescale.to(dtype), x)
    x0 = _rows(n[at.p] * normalised(x, dtype) + n[at.q] * g)
    magnitudes = x0.abs().sort(1).values
    rank, weight = rank_of(q, x0.shape[1])
    value = between(magnitudes[:, rank], magnitudes[:, min(rank + 1, x0.shape[1] - 1)], weight)
    return torch.where(x0.isnan().any(1), torch.nan, value)
