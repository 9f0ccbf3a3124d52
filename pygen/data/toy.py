"""Two-dimensional densities: what a flow can learn, in a picture."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import random


def _moons(n: int, seed: int) -> Tensor:
    """Two interleaved half circles."""
    angle = math.pi * random.uniform((n,), generator=seed)
    upper = random.integers(2, (n,), generator=seed, draw=1) == 0
    x = torch.where(upper, angle.cos() - 0.5, 0.5 - angle.cos())
    y = torch.where(upper, angle.sin() - 0.25, 0.25 - angle.sin())
    return 1.5 * torch.stack([x, y], 1) + 0.12 * random.normal((n, 2), generator=seed, draw=2)


def _pinwheel(n: int, seed: int) -> Tensor:
    """Five arms that curl (Johnson et al. 2016)."""
    radial, across = (random.normal((n, 2), generator=seed) * torch.tensor([0.3, 0.1])).unbind(1)
    radial = radial + 1
    angle = 2 * math.pi / 5 * random.integers(5, (n,), generator=seed, draw=1) + 0.25 * radial.exp()
    x, y = radial * angle.cos() - across * angle.sin(), radial * angle.sin() + across * angle.cos()
    return 1.4 * torch.stack([x, y], 1)


def _rings(n: int, seed: int) -> Tensor:
    """Three concentric circles."""
    radius = 0.75 * (1 + random.integers(3, (n,), generator=seed))
    angle = 2 * math.pi * random.uniform((n,), generator=seed, draw=1)
    points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return points + 0.08 * random.normal((n, 2), generator=seed, draw=2)


def _checkerboard(n: int, seed: int) -> Tensor:
    """Every other square of a 4 x 4 board on [-2, 2]^2."""
    x, y = random.uniform((n, 2), generator=seed).unbind(1)
    row, column = random.integers(4, (n,), generator=seed, draw=1), random.integers(2, (n,), generator=seed, draw=2)
    return torch.stack([x + 2 * column + row % 2 - 2, y + row - 2], 1)


TOYS: dict[str, Callable[[int, int], Tensor]] = {
    "moons": _moons,
    "pinwheel": _pinwheel,
    "rings": _rings,
    "checkerboard": _checkerboard,
}


def toy(name: str, n: int, *, generator: random.Source = None) -> Tensor:
    """n points [n, 2] of a density in `TOYS`, spread over about [-2.5, 2.5]^2. Point i is sample i of the stream."""
    if name not in TOYS:
        raise ValueError(f"expected one of {', '.join(TOYS)}, got {name!r}")
    return TOYS[name](n, random.seed_of(generator))
