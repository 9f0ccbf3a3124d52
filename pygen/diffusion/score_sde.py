"""Predictor-corrector sampling of score-based SDEs: Song et al. 2021 (2011.13456), algorithms 2 to 5.

The corrector's step depends on the norms of the score and of the noise, so that this is no plan: its coefficients are
made on the device, sample by sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .. import random
from .._arguments import check_choice, check_integer, check_number
from .._seed import Source, seed_of
from ..ops import diffusion_step, sample_stats
from .coefficients import sde
from .guidance import langevin_step
from .level import Level, predicted
from .step import Step, table

Score = Callable[[Tensor, Tensor], Tensor]
Kind = Literal["ve", "vp", "sub-vp"]
Predictor = Literal["reverse-diffusion", "ancestral", "euler-maruyama", "none"]

_PREDICTS, _CORRECTS = 0, 1  # draws of a step of the stream; a corrector's k-th is _CORRECTS + k


class _Moment(NamedTuple):
    """An SDE at a time: the level, and the discrete step that ends there, x_i = (1 + drift) x_{i-1} + diffusion z."""

    level: Level
    drift: float
    diffusion: float
    kept: float  # of the variance, for the corrector: 1 - beta, or 1


def _moments(kind: Kind, steps: int, low: float, high: float) -> list[_Moment]:
    """From the noisiest to the first; low, high: sigmas of ve, beta(0) and beta(1) otherwise."""
    if kind == "ve":
        sigmas = [low * (high / low) ** (i / max(steps - 1, 1)) for i in range(steps)]
        found = [
            _Moment(Level(1.0, s), 0.0, math.sqrt(s**2 - before**2), 1.0)
            for s, before in zip(sigmas, [0.0, *sigmas[:-1]], strict=True)
        ]
        return found[::-1]
    found, product = [], 1.0
    for i in range(steps):
        share = i / max(steps - 1, 1)
        beta = (low + share * (high - low)) / steps
        product *= 1 - beta
        drift, diffusion, sigma = math.sqrt(1 - beta) - 1, math.sqrt(beta), math.sqrt(1 - product)
        if kind == "sub-vp":  # of t = (i + 1) / steps: eq. 29, whose noise is what vp's variance is
            t = (i + 1) / steps
            integral = low * t + (high - low) * t**2 / 2
            sigma = -math.expm1(-integral)
            drift, diffusion = -beta / 2, math.sqrt(beta * -math.expm1(-2 * integral))
            found.append(_Moment(Level(math.exp(-integral / 2), sigma), drift, diffusion, 1 - beta))
        else:
            found.append(_Moment(Level(math.sqrt(product), sigma), drift, diffusion, 1 - beta))
    return found[::-1]


@torch.no_grad()
def predictor_corrector(
    score: Score,
    x: Tensor,
    *,
    kind: Kind = "vp",
    steps: int = 1000,
    low: float | None = None,
    high: float | None = None,
    predictor: Predictor = "reverse-diffusion",
    corrector_steps: int = 1,
    snr: float = 0.16,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
) -> Tensor:
    """Samples from a score: for each of `steps` times a step of the reverse SDE and Langevin steps at its level.

    score: score(x, t) of states [B, ...] at times t [B], from 1 down to 1 / steps: the gradient of log p_t(x).
    x: the first state, normal noise: of deviation `high` for ve, 1 otherwise. float32 or float64.
    kind: ve, of sigmas geometric from low to high (0.01, 50); vp and sub-vp, of beta(t) linear from low to high
        (0.1, 20).
    predictor: reverse-diffusion, eq. 46; ancestral, Ho et al.'s; euler-maruyama; none. For sub-vp ancestral is none.
    corrector_steps, snr: Langevin steps of size 2 a (snr |z| / |score|)^2, a = 1 - beta (ve: 1), whose norms are those
        of each sample, see `pygen.diffusion.guidance.langevin_step`.
    generator, first_sample, sample_ids: see `pygen.random`.

    Returns the last state without its noise, as the authors do. Raises ValueError for names and numbers.
    """
    check_choice("kind", kind, get_args(Kind))
    check_choice("predictor", predictor, get_args(Predictor))
    if kind == "sub-vp" and predictor == "ancestral":
        raise ValueError("expected another predictor than ancestral for sub-vp, which has no such step")
    usual = (0.01, 50.0) if kind == "ve" else (0.1, 20.0)
    low, high = usual[0] if low is None else low, usual[1] if high is None else high
    check_number("low", low, 0, above=kind == "ve")
    check_number("high", high, low)
    check_integer("steps", steps, 1 if kind == "ve" else math.floor(high) + 1)  # a step adds a variance of at most 1
    check_integer("corrector_steps", corrector_steps, 0)
    check_number("snr", snr, 0)
    moments = _moments(kind, steps, low, high)
    seed = seed_of(generator)

    def noise(i: int, draw: int) -> Tensor:
        return random.normal(
            x.shape, generator=seed, first_sample=first_sample, sample_ids=sample_ids, step=i + 1, draw=draw,
            dtype=x.dtype, device=x.device,
        )  # fmt: skip

    mean, correction = x, table([sde.langevin()])
    for i, moment in enumerate(moments):
        t = torch.full([len(x)], 1 - i / steps, dtype=x.dtype, device=x.device)
        for k in range(corrector_steps):
            z, g = noise(i, _CORRECTS + k), score(x, t)
            size = langevin_step(sample_stats(g), sample_stats(z), snr, moment.kept)
            z = z * (2 * size).sqrt().to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
            x, mean = diffusion_step(x, [g], correction, 0, rows=2, rescale=size, noise=z)
        if predictor != "none":
            after = moments[i + 1].level if i + 1 < steps else Level(1.0, 0.0)
            step = _prediction(kind, predictor, moment, after)
            x, mean = diffusion_step(x, [score(x, t)], table([step]), 0, rows=2, noise=noise(i, _PREDICTS))
    return mean


def _prediction(kind: Kind, predictor: Predictor, moment: _Moment, after: Level) -> Step:
    model = predicted("score", moment.level)
    if predictor == "ancestral":
        if kind == "vp":
            return sde.ancestral_vp(moment.level, 1 - moment.kept, model)
        return sde.ancestral_ve(moment.level, after, model)
    if predictor == "euler-maruyama" and kind == "vp":  # the SDE itself: f dt = -beta / 2 x
        return sde.reverse_diffusion(moment.level, model, drift=(moment.kept - 1) / 2, diffusion=moment.diffusion)
    return sde.reverse_diffusion(moment.level, model, drift=moment.drift, diffusion=moment.diffusion)
