"""The two kernels of the Frechet distance: the trace of a root of a product of covariances, and the polar factor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import backends
from .._lib import define, not_differentiable, once_differentiable, refuse_tangents, without_autocast
from ..reference import frechet as reference

# --- trace_sqrt_product -----------------------------------------------------------------------------------------------


def _check_trace(sigma1: Tensor, sigma2: Tensor) -> None:
    for name, sigma in (("sigma1", sigma1), ("sigma2", sigma2)):
        if sigma.dtype != torch.float64:
            raise TypeError(f"trace_sqrt_product: expected {name} of torch.float64, got {sigma.dtype}")
        if sigma.dim() < 2 or sigma.shape[-1] != sigma.shape[-2]:
            raise ValueError(f"trace_sqrt_product: expected {name} [..., d, d], got {tuple(sigma.shape)}")
    if sigma1.shape != sigma2.shape:
        raise ValueError(
            f"trace_sqrt_product: expected sigma1 and sigma2 of one shape, got {tuple(sigma1.shape)} "
            f"and {tuple(sigma2.shape)}"
        )
    if sigma1.device != sigma2.device:
        raise ValueError(f"trace_sqrt_product: expected sigma2 on {sigma1.device} as sigma1, got {sigma2.device}")


def _default_trace(sigma1: Tensor, sigma2: Tensor) -> tuple[Tensor, Tensor]:
    _check_trace(sigma1, sigma2)
    return reference.trace_sqrt_product(sigma1, sigma2)


def _fake_trace(sigma1: Tensor, sigma2: Tensor) -> tuple[Tensor, Tensor]:
    _check_trace(sigma1, sigma2)
    return sigma1.new_empty(sigma1.shape[:-2]), sigma1.new_empty(sigma1.shape[:-2])


define(
    "trace_sqrt_product(Tensor sigma1, Tensor sigma2) -> (Tensor trace, Tensor bound)",
    family="frechet",
    default=_default_trace,
    fake=_fake_trace,
    check=_check_trace,
    cuda="triton",
)


def trace_sqrt_product(sigma1: Tensor, sigma2: Tensor) -> tuple[Tensor, Tensor]:
    """tr (sigma1 sigma2)^(1/2) of symmetric positive semidefinite matrices from one Cholesky factor, and its error::

        sigma1 = L L'    lambda = eigenvalues of L' sigma2 L    trace = sum of sqrt max(lambda, 0)

    The eigenvalues are those of sigma1 sigma2, of a symmetric matrix, so nothing turns complex or negative. Where
    sigma1 has no Cholesky factor, sigma2's is taken.

    sigma1, sigma2: [B, d, d], or any number of leading dimensions, none too; float64. Lower triangles are read alone.

    Returns trace and bound, [B] float64. bound estimates how far rounding may move the trace: eigenvalues come out with
    an absolute error of up to delta, which makes up to sqrt(delta) of the root of each that is 0::

        bound = sum of sqrt(lambda + delta) - sqrt(lambda)      delta = 4 eps sqrt(mean of lambda^2)

    (Measured for singular matrices of d = 64 to 1024 with flat to steep spectra: a third of this delta at most.)

    Where neither matrix has a Cholesky factor the trace is NaN and the bound infinite; NaN in a matrix makes both NaN.
    `pygen.metrics.trace_sqrt_product` looks at the bound and takes singular values instead where it is too large.
    Form d of the identities in Heusel et al. 2017 (arXiv 1706.08500, equation 6): (S1 S2)^(1/2) and (L' S2 L)^(1/2)
    are similar.

    On CUDA the singular values of L1' L2 are summed by a polar iteration (`polar`) of 19 steps, which takes both
    factors: where either is missing the trace is NaN and the bound infinite. The bound is then of what has not
    converged, less than 1e-6 of the trace where eigenvalues fall off geometrically. 82 d^3 operations.

    Not differentiable: raises for matrices that require grad where gradients are recorded (`pygen.metrics.frechet_loss`
    has the gradient for features). torch.autocast changes nothing. Bytes moved: both matrices, and about d^3 / 6
    elements in d passes over what is left to reduce; on CUDA some 130 matrices. About 3 d^3 operations on the CPU.
    Backends: C++ (AVX-512, AVX2, baseline) on the CPU, matrix products on CUDA, else the reference.

    Raises ValueError for shapes and devices that do not fit, TypeError for dtypes.
    """
    not_differentiable("trace_sqrt_product", "use pygen.metrics.frechet_loss", sigma1, sigma2)
    if backends.forced is not None and backends.choose("trace_sqrt_product", sigma1) == "reference":
        return _default_trace(sigma1, sigma2)
    return torch.ops.pygen.trace_sqrt_product(sigma1, sigma2)  # type: ignore[no-any-return]


# --- polar ------------------------------------------------------------------------------------------------------------


def _check_polar(b: Tensor) -> None:
    if b.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"polar: expected b of torch.float32 or torch.float64, got {b.dtype}")
    if b.dim() < 2:
        raise ValueError(f"polar: expected b [..., m, n], got {tuple(b.shape)}")


def _default_polar(b: Tensor) -> tuple[Tensor, Tensor]:
    _check_polar(b)
    with without_autocast(b):
        factor, norm = reference.polar(b)
    return factor.contiguous(), norm


def _fake_polar(b: Tensor) -> tuple[Tensor, Tensor]:
    _check_polar(b)
    return b.new_empty(b.shape), b.new_empty(b.shape[:-2])


def _default_polar_backward(grad_norm: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    return grad_norm[..., None, None] * factor


def _fake_polar_backward(grad_norm: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(factor)


def _setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[0])
    ctx.save_for_backward(*inputs, output[0])


def _backward(ctx: Any, grad_polar: Tensor, grad_norm: Tensor) -> Tensor:
    return torch.ops.pygen.polar_backward(grad_norm, *ctx.saved_tensors)  # type: ignore[no-any-return]


define(
    "polar(Tensor b) -> (Tensor polar, Tensor norm)",
    family="frechet",
    default=_default_polar,
    fake=_fake_polar,
    setup_context=_setup_context,
    backward=_backward,
    check=_check_polar,
    cuda="triton",
)
define(
    # It needs no b, but to a second derivative b is what counts, and that must raise.
    "polar_backward(Tensor grad_norm, Tensor b, Tensor polar) -> Tensor",
    family="frechet",
    default=_default_polar_backward,
    fake=_fake_polar_backward,
    backward=once_differentiable("polar_backward"),
    check=_fake_polar_backward,
    cuda=None,
)


def polar(b: Tensor) -> tuple[Tensor, Tensor]:
    """The polar factor of a matrix, and its nuclear norm, which is differentiable::

        b = U S V'    polar = U V'    norm = sum of S = <polar, b>    d norm / d b = polar

    b: [B, m, n], or any number of leading dimensions, none too; float32 or float64.

    Returns polar, shaped as b, contiguous, and norm [B], both in b's dtype. Nothing is squared, so the norm is right
    to about eps |b| sqrt(min(m, n)), where the eigenvalues of b' b would give sqrt(eps). Singular values below about
    eps |b| count for nothing in the norm, and their directions in polar are arbitrary, of length 1 at most. NaN or an
    infinity in a matrix makes its polar and norm NaN, those of no other.

    On the CPU for small square matrices, and on CUDA, it is an iteration of matrix products alone:
    x <- a x (3 - a^2 x'x) / 2, scaled so that the smallest singular value grows fastest (Bjoerck and Bowie 1971,
    doi 10.1137/0708036; scaled as by Chen and Chow 2014, "A stable scaling of Newton-Schulz for improving the sign
    function computation", section 3), with a margin that no rounding crosses; the number of steps depends on the dtype
    alone. Other float32 matrices on the CPU: b (b'b)^(-1/2) by the eigenvalues of b'b in float64, which hold all that
    float32 tells of b.

    The norm is differentiable once, with polar as its gradient (a subgradient where b is singular); twice raises
    NotImplementedError. polar itself never requires grad. The backward keeps polar and b. torch.autocast changes
    nothing. Bytes moved: b in and polar out. With n the shorter side, the iteration takes 21 steps of 3 n^3 operations
    in float32, 44 in float64. Backends: C++ (AVX-512, AVX2, baseline) on the CPU for square matrices up to n = 128
    (float64: 32), squares for the rest of float32; on CUDA one Triton program to a matrix whose longer side is at most
    128 (float64: 64), for others one after the other products in float64, 84 m n^2 operations or 176 m n^2, no TF32
    whatever torch allows; else the reference, by singular values. What LAPACK computes has the same bits for the same
    number of threads only.

    Raises ValueError for shapes, TypeError for dtypes.
    """
    if backends.forced is not None and backends.choose("polar", b) == "reference":
        return _default_polar(b)
    if forward_ad._current_level >= 0:
        refuse_tangents("polar", b)
    return torch.ops.pygen.polar(b)  # type: ignore[no-any-return]
