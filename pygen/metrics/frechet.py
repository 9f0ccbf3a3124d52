"""The Frechet distance between Gaussians, from statistics or features. Nothing here takes a root of a matrix."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import ops
from .._lib import without_autocast
from ..reference.frechet import mirrored

Array = Tensor | np.ndarray

# Singular values are summed where rounding may move the sum of roots of eigenvalues by more than this part of it.
TOLERANCE = 1e-6


def _double(name: str, value: Array, shape: str) -> Tensor:
    """As a float64 tensor of finite numbers, without gradient."""
    tensor = torch.as_tensor(value)
    if not tensor.is_floating_point():
        raise TypeError(f"expected {name} of floating-point numbers, got {tensor.dtype}")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"expected {name} without gradient, got one that requires grad: frechet_loss and "
            "frechet_distance_from_features are differentiable with respect to features"
        )
    if tensor.dim() != len(shape.split(",")):
        raise ValueError(f"expected {name} [{shape}], got {tuple(tensor.shape)}")
    _finite(name, tensor)
    return tensor.double()


def _finite(name: str, tensor: Tensor) -> None:
    wrong = tensor.numel() - int(tensor.isfinite().sum())
    if wrong:
        raise ValueError(f"expected {name} of finite numbers, got {wrong} of {tensor.numel()} that are NaN or infinite")


def _covariance(name: str, sigma: Array) -> Tensor:
    covariance = _double(name, sigma, "d, d")
    if covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"expected {name} [d, d], got {tuple(covariance.shape)}")
    diagonal = covariance.diagonal()
    # Of the mirrored element, relative to what a covariance may be there: sums of another order still pass.
    apart = (covariance - covariance.mT).abs() > 1e-3 * (diagonal[:, None] * diagonal).abs().sqrt()
    if bool((diagonal < 0).any()) or bool(apart.any()):
        what = "a negative variance" if bool((diagonal < 0).any()) else "one that is not symmetric"
        raise ValueError(f"expected {name} to be a covariance matrix, got {what}")
    return covariance


def _statistics(mu: Array, sigma: Array, number: str = "") -> tuple[Tensor, Tensor]:
    mean, covariance = _double(f"mu{number}", mu, "d"), _covariance(f"sigma{number}", sigma)
    d = len(mean)
    if covariance.shape != (d, d):
        raise ValueError(f"expected sigma{number} ({d}, {d}) as mu{number} ({d},), got {tuple(covariance.shape)}")
    if covariance.device != mean.device:
        raise ValueError(f"expected sigma{number} on {mean.device} as mu{number}, got {covariance.device}")
    return mean, covariance


def _features(name: str, x: Tensor) -> Tensor:
    """Features [N, d] in float32 or float64."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"expected {name} as a tensor of floating-point features [N, d], got {got}")
    if x.dim() != 2 or x.shape[0] < 2:
        raise ValueError(f"expected {name} [N, d] of at least 2 samples, got {tuple(x.shape)}")
    return x.to(torch.promote_types(x.dtype, torch.float32))


# --- the trace --------------------------------------------------------------------------------------------------------


def factor(sigma: Tensor) -> Tensor:
    """L [d, r] with sigma = L L': by Cholesky; for a singular matrix from its eigenvectors, r being its rank."""
    lower: Tensor
    lower, info = torch.linalg.cholesky_ex(mirrored(sigma))
    if bool(info):
        values, vectors = torch.linalg.eigh(mirrored(sigma))
        keep = values > 8 * torch.finfo(values.dtype).eps * values[-1:].clamp(min=0)  # what rounding alone may leave
        lower = vectors[:, keep] * values[keep].sqrt()
    return lower


def nuclear_norm(b: Tensor) -> Tensor:
    """The sum of the singular values of b."""
    norm: Tensor = torch.linalg.svdvals(b).sum(-1) if b.device.type == "cpu" else ops.polar(b)[1]
    return norm


def _shared(b: Tensor) -> Tensor:
    """The same, differentiable; the polar iteration, of whose factor the gradient is made, only where one is wanted."""
    norm: Tensor = ops.polar(b)[1] if b.requires_grad else nuclear_norm(b)
    return norm


def _trace(sigma1: Tensor, sigma2: Tensor, accurate: bool) -> Tensor:
    if not accurate:
        trace, bound = ops.trace_sqrt_product(sigma1, sigma2)
        if bool(bound <= TOLERANCE * trace):
            return trace
    return nuclear_norm(factor(sigma1).mT @ factor(sigma2))


def trace_sqrt_product(sigma1: Array, sigma2: Array, *, accurate: bool = False) -> float | Tensor:
    """tr (sigma1 sigma2)^(1/2) of two covariances, without the root.

    With sigma1 = L1 L1' and sigma2 = L2 L2' it is the sum of the roots of the eigenvalues of L1' sigma2 L1, and the sum
    of the singular values of L1' L2. The eigenvalues come first (`pygen.ops.trace_sqrt_product`); where rounding may
    move their sum by more than 1e-6 of it, or neither matrix is positive definite, the singular values follow, whose
    error is linear in the unit roundoff.

    sigma1, sigma2: [d, d] symmetric positive semidefinite, arrays or tensors, computed in float64.
    accurate: singular values at once; False.

    Returns a float for arrays, a tensor [] float64 for tensors. Not differentiable. Raises ValueError for shapes, NaN
    and matrices that are no covariances, TypeError for integers.
    """
    one, two = _covariance("sigma1", sigma1), _covariance("sigma2", sigma2)
    _one_size(one, two)
    return _as_given(_trace(one, two, accurate), sigma1)


def _one_size(one: Tensor, two: Tensor) -> None:
    if one.shape != two.shape:
        raise ValueError(f"expected statistics of one size, got {tuple(one.shape)} and {tuple(two.shape)}")
    if one.device != two.device:
        raise ValueError(f"expected statistics on one device, got {one.device} and {two.device}")


def _as_given(value: Tensor, like: object) -> float | Tensor:
    return value if isinstance(like, Tensor) else value.item()


# --- the distance -----------------------------------------------------------------------------------------------------


def frechet_distance(
    mu1: Array, sigma1: Array, mu2: Array, sigma2: Array, *, accurate: bool = False, eps: float | None = None
) -> float | Tensor:
    """The Frechet distance between two Gaussians, FID when these describe Inception features::

        |mu1 - mu2|^2 + tr sigma1 + tr sigma2 - 2 tr (sigma1 sigma2)^(1/2)

    Dowson and Landau 1982 (doi 10.1016/0047-259X(82)90077-X); Heusel et al. 2017 (arXiv 1706.08500, equation 6).

    mu1, mu2: means [d]; sigma1, sigma2: covariances [d, d]. Arrays or tensors, of any floating-point dtype; all is
        computed in float64, on the tensors' device.
    accurate: see `trace_sqrt_product`; False.
    eps: added to both diagonals inside the trace of the root alone, as pytorch-fid and others do (1e-6) where their
        root fails. It makes the distance smaller than it is, by about eps/2 tr (sigma1 sigma2)^(-1/2)(sigma1 + sigma2);
        for comparisons with such numbers only. None (default): nothing is added, and singular matrices are no trouble.

    Returns a float for arrays, a tensor [] float64 for tensors: never complex, never NaN, negative by rounding alone.
    Equal statistics give 0 to rounding. Not differentiable (see `frechet_loss`). Raises ValueError for shapes, numbers
    that are not finite and matrices that are no covariances, TypeError for integers; both say which argument.

    >>> import numpy as np
    >>> from pygen.metrics import frechet_distance
    >>> frechet_distance(np.zeros(2), np.eye(2), np.ones(2), 4 * np.eye(2))  # |1, 1|^2 + 2 (1 - 2)^2
    4.0
    """
    (mean1, one), (mean2, two) = _statistics(mu1, sigma1, "1"), _statistics(mu2, sigma2, "2")
    _one_size(one, two)
    rest = (mean1 - mean2).square().sum() + one.trace() + two.trace()
    if eps is not None:
        if not 0 <= eps < float("inf"):
            raise ValueError(f"expected eps >= 0, got {eps}")
        ridge = eps * torch.eye(len(one), dtype=one.dtype, device=one.device)
        one, two = one + ridge, two + ridge
    return _as_given(rest - 2 * _trace(one, two, accurate), mu1)


class FrechetReference:
    """One side of Frechet distances that stays: mean, covariance, and the factor that distances from features need.

    mu: [d]; sigma: [d, d]; arrays or tensors. Raises as `frechet_distance` does.
    """

    def __init__(self, mu: Array, sigma: Array) -> None:
        self.mu, self.sigma = _statistics(mu, sigma)
        self.trace = self.sigma.trace()
        self._factor: Tensor | None = None
        self._casts: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def from_features(cls, x: Tensor) -> FrechetReference:
        """Of features [N, d], N >= 2; floating point. For N < d the factor is exact: the centred features."""
        x = _features("x", x.detach()).double()
        _finite("x", x)
        centred = (x - x.mean(0)) / (len(x) - 1) ** 0.5
        reference = cls(x.mean(0), centred.mT @ centred)
        if len(x) <= x.shape[1]:
            reference._factor = centred.mT.contiguous()
        return reference

    @property
    def factor(self) -> Tensor:
        """L [d, r] with sigma = L L', computed once."""
        if self._factor is None:
            self._factor = factor(self.sigma)
        return self._factor

    def __repr__(self) -> str:
        return f"FrechetReference(d={len(self.mu)}, trace={self.trace:.6g}, device={self.mu.device})"

    def distance(self, mu: Array, sigma: Array, *, accurate: bool = False) -> float | Tensor:
        """`frechet_distance` to other statistics, of the same kind as mu."""
        return frechet_distance(torch.as_tensor(mu), torch.as_tensor(sigma), self.mu, self.sigma, accurate=accurate)

    def _in(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mu, factor and trace in the dtype and on the device of features; kept."""
        key = like.dtype, like.device
        if key not in self._casts:
            parts = self.mu, self.factor, self.trace
            self._casts[key] = tuple(part.to(like.device, like.dtype) for part in parts)  # type: ignore[assignment]
        return self._casts[key]

    def to_features(self, x: Tensor) -> Tensor:
        """The distance to features x [N, d], differentiable: see `frechet_loss`."""
        x = _features("features", x)
        mu, lower, trace = self._in(x)
        if x.shape[1] != len(mu):
            raise ValueError(f"expected features [N, {len(mu)}] as the reference, got {tuple(x.shape)}")
        mean = x.mean(0)
        centred = (x - mean) / (len(x) - 1) ** 0.5  # [N, d]
        with without_autocast(x):
            shared = _shared(lower.mT @ centred.mT)
        distance: Tensor = (mean - mu).square().sum() + trace + centred.square().sum() - 2 * shared
        return distance


def frechet_distance_from_features(x: Tensor, y: Tensor | FrechetReference) -> Tensor:
    """The Frechet distance between features, or between features and a reference, differentiable.

    x, y: [N, d] and [M, d], N and M >= 2 and otherwise of any size, floating point; or y a `FrechetReference`.

    From two sets no covariance is made where the smaller has at most d samples: with centred features the trace is the
    nuclear norm of X Y' / sqrt((N - 1)(M - 1)), so equal sets give 0 to rounding also where their covariances are
    singular. float16 and bfloat16 are computed in float32.

    Returns a tensor [] in the dtype of the arithmetic. Differentiable once, with respect to x, and to y features; see
    `frechet_loss`. Raises ValueError for shapes, TypeError for dtypes.
    """
    if isinstance(y, FrechetReference):
        return y.to_features(x)
    x, y = _features("x", x), _features("y", y)
    if x.shape[1] != y.shape[1] or x.dtype != y.dtype or x.device != y.device:
        raise ValueError(
            f"expected features y [M, {x.shape[1]}] of {x.dtype} on {x.device} as x, got {tuple(y.shape)} of {y.dtype} "
            f"on {y.device}"
        )
    means, sides = zip(*((t.mean(0), (t - t.mean(0)) / (len(t) - 1) ** 0.5) for t in (x, y)), strict=True)
    rest: Tensor = (means[0] - means[1]).square().sum() + sides[0].square().sum() + sides[1].square().sum()
    with without_autocast(x):
        one, two = (
            torch.linalg.qr(side, mode="r")[1] if len(side) > side.shape[1] and not side.requires_grad else side
            for side in sides
        )  # [N or d, d]: X or R of X = Q R has the same singular values beside anything
        shared = _shared(one @ two.mT)
    return rest - 2 * shared
