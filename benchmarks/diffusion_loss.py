"""The loss of diffusion models, forward and backward: CIFAR's images, SD's latents, pixels; a timestep for each sample.

The target is the velocity, weighted by min-SNR. "drawn": pygen draws the noise anew, from the stream that made the
model's input; baselines have it ready made, as "given" has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops, random, reference
from ..diffusion.losses import levels, loss_table
from .cases import Case, Function, Inputs, Problem, Tensors, Work

SEED, STEPS = 7, 1000
ALPHA, SIGMA = levels((1 - torch.linspace(1e-4, 0.02, STEPS)).cumprod(0))
TABLE = loss_table(ALPHA, SIGMA, "v", "min_snr")


def case(noise: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **of_case: Any) -> Case:
    def build(device: torch.device) -> Problem:
        generator = torch.Generator(device).manual_seed(0)

        def normal() -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        output, x0 = normal(), normal()
        z = random.normal(shape, generator=SEED, device=device, dtype=dtype) if noise == "drawn" else normal()
        t = torch.randint(STEPS, shape[:1], generator=generator, device=device)
        table = TABLE.to(device)
        alpha, sigma, weight = (v.to(device, dtype) for v in (ALPHA, SIGMA, TABLE[:, 2]))
        stream = {"draws": True, "generator": SEED} if noise == "drawn" else {"noise": z}

        def eager(output: Tensor) -> Tensors:
            a, s = (v[t][:, None, None, None] for v in (alpha, sigma))
            target = a * z - s * x0
            return (weight[t] * (output.float() - target.float()).square().mean((1, 2, 3)),)

        ours: Function = lambda output: (ops.diffusion_loss(output, x0, table, t, **stream),)  # noqa: E731
        truth: Function = lambda output: (reference.diffusion_loss(output, x0, table, t, noise=z),)  # noqa: E731
        fwd = Work(output.nbytes + x0.nbytes + (z.nbytes if noise == "given" else 0))
        bwd = Work(output.nbytes)  # the gradient, which the forward might have left
        return Problem(Inputs((output,)), ours, {"eager": eager}, truth, {"fwd": fwd, "bwd": bwd, "full": fwd + bwd})

    suffix = "" if dtype == torch.float32 else f"-{str(dtype).removeprefix('torch.')}"
    return Case("diffusion_loss", f"{noise}-{'x'.join(map(str, shape))}{suffix}", build, dtype, **of_case)


CASES = tuple(
    case(noise, shape, dtype, quick=shape[2] == 128 and dtype == torch.float32)
    for noise in ("given", "drawn")
    for shape in ((16, 3, 32, 32), (4, 4, 128, 128), (16, 3, 256, 256))
    for dtype in (torch.float32, torch.bfloat16)
)
