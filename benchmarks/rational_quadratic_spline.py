"""Rational-quadratic splines: the sizes of the goals, and peers' conventions.

"nflows-131072" are 131,072 elements of 8 bins with nflows' parameters, each kind a tensor of its own; "packed" are one
tensor, as a net gives them, which everyone cuts into three. Modes "bwd" and "full" include all gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops, reference
from .cases import Case, Function, Inputs, Problem, Tensors, Work

BOUND, LEAST = 3.0, 1e-3

# --- eager: as users write it -----------------------------------------------------------------------------------------


Sums = Callable[[Tensor], Tensor]  # cumulative ones over the last dimension


def by_cumsum(shares: Tensor) -> Tensor:
    return shares.cumsum(-1)


def by_product(shares: Tensor) -> Tensor:
    """For compilers: torch 2.13's gradient of cumsum is wrong on the CPU, and gets no figure; that of this is right."""
    bins = shares.shape[-1]
    return shares @ torch.ones(bins, bins, dtype=shares.dtype, device=shares.device).triu()


def knots(raw: Tensor, sums: Sums = by_cumsum) -> tuple[Tensor, Tensor]:
    """Positions and sizes of nflows' bins along one axis."""
    shares = LEAST + (1 - LEAST * raw.shape[-1]) * F.softmax(raw, -1)
    inner = 2 * BOUND * sums(shares)[..., :-1] - BOUND
    positions = F.pad(F.pad(inner, (1, 0), value=-BOUND), (0, 1), value=BOUND)
    return positions, positions[..., 1:] - positions[..., :-1]


def within(
    x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, inverse: bool, sums: Sums = by_cumsum
) -> Tensors:
    """A spline of elements that are all within the bounds. slopes: raw, with both ends'."""
    (xs, ws), (ys, hs), slopes = knots(widths, sums), knots(heights, sums), LEAST + F.softplus(slopes)
    k = ((ys if inverse else xs)[..., 1:-1] <= x[..., None]).sum(-1, keepdim=True)
    x0, w, y0, h, d0 = (t.gather(-1, k)[..., 0] for t in (xs, ws, ys, hs, slopes))
    d1 = slopes.gather(-1, k + 1)[..., 0]
    s = h / w
    bend = d0 + d1 - 2 * s
    if inverse:
        v = x - y0
        a, b, c = v * bend + h * (s - d0), h * d0 - v * bend, -s * v
        xi = 2 * c / (-b - torch.sqrt((b * b - 4 * a * c).clamp(min=0)))
        y = x0 + xi * w
    else:
        xi = (x - x0) / w
    q = xi * (1 - xi)
    denominator = s + bend * q
    logabsdet = torch.log(s * s * (d1 * xi * xi + 2 * s * q + d0 * (1 - xi) ** 2)) - 2 * torch.log(denominator)
    if inverse:
        return y, -logabsdet
    return y0 + h * (s * xi * xi + d0 * q) / denominator, logabsdet


def padded(slopes: Tensor) -> Tensor:
    """Raw slopes of all knots, the ends' such that they are 1."""
    return F.pad(slopes, (1, 1), value=math.log(math.expm1(1 - LEAST)))


def masked(x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, inverse: bool) -> Tensors:
    """The elements within the bounds are picked out, and put back: nflows' way."""
    inside = (x >= -BOUND) & (x <= BOUND)
    y, logabsdet = x.clone(), torch.zeros_like(x)
    chosen = (t[inside] for t in (x, widths, heights, padded(slopes)))
    y[inside], logabsdet[inside] = within(*chosen, inverse)
    return y, logabsdet


def static(
    x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, inverse: bool, sums: Sums = by_cumsum
) -> Tensors:
    """All elements, clamped: of fixed shapes, which compiles as one graph."""
    inside = (x >= -BOUND) & (x <= BOUND)
    y, logabsdet = within(x.clamp(-BOUND, BOUND), widths, heights, padded(slopes), inverse, sums)
    return torch.where(inside, y, x), torch.where(inside, logabsdet, 0.0)


def static_product(x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, inverse: bool) -> Tensors:
    return static(x, widths, heights, slopes, inverse, by_product)


def zuko_knots(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Of zuko's parameters."""
    limit = math.log(1e3)
    shares = F.softmax(raw / (1 + (2 * raw / limit).abs()), -1)
    positions = BOUND * (2 * F.pad(shares, (1, 0)).cumsum(-1) - 1)
    return positions, positions[..., 1:] - positions[..., :-1]


def zuko_form(x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, inverse: bool) -> Tensors:
    """The map of zuko's parameters, by masks."""
    xs, ys = zuko_knots(widths)[0], zuko_knots(heights)[0]
    slopes = torch.exp(F.pad(slopes / (1 + (slopes / math.log(1e3)).abs()), (1, 1)))
    k = (xs[..., 1:-1] < x[..., None]).sum(-1, keepdim=True)
    x0, x1, y0, y1, d0, d1 = (t.gather(-1, i)[..., 0] for t in (xs, ys, slopes) for i in (k, k + 1))
    inside = (x > xs[..., 0]) & (x <= xs[..., -1])
    s = (y1 - y0) / (x1 - x0)
    xi = torch.where(inside, x - x0, 0.0) / (x1 - x0)
    q = xi * (1 - xi)
    denominator = s + (d0 + d1 - 2 * s) * q
    y = y0 + (y1 - y0) * (s * xi * xi + d0 * q) / denominator
    slope = s * s * (2 * s * q + d0 * (1 - xi) ** 2 + d1 * xi * xi) / denominator**2
    return torch.where(inside, y, x), torch.where(inside, slope.log(), 0.0)


# --- peers ------------------------------------------------------------------------------------------------------------


def nflows(inverse: bool) -> Function:
    from nflows.transforms.splines import unconstrained_rational_quadratic_spline as spline

    def call(x: Tensor, *parameters: Tensor) -> Tensors:
        y, logabsdet = spline(x, *parts(parameters), inverse=inverse, tails="linear", tail_bound=BOUND)
        return y, logabsdet

    return call


def zuko() -> Function:
    from zuko.transforms import MonotonicRQSTransform

    def call(x: Tensor, *parameters: Tensor) -> Tensors:
        y, logabsdet = MonotonicRQSTransform(*parts(parameters), bound=BOUND).call_and_ladj(x)
        return y, logabsdet

    return call


# --- cases ------------------------------------------------------------------------------------------------------------


def parts(parameters: Sequence[Tensor]) -> Tensors:
    """The three kinds of parameters, cut out of one tensor where they are in one."""
    if len(parameters) == 3:
        return tuple(parameters)
    (packed,) = parameters
    bins = (packed.shape[-1] + 1) // 3
    widths, heights, slopes = packed.split([bins, bins, bins - 1], -1)
    return widths, heights, slopes


def within_bins(raw: Tensor, style: str, generator: torch.Generator) -> Tensor:
    """One element in 400 in the tails, the others within bins: gradients jump at knots, where rounding decides which
    one an implementation gives."""
    positions, sizes = (zuko_knots if style == "zuko" else knots)(raw.double())

    def uniform() -> Tensor:
        return torch.rand(raw.shape[:-1], generator=generator, device=raw.device, dtype=torch.float64)

    k = (raw.shape[-1] * uniform()).long()[..., None]
    x = (positions.gather(-1, k) + sizes.gather(-1, k) * (0.1 + 0.8 * uniform()[..., None]))[..., 0]
    return torch.where(uniform() < 1 / 400, 2 * BOUND, x)


def case(
    name: str,
    shape: tuple[int, ...],
    bins: int = 8,
    *eager: Callable[..., Tensors],
    style: str = "nflows",
    inverse: bool = False,
    packed: bool = False,
    peers: dict[str, Callable[[], Function]] | None = None,
    **of_case: Any,
) -> Case:
    """Raw parameters from a normal of deviation 1/2, x from their bins."""
    dtype = of_case.get("dtype", torch.float32)

    def build(device: torch.device) -> Problem:
        generator = torch.Generator(device).manual_seed(0)

        sizes = (3 * bins - 1,) if packed else (bins, bins, bins - 1)
        raw = [torch.randn(*shape, n, generator=generator, device=device, dtype=dtype) / 2 for n in sizes]
        x = within_bins(parts(raw)[1 if inverse else 0], style, generator).to(dtype)
        options = {"style": style, "inverse": inverse, "bounds": BOUND}
        numbers, out = sum(t.nbytes for t in raw), x.nbytes + x.numel() * max(4, x.element_size())
        fwd, bwd = Work(x.nbytes + numbers + out), Work(2 * x.nbytes + out + 2 * numbers)
        return Problem(
            inputs=Inputs((x, *raw)),
            ours=partial(ops.rational_quadratic_spline, **options),
            eager={f.__name__: lambda x, *raw, f=f: f(x, *parts(raw), inverse) for f in eager},
            reference=partial(reference.rational_quadratic_spline, **options),
            work={"fwd": fwd, "bwd": bwd, "full": fwd + bwd},
            slack=4.0,  # flat and steep bins amplify rounding
            peers=peers or {},
        )

    return Case("rational_quadratic_spline", f"{name}-{'x'.join(map(str, shape))}", build, **of_case)


N = 131_072
STATIC = (static, static_product)
FORWARD: dict[str, Any] = {"peers": {"nflows": partial(nflows, False)}}
INVERSE: dict[str, Any] = {"peers": {"nflows": partial(nflows, True)}, "inverse": True}

CASES = (
    case("nflows", (N,), 8, masked, *STATIC, **FORWARD, quick=True),
    case("nflows-inverse", (N,), 8, masked, *STATIC, **INVERSE),
    case("nflows-packed", (N,), 8, masked, *STATIC, packed=True, **FORWARD),
    case("nflows-packed-inverse", (N,), 8, masked, *STATIC, packed=True, **INVERSE),
    case("nflows-10-bins", (N,), 10, masked, *STATIC, **FORWARD),
    case("nflows-32-bins", (N // 4,), 32, masked, *STATIC, **FORWARD),
    case("nflows-large", (2**20,), 8, *STATIC, packed=True),
    case("nflows-float64", (N,), 8, masked, *STATIC, dtype=torch.float64, **FORWARD),
    case("zuko", (N,), 8, zuko_form, style="zuko", peers={"zuko": zuko}),
    # what tabular flows call: batches of 512
    case("tabular", (512, 3), 8, masked, *STATIC, packed=True, modes=("fwd", "full", "call"), **FORWARD),
    case("tabular", (512, 32), 8, masked, *STATIC, packed=True, **FORWARD),
    case("tabular-inverse", (512, 32), 8, masked, *STATIC, packed=True, **INVERSE),
)
