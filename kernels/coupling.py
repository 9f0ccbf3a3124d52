"""Triton kernels for affine_coupling and its backward.

NICE (arXiv 1410.8516), RealNVP (1605.08803) eq. 7-8, Glow (1807.03039) table 1; reference: pygen/reference/coupling.py.
Forward and inverse are `out = (in + tau) M` or `out = in M + tau`, with M = S or 1 / S and tau = t or -t. Gradients,
with g and l the upstream gradients of out and of the log-determinant, c = +1 or -1 the sign of log S in it::

    d in = g M      d tau = g M or g      d u = c (d log S / du) (g Z + l)      Z = out or in M

One pass over memory: a program walks over a block of samples x elements, in the order in which x lies in memory, and
writes the elements that pass along with those that change. S is kept as m 2^n (`_math.exp_parts`), so that products are
right wherever they are representable. Sums have a fixed order: no atomics, the same bits from run to run.
"""

import functools
import math
import operator

import torch
import triton
import triton.language as tl

from .._lib import layout
from . import _math as pm

# --- maths ------------------------------------------------------------------------------------------------------------


@triton.jit
def _squash(s, width_inv, SQUASH: tl.constexpr):
    """h(s / width) and its derivative with respect to s / width."""
    v = s * width_inv
    if SQUASH == "tanh":
        h = pm.tanh(v)
        return h, 1.0 - h * h
    elif SQUASH == "atan":
        return pm.atan(v), pm.div(1.0, 1.0 + v * v)
    elif SQUASH == "softsign":
        r = pm.div(1.0, 1.0 + tl.abs(v))
        return v * r, r * r
    else:
        return v, tl.full(v.shape, 1.0, v.dtype)


@triton.jit
def _scale(u, eps, max_scale, log_max, ACTIVATION: tl.constexpr, EPS: tl.constexpr, MAX: tl.constexpr):
    """S = min(f(u) + eps, max_scale) as m 2^n, log S, and d log S / du."""
    one = tl.full(u.shape, 1.0, u.dtype)
    if ACTIVATION == "exp":
        m, n = pm.exp_parts(u)
        log_s = u
        slope = one
    else:
        z_m, z_n = pm.exp_parts(-tl.abs(u))
        z = pm.scale2(z_m, z_n)  # e^-|u|
        low = u < 0
        r = pm.div(one, 1.0 + z)
        if ACTIVATION == "sigmoid":
            m = tl.where(low, z_m, one) * r
            n = tl.where(low, z_n, 0)
            log_s = tl.minimum(u, 0.0) - pm.log1p(z)
            slope = tl.where(low, one, z) * r
        else:
            tail = u < -30.0  # softplus(u) = e^u (1 - e^u / 2 + ...), whose log needs no e^u
            soft = tl.maximum(u, 0.0) + pm.log1p(z)
            m = tl.where(tail, z_m * (1.0 - 0.5 * z), soft)
            n = tl.where(tail, z_n, 0)
            log_s = tl.where(tail, u - 0.5 * z, pm.log(soft))
            slope = tl.where(tail, 1.0 - 0.5 * z, pm.div(tl.where(low, z, one) * r, soft))
    if EPS:
        large = n > 0
        f = tl.where(large, m, pm.scale2(m, n))
        n = tl.where(large, n, 0)
        m = f + pm.scale2(one * eps, -n)
        log_s = pm.log(m) + n.to(u.dtype) * 0.6931471805599453
        slope = slope * pm.div(f, m)
    if MAX:
        above = pm.scale2(m, n) > max_scale
        m = tl.where(above, one * max_scale, m)
        n = tl.where(above, 0, n)
        log_s = tl.where(above, one * log_max, log_s)
        slope = tl.where(above, 0.0, slope)
    return m, n, log_s, slope


@triton.jit
def _apply(v, m, n, INVERSE: tl.constexpr):
    """v M."""
    if INVERSE:
        return pm.over(v, m, n)
    else:
        return pm.times(v, m, n)


# --- where things lie -------------------------------------------------------------------------------------------------


@triton.jit
def _locate(e, size, position, first, count, inner, sites, folds, CHANNELS_LAST: tl.constexpr, PARITY: tl.constexpr):
    """Of the elements e of a sample, in x's order: the channel j and site p of their parameters, whether they have any,
    and whether they change (on a checkerboard only every second site does)."""
    inside = e < size
    if position is not None:
        if CHANNELS_LAST:
            c, p = e % inner, e // inner
        else:
            c, p = e // inner, e % inner
        j = tl.load(position + c, inside, -1).to(e.dtype)
        owned = inside & (j >= 0)
    elif CHANNELS_LAST:  # first, count: channels
        j, p = e % inner - first, e // inner
        owned = inside & (j >= 0) & (j < count)
    else:  # first, count: elements
        k = e - first
        j, p = k // inner, k % inner
        owned = inside & (k >= 0) & (k < count)
    changed = owned
    if PARITY is not None:
        site = p if CHANNELS_LAST else e % sites
        total = site
        if folds is not None:
            for k in tl.static_range(len(folds)):
                total += site // folds[k]
        changed = owned & (total % 2 == PARITY)
    return j, p, owned, changed


@triton.jit
def _touches(begin, BLOCK: tl.constexpr, position, first, count, CHANNELS_LAST: tl.constexpr):
    """Whether any of a block of elements may change."""
    if CHANNELS_LAST or position is not None:
        return True
    else:
        return (begin < first + count) & (begin + BLOCK > first)


@triton.jit
def _is_bad(position, size, inner, CHANNELS_LAST: tl.constexpr):
    """Whether the indices were no distinct channels, which makes every output NaN."""
    if position is None:
        return False
    elif CHANNELS_LAST:
        return tl.load(position + inner) != 0
    else:
        return tl.load(position + size // inner) != 0


@triton.jit
def _invert_index(index, position, channels, count, BLOCK: tl.constexpr):
    """position[c] = j where index[j] = c, else -1. One program.

    position[channels] = 1 if the indices are not distinct channels; then position is some injective map, so that every
    output is written, and the caller makes all of them NaN.
    """
    lane = tl.arange(0, BLOCK)
    for k in range(0, channels, BLOCK):
        tl.store(position + k + lane, tl.full((BLOCK,), -1, tl.int32), k + lane < channels)
    tl.debug_barrier()
    bad = tl.zeros((BLOCK,), tl.int32)
    for k in range(0, count, BLOCK):
        j = k + lane
        c = tl.load(index + j, j < count, 0)
        inside = (c >= 0) & (c < channels)
        bad |= ((j < count) & ~inside).to(tl.int32)
        tl.store(position + c, j, (j < count) & inside)
    tl.debug_barrier()
    for k in range(0, count, BLOCK):
        j = k + lane
        c = tl.load(index + j, j < count, 0)
        mine = (j < count) & (c >= 0) & (c < channels)
        bad |= (mine & (tl.load(position + c, mine, -1) != j)).to(tl.int32)
    any_bad = tl.max(bad, 0)
    tl.debug_barrier()
    if any_bad != 0:
        for k in range(0, channels, BLOCK):
            c = k + lane
            tl.store(position + c, tl.where(c < count, c, -1), c < channels)
    tl.store(position + channels, any_bad)


@triton.jit
def _numbers(offset, eps, max_scale, log_max, gain_value, width_inv, tau, DTYPE: tl.constexpr):
    """The options that are numbers, passed in float64, in the type of the arithmetic: [1, 1] each."""
    return (
        tl.full((1, 1), offset, DTYPE),
        tl.full((1, 1), eps, DTYPE),
        tl.full((1, 1), max_scale, DTYPE),
        tl.full((1, 1), log_max, DTYPE),
        tl.full((1, 1), gain_value, DTYPE),
        tl.full((1, 1), width_inv, DTYPE),
        tl.full((1, 1), tau, DTYPE),
    )


# --- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["batch", "chunks"])
def _forward(
    x, raw, gain, position, running, y, logdet,
    batch, size, chunks,  # samples; elements of one; programs to one
    x_b, raw_b, raw_c, raw_p, s_at, t_at, gain_c, running_b,  # strides and offsets
    first, count, inner, sites, folds,  # see _locate
    offset: tl.float64, eps: tl.float64, max_scale: tl.float64, log_max: tl.float64,
    gain_value: tl.float64, width_inv: tl.float64, tau: tl.float64,
    ACTIVATION: tl.constexpr, SQUASH: tl.constexpr, EPS: tl.constexpr, MAX: tl.constexpr,
    INVERSE: tl.constexpr, MULTIPLY_LAST: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, PARITY: tl.constexpr, OFFSET: tl.constexpr,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,  # ROWS samples x CHUNK elements to a program
):  # fmt: skip
    """y and, to logdet[batch, chunks], the sum of +-log S over the elements of each program.

    raw: the op's params, a name that Triton's own launcher takes.
    """
    ACC: tl.constexpr = logdet.dtype.element_ty
    offset, eps, max_scale, log_max, gain_value, width_inv, tau = _numbers(
        offset, eps, max_scale, log_max, gain_value, width_inv, tau, ACC
    )
    pid = tl.program_id(0)
    part = pid % chunks
    rows = (pid // chunks).to(OFFSET) * ROWS + tl.arange(0, ROWS)
    b = rows[:, None]  # [ROWS, 1]
    bad = _is_bad(position, size, inner, CHANNELS_LAST)

    total = tl.zeros((ROWS, BLOCK), ACC)
    for start in range(0, CHUNK, BLOCK):
        begin = part.to(OFFSET) * CHUNK + start
        e = begin + tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
        inside = (b < batch) & (e < size)
        v = tl.load(x + b * x_b + e, inside, 0.0).to(ACC)
        v = tl.where(bad, float("nan"), v)
        if _touches(begin, BLOCK, position, first, count, CHANNELS_LAST):
            j, p, owned, changed = _locate(e, size, position, first, count, inner, sites, folds, CHANNELS_LAST, PARITY)
            at = b * raw_b + (j * raw_c + p * raw_p)
            here = (b < batch) & owned
            t = tau * tl.load(raw + t_at + at, here, 0.0).to(ACC)
            if ACTIVATION == "additive":
                out = v + t
            else:
                s = tl.load(raw + s_at + at, here, 0.0).to(ACC)
                h, _ = _squash(s, width_inv, SQUASH)
                k = gain_value
                if gain is not None:
                    k = tl.load(gain + j * gain_c, owned, 0.0)
                m, n, log_s, _ = _scale(k * h + offset, eps, max_scale, log_max, ACTIVATION, EPS, MAX)
                out = _apply(v + t, m, n, INVERSE) if MULTIPLY_LAST else _apply(v, m, n, INVERSE) + t
                total += tl.where((b < batch) & changed, log_s, 0.0)
            v = tl.where(changed, out, v)
        tl.store(y + b * size + e, v.to(y.dtype.element_ty), inside)

    result = tl.where(bad, float("nan"), tl.sum(total, 1))  # [ROWS]
    if INVERSE:
        result = -result
    if running is not None:
        result += tl.load(running + rows.to(tl.int64) * running_b, rows < batch, 0.0)
    tl.store(logdet + rows.to(tl.int64) * chunks + part, result, rows < batch)


@triton.jit(do_not_specialize=["chunks"])
def _add_up(parts, running, logdet, chunks, running_b, BLOCK: tl.constexpr):
    """logdet[b] = running[b] + the sum of parts[b, :]."""
    b = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), logdet.dtype.element_ty)
    for k in range(0, chunks, BLOCK):
        i = k + tl.arange(0, BLOCK)
        total += tl.load(parts + b * chunks + i, i < chunks, 0.0)
    result = tl.sum(total, 0)
    if running is not None:
        result += tl.load(running + b * running_b)
    tl.store(logdet + b, result)


@triton.jit(do_not_specialize=["batch", "chunks"])
def _backward(
    grad_y, grad_logdet, saved, raw, gain, position, grad_x, grad_params, grad_gain,  # outputs not asked for: None
    batch, size, chunks,  # samples; elements of one; programs to one
    grad_b, grad_e, logdet_b, saved_b, raw_b, raw_c, raw_p, s_at, t_at, gain_c,  # strides and offsets
    out_b, out_c, out_p, out_s, out_t, parts_b, parts_c, parts_p,
    first, count, inner, sites, folds,  # see _locate
    offset: tl.float64, eps: tl.float64, max_scale: tl.float64, log_max: tl.float64,
    gain_value: tl.float64, width_inv: tl.float64, tau: tl.float64,
    ACTIVATION: tl.constexpr, SQUASH: tl.constexpr, EPS: tl.constexpr, MAX: tl.constexpr,
    INVERSE: tl.constexpr, MULTIPLY_LAST: tl.constexpr, RECOVER: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, PARITY: tl.constexpr, OFFSET: tl.constexpr,
    STEPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,  # samples to a program: STEPS x ROWS
):  # fmt: skip
    """Gradients of x and params and, to grad_gain[groups, C', sites], that of a gain per element, summed over the
    samples of each program.

    saved: out if multiplication comes last or RECOVER (in M = out - tau), else in; None for an additive coupling.
    """
    ACC: tl.constexpr = grad_logdet.dtype.element_ty
    offset, eps, max_scale, log_max, gain_value, width_inv, tau = _numbers(
        offset, eps, max_scale, log_max, gain_value, width_inv, tau, ACC
    )
    pid = tl.program_id(0)
    group = (pid // chunks).to(OFFSET)
    begin = (pid % chunks).to(OFFSET) * BLOCK
    e = begin + tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    j, p, owned, changed = _locate(e, size, position, first, count, inner, sites, folds, CHANNELS_LAST, PARITY)
    touched = _touches(begin, BLOCK, position, first, count, CHANNELS_LAST)
    bad = _is_bad(position, size, inner, CHANNELS_LAST)

    total = tl.zeros((ROWS, BLOCK), ACC)
    for step in range(0, STEPS):
        rows = (group * STEPS + step) * ROWS + tl.arange(0, ROWS)
        b = rows[:, None]  # [ROWS, 1]
        inside = (b < batch) & (e < size)
        g = tl.load(grad_y + b * grad_b + e * grad_e, inside, 0.0).to(ACC)
        g = tl.where(bad, float("nan"), g)
        grad_in = g
        if touched:
            here = (b < batch) & owned
            at = b * raw_b + (j * raw_c + p * raw_p)
            to = b * out_b + (j * out_c + p * out_p)
            grad_tau = g
            if ACTIVATION != "additive":
                s = tl.load(raw + s_at + at, here, 0.0).to(ACC)
                h, slope_h = _squash(s, width_inv, SQUASH)
                k = gain_value
                if gain is not None:
                    k = tl.load(gain + j * gain_c, owned, 0.0)
                m, n, _, slope = _scale(k * h + offset, eps, max_scale, log_max, ACTIVATION, EPS, MAX)
                grad_in = tl.where(changed, _apply(g, m, n, INVERSE), g)
                if MULTIPLY_LAST:
                    grad_tau = grad_in
                if (grad_params is not None) or (grad_gain is not None):
                    z = tl.load(saved + b * saved_b + e, here, 0.0).to(ACC)
                    if RECOVER:
                        z = z - tau * tl.load(raw + t_at + at, here, 0.0).to(ACC)
                    elif not MULTIPLY_LAST:
                        z = _apply(z, m, n, INVERSE)
                    grad_log = tl.load(grad_logdet + b.to(tl.int64) * logdet_b, b < batch, 0.0)
                    grad_u = slope * (g * z + grad_log)
                    if INVERSE:
                        grad_u = -grad_u
                    if grad_gain is not None:
                        total += tl.where(here & changed, grad_u * h, 0.0)
                    if grad_params is not None:
                        grad_s = tl.where(changed, grad_u * k * slope_h * width_inv, 0.0)
                        tl.store(grad_params + out_s + to, grad_s.to(grad_params.dtype.element_ty), here)
            if grad_params is not None:
                grad_t = tau * tl.where(changed, grad_tau, 0.0)
                tl.store(grad_params + out_t + to, grad_t.to(grad_params.dtype.element_ty), here)
        if grad_x is not None:
            tl.store(grad_x + b * size + e, grad_in.to(grad_x.dtype.element_ty), inside)
    if grad_gain is not None:
        to = grad_gain + group * parts_b + (j * parts_c + p * parts_p)
        tl.store(to, tl.sum(total, 0)[None, :], owned)


# --- launchers: the ops' arguments, in the order of their schemas -----------------------------------------------------

TILE = 1024  # elements that a program handles at once, 4 a thread: 16 bytes of float32, and few registers
LONGEST = 4 * TILE  # a sample up to this long is summed by one program; a longer one takes a second kernel
PROGRAMS = 2048  # enough of them to fill a GPU
REACH = 2**31 - LONGEST  # of 32-bit offsets: leaves room for the lanes past the last element


def _dense(t, fmt):
    """t with every sample dense in the memory format: itself where it is so (the batch stride is free), else a copy."""
    expected = 1
    for d in (1, 3, 2) if fmt == torch.channels_last else range(t.dim() - 1, 0, -1):
        if t.shape[d] != 1 and t.stride(d) != expected:
            return t.contiguous(memory_format=fmt)
        expected *= t.shape[d]
    return t


def _site_stride(shape, stride):
    """The one stride that walks over all sites (dimensions 2 on), or None where there is none."""
    result, expected = 1, None
    for d in range(len(shape) - 1, 1, -1):
        if shape[d] == 1:
            continue
        if expected is None:
            result = stride[d]
        elif stride[d] != expected:
            return None
        expected = stride[d] * shape[d]
    return result


def _folds(shape):
    """The numbers d for which i + sum of i // d has the parity of the sum of i's coordinates in the shape; None: none.

    i's coordinate in a dimension of size n, below which lie s elements, is i // s - n (i // (n s)); for odd n the
    parity of the second term cancels against that of the first term of the dimension before.
    """
    folds = tuple(math.prod(shape[k:]) for k in range(1, len(shape)) if shape[k] % 2 == 0)
    return folds or None


class _Plan:
    """What shapes, strides and options say of a launch: which elements change, where the parameters of each lie, and
    how programs share the work. To the kernels a tensor has the shape [B, C, sites].

    shape: of x. strides: of the tensors of that shape. raw_shape, raw_stride: of params. gains: how many there are.
    """

    def __init__(self, shape, strides, raw_shape, raw_stride, gains, indexed, channels_last, options):
        self.batch, channels = shape[:2]
        self.sites = sites = math.prod(shape[2:])
        self.size = size = channels * sites
        self.changed = n = raw_shape[1] if options.additive else raw_shape[1] // 2
        self.block = min(TILE, triton.next_power_of_2(max(1, size)))
        self.blocks = _ceil(max(1, size), self.block)  # that cover a sample
        self.rows = TILE // self.block  # samples to a program: not by the batch size, on which no result may depend

        pairs = options.interleaved and not options.additive

        def walk(step, site):
            """Strides of raw scale and shift over channels and sites, and where either begins."""
            other = step if pairs else n * step
            begin = (0, 0) if options.additive else (other, 0) if options.order == "ts" else (0, other)
            return (2 * step if pairs else step, site, *begin)

        raw_c, raw_p, s_at, t_at = walk(raw_stride[1], _site_stride(raw_shape, raw_stride))
        out_c, out_p, out_s, out_t = walk(1, raw_shape[1]) if channels_last else walk(sites, 1)
        parts_c, parts_p = (1, n) if channels_last else (sites, 1)
        inner = channels if channels_last else sites
        if (raw_c, raw_p) == (sites, 1) and not (pairs or channels_last or indexed or gains > 1):
            # Parameters lie as x does: a sample is one row of elements, no division has to tell channels from sites.
            inner = raw_c = out_c = parts_c = 1
        reach = [sum(map(operator.mul, *pair)) for pair in ((raw_shape, raw_stride), *((shape, s) for s in strides))]
        wide = max(*reach, self.batch * max(size, raw_shape[1] * sites)) >= REACH

        unit = 1 if channels_last else sites
        first = {"range": options.start, "second": channels - n}.get(options.part, 0)
        self.arguments = {
            "batch": self.batch,
            "size": size,
            "raw_b": raw_stride[0],
            "raw_c": raw_c,
            "raw_p": raw_p,
            "s_at": s_at,
            "t_at": t_at,
            "gain_c": int(gains > 1),
            "first": unit * first,
            "count": unit * n,
            "inner": max(1, inner),
            "sites": max(1, sites if len(shape) > 2 else channels),  # what a checkerboard is laid over
            "folds": _folds(shape[2:]) if options.part in ("even", "odd") else None,
            "offset": options.offset,
            "eps": options.eps,
            "max_scale": options.max_scale,
            "log_max": math.log(options.max_scale),
            "gain_value": options.gain,
            "width_inv": 1.0 / options.width,
            "tau": -options.shift_scale if options.inverse else options.shift_scale,
            "ACTIVATION": options.activation,
            "SQUASH": options.squash,
            "EPS": options.eps > 0,
            "MAX": not math.isinf(options.max_scale),
            "INVERSE": options.inverse,
            "MULTIPLY_LAST": options.multiply_last,
            "CHANNELS_LAST": channels_last,
            "PARITY": {"even": 0, "odd": 1}.get(options.part),
            "OFFSET": tl.int64 if wide else tl.int32,
            "ROWS": self.rows,
            "BLOCK": self.block,
            "num_warps": 8,
        }
        self.outputs = {  # of the backward, which are new and dense
            "out_b": raw_shape[1] * sites,
            "out_c": out_c,
            "out_p": out_p,
            "out_s": out_s,
            "out_t": out_t,
            "parts_c": parts_c,
            "parts_p": parts_p,
            "RECOVER": options.memory_efficient and not options.multiply_last,
        }


_plan = functools.lru_cache(maxsize=4096)(_Plan)  # a plan costs more than a launch


def _ceil(a, b):
    return -(-a // b)


def _prepare(shape, tensors, raw, gain, index, options, fmt):
    """The plan for a shape, and the kernels' arguments that forward and backward share. tensors: of that shape."""
    channels_last = fmt == torch.channels_last
    if _site_stride(raw.shape, raw.stride()) is None:
        raw = raw.contiguous(memory_format=fmt)
    gains = 0 if gain is None else gain.numel()
    strides = tuple(t.stride() for t in tensors)
    plan = _plan(shape, strides, raw.shape, raw.stride(), gains, index is not None, channels_last, options)
    position = None
    if index is not None:
        position = index.new_empty(shape[1] + 1, dtype=torch.int32)
        _invert_index[(1,)](index.contiguous(), position, shape[1], index.shape[0], BLOCK=1024)
    gain = None if gain is None else gain.reshape(-1).contiguous()
    return plan, {"raw": raw, "gain": gain, "position": position} | plan.arguments


def launch_affine_coupling(x, params, gain, index, logdet, options):
    fmt = layout(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=fmt)
    total = x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
    if x.shape[0] == 0:
        return y, total
    with torch.cuda.device_of(x):
        x = _dense(x, fmt)
        plan, arguments = _prepare(x.shape, (x,), params, gain, index, options, fmt)
        one = plan.size <= LONGEST
        chunks, chunk = (1, plan.blocks * plan.block) if one else (plan.blocks, plan.block)
        parts = total if one else total.new_empty(plan.batch, chunks)
        running_b = 0 if logdet is None else logdet.stride(0)
        _forward[(_ceil(plan.batch, plan.rows) * chunks,)](
            x, y=y, logdet=parts, running=logdet if one else None, x_b=x.stride(0), running_b=running_b, chunks=chunks,
            CHUNK=chunk, **arguments,
        )  # fmt: skip
        if not one:
            _add_up[(plan.batch,)](parts, logdet, total, chunks, running_b, BLOCK=1024)
    return y, total


def launch_affine_coupling_backward(
    grad_y, grad_logdet, saved, params, gain, index, options, need_x, need_params, need_gain
):
    fmt = layout(grad_y if saved is None else saved)
    grad_x, grad_params = (
        torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=fmt) if needed else t.new_empty(0)
        for t, needed in ((grad_y, need_x), (params, need_params))
    )
    need_gain = need_gain and gain is not None
    grad_gain = grad_logdet.new_zeros(gain.shape if need_gain else 0)
    if grad_y.numel() == 0:
        return grad_x, grad_params, grad_gain
    with torch.cuda.device_of(grad_y):
        one_number = not any(grad_y.stride())  # the gradient of a sum
        grad_y = grad_y if one_number else _dense(grad_y, fmt)
        saved = None if saved is None else _dense(saved, fmt)
        read = (grad_y,) if saved is None else (grad_y, saved)
        plan, arguments = _prepare(grad_y.shape, read, params, gain, index, options, fmt)
        # The gain's gradient: each program adds up several samples, element by element; torch does the rest.
        spare = plan.batch * plan.blocks // (plan.rows * PROGRAMS)
        steps = min(16, triton.next_power_of_2(max(1, spare))) if need_gain else 1
        groups = _ceil(plan.batch, plan.rows * steps)
        parts = None
        if need_gain:  # [groups, C', sites]
            n, sites = plan.changed, plan.sites
            empty = grad_gain.new_empty
            parts = empty(groups, sites, n).mT if fmt == torch.channels_last else empty(groups, n, sites)
        _backward[(groups * plan.blocks,)](
            grad_y, grad_logdet, saved, grad_x=grad_x if need_x else None,
            grad_params=grad_params if need_params else None, grad_gain=parts,
            grad_b=grad_y.stride(0), grad_e=int(not one_number), logdet_b=grad_logdet.stride(0),
            saved_b=0 if saved is None else saved.stride(0), parts_b=plan.changed * plan.sites, chunks=plan.blocks,
            STEPS=steps, **plan.outputs, **arguments,
        )  # fmt: skip
        if need_gain:
            grad_gain = (parts.sum() if gain.numel() == 1 else parts.sum((0, 2))).reshape(gain.shape)
    return grad_x, grad_params, grad_gain
