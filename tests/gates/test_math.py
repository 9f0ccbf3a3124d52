"""Accuracy of csrc/cpu/gate_math.h: worst errors of the ops in units of the last place of each value."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pygen import _ext
from pygen.ops import concat_elu, gated_activation
from tests.coupling.test_vmath import ulps

pytestmark = pytest.mark.skipif(_ext.tier is None, reason="no native kernels")


@pytest.fixture(params=list(_ext.TIER_NAMES))
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param not in _ext.tiers():
        pytest.skip(f"this host does not run {request.param}")
    before = _ext.tier
    _ext.use(request.param)
    yield str(request.param)
    _ext.use(before)


def grid() -> torch.Tensor:
    """Pairs from 1e-5 to where tanh and sigmoid are 1 to rounding, and sigmoid 1e-35."""
    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** torch.linspace(-5, 1.3, 400)
    a, b = (sizes[:, None] * torch.randn(400, 400, generator=generator) for _ in range(2))
    return torch.stack([a.flatten(), b.T.flatten().clamp(-80, 80)], 1)  # [N, 2]


# Bounds: measured 4.2, 6.1 and 6.1 ulp for "tanh", 3.1, 3.0 and 5.2 for "linear" on every tier, rounded up.
@pytest.mark.parametrize(("kind", "bounds"), [("tanh", (4.5, 6.5, 6.5)), ("linear", (3.5, 3.5, 5.5))])
def test_gates(tier: str, kind: str, bounds: tuple[float, float, float]) -> None:
    x = grid().requires_grad_()
    y = gated_activation(x, kind=kind)
    (grad,) = torch.autograd.grad(y.sum(), x)
    a, b = x.detach().double().T
    s = torch.sigmoid(b)
    f, slope = (torch.tanh(a), torch.cosh(a) ** -2.0) if kind == "tanh" else (a, torch.ones_like(a))
    exact = (f * s, slope * s, f * s * torch.sigmoid(-b))
    for ours, true, bound in zip((y.detach()[:, 0], *grad.T), exact, bounds, strict=True):
        assert ulps(ours, true) <= bound


def test_concat_elu(tier: str) -> None:
    x = grid()[:, :1].requires_grad_()
    y = concat_elu(x)
    (grad,) = torch.autograd.grad(y, x, torch.tensor([1.0, 0.0]).expand(y.shape))
    v = x.detach().double()
    low, high = v.clamp(max=0), v.clamp(min=0)
    assert ulps(y.detach()[:, :1], torch.expm1(low) + high) <= 1.5
    assert ulps(grad, torch.exp(low)) <= 1.0
