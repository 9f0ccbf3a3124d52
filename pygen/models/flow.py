"""What every normalising flow shares: the change of variables, sampling, encoding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import random
from ..nn import Logit, Squeeze, dequantize, quantize
from ..random import Source
from .model import Model


class Flow(Model):
    """A normalising flow with a standard normal prior over a flat latent z [B, D].

    log p(v) = log N(z; 0, I) + log |det dz / dv|,   z = f(v)

    A subclass implements f as `_transform` and `_inverse`. Continuous data is v itself. With `levels`, v is x + noise,
    grey values in [0, levels]: `log_prob` is the log-density of x with fresh uniform noise, in expectation over it a
    lower bound of the log-probability of x; `encode` takes 1/2 for the noise and `decode` the level below, so that
    decode(encode(x)) = x; `transform` and `inverse` work on grey values.

    In training mode dropout makes it another map at every call: `eval()` first. A temperature scales the latent that is
    sampled: it is the standard deviation.
    """

    def _transform(self, v: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """v -> z [B, D], log |det dz / dv| [B]."""
        raise NotImplementedError

    def _inverse(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """z -> v, log |det dv / dz| [B]."""
        raise NotImplementedError

    def _prepare(self, x: Tensor, generator: Source) -> Tensor:
        if self.levels is None:
            return self._continuous("x", x, self.shape)
        self._check_shape("x", x, self.shape)
        return dequantize(x, self.levels, dtype=self._like.dtype, generator=generator)

    def _continuous(self, name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """x in the model's dtype, once its shape and its dtype are right."""
        self._check_shape(name, x, shape)
        if not x.is_floating_point():
            raise TypeError(f"expected {name} of a floating-point dtype, got {x.dtype}")
        return x.to(self._like.dtype)

    def _finish(self, v: Tensor) -> Tensor:
        """Undoes `_prepare`."""
        return v if self.levels is None else quantize(v, self.levels)

    def _log_density(self, v: Tensor, condition: Tensor | None) -> Tensor:
        z, logdet = self._transform(v, condition)
        return logdet - 0.5 * (z.to(logdet.dtype).square() + math.log(2 * math.pi)).sum(1)

    def transform(self, v: Tensor, y: Tensor | None = None, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """f on continuous data [B, *shape], and its log-determinant: z [B, D], log |det dz / dv| [B]."""
        v = self._continuous("v", v, self.shape)
        return self._transform(v, self._given(len(v), y, context))

    def inverse(self, z: Tensor, y: Tensor | None = None, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The inverse of `transform`: v [B, *shape], log |det dv / dz| [B]."""
        z = self._continuous("z", z, (math.prod(self.shape),))
        return self._inverse(z, self._given(len(z), y, context))

    def encode(self, x: Tensor, y: Tensor | None = None, *, context: Tensor | None = None) -> Tensor:
        """The latent z [B, D] of x; standard normal over the data."""
        return self._transform(self._encodable(x), self._given(len(x), y, context))[0]

    def _encodable(self, x: Tensor) -> Tensor:
        if self.levels is None:
            return self._prepare(x, None)
        self._check_shape("x", x, self.shape)
        return dequantize(x, self.levels, 0.5, self._like.dtype)

    def decode(self, z: Tensor, y: Tensor | None = None, *, context: Tensor | None = None) -> Tensor:
        """The sample x with latent z [B, D]: decode(encode(x)) = x."""
        return self._finish(self.inverse(z, y, context=context)[0])

    def _sample(self, first: int, y: Tensor | None, context: Tensor | None, seed: int, temperature: float) -> Tensor:
        like = self._like
        shape = (self.CHUNK, math.prod(self.shape))
        z = random.normal(shape, generator=seed, first_sample=first, dtype=like.dtype, device=like.device)
        return self.decode(temperature * z, y, context=context)


class MultiscaleFlow(Flow):
    """A flow of images that makes half of the channels latent after every scale but the last (Dinh et al. 2017, section
    3.6). Levels enter through `Logit`.

    A subclass fills `scales` with flow layers of images; every `Squeeze` among them halves height and width.
    """

    levels: int

    def __init__(
        self,
        config: dict[str, Any],
        shape: tuple[int, int, int],
        levels: int,
        num_classes: int | None,
        context_features: int,
        alpha: float,
    ) -> None:
        super().__init__(config, tuple(shape), num_classes, context_features)
        self.levels = levels
        self.logit = Logit(levels, alpha)
        self.scales = nn.ModuleList()

    def _transform(self, v: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        x, logdet = self.logit(v)
        latents = []
        for i, scale in enumerate(self.scales):
            if i:
                z, x = x.chunk(2, 1)
                latents.append(z.flatten(1))
            x, logdet = scale(x, logdet, condition)
        return torch.cat([*latents, x.flatten(1)], 1), logdet

    def _inverse(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        shapes = self._latent_shapes()
        *latents, x = z.split([math.prod(s) for s in shapes], 1)
        x, logdet = x.unflatten(1, shapes[-1]), None
        for i in reversed(range(len(self.scales))):
            x, logdet = self.scales[i](x, logdet, condition, inverse=True)
            if i:
                x = torch.cat([latents[i - 1].unflatten(1, shapes[i - 1]), x], 1)
        v: tuple[Tensor, Tensor] = self.logit(x, logdet, inverse=True)
        return v

    def _latent_shapes(self) -> list[tuple[int, int, int]]:
        """Shapes of what each scale makes latent, the last scale's output included."""
        channels, height, width = self.shape
        shapes = []
        for i, scale in enumerate(self.scales):
            halvings = sum(isinstance(layer, Squeeze) for layer in scale.modules())
            channels, height, width = channels * 4**halvings, height >> halvings, width >> halvings
            if i + 1 < len(self.scales):
                channels //= 2
            shapes.append((channels, height, width))
        return shapes


def check_image(shape: Sequence[int]) -> None:
    """Raises ValueError unless shape is that of an image, (C, H, W)."""
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(f"expected shape as (C, H, W), got {shape}")


def check_halvings(height: int, width: int, times: int) -> None:
    """Raises ValueError unless both can be halved so often."""
    if height % 2**times or width % 2**times:
        raise ValueError(
            f"expected height and width divisible by {2**times}, to be halved {times} times, got {height} x {width}"
        )


def halvings(height: int, width: int) -> int:
    """How often both can be halved, with no less than 4 left of either."""
    times = 0
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 8:
        times, height, width = times + 1, height // 2, width // 2
    return times
