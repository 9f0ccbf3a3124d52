"""The mathematics of affine_coupling: invariants in float64, its gradient's formula, its numbers at the extremes."""

from __future__ import annotations

import doctest
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pygen import reference
from pygen.ops import affine_coupling
from pygen.reference.coupling import affine_coupling_backward

from ..harness.backend import OPS, Backend

PARTS: list[Any] = ["second", "first", "all", "even", "odd", slice(1, 2), [1, 0]]
BOUNDS: list[dict[str, Any]] = [{}, {"eps": 1e-3}, {"max_scale": 1.1}, {"eps": 0.05, "max_scale": 0.9}]
# The map from raw to log scale, all in one.
SCALES: list[dict[str, Any]] = [
    {"activation": "additive"},
    *(
        {"activation": activation, "squash": squash, "gain": 1.3, "width": 0.7, "offset": 0.2, **bound}
        for activation, squash, bound in itertools.product(
            ("exp", "sigmoid", "softplus"), (None, "tanh", "atan", "softsign"), BOUNDS
        )
    ),
]
LAYOUTS = [{"order": order, "interleaved": interleaved} for order in ("st", "ts") for interleaved in (False, True)]


def name(options: dict[str, Any]) -> str:
    return "-".join(str(v) for v in options.values())


every_scale = pytest.mark.parametrize("scale", SCALES, ids=name)
every_part = pytest.mark.parametrize("part", PARTS, ids=str)
every_backend = pytest.mark.parametrize("backend", OPS, ids=str)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _native(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a test that names a backend on it."""
    if "backend" not in request.fixturenames:
        yield
        return
    with request.getfixturevalue("backend").active():
        yield


def needs_kernel(backend: Backend, dtype: torch.dtype) -> None:
    """The formulas of the reference overflow in float32 where the result does not: it is the truth in float64 only."""
    if backend.name == "fallback" and dtype != torch.float64:
        pytest.skip("no native kernel")


def inputs(part: Any, scale: dict[str, Any], *shape: int) -> tuple[Tensor, Tensor]:
    """x of the given shape and the parameters for it, in float64."""
    channels = shape[1]
    n = {"first": channels // 2, "second": channels // 2, slice: 1, list: 2}.get(
        part if part in PARTS[:2] else type(part)
    )
    factor = 1 if scale["activation"] == "additive" else 2
    params = (shape[0], factor * (channels if n is None else n), *shape[2:])
    return torch.randn(shape, dtype=torch.float64), torch.randn(params, dtype=torch.float64)


# --- invariants -------------------------------------------------------------------------------------------------------


@every_part
@every_scale
def test_inverse_undoes_forward(scale: dict[str, Any], part: Any) -> None:
    x, params = inputs(part, scale, 3, 2, 3, 5)
    for shift, layout in itertools.product(("after", "before"), LAYOUTS):
        options = {**scale, **layout, "shift": shift, "part": part}
        y, logdet = affine_coupling(x, params, **options)
        back, total = affine_coupling(y, params, logdet=logdet, inverse=True, **options)
        # rounding of x S + t, divided by a small S: measured 1.5e-14
        torch.testing.assert_close(back, x, rtol=0, atol=1e-13)
        torch.testing.assert_close(total, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-13)


@every_part
@every_scale
def test_logdet_is_the_jacobians(scale: dict[str, Any], part: Any) -> None:
    x, params = inputs(part, scale, 1, 2, 2, 2)  # 8 dimensions
    for shift, inverse in itertools.product(("after", "before"), (False, True)):
        options = {**scale, "shift": shift, "inverse": inverse, "part": part}
        forward = functools.partial(affine_coupling, params=params, **options)
        logdet = forward(x)[1]
        jacobian, _ = torch.autograd.functional.jacobian(forward, x)
        expected = torch.linalg.slogdet(jacobian.reshape(8, 8)).logabsdet
        torch.testing.assert_close(logdet[0], expected, rtol=1e-14, atol=1e-14)  # measured 3e-16


@every_scale
def test_backward_formula_is_autograds(scale: dict[str, Any]) -> None:
    """The formula of the reference's backward, over the product of all other options."""
    layouts = itertools.cycle(LAYOUTS)
    for shift, inverse, memory_efficient, per_channel, part in itertools.product(
        ("after", "before"), (False, True), (False, True), (False, True), PARTS
    ):
        x, params = inputs(part, scale, 2, 2, 2, 3)
        options = {**scale, "shift": shift, "inverse": inverse, "part": part, "shift_scale": 0.3, **next(layouts)}
        additive = scale["activation"] == "additive"
        if not additive:
            n = params.shape[1] // 2
            options["gain"] = torch.rand(n if per_channel else 1, dtype=torch.float64).requires_grad_()
        leaves = [x.requires_grad_(), params.requires_grad_(), *([] if additive else [options["gain"]])]
        y, logdet = reference.affine_coupling(x, params, **options)
        grad_y, grad_logdet = torch.randn_like(y), torch.randn_like(logdet)
        expected = torch.autograd.grad((grad_y * y).sum() + (grad_logdet * logdet).sum(), leaves)

        multiply_last = (shift == "before") != inverse
        saved = None if additive else (y if multiply_last or memory_efficient else x).detach()
        with torch.no_grad():
            got = affine_coupling_backward(
                grad_y, grad_logdet, saved, params, memory_efficient=memory_efficient, **options
            )
        torch.testing.assert_close(got[: len(leaves)], expected, rtol=1e-13, atol=1e-13)  # measured 8e-15


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 5), (3, 2, 4, 5), (2, 3, 1, 1), (2, 2, 3, 2, 5)])
@pytest.mark.parametrize("part", ["even", "odd"])
@every_backend
def test_checkerboard_is_a_mask(backend: Backend, part: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, device=backend.device, requires_grad=True)
    s, t = torch.randn_like(x).requires_grad_(), torch.randn_like(x).requires_grad_()
    spatial = range(2, len(shape)) if len(shape) > 2 else [1]  # of a vector, the channels
    position = sum(torch.arange(shape[i]).reshape(-1, *[1] * (len(shape) - 1 - i)) for i in spatial)
    b = ((position % 2 == 1) == (part == "odd")).to(x)  # [*S]; 1 where x changes
    for inverse in (False, True):
        y, logdet = affine_coupling(x, torch.cat([s, t], 1), part=part, inverse=inverse)
        moved = (x - t) * torch.exp(-s) if inverse else x * torch.exp(s) + t
        expected = (1 - b) * x + b * moved, (-1) ** inverse * (b * s).flatten(1).sum(1)
        torch.testing.assert_close((y, logdet), expected, rtol=1e-14, atol=1e-14)  # measured 4e-16
        weight = torch.randn_like(y)
        got, wanted = (
            torch.autograd.grad((weight * y).sum() + (logdet**2).sum(), [x, s, t])
            for y, logdet in ((y, logdet), expected)
        )
        torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)


@every_backend
def test_additive_preserves_volume(backend: Backend) -> None:
    x, t = (torch.randn(3, n, 5, device=backend.device) for n in (4, 2))
    y, logdet = affine_coupling(x, t, activation="additive")
    assert torch.equal(y, torch.cat([x[:, :2], x[:, 2:] + t], 1))
    assert torch.equal(logdet, torch.zeros(3, device=backend.device))
    back, logdet = affine_coupling(x, t, activation="additive", shift="before", inverse=True, logdet=logdet + 2)
    assert torch.equal(back, torch.cat([x[:, :2], x[:, 2:] - t], 1))
    assert torch.equal(logdet, torch.full((3,), 2.0, device=backend.device))


@every_backend
def test_running_logdet(backend: Backend) -> None:
    """It is added to, not written to; its gradient is passed on, also where nothing else asks for one."""
    x, params = (torch.randn(3, 4, 5, dtype=torch.float64, device=backend.device) for _ in range(2))
    running = torch.randn(3, dtype=torch.float64, device=backend.device).requires_grad_()
    before = running.detach().clone()
    for inverse in (False, True):
        y, total = affine_coupling(x, params, logdet=running, inverse=inverse)
        alone, logdet = affine_coupling(x, params, inverse=inverse)
        assert torch.equal(y, alone)
        torch.testing.assert_close(total, before + logdet, rtol=1e-14, atol=1e-14)
        weight = torch.randn_like(total)
        assert torch.equal(torch.autograd.grad(total, running, weight)[0], weight)
        assert torch.equal(running, before)


@every_backend
def test_nothing_changes_for_no_channels(backend: Backend) -> None:
    x = torch.randn(3, 4, 5, device=backend.device)
    y, logdet = affine_coupling(x, x[:, :0], part=slice(2, 2))
    assert torch.equal(y, x)
    assert y.data_ptr() != x.data_ptr()
    assert torch.equal(logdet, torch.zeros(3, device=backend.device))


# --- clamped scales ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shift", ["after", "before"])
@pytest.mark.parametrize("activation", ["exp", "sigmoid", "softplus"])
@every_backend
def test_max_scale_is_torch_clamp(backend: Backend, activation: str, shift: str, inverse: bool) -> None:
    """Gradient below and at the limit, none above it, as torch.clamp; exp(0) = 1 is exactly at it."""
    limit = 1.0 if activation == "exp" else 0.6
    s = torch.tensor([-20.0, -1, 0, 0.5, 3, 30], dtype=torch.float64, device=backend.device).repeat(2, 1)
    x, s, t = (a.requires_grad_() for a in (torch.randn_like(s), s, torch.randn_like(s)))
    y, logdet = affine_coupling(
        x, torch.cat([s, t], 1), activation=activation, max_scale=limit, shift=shift, inverse=inverse, part="all"
    )
    scale = {"exp": torch.exp, "sigmoid": torch.sigmoid, "softplus": F.softplus}[activation](s).clamp(max=limit)
    if inverse:
        moved = (x - t) / scale if shift == "after" else x / scale - t
    else:
        moved = x * scale + t if shift == "after" else (x + t) * scale
    expected = moved, (-1) ** inverse * scale.log().sum(1)
    torch.testing.assert_close((y, logdet), expected, rtol=1e-13, atol=1e-13)
    weight = torch.randn_like(y)
    got, wanted = (
        torch.autograd.grad((weight * y).sum() + (logdet**2).sum(), [x, s, t]) for y, logdet in ((y, logdet), expected)
    )
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("activation", ["exp", "sigmoid", "softplus"])
@every_backend
def test_max_scale_far_below(backend: Backend, activation: str) -> None:
    """A scale that underflows is below the limit: its logarithm and the gradient of that are numbers."""
    params = torch.tensor([[-800.0, 0.5]], dtype=torch.float64, device=backend.device, requires_grad=True)
    x = torch.ones_like(params[:, :1])
    y, logdet = affine_coupling(x, params, activation=activation, max_scale=2.0, part="all")
    grad_params = torch.autograd.grad(y.sum() + logdet.sum(), params)[0]
    assert (y.item(), logdet.item()) == (0.5, -800.0)
    assert grad_params.tolist() == [[1.0, 1.0]]


# --- what is saved, and what recovering x from y costs ----------------------------------------------------------------


def saved_pointers(x: Tensor, params: Tensor, **options: Any) -> tuple[Tensor, set[int]]:
    pointers: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        pointers.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = affine_coupling(x, params, **options)
    return y, pointers


@every_backend
def test_saved_for_backward(backend: Backend) -> None:
    x, params = (torch.randn(3, 4, 5, device=backend.device, requires_grad=True) for _ in range(2))
    for shift, inverse, memory_efficient in itertools.product(("after", "before"), (False, True), (False, True)):
        y, saved = saved_pointers(x, params, shift=shift, inverse=inverse, memory_efficient=memory_efficient)
        keeps_y = memory_efficient or (shift == "before") != inverse
        assert (x.data_ptr() in saved, y.data_ptr() in saved) == (not keeps_y, keeps_y)
        assert len(saved) == 2, "x or y, and params"
    y, saved = saved_pointers(x, params[:, :2], activation="additive")
    assert not {x.data_ptr(), y.data_ptr()} & saved


@pytest.mark.parametrize("inverse", [False, True])
@every_backend
def test_memory_mode_bound(backend: Backend, inverse: bool) -> None:
    """Shifts of a million in float32: out - tau loses digits in memory mode, within its bound; the default none."""
    options: dict[str, Any] = {"shift": "before" if inverse else "after", "inverse": inverse}  # multiply first
    x = torch.randn(8, 2, 1000)
    s, t = torch.randn(8, 1, 1000), 1e6 * torch.randn(8, 1, 1000)
    params = torch.cat([s, t], 1)
    g, lg = torch.randn(8, 2, 1000), torch.randn(8)

    def gradient(dtype: torch.dtype, memory_efficient: bool) -> tuple[Tensor, Tensor, Tensor]:
        leaves = [a.to(backend.device, dtype).requires_grad_() for a in (x, params)]
        out = affine_coupling(*leaves, memory_efficient=memory_efficient, **options)
        grad_x, grad_params = torch.autograd.grad(out, leaves, [a.to(backend.device, dtype) for a in (g, lg)])
        return tuple(a.detach().double().cpu() for a in (out[0][:, 1:], grad_params[:, :1], grad_x))

    out, exact, exact_x = gradient(torch.float64, False)
    z = (out + t if inverse else out - t).double()
    eps = torch.finfo(torch.float32).eps
    # exp(s), its product with x, and the sum of two terms: measured 1.3 eps
    rounding = 4 * eps * ((g[:, 1:] * z).abs() + lg.abs()[:, None, None])
    bound = rounding + eps * g[:, 1:].abs() * (out.abs() + t.abs())

    _, default, default_x = gradient(torch.float32, False)
    _, recovered, recovered_x = gradient(torch.float32, True)
    assert ((default - exact).abs() <= rounding).all()
    assert ((recovered - exact).abs() <= bound).all()
    assert ((recovered - exact).abs() > 100 * rounding).any(), "x was recovered from y, or else the mode saves it"
    torch.testing.assert_close(default_x, exact_x, rtol=4 * eps, atol=0)
    assert torch.equal(recovered_x, default_x)  # it needs no x


# --- extremes ---------------------------------------------------------------------------------------------------------


def exact_coupling(
    mp: Any, x: float, s: float, t: float, activation: str, eps: float, shift: str, inverse: bool
) -> list[Any]:
    """y, log-determinant, d(y + logdet)/dx, /ds, /dt and the size of the terms of y, with 120 digits."""
    x, s, t = mp.mpf(x), mp.mpf(s), mp.mpf(t)
    f, slope = {
        "exp": lambda: (mp.exp(s), mp.exp(s)),
        "sigmoid": lambda: (1 / (1 + mp.exp(-s)), mp.exp(-s) / (1 + mp.exp(-s)) ** 2),
        "softplus": lambda: (mp.log1p(mp.exp(s)), 1 / (1 + mp.exp(-s))),
    }[activation]()
    scale = f + mp.mpf(eps)
    d = slope / scale
    m, tau, sign = (1 / scale, -t, -1) if inverse else (scale, t, 1)
    if (shift == "before") != inverse:
        y, z, dt, size = (x + tau) * m, (x + tau) * m, m, (abs(x) + abs(t)) * m
    else:
        y, z, dt, size = x * m + tau, x * m, mp.mpf(1), abs(x) * m + abs(t)
    return [y, sign * mp.log(scale), m, sign * d * (z + 1), sign * dt, size]


X = (0.0, 1e-30, -1.0, 3.0, 1e30)
S = (-200.0, -100.0, -88.0, -20.0, -15.0, -1.0, 0.0, 1.0, 20.0, 25.0, 50.0, 88.0, 100.0, 200.0)
T = (0.0, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-3])
@pytest.mark.parametrize("activation", ["exp", "sigmoid", "softplus"])
@every_backend
def test_extremes(backend: Backend, activation: str, eps: float, dtype: torch.dtype) -> None:
    """Where the true result is representable, it is right: no 0 * inf, no log of an underflown scale."""
    mp = pytest.importorskip("mpmath").mp.clone()
    mp.dps = 120
    needs_kernel(backend, dtype)
    info = torch.finfo(dtype)
    eps = torch.tensor(eps, dtype=dtype).item()
    grid = list(itertools.product(torch.tensor(X, dtype=dtype).tolist(), S, T))
    # one sample for each point, so that each has a log-determinant of its own
    x, s, t = (torch.tensor(column, dtype=dtype)[:, None] for column in zip(*grid, strict=True))
    for shift, inverse in itertools.product(("after", "before"), (False, True)):
        leaves = [a.to(backend.device).requires_grad_() for a in (x, s, t)]
        options = {"activation": activation, "eps": eps, "shift": shift, "inverse": inverse, "part": "all"}
        y, logdet = affine_coupling(leaves[0], torch.cat(leaves[1:], 1), **options)
        gradients = torch.autograd.grad(y.sum() + logdet.sum(), leaves)
        results = [a.detach().cpu().flatten().tolist() for a in (y, logdet, *gradients)]
        for i, point in enumerate(grid):
            *exact, size = exact_coupling(mp, *point, activation, eps, shift, inverse)
            for what, got, expected in zip(("y", "logdet", "dx", "ds", "dt"), results, exact, strict=True):
                where = f"{what} at x, s, t = {point}, {options}: {got[i]}, exactly {mp.nstr(expected, 9)}"
                if abs(expected) > 0.99 * info.max:
                    assert abs(got[i]) > 0.98 * info.max, where  # inf, or just not yet
                    continue
                # terms of other sizes that cancel: x + t, y + 1 in ds; log S near S = 1 has the rounding of S
                terms = {"y": size, "ds": size + 1, "logdet": 1}.get(what, 0)
                scale = max(abs(expected), terms)
                assert abs(got[i] - expected) <= 16 * info.eps * scale + info.smallest_normal, where


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_backend
def test_extremes_by_hand(backend: Backend, dtype: torch.dtype) -> None:
    needs_kernel(backend, dtype)

    def one(x: float, s: float, **options: Any) -> tuple[float, float]:
        x, params = (torch.tensor([v], dtype=dtype, device=backend.device) for v in ([x], [s, 0.0]))
        return tuple(a.item() for a in affine_coupling(x, params, part="all", **options))

    tolerance = {"rel": 16 * torch.finfo(dtype).eps}
    assert one(0.0, 200.0) == (0.0, 200.0)
    assert one(0.0, -200.0, inverse=True) == (0.0, 200.0)
    assert one(1e-30, 100.0) == (pytest.approx(2.6881171418161354e13, **tolerance), 100.0)
    assert one(1e30, 100.0, inverse=True) == (pytest.approx(3.7200759760208360e-14, **tolerance), -100.0)
    for activation in ("sigmoid", "softplus"):
        assert one(0.0, -200.0, activation=activation) == (0.0, pytest.approx(-200.0, **tolerance))
    assert one(0.0, 100.0, activation="sigmoid") == (0.0, pytest.approx(0.0, abs=1e-37))
    assert one(0.0, 100.0, activation="softplus") == (0.0, pytest.approx(4.605170185988092, **tolerance))


@pytest.mark.parametrize("s", [-800.0, 800.0])
@every_backend
def test_extremes_float64(backend: Backend, s: float) -> None:
    """Past the range of float64 too, where the reference itself gives NaN."""
    needs_kernel(backend, torch.float16)
    x = torch.zeros(1, 1, dtype=torch.float64, device=backend.device, requires_grad=True)
    params = torch.tensor([[s, 0.0]], dtype=torch.float64, device=backend.device, requires_grad=True)
    for inverse in (False, True):
        y, logdet = affine_coupling(x, params, part="all", inverse=inverse)
        assert (y.item(), logdet.item()) == (0.0, -s if inverse else s)
        grad_params = torch.autograd.grad(y.sum() + logdet.sum(), params)[0]
        assert grad_params[0, 0].item() == (-1.0 if inverse else 1.0)


@every_backend
def test_logdet_adds_up_in_float64(backend: Backend) -> None:
    """A million equal terms in float32 round once, at the end: half an eps. Eager's sum is 1.2 eps off."""
    needs_kernel(backend, torch.float32)
    if backend.device != "cpu":
        pytest.skip("the GPU adds in float32, in a fixed order")
    s = torch.full((1, 1, 1 << 20), 0.1)
    _, logdet = affine_coupling(torch.zeros_like(s), torch.cat([s, s], 1), part="all")
    assert logdet.item() == pytest.approx(s.double().sum().item(), rel=torch.finfo(torch.float32).eps)


# --- NaN stays where it is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["exp", "sigmoid", "softplus"])
@pytest.mark.parametrize("memory_efficient", [False, True])
@pytest.mark.parametrize("shift", ["after", "before"])
@every_backend
def test_nan_scale_in_one_sample(backend: Backend, shift: str, memory_efficient: bool, activation: str) -> None:
    for inverse in (False, True):
        x = torch.randn(3, 4, 5, device=backend.device, requires_grad=True)
        params = torch.randn(3, 4, 5, device=backend.device)
        params[1, 0, 2] = torch.nan  # a raw scale of sample 1, for x[1, 2, 2]
        params.requires_grad_()
        gain = torch.ones(2, device=backend.device, requires_grad=True)
        y, logdet = affine_coupling(
            x, params, activation=activation, shift=shift, inverse=inverse, gain=gain, memory_efficient=memory_efficient
        )
        grad_x, grad_params, grad_gain = torch.autograd.grad(y.sum() + logdet.sum(), [x, params, gain])
        where = torch.zeros(3, 4, 5, dtype=torch.bool, device=backend.device)
        where[1, 2, 2] = True
        assert torch.equal(y.isnan(), where)
        assert torch.equal(grad_x.isnan(), where)
        assert logdet.isnan().tolist() == [False, True, False]
        assert grad_gain.isnan().tolist() == [True, False]  # channel 0 of those that change
        grad_s, grad_t = (g.isnan() for g in grad_params.chunk(2, 1))
        assert torch.equal(grad_s, where[:, 2:])
        multiply_last = (shift == "before") != inverse
        assert torch.equal(grad_t, where[:, 2:] if multiply_last else torch.zeros_like(grad_t))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e4])
@pytest.mark.parametrize("part", ["even", "odd"])
@every_backend
def test_parameters_of_unchanged_elements_are_not_read(backend: Backend, part: str, value: float) -> None:
    x = torch.randn(2, 3, 4, 5, device=backend.device, requires_grad=True)
    b = (torch.arange(4)[:, None] + torch.arange(5)) % 2 == (part == "odd")
    params = torch.where(b, torch.randn(2, 6, 4, 5), value).to(backend.device).requires_grad_()
    gain = torch.ones(3, device=backend.device, requires_grad=True)
    for shift, inverse in itertools.product(("after", "before"), (False, True)):
        y, logdet = affine_coupling(x, params, part=part, gain=gain, squash="tanh", shift=shift, inverse=inverse)
        results = [y, logdet, *torch.autograd.grad(y.sum() + logdet.sum(), [x, params, gain])]
        assert all(a.isfinite().all() for a in results)
        assert (results[3].cpu().masked_select(~b) == 0).all()


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [None, True])
def test_numbers_under_compile(dynamic: bool | None) -> None:
    """Options and slices that torch.compile makes symbolic: of itself when they change, or with dynamic=True."""

    def call(x: Tensor, params: Tensor, offset: float, start: int) -> tuple[Tensor, Tensor]:
        return affine_coupling(x, params, offset=offset, gain=offset, part=slice(start, x.shape[1]))

    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for n, offset in ((2, 0.1), (3, 0.2), (4, 0.3)):
        x, params = torch.randn(3, 2 * n, 5), torch.randn(3, 2 * n, 5)
        torch.testing.assert_close(compiled(x, params, offset, n), call(x, params, offset, n), rtol=0, atol=0)


# --- the docstring ----------------------------------------------------------------------------------------------------


def test_documented_example() -> None:
    test = doctest.DocTestFinder().find(affine_coupling, "affine_coupling", globs={})[0]
    result = doctest.DocTestRunner().run(test)
    assert result.attempted > 5
    assert result.failed == 0
