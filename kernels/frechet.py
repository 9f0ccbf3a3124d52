"""The polar factor of small matrices, one to a program; of others, and the trace of a root, by matrix products.

The iteration is that of `_polar.py`, which explains it. What is here keeps a problem in the cache of one multiprocessor
from the first step to the last: a batch takes one launch instead of 50 for each problem.
"""

import torch
import triton
import triton.language as tl

from . import _math as pm
from . import _polar

LARGEST = {torch.float32: 128, torch.float64: 64}  # the longer side of a matrix whose products registers can hold
DEPTH = 16  # of the slices that are multiplied at once: what a thread holds of them fits its registers


@triton.jit
def _product(a, b, TRANSPOSED: tl.constexpr, SIZE: tl.constexpr, DEPTH: tl.constexpr):
    """a b or a' b of square matrices in memory, in their own type: TF32 would end the iteration in a wrong sign."""
    i = tl.arange(0, SIZE)
    total = tl.zeros((SIZE, SIZE), a.dtype.element_ty)
    for start in range(0, SIZE, DEPTH):
        k = start + tl.arange(0, DEPTH)
        at = k[None, :] * SIZE + i[:, None] if TRANSPOSED else i[:, None] * SIZE + k[None, :]
        right = tl.load(b + k[:, None] * SIZE + i[None, :])
        total = tl.dot(tl.load(a + at), right, total, input_precision="ieee", out_dtype=total.dtype)
    return total


@triton.jit
def _polar_small(
    b, factor, norm, scratch,
    rows, columns, row, column, steps, smallest: tl.float64,  # row, column: strides of b and factor
    MARGIN: tl.constexpr, NEAR: tl.constexpr, SIZE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Of b[problem], rows >= columns, of `_polar.unit` size, padded with zeros, which stay zeros, to SIZE x SIZE."""
    ACC: tl.constexpr = b.dtype.element_ty
    problem = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    inside = (i < rows) & (j < columns)
    at = i * SIZE + j
    b += problem * rows * columns + i * row + j * column
    x, gram = scratch + problem * 2 * SIZE * SIZE, scratch + (problem * 2 + 1) * SIZE * SIZE

    # Barriers: other threads of the program read what this one has written, and have read what it writes anew.
    tl.store(x + at, tl.load(b, inside, 0.0))
    tl.debug_barrier()
    square = _product(x, x, True, SIZE, DEPTH)
    bound = pm.sqrt(pm.sqrt(tl.sum(tl.sum(square * square, 1), 0)))  # NaN if any of it is
    bound = tl.where(bound == 0.0, 1.0, bound)
    tl.debug_barrier()
    tl.store(x + at, pm.div(tl.load(b, inside, 0.0), bound + tl.zeros((SIZE, SIZE), ACC)))

    low = tl.full((), smallest, ACC)
    for _ in range(steps):
        tl.debug_barrier()
        a = tl.where(low < NEAR, pm.div(pm.sqrt(pm.div(3.0, 1.0 + low + low * low)), tl.full((), MARGIN, ACC)), 1.0)
        c, e = 1.5 * a, -0.5 * a * a * a
        low = low * (c + e * low * low)
        square = _product(x, x, True, SIZE, DEPTH)
        tl.store(gram + at, e * square + tl.where(i == j, c, 0.0))
        tl.debug_barrier()
        image = _product(x, gram, False, SIZE, DEPTH)
        tl.debug_barrier()
        tl.store(x + at, image)

    tl.debug_barrier()
    image = tl.load(x + at)
    tl.store(factor + problem * rows * columns + i * row + j * column, image, inside)
    total = tl.sum(tl.sum(image.to(tl.float64) * tl.load(b, inside, 0.0).to(tl.float64), 1), 0)
    tl.store(norm + problem, total.to(ACC))


def launch_polar(b):
    factor, norm = b.new_empty(b.shape), b.new_empty(b.shape[:-2])
    if b.numel() == 0:
        return factor, norm.zero_()
    one, power = _polar.unit(b)
    m, n = b.shape[-2:]
    one, factors, norms = one.reshape(-1, m, n).contiguous(), factor.view(-1, m, n), norm.view(-1)
    if m < n:  # of the wide one, x'x would be singular, and rounding grow in its null directions
        one, factors, m, n = one.mT, factors.mT, n, m
    if m <= LARGEST[b.dtype]:
        size = max(16, triton.next_power_of_2(m))
        smallest, tolerance = _polar.accuracy(b.dtype)
        with torch.cuda.device_of(b):
            _polar_small[(len(one),)](
                one, factors, norms, one.new_empty(len(one), 2, size, size), m, n, *one.stride()[1:],
                len(_polar.schedule(smallest, tolerance)), smallest, MARGIN=_polar.MARGIN, NEAR=_polar.NEAR,
                SIZE=size, DEPTH=DEPTH, num_warps=size // 16, num_stages=2,
            )  # fmt: skip
    else:
        # One problem after the other: in batches of other sizes the library's products would round otherwise.
        for k, matrix in enumerate(one):
            factors[k], norms[k] = _polar.polar(matrix)
    return factor, norm.mul_(power)


def launch_trace_sqrt_product(sigma1, sigma2):
    trace, bound = (sigma1.new_zeros(sigma1.shape[:-2]) for _ in range(2))
    if sigma1.numel():
        d = sigma1.shape[-1]
        pairs = zip(sigma1.reshape(-1, d, d), sigma2.reshape(-1, d, d), strict=True)
        for k, pair in enumerate(pairs):
            trace.view(-1)[k], bound.view(-1)[k] = _polar.trace_sqrt_product(*pair)
    return trace, bound
