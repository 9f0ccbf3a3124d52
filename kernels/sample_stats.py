"""Triton kernels of sums and quantiles of each sample; reference: pygen/reference/sample_stats.py.

A quantile is found as on the CPU: magnitudes are counted by their leading bits as integers, those that share the ones
of the magnitude looked for by the next bits, and so on, until it is known. Counts have no order, so they are the same
from run to run; a wait for how many there are would take longer than to count them all again.
"""

import math

import torch
import triton
import triton.language as tl

from .._lib import layout
from ..reference.diffusion_step import Columns, arithmetic
from ..reference.sample_stats import between, rank_of
from ._diffusion import coefficient, load, row_of, rows_for, runs_of

BLOCK = 1024
RADIX = 11  # bits that are counted by


# --- sums -------------------------------------------------------------------------------------------------------------


@triton.jit
def _sums(a, b, sums, size, programs, BLOCK: tl.constexpr):
    sample, block = tl.program_id(0).to(tl.int64) // programs, tl.program_id(0).to(tl.int64) % programs
    e = block * BLOCK + tl.arange(0, BLOCK)
    inside, at = e < size, sample * size + e
    x = tl.load(a + at, inside, 0.0).to(tl.float64)
    if b is None:
        to = sums + tl.program_id(0).to(tl.int64) * 2
        tl.store(to, tl.sum(x, 0))
        tl.store(to + 1, tl.sum(x * x, 0))
    else:
        y = tl.load(b + at, inside, 0.0).to(tl.float64)
        to = sums + tl.program_id(0).to(tl.int64) * 5
        tl.store(to, tl.sum(x, 0))
        tl.store(to + 1, tl.sum(y, 0))
        tl.store(to + 2, tl.sum(x * x, 0))
        tl.store(to + 3, tl.sum(x * y, 0))
        tl.store(to + 4, tl.sum(y * y, 0))


def launch_sample_stats(a, b):
    form, batch, columns = layout(a), a.shape[0], 2 if b is None else 5
    size = math.prod(a.shape[1:])
    programs = triton.cdiv(size, BLOCK)
    sums = torch.empty((batch, programs, columns), dtype=torch.float64, device=a.device)
    if sums.numel():
        with torch.cuda.device_of(a):
            _sums[(batch * programs,)](
                a.contiguous(memory_format=form), None if b is None else b.contiguous(memory_format=form), sums, size,
                programs, BLOCK=BLOCK,
            )  # fmt: skip
    return sums.sum(1)


# --- quantiles --------------------------------------------------------------------------------------------------------


@triton.jit
def _keys(
    x, outputs, rescale, values, table, index, row, rows, columns, run, sample_runs, programs,
    J: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """|x0| of a program's elements as integers, which of them there are, and their sample."""
    which, block = tl.program_id(0).to(tl.int64) // programs, tl.program_id(0).to(tl.int64) % programs
    e = block * BLOCK + tl.arange(0, BLOCK)
    inside, at = e < run, which * run + e
    own, there = row_of(index, row, rows, which)
    own *= columns
    g = tl.zeros((BLOCK,), ACC)
    for j in tl.static_range(J):
        g += coefficient(values, table, own, there, j, ACC) * load(outputs[j], at, inside, ACC)
    if rescale is not None:
        g *= tl.load(rescale + which // sample_runs).to(ACC)
    x0 = coefficient(values, table, own, there, J, ACC) * load(x, at, inside, ACC)
    x0 += coefficient(values, table, own, there, J + 1, ACC) * g
    KEY: tl.constexpr = tl.int64 if tl.float64 == ACC else tl.int32
    return tl.abs(x0).to(KEY, bitcast=True), inside, which // sample_runs


@triton.jit(do_not_specialize=["row", "rows"])
def _count(
    x, outputs, rescale, found, counts,
    values, table, index, row, rows, columns, run, sample_runs, programs,
    HIGH: tl.constexpr, SHIFT: tl.constexpr, BINS: tl.constexpr,
    J: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many keys whose bits from HIGH on are the ones found have which bits from SHIFT on."""
    keys, inside, sample = _keys(
        x, outputs, rescale, values, table, index, row, rows, columns, run, sample_runs, programs, J, ACC, BLOCK
    )
    keys = keys.to(tl.int64)
    mine = inside & (keys >> HIGH == tl.load(found + sample))
    tl.atomic_add(counts + sample * BINS + ((keys >> SHIFT) & (BINS - 1)), 1, mine)


@triton.jit
def _choose(counts, found, rank, count, BITS: tl.constexpr, BINS: tl.constexpr):
    """The next bits of the key looked for, how many with them come before it, and how many there are."""
    sample = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BINS)
    own = tl.load(counts + sample * BINS + lane)
    upto = tl.cumsum(own, 0)
    before = tl.load(rank + sample)
    below = upto <= before
    bits = tl.sum(below.to(tl.int32), 0)
    tl.store(found + sample, (tl.load(found + sample) << BITS) + bits)
    tl.store(rank + sample, before - tl.sum(tl.where(below, own, 0), 0))
    tl.store(count + sample, tl.sum(tl.where(lane == bits, own, 0), 0))


@triton.jit(do_not_specialize=["row", "rows"])
def _neighbours(
    x, outputs, rescale, found, least, most,
    values, table, index, row, rows, columns, run, sample_runs, programs,
    J: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The least key above the one found, and the largest of all."""
    keys, inside, sample = _keys(
        x, outputs, rescale, values, table, index, row, rows, columns, run, sample_runs, programs, J, ACC, BLOCK
    )
    keys = keys.to(tl.int64)
    above = inside & (keys > tl.load(found + sample))
    tl.atomic_min(least + sample, tl.min(tl.where(above, keys, 0x7FFFFFFFFFFFFFFF), 0))
    tl.atomic_max(most + sample, tl.max(tl.where(inside, keys, 0), 0))


def launch_quantile_abs(x, outputs, table, index, row, q, rescale):
    acc = arithmetic(x, outputs)
    batch, size = x.shape[0], math.prod(x.shape[1:])
    if batch == 0:
        return x.new_empty(0, dtype=acc)
    wide = acc == torch.float64
    where = rows_for(x, table[:, : Columns.of(len(outputs)).clip], index, row, acc)
    runs, sample_runs = runs_of(x, index)
    block = min(BLOCK, triton.next_power_of_2(where["run"]))
    programs = triton.cdiv(where["run"], block)
    form = torch.contiguous_format if sample_runs > 1 else layout(x)
    dense = [t.contiguous(memory_format=form) for t in (x, *outputs)]
    rest = {
        **where, "sample_runs": sample_runs, "programs": programs, "J": len(outputs),
        "ACC": tl.float64 if wide else tl.float32, "BLOCK": block,
    }  # fmt: skip
    given = (dense[0], tuple(dense[1:]) or (x,), None if rescale is None else rescale.contiguous())

    rank, weight = rank_of(q, size)
    found, count = (torch.zeros(batch, dtype=torch.int64, device=x.device) for _ in range(2))
    before = torch.full((batch,), rank, dtype=torch.int64, device=x.device)
    bits = 63 if wide else 31
    with torch.cuda.device_of(x):
        while bits:
            shift = max(0, bits - RADIX)
            bins = 1 << bits - shift
            counts = torch.zeros((batch, bins), dtype=torch.int32, device=x.device)
            _count[(runs * programs,)](*given, found, counts, HIGH=bits, SHIFT=shift, BINS=bins, **rest)
            _choose[(batch,)](counts, found, before, count, BITS=bits - shift, BINS=bins)
            bits = shift
        least = torch.full((batch,), (1 << 63) - 1, dtype=torch.int64, device=x.device)
        most = torch.zeros(batch, dtype=torch.int64, device=x.device)
        _neighbours[(runs * programs,)](*given, found, least, most, **rest)

    def value(keys):
        return keys.view(torch.float64) if wide else keys.to(torch.int32).view(torch.float32)

    following = torch.where(before + 1 < count, found, torch.where(least == (1 << 63) - 1, found, least))
    infinity = 0x7FF0 << 48 if wide else 0x7F800000
    return torch.where(most > infinity, math.nan, between(value(found), value(following), weight))
