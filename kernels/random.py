"""Triton kernels of the random stream: the steps of pygen/reference/random.py, which explains them, and its bits.

Every launch disables fused multiply-adds, so that additions, multiplications and square roots round as on the CPU.
"""

import math

import torch
import triton
import triton.language as tl

from .._seed import seed_of
from . import _math as pm

COUNTERS = 256  # to a program
CHUNK = 1024  # categories that a program looks at together

# --- words ------------------------------------------------------------------------------------------------------------


@triton.jit
def _encrypt(x, y, z, w, seed_low, seed_high):
    """Philox4x32-10 of uint32 counter words."""
    k0, k1 = seed_low.to(tl.uint32, bitcast=True), seed_high.to(tl.uint32, bitcast=True)
    for _ in tl.static_range(10):
        high_a, low_a = tl.umulhi(x, tl.full((), 0xD2511F53, tl.uint32)), x * tl.full((), 0xD2511F53, tl.uint32)
        high_b, low_b = tl.umulhi(z, tl.full((), 0xCD9E8D57, tl.uint32)), z * tl.full((), 0xCD9E8D57, tl.uint32)
        x, y, z, w = high_b ^ y ^ k0, low_b, high_a ^ w ^ k1, low_a
        k0 += tl.full((), 0x9E3779B9, tl.uint32)
        k1 += tl.full((), 0xBB67AE85, tl.uint32)
    return x, y, z, w


@triton.jit
def _words(block, row, ids, first_sample, seed_low, seed_high, step, inside):
    """The four words of the counters `block` of the samples in these rows."""
    sample = row.to(tl.int64) + first_sample
    if ids is not None:
        sample = tl.load(ids + row, inside, 0)
    x = block.to(tl.uint32)
    y = tl.full(x.shape, 0, tl.uint32) + step.to(tl.uint32)
    z, w = (sample & 0xFFFFFFFF).to(tl.uint32), (sample >> 32 & 0xFFFFFFFF).to(tl.uint32)
    return _encrypt(x, y, z, w, seed_low, seed_high)


@triton.jit
def _word(element, row, ids, first_sample, seed_low, seed_high, step, inside):
    """One element's word, for kernels in which an element does not know its neighbours."""
    x, y, z, w = _words(element // 64 * 16 + element % 16, row, ids, first_sample, seed_low, seed_high, step, inside)
    k = element % 64 // 16
    return tl.where(k == 0, x, tl.where(k == 1, y, tl.where(k == 2, z, w)))


# --- functions of words -----------------------------------------------------------------------------------------------


@triton.jit
def _float(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _bits(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def _log1p(x):
    z = x * x
    p = x * 7.0376836292e-2 + -1.1514610310e-1
    p = p * x + 1.1676998740e-1
    p = p * x + -1.2420140846e-1
    p = p * x + 1.4249322787e-1
    p = p * x + -1.6668057665e-1
    p = p * x + 2.0000714765e-1
    p = p * x + -2.4999993993e-1
    p = p * x + 3.3333331174e-1
    return p * x * z - z * 0.5


@triton.jit
def _split(f):
    b = _bits(f) - 0x3F3504F3
    return _float((b & 0x7FFFFF) + 0x3F3504F3) - 1.0, (b >> 23).to(tl.float32)


@triton.jit
def _join(x, e):
    return x + (_log1p(x) + e * -2.12194440e-4) + e * 0.693359375


@triton.jit
def _exp(x, POWER: tl.constexpr):
    """2^POWER e^x, both within the exponents of normal numbers."""
    shifted = x * 1.44269504 + 12582912.0
    n = shifted - 12582912.0
    r = x - n * 0.693359375 - n * -2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    return (p * r * r + r + 1.0) * _float((_bits(shifted) - 0x4B400000 + (POWER + 127)) << 23)


@triton.jit
def _signed(w):
    """float32 of the bits as an int32."""
    return w.to(tl.int32, bitcast=True).to(tl.float32)


@triton.jit
def _complement(w):
    return w ^ tl.full((), 0xFFFFFFFF, tl.uint32)


@triton.jit
def _log_unit(w):
    x, e = _split(w.to(tl.float32) + 0.5)
    rest = (_signed(_complement(w)) + 0.5) * -2.3283064365386963e-10
    return _join(tl.where(e == 32.0, rest, x), e - 32.0)


@triton.jit
def _uniform(w):
    return _signed(w >> 8) * 5.9604644775390625e-8


@triton.jit
def _normal(a, b):
    r = pm.sqrt(_log_unit(a) * -2.0)
    quadrant = (b + tl.full((), 0x20000000, tl.uint32)) >> 30
    angle = _signed(b << 2) * 3.6572952e-10
    z = angle * angle
    s = z * -1.9515295891e-4 + 8.3321608736e-3
    s = (s * z + -1.6666654611e-1) * z * angle + angle
    c = z * 2.443315711809948e-5 + -1.388731625493765e-3
    c = (c * z + 4.166664568298827e-2) * z * z - z * 0.5 + 1.0
    odd = (quadrant & 1) == 1
    cosine, sine = tl.where(odd, s, c), tl.where(odd, c, s)
    cosine = tl.where(((quadrant + 1) & 2) == 2, -cosine, cosine)
    return r * cosine, r * tl.where((quadrant & 2) == 2, -sine, sine)


@triton.jit
def _logistic(w):
    upper = _signed(w) < 0.0
    h = tl.where(upper, _complement(w), w)
    f = _signed(h) + 0.5
    s = (_signed(h ^ 0x7FFFFFFF) + 0.5) * 4.656612873077393e-10
    x, e = _split(f)
    x = tl.where(e == 31.0, -s, x)
    near = s < 0.41421356
    rest = tl.where(near, s, f * -2.3283064365386963e-10)
    e = e - 32.0 + tl.where(near, 1.0, 0.0)
    y = (x - rest) + ((_log1p(x) - _log1p(rest)) + e * -2.12194440e-4) + e * 0.693359375
    return tl.where(upper, -y, y)


@triton.jit
def _gumbel(w):
    x, e = _split(-_log_unit(w))
    return -_join(x, e)


@triton.jit
def _values(x, y, z, w, KIND: tl.constexpr):
    if KIND == "uniform":
        return _uniform(x), _uniform(y), _uniform(z), _uniform(w)
    elif KIND == "normal":
        a, b = _normal(x, y)
        c, d = _normal(z, w)
        return a, b, c, d
    elif KIND == "logistic":
        return _logistic(x), _logistic(y), _logistic(z), _logistic(w)
    elif KIND == "gumbel":
        return _gumbel(x), _gumbel(y), _gumbel(z), _gumbel(w)
    else:
        return _signed_word(x), _signed_word(y), _signed_word(z), _signed_word(w)


@triton.jit
def _signed_word(w):
    return w.to(tl.int32, bitcast=True)


@triton.jit
def _put(out, value, element, offset, size, at, inside, KIND: tl.constexpr):
    """Stores the values of elements [offset, offset + size) in the type of `out`."""
    mine = inside & (element >= offset) & (element < offset + size)
    if KIND == "uniform":  # towards zero, so that it stays below 1
        if out.dtype.element_ty == tl.bfloat16:
            value = _float(_bits(value) >> 16 << 16)
        elif out.dtype.element_ty == tl.float16:
            value = _float(_bits(value) >> 13 << 13)
    tl.store(out + at + (element - offset), value.to(out.dtype.element_ty), mine)


# --- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["batch", "seed_low", "seed_high", "first_sample", "step"])
def _random(
    ids, out,
    batch, size, offset, first_block, blocks,  # samples; elements of one, and which; counters of one
    seed_low, seed_high, first_sample: tl.int64, step: tl.int64,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = i // blocks
    inside = row < batch
    block = first_block + i % blocks
    x, y, z, w = _words(block, row, ids, first_sample, seed_low, seed_high, step, inside)
    a, b, c, d = _values(x, y, z, w, KIND)
    element, at = block // 16 * 64 + block % 16, row * size
    _put(out, a, element, offset, size, at, inside, KIND)
    _put(out, b, element + 16, offset, size, at, inside, KIND)
    _put(out, c, element + 32, offset, size, at, inside, KIND)
    _put(out, d, element + 48, offset, size, at, inside, KIND)


@triton.jit(do_not_specialize=["numel", "seed_low", "seed_high", "first_sample", "step"])
def _bernoulli(
    p, ids, out, numel, size, offset, p_sample, p_step,
    seed_low, seed_high, first_sample: tl.int64, step: tl.int64,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, element, inside = i // size, i % size, i < numel
    word = _word(offset + element, row, ids, first_sample, seed_low, seed_high, step, inside)
    # float32 and narrower p times 2^32 and the word are exact in float64
    q = tl.load(p + row * p_sample + element * p_step, inside, 0.0).to(tl.float64)
    draw = tl.where(word.to(tl.float64) < q * 4294967296.0, 1.0, 0.0)
    draw = tl.where((q >= 0.0) & (q <= 1.0), draw, float("nan"))
    tl.store(out + i, draw.to(out.dtype.element_ty), inside)


@triton.jit
def _units(logits, k, categories, top):
    """round(2^30 e^(logit - top)) as int64, and whether a logit is none; 0 outside."""
    inside = k < categories
    x = tl.load(logits + k, inside, 0.0)
    if x.dtype != tl.float64:
        x = x.to(tl.float32)
    x = (x - top).to(tl.float32)
    bad = inside & ~(x <= 0.0)
    x = tl.where(x < -32.0, -32.0, x)
    units = (_exp(x, 30) + 0.5).to(tl.int32).to(tl.int64)
    return tl.where(inside & ~bad, units, 0), bad


@triton.jit(do_not_specialize=["seed_low", "seed_high", "first_sample", "step"])
def _categorical(
    logits, ids, out, size, offset, categories,
    seed_low, seed_high, first_sample: tl.int64, step: tl.int64,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """A program to a draw: integers, whose sums have no order."""
    i = tl.program_id(0).to(tl.int64)
    row, element = i // size, i % size
    # scalars as blocks of one
    one = tl.zeros((1,), tl.int64)
    word = _word(one + offset + element, one + row, ids, first_sample, seed_low, seed_high, step, one == 0)
    word = tl.sum(word.to(tl.int64), 0)
    at, lane = logits + i * categories, tl.arange(0, CHUNK)
    top = tl.full((), float("-inf"), tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32)
    for k in range(0, categories, CHUNK):
        x = tl.load(at + k + lane, k + lane < categories, float("-inf"))
        top = tl.maximum(top, tl.max(x.to(top.dtype), 0))
    total = tl.full((), 0, tl.int64)
    wrong = tl.full((), 0, tl.int32)
    for k in range(0, categories, CHUNK):
        units, bad = _units(at, k + lane, categories, top)
        total += tl.sum(units, 0)
        wrong |= tl.max(bad.to(tl.int32), 0)
    threshold = word * (total >> 32) + (word * (total & 0xFFFFFFFF) >> 32 & 0xFFFFFFFF)
    below = tl.full((), 0, tl.int64)
    category = tl.full((), 0, tl.int64)
    for k in range(0, categories, CHUNK):
        units, bad = _units(at, k + lane, categories, top)
        passed = (below + tl.cumsum(units, 0) <= threshold) & (k + lane < categories)
        category += tl.sum(passed.to(tl.int64), 0)
        below += tl.sum(units, 0)
    tl.store(out + i, tl.where(wrong != 0, -1, category))


@triton.jit(do_not_specialize=["numel", "seed_low", "seed_high", "first_sample", "step"])
def _dequantize(
    x, noise, ids, out, numel, size, offset, noise_step, levels,
    scale: tl.float64, shift: tl.float64, unit: tl.float32, drop,
    seed_low, seed_high, first_sample: tl.int64, step: tl.int64,
    BLOCK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, element, inside = i // size, i % size, i < numel
    level = tl.load(x + i, inside, 0).to(tl.int64)
    if noise is not None:
        u = tl.load(noise + i * noise_step, inside, 0.0).to(ACC)
    else:
        word = _word(offset + element, row, ids, first_sample, seed_low, seed_high, step, inside)
        u = (_signed(word >> drop.to(tl.uint32)) * unit).to(ACC)
    y = (level.to(ACC) + u) * tl.full((1,), scale, ACC) + tl.full((1,), shift, ACC)
    y = tl.where((level >= 0) & (level < levels), y, float("nan"))
    tl.store(out + i, y.to(out.dtype.element_ty), inside)


# --- launchers --------------------------------------------------------------------------------------------------------


def _ceil(a, b):
    return -(-a // b)


def _place(ids, seed, first_sample, step):
    """The kernels' arguments that say where in the stream."""
    seed = seed_of(None) if seed is None else seed
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    return {
        "ids": ids.contiguous() if len(ids) else None,
        "seed_low": low - (low >> 31 << 32),  # as int32
        "seed_high": high - (high >> 31 << 32),
        "first_sample": first_sample,
        "step": step,
        "enable_fp_fusion": False,
    }


def launch_random(ids, seed, first_sample, step, offset, size, kind, dtype):
    out = torch.empty(size, dtype=dtype, device=ids.device)
    place = _place(ids, seed, first_sample, step)
    n = math.prod(size[1:])
    if out.numel():
        if offset % 16 + n <= 16 and offset % 64 // 16 == 0:  # the first words of some counters
            first, blocks = offset // 64 * 16 + offset % 16, n
        else:
            first = offset // 64 * 16
            blocks = _ceil(offset + n, 64) * 16 - first
        with torch.cuda.device_of(out):
            _random[(_ceil(size[0] * blocks, COUNTERS),)](
                out=out, batch=size[0], size=n, offset=offset, first_block=first, blocks=blocks, KIND=kind,
                BLOCK=COUNTERS, **place,
            )  # fmt: skip
    return out


def launch_bernoulli(p, ids, seed, first_sample, step, offset):
    out = torch.empty(p.shape, dtype=p.dtype, device=p.device)
    place = _place(ids, seed, first_sample, step)
    if out.numel():
        n = math.prod(p.shape[1:])
        one = not any(p.stride()[1:])
        p = p if one else p.contiguous()
        with torch.cuda.device_of(p):
            _bernoulli[(_ceil(out.numel(), COUNTERS),)](
                p, out=out, numel=out.numel(), size=n, offset=offset, p_sample=p.stride(0) if one else n,
                p_step=0 if one else 1, BLOCK=COUNTERS, **place,
            )  # fmt: skip
    return out


def launch_categorical(logits, ids, seed, first_sample, step, offset):
    out = torch.empty(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    place = _place(ids, seed, first_sample, step)
    if out.numel():
        with torch.cuda.device_of(logits):
            _categorical[(out.numel(),)](
                logits.contiguous(), out=out, size=math.prod(out.shape[1:]), offset=offset,
                categories=logits.shape[-1], CHUNK=min(CHUNK, triton.next_power_of_2(logits.shape[-1])), **place,
            )  # fmt: skip
    return out


def launch_dequantize(x, noise, ids, seed, first_sample, step, offset, levels, scale, shift, dtype):
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    place = _place(ids, 0 if noise is not None else seed, first_sample, step)
    if out.numel():
        bits = max(0, 24 - (levels - 1).bit_length())
        one = noise is not None and not any(noise.stride())
        with torch.cuda.device_of(x):
            _dequantize[(_ceil(out.numel(), COUNTERS),)](
                x.contiguous(), noise=noise if one or noise is None else noise.contiguous(), out=out,
                numel=out.numel(), size=math.prod(x.shape[1:]), offset=offset, noise_step=0 if one else 1,
                levels=levels, scale=scale, shift=shift, unit=2.0**-bits if bits else 0.0,
                drop=32 - bits if bits else 31, BLOCK=COUNTERS, **place,
            )  # fmt: skip
    return out
