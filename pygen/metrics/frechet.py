"""The Frechet distance between Gaussians, from statistics or features. Nothing here takes a root of a matrix."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import ops
from .._lib import refuse_tangents, without_autocast
from ..reference.frechet import mirrored

Array = Tensor | np.ndarray

# Singular values are summed where rounding may move what roots of eigenvalues give by more than this part of it.
TOLERANCE = 1e-6


def _double(name: str, value: Array, shape: str) -> Tensor:
    """As a float64 tensor of finite numbers, without gradient; a copy of what is no tensor."""
    if not isinstance(value, Tensor):
        if np.ma.is_masked(value):
            raise TypeError(f"expected {name} as an array or a tensor, got one with a mask")
        array = np.asarray(value)
        if array.dtype.kind != "f":
            raise TypeError(f"expected {name} of floating-point numbers, got {array.dtype} ({type(value).__name__})")
        value = torch.from_numpy(np.array(array, np.float64, order="C"))
    if not value.is_floating_point():
        raise TypeError(f"expected {name} of floating-point numbers, got {value.dtype}")
    if value.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"expected {name} without gradient, got one that requires grad: frechet_loss and "
            "frechet_distance_from_features are differentiable with respect to features"
        )
    if value.dim() != len(shape.split(",")):
        raise ValueError(f"expected {name} [{shape}], got {tuple(value.shape)}")
    _finite(name, value)
    return value.detach().double()


def _finite(name: str, tensor: Tensor) -> None:
    if tensor.numel() and not all(bool(extreme.isfinite()) for extreme in tensor.aminmax()):
        wrong = tensor.numel() - int(tensor.isfinite().sum())
        raise ValueError(f"expected {name} of finite numbers, got {wrong} of {tensor.numel()} that are NaN or infinite")


def _covariance(name: str, sigma: Array) -> Tensor:
    covariance = _double(name, sigma, "d, d")
    if covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"expected {name} [d, d], got {tuple(covariance.shape)}")
    deviations = covariance.diagonal().sqrt()
    wrong = "a negative variance" if bool(deviations.isnan().any()) else None
    for start in range(0, len(covariance), 256):  # in pieces, which stay in the cache
        end = start + 256
        below, above = covariance[start:end, :end], covariance[:end, start:end].mT
        most = torch.outer(deviations[start:end], deviations[:end])  # of each element
        if bool((below - above).abs_().sub_(most, alpha=1e-3).amax() > 0):  # sums in another order pass
            wrong = wrong or "one that is not symmetric"
        if bool(below.abs().sub_(most, alpha=1.001).amax() > 0):  # float32's rounding passes
            wrong = wrong or "an element larger than its variances allow"
    if wrong:
        raise ValueError(f"expected {name} to be a covariance matrix, got {wrong}")
    return covariance


def checked_statistics(mu: Array, sigma: Array, number: str = "") -> tuple[Tensor, Tensor]:
    """mu and sigma in float64, with mistakes found; number: how messages tell them from the other side's."""
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
    """L [d, r] with sigma = L L': by Cholesky; for a singular matrix from its eigenvectors, r being its rank.

    Raises ValueError where eigenvalues are more negative than rounding, of float32 sums too, makes them."""
    lower: Tensor
    lower, info = torch.linalg.cholesky_ex(mirrored(sigma))
    if bool(info):
        values, vectors = torch.linalg.eigh(mirrored(sigma))
        if bool(values[0] < -1e-3 * values[-1]):
            raise ValueError(
                "expected a covariance matrix, got one with eigenvalues from "
                f"{values[0].item():.3g} to {values[-1].item():.3g}"
            )
        keep = values > 8 * torch.finfo(values.dtype).eps * values[-1:].clamp(min=0)  # what rounding alone may leave
        lower = vectors[:, keep] * values[keep].sqrt()
    return lower


def nuclear_norm(b: Tensor) -> Tensor:
    """The sum of the singular values of b [m, n]; NaN if any of it is none."""
    if b.device.type != "cpu":
        norm: Tensor = ops.polar(b)[1]
        return norm
    return torch.linalg.svdvals(b).sum() if bool(b.isfinite().all()) else b.new_full((), torch.nan)


def _shared(b: Tensor) -> Tensor:
    """The same, differentiable; the polar iteration, of whose factor the gradient is made, only where one is wanted."""
    norm: Tensor = ops.polar(b)[1] if b.requires_grad else nuclear_norm(b)
    return norm


def _trace(sigma1: Tensor, sigma2: Tensor, accurate: bool, rest: Tensor | None = None) -> Tensor:
    """tr (sigma1 sigma2)^(1/2), to TOLERANCE of itself, or of rest - 2 tr, where that is what is wanted."""
    if not accurate:
        trace, bound = ops.trace_sqrt_product(sigma1, sigma2)
        if bool(bound <= TOLERANCE * trace if rest is None else 2 * bound <= TOLERANCE * (rest - 2 * trace)):
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
        root fails. It makes the distance smaller than it is, even negative, by about
        eps tr (sigma1 sigma2)^(-1/2) (sigma1 + sigma2); for comparisons with such numbers only. None (default): nothing
        is added, and singular matrices are no trouble.

    Eigenvalues give the trace in the time of a few matrix products; where their rounding may be more than 1e-6 of the
    distance, so for singular matrices and for nearly equal ones, singular values follow: several times slower on the
    CPU for d = 2048, and right to rounding of the traces.

    Returns a float for arrays, a tensor [] float64 for tensors: never complex, never NaN, negative by rounding alone.
    Equal statistics give 0 to rounding. Not differentiable (see `frechet_loss`). Raises ValueError for shapes, numbers
    that are not finite, or too large for their squares, and matrices that are no covariances as far as it is noticed
    (signs and sizes of elements, eigenvalues where they are computed); TypeError for integers.

    >>> import numpy as np
    >>> from pygen.metrics import frechet_distance
    >>> frechet_distance(np.zeros(2), np.eye(2), np.ones(2), 4 * np.eye(2))  # |1, 1|^2 + 2 (1 - 2)^2
    4.0
    """
    (mean1, one), (mean2, two) = checked_statistics(mu1, sigma1, "1"), checked_statistics(mu2, sigma2, "2")
    _one_size(one, two)
    rest = (mean1 - mean2).square().sum() + one.trace() + two.trace()
    if eps is not None:
        if not 0 <= eps < float("inf"):
            raise ValueError(f"expected eps >= 0, got {eps}")
        ridge = eps * torch.eye(len(one), dtype=one.dtype, device=one.device)
        one, two = one + ridge, two + ridge
    distance = rest - 2 * _trace(one, two, accurate, rest)
    if not bool(distance.isfinite()):
        largest = max(t.abs().max().item() for t in (mean1, one, mean2, two))
        raise ValueError(f"expected statistics with a distance that float64 holds, got elements up to {largest:.3g}")
    return _as_given(distance, mu1)


class FrechetReference:
    """One side of Frechet distances that stays: mean, covariance, and the factor that distances from features need.

    mu: [d]; sigma: [d, d]; arrays or tensors, which are copied. Raises as `frechet_distance` does.
    """

    def __init__(self, mu: Array, sigma: Array) -> None:
        self.mu, self.sigma = (part.clone() for part in checked_statistics(mu, sigma))
        self.trace = self.sigma.trace()
        self._factor: Tensor | None = None
        self._casts: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def from_features(cls, x: Tensor) -> FrechetReference:
        """Of features [N, d], N >= 2; floating point. For N < d the factor is exact: the centred features."""
        x = _features("x", x).detach().double()
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
        """`frechet_distance` to other statistics: a float for arrays, a tensor for tensors."""
        return frechet_distance(mu, sigma, self.mu, self.sigma, accurate=accurate)

    def _in(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mu and trace, and the factor in the dtype of features, on their device; kept."""
        key = like.dtype, like.device
        if key not in self._casts:
            lower = self.factor.to(like.device, like.dtype)
            self._casts[key] = self.mu.to(like.device), lower, self.trace.to(like.device)
        return self._casts[key]

    def to_features(self, x: Tensor) -> Tensor:
        """The distance to features x [N, d], differentiable: see `frechet_loss`."""
        x = _features("features", x)
        _no_tangents(x)
        mu, lower, trace = self._in(x)
        if x.shape[1] != len(mu):
            raise ValueError(f"expected features [N, {len(mu)}] as the reference, got {tuple(x.shape)}")
        mean, centred = _centred(x)
        with without_autocast(x):
            shared = _shared(lower.mT @ centred.mT)
        distance: Tensor = (mean - mu).square().sum() + trace + _squares(centred) - 2 * shared
        return distance.to(x.dtype)


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [d] of features, float64, and (x - mean) / sqrt(N - 1) in their dtype: means may be large."""
    mean = x.mean(0, dtype=torch.float64)
    near = mean.detach().to(x.dtype)  # differences with what is near are exact, so that no feature need be widened
    return mean, ((x - near) - (mean - near).to(x.dtype)) / (len(x) - 1) ** 0.5


def _squares(x: Tensor) -> Tensor:
    return x.square().sum(dtype=torch.float64)


def _no_tangents(*features: Tensor) -> None:
    if forward_ad._current_level >= 0:
        refuse_tangents("the Frechet distance", *features)


def frechet_distance_from_features(x: Tensor, y: Tensor | FrechetReference) -> Tensor:
    """The Frechet distance between features, or between features and a reference, differentiable.

    x, y: [N, d] and [M, d], N and M >= 2 and otherwise of any size, floating point; or y a `FrechetReference`.

    From two sets no covariance is made where the smaller has at most d samples: with centred features the trace is the
    nuclear norm of X Y' / sqrt((N - 1)(M - 1)), so equal sets give 0 to rounding also where their covariances are
    singular. float16 and bfloat16 are computed in float32.

    Returns a tensor [] in the dtype of the arithmetic; NaN for NaN in a feature. Squares of the features have to be in
    the range of their dtype. Differentiable once, with respect to x, and to y features; see `frechet_loss`. Raises
    ValueError for shapes, TypeError for dtypes.
    """
    if isinstance(y, FrechetReference):
        return y.to_features(x)
    x, y = _features("x", x), _features("y", y)
    if x.shape[1] != y.shape[1] or x.dtype != y.dtype or x.device != y.device:
        raise ValueError(
            f"expected features y [M, {x.shape[1]}] of {x.dtype} on {x.device} as x, got {tuple(y.shape)} of {y.dtype} "
            f"on {y.device}"
        )
    _no_tangents(x, y)
    (mean1, side1), (mean2, side2) = _centred(x), _centred(y)
    with without_autocast(x):
        one, two = (
            torch.linalg.qr(side, mode="r")[1] if len(side) > side.shape[1] and not side.requires_grad else side
            for side in (side1, side2)
        )  # [N or d, d]: X or R of X = Q R has the same singular values beside anything
        shared = _shared(one @ two.mT)
    distance: Tensor = (mean1 - mean2).square().sum() + _squares(side1) + _squares(side2) - 2 * shared
    return distance.to(x.dtype)
