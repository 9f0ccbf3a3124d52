"""Triton kernels of the loss of diffusion models and its gradient; reference: pygen/reference/diffusion_loss.py.

A program takes elements of a run: of a sample, or of a token of one. Where noise is drawn, it takes all four words of
its counters (see kernels/random.py). Sums and products are not fused, so that the noise has the stream's bits.
"""

import math

import torch
import triton
import triton.language as tl

from .._lib import layout
from ..reference.diffusion_loss import CLEAN, NOISE, WEIGHT
from ..reference.diffusion_step import arithmetic
from ._diffusion import coefficient, load, row_of, rows_for, runs_of
from .random import _place, _values, _words, launch_random

BLOCK = 1024
COUNTERS = 256  # to a program that draws
A, S, W = tl.constexpr(CLEAN), tl.constexpr(NOISE), tl.constexpr(WEIGHT)


@triton.jit(do_not_specialize=["row", "rows", "seed_low", "seed_high", "first_sample", "step"])
def _loss(
    output, x0, noise, difference, sums,
    values, table, index, row, rows, columns, run, programs,
    ids, seed_low, seed_high, first_sample: tl.int64, step: tl.int64,
    ADD: tl.constexpr, DRAWS: tl.constexpr,  # the index to the step, for draws
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(0).to(tl.int64) // programs
    lane = tl.program_id(0).to(tl.int64) % programs * BLOCK + tl.arange(0, BLOCK)
    own, there = row_of(index, row, rows, which)
    if DRAWS:
        place = step
        if ADD:
            place += own
        sample = tl.zeros((BLOCK,), tl.int64) + which
        a, b, c, d = _words(lane, sample, ids, first_sample, seed_low, seed_high, place, lane >= 0)
        a, b, c, d = _values(a, b, c, d, "normal")
        z = tl.join(tl.join(a, b), tl.join(c, d)).to(ACC)  # [BLOCK, 2, 2]: word i + 2 j
        word = 16 * tl.arange(0, 2)[None, :, None] + 32 * tl.arange(0, 2)[None, None, :]
        e = (lane // 16 * 64 + lane % 16)[:, None, None] + word
    else:
        e = lane
    inside, at = e < run, which * run + e
    if noise is not None:
        z = load(noise, at, inside, ACC)
    own *= columns
    target = coefficient(values, table, own, there, A, ACC) * load(x0, at, inside, ACC)
    if DRAWS or noise is not None:
        target += coefficient(values, table, own, there, S, ACC) * z
    v = load(output, at, inside, ACC) - target
    if difference is not None:
        tl.store(difference + at, v.to(difference.dtype.element_ty), inside)
    squares = tl.where(inside, v * v, 0.0)
    total = tl.sum(tl.reshape(squares, (BLOCK * (4 if DRAWS else 1),)), 0)
    tl.store(sums + tl.program_id(0), coefficient(values, table, own, there, W, ACC) * total)


@triton.jit(do_not_specialize=["row", "rows"])
def _backward(
    grad, difference, grad_output, grad_x0, grad_noise, scale: tl.float64,  # 2 / n
    values, table, index, row, rows, columns, run, sample_runs, programs,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(0).to(tl.int64) // programs
    e = tl.program_id(0).to(tl.int64) % programs * BLOCK + tl.arange(0, BLOCK)
    inside, at = e < run, which * run + e
    own, there = row_of(index, row, rows, which)
    own *= columns
    factor = tl.load(grad + which // sample_runs).to(ACC) * coefficient(values, table, own, there, W, ACC)
    slope = factor * tl.full((1,), scale, ACC) * load(difference, at, inside, ACC)
    if grad_output is not None:
        tl.store(grad_output + at, slope.to(grad_output.dtype.element_ty), inside)
    if grad_x0 is not None:
        v = -coefficient(values, table, own, there, A, ACC) * slope
        tl.store(grad_x0 + at, v.to(grad_x0.dtype.element_ty), inside)
    if grad_noise is not None:
        v = -coefficient(values, table, own, there, S, ACC) * slope
        tl.store(grad_noise + at, v.to(grad_noise.dtype.element_ty), inside)


# --- launchers: the ops' arguments, in the order of their schemas -----------------------------------------------------


def launch_diffusion_loss(output, x0, table, index, row, noise, draws, ids, seed, first_sample, step, kept):
    acc = arithmetic(output, [x0])
    tokens, counter = (index is not None and index.dim() == n for n in (2, 0))
    ids = torch.empty(0, dtype=torch.int64, device=output.device) if ids is None else ids
    # tokens lie together, and elements in the order of the stream, in contiguous memory alone
    form = torch.contiguous_format if draws or tokens else layout(output)
    if draws and tokens:  # a counter's words may be of several
        noise, draws = launch_random(ids, seed, first_sample, step, 0, output.shape, "normal", torch.float32), False
    difference = output.new_empty(0)
    if kept is not None:
        difference = torch.empty(output.shape, dtype=kept, device=output.device, memory_format=form)
    batch, size = output.shape[0], math.prod(output.shape[1:])
    if output.numel() == 0:
        return torch.full((batch,), math.nan, dtype=acc, device=output.device), difference
    where, (runs, sample_runs) = rows_for(output, table, index, row, acc), runs_of(output, index)
    lanes = 16 * triton.cdiv(where["run"], 64) if draws else where["run"]
    block = min(COUNTERS if draws else BLOCK, triton.next_power_of_2(lanes))
    programs = triton.cdiv(lanes, block)
    sums = torch.empty((batch, sample_runs * programs), dtype=acc, device=output.device)
    place = _place(ids, seed if draws else 0, first_sample, step + (row if draws and index is None else 0))
    dense = [None if t is None else t.contiguous(memory_format=form) for t in (output, x0, noise)]
    with torch.cuda.device_of(output):
        _loss[(runs * programs,)](
            *dense, None if kept is None else difference, sums, programs=programs, ADD=counter,
            DRAWS=draws, ACC=tl.float64 if acc == torch.float64 else tl.float32, BLOCK=block, **where, **place,
        )  # fmt: skip
    loss = (sums.sum(1, dtype=torch.float64) / size).to(acc)
    return loss, difference if kept is None else difference.contiguous(memory_format=layout(output))


def launch_diffusion_loss_backward(grad, difference, loss, table, index, row, *dtypes):
    acc = torch.promote_types(torch.promote_types(difference.dtype, torch.float32), grad.dtype)
    form = torch.contiguous_format if index is not None and index.dim() == 2 else layout(difference)
    gradients = [
        None if dtype is None
        else torch.empty(difference.shape, dtype=dtype, device=difference.device, memory_format=form)
        for dtype in dtypes
    ]  # fmt: skip
    if difference.numel() and any(g is not None for g in gradients):
        where, (runs, sample_runs) = rows_for(difference, table, index, row, acc), runs_of(difference, index)
        block = min(BLOCK, triton.next_power_of_2(where["run"]))
        programs = triton.cdiv(where["run"], block)
        with torch.cuda.device_of(difference):
            _backward[(runs * programs,)](
                grad.contiguous(), difference.contiguous(memory_format=form), *gradients,
                2 / math.prod(difference.shape[1:]), sample_runs=sample_runs, programs=programs,
                ACC=tl.float64 if acc == torch.float64 else tl.float32, BLOCK=block, **where,
            )  # fmt: skip
    return tuple(
        difference.new_empty(0) if g is None else g.contiguous(memory_format=layout(difference)) for g in gradients
    )
