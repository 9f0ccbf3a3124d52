"""Steps of diffusion samplers in plain PyTorch: what every other implementation is judged against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Columns(NamedTuple):
    """Where a step's coefficients are in a row of its table, for J model outputs and H tensors of history.

    The first J: the weights of the outputs. Then these, and from `rows` on, for each result: x, g, x0, noise and H of
    history.
    """

    p: int
    q: int
    clip: int
    known: int
    known_noise: int
    scale: int
    log_std: int
    log_std_slope: int
    rows: int

    @classmethod
    def of(cls, outputs: int) -> Columns:
        return cls(*range(outputs, outputs + len(cls._fields)))


def width(outputs: int, history: int, rows: int) -> int:
    """Columns of a table."""
    return Columns.of(outputs).rows + rows * (4 + history)


def arithmetic(x: Tensor, outputs: Sequence[Tensor]) -> torch.dtype:
    """float64 if a tensor is of it, else float32: float16, bfloat16 and uint8 are storage types."""
    wide = any(tensor.dtype == torch.float64 for tensor in (x, *outputs))
    return torch.float64 if wide else torch.float32


def normalised(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As numbers; bytes as (x - 127.5) / 127.5."""
    return (x.to(dtype) - 127.5) / 127.5 if x.dtype == torch.uint8 else x.to(dtype)


def along(values: Tensor, x: Tensor) -> Tensor:
    """[B] or [B, L] or [], to be multiplied with x [B, L, ...]."""
    return values.reshape(*values.shape, *[1] * (x.dim() - values.dim()))


def diffusion_step(
    x: Tensor,
    outputs: Sequence[Tensor],
    table: Tensor,
    index: Tensor,
    *,
    rows: int = 1,
    history: Sequence[Tensor] = (),
    noise: Tensor | None = None,
    rescale: Tensor | None = None,
    threshold: Tensor | None = None,
    log_std: Tensor | None = None,
    known: Tensor | None = None,
    known_mask: Tensor | None = None,
    known_noise: Tensor | None = None,
    copies: int = 0,
) -> list[Tensor]:
    """See `pygen.ops.diffusion_step`. The results in the type of the arithmetic."""
    dtype = arithmetic(x, outputs)
    at = Columns.of(len(outputs))
    c = table.to(dtype)[index].movedim(-1, 0)  # [columns, *index.shape]
    n = [along(value, x) for value in c]
    z = torch.zeros_like(x, dtype=dtype) if noise is None else noise.to(dtype)
    x = normalised(x, dtype)
    g = torch.zeros_like(x)
    for weight, output in zip(n, outputs):
        g = g + weight * output.to(dtype)
    if rescale is not None:
        g = g * along(rescale.to(dtype), x)
    x0 = n[at.p] * x + n[at.q] * g
    x0 = torch.minimum(torch.maximum(x0, -n[at.clip]), n[at.clip])
    if threshold is not None:
        s = along(threshold.to(dtype), x)
        x0 = torch.minimum(torch.maximum(x0, -s), s) / s
    std = 1 if log_std is None else torch.exp(n[at.log_std] + n[at.log_std_slope] * log_std.to(dtype))
    results = []
    for row in range(rows):
        a, e, b, d, *past = n[at.rows + row * (4 + len(history)) :][: 4 + len(history)]
        y = a * x + e * g + b * x0 + d * std * z
        for weight, h in zip(past, history):
            y = y + weight * h.to(dtype)
        results.append(y)
    if known is not None and known_mask is not None:
        kept = n[at.known] * normalised(known, dtype)
        kept = kept + n[at.known_noise] * (z if known_noise is None else known_noise.to(dtype))
        m = known_mask.to(dtype)
        results[0] = (1 - m) * results[0] + m * kept
    if copies:
        results.append(torch.cat([n[at.scale] * results[0]] * copies))
    return results
