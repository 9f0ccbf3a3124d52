"""zuko's spline and ours: the transform itself, and in zuko's flows."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.integrations.zuko import MonotonicRQSTransform

pytestmark = pytest.mark.peer
transforms = pytest.importorskip("zuko.transforms")
flows = pytest.importorskip("zuko.flows")

SHAPES = [(8,), (8,), (7,)]


def raw(*shape: int) -> list[Tensor]:
    return [2 * torch.randn(*shape, *s, dtype=torch.float64) for s in SHAPES]


@pytest.mark.parametrize("options", [{}, {"bound": 2.0, "slope": 1e-2}])
@pytest.mark.parametrize(("of_x", "of_parameters"), [((20, 3), (20, 3)), ((20, 3), (3,)), ((3,), (20, 3)), ((), ())])
def test_transform(options: dict[str, Any], of_x: tuple[int, ...], of_parameters: tuple[int, ...]) -> None:
    x, parameters = 3 * torch.randn(of_x, dtype=torch.float64), raw(*of_parameters)
    found = []
    for kind in (MonotonicRQSTransform, transforms.MonotonicRQSTransform):
        leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
        f = kind(*leaves[1:], **options)
        y, ladj = f.call_and_ladj(leaves[0])
        back = f.inv(y)
        results = [f(leaves[0]), y, ladj, back, f.log_abs_det_jacobian(leaves[0], y), f.inv.call_and_ladj(y)[1]]
        found.append(results + list(torch.autograd.grad((y.square() + ladj + back).sum(), leaves)))
        assert repr(f) == "MonotonicRQSTransform(bins=8)"
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("passes", [None, 2])
def test_in_a_flow(passes: int | None) -> None:
    """The same parameters: log-densities, their gradients, and samples."""
    found = []
    for kind in (partial(MonotonicRQSTransform, slope=1e-3), partial(transforms.MonotonicRQSTransform, slope=1e-3)):
        torch.manual_seed(0)
        flow = flows.MAF(4, 2, transforms=2, univariate=kind, shapes=SHAPES, passes=passes, hidden_features=(16,))
        flow = flow.double()
        c, x = torch.randn(10, 2, dtype=torch.float64), torch.randn(10, 4, dtype=torch.float64)
        log_p = flow(c).log_prob(x)
        log_p.sum().backward()
        found.append([log_p, flow(c).sample(), *(p.grad for p in flow.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_parameters_of_nsf() -> None:
    options: dict[str, Any] = {"transforms": 2, "hidden_features": (16,)}
    theirs = flows.NSF(4, 2, bins=8, **options).double()
    ours = flows.MAF(4, 2, univariate=MonotonicRQSTransform, shapes=SHAPES, **options).double()
    ours.load_state_dict(theirs.state_dict())
    c, x = torch.randn(10, 2, dtype=torch.float64), 3 * torch.randn(10, 4, dtype=torch.float64)
    torch.testing.assert_close(ours(c).log_prob(x), theirs(c).log_prob(x), rtol=1e-9, atol=1e-9)


def test_errors() -> None:
    with pytest.raises(RuntimeError, match="broadcast"):
        MonotonicRQSTransform(*raw(3))(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected slope below 1, got 2"):
        MonotonicRQSTransform(*raw(3), slope=2.0)(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(TypeError, match="expected x of dtype"):
        MonotonicRQSTransform(*raw(3))(torch.zeros(3, dtype=torch.int64))
