"""Triton kernel of diffusion steps; reference: pygen/reference/diffusion_step.py.

A program takes elements of one run: all of them, or those of a sample or a token, which share a row of the table, a
rescaling and a threshold. Where noise is drawn, it takes all four words of its counters (see kernels/random.py). Sums
and products are not fused, so that the noise has the stream's bits.
"""

import torch
import triton
import triton.language as tl

from .._lib import layout
from ..reference.diffusion_step import Columns, arithmetic
from . import _math as pm
from ._diffusion import coefficient, load
from .random import _ceil, _place, _values, _words, launch_random

BLOCK = 1024
COUNTERS = 256  # to a program that draws
REACH = 2**31 - BLOCK  # of 32-bit offsets: leaves room for the lanes past the last element


@triton.jit(do_not_specialize=["row", "table_rows", "seed_low", "seed_high", "first_sample", "step"])
def _step(
    x, outputs, past, noise, log_std, known, mask, known_noise, rescale, threshold, results, following,
    values, table, index, row, table_rows, columns,
    numel, run, sample_runs, programs,  # elements of all, and of a run; runs of a sample; programs of a run
    ids, seed_low, seed_high, first_sample: tl.int64, step: tl.int64,
    J: tl.constexpr, H: tl.constexpr, K: tl.constexpr, COPIES: tl.constexpr, P: tl.constexpr,  # column of p
    ONE: tl.constexpr, DRAWS: tl.constexpr,  # one row of the table for all
    ACC: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    which, lane = tl.program_id(0) // programs, tl.program_id(0) % programs * BLOCK + tl.arange(0, BLOCK)
    row = row.to(tl.int64)
    if index is not None:
        row = tl.load(index if ONE else index + which)
    there = (row >= 0) & (row < table_rows)
    at_row = tl.where(there, row, 0) * columns

    if DRAWS:
        place = step
        if ONE and index is not None:  # the host has added a row that it knows
            place += row
        sample = tl.zeros((BLOCK,), tl.int64) + which
        a, b, c, d = _words(lane, sample, ids, first_sample, seed_low, seed_high, place, lane >= 0)
        a, b, c, d = _values(a, b, c, d, "normal")
        z = tl.join(tl.join(a, b), tl.join(c, d)).to(ACC)  # [BLOCK, 2, 2]: word i + 2 j
        word = 16 * tl.arange(0, 2)[None, :, None] + 32 * tl.arange(0, 2)[None, None, :]
        e = (lane // 16 * 64 + lane % 16)[:, None, None] + word
    else:
        e = lane
    inside = e < run
    at = which.to(OFFSET) * run + e
    if noise is not None:
        z = load(noise, at, inside, ACC)

    v = load(x, at, inside, ACC)
    g = tl.zeros(e.shape, ACC)
    for j in tl.static_range(J):
        g += coefficient(values, table, at_row, there, j, ACC) * load(outputs[j], at, inside, ACC)
    if rescale is not None:
        g *= tl.load(rescale + which // sample_runs).to(ACC)
    x0 = coefficient(values, table, at_row, there, P, ACC) * v
    x0 += coefficient(values, table, at_row, there, P + 1, ACC) * g
    x0 = pm.clamp(x0, coefficient(values, table, at_row, there, P + 2, ACC))
    if threshold is not None:
        s = tl.load(threshold + which // sample_runs).to(ACC)
        x0 = pm.div(pm.clamp(x0, s), tl.zeros(e.shape, ACC) + s)

    if known is not None:
        kept = coefficient(values, table, at_row, there, P + 3, ACC) * load(known, at, inside, ACC)
        weight = coefficient(values, table, at_row, there, P + 4, ACC)
        if known_noise is not None:
            kept += weight * load(known_noise, at, inside, ACC)
        elif DRAWS or noise is not None:
            kept += weight * z
    if (DRAWS or noise is not None) and log_std is not None:
        slope = coefficient(values, table, at_row, there, P + 7, ACC)
        z *= pm.exp(coefficient(values, table, at_row, there, P + 6, ACC) + slope * load(log_std, at, inside, ACC))

    for k in tl.static_range(K):
        y = coefficient(values, table, at_row, there, P + 8 + k * (4 + H), ACC) * v
        y += coefficient(values, table, at_row, there, P + 9 + k * (4 + H), ACC) * g
        y += coefficient(values, table, at_row, there, P + 10 + k * (4 + H), ACC) * x0
        if DRAWS or noise is not None:
            y += coefficient(values, table, at_row, there, P + 11 + k * (4 + H), ACC) * z
        for i in tl.static_range(H):
            c_i = coefficient(values, table, at_row, there, P + 12 + k * (4 + H) + i, ACC)
            y += c_i * load(past[i], at, inside, ACC)
        if k == 0 and known is not None:
            m = load(mask, at, inside, ACC)
            y = (1.0 - m) * y + m * kept
        tl.store(results[k] + at, y.to(results[k].dtype.element_ty), inside)
        if k == 0 and COPIES > 0:
            u = (coefficient(values, table, at_row, there, P + 5, ACC) * y).to(following.dtype.element_ty)
            for copy in tl.static_range(COPIES):
                tl.store(following + (at + copy * numel), u, inside)


def launch_diffusion_step(
    x, outputs, history, table, index, row, noise, rescale, threshold, log_std, known, known_mask, known_noise, ids,
    seed, first_sample, step, options,
):  # fmt: skip
    one = index is None or index.dim() == 0
    tokens = index is not None and index.dim() == 2
    # tokens lie together, and elements in the order of the stream, in contiguous memory alone
    form = torch.contiguous_format if options.draws or tokens else layout(x)
    ids = torch.empty(0, dtype=torch.int64, device=x.device) if ids is None else ids
    draws = options.draws and not tokens
    if options.draws and tokens:  # a counter's words may be of several
        noise = launch_random(ids, seed, first_sample, step, 0, x.shape, "normal", torch.float32)
    dtypes = options.dtypes_for(x)
    batches = [x.shape[0]] * options.rows + [options.copies * x.shape[0]] * (options.copies > 0)
    results = [
        torch.empty((batch, *x.shape[1:]), dtype=dtype, device=x.device, memory_format=form)
        for batch, dtype in zip(batches, dtypes, strict=True)
    ]
    if x.numel():
        acc = arithmetic(x, outputs, dtypes)
        values, first_row = (0.0,), row if index is None else 0
        if index is None and table.device.type == "cpu":
            if acc == torch.float32:
                values, table = tuple(table[row].tolist()), None
            else:  # numbers are passed as float32
                table, row = table[row : row + 1].to(x.device, non_blocking=True), 0
        runs = x.shape[0] if draws or rescale is not None or threshold is not None else 1
        runs = runs if one else index.numel()
        run = x.numel() // runs
        block = COUNTERS if draws else BLOCK
        lanes = 16 * _ceil(run, 64) if draws else run
        block = min(block, triton.next_power_of_2(lanes))
        programs = _ceil(lanes, block)

        def dense(tensor):
            return None if tensor is None else tensor.contiguous(memory_format=form)

        if known_mask is not None and known_mask.dtype == torch.bool:
            known_mask = known_mask.to(torch.float32)
        place = _place(ids, seed if draws else 0, first_sample, step + first_row)
        with torch.cuda.device_of(x):
            _step[(runs * programs,)](
                *(dense(x), tuple(map(dense, outputs)) or (x,), tuple(map(dense, history)) or (x,)),
                *map(dense, (noise, log_std, known, known_mask, known_noise)),
                *(None if t is None else t.contiguous() for t in (rescale, threshold)),
                tuple(results[: options.rows]), results[-1],
                values, None if table is None else table.contiguous(), None if index is None else index.contiguous(),
                row, 1 if table is None else len(table), 0 if table is None else table.shape[1],
                x.numel(), run, max(1, runs // x.shape[0]), programs,
                J=len(outputs), H=len(history), K=options.rows, COPIES=options.copies,
                P=Columns.of(len(outputs)).p, ONE=one, DRAWS=draws,
                ACC=tl.float64 if acc == torch.float64 else tl.float32,
                OFFSET=tl.int64 if max(1, options.copies) * x.numel() >= REACH else tl.int32, BLOCK=block, **place,
            )  # fmt: skip
    return [y.contiguous(memory_format=layout(x)) for y in results]
