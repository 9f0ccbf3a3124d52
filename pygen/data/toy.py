"""Two-dimensional densities: what a flow can learn, in a picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import random
from .._arguments import check_integer
from ._files import check_split
from .dataset import Dataset


class _Draws:
    """Random numbers for n points, each call the next draw of the stream."""

    def __init__(self, n: int, seed: int, ids: Tensor | None = None, step: int = 0) -> None:
        self._n, self._draws = n, itertools.count()
        self._source: dict[str, Any] = {"generator": seed, "sample_ids": ids, "step": step}

    def normal(self, *shape: int) -> Tensor:
        return random.normal((self._n, *shape), draw=next(self._draws), **self._source)

    def uniform(self, *shape: int) -> Tensor:
        return random.uniform((self._n, *shape), draw=next(self._draws), **self._source)

    def integers(self, high: int) -> Tensor:
        return random.integers(high, (self._n,), draw=next(self._draws), **self._source)


def _moons(draws: _Draws) -> Tensor:
    """Two interleaved half circles."""
    angle = math.pi * draws.uniform()
    upper = draws.integers(2) == 0
    x = torch.where(upper, angle.cos() - 0.5, 0.5 - angle.cos())
    y = torch.where(upper, angle.sin() - 0.25, 0.25 - angle.sin())
    return 1.5 * torch.stack([x, y], 1) + 0.12 * draws.normal(2)


def _pinwheel(draws: _Draws) -> Tensor:
    """Five arms that curl (Johnson et al. 2016)."""
    radial, across = (draws.normal(2) * torch.tensor([0.3, 0.1])).unbind(1)
    radial = radial + 1
    angle = 2 * math.pi / 5 * draws.integers(5) + 0.25 * radial.exp()
    x, y = radial * angle.cos() - across * angle.sin(), radial * angle.sin() + across * angle.cos()
    return 1.4 * torch.stack([x, y], 1)


def _rings(draws: _Draws) -> Tensor:
    """Three concentric circles."""
    radius = 0.75 * (1 + draws.integers(3))
    angle = 2 * math.pi * draws.uniform()
    points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return points + 0.08 * draws.normal(2)


def _checkerboard(draws: _Draws) -> Tensor:
    """Every other square of a 4 x 4 board on [-2, 2]^2."""
    x, y = draws.uniform(2).unbind(1)
    row, column = draws.integers(4), draws.integers(2)
    return torch.stack([x + 2 * column + row % 2 - 2, y + row - 2], 1)


TOYS: dict[str, Callable[[_Draws], Tensor]] = {
    "moons": _moons,
    "pinwheel": _pinwheel,
    "rings": _rings,
    "checkerboard": _checkerboard,
}


def _density(name: str) -> Callable[[_Draws], Tensor]:
    if name not in TOYS:
        raise ValueError(f"expected one of {', '.join(TOYS)}, got {name!r}")
    return TOYS[name]


def toy(name: str, n: int, *, generator: random.Source = None) -> Tensor:
    """n points [n, 2] of a density in `TOYS`, spread over about [-2.5, 2.5]^2. Point i is sample i of the stream."""
    return _density(name)(_Draws(n, random.seed_of(generator)))


class Toy(Dataset):
    """Points of a density in `TOYS`, drawn when asked for: a data set as long as one likes, that takes no memory.

    name: the density. seed: which points; those of split="train" are those of `toy`, those of "test" are others.
    size: how many; by default a million to train on and 10,000 to test with.
    """

    def __init__(self, name: str, *, split: str = "train", size: int | None = None, seed: int = 0) -> None:
        check_split(split)
        if size is None:
            size = 1_000_000 if split == "train" else 10_000
        check_integer("size", size, 1)
        check_integer("seed", seed, 0)
        super().__init__(size, (2,))
        self._density, self._seed, self._step = _density(name), seed, int(split == "test")

    def _read(self, indices: Tensor) -> tuple[Tensor, ...]:
        return (self._density(_Draws(len(indices), self._seed, indices, self._step)),)
