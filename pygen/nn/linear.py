"""Flow layers that are linear: permutations, triangular factors, scales."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._arguments import check_integer, check_number

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_width(x: Tensor, width: int) -> None:
    """Raises ValueError unless x has so many features or channels: broadcasting and indexing would take others."""
    if x.dim() < 2 or x.shape[1] != width:
        raise ValueError(f"expected x [B, {width}, ...], got {list(x.shape)}")


class Permutation(nn.Module):
    """Flow layer that puts the features of vectors, or the channels of images, in another order: y_i = x_(order i).

    order: a permutation of 0 ... C - 1. See also `reverse` and `random`. It is a buffer: a checkpoint keeps it.
    """

    def __init__(self, order: Tensor | Sequence[int]) -> None:
        super().__init__()
        order = torch.as_tensor(order)
        if order.dim() != 1 or len(order) == 0 or order.dtype not in _INTEGERS:
            raise ValueError(f"expected an order as integers [C], got {order.dtype} {list(order.shape)}")
        if not order.is_meta and order.sort().values.tolist() != list(range(len(order))):
            raise ValueError(f"expected an order of 0 to {len(order) - 1}, got {order.tolist()}")
        self.register_buffer("order", order.long())

    @classmethod
    def reverse(cls, channels: int) -> Permutation:
        check_integer("channels", channels, 1)
        return cls(torch.arange(channels - 1, -1, -1))

    @classmethod
    def random(cls, channels: int) -> Permutation:
        """Drawn from torch's global stream, and then fixed."""
        check_integer("channels", channels, 1)
        return cls(torch.randperm(channels))

    def forward(
        self, x: Tensor, logdet: Tensor | None = None, condition: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        order: Tensor = self.order  # type: ignore[assignment]
        check_width(x, len(order))
        return x.index_select(1, order.argsort() if inverse else order), logdet


class LULinear(nn.Module):
    """Flow layer y = L U x + b of vectors, by triangular factors: L has ones on its diagonal, U softplus(w_ii) + eps.

    That of nflows (and, with a permutation, of Glow, arXiv 1807.03039, section 3.2). It starts as the identity.

    weight: [D, D], the factors' entries off the diagonals, and w_ii.
    """

    def __init__(self, features: int, eps: float = 1e-3) -> None:
        super().__init__()
        check_integer("features", features, 1)
        check_number("eps", eps, 0, 1, below=True)
        self.eps = eps
        self.weight = nn.Parameter(torch.eye(features) * math.log(math.expm1(1 - eps)))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(
        self, x: Tensor, logdet: Tensor | None = None, condition: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        diagonal = F.softplus(self.weight.diagonal()) + self.eps
        lower, upper = self.weight.tril(-1), self.weight.triu(1)
        wide = torch.promote_types(x.dtype, torch.float32)
        total = diagonal.to(wide).log().sum()
        if inverse:
            total = -total
            lower, upper = lower.to(wide), (upper + diagonal.diag()).to(wide)
            y = (x - self.bias).to(wide)
            y = torch.linalg.solve_triangular(lower.mT, y, upper=True, left=False, unitriangular=True)
            y = torch.linalg.solve_triangular(upper.mT, y, upper=False, left=False).to(x.dtype)
        else:
            u = torch.addmm(x * diagonal, x, upper.mT)
            y = torch.addmm(u + self.bias, u, lower.mT)
        return y, total.expand(len(x)) if logdet is None else logdet + total


class Standardize(nn.Module):
    """Flow layer y = (x - mean) / std of vectors, with a mean and a standard deviation for each feature.

    They are no parameters but buffers, 0 and 1 until `observe` has seen data.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        check_integer("features", features, 1)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Takes them from x [B, D]; a feature that never changes keeps a standard deviation of 1."""
        if len(x) == 0 or x.shape[1:] != self.mean.shape:
            raise ValueError(f"expected x [B, {len(self.mean)}] of at least one sample, got {list(x.shape)}")
        if not x.isfinite().all():
            features = (~x.isfinite().all(0)).nonzero()[:, 0].tolist()
            raise ValueError(f"expected finite x, got NaN or infinities in the features {features}")
        changes = (x != x[:1]).any(0)  # a rounded deviation of what is constant may not be 0
        self.mean.copy_(x.mean(0))
        self.std.copy_(torch.where(changes, x.std(0, correction=0), 1))

    def forward(
        self, x: Tensor, logdet: Tensor | None = None, condition: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        check_width(x, len(self.mean))
        total = self.std.to(torch.promote_types(x.dtype, torch.float32)).log().sum()
        if inverse:
            y = x * self.std + self.mean
        else:
            y, total = (x - self.mean) / self.std, -total
        return y, total.expand(len(x)) if logdet is None else logdet + total
