"""Triton kernels of discretised logistic mixtures: a program to some pixels of one sample, a component at a time."""

import torch
import triton
import triton.language as tl

from .._lib import layout
from ..reference.logistic_mixture import mixtures_of, places
from . import _math as pm
from .random import _exp, _join, _place, _signed, _split, _word

PIXELS = 128  # to a program

# --- likelihood -------------------------------------------------------------------------------------------------------


@triton.jit
def _term(centred, given_log_scale, level, last, half, OPENAI: tl.constexpr):
    """log P of a channel's level, and its derivatives by the mean and by the log-scale: csrc/cpu/logistic_mixture.h."""
    first_bin, last_bin = level < 0.5, level > last - 0.5
    log_scale = tl.where(given_log_scale < -7.0, -7.0, given_log_scale)
    q = pm.exp(-log_scale)
    a, b, delta = q * (centred + half), q * (centred - half), q * (half + half)
    ea, eb = pm.exp(-tl.abs(a)), pm.exp(-tl.abs(b))
    ra, rb = pm.div(1.0, 1.0 + ea), pm.div(1.0, 1.0 + eb)
    left = tl.where(last_bin, 0.0, tl.where(a > 0.0, ea * ra, ra))  # sigmoid(-a)
    right = tl.where(first_bin, 0.0, tl.where(b > 0.0, rb, eb * rb))  # sigmoid(b)
    log_a = tl.where(a < 0.0, a, 0.0) - pm.log1p(ea)  # NaN of ea stays
    log_b = tl.where(b > 0.0, -b, 0.0) - pm.log1p(eb)
    edges = tl.where(last_bin, 0.0, log_a) + tl.where(first_bin, 0.0, log_b)
    outer = first_bin | last_bin
    width = -pm.expm1(-delta)
    mean, slope = right - left, b * right - a * left
    # Of a scale so wide that 1 - e^-delta may underflow only its logarithm is taken: log delta.
    wide = log_scale > 60.0
    rest = tl.where(wide, 1.0, pm.div(delta * (1.0 - width), width))
    if OPENAI:
        mass = tl.where(a > 0.0, ra, ea * ra) - right
        middle = q * centred
        em = pm.exp(-tl.abs(middle))
        density = pm.log(half + half) - log_scale - tl.abs(middle) - 2.0 * pm.log1p(em)
        likely = mass > 1e-5
        log_p = tl.where(outer, edges, tl.where(likely, pm.log(tl.where(likely, mass, 1.0)), density))
        tilt = tl.where(middle < 0.0, 1.0 - em, em - 1.0) * pm.div(1.0, 1.0 + em)  # 1 - 2 sigmoid(middle)
        mean = tl.where(outer | likely, mean, -tilt)
        slope = tl.where(outer, slope, tl.where(likely, slope - rest, -middle * tilt - 1.0))
    else:
        log_width = pm.log(tl.where(wide, half + half, width)) - tl.where(wide, log_scale, 0.0)
        log_p = edges + tl.where(outer, 0.0, log_width)
        slope -= tl.where(outer, 0.0, rest)
    return log_p, q * mean, slope


@triton.jit
def _level(x, at, inside, last: tl.float64, ACC: tl.constexpr):
    """The level, NaN where it is none, and the number that it stands for, as a sum of two."""
    level = tl.load(x + at, inside, 0).to(tl.float64)
    if x.dtype.element_ty.is_floating():
        level = pm.rint((level + 1.0) * (last * 0.5))
    level = tl.where((level >= 0.0) & (level <= last), level, float("nan"))
    exact = (2.0 * level - last) / last
    high = exact.to(ACC)
    return level.to(ACC), high, (exact - high.to(tl.float64)).to(ACC)


@triton.jit
def _at(kind, c, k, step):
    """Where the parameter of channel (or pair) c and component k lies; kind: (first, channel, mixture)."""
    return (kind[0] + kind[1] * c + kind[2] * k).to(tl.int64) * step


@triton.jit
def _pixels(chunks, area, PIXELS: tl.constexpr):
    """The sample of a program, its pixels, and which of them there are."""
    pid = tl.program_id(0).to(tl.int64)
    pixel = pid % chunks * PIXELS + tl.arange(0, PIXELS)
    return pid // chunks, pixel, pixel < area


@triton.jit(do_not_specialize=["chunks"])
def _nll(
    x, given, nll, slope, joint,
    chunks, area, mixtures, x_at, p_at,  # strides: (sample, channel, pixel)
    means, log_scales, coefficients,
    last: tl.float64,
    C: tl.constexpr, OWN: tl.constexpr, OPENAI: tl.constexpr, SLOPE: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """nll and, if SLOPE, its derivative. given: the parameters, a name that Triton's own launcher does not take.

    Derivatives by component are written as they come, and once all of them are known each is weighed; `joint` holds
    log P of the components for that while, [samples, mixtures, area].
    """
    ACC: tl.constexpr = nll.dtype.element_ty
    STORE: tl.constexpr = given.dtype.element_ty
    sample, pixel, inside = _pixels(chunks, area, PIXELS)
    xs = x + sample * x_at[0] + pixel * x_at[2]
    offset = sample * p_at[0] + pixel * p_at[2]
    ps, step = given + offset, p_at[1]
    joint_at = joint + sample * mixtures * area + pixel if SLOPE else joint
    slope_at = slope + offset if SLOPE else slope
    number, half = tl.full((1,), last, ACC), tl.full((1,), 1.0 / last, ACC)

    top = tl.full((PIXELS,), float("-inf"), ACC)
    for k in range(0, mixtures):
        top = tl.maximum(top, tl.load(ps + tl.cast(k, tl.int64) * step, inside, 0.0).to(ACC))
    total, mass = tl.zeros((PIXELS,), ACC), tl.zeros((PIXELS,), ACC)
    best = tl.full((PIXELS,), float("-inf"), ACC)
    for k in range(0, mixtures):
        logit = tl.load(ps + tl.cast(k, tl.int64) * step, inside, 0.0).to(ACC) - top
        log_p = logit
        for c in tl.static_range(C):
            level, high, low = _level(xs, c * x_at[1], inside, last, ACC)
            centred = (high - tl.load(ps + _at(means, c, k, step), inside, 0.0).to(ACC)) + low
            if OWN:
                for j in tl.static_range(c):
                    _, other, _ = _level(xs, j * x_at[1], inside, last, ACC)
                    at = _at(coefficients, c * (c - 1) // 2 + j, k, step)
                    tanh = pm.tanh(tl.load(ps + at, inside, 0.0).to(ACC))
                    centred -= tanh * other
            log_scale = tl.load(ps + _at(log_scales, c, k, step), inside, 0.0).to(ACC)
            one, by_mean, by_log_scale = _term(centred, log_scale, level, number, half, OPENAI)
            log_p += one
            if SLOPE:
                tl.store(slope_at + _at(means, c, k, step), by_mean.to(STORE), inside)
                tl.store(slope_at + _at(log_scales, c, k, step), by_log_scale.to(STORE), inside)
        if SLOPE:
            tl.store(joint_at + tl.cast(k, tl.int64) * area, log_p, inside)
        total += pm.exp(logit)
        better = tl.maximum(best, log_p)
        base = tl.where(better == float("-inf"), 0.0, better)  # of components none of which can be
        mass = mass * pm.exp(best - base) + pm.exp(log_p - base)
        best = better
    tl.store(nll + sample * area + pixel, pm.log(total) - (best + pm.log(mass)), inside)

    if SLOPE:
        tl.debug_barrier()
        base = tl.where(best == float("-inf"), 0.0, best)
        for k in range(0, mixtures):
            share = pm.div(pm.exp(tl.load(joint_at + tl.cast(k, tl.int64) * area, inside, 0.0) - base), mass)
            logit = tl.load(ps + tl.cast(k, tl.int64) * step, inside, 0.0).to(ACC) - top
            part = pm.div(pm.exp(logit), total)
            tl.store(slope_at + tl.cast(k, tl.int64) * step, (part - share).to(STORE), inside)
            for c in tl.static_range(C):
                at = _at(means, c, k, step)
                by_mean = -share * tl.load(slope_at + at, inside, 0.0).to(ACC)
                tl.store(slope_at + at, by_mean.to(STORE), inside)
                at = _at(log_scales, c, k, step)
                by_log_scale = -share * tl.load(slope_at + at, inside, 0.0).to(ACC)
                free = tl.load(ps + at, inside, 0.0).to(ACC) >= -7.0
                tl.store(slope_at + at, tl.where(free, by_log_scale, 0.0).to(STORE), inside)
                if OWN:
                    for j in tl.static_range(c):
                        _, other, _ = _level(xs, j * x_at[1], inside, last, ACC)
                        at = _at(coefficients, c * (c - 1) // 2 + j, k, step)
                        tanh = pm.tanh(tl.load(ps + at, inside, 0.0).to(ACC))
                        tl.store(slope_at + at, (by_mean * other * (1.0 - tanh * tanh)).to(STORE), inside)


@triton.jit(do_not_specialize=["numel"])
def _scale(slope, grad, out, numel, sample, area, parameters, grad_step, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Each pixel's derivative times its gradient. ROWS: a pixel's parameters lie together."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = e < numel
    pixel = e // parameters if ROWS else e // sample * area + e % area
    factor = tl.load(grad + pixel * grad_step, inside, 0.0)
    value = tl.load(slope + e, inside, 0.0).to(factor.dtype) * factor
    tl.store(out + e, value.to(out.dtype.element_ty), inside)


# --- samples ----------------------------------------------------------------------------------------------------------


@triton.jit
def _clamp(x, low, high):
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def _tanh(x):
    minus = tl.abs(x) * -2.0
    e = _exp(tl.where(minus < -80.0, -80.0, minus), 0)
    return pm.div(tl.where(x < 0.0, e - 1.0, 1.0 - e), e + 1.0)


@triton.jit
def _weight(logit, top, coldness):
    cold = (logit - top) * coldness
    return tl.where(cold < -80.0, 0.0, _exp(tl.where(cold < -80.0, -80.0, cold), 0))


@triton.jit
def _uniform(noise, noise_at, ids, first_sample, seed_low, seed_high, step, element, row, i, inside):
    """Number i of each pixel."""
    if noise is not None:
        return tl.load(noise + noise_at + i, inside, 0.0).to(tl.float32)
    else:
        w = _word(element + i, row, ids, first_sample, seed_low, seed_high, step, inside)
        return _signed(w >> 8) * 5.9604644775390625e-8


@triton.jit(do_not_specialize=["chunks", "seed_low", "seed_high", "first_sample", "step"])
def _sample(
    given, noise, ids, x,
    chunks, area, pixels, mixtures, p_at, x_at,  # pixels: of an image; strides: (sample, channel, pixel)
    means, log_scales, coefficients,
    coldness: tl.float32, temperature: tl.float32, last: tl.float32, offset,
    seed_low, seed_high, first_sample: tl.int64, step: tl.int64,
    C: tl.constexpr, OWN: tl.constexpr, QUANTIZED: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """The steps of pygen/reference/logistic_mixture.py. noise: [image, pixel, 1 + C], or None: from the stream."""
    sample, pixel, inside = _pixels(chunks, area, PIXELS)
    ps, stride = given + sample * p_at[0] + pixel * p_at[2], p_at[1]
    xs = x + sample * x_at[0] + pixel * x_at[2]
    flat = sample * area + pixel
    row, element, noise_at = flat // pixels, offset + flat % pixels * (1 + C), flat * (1 + C)

    top = tl.load(ps, inside, 0.0).to(tl.float32)
    for k in range(1, mixtures):
        logit = tl.load(ps + tl.cast(k, tl.int64) * stride, inside, 0.0).to(tl.float32)
        top = tl.where(top < logit, logit, top)
    total = _weight(tl.load(ps, inside, 0.0).to(tl.float32), top, coldness)
    for k in range(1, mixtures):
        total += _weight(tl.load(ps + tl.cast(k, tl.int64) * stride, inside, 0.0).to(tl.float32), top, coldness)
    threshold = total * _uniform(noise, noise_at, ids, first_sample, seed_low, seed_high, step, element, row, 0, inside)
    below = tl.zeros((PIXELS,), tl.float32)
    component = tl.zeros((PIXELS,), tl.int64)
    for k in range(1, mixtures):
        logit = tl.load(ps + tl.cast(k - 1, tl.int64) * stride, inside, 0.0).to(tl.float32)
        below += _weight(logit, top, coldness)
        component = tl.where(threshold < below, component, k)

    for c in tl.static_range(C):
        mean = tl.load(ps + _at(means, c, component, stride), inside, 0.0).to(tl.float32) + (
            total - total
        )  # NaN of NaN
        if OWN:
            for j in tl.static_range(c):
                at = _at(coefficients, c * (c - 1) // 2 + j, component, stride)
                slope = _tanh(tl.load(ps + at, inside, 0.0).to(tl.float32))
                mean += slope * tl.load(xs + j * x_at[1], inside, 0.0).to(tl.float32)
        log_scale = tl.load(ps + _at(log_scales, c, component, stride), inside, 0.0).to(tl.float32)
        u = _uniform(noise, noise_at, ids, first_sample, seed_low, seed_high, step, element, row, 1 + c, inside)
        u = _clamp(u, 1e-5, 0.99999)
        f, e = _split(u)
        g, h = _split(1.0 - u)
        logit = _join(f, e) - _join(g, h)
        drawn = mean + _exp(_clamp(log_scale, -7.0, 80.0), 0) * (logit * temperature)
        drawn = _clamp(drawn, -1.0, 1.0)
        if QUANTIZED:
            level = ((drawn + 1.0) * (last * 0.5) + 12582912.0) - 12582912.0
            drawn = pm.div(level * 2.0 - last, tl.zeros((PIXELS,), tl.float32) + last)
        tl.store(xs + c * x_at[1], drawn.to(x.dtype.element_ty), inside)  # read again by the same program
        tl.debug_barrier()


# --- launchers --------------------------------------------------------------------------------------------------------


def _ceil(a, b):
    return -(-a // b)


def _strides(t):
    """(sample, channel, pixel) of a dense [B, C, H, W]; images of one pixel are the pixels of one image."""
    channels, area = t.shape[1], t.shape[2] * t.shape[3]
    if area == 1:
        return 0, 1, channels
    return (channels * area, area, 1) if t.is_contiguous() else (channels * area, 1, channels)


def _grid(t):
    """Samples, pixels of each, and the programs that these take."""
    area = t.shape[2] * t.shape[3]
    samples, area = (1, t.shape[0]) if area == 1 else (t.shape[0], area)
    return samples, area, _ceil(area, PIXELS)


def _described(parameters, channels, options):
    """The arguments that say where parameters lie."""
    own = options.autoregressive
    mixtures = mixtures_of(parameters.shape[1], channels, own)
    kinds = places(options.layout, mixtures, channels, own)
    names = ("means", "log_scales", "coefficients")
    kinds = dict(zip(names, map(tuple, kinds), strict=True))
    return {"mixtures": mixtures, "p_at": _strides(parameters), "C": channels, "OWN": own, "PIXELS": PIXELS, **kinds}


def launch_logistic_mixture_nll(x, parameters, options, record):
    parameters = parameters.contiguous(memory_format=layout(parameters))
    x = x.contiguous(memory_format=layout(x))
    wide = torch.promote_types(parameters.dtype, torch.float32)
    nll = torch.empty((x.shape[0], *x.shape[2:]), dtype=wide, device=x.device)
    slope = torch.empty_like(parameters) if record else parameters.new_empty(0)
    if nll.numel():
        samples, area, chunks = _grid(x)
        described = _described(parameters, x.shape[1], options)
        joint = torch.empty((samples, described["mixtures"], area), dtype=wide, device=x.device) if record else None
        with torch.cuda.device_of(x):
            _nll[(samples * chunks,)](
                x, parameters, nll, slope if record else None, joint, chunks=chunks, area=area, x_at=_strides(x),
                last=float(options.last), OPENAI=options.form == "openai", SLOPE=record, **described,
            )  # fmt: skip
    return nll, slope


def launch_logistic_mixture_nll_backward(grad, slope, nll):
    slope = slope.contiguous(memory_format=layout(slope))
    out = torch.empty_like(slope)
    if out.numel():
        one = not any(grad.stride())
        channels, area = slope.shape[1], slope.shape[2] * slope.shape[3]
        block = 1024
        with torch.cuda.device_of(slope):
            _scale[(_ceil(out.numel(), block),)](
                slope, grad if one else grad.contiguous(), out, out.numel(), channels * area, area, channels,
                0 if one else 1, ROWS=_strides(slope)[1] == 1, BLOCK=block,
            )  # fmt: skip
    return out


def launch_logistic_mixture_sample(parameters, noise, ids, seed, first_sample, step, offset, options):
    parameters = parameters.contiguous(memory_format=layout(parameters))
    batch, _, height, width = parameters.shape
    wide = torch.promote_types(parameters.dtype, torch.float32)
    x = torch.empty((batch, options.channels, height, width), dtype=wide, device=parameters.device)
    place = _place(ids, 0 if noise is not None else seed, first_sample, step)
    if x.numel():
        samples, area, chunks = _grid(parameters)
        if noise is not None:
            noise = noise.movedim(1, -1).contiguous()
        with torch.cuda.device_of(parameters):
            _sample[(samples * chunks,)](
                parameters, noise, x=x, chunks=chunks, area=area,
                pixels=height * width, x_at=_strides(x), last=float(options.last), offset=offset,
                coldness=min(1 / options.temperature if options.temperature else float("inf"), 3e38),
                temperature=options.scale_temperature, QUANTIZED=options.quantized,
                **_described(parameters, options.channels, options), **place,
            )  # fmt: skip
    return x
