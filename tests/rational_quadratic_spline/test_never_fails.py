"""Every input on which a known implementation of splines crashes, asserts or turns NaN: here a finite, right answer.

nflows and its copies (normflows, VITS, MeloTTS), pyro, FrEIA and flowjax, by the threads that report each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen import backends, ops, reference
from pygen.ops import InputOutsideDomain, rational_quadratic_spline
from tests.harness import backend

BACKENDS = backend.ALL
STYLES = ("nflows", "zuko")


@pytest.fixture(params=BACKENDS, ids=str, autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with request.param.active():
        yield request.param.device


def parameters(*shape: int, bins: int = 8, scale: float = 1.0, more: int = -1, **like: Any) -> list[Tensor]:
    return [scale * torch.randn(*shape, n, **like) for n in (bins, bins, bins + more)]


def knots(p: list[Tensor], bound: float, style: str) -> tuple[Tensor, Tensor]:
    """Positions along x and y, [N, K + 1], in float64."""
    from pygen.reference.rational_quadratic_spline import Shape, _axis

    shape = Shape(style=style)
    w, h = (_axis(t.double(), shape.least(1e-3), -bound, bound, shape)[0] for t in p[:2])
    return w, h


def call(x: Tensor, p: list[Tensor], **options: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """y, logabsdet and all gradients of their sum."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, *p)]
    y, logabsdet = rational_quadratic_spline(*leaves, **options)
    grads = torch.autograd.grad(y.sum() + logabsdet.sum(), leaves)
    return y.detach(), logabsdet.detach(), list(grads)


def finite(*tensors: Tensor) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_all_inputs_in_the_tails(device, style, inverse):
    """nflows #23, #25, sbi #373: an empty selection. flowjax #239, bayesflow #721: NaN gradients of what is unused."""
    x = torch.tensor([-math.inf, -1e30, -3.0001, 3.0001, 7.0, 1e30, math.inf], device=device)
    y, logabsdet, grads = call(x, parameters(7, scale=100.0, device=device), style=style, inverse=inverse, bounds=3.0)
    assert torch.equal(y, x)
    assert not logabsdet.any()
    assert torch.equal(grads[0], torch.ones_like(x))
    assert not any(g.any() for g in grads[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 4.0, 10.0, 100.0])
@pytest.mark.parametrize("style", STYLES)
def test_on_a_knot_and_one_ulp_beside_it(device, style, scale, dtype):
    """nflows #87, pyro #3139, MeloTTS #107, FrEIA PR 165: a negative discriminant, for one y in 9 on a knot."""
    n, bound = 500, 3.0
    p = parameters(n, scale=scale, device=device, dtype=dtype)
    both = knots(p, bound, style)
    for inverse in (False, True):
        at = both[inverse].to(dtype)
        moved = () if dtype == torch.float16 else (-9.0, 9.0)  # torch has no nextafter of float16
        for v in (at, *(torch.nextafter(at, torch.full_like(at, to)) for to in moved)):
            wide = [t[:, None].expand(n, 9, t.shape[-1]) for t in p]
            y, logabsdet, grads = call(v, wide, style=style, inverse=inverse, bounds=bound)
            assert finite(y, logabsdet)
            assert not any(g.isnan().any() for g in grads)  # of 16 bits some are infinite
            inside = v.abs() <= bound
            assert (y[inside].abs() <= bound).all()
            assert torch.equal(y[~inside], v[~inside])
            if v is at and dtype in (torch.float32, torch.float64):
                # y is the other axis's knot, to what a few units in the last place of v change
                step = 16 * bound * torch.finfo(dtype).eps
                options: dict[str, Any] = {"style": style, "inverse": inverse, "bounds": bound}
                near = [reference.rational_quadratic_spline(v.double() + h, *map(Tensor.double, wide), **options)[0]
                        for h in (-step, step)]  # fmt: skip
                assert ((y.double() - both[not inverse]).abs() <= step + near[1] - near[0]).all()


@pytest.mark.parametrize("bound", [1.0, 32.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("inverse", [False, True])
def test_the_bounds_are_of_the_last_bins(device, inverse, dtype, bound):
    """nflows adds 1e-6 to the last knot, which float32 does not see from 32 on: the index is one bin too many."""
    x = torch.tensor([-bound, bound], device=device, dtype=dtype)
    for tails, more in (("linear", -1), ("circular", 0), (None, 1)):
        p = parameters(2, more=more, device=device, dtype=dtype)
        y, logabsdet, grads = call(x, p, inverse=inverse, tails=tails, bounds=bound)
        assert (y - x).abs().max() <= 4 * bound * torch.finfo(torch.float32).eps
        assert y.abs().max() <= bound
        assert finite(logabsdet, *grads)
        if tails == "linear":
            assert logabsdet.abs().max() < 1e-4


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("least", [1e-3, 0.0])
@pytest.mark.parametrize("scale", [100.0, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extreme_parameters(device, dtype, scale, least, inverse):
    """With leasts of 0 too, where bins vanish and slopes are 0."""
    x = 6 * torch.rand(2000, device=device, dtype=dtype) - 3
    p = parameters(2000, scale=scale, device=device, dtype=dtype)
    options = dict.fromkeys(("min_width", "min_height", "min_derivative"), least)
    y, logabsdet, _ = call(x, p, inverse=inverse, bounds=3.0, **options)
    assert finite(y, logabsdet)
    assert (y.abs() <= 3).all()
    for style in STYLES:
        assert finite(*call(x, p, style=style, inverse=inverse, bounds=3.0)[:2])


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_of_large_logits(device, inverse):
    x = 6 * torch.rand(2000, device=device) - 3
    for style in STYLES:
        assert finite(
            *call(x, parameters(2000, scale=100.0, device=device), style=style, inverse=inverse, bounds=3.0)[2]
        )


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [30.0, 1e4, 1e30])
def test_gradients_where_bins_vanish(device, scale, dtype, inverse):
    """Leasts of 0: bins of e^-60 of the whole, whose inverse has slopes that float32 does not have."""
    if backends.forced == "reference":
        pytest.skip("what PyTorch makes of the reference's formula differentiates roots")
    x = 6 * torch.rand(2000, device=device, dtype=dtype) - 3
    p = parameters(2000, scale=scale, device=device, dtype=dtype)
    none = dict.fromkeys(("min_width", "min_height", "min_derivative"), 0.0)
    for options in (none, {"style": "zuko", "slope": 1e-30}, {"style": "zuko", "slope": 1e-200}):
        y, logabsdet, grads = call(x, p, inverse=inverse, bounds=3.0, **options)
        assert finite(y, logabsdet, *grads)


@pytest.mark.parametrize("inverse", [False, True])
def test_slopes_of_any_size(device, inverse):
    """Beyond 1e12 and 1e-12 in float32 they count as that, at the boundary too."""
    x, p = 6 * torch.rand(500, device=device) - 3, parameters(500, device=device)
    for options in ({"boundary_slope": 1e20}, {"boundary_slope": 1e-20}, {"min_derivative": 1e20}):
        y, logabsdet, grads = call(x, p, inverse=inverse, bounds=3.0, **options)
        assert finite(y, logabsdet, *grads)
        assert (y.abs() <= 3).all()


@pytest.mark.parametrize("inverse", [False, True])
def test_slopes_of_zuko_in_float64(device, inverse):
    """Down to 1e-100, which are no float32."""
    x = 6 * torch.rand(500, device=device, dtype=torch.float64) - 3
    p = parameters(500, scale=100.0, device=device, dtype=torch.float64)
    options: dict[str, Any] = {"style": "zuko", "slope": 1e-90, "inverse": inverse, "bounds": 3.0}
    found, expected = (f(x, *p, **options) for f in (rational_quadratic_spline, reference.rational_quadratic_spline))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bound", [0.1, 0.3, 0.7, 1.3, 2.9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bounds_that_16_bits_round(device, dtype, bound):
    """As x they may be beyond themselves: then too they are within, and what comes out goes in again."""
    ends = torch.tensor([-bound, bound], device=device, dtype=dtype)
    x = torch.cat([ends.repeat(500), (bound * torch.linspace(-1, 1, 1000, device=device)).to(dtype)])
    p = parameters(2000, more=1, device=device, dtype=dtype)
    for inverse in (False, True):
        options: dict[str, Any] = {"tails": None, "bounds": bound, "inverse": inverse}
        y, logabsdet, grads = call(x, p, **options)
        assert finite(y, logabsdet)
        assert not any(g.isnan().any() for g in grads)  # of 16 bits some are infinite
        assert ((y >= ends[0]) & (y <= ends[1])).all()
        assert finite(*rational_quadratic_spline(y, *p, **options | {"inverse": not inverse}))


def test_layers_of_other_bounds_compile_whole(device):
    """piper1-gpl #148: graph breaks. Here none, of the second layer's numbers neither, which are variables then."""
    if backends.forced == "reference":
        pytest.skip("what is forced parses options, which the compiler cannot trace")

    class Layer(torch.nn.Module):
        def __init__(self, bound: float) -> None:
            super().__init__()
            self.bound = bound

        def forward(self, x: Tensor, parameters: Tensor) -> Tensor:
            return rational_quadratic_spline(x, parameters, bounds=self.bound, min_width=1e-4 * self.bound)[0]

    torch._dynamo.reset()
    x, p = torch.randn(20, device=device), torch.randn(20, 23, device=device)
    for bound in (3.0, 2.0, 1.5):
        layer = Layer(bound)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x, p), layer(x, p))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(device, dtype):
    """glasflow #65, normflows PR 52: assignments between dtypes fail, under autocast above all."""
    x, p = torch.randn(50, device=device), parameters(50, device=device, dtype=dtype)
    for v in (x, x.to(dtype)):
        y, logabsdet, grads = call(v, p, bounds=3.0)
        assert y.dtype == v.dtype
        assert logabsdet.dtype == torch.float32
        assert [g.dtype for g in grads] == [v.dtype] + [dtype] * 3
    if device == "cpu":
        with torch.autocast("cpu", torch.bfloat16):
            raw = torch.nn.functional.linear(torch.randn(50, 4), torch.randn(23, 4))
            assert rational_quadratic_spline(x, raw, bounds=3.0)[0].dtype == torch.float32


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), ()], ids=str)
def test_empty_batches_and_single_numbers(device, shape):
    for inverse in (False, True):
        y, logabsdet, grads = call(
            torch.randn(shape, device=device), parameters(*shape, device=device), inverse=inverse
        )
        assert y.shape == logabsdet.shape == grads[0].shape == shape


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tails", ["linear", None])
def test_nan_stays_in_its_element(device, tails, inverse):
    """And never raises, nor reads what is not there."""
    x, p = 0.9 * torch.rand(40, device=device), parameters(40, more=-1 if tails else 1, device=device)
    clean = rational_quadratic_spline(x, *p, tails=tails, inverse=inverse)
    broken = [t.clone() for t in (x, *p)]
    for i, t in enumerate(broken):
        t.view(40, -1)[i] = math.nan
    y, logabsdet, _ = call(broken[0], broken[1:], tails=tails, inverse=inverse)
    for ours, expected in zip((y, logabsdet), clean, strict=True):
        assert ours[:3].isnan().all()
        assert torch.equal(ours[4:], expected[4:])


# --- without tails ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.0000001, -1.0000001, 5.0, math.inf])
def test_input_outside_the_domain(device, value):
    x, p = torch.tensor([0.5, value, math.nan], device=device), parameters(3, more=1, device=device)
    for inverse in (False, True):
        if device == "cpu":
            with pytest.raises(InputOutsideDomain, match="got"):
                rational_quadratic_spline(x, *p, tails=None, inverse=inverse)
        else:
            y, logabsdet = rational_quadratic_spline(x, *p, tails=None, inverse=inverse)
            assert y.isnan().tolist() == logabsdet.isnan().tolist() == [False, True, True]
            with pytest.raises(InputOutsideDomain, match="got"):
                rational_quadratic_spline(x, *p, tails=None, inverse=inverse, check=True)


def test_given_knots_have_bounds_of_their_own(device):
    positions = torch.tensor([[0.0, 1.0, 2.0], [5.0, 6.0, 9.0]], device=device)
    slopes = torch.ones(2, 3, device=device)
    options: dict[str, Any] = {"style": "knots", "tails": None}
    y, _ = rational_quadratic_spline(torch.tensor([2.0, 5.0], device=device), positions, positions, slopes, **options)
    assert y.tolist() == [2.0, 5.0]
    if device == "cpu":
        with pytest.raises(InputOutsideDomain, match="its own knots"):
            rational_quadratic_spline(torch.tensor([2.0, 4.0]), positions, positions, slopes, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_that_a_vanished_bin_does_not_have(dtype, device):
    """The gradient of a corner may be infinite where its bin vanishes; there is nothing below that it could change."""
    if backends.forced == "reference" or device != "cpu":
        pytest.skip("of the C++ kernels")
    x, slopes = torch.zeros(1, dtype=dtype), torch.zeros(1, 3, dtype=dtype)
    shares = [torch.tensor([s], dtype=dtype, requires_grad=True) for s in ([-1e3, 0.0], [0.0, -1e3])]
    y, logabsdet = ops.rational_quadratic_spline(
        x, *shares, slopes, bounds=(0, 1, 0, 1), tails=None, min_width=0.0, min_height=0.0
    )
    for grad in torch.autograd.grad(y.sum() + logabsdet.sum(), shares):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_what_comes_out_goes_in_again(device):
    """y never leaves the bounds by rounding, whereupon its inverse would raise."""
    p = parameters(3000, more=1, scale=3.0, device=device)
    ends = torch.tensor([-0.7, 1.3], device=device)
    x = torch.cat([ends.repeat(1000), torch.nextafter(ends, ends.flip(0)).repeat(500)])
    y, _ = rational_quadratic_spline(x, *p, tails=None, bounds=(-0.7, 1.3, 0.1, 0.3))
    back, _ = rational_quadratic_spline(y, *p, tails=None, bounds=(-0.7, 1.3, 0.1, 0.3), inverse=True)
    assert (back >= ends[0]).all()
    assert (back <= ends[1]).all()


def test_the_reference_has_nan_where_nobody_looks():
    x, p = torch.tensor([0.5, 2.0]), parameters(2, more=1)
    y, logabsdet = reference.rational_quadratic_spline(x, *p, tails=None)
    assert y.isnan().tolist() == logabsdet.isnan().tolist() == [False, True]


def test_zeros_are_the_identity(device):
    """With nflows' option for it: beta = log(2) / (1 - min_derivative)."""
    x = 2 * torch.rand(100, device=device) - 1
    zeros = [torch.zeros(100, n, device=device) for n in (8, 8, 7)]
    y, logabsdet = ops.rational_quadratic_spline(x, *zeros, beta=math.log(2) / (1 - 1e-3))
    torch.testing.assert_close(y, x, rtol=0, atol=3e-7)
    assert logabsdet.abs().max() < 2e-6
