"""The Frechet distance to fifty digits."""

from __future__ import annotations

from mpmath import mp, mpf
from torch import Tensor

DIGITS = 50


def matrix(x: Tensor) -> mp.matrix:
    return mp.matrix([[mpf(v) for v in row] for row in x.double().tolist()])


def roots(symmetric: mp.matrix) -> mpf:
    """The sum of the roots of the eigenvalues; what is below 0 is rounding of the matrix."""
    return mp.fsum(mp.sqrt(max(v, 0)) for v in mp.eigsy(symmetric, eigvals_only=True))


def mean(x: mp.matrix) -> mp.matrix:
    return mp.matrix([mp.fsum(x[i, j] for i in range(x.rows)) / x.rows for j in range(x.cols)])


def squared(v: mp.matrix) -> mpf:
    return mp.fsum(e**2 for e in v)


def of_features(x: Tensor, y: Tensor) -> float:
    with mp.workdps(DIGITS):
        sides = []
        for t in (matrix(x), matrix(y)):
            m = mean(t)
            centred = mp.matrix([[t[i, j] - m[j] for j in range(t.cols)] for i in range(t.rows)])
            sides.append((m, centred / mp.sqrt(t.rows - 1)))
        (m1, one), (m2, two) = sides
        product = one * two.T
        rest = squared(m1 - m2) + squared(one) + squared(two)
        return float(rest - 2 * roots(product * product.T))


def trace(sigma1: Tensor, sigma2: Tensor) -> float:
    """tr (sigma1 sigma2)^(1/2) of float64 matrices, taken at their word."""
    with mp.workdps(DIGITS):
        values, vectors = mp.eigsy(matrix(sigma1))
        scaled = vectors * mp.diag([mp.sqrt(max(v, 0)) for v in values])
        return float(roots(scaled.T * matrix(sigma2) * scaled))
