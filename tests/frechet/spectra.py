"""Singular values that a polar iteration may find hard, and matrices that have them."""

from __future__ import annotations

import torch
from torch import Tensor

from .samples import orthogonal

SPECTRA = {
    "orthogonal": torch.ones(40),
    "equal at the top": torch.cat([torch.ones(7), torch.logspace(-1, -6, 33)]),
    "down to 1e-7": torch.logspace(0, -7, 40, dtype=torch.float64),
    "down to 1e-15": torch.logspace(0, -15, 40, dtype=torch.float64),
    "rank 20": torch.cat([torch.logspace(0, -3, 20), torch.zeros(20)]),
    "rank 1": torch.cat([torch.ones(1), torch.zeros(39)]),
    "one above many": torch.cat([torch.ones(1), torch.full((39,), 1e-6)]),
}


def with_values(name: str, values: Tensor) -> Tensor:
    """A square matrix with these singular values."""
    n = len(values)
    return (orthogonal(f"{name} u", n, n) * values.double()) @ orthogonal(f"{name} v", n, n)
