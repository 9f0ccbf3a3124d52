"""Splines against what they are: round trips, the Jacobian, and 60 digits at extreme parameters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import mpmath
import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from pygen.ops import rational_quadratic_spline
from tests.harness import backend

BOUND = 3.0


@pytest.fixture(params=backend.ALL, ids=str, autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with request.param.active():
        yield request.param.device


def parameters(n: int, scale: float, dtype: torch.dtype, bins: int = 8, more: int = -1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (bins, bins, bins + more))
    return [(scale * t).to(dtype) for t in drawn]


# An error of y is one of x divided by the slope. Measured worst of error times slope: 1.2e-6 and 1.9e-15.
@pytest.mark.parametrize(
    ("dtype", "bound", "conditioned"), [(torch.float32, 1e-5, 2e-6), (torch.float64, 1e-12, 4e-15)]
)
@pytest.mark.parametrize("style", ["nflows", "zuko"])
def test_round_trips(device, style, dtype, bound, conditioned):
    """Peers promise 1e-3 in float32. The bound holds wherever the spline is not flat; there, by how flat it is."""
    x = (2.2 * BOUND * torch.rand(20_000, dtype=torch.float64) - 1.1 * BOUND).to(device, dtype)
    for bins, inverse in itertools.product((4, 8, 16), (False, True)):
        p = [t.to(device) for t in parameters(20_000, 1.0, dtype, bins)]
        options: dict[str, Any] = {"style": style, "bounds": BOUND}
        y, logabsdet = rational_quadratic_spline(x, *p, inverse=inverse, **options)
        back, other = rational_quadratic_spline(y, *p, inverse=not inverse, **options)
        error, slope = (back - x).abs(), logabsdet.exp().clamp(max=1)
        assert (error * slope).max() <= conditioned
        assert (error <= bound).double().mean() > 0.98
        assert error[slope > conditioned / bound].max() <= bound
        assert (logabsdet + other).abs().median() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("style", "tails", "more"), [("nflows", "linear", -1), ("zuko", "circular", 0)])
def test_logabsdet_is_the_jacobian(device, style, tails, more, inverse):
    """Of y as autograd differentiates it; and of y's own difference quotients."""
    x = (2 * BOUND * torch.rand(500, dtype=torch.float64, device=device) - BOUND).requires_grad_()
    p = [t.to(device) for t in parameters(500, 1.5, torch.float64, more=more)]
    options: dict[str, Any] = {"style": style, "tails": tails, "bounds": BOUND, "inverse": inverse}
    y, logabsdet = rational_quadratic_spline(x, *p, **options)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope.log(), logabsdet, rtol=1e-12, atol=1e-12)
    step = 1e-6
    ahead, behind = (rational_quadratic_spline(x + h, *p, **options)[0] for h in (step, -step))
    quotient = (ahead - behind) / (2 * step)
    assert ((quotient / slope - 1).abs() < 1e-4).double().mean() > 0.99  # a few straddle a knot


def test_increasing(device):
    """In float32, to two units in the last place, at any scale of the parameters."""
    x = torch.linspace(-1.05 * BOUND, 1.05 * BOUND, 20_001, device=device)
    for scale, inverse in itertools.product((1.0, 10.0, 100.0), (False, True)):
        p = [t.to(device).expand(20_001, -1) for t in parameters(1, scale, torch.float32)]
        y, _ = rational_quadratic_spline(x, *p, inverse=inverse, bounds=BOUND)
        assert (y.diff() >= -2 * torch.finfo(torch.float32).eps * BOUND).all()


# --- 60 digits --------------------------------------------------------------------------------------------------------


def exact(v: Any, w: list[Any], h: list[Any], d: list[Any], inverse: bool) -> tuple[Any, Any]:
    """nflows' spline in mpmath's numbers; the inverse by the textbook's root, which 60 digits can afford."""

    def axis(raw: list[Any]) -> list[Any]:
        top = max(raw)
        e = [mp.exp(u - top) for u in raw]
        sizes = [2 * BOUND * (mpf("0.001") + (1 - len(raw) * mpf("0.001")) * u / sum(e)) for u in e]
        return [-BOUND + sum(sizes[:j]) for j in range(len(raw) + 1)]

    xs, ys = axis(w), axis(h)
    slopes = [mpf(1), *(mpf("0.001") + mp.log1p(mp.exp(u)) for u in d), mpf(1)]
    k = max(j for j in range(len(w)) if (ys if inverse else xs)[j] <= v or j == 0)
    width, height, d0, d1 = xs[k + 1] - xs[k], ys[k + 1] - ys[k], slopes[k], slopes[k + 1]
    s = height / width
    if inverse:
        u = v - ys[k]
        a, b, c = u * (d0 + d1 - 2 * s) + height * (s - d0), height * d0 - u * (d0 + d1 - 2 * s), -s * u
        xi = 2 * c / (-b - mp.sqrt(b * b - 4 * a * c))
    else:
        xi = (v - xs[k]) / width
    beta = s + (d0 + d1 - 2 * s) * xi * (1 - xi)
    log = mp.log(s * s * (d1 * xi**2 + 2 * s * xi * (1 - xi) + d0 * (1 - xi) ** 2) / beta**2)
    if inverse:
        return xs[k] + width * xi, -log
    return ys[k] + height * (s * xi**2 + d0 * xi * (1 - xi)) / beta, log


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_sixty_digits(device, scale, inverse):
    """Values and every gradient, of flat and steep bins: what rounding the input would do, times a small number."""
    n, bins = 12, 4
    p = parameters(n, scale, torch.float64, bins)
    x = 1.9 * BOUND * torch.rand(n, dtype=torch.float64) - 0.95 * BOUND
    leaves = [t.to(device).requires_grad_() for t in (x, *p)]
    y, logabsdet = rational_quadratic_spline(*leaves, inverse=inverse, bounds=BOUND)
    grads = torch.cat([g.reshape(n, -1) for g in torch.autograd.grad(y.sum() + 0.5 * logabsdet.sum(), leaves)], 1)
    eps = 2.0**-52
    with mpmath.workdps(60):
        for i in range(n):
            numbers = [mpf(v) for v in (x[i].item(), *(u for t in p for u in t[i].tolist()))]

            def parts(v: list[Any]) -> tuple[Any, Any]:
                return exact(v[0], v[1 : 1 + bins], v[1 + bins : 1 + 2 * bins], v[1 + 2 * bins :], inverse)

            true_y, true_log = parts(numbers)
            step = mpf(10) ** -25
            derivatives = []  # of y, of logabsdet, and of both as they were differentiated
            for j in range(len(numbers)):
                moved = [[u + side * step * (m == j) for m, u in enumerate(numbers)] for side in (1, -1)]
                (y1, log1), (y0, log0) = map(parts, moved)
                derivatives.append(((y1 - y0) / (2 * step), (log1 - log0) / (2 * step)))
            weights = [max(BOUND, abs(u)) for u in numbers]  # by which their units in the last place grow
            sensitivity = [float(sum(abs(g[m]) * u for g, u in zip(derivatives, weights, strict=True))) for m in (0, 1)]
            assert abs(float(y[i].item() - true_y)) <= 20 * eps * (BOUND + sensitivity[0])
            assert abs(float(logabsdet[i].item() - true_log)) <= 20 * eps * (1 + sensitivity[1])
            true = torch.tensor([float(a + b / 2) for a, b in derivatives], dtype=torch.float64)
            off = (grads[i].cpu() - true).abs().max() / true.abs().max()
            assert off <= 1e-9, f"{i}: gradients are off by {off:.1e}"
