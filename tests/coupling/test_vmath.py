"""Accuracy of csrc/cpu/vmath.h, seen through the op: worst errors in units of the last place against float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from pygen import _ext
from pygen.ops import affine_coupling

pytestmark = pytest.mark.skipif(_ext.tier is None, reason="no native kernels")

# Every 2^16-th float32 of either sign would miss the interesting ranges; this grid is dense where functions bend.
GRID = torch.cat([torch.linspace(-x, x, 200_001, dtype=torch.float32) for x in (1e-3, 1.0, 20.0, 87.0)])


@pytest.fixture(params=list(_ext.TIER_NAMES))
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param not in _ext.tiers():
        pytest.skip(f"this host does not run {request.param}")
    before = _ext.tier
    _ext.use(request.param)
    yield str(request.param)
    _ext.use(before)


def ulps(values: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest error in units of the last place of exact, rounded to values' type."""
    exponent = torch.frexp(exact)[1].clamp(min=-125 if values.dtype == torch.float32 else -1021)
    digits = 24 if values.dtype == torch.float32 else 53
    return float(((values.double() - exact).abs() / torch.exp2((exponent - digits).double())).max())


def exp(s: torch.Tensor) -> torch.Tensor:
    """x e^s for x = 1."""
    params = torch.stack([s, torch.zeros_like(s)], 1)
    return affine_coupling(torch.ones(len(s), 1, dtype=s.dtype), params, part="all")[0][:, 0]


def squashed(s: torch.Tensor, squash: str) -> torch.Tensor:
    """log S of e^h(s)."""
    params = torch.stack([s, torch.zeros_like(s)], 1)
    return affine_coupling(torch.ones(len(s), 1, dtype=s.dtype), params, part="all", squash=squash)[1]


def tanh(s: torch.Tensor) -> torch.Tensor:
    return squashed(s, "tanh")


def atan(s: torch.Tensor) -> torch.Tensor:
    return squashed(s, "atan")


# Bounds: measured 0.96, 0.88 (0.68 with FMA) and 2.17, rounded up to a tenth.
@pytest.mark.parametrize(
    ("function", "exact", "bound"), [(exp, torch.exp, 1.0), (tanh, torch.tanh, 0.9), (atan, torch.atan, 2.2)]
)
def test_float32(tier: str, function, exact, bound: float) -> None:
    assert ulps(function(GRID), exact(GRID.double())) <= bound


def test_float64_exp(tier: str) -> None:
    s = GRID.double()[::40] * math.pi  # no float32 number
    s = s[s.abs() < 700]
    exact = torch.tensor([math.exp(v) for v in s.tolist()], dtype=torch.float64)
    assert ulps(exp(s), exact) <= 1.5  # math.exp itself is within 1


def test_exp_beyond_its_range(tier: str) -> None:
    """Products are right wherever they are representable, though e^s is not."""
    s = torch.tensor([100.0, -100.0, 150.0, 250.0, -250.0])
    x = torch.tensor([1e-30, 1e30, 1e-38, 0.0, 1.0])
    y, logdet = affine_coupling(x[:, None], torch.stack([s, torch.zeros(5)], 1), part="all")
    exact = (x.double() * s.double().exp()).float()
    torch.testing.assert_close(y[:, 0], exact, rtol=3e-7, atol=0)
    assert torch.equal(logdet, s)
