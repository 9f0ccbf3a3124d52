"""Monotone rational-quadratic splines in plain PyTorch: what every other implementation is judged against.

Neural Spline Flows (Durkan et al. 2019, arXiv 1906.04032), section 3.1, after Gregory and Delbourgo (1982). The names:
xi and eta, the position within a bin of x and of y, in [0, 1]; s = height / width, the bin's mean slope; d0 and d1, the
slopes at its ends; q = xi (1 - xi).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Bounds = float | tuple[float, ...]

# What keeps results finite where a least width, height or slope of 0 lets bins vanish: logits count as at most so far
# below the largest, slopes as within so many powers of ten.
LEAST_LOGIT = {torch.float32: -60.0, torch.float64: -600.0}
MOST_SLOPE = {torch.float32: 1e12, torch.float64: 1e100}


@dataclass(frozen=True)
class Shape:
    """The options of `pygen.ops.rational_quadratic_spline`."""

    inverse: bool = False
    style: str = "nflows"
    tails: str | None = "linear"
    bounds: Bounds = 1.0
    min_width: float = 1e-3
    min_height: float = 1e-3
    min_derivative: float = 1e-3
    beta: float = 1.0
    boundary_slope: float = 1.0
    slope: float = 1e-3

    @property
    def limits(self) -> tuple[float, ...]:
        """(left, right, bottom, top)."""
        b = self.bounds
        return b if isinstance(b, tuple) else (-b, b, -b, b)

    @property
    def clip(self) -> float:
        """zuko's limit of raw slopes; that of widths and heights is half of it."""
        return -math.log(self.slope)

    def least(self, size: float) -> float:
        """The share of the whole that every bin has at least."""
        return 0.0 if self.style == "zuko" else size


class Bin(NamedTuple):
    """Of each element: its bin's number [..., 1], lower left corner, size and slopes, where in it the element is, and
    whether it is within the bounds."""

    k: Tensor
    x: Tensor
    width: Tensor
    y: Tensor
    height: Tensor
    d0: Tensor
    d1: Tensor
    xi: Tensor
    rest: Tensor  # 1 - xi
    inside: Tensor

    @property
    def s(self) -> Tensor:
        return _bounded(self.height / self.width)

    @property
    def q(self) -> Tensor:
        return self.xi * self.rest

    @property
    def denominator(self) -> Tensor:
        """beta = s + (d0 + d1 - 2 s) q, written so that nothing cancels, since q <= 1/4."""
        return self.s * (1 - 2 * self.q) + (self.d0 + self.d1) * self.q

    @property
    def numerator(self) -> Tensor:
        """N, of which dy/dx = s^2 N / beta^2."""
        return self.d1 * self.xi * self.xi + 2 * self.s * self.q + self.d0 * self.rest * self.rest


def _moved(t: Tensor, to: Tensor) -> Tensor:
    """The value of another tensor, with t's gradient: what rounding alone brings past a bound is not constant there."""
    return t + (to - t).detach()


def _bounded(slopes: Tensor) -> Tensor:
    most = MOST_SLOPE[slopes.dtype]
    return slopes.clamp(1 / most, most)


def split(
    widths: Tensor, heights: Tensor | None, derivatives: Tensor | None, style: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The three kinds of parameters: views of the one tensor where they are in one, of K - 1, K or K + 1 slopes."""
    if heights is not None and derivatives is not None:
        return widths, heights, derivatives
    count = widths.shape[-1]
    each = (count - 1) // 3 + 1 if style == "knots" else (count + 1) // 3
    return widths[..., :each], widths[..., each : 2 * each], widths[..., 2 * each :]


# --- from parameters to knots -----------------------------------------------------------------------------------------


def _clip(u: Tensor, limit: float) -> Tensor:
    """zuko's soft clip to [-limit, limit]."""
    return u / (1 + (u / limit).abs())


def _clip_slope(u: Tensor, limit: float) -> Tensor:
    return (1 + (u / limit).abs()) ** -2


def _shares(raw: Tensor, shape: Shape) -> Tensor:
    """Of the bins, by a softmax."""
    if shape.style == "zuko":
        raw = _clip(raw, shape.clip / 2)
    below = raw - raw.amax(-1, keepdim=True).detach()
    return torch.softmax(below.clamp(min=LEAST_LOGIT[raw.dtype]), -1)


def _axis(raw: Tensor, least: float, first: float, last: float, shape: Shape) -> tuple[Tensor, Tensor]:
    """Positions of the knots [..., K + 1] and sizes of the bins [..., K] along one axis."""
    if shape.style == "knots":
        return raw, (raw[..., 1:] - raw[..., :-1]).clamp(min=1 / MOST_SLOPE[raw.dtype])
    sizes = (last - first) * (least + (1 - raw.shape[-1] * least) * _shares(raw, shape))
    inner = first + sizes.cumsum(-1)[..., :-1]
    return F.pad(F.pad(inner, (1, 0), value=first), (0, 1), value=last), sizes


def _slopes(raw: Tensor, bins: int, shape: Shape) -> Tensor:
    """Slopes at the knots [..., K + 1] of those given for all knots, for all but the last, which shares the first's, or
    for the inner ones."""
    if shape.style == "zuko":
        slopes = torch.exp(_clip(raw, shape.clip))
    elif shape.style == "nflows":
        slopes = shape.min_derivative + F.softplus(
            raw, beta=shape.beta, threshold=50
        )  # 20, the default, costs float64 digits
    else:
        slopes = raw
    slopes = _bounded(slopes)
    if raw.shape[-1] == bins - 1:
        most = MOST_SLOPE[raw.dtype]
        return F.pad(slopes, (1, 1), value=min(max(shape.boundary_slope, 1 / most), most))
    return torch.cat([slopes, slopes[..., :1]], -1) if raw.shape[-1] == bins else slopes


# --- the bin of an element --------------------------------------------------------------------------------------------


def _position(eta: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """xi and 1 - xi of eta, and the discriminant's root, which is s N / beta.

    The discriminant of the quadratic equation for xi is a sum of two terms that are never negative, p^2 and 4 s^2 eta
    (1 - eta), and xi and 1 - xi are quotients of sums of positive numbers: nothing cancels.
    """
    other = 1 - eta
    p = other * d0 - eta * d1
    root = torch.sqrt(p * p + 4 * s * s * eta * other)
    upper = torch.where(p >= 0, 2 * s * eta, root - p)
    lower = torch.where(p >= 0, root + p, 2 * s * other)
    return upper / (upper + lower), lower / (upper + lower), root


def _locate(
    given: Tensor, v: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, shape: Shape
) -> tuple[Bin, Tensor]:
    """The bin of each element v (of x, or of y), and the root of `_position` (1 for x). given: v as it is stored."""
    left, right, bottom, top = shape.limits
    x, width = _axis(widths, shape.least(shape.min_width), left, right, shape)
    y, height = _axis(heights, shape.least(shape.min_height), bottom, top, shape)
    slopes = _slopes(derivatives, width.shape[-1], shape)
    knots = y if shape.inverse else x
    first, last = knots[..., 0], knots[..., -1]
    if shape.style == "knots":
        inside = (v >= first) & (v <= last)
    else:  # numbers, which torch compares in the dtype of `given`: what 16 bits make of a bound is not beyond it
        lowest, highest = (bottom, top) if shape.inverse else (left, right)
        inside = (given >= lowest) & (given <= highest)
    v = torch.where(inside | v.isnan(), v, first)  # what no result depends on must not spoil gradients
    k = (v[..., None] >= knots[..., 1:-1]).sum(-1, keepdim=True)

    def of(t: Tensor, k: Tensor) -> Tensor:
        return t.gather(-1, k).squeeze(-1)

    x, width, y, height = of(x, k), of(width, k), of(y, k), of(height, k)
    at = (v - y) / height if shape.inverse else (v - x) / width
    at = _moved(at, torch.where(v >= last, torch.ones_like(at), at.clamp(0, 1)))
    bin = Bin(k, x, width, y, height, of(slopes, k), of(slopes, k + 1), at, 1 - at, inside)
    if not shape.inverse:
        return bin, torch.ones_like(at)
    xi, rest, root = _position(at, bin.s, bin.d0, bin.d1)
    return bin._replace(xi=xi, rest=rest), root


# --- the op -----------------------------------------------------------------------------------------------------------


def rational_quadratic_spline(
    x: Tensor, widths: Tensor, heights: Tensor | None = None, derivatives: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """See `pygen.ops.rational_quadratic_spline`, whose options these are. Without tails NaN beyond the bounds."""
    shape = Shape(**options)
    v = x.to(torch.promote_types(x.dtype, torch.float32))  # float16 and bfloat16 are storage types
    w, h, d = (t.to(v.dtype) for t in split(widths, heights, derivatives, shape.style))
    bin, root = _locate(x, v, w, h, d, shape)
    s, denominator = bin.s, bin.denominator
    left, right, bottom, top = shape.limits
    if shape.inverse:
        y = bin.x + bin.width * bin.xi
        logabsdet = torch.log(denominator / (s * root))
    else:
        y = bin.y + bin.height * ((s * bin.xi * bin.xi + bin.d0 * bin.q) / denominator)
        mean = s / denominator
        logabsdet = torch.log(mean * bin.numerator * mean)  # in this order no product of extremes is 0
    if shape.style != "knots":
        y = _moved(y, y.clamp(left, right) if shape.inverse else y.clamp(bottom, top))
    beyond = torch.full_like(v, math.nan if shape.tails is None else 0.0)
    beyond = torch.where(v.isnan(), v, beyond)
    return torch.where(bin.inside, y, v + beyond).to(x.dtype), torch.where(bin.inside, logabsdet, beyond)


def rational_quadratic_spline_backward(
    grad_y: Tensor,
    grad_logabsdet: Tensor,
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None = None,
    derivatives: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to x, widths, heights and derivatives; those of one tensor are all in the second.

    With g and l the upstream gradients, and G_v = g height eta_v + l L_v for v = xi, d0, d1::

        eta_xi = s N / beta^2               L_xi = 2 (d1 xi + s (1 - 2 xi) - d0 (1 - xi)) / N - 2 beta_xi / beta
        eta_d0 = q (1 - eta) / beta         L_d0 = (1 - xi)^2 / N - 2 q / beta
        eta_d1 = -q eta / beta              L_d1 = xi^2 / N - 2 q / beta
        grad of x = G_xi / width            grad of width = (E - l - xi G_xi) / width
        grad of the corner's x = -that      grad of height = (g height eta + l - E) / height
        grad of the corner's y = g          E = d0 G_d0 + d1 G_d1

    s has no line of its own: eta is homogeneous of degree 0 in (s, d0, d1), and e^L of degree 1. The
    inverse's parameters have those above at -l, and at the g whose corner's x gets g', the upstream gradient of the
    inverse's value: G_xi = -width g'. G_xi's own formula then gives g height, which is finite where 1 / (dy / dx) is
    not. The gradient of the inverse's argument is -g.
    """
    shape = Shape(**options)
    v = x.to(torch.promote_types(x.dtype, torch.float32))
    w, h, d = (t.to(v.dtype) for t in split(widths, heights, derivatives, shape.style))
    bin, _ = _locate(x, v, w, h, d, shape)
    xi, rest, q, s, d0, d1 = bin.xi, bin.rest, bin.q, bin.s, bin.d0, bin.d1
    beta, n = bin.denominator, bin.numerator
    eta, other = (s * xi * xi + d0 * q) / beta, (s * rest * rest + d1 * q) / beta
    l_xi = 2 * (d1 * xi + s * (rest - xi) - d0 * rest) / n - 2 * (d0 + d1 - 2 * s) * (rest - xi) / beta

    upstream, g_l = grad_y.to(v.dtype), grad_logabsdet.to(v.dtype)
    eta_xi = s * n / beta.square()
    if shape.inverse:
        g_l, g_xi = -g_l, -upstream * bin.width
        by_height = (g_xi - g_l * l_xi) / eta_xi
        g_y = by_height / bin.height
    else:
        g_y, by_height = upstream, upstream * bin.height
        g_xi = by_height * eta_xi + g_l * l_xi
    g_d0 = by_height * q * other / beta + g_l * (rest * rest / n - 2 * q / beta)
    g_d1 = g_l * (xi * xi / n - 2 * q / beta) - by_height * q * eta / beta
    whole = d0 * g_d0 + d1 * g_d1
    corner, grad_x = -g_xi / bin.width, -g_y if shape.inverse else g_xi / bin.width
    width = (whole - g_l - xi * g_xi) / bin.width
    height = (by_height * eta + g_l - whole) / bin.height

    corner, width, g_y, height, g_d0, g_d1 = (
        torch.where(bin.inside, t, torch.zeros_like(t))[..., None] for t in (corner, width, g_y, height, g_d0, g_d1)
    )
    left, right, bottom, top = shape.limits
    grads = (
        _axis_backward(w, bin.k, corner, width, shape.least(shape.min_width), right - left, shape),
        _axis_backward(h, bin.k, g_y, height, shape.least(shape.min_height), top - bottom, shape),
        _slopes_backward(d, bin.k, g_d0, g_d1, w.shape[-1] - (shape.style == "knots"), shape),
    )
    beyond = torch.full_like(v, math.nan) if shape.tails is None else upstream
    grad_x = torch.where(bin.inside | v.isnan(), grad_x, beyond).to(x.dtype)
    if heights is None:
        return grad_x, torch.cat(grads, -1).to(widths.dtype), widths.new_empty(0), widths.new_empty(0)
    return (grad_x, *(t.to(widths.dtype) for t in grads))  # type: ignore[return-value]


def _chosen(first: Tensor, by_first: Tensor, second: Tensor, by_second: Tensor, raw: Tensor) -> Tensor:
    """Zeros like raw, but for two of each element's."""
    j, zero = torch.arange(raw.shape[-1], device=raw.device), torch.zeros_like(raw)
    return torch.where(j == first, by_first, zero) + torch.where(j == second, by_second, zero)


def _axis_backward(
    raw: Tensor, k: Tensor, corner: Tensor, size: Tensor, least: float, total: float, shape: Shape
) -> Tensor:
    """From the gradients of a bin's corner and size to those of the parameters of its axis."""
    if shape.style == "knots":
        return _chosen(k, corner - size, k + 1, size, raw)
    j, shares = torch.arange(raw.shape[-1], device=raw.device), _shares(raw, shape)
    slopes = torch.where(j < k, corner, torch.where(j == k, size, torch.zeros_like(size)))
    grad = total * (1 - raw.shape[-1] * least) * shares * (slopes - (shares * slopes).sum(-1, keepdim=True))
    if shape.style == "zuko":
        grad = grad * _clip_slope(raw, shape.clip / 2)
    return torch.where((corner == 0) & (size == 0), torch.zeros_like(grad), grad)


def _slopes_backward(raw: Tensor, k: Tensor, by_d0: Tensor, by_d1: Tensor, bins: int, shape: Shape) -> Tensor:
    """From the gradients of a bin's slopes to those of their parameters."""
    count = raw.shape[-1]
    first = k - 1 if count == bins - 1 else k
    grad = _chosen(first, by_d0, (first + 1) % bins if count == bins else first + 1, by_d1, raw)
    if shape.style == "nflows":
        slopes = torch.sigmoid(shape.beta * raw)
    elif shape.style == "zuko":
        slopes = _bounded(torch.exp(_clip(raw, shape.clip))) * _clip_slope(raw, shape.clip)
    else:
        return grad
    return torch.where(grad == 0, torch.zeros_like(grad), grad * slopes)
