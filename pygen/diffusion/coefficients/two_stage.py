"""Steps with a second evaluation in the middle: Heun's, DPM-Solver-2 as k-diffusion has it, DPM-Solver++(2S).

The first stage keeps what the second needs as history: the state before the step, and what was found there.
"""

from __future__ import annotations

import math

from ..level import Level, Predicted
from ..step import X0, H, Row, Step, X, Z
from .first_order import posterior_std


def slope(now: Level) -> Row:
    """dx / d sigma = (x - x0) / sigma, where alpha = 1 and of a flow alike."""
    return (X - X0) / now.sigma


def euler(now: Level, then: Level, model: Predicted) -> Step:
    """Euler's step of dx / d sigma, by the clamped x0."""
    if now == then:
        return Step(*model.data, (X,))
    return Step(*model.data, (X + (then.sigma - now.sigma) * slope(now),))


def heun_first(now: Level, then: Level, model: Predicted) -> Step:
    """Euler's step, which keeps the state and the slope: Karras et al. 2022 (2206.00364), algorithm 1."""
    step = euler(now, then, model)
    return Step(step.p, step.q, (*step.rows, slope(now)), keep=("x", "y1"))


def heun_second(now: Level, then: Level, model: Predicted) -> Step:
    """From the state before, h0, by the mean of its slope h1 and of the one at `then`, where the network was asked."""
    return Step(*model.data, (H(0) + (then.sigma - now.sigma) / 2 * (H(1) + slope(then)),))


def midpoint_first(now: Level, middle: Level, model: Predicted) -> Step:
    """Euler's step to the middle, which keeps the state."""
    step = euler(now, middle, model)
    return Step(step.p, step.q, step.rows, keep=("x",))


def midpoint_second(now: Level, middle: Level, then: Level, model: Predicted, *, std: float = 0.0) -> Step:
    """From the state before, h0, by the slope in the middle; noise on top. DPM2 is this with sigma^2 = sigma sigma'."""
    return Step(*model.data, (H(0) + (then.sigma - now.sigma) * slope(middle) + std * Z,))


def log_middle(now: Level, then: Level, share: float = 0.5) -> Level:
    """The level a share of the way in log sigma, where alpha = 1."""
    if now.sigma == then.sigma:
        return then
    return Level(1.0, math.exp(math.log(now.sigma) + share * (math.log(then.sigma) - math.log(now.sigma))))


def descent(now: Level, then: Level, eta: float) -> tuple[Level, float]:
    """An ancestral step, where alpha = 1, in two: down to a level, and noise of a standard deviation to `then`."""
    std = min(then.sigma, eta * posterior_std(now, then))
    return Level(then.alpha, math.sqrt(then.sigma**2 - std**2)), std


def dpmpp_2s_second(now: Level, then: Level, model: Predicted, *, std: float = 0.0) -> Step:
    """DPM-Solver++(2S), Lu et al. 2022 (2211.01095), algorithm 1: from h0, the state before, by x0 in the middle."""
    return Step(*model.data, (transfer_data(now, then, X0, H(0)) + std * Z,))


def transfer_data(now: Level, then: Level, x0: Row, x: Row = X) -> Row:
    """x carried from one level to another towards x0, with the noise that it has."""
    ratio = then.sigma / now.sigma
    return ratio * x + (then.alpha - ratio * now.alpha) * x0


def dpmpp_sde(
    now: Level,
    middle: Level,
    then: Level,
    at_now: Predicted,
    at_middle: Predicted,
    *,
    eta: float = 1.0,
    share: float = 0.5,
    noise_scale: float = 1.0,
    whole_noise: bool = False,
) -> tuple[Step, Step]:
    """Both stages of DPM-Solver++ for the SDE with `middle` a share of the way in log sigma, alpha = 1.

    The second's noise is that of the whole interval, of which the first's is a part: Brownian motion in sigma.
    whole_noise: it is given so; otherwise it is made of the first's and of what is given.
    """
    down, std = descent(now, middle, eta)
    first = transfer_data(now, down, X0) + noise_scale * std * Z
    down, std = descent(now, then, eta)
    past = (now.sigma - middle.sigma) / (now.sigma - then.sigma)
    z = Z if whole_noise else math.sqrt(past) * H(2) + math.sqrt(1 - past) * Z
    mixed = (1 - 1 / (2 * share)) * H(1) + 1 / (2 * share) * X0
    second = transfer_data(now, down, mixed, H(0)) + noise_scale * std * z
    return (
        Step(*at_now.data, (first, X0, Z), keep=("x", "y1", "y2")),
        Step(*at_middle.data, (second,)),
    )
