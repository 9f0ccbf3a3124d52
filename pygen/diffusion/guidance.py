"""Guidance by sums: what `pygen.ops.sample_stats` of two of a model's outputs says about any combination of them.

u is the unconditional output, c the conditional one, and the guided one g = u + scale (c - u). `stats` are those of
(u, c): [B, 5], sums of u, c, u u, u c and c c over the n elements of a sample. Nothing here reads u or c again, waits
for a device, or divides by zero: where a norm or a deviation is 0, guidance falls back to the plain one.

Results are float64 [B]: a rescaling for `pygen.ops.diffusion_step(..., rescale=)`, or weights of u and c for the first
columns of its table, one row for each sample.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def _over(a: Tensor, b: Tensor, otherwise: float) -> Tensor:
    """a / b, and `otherwise` where b is 0."""
    return torch.where(b == 0, otherwise, a / torch.where(b == 0, 1.0, b))


def rescale_guidance(stats: Tensor, scale: float, amount: float, n: int) -> Tensor:
    """The factor of g that keeps its standard deviation near the conditional output's, [B]::

        r = amount std(c) / std(g) + 1 - amount

    Lin et al. 2023 (arXiv 2305.08891, equations 15 and 16; amount is their phi, 0.7). 1 where std(g) is 0, to the
    rounding of sums that cancel. n: elements of a sample.
    """
    moments = stats[:, 2:]  # uu, uc, cc
    left, right, weights, rounding = _constants(scale, stats.device)
    central = torch.addcmul(  # n times variances and the covariance
        moments, stats.index_select(1, left), stats.index_select(1, right), value=-1 / n
    )
    of_g, of_c = torch.mv(central, weights), central[:, 2].clamp(min=0)
    ratio = torch.where(of_g <= torch.mv(moments, rounding), 1.0, (of_c / of_g).sqrt())
    return ratio.mul_(amount).add_(1 - amount)


@lru_cache(maxsize=64)
def _constants(scale: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of `rescale_guidance`, made once, since a call is short: the factors of products of two sums, the weights of
    moments in those of g, and how much of moments is rounding."""
    weights = torch.tensor([(1 - scale) ** 2, 2 * scale * (1 - scale), scale**2], dtype=torch.float64, device=device)
    rounding = 4 * torch.finfo(torch.float64).eps * weights.clamp(min=0)
    return torch.tensor([0, 0, 1], device=device), torch.tensor([0, 1, 1], device=device), weights, rounding


def projected_guidance(
    stats: Tensor, scale: float, *, eta: float = 0.0, norm_threshold: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The weights of u and c in adaptive projected guidance, [B] each::

        d = (c - u) min(1, norm_threshold / |c - u|)        without a threshold (0): c - u
        g = c + (scale - 1) (d_orthogonal + eta d_parallel)

    with d split by its direction to c. Sadat et al. 2024 (arXiv 2410.02416, section 4), without momentum, which is a
    matter of what d is made of. eta = 1 without a threshold is plain guidance.
    """
    _, _, uu, uc, cc = stats.unbind(1)
    length = (cc - 2 * uc + uu).clamp(min=0).sqrt()
    shrunk = _over(torch.full_like(length, norm_threshold), length, 1.0).clamp(max=1) if norm_threshold > 0 else 1.0
    parallel = _over(cc - uc, cc, 0.0)  # of c - u, in units of c
    w_u = (1 - scale) * shrunk * torch.ones_like(cc)
    return w_u, 1 - w_u * (1 - (1 - eta) * parallel)


def zero_star_guidance(stats: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The weights of u and c in CFG-Zero*, [B] each: guidance from s u with the s for which s u is nearest to c::

        s = <u, c> / <u, u>        g = (1 - scale) s u + scale c

    Fan et al. 2025 (arXiv 2503.18886). Its zero-init, no step at all at first, is up to the loop.
    """
    _, _, uu, uc, _ = stats.unbind(1)
    return (1 - scale) * _over(uc, uu, 1.0), torch.full_like(uu, scale)


def langevin_step(score_stats: Tensor, noise_stats: Tensor, snr: float, alpha: float | Tensor = 1.0) -> Tensor:
    """The step of a Langevin corrector, [B]::

        epsilon = 2 alpha (snr |z| / |score|)^2        x' = x + epsilon score + sqrt(2 epsilon) z

    with the norms of each sample, so that none depends on its batch. Song et al. 2021 (arXiv 2011.13456, algorithms 4
    and 5; alpha is 1 for the variance-exploding process; the authors' code takes means of norms over the batch). 0
    where the score is. score_stats, noise_stats: `sample_stats` of one tensor each.
    """
    score, noise = (stats[:, -1].sqrt() for stats in (score_stats, noise_stats))
    return 2 * alpha * (snr * _over(noise, score, 0.0)).square()
