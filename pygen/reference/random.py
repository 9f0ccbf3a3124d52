"""The random stream in plain PyTorch: Philox4x32-10 and what is made of its words.

Integers, and float32 arithmetic made of additions, multiplications and square roots alone, each rounded as IEEE 754
says: every implementation that follows these steps, in this order and without fused operations, gives the same bits.
csrc/common/philox.h and kernels/random.py do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
TILE, LANES = 64, 16  # elements that 16 counters give, word by word: element = 64 tile + 16 word + lane


# --- words -----------------------------------------------------------------------------------------------------------


def philox(counter: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC'11, section 4.3): four words from four words, as int64 in
    [0, 2^32), which broadcast; the key is the seed."""
    x, y, z, w = counter
    k0, k1 = seed & _MASK, seed >> 32 & _MASK
    for _ in range(10):
        a, b = 0xD2511F53 * x, 0xCD9E8D57 * z  # modulo 2^64
        x, y, z, w = b >> 32 & _MASK ^ y ^ k0, b & _MASK, a >> 32 & _MASK ^ w ^ k1, a & _MASK
        k0, k1 = k0 + 0x9E3779B9 & _MASK, k1 + 0xBB67AE85 & _MASK
    return [x, y, z, w]


def tiles(ids: Tensor, seed: int, step: int, offset: int, n: int) -> Tensor:
    """The words of the tiles that hold the elements offset, ..., offset + n - 1 of these samples: [B, tiles, 4, 16].

    The counter of lane l of tile t is (16 t + l, step, low and high word of the sample's id)."""
    first, last = offset // TILE, -(-(offset + n) // TILE)
    block = torch.arange(LANES * first, LANES * last, device=ids.device)
    sample = ids[:, None]
    words = philox((block, torch.full_like(block, step), sample & _MASK, sample >> 32 & _MASK), seed)
    return torch.stack([w.expand(len(ids), -1).unflatten(1, (-1, LANES)) for w in words], 2)


def elements(tiled: Tensor, offset: int, size: Sequence[int]) -> Tensor:
    """The elements from `offset` on out of [B, tiles, 4, 16], in the shape `size`."""
    n = math.prod(size[1:])
    return tiled.flatten(1)[:, offset % TILE : offset % TILE + n].reshape(*size).contiguous()


# --- functions of words ----------------------------------------------------------------------------------------------


def _float_bits(bits: Tensor) -> Tensor:
    """float32 from its bits, given as int64."""
    return bits.to(torch.int32).view(torch.float32)


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.int32).long()


def _log1p(x: Tensor) -> Tensor:
    """log(1 + x) - x for 1 + x within [sqrt(1/2), sqrt(2)], after Cephes' logf."""
    z = x * x
    p = torch.full_like(x, 7.0376836292e-2)
    for c in (-1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1,
              -2.4999993993e-1, 3.3333331174e-1):  # fmt: skip
        p = p * x + c
    return p * x * z - 0.5 * z


def _split(f: Tensor) -> tuple[Tensor, Tensor]:
    """f = 2^e (1 + x) with 1 + x within [sqrt(1/2), sqrt(2)]: x and e, for normal f > 0."""
    shifted = _bits(f) - 0x3F3504F3
    return _float_bits((shifted & 0x7FFFFF) + 0x3F3504F3) - 1.0, (shifted >> 23).float()


def _split_unit(w: Tensor) -> tuple[Tensor, Tensor]:
    """`_split` of u = (w + 1/2) / 2^32, accurate where u is near 1: from 1 - u, which the complement of w gives."""
    x, e = _split(w.float() + 0.5)
    rest = (w ^ _MASK).float() + 0.5
    return torch.where(e == 32, rest * -(2.0**-32), x), e - 32.0


def _join(x: Tensor, e: Tensor) -> Tensor:
    """log(2^e (1 + x)), with log 2 in two parts whose first times e is exact."""
    return x + (_log1p(x) + e * -2.12194440e-4) + e * 0.693359375


def _cos_sin(w: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi w / 2^32: quadrant and angle are integers."""
    quadrant = (w + 0x20000000 & _MASK) >> 30
    angle = (w << 2).to(torch.int32).float() * 3.6572952e-10  # pi/2 / 2^32; within [-pi/4, pi/4]
    z = angle * angle
    s = -1.9515295891e-4 * z + 8.3321608736e-3
    s = (s * z + -1.6666654611e-1) * z * angle + angle
    c = 2.443315711809948e-5 * z + -1.388731625493765e-3
    c = (c * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
    odd = (quadrant & 1).bool()
    cosine, sine = torch.where(odd, s, c), torch.where(odd, c, s)
    return torch.where((quadrant + 1 & 2).bool(), -cosine, cosine), torch.where((quadrant & 2).bool(), -sine, sine)


def _exp_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """e^x = m 2^n with an integer n, after Cephes' expf."""
    n = (x * 1.44269504 + 12582912.0) - 12582912.0  # to the nearest integer
    r = x - n * 0.693359375 - n * -2.12194440e-4
    p = torch.full_like(r, 1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + c
    return p * r * r + r + 1.0, n.nan_to_num().long()


def exp(x: Tensor) -> Tensor:
    """e^x for x in [-87, 88]."""
    m, n = _exp_parts(x)
    return m * _float_bits(n + 127 << 23)


def _uniform(w: Tensor) -> Tensor:
    """floor(w / 2^8) / 2^24."""
    return (w >> 8).float() * 2.0**-24


def _normal(w: Tensor) -> Tensor:
    """Box and Muller (1958): of words (a, b) of a counter, sqrt(-2 log u(a)) times cosine and sine of 2 pi b / 2^32."""
    a, b = w[..., 0::2, :], w[..., 1::2, :]
    radius = (_join(*_split_unit(a)) * -2.0).double().sqrt().float()  # MKL's float32 root is not correctly rounded
    cosine, sine = _cos_sin(b)
    return torch.stack([radius * cosine, radius * sine], -2).flatten(-3, -2)


def _logistic(w: Tensor) -> Tensor:
    """log u - log(1 - u) of u = (w + 1/2) / 2^32. It is odd about 1/2, so from u below it.

    Near u = 1/2 the logarithms are those of 1 - s and 1 + s with s = 1 - 2 u, less log 2 each."""
    upper = w >= 1 << 31
    h = torch.where(upper, w ^ _MASK, w)  # u = (h + 1/2) / 2^32 < 1/2
    f = h.float() + 0.5
    s = ((h ^ 0x7FFFFFFF).float() + 0.5) * 2.0**-31
    x, e = _split(f)
    x = torch.where(e == 31, -s, x)
    near = s < 0.41421356  # 1 - u < sqrt(1/2)
    rest_x, rest_e = torch.where(near, s, f * -(2.0**-32)), torch.where(near, -1.0, 0.0)
    e = e - 32.0 - rest_e
    y = (x - rest_x) + ((_log1p(x) - _log1p(rest_x)) + e * -2.12194440e-4) + e * 0.693359375
    return torch.where(upper, -y, y)


def _gumbel(w: Tensor) -> Tensor:
    """-log(-log u) of u = (w + 1/2) / 2^32."""
    return -_join(*_split(-_join(*_split_unit(w))))


KINDS = {"uniform": _uniform, "normal": _normal, "logistic": _logistic, "gumbel": _gumbel}


def truncated(u: Tensor, dtype: torch.dtype) -> Tensor:
    """u of [0, 1) in another dtype, rounded towards zero, so that it stays below 1."""
    dropped = {torch.float16: 13, torch.bfloat16: 16}.get(dtype, 0)  # bits of float32's significand
    return _float_bits(_bits(u) >> dropped << dropped).to(dtype)


# --- the ops ---------------------------------------------------------------------------------------------------------


def random(
    ids: Tensor, size: Sequence[int], seed: int, step: int, offset: int, kind: str, dtype: torch.dtype
) -> Tensor:
    """Elements of a distribution, in the shape `size`, for the samples with these ids [size[0]]; `bits`: int32."""
    if math.prod(size) == 0:
        return ids.new_empty(size, dtype=torch.int32 if kind == "bits" else dtype)
    w = tiles(ids, seed, step, offset, math.prod(size[1:]))
    if kind == "bits":
        return elements(w, offset, size).to(torch.int32)
    x = elements(KINDS[kind](w), offset, size)
    return truncated(x, dtype) if kind == "uniform" else x.to(dtype)


def bernoulli(p: Tensor, ids: Tensor, seed: int, step: int, offset: int) -> Tensor:
    """1 where a word, over 2^32, is below p, which is compared exactly; else 0. NaN where p is no probability."""
    w = elements(tiles(ids, seed, step, offset, math.prod(p.shape[1:])), offset, p.shape)
    draws = (w.double() < p.double() * 2.0**32).to(p.dtype)
    return torch.where((p >= 0) & (p <= 1), draws, torch.nan)


def weights(logits: Tensor) -> Tensor:
    """exp(logits - their maximum) over the last dimension, in units of 2^-30: int64; zeros where there is none."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    top = wide.amax(-1, keepdim=True)
    x = (wide - top).float()
    bad = (x.isnan() | ~top.isfinite()).any(-1, keepdim=True)
    x = torch.where(x < -32.0, -32.0, x)  # e^-32 is no unit any more
    m, n = _exp_parts(x)
    units = m * _float_bits(n + 157 << 23) + 0.5
    return torch.where(bad, 0, units.nan_to_num().long())


def categorical(logits: Tensor, ids: Tensor, seed: int, step: int, offset: int) -> Tensor:
    """`categorical_at` words of the stream."""
    size = logits.shape[:-1]
    return categorical_at(logits, elements(tiles(ids, seed, step, offset, math.prod(size[1:])), offset, size))


def categorical_at(logits: Tensor, words: Tensor) -> Tensor:
    """The inverse of the distribution function of softmax(logits) at w / 2^32: the first category up to which the
    weights sum to more than w / 2^32 of all. In integers, whose sums have no order. -1 where there is none."""
    w = words[..., None]
    below = weights(logits).cumsum(-1)
    total = below[..., -1:]
    threshold = w * (total >> 32) + (w * (total & _MASK) >> 32 & _MASK)
    draws = (below <= threshold).sum(-1)
    return torch.where(total[..., 0] > 0, draws, -1)


def noise_bits(levels: int) -> int:
    """How many bits of uniform noise float32 holds beside a level: x + u is exact with as many."""
    return max(0, 24 - (levels - 1).bit_length())


def dequantize(
    x: Tensor,
    noise: Tensor | None,
    ids: Tensor,
    seed: int,
    step: int,
    offset: int,
    levels: int,
    scale: float,
    shift: float,
    dtype: torch.dtype,
) -> Tensor:
    """(x + u) scale + shift, with u given or uniform from the stream; NaN where x is no level."""
    wide = torch.promote_types(dtype, torch.float32)
    if noise is None:
        w = elements(tiles(ids, seed, step, offset, math.prod(x.shape[1:])), offset, x.shape)
        bits = noise_bits(levels)
        noise = (w >> 32 - bits).float() * 2.0**-bits
    y = (x.to(wide) + noise.to(wide)) * scale + shift
    level = x.long()  # of which any number of levels can be one
    return torch.where((level >= 0) & (level < levels), y, torch.nan).to(dtype)
