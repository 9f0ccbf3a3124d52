"""Levels of noise, and what a network's output says at one about the data.

A state is x = alpha x0 + sigma eps. Spaces differ in the curve that (alpha, sigma) runs along: alpha^2 + sigma^2 = 1
(variance preserving: `vp`), alpha = 1 (exploding: `ve`), alpha + sigma = 1 (flow matching: `flow`).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

from .._arguments import check_choice
from .step import G, Row, X

Prediction = Literal["epsilon", "sample", "v_prediction", "flow_prediction", "score", "edm", "consistency"]


class Level(NamedTuple):
    """x = alpha x0 + sigma eps."""

    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """Half the logarithm of the signal-to-noise ratio, log(alpha / sigma): inf without noise, -inf without data."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha) - math.log(self.sigma) if self.alpha else -math.inf

    @property
    def ratio(self) -> float:
        """sigma / alpha: the level's sigma where alpha = 1."""
        return self.sigma / self.alpha if self.alpha else math.inf


def ve(sigma: float) -> Level:
    """Data with noise of deviation sigma on it."""
    return Level(1.0, sigma)


def vp(sigma: float) -> Level:
    """The variance-preserving level of ratio sigma."""
    alpha = 1 / math.sqrt(sigma * sigma + 1)
    return Level(alpha, sigma * alpha)


def flow(sigma: float) -> Level:
    """A straight path's point, sigma of the way from data to noise."""
    return Level(1.0 - sigma, sigma)


def cumulative(alpha_bar: float) -> Level:
    """The level of a discrete schedule's cumulative product of 1 - beta."""
    return Level(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))


class Predicted(NamedTuple):
    """What a network's output g says at a level: rows for x0, and for eps without a loss of digits at small sigma."""

    x0: Row
    eps: Row

    @property
    def data(self) -> tuple[float, float]:
        """p and q of x0 = p x + q g."""
        return self.x0.x, self.x0.g


def predicted(prediction: Prediction, at: Level, sigma_data: float = 0.5, smallest: float = 0.0) -> Predicted:
    """x0 and eps from the state and the network's output g, which is

    epsilon: eps; sample: x0; score: -eps / sigma; flow_prediction: eps - x0, Liu et al. 2022 (2209.03003);
    v_prediction: (alpha eps - sigma x0) / r with r^2 = alpha^2 + sigma^2, Salimans and Ho 2022 (2202.00512);
    edm: F of x0 = c_skip x + c_out F, for alpha = 1, Karras et al. 2022 (2206.00364), table 1; consistency: the same
    with x0 = x at a sigma of `smallest`, Song et al. 2023 (2303.01469), appendix C.
    """
    check_choice("prediction", prediction, get_args(Prediction))
    alpha, sigma = at
    match prediction:
        case "epsilon":
            return Predicted(_over(X - sigma * G, alpha), G)
        case "sample":
            return Predicted(G, _over(X - alpha * G, sigma))
        case "v_prediction":
            r = math.hypot(alpha, sigma)
            return Predicted(alpha / r**2 * X - sigma / r * G, sigma / r**2 * X + alpha / r * G)
        case "flow_prediction":
            return Predicted((X - sigma * G) / (alpha + sigma), (X + alpha * G) / (alpha + sigma))
        case "score":
            return Predicted(_over(X + sigma**2 * G, alpha), -sigma * G)
        case "edm":
            r = math.hypot(sigma, sigma_data)
            x0 = (sigma_data / r) ** 2 * X + sigma * sigma_data / r * G
            return Predicted(x0, sigma / r**2 * X - sigma_data / r * G)
        case "consistency":
            over = sigma - smallest
            x0 = sigma_data**2 / (over**2 + sigma_data**2) * X + over * sigma_data / math.hypot(sigma, sigma_data) * G
            return Predicted(x0, (X - x0) / sigma)


def _over(row: Row, by: float) -> Row:
    """row / by; what is not determined where by is 0 is NaN, and stays out of steps that do not need it."""
    return row / by if by else Row(math.nan, math.nan)
