"""Triton kernels of rational-quadratic splines: a program to a tile of elements x bins.

The formulas, and their names, are those of pygen/reference/rational_quadratic_spline.py.
"""

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl

from .._lib import layout
from ..reference.rational_quadratic_spline import LEAST_LOGIT, MOST_SLOPE, split
from . import _math as pm

TILE = 1024  # elements x bins of a program; half as many of a backward one, and in float64, to have registers for all

# --- from parameters to the bin of an element -------------------------------------------------------------------------


@triton.jit
def _at_least(t, MOST: tl.constexpr):
    least = tl.full((1,), 1.0 / MOST, t.dtype)
    return tl.where(t < least, least, t)


@triton.jit
def _bounded(slope, MOST: tl.constexpr):
    most = tl.full((1,), MOST, slope.dtype)
    return tl.where(slope > most, most, _at_least(slope, MOST))


@triton.jit
def _unit(t):
    """t within [0, 1]; NaN stays."""
    return tl.where(t < 0.0, 0.0, tl.where(t > 1.0, 1.0, t))


@triton.jit
def _clip(u, limit):
    """zuko's soft clip, and its derivative."""
    shrink = pm.div(tl.full(u.shape, 1.0, u.dtype), 1.0 + pm.div(tl.abs(u), limit))
    return u * shrink, shrink * shrink


@triton.jit
def _at(e, run, place):
    """Where the elements' parameters begin; place: (outer, element, step)."""
    return e // run * place[0] + e % run * place[1]


@triton.jit
def _row(kind, at, place, inside, j, count, ACC: tl.constexpr):
    """Parameters of elements, [elements, bins]."""
    here = inside[:, None] & (j < count)
    return tl.load(kind + at[:, None] + j.to(tl.int64) * place[2], here, 0.0).to(ACC)


@triton.jit
def _pick(t, j, k):
    """Each element's k-th; 0 if there is none."""
    return tl.sum(tl.where(j == k[:, None], t, 0.0), 1)


@triton.jit
def _shares(raw, j, bins, least, clip, CLIPS: tl.constexpr):
    """The bins' shares, and the derivatives of the soft clip before them."""
    slope = tl.full(raw.shape, 1.0, raw.dtype)
    if CLIPS:
        raw, slope = _clip(raw, clip * 0.5)
    there = j < bins
    below = raw - tl.max(tl.where(there, raw, float("-inf")), 1)[:, None]
    below = tl.where(below < least, least, below)
    e = tl.where(there, pm.exp(below), 0.0)
    return pm.div(e, tl.sum(e, 1)[:, None]), slope


@triton.jit
def _count(above):
    return tl.sum(above.to(tl.int32), 1)


@triton.jit
def _of_shares(shares, below, j, k, axis):
    """Corner and size of bin k along an axis (see `_arguments`), and the share of the bins below it."""
    share, under = _pick(shares, j, k), _pick(below, j, k - 1)
    return axis[0] + (k.to(shares.dtype) * axis[2] + under * axis[3]), axis[2] + share * axis[3], share, under


@triton.jit
def _of_knots(knots, j, k, MOST: tl.constexpr):
    corner = _pick(knots, j, k)
    size = _pick(knots, j, k + 1) - corner
    return corner, _at_least(size, MOST)


@triton.jit
def _slope(raw, min_derivative, beta, clip, STYLE: tl.constexpr, MOST: tl.constexpr):
    """A slope of its raw parameter, and its derivative."""
    one = tl.full(raw.shape, 1.0, raw.dtype)
    if STYLE == "nflows":
        u = raw * beta
        e = pm.exp(-tl.abs(u))
        slope = min_derivative + pm.div(tl.where(u < 0.0, 0.0, u) + pm.log1p(e), beta)
        derivative = pm.div(tl.where(u < 0.0, e, one), 1.0 + e)
    elif STYLE == "zuko":
        clipped, shrink = _clip(raw, clip)
        slope = _bounded(pm.exp(clipped), MOST)
        derivative = slope * shrink
    else:
        slope, derivative = raw, one
    return _bounded(slope, MOST), derivative


@triton.jit
def _ends(k, bins, ENDS: tl.constexpr):
    """Which parameters are the slopes at both ends of bin k; -1 or one too many where they are none's."""
    if ENDS == "fixed":
        return k - 1, k
    elif ENDS == "shared":
        return k, tl.where(k == bins - 1, 0, k + 1)
    else:
        return k, k + 1


@triton.jit
def _end(kind, at, place, index, inside, count, numbers, STYLE: tl.constexpr, MOST: tl.constexpr):
    """The slope of parameter `index`, or that of the boundary if there is none; and its derivative."""
    here = (index >= 0) & (index < count)
    raw = tl.load(kind + at + index.to(tl.int64) * place[2], inside & here, 0.0).to(numbers[0].dtype)
    slope, derivative = _slope(raw, numbers[0], numbers[1], numbers[3], STYLE, MOST)
    return tl.where(here, slope, _bounded(numbers[2], MOST)), derivative


@triton.jit
def _position(eta, s, d0, d1):
    other = 1.0 - eta
    p = other * d0 - eta * d1
    root = pm.sqrt(p * p + 4.0 * s * s * eta * other)
    upper = tl.where(p < 0.0, root - p, 2.0 * s * eta)
    lower = tl.where(p < 0.0, 2.0 * s * other, root + p)
    return pm.div(upper, upper + lower), pm.div(lower, upper + lower), root


@triton.jit
def _in_type(numbers, N: tl.constexpr, ACC: tl.constexpr):
    """Options, passed as float64, in the type of the arithmetic."""
    result = ()
    for i in tl.static_range(N):
        result = result + (tl.full((1,), numbers[i], ACC),)  # noqa: RUF005 (Triton has no starred tuples)
    return result


@triton.jit
def _locate(
    v, widths, heights, slopes, e, inside, run, bins, w_place, h_place, d_place, d_count, x_axis, y_axis, numbers,
    least: tl.constexpr, MOST: tl.constexpr, STYLE: tl.constexpr, ENDS: tl.constexpr, INVERSE: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """All there is to know of the elements' bins, and where in them they are."""
    ACC: tl.constexpr = v.dtype
    j = tl.arange(0, WIDE)[None, :]
    count = bins + 1 if STYLE == "knots" else bins
    w = _row(widths, _at(e, run, w_place), w_place, inside, j, count, ACC)
    h = _row(heights, _at(e, run, h_place), h_place, inside, j, count, ACC)
    first, last = (y_axis[4], y_axis[5]) if INVERSE else (x_axis[4], x_axis[5])
    if STYLE == "knots":
        own = h if INVERSE else w
        first, last = tl.sum(tl.where(j == 0, own, 0.0), 1), tl.sum(tl.where(j == bins, own, 0.0), 1)
        k = _count((own <= v[:, None]) & (j > 0) & (j < bins))
        x, width = _of_knots(w, j, k, MOST)
        y, height = _of_knots(h, j, k, MOST)
        w_share, w_under, h_share, h_under, w_slope, h_slope = x, x, y, y, w, h  # of shares alone
    else:
        w, w_slope = _shares(w, j, bins, least, numbers[3], STYLE == "zuko")
        h, h_slope = _shares(h, j, bins, least, numbers[3], STYLE == "zuko")
        w_below, h_below = tl.cumsum(w, 1), tl.cumsum(h, 1)
        axis = y_axis if INVERSE else x_axis
        knots = axis[0] + ((j + 1).to(ACC) * axis[2] + (h_below if INVERSE else w_below) * axis[3])
        k = _count((knots <= v[:, None]) & (j < bins - 1))
        x, width, w_share, w_under = _of_shares(w, w_below, j, k, x_axis)
        y, height, h_share, h_under = _of_shares(h, h_below, j, k, y_axis)
    at = _at(e, run, d_place)
    index0, index1 = _ends(k, bins, ENDS)
    d0, slope0 = _end(slopes, at, d_place, index0, inside, d_count, numbers, STYLE, MOST)
    d1, slope1 = _end(slopes, at, d_place, index1, inside, d_count, numbers, STYLE, MOST)
    s = _bounded(pm.div(height, width), MOST)
    xi = pm.div(v - y, height) if INVERSE else pm.div(v - x, width)
    xi = tl.where(v >= last, 1.0, _unit(xi))
    rest = 1.0 - xi
    root = xi
    if INVERSE:
        xi, rest, root = _position(xi, s, d0, d1)
    within = (v >= first) & (v <= last)
    q = xi * rest
    denominator = s * (1.0 - 2.0 * q) + (d0 + d1) * q
    numerator = d1 * xi * xi + 2.0 * s * q + d0 * rest * rest
    corner, shares = (x, width, y, height), (w, w_slope, w_share, w_under, h, h_slope, h_share, h_under)
    point = (xi, rest, q, s, d0, d1, denominator, numerator, root)
    return k, corner, shares, point, (index0, slope0, index1, slope1), within


# --- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["numel", "run"])
def _forward(
    v_in, widths, heights, slopes, y_out, logabsdet, numel, run, bins, w_place, h_place, d_place, d_count,
    x_axis, y_axis, numbers,
    LEAST: tl.constexpr, MOST: tl.constexpr, STYLE: tl.constexpr, ENDS: tl.constexpr, INVERSE: tl.constexpr,
    BOUNDED: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = logabsdet.dtype.element_ty
    x_axis, y_axis, numbers = _in_type(x_axis, 6, ACC), _in_type(y_axis, 6, ACC), _in_type(numbers, 4, ACC)
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = e < numel
    v = tl.load(v_in + e, inside, 0.0).to(ACC)
    _, corner, _, point, _, within = _locate(
        v, widths, heights, slopes, e, inside, run, bins, w_place, h_place, d_place, d_count, x_axis, y_axis, numbers,
        LEAST, MOST, STYLE, ENDS, INVERSE, WIDE,
    )  # fmt: skip
    xi, _, q, s, d0, _, denominator, numerator, root = point
    x, width, y, height = corner
    if INVERSE:
        out = x + width * xi
        steep = pm.div(denominator, s * root)
        axis = x_axis
    else:
        out = y + height * pm.div(s * xi * xi + d0 * q, denominator)
        mean = pm.div(s, denominator)
        steep = mean * numerator * mean
        axis = y_axis
    if STYLE != "knots":
        out = tl.where(out < axis[0], axis[0], tl.where(out > axis[1], axis[1], out))
    beyond = tl.full((BLOCK,), float("nan") if BOUNDED else 0.0, ACC)
    out = tl.where(within, out, v + beyond)
    slope = tl.where(within, pm.log(steep), tl.where(v == v, beyond, v))
    tl.store(y_out + e, out.to(y_out.dtype.element_ty), inside)
    tl.store(logabsdet + e, slope, inside)


@triton.jit
def _shares_backward(kind, at, place, there, j, k, share, clip_slope, own, under, corner, size, rest, within):
    """Gradients of an axis's raw parameters from those of a bin's corner and size."""
    mean = corner * under + size * own
    here = j == k[:, None]
    slope = tl.where(j < k[:, None], corner[:, None], tl.where(here, size[:, None], 0.0)) - mean[:, None]
    grad = tl.where(within[:, None], rest * share * slope * clip_slope, 0.0)
    tl.store(kind + at[:, None] + j.to(tl.int64) * place[2], grad.to(kind.dtype.element_ty), there)


@triton.jit
def _two_backward(kind, at, place, there, j, index0, by0, index1, by1):
    """Gradients of two parameters of each element, among zeros."""
    grad = tl.where(j == index0[:, None], by0[:, None], 0.0) + tl.where(j == index1[:, None], by1[:, None], 0.0)
    tl.store(kind + at[:, None] + j.to(tl.int64) * place[2], grad.to(kind.dtype.element_ty), there)


@triton.jit(do_not_specialize=["numel", "run"])
def _backward(
    grad_y, grad_logabsdet, v_in, widths, heights, slopes, grad_x, grad_widths, grad_heights, grad_slopes,
    grad_y_step, grad_logabsdet_step, numel, run, bins, w_place, h_place, d_place, d_count, w_to, h_to, d_to,
    x_axis, y_axis, numbers,
    LEAST: tl.constexpr, MOST: tl.constexpr, STYLE: tl.constexpr, ENDS: tl.constexpr, INVERSE: tl.constexpr,
    BOUNDED: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients that are not wanted are None."""
    ACC: tl.constexpr = grad_logabsdet.dtype.element_ty
    x_axis, y_axis, numbers = _in_type(x_axis, 6, ACC), _in_type(y_axis, 6, ACC), _in_type(numbers, 4, ACC)
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = e < numel
    v = tl.load(v_in + e, inside, 0.0).to(ACC)
    k, corner, shares, point, ends, within = _locate(
        v, widths, heights, slopes, e, inside, run, bins, w_place, h_place, d_place, d_count, x_axis, y_axis, numbers,
        LEAST, MOST, STYLE, ENDS, INVERSE, WIDE,
    )  # fmt: skip
    xi, rest, q, s, d0, d1, beta, n, _ = point
    _, width, _, height = corner
    index0, slope0, index1, slope1 = ends
    across = rest - xi
    log_xi = pm.div(2.0 * (d1 * xi + s * across - d0 * rest), n) - pm.div(2.0 * (d0 + d1 - 2.0 * s) * across, beta)
    eta_by_xi = pm.div(s, beta) * n  # times beta: eta differentiated
    upstream = tl.load(grad_y + e * grad_y_step, inside, 0.0).to(ACC)
    g_l = tl.load(grad_logabsdet + e * grad_logabsdet_step, inside, 0.0)
    if INVERSE:
        g_l, g_xi = -g_l, -upstream * width
        by_height = pm.div(g_xi - g_l * log_xi, eta_by_xi)  # g_y height / beta
        g_y = pm.div(by_height * beta, height)
    else:
        g_y, by_height = upstream, pm.div(upstream * height, beta)
        g_xi = by_height * eta_by_xi + g_l * log_xi
    q2 = pm.div(2.0 * q, beta)
    lower = s * xi * xi + d0 * q
    eta, other = pm.div(lower, beta), pm.div(s * rest * rest + d1 * q, beta)
    g_d0 = by_height * q * other + g_l * (pm.div(rest * rest, n) - q2)
    g_d1 = g_l * (pm.div(xi * xi, n) - q2) - by_height * q * eta
    whole = d0 * g_d0 + d1 * g_d1
    by_x = pm.div(g_xi, width)
    own = -g_y if INVERSE else by_x
    if grad_x is not None:
        beyond = tl.where(v == v, float("nan") if BOUNDED else upstream, own)
        tl.store(grad_x + e, tl.where(within, own, beyond).to(grad_x.dtype.element_ty), inside)

    corner_x, corner_y = tl.where(within, -by_x, 0.0), tl.where(within, g_y, 0.0)
    size_x = tl.where(within, pm.div(whole - g_l - xi * g_xi, width), 0.0)
    size_y = tl.where(within, pm.div(by_height * lower + g_l - whole, height), 0.0)
    j = tl.arange(0, WIDE)[None, :]
    w, w_slope, w_share, w_under, h, h_slope, h_share, h_under = shares
    there = inside[:, None] & (j < (bins + 1 if STYLE == "knots" else bins))
    if grad_widths is not None:
        at = _at(e, run, w_to)
        if STYLE == "knots":
            _two_backward(grad_widths, at, w_to, there, j, k, corner_x - size_x, k + 1, size_x)
        else:
            _shares_backward(
                grad_widths, at, w_to, there, j, k, w, w_slope, w_share, w_under, corner_x, size_x, x_axis[3], within
            )
    if grad_heights is not None:
        at = _at(e, run, h_to)
        if STYLE == "knots":
            _two_backward(grad_heights, at, h_to, there, j, k, corner_y - size_y, k + 1, size_y)
        else:
            _shares_backward(
                grad_heights, at, h_to, there, j, k, h, h_slope, h_share, h_under, corner_y, size_y, y_axis[3], within
            )
    if grad_slopes is not None:
        by0, by1 = tl.where(within, g_d0 * slope0, 0.0), tl.where(within, g_d1 * slope1, 0.0)
        there = inside[:, None] & (j < d_count)
        _two_backward(grad_slopes, _at(e, run, d_to), d_to, there, j, index0, by0, index1, by1)


# --- launchers: the ops' arguments, in the order of their schemas -----------------------------------------------------


def _in_order(t, fmt):
    """Dimensions in the order in which elements are counted; the parameters' stays the last."""
    return t.permute(0, 2, 3, 1, 4) if fmt == torch.channels_last else t


def _runs(t):
    """How many elements lie at one stride from each other, that stride, and that between such runs (None if there is
    one run); None where they lie otherwise."""
    length, stride, outer, expected = 1, 1, None, 0
    for size, step in reversed([*zip(t.shape[:-1], t.stride()[:-1], strict=True)]):
        if size == 1:
            continue
        if length == 1:
            length, stride, expected = size, step, size * step
        elif outer is None and step == expected:
            length, expected = length * size, expected * size
        elif outer is None:
            outer, expected = step, step * size
        elif step == expected:
            expected *= size
        else:
            return None
    return length, stride, outer


def _laid(kinds, numel, fmt):
    """The parameters, copied where they do not lie in runs of one length, and that length."""
    kinds = [_in_order(t, fmt) for t in kinds]
    run = min([numel, *(r[0] for r in map(_runs, kinds) if r is not None)])
    return [t if _fits(_runs(t), run) else t.contiguous() for t in kinds], run


def _fits(runs, run):
    return runs is not None and (runs[0] == run or (runs[2] is None and runs[0] % run == 0))


def _place(t, run):
    """(outer, element, step) of _at."""
    _, stride, outer = _runs(t)
    return (run * stride if outer is None else outer, stride, t.stride(-1))


@lru_cache(maxsize=1024)
def _admitted(first, last, dtype):
    """From where to where: the ends, and what x's dtype makes of them."""
    lowest, highest = torch.tensor((first, last), dtype=dtype).tolist()
    return min(first, lowest), max(last, highest)


def _arguments(x, kinds, options, tile):
    fmt = layout(x)
    (w, h, d), run = _laid(kinds, x.numel(), fmt)
    knots = options.style == "knots"
    bins = w.shape[-1] - knots
    wide = triton.next_power_of_2(bins + 1)
    acc = torch.promote_types(x.dtype, torch.float32)

    def axis(first, last, least):
        """Ends; size of a bin of no share, what the shares are of; what is within."""
        least = least if options.style == "nflows" else 0.0
        sizes = (last - first) * least, (last - first) * (1 - bins * least)
        return first, last, *sizes, *_admitted(first, last, x.dtype)

    return {
        "v_in": x.contiguous(memory_format=fmt), "widths": w, "heights": h, "slopes": d, "numel": x.numel(),
        "run": run, "bins": bins, "w_place": _place(w, run), "h_place": _place(h, run), "d_place": _place(d, run),
        "d_count": d.shape[-1], "x_axis": axis(options.left, options.right, options.min_width),
        "y_axis": axis(options.bottom, options.top, options.min_height),
        "numbers": (options.min_derivative, options.beta, options.boundary_slope, -math.log(options.slope)),
        "LEAST": LEAST_LOGIT[acc], "MOST": MOST_SLOPE[acc], "STYLE": options.style,
        "ENDS": {bins - 1: "fixed", bins: "shared", bins + 1: "given"}[d.shape[-1]], "INVERSE": options.inverse,
        "BOUNDED": options.bounded, "BLOCK": max(1, tile // (wide * (2 if acc == torch.float64 else 1))), "WIDE": wide,
    }  # fmt: skip


def launch_rational_quadratic_spline(x, widths, heights, derivatives, options):
    fmt = layout(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=fmt)
    acc = torch.promote_types(x.dtype, torch.float32)
    logabsdet = torch.empty(x.shape, dtype=acc, device=x.device, memory_format=fmt)
    if x.numel():
        arguments = _arguments(x, split(widths, heights, derivatives, options.style), options, TILE)
        with torch.cuda.device_of(x):
            _forward[(triton.cdiv(x.numel(), arguments["BLOCK"]),)](y_out=y, logabsdet=logabsdet, **arguments)
    return y, logabsdet


def launch_rational_quadratic_spline_backward(
    grad_y,
    grad_logabsdet,
    x,
    widths,
    heights,
    derivatives,
    options,
    need_x,
    need_widths,
    need_heights,
    need_derivatives,
):
    fmt = layout(x)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=fmt) if need_x else x.new_empty(0)
    grads = [
        torch.empty_like(t) if need and t is not None else widths.new_empty(0)
        for t, need in ((widths, need_widths), (heights, need_heights), (derivatives, need_derivatives))
    ]
    needs = [need_widths] * 3 if heights is None else [need_widths, need_heights, need_derivatives]
    if not x.numel() or not (need_x or any(needs)):
        return grad_x, *grads
    arguments = _arguments(x, split(widths, heights, derivatives, options.style), options, TILE // 2)
    run = arguments["run"]
    outputs = list(split(grads[0], None, None, options.style)) if heights is None and need_widths else grads
    outputs = [_in_order(t, fmt) if need else None for t, need in zip(outputs, needs, strict=True)]
    written = [None if t is None else t if _fits(_runs(t), run) else t.new_empty(t.shape) for t in outputs]
    to = [(0, 0, 0) if t is None else _place(t, run) for t in written]
    upstream = [t.contiguous(memory_format=fmt) if any(t.stride()) else t for t in (grad_y, grad_logabsdet)]
    steps = [int(any(t.stride())) for t in (grad_y, grad_logabsdet)]
    with torch.cuda.device_of(x):
        _backward[(triton.cdiv(x.numel(), arguments["BLOCK"]),)](
            *upstream, grad_x=grad_x if need_x else None, grad_widths=written[0], grad_heights=written[1],
            grad_slopes=written[2], grad_y_step=steps[0], grad_logabsdet_step=steps[1], w_to=to[0], h_to=to[1],
            d_to=to[2], **arguments,
        )  # fmt: skip
    for t, own in zip(outputs, written, strict=True):
        if t is not None and own is not t:
            t.copy_(own)
    return grad_x, *grads
