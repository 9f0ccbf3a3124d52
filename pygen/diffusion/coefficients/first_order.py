"""Steps that need one evaluation and no history: DDIM, Euler's, ancestral and consistency steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from ..level import Level, Predicted
from ..step import X0, Row, Step, X, Z

Variance = Literal["fixed_small", "fixed_large", "learned", "learned_range"]

_LEAST_VARIANCE = 1e-20  # of a posterior that is certain: it has a logarithm


def transfer(now: Level, then: Level, eps: Row, x: Row = X) -> Row:
    """x carried from one level to another along a direction eps: DDIM's map, Song et al. 2020 (2010.02502), eq. 13.

    It is Euler's step of dx = eps d sigma where alpha = 1, and of a flow where alpha + sigma = 1.
    """
    if not now.alpha:
        raise ValueError("expected data in the state for a step along eps, got a level of noise alone, alpha = 0")
    ratio = then.alpha / now.alpha
    return ratio * x + (then.sigma - ratio * now.sigma) * eps


def clamped_eps(now: Level) -> Row:
    """The noise in x if the data are x0 as it was clamped."""
    return (X - now.alpha * X0) / now.sigma


def added_variance(now: Level, then: Level) -> float:
    """What noise between two levels, `now` the noisier, adds; beta where variance is preserved."""
    return max(now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2, 0.0)


def posterior_std(now: Level, then: Level) -> float:
    """Of x at `then` given x at `now` and the data: Ho et al. 2020 (2006.11239), eq. 7, for any alpha and sigma."""
    if then.sigma == 0 or now == then:
        return 0.0
    return min(then.sigma, then.sigma / now.sigma * math.sqrt(added_variance(now, then)))


def ddim(
    now: Level,
    then: Level,
    model: Predicted,
    *,
    eta: float = 0.0,
    reuse_clamped: bool = False,
    noise_scale: float = 1.0,
) -> Step:
    """Song et al. 2020 (2010.02502), eq. 12, for any alpha and sigma; alpha = 1: Euler's and Euler's ancestral step.

    eta: the share of the posterior's standard deviation that is drawn anew; 1 is ancestral sampling.
    reuse_clamped: the direction comes from the clamped x0, not from what the network said.
    noise_scale: of the noise drawn.
    """
    std = min(eta * posterior_std(now, then), then.sigma) if eta else 0.0
    left = math.sqrt(then.sigma**2 - std**2)
    row = then.alpha * X0 + noise_scale * std * Z
    if left:
        row += left * (clamped_eps(now) if reuse_clamped else model.eps)
    return Step(*model.data, (row,))


def ddpm(now: Level, then: Level, model: Predicted, *, variance: Variance = "fixed_small", noisy: bool = True) -> Step:
    """Ho et al. 2020 (2006.11239), eq. 7: the posterior's mean, and a choice of variance.

    variance: fixed_small, the posterior's; fixed_large, beta; learned_range, between the two by the network's further
    output v in [-1, 1], Nichol and Dhariwal 2021 (2102.09672), eq. 15; learned, exp(2 v).
    noisy: False for the last step.
    """
    mean = ddim(now, then, model, eta=1.0, reuse_clamped=True)
    small = max(posterior_std(now, then) ** 2, _LEAST_VARIANCE)
    large = max(added_variance(now, then), _LEAST_VARIANCE)
    std, log_std = {
        "fixed_small": (math.sqrt(small), None),
        "fixed_large": (math.sqrt(large), None),
        "learned_range": (1.0, (math.log(large * small) / 4, math.log(large / small) / 4)),
        "learned": (1.0, (0.0, 1.0)),
    }[variance]
    return Step(*model.data, (replace(mean.rows[0], noise=std if noisy else 0.0),), log_std=log_std)


def consistency(
    then: Level, model: Predicted, *, skip: float = 0.0, out: float = 1.0, noise_scale: float = 1.0
) -> Step:
    """The data predicted, noised anew to `then`: Song et al. 2023 (2303.01469), algorithm 1; of a flow too.

    skip, out: the data are skip x + out x0, as in latent consistency models, Luo et al. 2023 (2310.04378), eq. 9.
    """
    return Step(*model.data, (then.alpha * (skip * X + out * X0) + noise_scale * then.sigma * Z,))


def trajectory_consistency(now: Level, middle: Level, then: Level, model: Predicted) -> Step:
    """DDIM to `middle`, and noise from there to `then`: Zheng et al. 2024 (2402.19159), algorithm 4.

    middle: has at most the noise of `then`.
    """
    kept = then.alpha / middle.alpha
    row = kept * (middle.alpha * X0 + middle.sigma * model.eps) + math.sqrt(added_variance(then, middle)) * Z
    return Step(*model.data, (row,))
