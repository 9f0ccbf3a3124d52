"""Steps of score-based SDEs, Song et al. 2021 (2011.13456), and noise put on again."""

from __future__ import annotations

import math
from dataclasses import replace

from ..level import Level, Predicted
from ..step import G, Row, Step, X, Z
from .first_order import added_variance, ddim, posterior_std


def score(now: Level, model: Predicted) -> Row:
    """The gradient of log p(x), -eps / sigma."""
    return -1 / now.sigma * model.eps


def reverse_diffusion(now: Level, model: Predicted, *, drift: float = 0.0, diffusion: float) -> Step:
    """Back over x_i+1 = (1 + drift) x_i + diffusion z: eq. 46. Also Euler and Maruyama's step, of f dt and g sqrt(dt).

    y1 is the state without the noise drawn, which the last step returns.
    """
    mean = (1 - drift) * X + diffusion**2 * score(now, model)
    return Step(*model.data, (mean + diffusion * Z, mean))


def ancestral_vp(now: Level, beta: float, model: Predicted) -> Step:
    """Ho's ancestral step as a score's, for 1 - beta = (alpha / alpha')^2: eq. 4. y1 as in `reverse_diffusion`."""
    mean = 1 / math.sqrt(1 - beta) * (X + beta * score(now, model))
    return Step(*model.data, (mean + math.sqrt(beta) * Z, mean))


def ancestral_ve(now: Level, then: Level, model: Predicted) -> Step:
    """Ancestral sampling where alpha = 1: eq. 47. y1 as in `reverse_diffusion`."""
    mean = X + added_variance(now, then) * score(now, model)
    return Step(*model.data, (mean + posterior_std(now, then) * Z, mean))


def langevin() -> Step:
    """Up the score g: algorithms 4 and 5, of g and noise scaled sample by sample. y1 as in `reverse_diffusion`."""
    return Step(0.0, 0.0, (X + G + Z, X + G))


def repaint(now: Level, then: Level, model: Predicted, *, eta: float = 0.0) -> Step:
    """Lugmayr et al. 2022 (2201.09865), eq. 8: DDIM, and known pixels with the same noise, as much as `then` has."""
    return replace(ddim(now, then, model, eta=eta), known=then.alpha, known_noise=then.sigma)


def renoise(now: Level, then: Level) -> Step:
    """Forward, to a noisier level: RePaint's jump back, and churn. Needs no network."""
    return Step(0.0, 0.0, (then.alpha / now.alpha * X + math.sqrt(added_variance(then, now)) * Z,))
