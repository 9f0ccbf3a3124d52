"""Linear multistep methods: past slopes, and the integral of the polynomial through them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from numpy.polynomial import Polynomial

from ..level import Level, Predicted
from ..step import X0, H, Row, Step, X
from .first_order import clamped_eps, transfer
from .two_stage import slope

EQUIDISTANT = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Adams and Bashforth's weights of slopes, the newest first, for equal steps."""


def adams(newest: Row, order: int, first: int = 0) -> Row:
    """The newest slope and order - 1 tensors of history, from h<first> on, in Adams and Bashforth's weights."""
    weight, *weights = EQUIDISTANT[order - 1]
    row = weight * newest
    for i, past in enumerate(weights):
        row += past * H(first + i)
    return row


def lagrange(nodes: Sequence[float]) -> list[Polynomial]:
    """The polynomials that are 1 at one node and 0 at the others."""
    polynomials = []
    for i, node in enumerate(nodes):
        polynomial = Polynomial([1.0])
        for other in (*nodes[:i], *nodes[i + 1 :]):
            polynomial *= Polynomial([-other, 1.0]) / (node - other)
        polynomials.append(polynomial)
    return polynomials


def distinct(levels: Sequence[Level], order: int) -> list[Level]:
    """The first of `levels`, up to `order` of them, before one repeats."""
    count = next((i for i in range(1, len(levels)) if levels[i].sigma == levels[i - 1].sigma), len(levels))
    return list(levels[: min(order, count)])


def lms(levels: Sequence[Level], model: Predicted, *, order: int = 4) -> Step:
    """Linear multistep in sigma, where alpha = 1 or of a flow; up to 4 steps of any length.

    levels: then, now, before, ...; history: slopes (x - x0) / sigma, the newest first.
    """
    then, now = levels[:2]
    past = distinct(levels[1:], order)
    row = X
    for i, polynomial in enumerate(lagrange([at.sigma - now.sigma for at in past])):
        row += polynomial.integ()(then.sigma - now.sigma) * (H(i - 1) if i else slope(now))
    return Step(*model.data, (row, slope(now)), keep=("y1", "h0", "h1")[: order - 1])


def deis(levels: Sequence[Level], model: Predicted, *, order: int = 2) -> Step:
    """Zhang and Chen 2022 (2204.13902): eps by a polynomial in log rho, rho = sigma / alpha, d(x / alpha) = eps d rho.

    levels: then, now, before, ...; history: eps, the newest first, of the clamped data.
    """
    then, now = levels[:2]
    eps = clamped_eps(now)
    if not now.alpha:  # no data yet: x0 is what the network says
        return Step(*model.data, (then.alpha * X0 + then.sigma * eps, eps), keep=("y1", "h0")[: order - 1])
    past = distinct([at for at in levels[1:] if at.alpha], order)
    row = then.alpha / now.alpha * X
    for i, polynomial in enumerate(lagrange([-at.lam + now.lam for at in past])):
        row += then.alpha * now.ratio * _times_exponential(polynomial, now.lam - then.lam) * (H(i - 1) if i else eps)
    return Step(*model.data, (row, eps), keep=("y1", "h0")[: order - 1])


def _times_exponential(polynomial: Polynomial, end: float) -> float:
    """The integral of polynomial(u) e^u for u from 0 to `end`, or -inf, by parts: e^u (p - p' + p'' - ...)."""
    total = sum(polynomial.deriv(k) * (-1) ** k for k in range(polynomial.degree() + 1))
    if end == -math.inf:
        return float(-total(0.0))
    return float(math.expm1(end) * total(end) + (total - total(0.0))(end))


def ipndm(now: Level, then: Level, model: Predicted, *, order: int) -> Step:
    """Adams and Bashforth's steps along eps: Zhang and Chen 2022 (2204.13902), section 4.

    History: eps, the newest first; order: 1 to 4, as many as there are with the newest.
    """
    if now == then:
        return Step(*model.data, (X, model.eps), keep=("y1", "h0", "h1"))
    return Step(*model.data, (transfer(now, then, adams(model.eps, order)), model.eps), keep=("y1", "h0", "h1"))


def pndm(now: Level, then: Level, model: Predicted, output: Row, x: Row = X) -> Row:
    """x carried by what eps is for a combined output and this x: Liu et al. 2022 (2202.09778), eq. 11."""
    return transfer(now, then, model.eps.x * x + model.eps.g * output, x)
