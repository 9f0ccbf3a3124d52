"""How far from the truth is too far.

The truth is the reference in float64, on the inputs as rounded to the dtype under test. Let e be the error of eager
PyTorch, that is of the reference in the dtype under test. Then, in each row of an output or gradient (a sample of a
tensor of rank >= 2; a tensor of lower rank is one row), every element must satisfy

    |ours - truth|  <=  2 max e  +  eps max |truth|  +  allowance

and the whole tensor, from 16 elements on, the same with root mean squares in place of the maxima.

- Maxima, since rounding errors fall on different elements in two implementations that are equally good. For the same
  reason e is taken over several runs of eager, each on inputs a few per cent off with a truth of its own: a sum that is
  one number may come out exact by luck. (With one run 15 of 1024 cases of affine_coupling's gradient formulas against
  autograd of the same formulas failed, all by less than a factor 3; with five, 1 in 1000 of its kernels' cases.) So
  a few runs at first, and many before an op is found wrong.
- The factor 2: another order of operations may round in unlucky ways, but not be of another quality.
- eps max |truth|, one unit in the last place of the row's largest element: eager may have fewer steps than a kernel
  that recomputes, while one correctly rounded function and one rounding to storage may each be off by half of that.
- float64 has no wider truth: eager's error there is that of its float32 run times eps(float64) / eps(float32), since
  rounding errors are proportional to eps; and the whole bound is taken 8 times, for the truth is itself off, the
  float32 run only stands in, and no accumulator is wider than the data. (Worst seen with affine_coupling: 5 times the
  bound, a log-determinant that is a sum of 264 equal terms.)
- allowance: what an op declares for a mode that recovers or stores values it cannot keep, or for what rounding its
  input would change anyway (see `OpSpec.allowance`): one number, or one an element. An infinite one leaves shapes and
  dtypes alone to be right.

Where the truth is NaN, or infinite, or past the dtype's largest number, ours must be NaN, or the same infinity, or
infinite or the largest number; nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from .calls import Call, Tensors, evaluate
from .spec import Dtypes, OpSpec

RUNS = (4, 64)  # of eager: on the inputs themselves, and on inputs near them


def assert_accurate(
    name: str, ours: Tensor, truth: Tensor, eager_error: Tensor, allowance: float | Tensor = 0.0
) -> None:
    """The rule above for one tensor. eager_error: |eager - truth| in each run, [runs, *shape]."""
    assert ours.shape == truth.shape, f"{name}: expected shape {tuple(truth.shape)}, got {tuple(ours.shape)}"
    if not isinstance(allowance, Tensor) and allowance == math.inf:
        return
    limit = torch.finfo(ours.dtype)
    ours = ours.double()

    def refuse(wrong: Tensor, what: str) -> None:
        if wrong.any():
            where = tuple(wrong.nonzero()[0].tolist())
            pair = f"got {ours[wrong][0]:.9g}, expected {truth[wrong][0]:.9g}"
            raise AssertionError(f"{name}: {what}: {wrong.sum()} of {wrong.numel()} elements, first {where}: {pair}")

    refuse(ours.isnan() != truth.isnan(), "NaN where it should not be, or missing")
    too_large = truth.abs() > limit.max
    refuse(too_large & ((ours.sign() != truth.sign()) | (ours.abs() < limit.max)), "not infinite")
    outside = truth.isnan() | too_large
    refuse(ours.isinf() & ~outside, "infinite where the result is representable")
    if truth.numel() == 0:
        return

    error = (ours - truth).abs().masked_fill(outside, 0)
    size = truth.abs().masked_fill(outside, 0)
    eager_error = eager_error.masked_fill(~eager_error.isfinite(), 0)
    times = 8 if limit.dtype == "float64" else 1
    rest = allowance + limit.smallest_normal * limit.eps  # the smallest number of all
    bound = times * (2 * _row_max(eager_error).amax(0) + limit.eps * _row_max(size[None])[0]) + rest
    refuse(error > bound, f"off by up to {error.max():.3g}, bound {bound.min():.3g} to {bound.max():.3g}")
    if truth.numel() >= 16:
        rms_bound = times * (2 * _rms(eager_error) + limit.eps * _rms(size))
        rms_bound += _rms(rest) if isinstance(rest, Tensor) else rest
        assert _rms(error) <= rms_bound, f"{name}: RMS error {_rms(error):.3g}, bound {rms_bound:.3g}"


def _row_max(t: Tensor) -> Tensor:
    """Of [runs, *shape]: maxima over the rows, kept as dimensions of size one."""
    return t.amax(tuple(range(2 if t.dim() > 2 else 1, t.dim())), keepdim=True)


def _rms(t: Tensor) -> float:
    largest = t.max().item()
    return largest * (t / largest).square().mean().sqrt().item() if largest else 0.0


def _near(t: Tensor, seed: int) -> Tensor:
    """A few per cent off, repeated where t repeats (a sum of equal terms adds up their one error)."""
    if not t.is_floating_point():
        return t
    once = t.detach()[tuple(slice(None if stride else 1) for stride in t.stride())]
    noise = torch.randn(once.shape, generator=torch.Generator().manual_seed(seed)).to(once)
    return (once * (1 + 0.02 * noise)).expand(t.shape)


def judge(
    spec: OpSpec, call: Call, dtypes: Dtypes, upstream: Mapping[str, Tensor], runs: int
) -> tuple[Tensors, Tensors, Tensors]:
    """True outputs, true gradients, and by name, for both, eager's errors over some runs."""

    def truth_of(c: Call) -> tuple[Tensors, Tensors]:
        return evaluate(spec, spec.reference, c.double(), {k: g.double() for k, g in upstream.items()})

    def error_of(c: Call, outputs: Tensors, grads: Tensors) -> Tensors:
        eager, eager_grads = evaluate(spec, spec.reference, c, dict(upstream))
        return {k: (t.double() - (outputs | grads)[k]).abs() for k, t in (eager | eager_grads).items()}

    outputs, grads = truth_of(call)
    ratio = 1.0
    if dtypes.data == torch.float64:
        ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        call = call.map(lambda t: t.float() if t.is_floating_point() else t)
    errors = []
    for i in range(runs):
        near = call.map(partial(_near, seed=i)) if i else call
        first = (outputs, grads) if i == 0 and ratio == 1 else truth_of(near)
        errors.append(error_of(near, *first))
    return outputs, grads, {k: ratio * torch.stack([e[k] for e in errors]) for k in errors[0]}
