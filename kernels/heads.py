"""Triton kernels for categorical_nll, bernoulli_nll and their backward ops; reference: pygen/reference/heads.py.

A program takes a block of sites, or some of them in turn, and its logits tile by tile: they are never in memory. A tile
is some levels of one channel of the categorical head, or some channels of the Bernoulli head, which counts them as the
levels of one channel. The softmax of a channel is had from its tiles one after the other: their largest logit so far,
and the sum of exponentials relative to that (Milakov and Gimelshein 2018, arXiv 1805.02867, algorithm 3).

The backward computes logits three times: for the softmax's largest logit and sum, which are kept (two numbers for each
element of nll), for the gradient of h, and for those of weight and bias. Sums have an order that shapes alone decide.
"""

import math

import torch
import triton
import triton.language as tl

from .._lib import layout
from . import _math as pm

TERMS = 128  # of a logit's sum in one chain: an error of a logit is a relative one of e^logit
DEPTH = 16  # of the slices that are multiplied at once: what a thread holds of them fits its registers
WIDTH = 32  # inputs whose gradients are added up at once
PROGRAMS = 512  # at most about this many share the sums over sites


@triton.jit
def _sites(block, sites, area, sample, step, channels, SITES: tl.constexpr):
    """Which sites of a block there are, where they lie in h, and in target, nll and grad (their first channel)."""
    site = tl.cast(block, tl.int64) * SITES + tl.arange(0, SITES)
    image, pixel = site // area, site % area
    return site < sites, image * sample + pixel * step, image * channels * area + pixel


@triton.jit
def _outputs(first, levels, channel, channel_step, level_step, OUTPUTS: tl.constexpr):
    """A tile's levels of a channel, which of them there are, and their rows in weight."""
    level = first + tl.arange(0, OUTPUTS)
    return level, level < levels, (channel * channel_step + level * level_step).to(tl.int64)


@triton.jit
def _logits(
    h, weight, bias, at, inside, output, live, inputs, h_input,
    ACC: tl.constexpr, TERMS: tl.constexpr, DEPTH: tl.constexpr, SITES: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """[SITES, OUTPUTS]; those of sites and outputs that are none are numbers if bias is. Products of 16 bits are exact
    in float32, so nothing is converted before them; those of float32 never go through TF32."""
    z = tl.zeros((SITES, OUTPUTS), ACC)
    for start in range(0, inputs, TERMS):
        part = tl.zeros((SITES, OUTPUTS), ACC)
        for first in range(start, min(start + TERMS, inputs), DEPTH):
            k = first + tl.arange(0, DEPTH)
            there = k < inputs
            x = tl.load(h + (at[:, None] + k[None, :].to(tl.int64) * h_input), inside[:, None] & there[None, :], 0.0)
            w = tl.load(weight + (output[None, :] * inputs + k[:, None]), live[None, :] & there[:, None], 0.0)
            part = tl.dot(x, w, part, input_precision="ieee", out_dtype=ACC)
        z += part
    if bias is not None:
        z += tl.load(bias + output, live, 0.0).to(ACC)[None, :]
    return z


@triton.jit(do_not_specialize=["sites"])
def _categorical(
    h, weight, bias, target, nll, top, total,
    sites, area, inputs, channels, levels, sample, step, h_input, channel_step, level_step,
    ACC: tl.constexpr, TERMS: tl.constexpr, DEPTH: tl.constexpr, SITES: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """nll, or the largest logit and the sum of e^(logit - largest), of one channel."""
    pid = tl.program_id(0)
    channel = pid % channels
    inside, at, place = _sites(pid // channels, sites, area, sample, step, channels, SITES)
    place += tl.cast(channel, tl.int64) * area
    best, mass = tl.full((SITES,), float("-inf"), ACC), tl.zeros((SITES,), ACC)
    if nll is not None:
        wanted = tl.load(target + place, inside, 0).to(tl.int64)
        picked = tl.zeros((SITES,), ACC)
    for first in range(0, levels, OUTPUTS):
        level, live, output = _outputs(first, levels, channel, channel_step, level_step, OUTPUTS)
        z = _logits(h, weight, bias, at, inside, output, live, inputs, h_input, ACC, TERMS, DEPTH, SITES, OUTPUTS)
        z = tl.where(live[None, :], z, float("-inf"))
        if nll is not None:
            picked += tl.sum(tl.where(level[None, :] == wanted[:, None], z, 0.0), 1)
        better = tl.maximum(best, tl.max(z, 1))
        base = tl.where(better == float("-inf"), 0.0, better)  # of levels none of which can be
        mass = mass * pm.exp(best - base) + tl.sum(pm.exp(z - base[:, None]), 1)
        best = better
    if nll is not None:
        value = pm.log(mass) + (best - picked)
        value = tl.where((wanted >= 0) & (wanted < levels), value, float("nan"))
        tl.store(nll + place, value, inside)
    else:
        tl.store(top + place, best, inside)
        tl.store(total + place, mass, inside)


@triton.jit(do_not_specialize=["sites", "tiles"])
def _bernoulli(
    h, weight, bias, target, nll,
    sites, area, inputs, channels, levels, sample, step, h_input, channel_step, level_step, tiles,
    ACC: tl.constexpr, TERMS: tl.constexpr, DEPTH: tl.constexpr, SITES: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """nll of a tile. tiles: of all channels, which are the levels of one."""
    pid = tl.program_id(0)
    inside, at, place = _sites(pid // tiles, sites, area, sample, step, levels, SITES)
    _, live, output = _outputs(pid % tiles * OUTPUTS, levels, 0, channel_step, level_step, OUTPUTS)
    z = _logits(h, weight, bias, at, inside, output, live, inputs, h_input, ACC, TERMS, DEPTH, SITES, OUTPUTS)
    place, there = place[:, None] + output[None, :] * area, inside[:, None] & live[None, :]
    bit = tl.load(target + place, there, 0)
    z = tl.where(bit == 0, z, -z)
    value = tl.where(z > 0.0, z, 0.0) + pm.log1p(pm.exp(-tl.abs(z)))
    tl.store(nll + place, tl.where((bit == 0) | (bit == 1), value, float("nan")), there)


# --- gradients --------------------------------------------------------------------------------------------------------


@triton.jit
def _slopes(z, grad, target, top, total, place, inside, channel, level, live, area, levels):
    """The gradient of a tile's logits, 0 where there are none. top, total: of the categorical head."""
    there = inside[:, None] & live[None, :]
    if top is not None:
        place += tl.cast(channel, tl.int64) * area
        g = tl.load(grad + place, inside, 0.0)
        wanted = tl.load(target + place, inside, 0).to(tl.int64)
        share = pm.div(g, tl.load(total + place, inside, 1.0))
        p = pm.exp(z - tl.load(top + place, inside, 0.0)[:, None])
        d = share[:, None] * p - tl.where(level[None, :] == wanted[:, None], g[:, None], 0.0)
        d = tl.where(((wanted >= 0) & (wanted < levels))[:, None], d, float("nan"))
    else:
        at = place[:, None] + level[None, :].to(tl.int64) * area
        g, bit = tl.load(grad + at, there, 0.0), tl.load(target + at, there, 0)
        p, n, _, _ = pm.sigmoid(tl.where(bit == 0, z, -z))
        d = pm.times(tl.where(bit == 0, g, -g), p, n)
        d = tl.where((bit == 0) | (bit == 1), d, float("nan"))
    return tl.where(there, d, 0.0)


@triton.jit
def _add_product(
    left, right, right_row, right_there, right_step, out, out_row, out_there, out_step, inputs, again,
    ACC: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """out += left right, or out = left right if not `again`, for columns that are the inputs."""
    for first in range(0, inputs, WIDTH):
        k = first + tl.arange(0, WIDTH)
        there, k = (k < inputs)[None, :], k[None, :].to(tl.int64)
        r = tl.load(right + (right_row[:, None] + k * right_step), right_there[:, None] & there, 0.0).to(ACC)
        at, mask = out + (out_row[:, None] + k * out_step), out_there[:, None] & there
        sum = tl.dot(left, r, tl.load(at, mask & again, 0.0), input_precision="ieee", out_dtype=ACC)
        tl.store(at, sum, mask)
    tl.debug_barrier()  # what is added to next time another thread may have written


@triton.jit(do_not_specialize=["sites", "tiles"])
def _grad_h(
    grad, h, weight, bias, target, top, total, out,
    sites, area, inputs, channels, levels, sample, step, h_input, channel_step, level_step, tiles, stride,
    ACC: tl.constexpr, TERMS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    SITES: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """tiles: of a channel. stride: the number of channels in target."""
    inside, at, place = _sites(tl.program_id(0), sites, area, sample, step, stride, SITES)
    for tile in range(0, channels * tiles):
        channel = tile // tiles
        level, live, output = _outputs(tile % tiles * OUTPUTS, levels, channel, channel_step, level_step, OUTPUTS)
        z = _logits(h, weight, bias, at, inside, output, live, inputs, h_input, ACC, TERMS, DEPTH, SITES, OUTPUTS)
        d = _slopes(z, grad, target, top, total, place, inside, channel, level, live, area, levels)
        _add_product(d, weight, output * inputs, live, 1, out, at, inside, h_input, inputs, tile > 0, ACC, WIDTH)


@triton.jit(do_not_specialize=["sites", "tiles", "blocks", "each"])
def _grad_weight(
    grad, h, weight, bias, target, top, total, out, out_bias,
    sites, area, inputs, channels, levels, sample, step, h_input, channel_step, level_step, tiles, stride,
    blocks, each,
    ACC: tl.constexpr, TERMS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    SITES: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Of one tile, over `each` of the blocks of sites. out [shares, outputs, inputs], out_bias [shares, outputs]."""
    pid = tl.program_id(0)
    tile, part = pid % (channels * tiles), pid // (channels * tiles)
    channel = tile // tiles
    level, live, output = _outputs(tile % tiles * OUTPUTS, levels, channel, channel_step, level_step, OUTPUTS)
    row = tl.cast(part, tl.int64) * channels * levels + output
    sums = tl.zeros((OUTPUTS,), ACC)
    start = part * each
    for block in range(start, min(start + each, blocks)):
        inside, at, place = _sites(block, sites, area, sample, step, stride, SITES)
        z = _logits(h, weight, bias, at, inside, output, live, inputs, h_input, ACC, TERMS, DEPTH, SITES, OUTPUTS)
        d = _slopes(z, grad, target, top, total, place, inside, channel, level, live, area, levels)
        if out is not None:
            _add_product(
                tl.trans(d), h, at, inside, h_input, out, row * inputs, live, 1, inputs, block > start, ACC, WIDTH
            )
        sums += tl.sum(d, 0)
    if out_bias is not None:
        tl.store(out_bias + row, sums, live)


# --- launchers: the ops' arguments, in the order of their schemas -----------------------------------------------------


class _Plan:
    """Tensors as kernels read them, and what kernels are told of them. order: None for the Bernoulli head."""

    def __init__(self, h, weight, bias, target, order):
        self.acc = torch.promote_types(h.dtype, torch.float32)
        self.h = h.contiguous(memory_format=layout(h))
        self.weight, self.bias = weight.contiguous(), None if bias is None else bias.contiguous()
        # Triton lays out what a product takes for the narrowest type that it comes from; of float64 it has no such
        # layout for 8 and 16 bits.
        double = self.acc == torch.float64
        bits = torch.int64 if double else torch.uint8 if target.dtype == torch.bool else target.dtype
        self.target = target.to(bits).contiguous()
        area, sites = math.prod(h.shape[2:]), h.shape[0] * math.prod(h.shape[2:])
        outputs, inputs = weight.shape
        channels = 1 if order is None else target.shape[1]
        levels = outputs // channels
        block = 32 if double else 64
        width = min(block, max(16, triton.next_power_of_2(levels)))
        self.blocks, self.tiles, self.channels = triton.cdiv(sites, block), triton.cdiv(levels, width), channels
        together = layout(h) == torch.channels_last or area == 1  # a site's inputs
        self.sizes = {
            "sites": sites, "area": area, "inputs": inputs, "channels": channels, "levels": levels,
            "sample": inputs * area, "step": inputs if together else 1, "h_input": 1 if together else area,
            "channel_step": levels if order == "channel" else 1, "level_step": channels if order == "level" else 1,
            "ACC": tl.float64 if double else tl.float32, "TERMS": TERMS, "DEPTH": DEPTH, "SITES": block,
            "OUTPUTS": width,
            # All registers that a thread can have: the compiler would stop short of them, to fit two programs on a
            # multiprocessor, and spill.
            "num_warps": 4 if double else 8, "num_stages": 1, "maxnreg": 255,
        }  # fmt: skip

    def run(self, kernel, programs, before, after, **more):
        """before, after: tensors before h, and after target."""
        with torch.cuda.device_of(self.h):
            kernel[(programs,)](*before, self.h, self.weight, self.bias, self.target, *after, **self.sizes, **more)

    def softmax(self, *after):
        """nll of a categorical head, or the largest logit and the sum that follow it, [B, channels, ...]."""
        self.run(_categorical, self.blocks * self.channels, (), after)


def _nll(h, weight, bias, target, order):
    plan = _Plan(h, weight, bias, target, order)
    nll = torch.empty(target.shape, dtype=plan.acc, device=h.device)
    if nll.numel():
        if order is None:
            plan.run(_bernoulli, plan.blocks * plan.tiles, (), (nll,), tiles=plan.tiles)
        else:
            plan.softmax(nll, None, None)
    return nll


def _nll_backward(grad_nll, h, weight, bias, target, order, need_h, need_weight, need_bias):
    plan = _Plan(h, weight, bias, target, order)
    need_bias = need_bias and bias is not None
    before = (grad_nll.to(plan.acc).contiguous(),)
    grad_h = torch.empty_like(plan.h, dtype=plan.acc) if need_h else h.new_empty(0)
    tiles = plan.tiles * plan.channels
    each = triton.cdiv(plan.blocks, max(1, min(plan.blocks, PROGRAMS // tiles)))
    shares = triton.cdiv(plan.blocks, max(1, each))
    sums = [
        torch.empty((shares, *t.shape), dtype=plan.acc, device=h.device) if need else None
        for t, need in ((weight, need_weight), (bias, need_bias))
    ]
    if target.numel() and (need_h or need_weight or need_bias):
        top = total = None
        if order is not None:
            top, total = (torch.empty(target.shape, dtype=plan.acc, device=h.device) for _ in range(2))
            plan.softmax(None, top, total)
        of_logits = {"stride": target.shape[1], "tiles": plan.tiles, "WIDTH": WIDTH}
        if need_h:
            plan.run(_grad_h, plan.blocks, before, (top, total, grad_h), **of_logits)
        if need_weight or need_bias:
            after = (top, total, *sums)
            plan.run(_grad_weight, tiles * shares, before, after, blocks=plan.blocks, each=each, **of_logits)
    added = (h.new_empty(0) if t is None else t.sum(0).to(h.dtype) for t in sums)
    return grad_h.to(h.dtype), *added


def launch_categorical_nll(h, weight, bias, target, order):
    return _nll(h, weight, bias, target, order)


def launch_categorical_nll_backward(grad_nll, h, weight, bias, target, order, *needs):
    return _nll_backward(grad_nll, h, weight, bias, target, order, *needs)


def launch_bernoulli_nll(h, weight, bias, target):
    return _nll(h, weight, bias, target, None)


def launch_bernoulli_nll_backward(grad_nll, h, weight, bias, target, *needs):
    return _nll_backward(grad_nll, h, weight, bias, target, None, *needs)
