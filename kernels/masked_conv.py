"""Triton kernels for masked_conv2d and its backward op; reference: pygen/reference/masked_conv.py.

Matrix products over live taps: a program makes a tile of pixels x channels and walks over taps, and over the channels
of each. A tap's sum begins at zero and is then added where the tap reaches: fewer roundings in a row, and no weight
times 0 beside the image, which would be NaN of a NaN. For the same reason the tap (0, 0) under a channel mask is a sum
for each group of the channels that are summed over. The gradient of x is the same product, with taps reversed.
"""

import torch
import triton
import triton.language as tl

from .._lib import layout
from . import _math as pm

REACH = 2**30  # of 32-bit numbers of pixels: leaves room for a chunk past the last one
SPAN = 256  # pixels of a gradient's sum that begins at zero
PROGRAMS = 512  # for a gradient of weights, about: enough for any GPU, and the same bits on all

# Sizes that differ from call to call, or from layer to layer, and gain nothing by being compiled in.
SIZES = ["pixels", "height", "width", "rows", "columns", "summed", "channels", "groups", "chunk"]


# --- where elements lie -----------------------------------------------------------------------------------------------


@triton.jit
def _times(c, stride):
    return c.to(tl.int64) * stride


@triton.jit
def _places(m, height, width):
    """Sample, row and column of pixels that are counted through."""
    row = m // width
    return row // height, row % height, m % width


@triton.jit
def _at(t, strides, sample, row, column):
    """Pixels of a tensor [B, C, H, W], at its first channel."""
    return t + (_times(sample, strides[0]) + _times(row, strides[2]) + _times(column, strides[3]))


@triton.jit
def _tap(t, TAPS: tl.constexpr):
    """Number and offsets of the tap at place t. They are compiled in: a list in memory would have to get there."""
    index, dy, dx = t, t, t
    for j in tl.static_range(len(TAPS)):
        index = tl.where(t == j, TAPS[j][0], index)
        dy = tl.where(t == j, TAPS[j][1], dy)
        dx = tl.where(t == j, TAPS[j][2], dx)
    return index, dy, dx


@triton.jit
def _along(out, offset, size, STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Where a tap reads along an axis, and whether there is something."""
    if TRANSPOSED:
        fine = out + offset
        at = fine // STRIDE
        return at, (fine >= 0) & (fine % STRIDE == 0) & (at < size)
    else:
        at = out * STRIDE + offset
        return at, (at >= 0) & (at < size)


@triton.jit
def _read(
    x, strides, sample, row, column, dy, dx, rows, columns, STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Where a tap reads for pixels of the output, at the first channel, and whether that is in the image."""
    from_row, in_rows = _along(row, dy, rows, STRIDE, TRANSPOSED)
    from_column, in_columns = _along(column, dx, columns, STRIDE, TRANSPOSED)
    return _at(x, strides, sample, from_row, from_column), in_rows & in_columns


@triton.jit
def _group(c, channels, groups, INTERLEAVED: tl.constexpr):
    return c % groups if INTERLEAVED else c // (channels // groups)


# --- the convolution --------------------------------------------------------------------------------------------------


@triton.jit
def _product(
    x, weight, inside, live, x_c, w_c, size, step,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The product over `size` channels, each `step` after the other. x: pixels, weight: columns, at the first one."""
    part = tl.zeros((x.shape[0], weight.shape[0]), ACC)
    for k in range(0, size, BLOCK):
        i = k + tl.arange(0, BLOCK)
        at = _times(i, step)
        a = tl.load(x[:, None] + (at * x_c)[None, :], inside[:, None] & (i < size)[None, :], 0.0)
        b = tl.load(weight[None, :] + (at * w_c)[:, None], (i < size)[:, None] & live[None, :], 0.0)
        part = tl.dot(a.to(OPERAND), b.to(OPERAND), part, input_precision=PRECISION, out_dtype=ACC)
    return part


@triton.jit
def _activate(v, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where(v < 0, 0.0, v)
    elif ACTIVATION == "elu":
        return tl.where(v > 0, v, pm.expm1(-tl.abs(v)))
    else:
        return v


@triton.jit(do_not_specialize=SIZES)
def _convolve(
    x, weight, bias, condition, residual, y, pre,
    pixels, height, width, rows, columns,  # of the output, all and along its axes; of x
    summed, channels, groups,  # of x; of the output, of one half in front of a gate
    x_at, w_at, bias_at, condition_at, residual_at, y_at, pre_at,  # strides; the weight's: (tap, summed, channel)
    TAPS: tl.constexpr, CENTRE: tl.constexpr,  # (number, dy, dx); the number of (0, 0) if it is masked, and then only
    STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr, CODES: tl.constexpr,
    HALVES: tl.constexpr, HALVES_SUMMED: tl.constexpr,  # of channels that have groups each
    APART: tl.constexpr, SIGN: tl.constexpr, INTERLEAVED: tl.constexpr,  # SIGN (group - summed group) >= APART is live
    ACTIVATION: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    PART: tl.constexpr = BLOCK_N // HALVES
    m = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    sample, row, column = _places(m, height, width)
    lane = tl.arange(0, BLOCK_N)
    n = tl.program_id(1) * PART + lane % PART
    live = n < channels
    c = lane // PART * channels + n  # PART channels of each half

    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for t in range(len(TAPS)):
        index, dy, dx = _tap(t, TAPS)
        xs, inside = _read(x, x_at, sample, row, column, dy, dx, rows, columns, STRIDE, TRANSPOSED)
        inside &= m < pixels
        ws = weight + (_times(index, w_at[0]) + _times(c, w_at[2]))
        if CODES:
            code = tl.load(xs, inside, 0).to(tl.int64)
            known = (code >= 0) & (code < summed)
            at = ws[None, :] + (code * w_at[1])[:, None]
            part = tl.load(at, (inside & known)[:, None] & live[None, :], 0.0).to(ACC)
            part = tl.where(known[:, None], part, float("nan"))
        else:
            part = _product(xs, ws, inside, live, x_at[1], w_at[1], summed, 1, OPERAND, PRECISION, ACC, BLOCK_K)
        acc = tl.where(inside[:, None], acc + part, acc)
    if CENTRE is not None:
        xs, inside = _read(x, x_at, sample, row, column, 0, 0, rows, columns, STRIDE, TRANSPOSED)
        inside &= m < pixels
        ws = weight + (CENTRE * w_at[0] + _times(c, w_at[2]))
        half = summed // HALVES_SUMMED
        size = half // groups
        group = _group(n, channels, groups, INTERLEAVED)
        for s in range(groups * HALVES_SUMMED):
            first = (s // groups * half + s % groups if INTERLEAVED else s * size).to(tl.int64)
            part = _product(
                xs + first * x_at[1], ws + first * w_at[1], inside, live, x_at[1], w_at[1],
                size, groups if INTERLEAVED else 1, OPERAND, PRECISION, ACC, BLOCK_K,
            )  # fmt: skip
            reached = SIGN * (group - s % groups) >= APART
            acc = tl.where(inside[:, None] & reached[None, :], acc + part, acc)

    stored = (m < pixels)[:, None] & live[None, :]
    if bias is not None:
        at = _times(sample, bias_at[0])[:, None] + _times(c, bias_at[1])[None, :]
        acc += tl.load(bias + at, stored, 0.0).to(ACC)
    if condition is not None:
        at = _at(condition, condition_at, sample, row, column)[:, None] + _times(c, condition_at[1])[None, :]
        acc += tl.load(at, stored, 0.0).to(ACC)
    if pre is not None:
        at = _at(pre, pre_at, sample, row, column)[:, None] + _times(c, pre_at[1])[None, :]
        tl.store(at, acc.to(pre.dtype.element_ty), stored)
    if HALVES == 2:
        a, b = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, PART)), (0, 2, 1)))
        v = pm.gate(a, b, ACTIVATION == "glu")
    else:
        v = _activate(acc, ACTIVATION)
    n = tl.program_id(1) * PART + tl.arange(0, PART)
    stored = (m < pixels)[:, None] & (n < channels)[None, :]
    if residual is not None:
        at = _at(residual, residual_at, sample, row, column)[:, None] + _times(n, residual_at[1])[None, :]
        v += tl.load(at, stored, 0.0).to(ACC)
    at = _at(y, y_at, sample, row, column)[:, None] + _times(n, y_at[1])[None, :]
    tl.store(at, v.to(y.dtype.element_ty), stored)


# --- gradients --------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=SIZES)
def _activate_backward(
    grad_y, pre, grad,
    pixels, height, width, channels,  # of grad_y
    grad_y_at, pre_at, grad_at,
    ACTIVATION: tl.constexpr, INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient of the pre-activations, in the type that sums are in."""
    ACC: tl.constexpr = grad.dtype.element_ty
    m = tl.program_id(0).to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    sample, row, column = _places(m, height, width)
    inside = (m < pixels)[:, None] & (n < channels)[None, :]
    g = tl.load(_at(grad_y, grad_y_at, sample, row, column)[:, None] + _times(n, grad_y_at[1])[None, :], inside, 0.0)
    g = g.to(ACC)
    pre_rows, grad_rows = _at(pre, pre_at, sample, row, column), _at(grad, grad_at, sample, row, column)
    a = tl.load(pre_rows[:, None] + _times(n, pre_at[1])[None, :], inside, 0.0).to(ACC)
    at = grad_rows[:, None] + _times(n, grad_at[1])[None, :]
    if ACTIVATION == "gate" or ACTIVATION == "glu":
        b = tl.load(pre_rows[:, None] + _times(channels + n, pre_at[1])[None, :], inside, 0.0).to(ACC)
        g, grad_b = pm.gate_backward(g, a, b, ACTIVATION == "glu")
        tl.store(grad_rows[:, None] + _times(channels + n, grad_at[1])[None, :], grad_b, inside)
    elif ACTIVATION == "elu":
        power, exponent = pm.exp_parts(-tl.abs(a))
        g = tl.where(a <= 0, pm.times(g, power, exponent), g)
    else:
        g = tl.where(a <= 0, 0.0, g)
    tl.store(at, g, inside)


@triton.jit(do_not_specialize=SIZES)
def _weight_gradient(
    x, grad, parts,
    pixels, height, width, rows, columns,
    summed, channels, groups, chunk,  # channels of x; of grad, all; pixels of a program
    x_at, grad_at,
    TAPS: tl.constexpr, CENTRE: tl.constexpr, STRIDE: tl.constexpr, TRANSPOSED: tl.constexpr, CODES: tl.constexpr,
    HALVES: tl.constexpr, APART: tl.constexpr, INTERLEAVED: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr, SPAN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tap's sum over a chunk of pixels: parts [chunks, T, channels of x, channels of grad]."""
    ACC: tl.constexpr = parts.dtype.element_ty
    tiles = tl.cdiv(channels, BLOCK_N)
    i = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    o = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    index, dy, dx = _tap(tl.program_id(1), TAPS)
    first = tl.program_id(2).to(INDEX) * chunk
    last = tl.minimum(first + chunk, pixels)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for block in range(first, last, SPAN):
        part = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        for start in range(block, tl.minimum(block + SPAN, last), BLOCK_P):
            m = start + tl.arange(0, BLOCK_P)
            sample, row, column = _places(m, height, width)
            xs, inside = _read(x, x_at, sample, row, column, dy, dx, rows, columns, STRIDE, TRANSPOSED)
            inside &= m < last
            g_at = _at(grad, grad_at, sample, row, column)[:, None] + _times(o, grad_at[1])[None, :]
            g = tl.load(g_at, inside[:, None] & (o < channels)[None, :], 0.0)
            if CODES:  # no product with 0 or 1: a NaN is its own code's alone
                code = tl.where(inside, tl.load(xs, inside, 0).to(tl.int64), -1)
                here = i[None, :, None] == code[:, None, None]
                part += tl.sum(tl.where(here, g.to(ACC)[:, None, :], 0.0), 0)
            else:
                a = tl.load(xs[None, :] + _times(i, x_at[1])[:, None], inside[None, :] & (i < summed)[:, None], 0.0)
                part = tl.dot(a.to(OPERAND), g.to(OPERAND), part, input_precision=PRECISION, out_dtype=ACC)
        acc += part
    if CENTRE is not None:
        half = channels // HALVES
        apart = _group(o % half, half, groups, INTERLEAVED)[None, :] - _group(i, summed, groups, INTERLEAVED)[:, None]
        acc = tl.where((index == CENTRE) & (apart < APART), 0.0, acc)
    at = (tl.program_id(2).to(tl.int64) * len(TAPS) + index) * summed + i[:, None]
    tl.store(parts + at * channels + o[None, :], acc, (i < summed)[:, None] & (o < channels)[None, :])


# --- launchers --------------------------------------------------------------------------------------------------------

TYPES = {
    torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16,
}  # fmt: skip


def _ceil(a, b):
    return -(-a // b)


def _strides(t):
    """(sample, channel, row, column)."""
    if t is None:
        return None
    return t.stride() if t.dim() == 4 else (t.stride(0), 0, *t.stride()[1:])


def _wide(dtype):
    return torch.promote_types(dtype, torch.float32)


def _block(channels, most):
    return min(most, max(16, triton.next_power_of_2(channels)))


def _tile(dtype, rows, columns):
    """Of a product, which registers hold twice."""
    most = 32 if dtype == torch.float64 else 64
    return {"BLOCK_M": _block(rows, most), "BLOCK_N": _block(columns, most), "num_warps": most // 8}


def _depth(dtype):
    """How many terms of a product's sums are fetched at once."""
    return 32 if dtype.itemsize == 2 else 16


def _operands(a, b):
    """How values are multiplied: as they are; 16 bits by float32 in three products of TF32, which round none of the
    former and leave 21 bits of the latter."""
    return {"OPERAND": TYPES[torch.promote_types(a, b)], "PRECISION": "ieee" if a == b else "tf32x3"}


def _index(pixels):
    return tl.int64 if pixels >= REACH else tl.int32


def _described(x, out, options, backward):
    """The arguments that all products share. out: of the pixels that are counted through."""
    batch, _, height, width = out.shape
    masked = options.mask != "none" and (0, 0) in options.offsets
    sign = -options.dilation if backward else options.dilation
    return {
        "pixels": batch * height * width, "height": height, "width": width, "rows": x.shape[-2], "columns": x.shape[-1],
        "groups": options.groups, "x_at": _strides(x),
        "TAPS": tuple((t, sign * dy, sign * dx) for t, (dy, dx) in enumerate(options.offsets)),
        "CENTRE": options.offsets.index((0, 0)) if masked else None, "APART": 1 if options.mask == "A" else 0,
        "INTERLEAVED": options.interleaved, "STRIDE": options.stride, "TRANSPOSED": options.transposed != backward,
        "CODES": not x.is_floating_point(), "INDEX": _index(batch * height * width),
    }  # fmt: skip


def _launch_product(x, weight, bias, condition, residual, y, pre, options, backward=False):
    """The convolution. backward: of the gradient x by the transposed weights to the gradient y."""
    if y.numel() == 0:
        return
    described, tile = _described(x, y, options, backward), _tile(weight.dtype, 64, weight.shape[2])
    described["TAPS"] = tuple(tap for tap in described["TAPS"] if tap[0] != described["CENTRE"])
    halves = 2 if options.gated else 1
    mine, summed = (1, halves) if backward else (halves, 1)
    grid = _ceil(described["pixels"], tile["BLOCK_M"]), _ceil(y.shape[1], tile["BLOCK_N"] // mine)
    with torch.cuda.device_of(x):
        _convolve[grid](
            x, weight, bias, condition, residual, y, pre, summed=weight.shape[1], channels=y.shape[1],
            w_at=weight.stride(), bias_at=None if bias is None else (0, *bias.stride())[-2:],
            condition_at=_strides(condition), residual_at=_strides(residual), y_at=_strides(y), pre_at=_strides(pre),
            HALVES=mine, HALVES_SUMMED=summed, SIGN=-1 if backward else 1,
            ACTIVATION="none" if backward else options.activation, ACC=TYPES[_wide(weight.dtype)],
            BLOCK_K=_depth(weight.dtype),
            **described, **_operands(x.dtype if x.is_floating_point() else weight.dtype, weight.dtype), **tile,
        )  # fmt: skip


def launch_masked_conv2d(x, weight, bias, condition, residual, options):
    batch, channels, size = x.shape[0], weight.shape[2], options.output_size(x)

    def image(channels, fmt):
        return torch.empty((batch, channels, *size), dtype=weight.dtype, device=x.device, memory_format=fmt)

    y = image(channels // 2 if options.gated else channels, layout(x))
    pre = image(channels, torch.channels_last) if options.activates else None
    _launch_product(x, weight, bias, condition, residual, y, pre, options)
    return y, weight.new_empty(0) if pre is None else pre


def _grad_pre(grad_y, pre, options):
    """The gradient of the pre-activations: grad_y, or in float32 at least."""
    if pre is None:
        return grad_y
    fmt = torch.channels_last
    grad = torch.empty(pre.shape, dtype=_wide(pre.dtype), device=pre.device, memory_format=fmt)
    if grad.numel():
        batch, channels, height, width = grad_y.shape
        pixels, block = batch * height * width, _block(channels, 64)
        with torch.cuda.device_of(pre):
            _activate_backward[(_ceil(pixels, 1024 // block), _ceil(channels, block))](
                grad_y, pre, grad, pixels, height, width, channels, _strides(grad_y), _strides(pre), _strides(grad),
                ACTIVATION=options.activation, INDEX=_index(pixels), BLOCK_M=1024 // block, BLOCK_N=block,
            )  # fmt: skip
    return grad


def _grad_weight(grad, x, weight, options):
    count, summed, channels = weight.shape
    described, tile = _described(x, grad, options, False), _tile(weight.dtype, summed, channels)
    tiles = _ceil(summed, tile["BLOCK_M"]) * _ceil(channels, tile["BLOCK_N"])
    spans = _ceil(described["pixels"], SPAN)
    chunk = SPAN * max(1, min(spans, _ceil(spans * tiles * count, PROGRAMS)))
    chunks = _ceil(described["pixels"], chunk)
    parts = torch.empty((chunks, *weight.shape), dtype=_wide(weight.dtype), device=weight.device)
    if parts.numel():
        codes = described["CODES"]
        with torch.cuda.device_of(x):
            _weight_gradient[(tiles, count, chunks)](
                x, grad, parts, summed=summed, channels=channels, chunk=chunk, grad_at=_strides(grad),
                HALVES=2 if options.gated else 1, BLOCK_P=4 if codes else _depth(weight.dtype), SPAN=SPAN,
                **described, **_operands(grad.dtype, grad.dtype if codes else x.dtype), **tile,
            )  # fmt: skip
    return parts.sum(0, dtype=torch.float64).to(weight.dtype)


def launch_masked_conv2d_backward(
    grad_y, x, weight, pre, options, need_x, need_weight, need_bias, need_pre, bias_of_samples
):
    fmt, grads = layout(x), [weight.new_empty(0) for _ in range(4)]
    grad = _grad_pre(grad_y, pre, options)
    if need_x and x.is_floating_point():
        grads[0] = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=fmt)
        _launch_product(grad, weight.mT, None, None, None, grads[0], None, options, backward=True)
    if need_weight:
        grads[1] = _grad_weight(grad, x, weight, options)
    if need_bias:
        over = (2, 3) if bias_of_samples else (0, 2, 3)
        grads[2] = grad.sum(over, dtype=torch.float64).to(weight.dtype)
    if need_pre:
        grads[3] = grad.to(weight.dtype, copy=True).contiguous(memory_format=fmt)
    return tuple(grads)
