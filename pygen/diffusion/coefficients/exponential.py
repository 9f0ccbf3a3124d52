"""Exponential integrators in half log-SNR: DPM-Solver and DPM-Solver++, of one step or many, their SDEs, and UniPC.

Along lambda = log(alpha / sigma) the linear part is solved exactly, and what the network says, m, is expanded: x0
("data") or eps ("noise"). With h = lambda' - lambda, phi_1(z) = (e^z - 1) / z and phi_{k+1} = (phi_k - 1/k!) / z::

    data:   x' = sigma'/sigma x + alpha' h sum_k phi_{k+1}(-h) D_k      Lu et al. 2022 (2211.01095), eq. 9
    noise:  x' = alpha'/alpha x - sigma' h sum_k phi_{k+1}(h) D_k       Lu et al. 2022 (2206.00927), eq. 3.6

D_0 = m, D_1 = h dm/dlambda, D_2 = h^2 d^2m/dlambda^2, from divided differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, takewhile
from typing import Any, Literal

import numpy as np

from ..level import Level, Predicted
from ..step import X0, H, Row, Step, X, Z

Space = Literal["data", "noise"]
Solver = Literal["midpoint", "heun"]

_SERIES = 0.5  # below it phi is summed: the recurrence loses a digit more with each order


def phi(order: int, z: float) -> float:
    """phi_order(z); phi_0 = exp."""
    if abs(z) < _SERIES:
        term, total = 1 / math.factorial(order), 0.0
        for k in range(1, 20):
            total += term
            term *= z / (order + k)
        return total
    if order == 0:
        return math.exp(z)
    return math.expm1(z) / z if order == 1 else (phi(order - 1, z) - 1 / math.factorial(order - 1)) / z


def integrate(
    x: Row,
    now: Level,
    then: Level,
    differences: Sequence[Row],
    *,
    space: Space = "data",
    solver: Solver = "heun",
    eta: float = 0.0,
    noise_scale: float = 1.0,
    third: float = 0.0,
) -> Row:
    """The state at `then` from x at `now` and D_0, D_1, ... there.

    solver: midpoint replaces phi_2 of two differences by phi_1 / 2.
    eta: of the SDE whose marginals are the ODE's, which it is at 0: Lu et al. 2022 (2211.01095), appendix A; for noise
        0 or 1.
    third: added to the coefficient of D_2, for peers that have another there.
    """
    if now == then:
        return x
    h = then.lam - now.lam
    if space == "data":
        z, factor = -(1 + eta) * h, then.alpha
        row = then.sigma / now.sigma * (math.exp(-eta * h) if eta else 1.0) * x if then.sigma else Row()
        std = then.sigma * math.sqrt(-math.expm1(-2 * eta * h)) if eta and then.sigma else 0.0
    else:
        if eta not in (0, 1):
            raise ValueError(f"expected eta of 0 or 1 in the space of noise, got {eta}")
        z, factor = h, -(1 + eta) * then.sigma
        row = then.alpha / now.alpha * x
        std = then.sigma * math.sqrt(math.expm1(2 * eta * h)) if eta else 0.0
    first = math.expm1(z)
    weights = [first]
    if len(differences) == 2 and solver == "midpoint":
        weights.append(first / 2)
    else:
        weights += [z * phi(k, z) for k in range(2, len(differences) + 1)]
    sign = -1.0 if space == "data" else 1.0  # of h beside z
    for weight, difference in zip(weights, differences, strict=True):
        row += sign * factor * weight * difference
    if len(differences) == 3:
        row += third * then.alpha * differences[2]
    return row + noise_scale * std * Z


def dpm_multistep(
    levels: Sequence[Level],
    model: Predicted,
    *,
    order: int = 2,
    space: Space = "data",
    solver: Solver = "midpoint",
    eta: float = 0.0,
    noise_scale: float = 1.0,
    third: float = 0.0,
    curvature: float = 1.0,
) -> Step:
    """DPM-Solver(++) of up to three steps: Lu et al. 2022 (2211.01095), algorithm 2; with eta its SDE.

    levels: then, now, before, ...; history h0, h1: what the network said before, as `y1` says it here.
    curvature: 1 takes the second divided difference for D_2, as its authors' code, diffusers and k-diffusion do, which
        is half of it: then three steps are of order 2 as well, with a smaller error. 2 makes them of order 3.
    """
    then, now, *before = levels[: order + 1]
    m = X0 if space == "data" else model.eps
    differences = _backward(then, now, before, m, curvature)
    options: dict[str, Any] = {"space": space, "solver": solver, "eta": eta, "noise_scale": noise_scale}
    row = integrate(X, now, then, differences, third=third, **options)
    return Step(*model.data, (row, m), keep=("y1", "h0")[: order - 1])


def _backward(then: Level, now: Level, before: Sequence[Level], m: Row, curvature: float) -> list[Row]:
    """D_0, D_1, D_2 at `now`, of what was said there and before; fewer where levels repeat or lack data or noise."""
    h = then.lam - now.lam
    gaps = [a.lam - b.lam for a, b in pairwise([now, *before])]
    gaps = list(takewhile(lambda gap: gap != 0 and not math.isinf(gap), gaps))
    if not gaps or h == 0 or math.isinf(h):
        return [m]
    said = [m, *(H(i) for i in range(len(gaps)))]
    slopes = [h / gap * (a - b) for gap, (a, b) in zip(gaps, pairwise(said), strict=True)]
    if len(slopes) == 1:
        return [m, *slopes]
    r0, r1 = gaps[0] / h, gaps[1] / h
    bend = (slopes[0] - slopes[1]) / (r0 + r1)
    return [m, slopes[0] + r0 * bend, curvature * bend]


def dpm_singlestep(
    levels: Sequence[Level],
    model: Predicted,
    *,
    order: int,
    space: Space = "data",
    solver: Solver = "midpoint",
    eta: float = 0.0,
    noise_scale: float = 1.0,
    third: float = 0.0,
) -> Step:
    """Stage `order` (1, 2, 3) of DPM-Solver(++) of one step, Lu et al. 2022 (2206.00927), algorithms 1 and 2.

    levels: then, now, and those of earlier stages back to the first, from whose state it starts.
    History: h0 the state at the first stage, h1, h2 what the network said at the last stage, and at the one before.
    The third order's midpoint solver expands to one difference.
    """
    then, now, *stages = levels[: order + 1]
    m = X0 if space == "data" else model.eps
    options: dict[str, Any] = {"space": space, "eta": eta, "noise_scale": noise_scale}
    if order == 1:
        return Step(*model.data, (integrate(X, now, then, [m], **options), m), keep=("x", "y1"))
    keep = ("h0", "y1", "h1")[: order + 1]
    start = stages[-1]
    h = then.lam - start.lam
    if math.isinf(h) or len({now, *stages}) < order:  # stages tell nothing apart
        return Step(*model.data, (integrate(X, now, then, [m], **options), m), keep=keep)
    said = [m, *(H(i + 1) for i in range(order - 1))]
    base = said.pop()
    slopes = [h / (at.lam - start.lam) * (value - base) for at, value in zip([now, *stages[:-1]], said, strict=True)]
    if order == 2:
        differences = [base, *slopes]
    elif solver == "midpoint":
        differences, solver = [base, slopes[0]], "heun"
    else:
        r0, r1 = ((at.lam - start.lam) / h for at in (now, stages[0]))
        differences = [base, (r0 * slopes[1] - r1 * slopes[0]) / (r0 - r1), 2 * (slopes[0] - slopes[1]) / (r0 - r1)]
    row = integrate(H(0), start, then, differences, solver=solver, third=third, **options)
    return Step(*model.data, (row, m), keep=keep)


def unipc(
    levels: Sequence[Level],
    model: Predicted,
    *,
    order: int,
    correct: int = 0,
    space: Space = "data",
    kind: Literal["bh1", "bh2"] = "bh2",
) -> Step:
    """UniPC, Zhao et al. 2023 (2302.04867): the state is corrected by what the network says of it, and carried on.

    levels: then, now, before, ...; order: of the prediction; correct: of the correction, 0 for none.
    History: h0 the corrected state before, h1, h2, h3 what the network said before. Rows: the next state, what it says
    now and, if it was corrected, the state.
    """
    then, now, *before = levels
    m = X0 if space == "data" else model.eps
    corrected = X
    if correct:
        said = [H(i + 1) for i in range(correct)]
        corrected = _unified(H(0), before[0], now, before[1:correct], said, space, kind, [(now, m)])
    said = [m, *(H(i + 1) for i in range(order - 1))]
    row = _unified(corrected, now, then, before[: order - 1], said, space, kind, [])
    if not correct:
        return Step(*model.data, (row, m), keep=("x", "y1", "h1", "h2"))
    return Step(*model.data, (row, m, corrected), keep=("y2", "y1", "h1", "h2"))


def _unified(
    x: Row,
    now: Level,
    then: Level,
    before: Sequence[Level],
    said: Sequence[Row],
    space: Space,
    kind: str,
    ahead: Sequence[tuple[Level, Row]],
) -> Row:
    """x carried from `now` to `then` by what the network said at `now`, at levels before and (a corrector) ahead."""
    if now == then:
        return x
    h = then.lam - now.lam
    gaps = [(at.lam - now.lam, value) for at, value in (*zip(before, said[1:], strict=True), *ahead)]
    points = [(gap / h, value) for gap, value in gaps if gap != 0 and not math.isinf(gap)]
    z = -h if space == "data" else h
    row = integrate(x, now, then, said[:1], space=space)
    if not points or math.isinf(h):
        return row
    scale = z if kind == "bh1" else math.expm1(z)
    ratios = [ratio for ratio, _ in points]
    k = len(points)
    if k == 1:
        rhos = [0.5]  # to second order whatever the ratio
    else:
        target = np.array([z * phi(i + 1, z) * math.factorial(i) / scale for i in range(1, k + 1)])
        rhos = np.linalg.solve(np.vander(np.array(ratios), k, increasing=True).T, target).tolist()
    factor = (then.alpha if space == "data" else then.sigma) * scale
    for rho, (ratio, value) in zip(rhos, points, strict=True):
        row -= factor * rho / ratio * (value - said[0])
    return row
