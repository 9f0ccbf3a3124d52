"""Sums of first and second moments of a stream of features."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backends
from .._lib import FLOATS, define, names, not_differentiable
from ..reference import moments as reference


def _check(x: Tensor, shift: Tensor, total: Tensor, scatter: Tensor) -> None:
    if x.dtype not in FLOATS:
        raise TypeError(f"accumulate_moments: expected x of {names(FLOATS)}, got {x.dtype}")
    if x.dim() != 2:
        raise ValueError(f"accumulate_moments: expected features x [N, d], got {tuple(x.shape)}")
    d = x.shape[1]
    for name, tensor, shape in (("shift", shift, (d,)), ("total", total, (d,)), ("scatter", scatter, (d, d))):
        if tensor.dtype != torch.float64:
            raise TypeError(f"accumulate_moments: expected {name} of torch.float64, got {tensor.dtype}")
        if tensor.shape != shape:
            raise ValueError(f"accumulate_moments: expected {name} {shape} for x [N, {d}], got {tuple(tensor.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"accumulate_moments: expected {name} on {x.device} as x, got {tensor.device}")
    for name, tensor in (("total", total), ("scatter", scatter)):
        if not tensor.is_contiguous():
            raise ValueError(f"accumulate_moments: expected {name} contiguous, got strides {tensor.stride()}")


def _default(x: Tensor, shift: Tensor, total: Tensor, scatter: Tensor) -> None:
    _check(x, shift, total, scatter)
    new_total, new_scatter = reference.accumulate_moments(x, shift, total, scatter)
    total.copy_(new_total)
    scatter.copy_(new_scatter)


def _fake(x: Tensor, shift: Tensor, total: Tensor, scatter: Tensor) -> None:
    _check(x, shift, total, scatter)


define(
    "accumulate_moments(Tensor x, Tensor shift, Tensor(a!) total, Tensor(b!) scatter) -> ()",
    family="moments",
    default=_default,
    fake=_fake,
    check=_check,
    cuda="triton",
)


def accumulate_moments(x: Tensor, shift: Tensor, total: Tensor, scatter: Tensor) -> None:
    """Adds the moments of features about a fixed point to running sums, in place::

        total   += sum_i (x_i - shift)
        scatter += sum_i (x_i - shift)(x_i - shift)'       the lower triangle, with the diagonal

    x: [N, d], any strides; N may be 0; float32, float64, bfloat16 or float16.
    shift: [d] float64: a point near the mean, such as the first batch's, the same for all calls. It takes the
        cancellation out of the covariance scatter / n - total total' / n^2, so that products may be float32's.
    total, scatter: [d] and [d, d], contiguous, float64. Above the diagonal scatter stays as it is.

    `pygen.metrics.StreamingMoments` keeps these sums, chooses the shift and merges. Chan, Golub and LeVeque 1983
    (doi 10.1080/00031305.1983.10483115, section 3, shifted data).

    Differences are float64; of float32 and 16-bit x they are rounded to float32, multiplied and added in float32 for
    256 rows at most (full float32, TF32 never), and those sums are added in float64: differences have to stay below
    1e18. float64 x is float64 throughout.
    NaN in a feature reaches its element of total, and its row and column of scatter. The same bits for any number of
    threads; other batch sizes round otherwise. torch.autocast changes nothing. Not differentiable: it raises for x that
    requires grad where gradients are recorded, so detach it.

    Bytes moved: x once, and for each 256 rows the lower triangle of scatter once in and once out. Backends: C++
    (AVX-512, AVX2, baseline) on the CPU, Triton on CUDA, else the reference.

    Raises ValueError for shapes, strides and devices that do not fit, TypeError for dtypes, NotImplementedError for x
    that requires grad. Before it raises nothing is changed.
    """
    not_differentiable("accumulate_moments", "detach x", x, shift, total, scatter)
    if backends.forced is not None and backends.choose("accumulate_moments", x) == "reference":
        _default(x, shift, total, scatter)
    else:
        torch.ops.pygen.accumulate_moments(x, shift, total, scatter)
