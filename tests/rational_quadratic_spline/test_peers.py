"""The splines of installed libraries, each as one setting of rational_quadratic_spline's options: float64, with
gradients, in both directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.ops import InputOutsideDomain, rational_quadratic_spline

pytestmark = pytest.mark.peer

Spline = Callable[..., tuple[Tensor, Tensor]]


def inputs(bins: int, more: int, bound: float = 3.0, scale: float = 1.0) -> list[Tensor]:
    n = 300
    x = bound * torch.randn(n, dtype=torch.float64)
    return [x, *(scale * torch.randn(n, k, dtype=torch.float64) for k in (bins, bins, bins + more))]


def same(ours: Spline, theirs: Spline, tensors: list[Tensor]) -> None:
    """Values to 1e-12, gradients to 1e-9 of the largest. Measured worst: 3e-13 and 4e-11."""
    results = []
    for spline in (ours, theirs):
        leaves = [t.clone().requires_grad_() for t in tensors]
        y, logabsdet = spline(*leaves)
        grads = torch.autograd.grad((y * y).sum() + logabsdet.sum(), leaves)
        results.append((y, logabsdet, *grads))
    for i, (a, b) in enumerate(zip(*results, strict=True)):
        assert (a - b).abs().max() <= (1e-12 if i < 2 else 1e-9) * (1 + b.abs().max())


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [2, 8, 10])
@pytest.mark.parametrize("least", [{}, {"min_bin_width": 0.02, "min_bin_height": 0.03, "min_derivative": 0.1}])
def test_nflows(inverse, bins, least):
    splines = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    given = {k.replace("_bin", ""): v for k, v in least.items()}

    def ours(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic_spline(*tensors, inverse=inverse, bounds=3.0, **given)

    def theirs(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return splines.unconstrained_rational_quadratic_spline(*tensors, inverse=inverse, tail_bound=3.0, **least)  # type: ignore[no-any-return]

    same(ours, theirs, inputs(bins, -1))


@pytest.mark.parametrize("inverse", [False, True])
def test_nflows_without_tails(inverse):
    splines = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    limits = dict(left=-1.0, right=2.0, bottom=0.0, top=1.5)  # nflows holds y, too, against left and right
    x, *p = inputs(8, 1)
    low, high = (0.0, 1.5) if inverse else (-1.0, 2.0)
    x = low + (high - low) * torch.sigmoid(x)

    def ours(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic_spline(*tensors, inverse=inverse, tails=None, bounds=tuple(limits.values()))

    def theirs(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return splines.rational_quadratic_spline(*tensors, inverse=inverse, **limits)  # type: ignore[no-any-return]

    same(ours, theirs, [x, *p])
    for spline, error in ((ours, InputOutsideDomain), (theirs, splines.InputOutsideDomain)):
        with pytest.raises(error):
            spline(x + 4, *p)


@pytest.mark.parametrize("inverse", [False, True])
def test_normflows_circular(inverse):
    splines = pytest.importorskip("normflows.utils.splines")

    def ours(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic_spline(*tensors, inverse=inverse, tails="circular", bounds=math.pi)

    def theirs(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return splines.unconstrained_rational_quadratic_spline(  # type: ignore[no-any-return]
            *tensors, inverse=inverse, tails="circular", tail_bound=math.pi
        )

    same(ours, theirs, inputs(8, 0))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("bound", "slope"), [(5.0, 1e-3), (3.0, 1e-2)])
def test_zuko(inverse, bound, slope):
    transforms = pytest.importorskip("zuko.transforms")

    def ours(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic_spline(*tensors, inverse=inverse, style="zuko", bounds=bound, slope=slope)

    def theirs(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        transform = transforms.MonotonicRQSTransform(*parameters, bound=bound, slope=slope)
        if not inverse:
            return transform.call_and_ladj(x)  # type: ignore[no-any-return]
        y = transform.inv(x)
        return y, -transform.log_abs_det_jacobian(y, x)

    same(ours, theirs, inputs(8, -1, bound, 2.0))


@pytest.mark.parametrize("inverse", [False, True])
def test_given_knots_are_nflows_knots(inverse):
    """The third style: nflows' own knots and slopes, handed over as they are."""
    from pygen.reference import rational_quadratic_spline as reference
    from pygen.reference.rational_quadratic_spline import Shape, _axis, _slopes

    x, *p = inputs(8, -1)
    shape = Shape(bounds=3.0)
    w, h = (_axis(t, 1e-3, -3.0, 3.0, shape)[0] for t in p[:2])
    options: dict[str, Any] = {"inverse": inverse, "bounds": 3.0}
    expected = reference(x, *p, **options)
    for result in (
        rational_quadratic_spline(x, w, h, _slopes(p[2], 8, shape), style="knots", **options),
        rational_quadratic_spline(x, torch.cat([w, h, _slopes(p[2], 8, shape)], -1), style="knots", **options),
    ):
        for ours, true in zip(result, expected, strict=True):
            torch.testing.assert_close(ours, true, rtol=1e-12, atol=1e-12)
