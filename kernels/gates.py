"""Triton kernels for gated_activation and concat_elu and their backward ops; reference: pygen/reference/gates.py.

A program takes a block of elements of the tensors with C channels, in the order in which they lie; the two halves of
those with 2 C channels lie `run` elements apart, a sample (or, in channels_last memory, a pixel) 2 `run`.
"""

import math

import torch
import triton
import triton.language as tl

from .._lib import layout
from . import _math as pm

BLOCK = 1024
REACH = 2**31 - BLOCK  # of 32-bit offsets: leaves room for the lanes past the last element


@triton.jit
def _halves(count, run, OFFSET: tl.constexpr, BLOCK: tl.constexpr):
    """The elements of a program, which of them there are, and their run, place in it, and place in the first half."""
    e = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    group, k = e // run, e % run
    return e, e < count, group, k, group * 2 * run + k


@triton.jit
def _pre_activation(
    x, bias, condition, at, inside, group, channel, half,
    runs, channels, bias_b, ACC: tl.constexpr,
):  # fmt: skip
    """One half of x + bias + condition."""
    z = tl.load(x + at, inside, 0.0).to(ACC)
    if bias is not None:
        z += tl.load(bias + group // runs * bias_b + half * channels + channel, inside, 0.0).to(ACC)
    if condition is not None:
        z += tl.load(condition + at, inside, 0.0).to(ACC)
    return z


@triton.jit
def _gate(
    x, bias, condition, residual, y,
    count, run, sites, runs, channels, bias_b,  # elements of y; see _halves; of a channel in a run; runs of a sample
    LINEAR: tl.constexpr, ACC: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    e, inside, group, k, at = _halves(count, run, OFFSET, BLOCK)
    channel = k // sites
    a = _pre_activation(x, bias, condition, at, inside, group, channel, 0, runs, channels, bias_b, ACC)
    b = _pre_activation(x, bias, condition, at + run, inside, group, channel, 1, runs, channels, bias_b, ACC)
    v = pm.gate(a, b, LINEAR)
    if residual is not None:
        v += tl.load(residual + e, inside, 0.0).to(ACC)
    tl.store(y + e, v.to(y.dtype.element_ty), inside)


@triton.jit
def _gate_backward(
    grad_y, x, bias, condition, grad_x,
    count, run, sites, runs, channels, bias_b,
    LINEAR: tl.constexpr, ACC: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    e, inside, group, k, at = _halves(count, run, OFFSET, BLOCK)
    channel = k // sites
    a = _pre_activation(x, bias, condition, at, inside, group, channel, 0, runs, channels, bias_b, ACC)
    b = _pre_activation(x, bias, condition, at + run, inside, group, channel, 1, runs, channels, bias_b, ACC)
    g = tl.load(grad_y + e, inside, 0.0).to(ACC)
    grad_a, grad_b = pm.gate_backward(g, a, b, LINEAR)
    tl.store(grad_x + at, grad_a.to(grad_x.dtype.element_ty), inside)
    tl.store(grad_x + at + run, grad_b.to(grad_x.dtype.element_ty), inside)


@triton.jit
def _elu(x, y, count, run, ACC: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr):
    e, inside, _, _, at = _halves(count, run, OFFSET, BLOCK)
    v = tl.load(x + e, inside, 0.0).to(ACC)
    low = pm.expm1(-tl.abs(v))
    tl.store(y + at, tl.where(v > 0, v, low).to(y.dtype.element_ty), inside)
    tl.store(y + at + run, tl.where(v < 0, -v, low).to(y.dtype.element_ty), inside)


@triton.jit
def _elu_backward(grad_y, x, grad_x, count, run, ACC: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr):
    e, inside, _, _, at = _halves(count, run, OFFSET, BLOCK)
    v = tl.load(x + e, inside, 0.0).to(ACC)
    g = tl.load(grad_y + at, inside, 0.0).to(ACC)
    h = tl.load(grad_y + at + run, inside, 0.0).to(ACC)
    positive = v > 0
    m, n = pm.exp_parts(-tl.abs(v))
    low = pm.times(tl.where(positive, h, g), m, n)
    tl.store(grad_x + e, tl.where(positive, g - low, low - h).to(grad_x.dtype.element_ty), inside)


# --- launchers: the ops' arguments, in the order of their schemas -----------------------------------------------------


def _launch(kernel, narrow, tensors, like, **arguments):
    """Over the elements of tensors [B, C, ...] of this shape. like: gives the layout and the type."""
    count = math.prod(narrow)
    if count:
        sites = 1 if layout(like) == torch.channels_last else math.prod(narrow[2:])
        if arguments:  # a kernel of gates
            arguments |= {"sites": sites, "runs": count // (narrow[0] * narrow[1] * sites), "channels": narrow[1]}
        with torch.cuda.device_of(like):
            kernel[(triton.cdiv(count, BLOCK),)](
                *tensors, count=count, run=narrow[1] * sites,
                ACC=tl.float64 if like.dtype == torch.float64 else tl.float32,
                OFFSET=tl.int64 if 2 * count >= REACH else tl.int32, BLOCK=BLOCK, **arguments,
            )  # fmt: skip


def _laid_out(like, *tensors):
    return [None if t is None else t.contiguous(memory_format=layout(like)) for t in tensors]


def _gate_arguments(bias, kind):
    bias = None if bias is None else bias.contiguous()
    return bias, {"bias_b": bias.shape[1] if bias is not None and bias.dim() == 2 else 0, "LINEAR": kind == "linear"}


def _empty(shape, like, dtype):
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=layout(like))


def launch_gated_activation(x, bias, condition, residual, kind):
    narrow = (x.shape[0], x.shape[1] // 2, *x.shape[2:])
    y = _empty(narrow, x, x.dtype)
    bias, arguments = _gate_arguments(bias, kind)
    dense, condition, residual = _laid_out(x, x, condition, residual)
    _launch(_gate, narrow, (dense, bias, condition, residual, y), x, **arguments)
    return y


def launch_gated_activation_backward(grad_y, x, bias, condition, kind, need_x, need_bias):
    need_bias = need_bias and bias is not None
    grad = grad_bias = x.new_empty(0)
    if need_x or need_bias:
        # bias's gradient is the sum of x's before that is rounded to 16 bits
        grad = _empty(x.shape, x, torch.promote_types(x.dtype, torch.float32) if need_bias else x.dtype)
        own_bias, arguments = _gate_arguments(bias, kind)
        dense, condition, grad_y = _laid_out(x, x, condition, grad_y)
        _launch(_gate_backward, grad_y.shape, (grad_y, dense, own_bias, condition, grad), x, **arguments)
    if need_bias:
        summed = grad[..., None].flatten(2).sum(2)
        grad_bias = (summed if bias.dim() == 2 else summed.sum(0)).to(x.dtype)
    return grad.to(x.dtype) if need_x else x.new_empty(0), grad_bias


def launch_concat_elu(x):
    y = _empty((x.shape[0], 2 * x.shape[1], *x.shape[2:]), x, x.dtype)
    _launch(_elu, x.shape, (*_laid_out(x, x), y), x)
    return y


def launch_concat_elu_backward(grad_y, x):
    grad_x = _empty(x.shape, x, x.dtype)
    _launch(_elu_backward, x.shape, (*_laid_out(x, grad_y, x), grad_x), x)
    return grad_x
