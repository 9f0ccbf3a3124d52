"""Schedules: how much noise there is at which time, and the times that a sampler visits.

Networks were trained with tables in float32, rounded at every step of their making, and peers sample with these: so
betas, their cumulative product and sigmas are float32 here too, and only coefficients made of them are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .._arguments import check_integer

Betas = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "exp", "sigmoid"]
Spacing = Literal["leading", "trailing", "linspace"]
Floats = NDArray[np.float64]


# --- a discrete schedule's tables -------------------------------------------------------------------------------------


def betas(kind: Betas = "linear", count: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """The variance that each of `count` steps adds, float32 [count].

    kind: linear, Ho et al. 2020 (2006.11239); scaled_linear, of which the root is linear, Rombach et al. 2022
        (2112.10752); sigmoid; and those of a cumulative product, without start and end: squaredcos_cap_v2, Nichol and
        Dhariwal 2021 (2102.09672), eq. 17; laplace, Hang and Gu 2024 (2407.03297); exp, e^-12t.
    """
    match kind:
        case "linear":
            return torch.linspace(start, end, count, dtype=torch.float32)
        case "scaled_linear":
            return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
        case "sigmoid":
            return torch.sigmoid(torch.linspace(-6, 6, count)) * (end - start) + start
        case "squaredcos_cap_v2":
            return _betas_of(lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2, count)
        case "laplace":
            return _betas_of(_laplace, count)
        case "exp":
            return _betas_of(lambda t: math.exp(-12 * t), count)
    raise ValueError(
        f"expected kind as linear, scaled_linear, squaredcos_cap_v2, laplace, exp or sigmoid, got {kind!r}"
    )


def _betas_of(alpha_bar: Callable[[float], float], count: int, largest: float = 0.999) -> Tensor:
    values = [min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), largest) for i in range(count)]
    return torch.tensor(values, dtype=torch.float32)


def _laplace(t: float) -> float:
    """The root of the cumulative product whose log-SNR is Laplace distributed."""
    log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    snr = math.exp(log_snr)
    return math.sqrt(snr / (1 + snr))


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas whose last step leaves no signal: Lin et al. 2024 (2305.08891), algorithm 1."""
    roots = torch.cumprod(1.0 - betas, 0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    products = ((roots - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([products[:1], products[1:] / products[:-1]])


def alphas_cumprod(betas: Tensor, *, finite: bool = False) -> Tensor:
    """The cumulative product of 1 - beta. finite: a last one of 0 is 2^-24, whose sigma is a number."""
    products = torch.cumprod(1.0 - betas, 0)
    if finite and products[-1] == 0:
        products[-1] = 2**-24
    return products


# --- times ------------------------------------------------------------------------------------------------------------


def timesteps(
    spacing: Spacing, count: int, total: int = 1000, *, offset: int = 0, one_more: bool = False, whole: bool = True
) -> Floats:
    """`count` of the times 0 .. total - 1, falling: Lin et al. 2024 (2305.08891), table 2.

    one_more: leading and linspace place one point more and leave the last out, as multistep solvers do.
    whole: linspace is rounded to integers; otherwise to float32.
    """
    check_integer("steps", count, 1, total)
    points = count + one_more
    times: Floats
    match spacing:
        case "linspace":
            even = np.linspace(0, total - 1, points)
            times = (even.round() if whole else even.astype(np.float32).astype(np.float64))[::-1][:count]
        case "leading":
            times = np.arange(points, dtype=np.float64)[::-1][:count] * (total // points) + offset
        case "trailing":
            times = np.arange(total, 0, -total / count).round() - 1
        case _:
            raise ValueError(f"expected spacing as leading, trailing or linspace, got {spacing!r}")
    return times


def distilled_timesteps(count: int, total: int = 1000, original: int = 50) -> Floats:
    """`count` of the `original` times that a latent consistency model was distilled at, falling: Luo et al. 2023
    (2310.04378), section 4.3."""
    check_integer("original", original, 1, total)
    check_integer("steps", count, 1, original)
    times = np.arange(original, 0, -1, dtype=np.float64) * (total // original) - 1
    return times[np.linspace(0, original, count, endpoint=False).astype(np.int64)]


# --- sigmas -----------------------------------------------------------------------------------------------------------


def table_sigmas(alphas_cumprod: Tensor) -> Floats:
    """sigma / alpha of a discrete schedule, computed in float32."""
    return np.array(((1 - alphas_cumprod) / alphas_cumprod).sqrt().tolist())


def interpolated(times: ArrayLike, table: Floats) -> Floats:
    """Sigmas at times between those of the table."""
    return np.interp(np.asarray(times, np.float64), np.arange(len(table)), table)


def karras(count: int, smallest: float, largest: float, rho: float = 7.0) -> Floats:
    """Even in sigma^(1 / rho), falling: Karras et al. 2022 (2206.00364), eq. 5."""
    low, high = smallest ** (1 / rho), largest ** (1 / rho)
    sigmas: Floats = (high + np.linspace(0, 1, count) * (low - high)) ** rho
    return sigmas


def exponential(count: int, smallest: float, largest: float) -> Floats:
    """Even in log sigma, falling."""
    return np.exp(np.linspace(math.log(largest), math.log(smallest), count))


def polyexponential(count: int, smallest: float, largest: float, rho: float = 1.0) -> Floats:
    """A polynomial of degree rho in log sigma, falling."""
    low, high = math.log(smallest), math.log(largest)
    return np.exp(np.linspace(1, 0, count) ** rho * (high - low) + low)


def lu(count: int, smallest: float, largest: float) -> Floats:
    """Even in log sigma, which is rounded to float32, falling: Lu et al. 2022 (2206.00927), section 3.4."""
    low, high = np.log(np.array([smallest, largest], np.float32)).tolist()
    sigmas: Floats = np.exp(high + np.linspace(0, 1, count) * (low - high))
    return sigmas


def beta(count: int, smallest: float, largest: float, a: float = 0.6, b: float = 0.6) -> Floats:
    """At the quantiles of a beta distribution, falling: Lee et al. 2024 (2407.12173)."""
    quantiles = [_beta_quantile(p, a, b) for p in 1 - np.linspace(0, 1, count)]
    return smallest + np.array(quantiles) * (largest - smallest)


def vp_sigmas(count: int, beta_d: float = 19.9, beta_min: float = 0.1, smallest_t: float = 1e-3) -> Floats:
    """Of the continuous variance-preserving SDE: Karras et al. 2022 (2206.00364), table 1."""
    t = np.linspace(1, smallest_t, count)
    return np.sqrt(np.expm1(beta_d * t**2 / 2 + beta_min * t))


def shifted(sigmas: Floats, shift: float) -> Floats:
    """A flow's sigmas at another resolution: Esser et al. 2024 (2403.03206), eq. 23."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def time_shifted(sigmas: Floats, mu: float, kind: Literal["exponential", "linear"] = "exponential") -> Floats:
    """`shifted` by e^mu, or mu, which a pipeline makes of the image's size."""
    factor = math.exp(mu) if kind == "exponential" else mu
    return factor / (factor + (1 / sigmas - 1))


def stretched(sigmas: Floats, last: float) -> Floats:
    """A flow's sigmas scaled so that the last is `last`."""
    left = 1 - sigmas
    scaled: Floats = 1 - left / (left[-1] / (1 - last))
    return scaled


def sigma_to_t(sigmas: ArrayLike, table: Floats) -> Floats:
    """Times of sigmas, by the logarithm, in float32 as peers have it, of a rising table."""
    logs = np.log(table.astype(np.float32)).astype(np.float64)
    log_sigmas = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(logs, log_sigmas, side="right") - 1, 0, len(logs) - 2)
    share = np.clip((log_sigmas - logs[low]) / (logs[low + 1] - logs[low]), 0, 1)
    return np.asarray(low + share)


# --- the beta distribution --------------------------------------------------------------------------------------------


def _beta_quantile(p: float, a: float, b: float) -> float:
    """Where the distribution function is p, by bisection to the last bit, of the smaller end's distance to it."""
    if p <= 0 or p >= 1:
        return float(p > 0)
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if _beta_distribution(middle, a, b) < p:
            low = middle
        else:
            high = middle


def _beta_distribution(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function by its continued fraction: DLMF 8.17.22."""
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_distribution(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    value = 0.0
    for k in range(100, 0, -1):
        m = k // 2
        if k % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        value = term / (1 + value)
    return math.exp(log_front) / (a * (1 + value))
