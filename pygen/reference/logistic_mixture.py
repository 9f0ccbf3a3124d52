"""The discretised logistic mixture in plain PyTorch: its likelihood, the gradient of that by formula, and samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .random import _join, _split, exp

LOWEST = -7.0  # log-scales below count as this
HIGHEST = 80.0  # of samples: e^80 is beyond every clip
EDGE = 1e-5  # of the uniforms that logistic numbers are made of


# --- parameters ------------------------------------------------------------------------------------------------------


class Places(NamedTuple):
    """The channels of one kind of parameter: first + channel c + mixture k."""

    first: int
    channel: int
    mixture: int

    def of(self, channels: int, mixtures: int, device: torch.device) -> Tensor:
        c, k = torch.arange(channels, device=device), torch.arange(mixtures, device=device)
        return self.first + self.channel * c[:, None] + self.mixture * k


def pairs(channels: int, autoregressive: bool) -> int:
    """Coefficients of a component: of channel c on the channels j < c, counted (1, 0), (2, 0), (2, 1), (3, 0), ..."""
    return channels * (channels - 1) // 2 if autoregressive else 0


def mixtures_of(parameters: int, channels: int, autoregressive: bool) -> int:
    """How many mixtures have this many parameters; 0: no number of them."""
    each = 1 + 2 * channels + pairs(channels, autoregressive)
    return parameters // each if parameters % each == 0 else 0


def places(layout: str, mixtures: int, channels: int, autoregressive: bool) -> tuple[Places, Places, Places]:
    """Means, log-scales and coefficients behind the K logits, which come first in every layout."""
    k, n = mixtures, pairs(channels, autoregressive)
    kinds = 3 if n else 2
    if layout == "openai":  # (channel, kind, mixture); a coefficient beside each channel, of which there are 3
        block = kinds * k
        return Places(k, block, 1), Places(2 * k, block, 1), Places(3 * k, block, 1)
    if layout == "flax":  # (channel, mixture, kind)
        block = kinds * k
        return Places(k, block, kinds), Places(k + 1, block, kinds), Places(k + 2, block, kinds)
    size = k * channels  # tfp: one kind after another, each (mixture, channel)
    return Places(k, 1, channels), Places(k + size, 1, channels), Places(k + 2 * size, 1, n)


class Parameters(NamedTuple):
    """Logits [B, K, H, W]; means and log-scales [B, C, K, H, W]; coefficients before their tanh [B, N, K, H, W]."""

    logits: Tensor
    means: Tensor
    log_scales: Tensor
    coefficients: Tensor


def split(parameters: Tensor, channels: int, layout: str, autoregressive: bool) -> tuple[Parameters, Parameters]:
    """The parameters by kind, and the channels in which they lie."""
    mixtures = mixtures_of(parameters.shape[1], channels, autoregressive)
    counts = (channels, channels, pairs(channels, autoregressive))
    kinds = zip(places(layout, mixtures, channels, autoregressive), counts, strict=True)
    where = [place.of(count, mixtures, parameters.device) for place, count in kinds]
    index = Parameters(torch.arange(mixtures, device=parameters.device), *where)
    return Parameters(*(parameters[:, i] for i in index)), index


# --- likelihood ------------------------------------------------------------------------------------------------------


def levels_of(x: Tensor, levels: int) -> Tensor:
    """Levels 0, ..., levels - 1 as float64: integers as they are, numbers in [-1, 1] to the nearest; others are NaN."""
    last = levels - 1
    level = ((x.double() + 1) * (last / 2)).round() if x.is_floating_point() else x.double()
    return torch.where((level >= 0) & (level <= last), level, torch.nan)


class _Terms(NamedTuple):
    """What likelihood and gradient share; [B, C, K, H, W] where not said otherwise."""

    p: Parameters
    where: Parameters
    x: Tensor  # [B, C, H, W]
    log_scales: Tensor
    tanh: Tensor  # of the coefficients
    centred: Tensor  # x - mean
    below: Tensor  # x is not the last level, [B, C, 1, H, W]
    above: Tensor  # x is not the first
    half: float  # half a level


def _terms(x: Tensor, parameters: Tensor, levels: int, layout: str, autoregressive: bool) -> _Terms:
    channels, last = x.shape[1], levels - 1
    wide = torch.promote_types(parameters.dtype, torch.float32)
    p, index = split(parameters.to(wide), channels, layout, autoregressive)
    level = levels_of(x, levels)
    exact = (2 * level - last) / last
    grid = exact.to(wide)
    rest = (exact - grid).to(wide)  # a narrow scale would magnify the rounding of x a thousandfold
    tanh = p.coefficients.tanh()
    differences, n = [], 0
    for c in range(channels):
        difference = (grid[:, c, None] - p.means[:, c]) + rest[:, c, None]
        for j in range(c if autoregressive else 0):
            difference = difference - tanh[:, n] * grid[:, j, None]
            n += 1
        differences.append(difference)
    centred = torch.stack(differences, 1)
    below, above = (level != last)[:, :, None], (level != 0)[:, :, None]
    return _Terms(p, index, grid, p.log_scales.clamp(min=LOWEST), tanh, centred, below, above, 1 / last)


def _log_p(t: _Terms, form: str) -> Tensor:
    """log P(x) of each channel under each component."""
    q = torch.exp(-t.log_scales)
    a, b = q * (t.centred + t.half), q * (t.centred - t.half)
    zero = a.new_zeros(())
    if form == "exact":
        width = torch.log(-torch.expm1(-2 * t.half * q))
        inside = torch.where(t.below & t.above, width, zero)
        return torch.where(t.below, F.logsigmoid(a), zero) + torch.where(t.above, F.logsigmoid(-b), zero) + inside
    mass = torch.sigmoid(a) - torch.sigmoid(b)
    middle = q * t.centred
    density = F.logsigmoid(middle) + F.logsigmoid(-middle) - t.log_scales + math.log(2 * t.half)
    inside = torch.where(mass > 1e-5, torch.log(mass.clamp(min=1e-12)), density)
    return torch.where(t.above, torch.where(t.below, inside, F.logsigmoid(-b)), F.logsigmoid(a))


def logistic_mixture_nll(
    x: Tensor,
    parameters: Tensor,
    *,
    levels: int = 256,
    layout: str = "openai",
    autoregressive: bool | None = None,
    form: str = "exact",
) -> Tensor:
    """-log sum_k softmax(logits)_k prod_c P_ck(x_c) of each pixel, [B, H, W]; see `pygen.ops.logistic_mixture_nll`."""
    t = _terms(x, parameters, levels, layout, x.shape[1] == 3 if autoregressive is None else autoregressive)
    return -torch.logsumexp(t.p.logits.log_softmax(1) + _log_p(t, form).sum(1), 1)


def _slopes(t: _Terms, form: str) -> tuple[Tensor, Tensor]:
    """d log P / d mean and d log P / d log-scale; the latter 0 where that is clamped."""
    q = torch.exp(-t.log_scales)
    a, b = q * (t.centred + t.half), q * (t.centred - t.half)
    zero = a.new_zeros(())
    left, right = torch.where(t.below, torch.sigmoid(-a), zero), torch.where(t.above, torch.sigmoid(b), zero)
    inside, delta = t.below & t.above, 2 * t.half * q
    mean = q * (right - left)
    width = torch.where(delta > 0, delta / torch.expm1(delta), 1.0)
    log_scale = b * right - a * left - torch.where(inside, width, zero)
    if form == "openai":
        middle = q * t.centred
        tilt = 1 - 2 * torch.sigmoid(middle)
        narrow = inside & (torch.sigmoid(a) - torch.sigmoid(b) <= 1e-5)
        mean, log_scale = torch.where(narrow, -q * tilt, mean), torch.where(narrow, -middle * tilt - 1, log_scale)
    return mean, torch.where(t.p.log_scales >= LOWEST, log_scale, zero)


def logistic_mixture_slope(
    x: Tensor,
    parameters: Tensor,
    *,
    levels: int = 256,
    layout: str = "openai",
    autoregressive: bool | None = None,
    form: str = "exact",
) -> Tensor:
    """d nll / d parameters, each pixel's: of logit k softmax_k - r_k, and of all else -r_k d log P_ck, with r_k the
    probability of component k given x."""
    t = _terms(x, parameters, levels, layout, x.shape[1] == 3 if autoregressive is None else autoregressive)
    logits = t.p.logits
    share = torch.softmax(logits + _log_p(t, form).sum(1), 1)
    mean, log_scale = (-share[:, None] * slope for slope in _slopes(t, form))
    slope = torch.empty_like(parameters)
    slope[:, t.where.logits] = (torch.softmax(logits, 1) - share).to(slope)
    slope[:, t.where.means] = mean.to(slope)
    # not 0 times a share that is NaN
    slope[:, t.where.log_scales] = torch.where(t.p.log_scales >= LOWEST, log_scale, 0.0).to(slope)
    n = 0
    for c in range(x.shape[1] if t.tanh.shape[1] else 0):
        for j in range(c):
            coefficient = mean[:, c] * t.x[:, j, None] * (1 - t.tanh[:, n].square())
            slope[:, t.where.coefficients[n]] = coefficient.to(slope)
            n += 1
    return slope


# --- samples ---------------------------------------------------------------------------------------------------------


def _tanh(x: Tensor) -> Tensor:
    e = exp(torch.clamp(x.abs() * -2.0, min=-80.0))
    return torch.where(x < 0, e - 1.0, 1.0 - e) / (e + 1.0)


def quantize(x: Tensor, levels: int) -> Tensor:
    """The grid point of [-1, 1] next to x."""
    last = float(levels - 1)
    level = ((x + 1.0) * (last / 2)).round()
    return (level * 2.0 - last) / last


def logistic_mixture_sample(
    parameters: Tensor,
    noise: Tensor,
    *,
    channels: int,
    levels: int = 256,
    layout: str = "openai",
    autoregressive: bool | None = None,
    temperature: float = 1.0,
    scale_temperature: float = 1.0,
    quantized: bool = True,
) -> Tensor:
    """A draw of x [B, C, H, W] from uniforms [B, 1 + C, H, W]; see `pygen.ops.logistic_mixture_sample`.

    In float32, by additions, multiplications and divisions in one order, so that every backend gives the same bits."""
    autoregressive = channels == 3 if autoregressive is None else autoregressive
    p, _ = split(parameters.float(), channels, layout, autoregressive)
    noise = noise.float()
    mixtures = p.logits.shape[1]

    coldness = torch.tensor(min(1 / temperature if temperature else torch.inf, 3e38), dtype=torch.float32).to(p.logits)
    cold = (p.logits - p.logits.amax(1, keepdim=True)) * coldness
    weights = torch.where(cold < -80.0, 0.0, exp(cold.clamp(min=-80.0)))
    sums = [weights[:, 0]]
    for k in range(1, mixtures):
        sums.append(sums[-1] + weights[:, k])
    threshold = noise[:, 0] * sums[-1]
    component = torch.stack([*(threshold >= s for s in sums[:-1]), torch.zeros_like(threshold, dtype=torch.bool)]).sum(
        0
    )
    index = component[:, None, None]

    def chosen(t: Tensor) -> Tensor:
        return t.gather(2, index.expand(-1, t.shape[1], -1, -1, -1))[:, :, 0]

    means, scales, slopes = chosen(p.means), chosen(p.log_scales), _tanh(chosen(p.coefficients))
    scales = exp(scales.clamp(LOWEST, HIGHEST))
    means = torch.where(sums[-1].isnan()[:, None], torch.nan, means)
    x: list[Tensor] = []
    n = 0
    for c in range(channels):
        mean = means[:, c]
        for j in range(c if autoregressive else 0):
            mean = mean + slopes[:, n] * x[j]
            n += 1
        u = noise[:, 1 + c].clamp(EDGE, 1 - EDGE)
        z = _join(*_split(u)) - _join(*_split(1.0 - u))
        drawn = (mean + scales[:, c] * (z * scale_temperature)).clamp(-1.0, 1.0)
        x.append(quantize(drawn, levels) if quantized else drawn)
    return torch.stack(x, 1).to(torch.promote_types(parameters.dtype, torch.float32))
