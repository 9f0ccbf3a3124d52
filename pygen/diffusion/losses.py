"""What diffusion models are trained for: tables of targets and weights for `pygen.ops.diffusion_loss`.

A model sees x = alpha x0 + sigma z, and predicts a target that is linear in x0 and z. Whatever it predicts, it implies
an x0, and an error of the target is one of x0 times a factor. So weightings that are meant for errors of x0, as those
made of the signal-to-noise ratio SNR = (alpha / sigma)^2 are, become weights of any target.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._arguments import check_choice

TARGETS = ("eps", "x0", "v", "flow", "edm")
WEIGHTINGS = ("constant", "snr", "truncated_snr", "min_snr", "p2", "edm", "sigma_sqrt", "cosmap")


def levels(alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of a variance-preserving process: square roots of abar and of 1 - abar, float64 [R]."""
    abar = alphas_cumprod.double()
    return abar.sqrt(), (1 - abar).sqrt()


def target_coefficients(alpha: Tensor, sigma: Tensor, target: str, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """(a, s) of the target a x0 + s z, [R] each.

    "eps": z (Ho et al. 2020, arXiv 2006.11239, equation 14). "x0": x0. "v": alpha z - sigma x0 (Salimans and Ho 2022,
    arXiv 2202.00512, section 4). "flow": z - x0 (rectified flow: Liu et al. 2023, arXiv 2209.03003, equation 1, with z
    at time 1). "edm": (x0 - c_skip (x0 + sigma z)) / c_out with alpha = 1 and EDM's c_skip = d^2 / (sigma^2 + d^2),
    c_out = sigma d / sqrt(sigma^2 + d^2) for d = sigma_data (Karras et al. 2022, arXiv 2206.00364, table 1).
    """
    one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
    both = (sigma.square() + sigma_data**2).sqrt()
    table: dict[str, tuple[Tensor, Tensor]] = {
        "eps": (zero, one),
        "x0": (one, zero),
        "v": (-sigma, alpha),
        "flow": (-one, one),
        "edm": (sigma / (sigma_data * both), -sigma_data / both),
    }
    check_choice("target", target, TARGETS)
    return table[target]


def _shares(alpha: Tensor, sigma: Tensor, target: str, sigma_data: float) -> tuple[Tensor, Tensor]:
    """Weights of the target for which its loss is that of x0 times SNR, and times 1."""
    signal, noise, whole = alpha.square(), sigma.square(), (alpha + sigma).square()
    one = torch.ones_like(alpha)
    table: dict[str, tuple[Tensor, Tensor]] = {
        "eps": (one, noise / signal),
        "x0": (signal / noise, one),
        "v": (signal / (signal + noise), noise / (signal + noise)),
        "flow": (signal / whole, noise / whole),
        "edm": (sigma_data**2 / (noise + sigma_data**2), noise * sigma_data**2 / (noise + sigma_data**2)),
    }
    return table[target]


def loss_weights(
    alpha: Tensor,
    sigma: Tensor,
    target: str,
    weighting: str = "constant",
    *,
    gamma: float | None = None,
    k: float = 1.0,
    sigma_data: float = 0.5,
) -> Tensor:
    """The weight of the target's squared error at each level, [R].

    As weights of the target itself:
    "constant": 1. "sigma_sqrt": 1 / sigma^2, and "cosmap": 2 / (pi (1 - 2 sigma + 2 sigma^2)), of flows (Esser et al.
    2024, arXiv 2403.03206, section 3.1; the latter with alpha + sigma = 1).

    As weights of the error of x0, turned into those of the target:
    "snr": SNR, the plain loss of eps. "truncated_snr": max(SNR, 1) (Salimans and Ho 2022, arXiv 2202.00512, section 4).
    "min_snr": min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556, section 3.4): min(SNR, gamma) / SNR for eps and
    min(SNR, gamma) / (SNR + 1) for v; gamma is 5 by default. "p2": SNR / (k + SNR)^gamma (Choi et al. 2022, arXiv
    2204.00227, equation 8); gamma is 1 by default. "edm": (sigma^2 + d^2) / (sigma d)^2 with alpha = 1 and
    d = sigma_data (Karras et al. 2022, arXiv 2206.00364, table 1), which is 1 for EDM's own target.
    """
    if gamma is None:
        gamma = 1.0 if weighting == "p2" else 5.0
    check_choice("target", target, TARGETS)
    check_choice("weighting", weighting, WEIGHTINGS)
    by_snr, plain = _shares(alpha, sigma, target, sigma_data)
    both = sigma.square() + sigma_data**2
    table: dict[str, Callable[[], Tensor]] = {
        "constant": lambda: torch.ones_like(alpha),
        "sigma_sqrt": lambda: sigma**-2,
        "cosmap": lambda: 2 / (math.pi * (1 - 2 * sigma + 2 * sigma.square())),
        "snr": lambda: by_snr,
        "truncated_snr": lambda: torch.maximum(by_snr, plain),
        "min_snr": lambda: torch.minimum(by_snr, gamma * plain),
        "p2": lambda: by_snr / (k + (alpha / sigma).square()) ** gamma,
        "edm": lambda: plain * both / (sigma * sigma_data).square(),
    }
    return table[weighting]()


def loss_table(
    alpha: Tensor,
    sigma: Tensor,
    target: str = "eps",
    weighting: str = "constant",
    *,
    gamma: float | None = None,
    k: float = 1.0,
    sigma_data: float = 0.5,
) -> Tensor:
    """The table [R, 3] of a, s and weight for `pygen.ops.diffusion_loss`, float64, one row for each level.

    alpha, sigma: [R], of x = alpha x0 + sigma z: `levels(alphas_cumprod)`; 1 - t and t of flows; 1 and sigma of EDM.
        sigma is above 0, where there is something to learn; alpha may be 0.
    target, weighting, gamma, k, sigma_data: see `target_coefficients` and `loss_weights`.

    Raises ValueError for shapes, levels and names, TypeError for dtypes; all say what was expected and what was given.

    >>> import torch
    >>> from pygen.diffusion.losses import levels, loss_table
    >>> loss_table(*levels(torch.tensor([0.8, 0.2])), target="v", weighting="min_snr", gamma=1.0)
    tensor([[-0.4472,  0.8944,  0.2000],
            [-0.8944,  0.4472,  0.2000]], dtype=torch.float64)
    """
    for name, values in (("alpha", alpha), ("sigma", sigma)):
        if not values.is_floating_point():
            raise TypeError(f"loss_table: expected {name} of a floating-point dtype, got {values.dtype}")
        if values.dim() != 1 or values.shape != alpha.shape:
            raise ValueError(
                f"loss_table: expected alpha and sigma of one shape [R], got {tuple(alpha.shape)} and "
                f"{tuple(sigma.shape)}"
            )
    for name, values, wrong in (("alpha", alpha, ~(alpha >= 0)), ("sigma", sigma, ~(sigma > 0))):
        if wrong.any():
            least = "at least 0" if name == "alpha" else "above 0"
            raise ValueError(f"loss_table: expected {name} {least}, got {values[wrong][0].item():g}")
    alpha, sigma = alpha.double(), sigma.double()
    a, s = target_coefficients(alpha, sigma, target, sigma_data)
    weight = loss_weights(alpha, sigma, target, weighting, gamma=gamma, k=k, sigma_data=sigma_data)
    return torch.stack([a, s, weight], 1)
