"""Discretised logistic mixtures: PixelCNN++'s likelihood, forward and backward, at its sizes, and its samples.

"rgb-16x32x32" is a batch of 16 colour images, their pixels under mixtures of 10 components. Baselines take the levels
as numbers in [-1, 1], ready made; pygen converts them itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops, reference
from .cases import Case, Function, Inputs, Problem, Tensors, Work

MIXTURES = 10

# --- eager: as users write it -----------------------------------------------------------------------------------------


def components(x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, K, H, W], and x - mean and log-scales [B, C, K, H, W], of the layout "openai"."""
    batch, channels, height, width = x.shape
    k = MIXTURES
    logits, rest = parameters[:, :k], parameters[:, k:].view(batch, channels, -1, height, width)
    means, log_scales = rest[:, :, :k], rest[:, :, k : 2 * k].clamp(min=-7.0)
    x = x[:, :, None]
    if channels == 3:
        t = torch.tanh(rest[:, :, 2 * k :])
        green = means[:, 1] + t[:, 0] * x[:, 0]
        blue = means[:, 2] + t[:, 1] * x[:, 0] + t[:, 2] * x[:, 1]
        means = torch.stack([means[:, 0], green, blue], 1)
    return logits, x - means, log_scales


def components_last(x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same with pixels first: [B, H, W, K] and [B, H, W, C, K]."""
    batch, channels, height, width = x.shape
    k = MIXTURES
    x, parameters = x.permute(0, 2, 3, 1)[..., None], parameters.permute(0, 2, 3, 1)
    logits, rest = parameters[..., :k], parameters[..., k:].reshape(batch, height, width, channels, -1)
    means, log_scales = rest[..., :k], rest[..., k : 2 * k].clamp(min=-7.0)
    if channels == 3:
        t = torch.tanh(rest[..., 2 * k :])
        green = means[..., 1, :] + t[..., 0, :] * x[..., 0, :]
        blue = means[..., 2, :] + t[..., 1, :] * x[..., 0, :] + t[..., 2, :] * x[..., 1, :]
        means = torch.stack([means[..., 0, :], green, blue], -2)
    return logits, x - means, log_scales


def exact(x: Tensor, logits: Tensor, centred: Tensor, log_scales: Tensor) -> Tensor:
    q = torch.exp(-log_scales)
    inside = torch.log(-torch.expm1(-2 / 255 * q))
    below, above = x < 0.999, x > -0.999
    log_p = torch.where(below, F.logsigmoid(q * (centred + 1 / 255)), 0.0)
    log_p = log_p + torch.where(above, F.logsigmoid(q * (1 / 255 - centred)), 0.0)
    return log_p + torch.where(below & above, inside, 0.0)


def openai(x: Tensor, logits: Tensor, centred: Tensor, log_scales: Tensor) -> Tensor:
    """The published formula, with its thresholds."""
    q = torch.exp(-log_scales)
    plus, minus, middle = q * (centred + 1 / 255), q * (centred - 1 / 255), q * centred
    mass = torch.sigmoid(plus) - torch.sigmoid(minus)
    density = middle - log_scales - 2 * F.softplus(middle) - math.log(127.5)
    inside = torch.where(mass > 1e-5, torch.log(mass.clamp(min=1e-12)), density)
    return torch.where(x < -0.999, plus - F.softplus(plus), torch.where(x > 0.999, -F.softplus(minus), inside))


def likelihood(x: Tensor, form: Callable[..., Tensor], last: bool, parameters: Tensor) -> Tensors:
    parts = (components_last if last else components)(x, parameters)
    channel, component = (-2, -1) if last else (1, 1)
    mine = x.permute(0, 2, 3, 1)[..., None] if last else x[:, :, None]
    log_p = form(mine, *parts).sum(channel) + F.log_softmax(parts[0], component)
    return (-torch.logsumexp(log_p, component),)


def case(name: str, shape: tuple[int, int, int, int], layout: str = "contiguous", **options: Any) -> Case:
    batch, channels, height, width = shape
    count = MIXTURES * (1 + 2 * channels + (3 if channels == 3 else 0))
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    dtype = options.get("dtype", torch.float32)

    def build(device: torch.device) -> Problem:
        generator = torch.Generator(device).manual_seed(0)
        levels = torch.randint(256, shape, generator=generator, device=device, dtype=torch.uint8)
        x = levels.to(dtype) / 127.5 - 1
        size = (batch, count, height, width)
        parameters = torch.randn(size, generator=generator, device=device, dtype=dtype).to(memory_format=memory_format)
        fwd = Work(levels.nbytes + parameters.nbytes + batch * height * width * 4)
        bwd = Work(2 * parameters.nbytes + batch * height * width * 4)  # parameters in, gradients out
        last = layout == "channels_last"
        ours: Function = lambda p: (ops.logistic_mixture_nll(levels, p),)  # noqa: E731
        truth: Function = lambda p: (reference.logistic_mixture_nll(levels, p),)  # noqa: E731
        return Problem(
            inputs=Inputs((parameters,), layout),
            ours=ours,
            eager={"exact": partial(likelihood, x, exact, last)},
            reference=truth,
            work={"fwd": fwd, "bwd": bwd, "full": fwd + bwd},
            peers={"openai-form": lambda: partial(likelihood, x, openai, last)},
        )

    return Case("logistic_mixture", f"{name}-{batch}x{height}x{width}", build, **options)


# --- samples ----------------------------------------------------------------------------------------------------------


def sampled(parameters: Tensor) -> Tensor:
    """Gumbel-max, then colour after colour."""
    batch, _, height, width = parameters.shape
    k = MIXTURES
    logits, rest = parameters[:, :k], parameters[:, k:].view(batch, 3, 3, k, height, width)
    u = torch.rand_like(logits).clamp(1e-5, 1 - 1e-5)
    best = (logits - torch.log(-torch.log(u))).argmax(1)
    index = best[:, None, None, None].expand(-1, 3, 3, 1, -1, -1)
    means, log_scales, t = rest.gather(3, index)[:, :, :, 0].unbind(2)
    t, scales = torch.tanh(t), log_scales.clamp(min=-7.0).exp()
    u = torch.rand_like(means).clamp(1e-5, 1 - 1e-5)
    z = scales * (torch.log(u) - torch.log(1 - u))
    colours: list[Tensor] = []
    for c, mean in enumerate(means.unbind(1)):
        for j in range(c):
            mean = mean + t[:, c - 1 + j] * colours[j]
        drawn = (mean + z[:, c]).clamp(-1, 1)
        colours.append(((drawn + 1) * 127.5).round() / 127.5 - 1)
    return torch.stack(colours, 1)


def sample_case(shape: tuple[int, int, int], **options: Any) -> Case:
    batch, height, width = shape

    def build(device: torch.device) -> Problem:
        torch.manual_seed(1)
        parameters = torch.randn(batch, 10 * MIXTURES, height, width, device=device)
        ours: Function = lambda p: (ops.logistic_mixture_sample(p, channels=3),)  # noqa: E731
        work = Work(parameters.nbytes + batch * 3 * height * width * 4)
        return Problem(Inputs((parameters,)), ours, {"eager": lambda p: (sampled(p),)}, ours, {"fwd": work})

    name = f"sample-{batch}x{height}x{width}"
    return Case("logistic_mixture", name, build, modes=("fwd",), draws=True, **options)


CASES = (
    case("rgb", (16, 3, 32, 32), quick=True),
    case("rgb", (64, 3, 28, 28)),
    case("rgb-channels_last", (16, 3, 32, 32), "channels_last"),
    case("rgb-channels_last", (64, 3, 28, 28), "channels_last"),
    case("rgb-bfloat16", (16, 3, 32, 32), dtype=torch.bfloat16),
    case("grey", (64, 1, 28, 28)),
    sample_case((16, 32, 32)),
)
