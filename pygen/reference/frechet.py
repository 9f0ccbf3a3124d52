"""The trace of a root of a product, and polar factors, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def mirrored(lower: Tensor) -> Tensor:
    """The symmetric matrix [..., d, d] of a lower triangle; what lies above the diagonal is not read."""
    return lower.tril() + lower.tril(-1).mT


def trace_sqrt_product(sigma1: Tensor, sigma2: Tensor) -> tuple[Tensor, Tensor]:
    """tr (sigma1 sigma2)^(1/2) = sum of sqrt lambda(L' sigma2 L) for sigma1 = L L', and how far rounding may move it.

    See `pygen.ops.trace_sqrt_product`."""
    if sigma1.shape[-1] == 0:
        return sigma1.new_zeros(sigma1.shape[:-2]), sigma1.new_zeros(sigma1.shape[:-2])
    nan = sigma1.tril().isnan().any((-2, -1)) | sigma2.tril().isnan().any((-2, -1))
    eye = torch.eye(sigma1.shape[-1], dtype=sigma1.dtype, device=sigma1.device)

    def ready(sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Of a size around 1, which squares cannot take out of range; and the square root of what was divided by."""
        scale = sigma.tril().abs().amax((-2, -1)).clamp(min=torch.finfo(sigma.dtype).tiny)
        return torch.where(nan[..., None, None], eye, mirrored(sigma) / scale[..., None, None]), scale.sqrt()

    (one, root1), (two, root2) = ready(sigma1), ready(sigma2)
    factor, info = torch.linalg.cholesky_ex(one)
    other, other_info = torch.linalg.cholesky_ex(two)
    first = (info == 0)[..., None, None]
    factor, two = torch.where(first, factor, other), torch.where(first, two, one)
    neither = (info != 0) & (other_info != 0)
    factor = torch.where(neither[..., None, None], eye, factor)
    values = torch.linalg.eigvalsh(mirrored(factor.mT @ two @ factor)).clamp(min=0)
    roots = values.sqrt()
    noise = 4 * torch.finfo(values.dtype).eps * values.square().mean(-1, keepdim=True).sqrt()
    unit = root1 * root2
    gains = (noise / ((values + noise).sqrt() + roots)).nan_to_num(0)  # sqrt(values + noise) - roots, not cancelled
    trace, bound = unit * roots.sum(-1), unit * gains.sum(-1)
    trace = trace.masked_fill(neither | nan, torch.nan)
    return trace, bound.masked_fill(neither, torch.inf).masked_fill(nan, torch.nan)


def polar(b: Tensor) -> tuple[Tensor, Tensor]:
    """The polar factor P = U V' of b = U S V' [..., m, n], and the nuclear norm, the sum of S, [...]."""
    if b.numel() == 0:
        return torch.zeros_like(b), b.new_zeros(b.shape[:-2])
    one = 1 + 0 * b.abs().amax((-2, -1))  # [...], NaN where b is not finite
    u, s, vh = torch.linalg.svd(b.masked_fill(one.isnan()[..., None, None], 0), full_matrices=False)
    factor = (u * (s > 0)[..., None, :]) @ vh
    return factor * one[..., None, None], s.sum(-1) * one
