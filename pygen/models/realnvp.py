"""RealNVP (Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017)."""

from __future__ import annotations

from torch import Tensor

from .._arguments import check_integer
from ..nn import AffineCoupling, Chain, ResidualNet, Squeeze
from .flow import Flow, MultiscaleFlow, check_halvings, check_image, halvings


class RealNVP(MultiscaleFlow):
    """The paper's multiscale model of images with integer grey levels, given a label or a context if so built.

    Every scale but the last: three checkerboard couplings, squeeze, three channel couplings, and half of the channels
    becomes latent; the last: four checkerboard couplings (section 3.6). Images enter dequantised, through `Logit`.

    shape: (C, H, W) of an image.
    levels: images hold integers 0 .. levels - 1.
    num_classes, context_features: see `Model`; every coupling net is conditioned on them.
    scales: H and W must be divisible by 2^(scales - 1). None: as many as leave the last scale no smaller than 4 x 4.
    hidden, blocks, dropout: channels, residual blocks and dropout of the coupling nets.
    alpha: bound of the logit transform.

    Likelihoods, `encode` and `transform` of levels are as in `Flow`.
    """

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
        check_image(shape)
        channels, height, width = shape
        scales = 1 + halvings(height, width) if scales is None else scales
        check_integer("scales", scales, 1)
        check_halvings(height, width, scales - 1)
        config = {
            "shape": list(shape), "levels": levels, "num_classes": num_classes, "context_features": context_features,
            "scales": scales, "hidden": hidden, "blocks": blocks, "dropout": dropout, "alpha": alpha,
        }  # fmt: skip
        super().__init__(config, shape, levels, num_classes, context_features, alpha)

        def coupling(channels: int, part: str) -> AffineCoupling:
            changed = channels // 2 if part in ("first", "second") else channels
            kept = channels - changed or channels
            net = ResidualNet(
                kept, 2 * changed, hidden=hidden, blocks=blocks, dims=2,
                condition_features=self.condition.features, dropout=dropout,
            )  # fmt: skip
            return AffineCoupling(net, changed, part)

        for _ in range(scales - 1):
            checkerboards = [coupling(channels, part) for part in ("even", "odd", "even")]
            channels *= 4
            halves = [coupling(channels, part) for part in ("second", "first", "second")]
            self.scales.append(Chain([*checkerboards, Squeeze(), *halves]))
            channels //= 2
        self.scales.append(Chain(coupling(channels, part) for part in ("even", "odd", "even", "odd")))


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
