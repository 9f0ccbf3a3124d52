"""Heads: the distributions that the features of a pixel stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops, random
from .._arguments import check_integer
from ..reference.causal_sampler import kept
from .masked_conv import NormalizedConv2d
from .normalize import denormalize
from .program import Compiled, ProgramBuilder


class CausalHead(nn.Module):
    """The categorical distribution of every channel's level: `pygen.ops.categorical_nll` with its weights.

    Channel c sees the features of groups up to c (mask "B"), where there are several channels.
    """

    def __init__(self, features: int, channels: int, levels: int) -> None:
        super().__init__()
        for name, value in (("features", features), ("channels", channels), ("levels", levels)):
            check_integer(name, value, 1)
        if features % channels:
            raise ValueError(f"expected features as a multiple of the {channels} channels, got {features}")
        self.channels, self.levels = channels, levels
        self.drawn_together = [slice(c, c + 1) for c in range(channels)]
        self.weight = nn.Parameter(torch.empty(channels * levels, features))
        self.bias = nn.Parameter(torch.zeros(channels * levels))
        nn.init.uniform_(self.weight, -(features**-0.5), features**-0.5)

    def _weight(self) -> Tensor:
        if self.channels == 1:
            return self.weight
        outputs, features = self.weight.shape
        group = torch.arange(features, device=self.weight.device) * self.channels // features
        seen = group <= torch.arange(outputs, device=self.weight.device)[:, None] // self.levels
        return self.weight * seen

    def compiled(self, builder: ProgramBuilder, h: int) -> Compiled:
        """The program that draws from the features in the plane h."""
        output = builder.plane(self.levels)
        features = self.weight.shape[1]
        for c in range(self.channels):
            own, seen = slice(c * self.levels, (c + 1) * self.levels), (c + 1) * features // self.channels
            builder.dense(self.weight[own, :seen], self.bias[own], h, output, group=c)
        return builder.finish(output, head="categorical")

    def nll(self, h: Tensor, levels: Tensor) -> Tensor:
        """[B, channels, H, W] nats, for features [B, features, H, W]."""
        return ops.categorical_nll(h, self._weight(), self.bias, levels)

    def logits(self, h: Tensor) -> Tensor:
        """[B, channels, levels] of one pixel's features [B, features]."""
        flat = nn.functional.linear(h, self._weight(), self.bias)
        logits: Tensor = flat.unflatten(1, (self.channels, self.levels))
        return logits

    def check_unknown(self, unknown: Tensor) -> None:
        """Which channels [B, channels, H, W] of a pixel are to be drawn makes no difference."""

    def draw(
        self,
        h: Tensor,
        channels: slice,
        temperature: float,
        generator: int,
        first_sample: int,
        pixel: int,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Tensor:
        """Levels [B, 1] of one of `drawn_together`, for one pixel's features [B, features]."""
        logits = self.logits(h)[:, channels.start]
        if temperature == 0:
            return logits.argmax(1, keepdim=True)
        logits = kept((logits - logits.amax(1, keepdim=True)).float() / temperature, top_k, top_p)[:, None]
        place = pixel * self.channels + channels.start
        return random.categorical(logits, generator=generator, first_sample=first_sample, offset=place)


class MixtureHead(nn.Module):
    """A mixture of discretised logistic distributions of a pixel's channels: `pygen.ops.logistic_mixture_nll`.

    Its parameters are a weight-normalised 1x1 convolution of the features, in the layout "openai" for 1 and 3 channels
    and "tfp" for other numbers. Channels depend on those before them.
    """

    def __init__(self, features: int, channels: int, levels: int, mixtures: int = 10) -> None:
        super().__init__()
        for name, value, least in (("channels", channels, 1), ("levels", levels, 2), ("mixtures", mixtures, 1)):
            check_integer(name, value, least)
        if levels > 65536:
            raise ValueError(f"expected levels <= 65536, got {levels}")
        self.channels, self.levels = channels, levels
        self.drawn_together = [slice(0, channels)]
        self.mixtures = mixtures
        each = 1 + 2 * channels + channels * (channels - 1) // 2
        self.parameters_of = NormalizedConv2d(features, each * mixtures, ((0, 0),))
        layout = "openai" if channels in (1, 3) else "tfp"
        self.options: dict[str, Any] = {"levels": levels, "layout": layout, "autoregressive": channels > 1}

    def compiled(self, builder: ProgramBuilder, h: int) -> Compiled:
        """The program that draws from the features in the plane h."""
        output = builder.conv((self.parameters_of, h))
        return builder.finish(output, head="mixture", mixtures=self.mixtures, layout=self.options["layout"])

    def nll(self, h: Tensor, levels: Tensor) -> Tensor:
        """[B, H, W] nats, for features [B, features, H, W] and levels [B, channels, H, W]."""
        return ops.logistic_mixture_nll(levels, self.parameters_of(h), **self.options)

    def check_unknown(self, unknown: Tensor) -> None:
        """Raises ValueError for pixels of which only some channels [B, channels, H, W] are to be drawn."""
        if not torch.equal(unknown.any(1), unknown.all(1)):
            raise ValueError("expected known to be the same for all channels of a pixel, which are drawn together")

    def draw(
        self,
        h: Tensor,
        channels: slice,
        temperature: float,
        generator: int,
        first_sample: int,
        pixel: int,
        **_: float,
    ) -> Tensor:
        """Levels [B, channels] for one pixel's features [B, features]."""
        x = ops.logistic_mixture_sample(
            self.parameters_of(h[..., None, None]),
            channels=self.channels,
            temperature=temperature,
            scale_temperature=temperature,
            generator=generator,
            first_sample=first_sample,
            offset=pixel * (1 + self.channels),
            **self.options,
        )
        if x.device.type == "cpu" and bool(x.isnan().any()):
            raise ValueError("expected parameters of a mixture to draw from, got NaN")
        return denormalize(x[..., 0, 0], self.levels).long()
