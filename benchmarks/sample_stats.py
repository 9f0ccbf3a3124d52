"""Numbers of each sample that a sampler's step asks for, with the step and alone.

"threshold": dynamic thresholding of x0, the whole of diffusers' `_threshold_sample`. "rescale": guidance of two
outputs, rescaled (diffusers' `rescale_noise_cfg`), and a DDIM step from it. "sums": those that this takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ops, reference
from ..diffusion.guidance import rescale_guidance
from ..reference.diffusion_step import Columns, width
from .cases import Case, Function, Inputs, Problem, Tensors, Work

Q, MOST = 0.995, 10.0
SCALE, AMOUNT = 7.5, 0.7
ALPHA, SIGMA, NEXT_ALPHA, NEXT_SIGMA = 0.6, 0.8, 0.8, 0.6


def table_of(outputs: int, **columns: float) -> Tensor:
    """A row for these outputs and one result, of the coefficients given."""
    at = Columns.of(outputs)
    table = torch.zeros(1, width(outputs, 0, 1), dtype=torch.float64)
    table[0, at.clip] = math.inf
    for name, value in columns.items():
        places = {"u": 0, "c": 1, "p": at.p, "q": at.q, "g": at.rows + 1, "x0": at.rows + 2}
        table[0, places[name]] = value
    return table


# --- dynamic thresholding ---------------------------------------------------------------------------------------------

IDENTITY = table_of(0, p=1, x0=1)


def thresholded(home: Any) -> Function:
    def call(x0: Tensor) -> Tensors:
        s = home.quantile_abs(x0, [], IDENTITY, 0, Q).clamp(1, MOST)
        return (home.diffusion_step(x0, [], IDENTITY, threshold=s)[0],)

    return call


def eager_threshold(x0: Tensor) -> Tensors:
    wide = x0.float().flatten(1)
    s = torch.quantile(wide.abs(), Q, 1, keepdim=True).clamp(1, MOST)
    return ((wide.clamp(-s, s) / s).to(x0.dtype).view(x0.shape),)


def diffusers_threshold() -> Function:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=Q, sample_max_value=MOST)
    return lambda x0: (scheduler._threshold_sample(x0),)


# --- rescaled guidance ------------------------------------------------------------------------------------------------

STEP = table_of(2, u=1 - SCALE, c=SCALE, p=1 / ALPHA, q=-SIGMA / ALPHA, g=NEXT_SIGMA, x0=NEXT_ALPHA)


def rescaled(home: Any) -> Function:
    def call(x: Tensor, u: Tensor, c: Tensor) -> Tensors:
        r = rescale_guidance(home.sample_stats(u, c), SCALE, AMOUNT, u[0].numel())
        return (home.diffusion_step(x, [u, c], STEP, rescale=r)[0],)

    return call


def eager_rescale(x: Tensor, u: Tensor, c: Tensor) -> Tensors:
    rest = tuple(range(1, x.dim()))
    g = u + SCALE * (c - u)
    g = AMOUNT * (g * (c.std(rest, keepdim=True) / g.std(rest, keepdim=True))) + (1 - AMOUNT) * g
    x0 = (x - SIGMA * g) / ALPHA
    return (NEXT_ALPHA * x0 + NEXT_SIGMA * g,)


# --- sums -------------------------------------------------------------------------------------------------------------


def sums(home: Any) -> Function:
    return lambda a, b: (home.sample_stats(a, b),)


def eager_sums(a: Tensor, b: Tensor) -> Tensors:
    rest = tuple(range(1, a.dim()))
    return (torch.stack([v.sum(rest, dtype=torch.float64) for v in (a, b, a * a, a * b, b * b)], 1),)


# --- cases ------------------------------------------------------------------------------------------------------------


def case(
    name: str,
    shape: tuple[int, ...],
    function: Callable[[Any], Function],
    eager: Function,
    reads: int,
    writes: int = 1,
    dtype: torch.dtype = torch.float32,
    peers: dict[str, Callable[[], Function]] | None = None,
    **of_case: Any,
) -> Case:
    def build(device: torch.device) -> Problem:
        generator = torch.Generator(device).manual_seed(0)
        inputs = tuple(
            2 * torch.randn(shape, generator=generator, device=device, dtype=dtype) + 0.1 for _ in range(reads)
        )
        work = Work((reads + writes) * inputs[0].nbytes)
        return Problem(
            Inputs(inputs), function(ops), {"eager": eager}, function(reference), {"fwd": work}, peers=peers or {}
        )

    suffix = "" if dtype == torch.float32 else f"-{str(dtype).removeprefix('torch.')}"
    title = f"{name}-{'x'.join(map(str, shape))}{suffix}"
    return Case("sample_stats", title, build, dtype, modes=("fwd",), grad=False, **of_case)


IMAGES, LATENTS = (16, 3, 256, 256), (4, 4, 128, 128)
PEER = {"diffusers": diffusers_threshold}

CASES = (
    case("threshold", IMAGES, thresholded, eager_threshold, 1, peers=PEER, quick=True),
    case("threshold", IMAGES, thresholded, eager_threshold, 1, dtype=torch.bfloat16, peers=PEER),
    case("threshold", LATENTS, thresholded, eager_threshold, 1, peers=PEER),
    case("rescale", IMAGES, rescaled, eager_rescale, 3),
    case("rescale", LATENTS, rescaled, eager_rescale, 3, quick=True),
    case("rescale", LATENTS, rescaled, eager_rescale, 3, dtype=torch.bfloat16),
    case("sums", IMAGES, sums, eager_sums, 2, writes=0),
    case("sums", LATENTS, sums, eager_sums, 2, writes=0, quick=True),
)
