"""Triton kernel for accumulate_moments: each program adds up one tile of the lower triangle of the scatter matrix.

It walks over the rows of x alone, so sums have one order: no atomics, the same bits from run to run.
"""

import torch
import triton
import triton.language as tl

TILE = 64  # features by features of a program
ROWS = 256  # at most these are added in float32 before float64 takes over
DEPTH = 16  # rows that are multiplied at once


@triton.jit
def _centred(x, shift, rows, columns, n, d, x_n, x_d, ACC: tl.constexpr):
    """x - shift [rows, columns], 0 outside."""
    inside = (rows < n)[:, None] & (columns < d)[None, :]
    at = rows[:, None].to(tl.int64) * x_n + columns[None, :].to(tl.int64) * x_d
    value = tl.load(x + at, inside, 0.0).to(tl.float64) - tl.load(shift + columns, columns < d, 0.0)[None, :]
    return tl.where(inside, value, 0.0).to(ACC)


@triton.jit(do_not_specialize=["n"])
def _accumulate(
    x, shift, total, scatter,
    n, d, x_n, x_d,
    ACC: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    first, second = tl.program_id(0), tl.program_id(1)
    if second <= first:
        i, j = first * TILE + tl.arange(0, TILE), second * TILE + tl.arange(0, TILE)
        products, sums = tl.zeros((TILE, TILE), tl.float64), tl.zeros((TILE,), tl.float64)
        for block in range(0, n, ROWS):
            part = tl.zeros((TILE, TILE), ACC)
            part_sums = tl.zeros((TILE,), ACC)
            for start in range(block, min(block + ROWS, n), DEPTH):
                rows = start + tl.arange(0, DEPTH)
                left = _centred(x, shift, rows, i, n, d, x_n, x_d, ACC)
                right = _centred(x, shift, rows, j, n, d, x_n, x_d, ACC)
                part = tl.dot(tl.trans(left), right, part, input_precision="ieee", out_dtype=ACC)  # never TF32
                part_sums += tl.sum(left, 0)
            products += part.to(tl.float64)
            sums += part_sums.to(tl.float64)
        at = scatter + i[:, None].to(tl.int64) * d + j[None, :]
        lower = (i[:, None] >= j[None, :]) & (i < d)[:, None]
        tl.store(at, tl.load(at, lower, 0.0) + products, lower)
        if second == first:
            tl.store(total + i, tl.load(total + i, i < d, 0.0) + sums, i < d)


def launch_accumulate_moments(x, shift, total, scatter):
    n, d = x.shape
    if x.numel() == 0:
        return
    tile = min(TILE, max(16, triton.next_power_of_2(d)))
    tiles = -(-d // tile)
    with torch.cuda.device_of(x):
        _accumulate[(tiles, tiles)](
            x, shift.contiguous(), total, scatter, n, d, *x.stride(),
            ACC=tl.float64 if x.dtype == torch.float64 else tl.float32, ROWS=ROWS, DEPTH=DEPTH, TILE=tile,
            num_warps=tile // 8,
        )  # fmt: skip
