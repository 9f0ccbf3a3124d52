"""What happens to one feature, by the parameters that a net puts out for it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import ops
from .._arguments import check_integer, check_number

SLOPES = {"linear": -1, "circular": 0, None: 1}  # how many more than bins, by the tails


@dataclass(frozen=True)
class Affine:
    """y = S x + t, S = softplus(s) + eps, with parameters (s, t): those of nflows' MAF."""

    name: ClassVar[str] = "affine"
    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not isinstance(self.eps, (int, float)):
            raise TypeError(f"expected eps as a number, got {self.eps!r}")
        check_number("eps", self.eps, 0, 1, below=True)

    @property
    def parameters(self) -> int:
        """How many a feature has."""
        return 2

    @property
    def options(self) -> dict[str, Any]:
        """As `pygen.ops.affine_coupling` and `pygen.ops.made_inverse` take them."""
        return {"activation": "softplus", "eps": self.eps}

    def identity(self) -> Tensor:
        """The parameters [2] of y = x."""
        return torch.tensor([math.log(math.expm1(1 - self.eps)), 0.0])

    def __call__(
        self, x: Tensor, params: Tensor, logdet: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """x [B, C, ...] by params [B, 2 C, ...], pairs (s, t): y, and logdet [B] with log |det dy / dx| added."""
        return ops.affine_coupling(
            x, params, part="all", interleaved=True, logdet=logdet, inverse=inverse, **self.options
        )


@dataclass(frozen=True)
class Spline:
    """A monotone rational-quadratic spline (Durkan et al. 2019): see `pygen.ops.rational_quadratic_spline`.

    Parameters: the widths and heights of the bins, then their slopes, raw, 3 bins - 1 with linear tails.
    """

    name: ClassVar[str] = "spline"
    bins: int = 8
    bounds: float | tuple[float, float, float, float] = 3.0
    tails: str | None = "linear"
    min_width: float = 1e-3
    min_height: float = 1e-3
    min_derivative: float = 1e-3

    def __post_init__(self) -> None:
        check_integer("bins", self.bins, 2, 64)
        if isinstance(self.bounds, Iterable):  # JSON has lists alone
            object.__setattr__(self, "bounds", tuple(map(float, self.bounds)))
        # The op checks its options, and has its own words for unknown tails.
        size = 3 * self.bins + SLOPES.get(self.tails, 0)
        self(torch.zeros(0, 1, device="cpu"), torch.zeros(0, size, device="cpu"))

    @property
    def parameters(self) -> int:
        """How many a feature has."""
        return 3 * self.bins + SLOPES[self.tails]

    @property
    def options(self) -> dict[str, Any]:
        """As `pygen.ops.rational_quadratic_spline` and `pygen.ops.made_inverse` take them."""
        return {key: value for key, value in asdict(self).items() if key != "bins"}

    def identity(self) -> Tensor:
        """The parameters of y = x: equal bins, slopes of 1 (or the least, if that is more)."""
        slope = math.log(math.expm1(max(1 - self.min_derivative, 1e-6)))
        return torch.tensor([0.0] * (2 * self.bins) + [slope] * (self.parameters - 2 * self.bins))

    def __call__(
        self, x: Tensor, params: Tensor, logdet: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """x [B, C, ...] by params [B, C P, ...], a feature's side by side: y, and logdet [B] with log |det dy / dx|
        added."""
        each = params.unflatten(1, (x.shape[1], -1))  # [B, C, P, ...]
        if x.dim() > 2:
            each = each.movedim(2, -1)
        y, slopes = ops.rational_quadratic_spline(x, each, inverse=inverse, **self.options)
        total = slopes.flatten(1).sum(1)  # [B]
        return y, total if logdet is None else logdet + total
