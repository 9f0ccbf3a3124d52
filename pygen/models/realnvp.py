"""RealNVP (Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .._arguments import check_integer
from ..nn import AffineCoupling, Chain, Logit, ResidualNet, Squeeze, dequantize, quantize
from ..random import Source
from .flow import Flow


class RealNVP(Flow):
    """The paper's multiscale model of images with integer grey levels, given a label or a context if so built.

    Every scale but the last: three checkerboard couplings, squeeze, three channel couplings, and half of the channels
    becomes latent; the last: four checkerboard couplings (section 3.6). Levels enter through `dequantize` and `Logit`.

    shape: (C, H, W) of an image.
    levels: images hold integers 0 .. levels - 1.
    num_classes, context_features: see `Model`; every coupling net is conditioned on them.
    scales: H and W must be divisible by 2^(scales - 1). None: as many as leave the last scale no smaller than 4 x 4.
    hidden, blocks, dropout: channels, residual blocks and dropout of the coupling nets.
    alpha: bound of the logit transform.

    `log_prob` is the log-density of x + noise with fresh uniform noise: in expectation over it a lower bound of the
    log-probability of the image. `encode` takes 1/2 for the noise and `decode` the level below: decode(encode(x)) = x.
    `transform` and `inverse` work on grey values in [0, levels].
    """

    levels: int

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int = 256,
        *,
        num_classes: int | None = None,
        context_features: int = 0,
        scales: int | None = None,
        hidden: int = 64,
        blocks: int = 2,
        dropout: float = 0.0,
        alpha: float = 0.05,
    ) -> None:
        if len(shape) != 3:
            raise ValueError(f"expected shape as (C, H, W), got {shape}")
        channels, height, width = shape
        scales = _scales(height, width) if scales is None else scales
        check_integer("scales", scales, 1)
        if height % 2 ** (scales - 1) or width % 2 ** (scales - 1):
            raise ValueError(
                f"expected height and width divisible by 2^(scales - 1), got {height} x {width} and {scales} scales"
            )
        config = {
            "shape": list(shape), "levels": levels, "num_classes": num_classes, "context_features": context_features,
            "scales": scales, "hidden": hidden, "blocks": blocks, "dropout": dropout, "alpha": alpha,
        }  # fmt: skip
        super().__init__(config, (channels, height, width), num_classes, context_features)
        self.levels = levels
        self.logit = Logit(levels, alpha)

        def coupling(channels: int, part: str) -> AffineCoupling:
            changed = channels // 2 if part in ("first", "second") else channels
            kept = channels - changed or channels
            net = ResidualNet(
                kept, 2 * changed, hidden=hidden, blocks=blocks, dims=2,
                condition_features=self.condition.features, dropout=dropout,
            )  # fmt: skip
            return AffineCoupling(net, changed, part)

        self.scales = nn.ModuleList()
        for _ in range(scales - 1):
            checkerboards = [coupling(channels, part) for part in ("even", "odd", "even")]
            channels *= 4
            halves = [coupling(channels, part) for part in ("second", "first", "second")]
            self.scales.append(Chain([*checkerboards, Squeeze(), *halves]))
            channels //= 2
        self.scales.append(Chain(coupling(channels, part) for part in ("even", "odd", "even", "odd")))

    def _prepare(self, x: Tensor, generator: Source) -> Tensor:
        self._check_shape("x", x, self.shape)
        return dequantize(x, self.levels, dtype=self._like.dtype, generator=generator)

    def _encodable(self, x: Tensor) -> Tensor:
        self._check_shape("x", x, self.shape)
        return dequantize(x, self.levels, 0.5, self._like.dtype)

    def _finish(self, v: Tensor) -> Tensor:
        return quantize(v, self.levels)

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
        for _ in range(len(self.scales) - 1):
            channels, height, width = 2 * channels, height // 2, width // 2
            shapes.append((channels, height, width))
        return [*shapes, (channels, height, width)]


class RealNVPFlat(Flow):
    """RealNVP of vectors [B, features]: couplings that change the even and the odd features by turns.

    `log_prob` is exact. hidden, blocks, dropout: width, residual blocks and dropout of the coupling nets.
    """

    CHUNK = 1024

    def __init__(
        self,
        features: int = 2,
        *,
        num_classes: int | None = None,
        context_features: int = 0,
        couplings: int = 8,
        hidden: int = 64,
        blocks: int = 1,
        dropout: float = 0.0,
    ) -> None:
        check_integer("features", features, 2)  # a coupling keeps some and changes some
        check_integer("couplings", couplings, 2)  # each changes every other feature
        config = {
            "features": features, "num_classes": num_classes, "context_features": context_features,
            "couplings": couplings, "hidden": hidden, "blocks": blocks, "dropout": dropout,
        }  # fmt: skip
        super().__init__(config, (features,), num_classes, context_features)
        self.couplings = Chain()
        for i in range(couplings):
            net = ResidualNet(
                features, 2 * features, hidden=hidden, blocks=blocks, dims=0,
                condition_features=self.condition.features, dropout=dropout,
            )  # fmt: skip
            self.couplings.append(AffineCoupling(net, features, ("even", "odd")[i % 2]))

    def _transform(self, v: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        z: tuple[Tensor, Tensor] = self.couplings(v, None, condition)
        return z

    def _inverse(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        v: tuple[Tensor, Tensor] = self.couplings(z, None, condition, inverse=True)
        return v


def _scales(height: int, width: int) -> int:
    """As many scales as leave the last one whole and no smaller than 4 x 4."""
    scales = 1
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 8:
        scales, height, width = scales + 1, height // 2, width // 2
    return scales
