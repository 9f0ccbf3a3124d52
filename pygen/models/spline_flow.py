"""Neural spline flows (Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019)."""

from __future__ import annotations

from typing import Any

from .._arguments import check_choice, check_integer
from ..nn import (
    Chain,
    LULinear,
    Permutation,
    ResidualNet,
    Spline,
    SplineCoupling,
    Squeeze,
    Standardize,
)
from .flat import FlatFlow, autoregressive_layer, coupling_layer
from .flow import MultiscaleFlow, check_halvings, check_image, halvings

KINDS = ("coupling", "autoregressive")


class SplineFlowFlat(FlatFlow):
    """Neural spline flow of vectors: before each layer of splines a random permutation and a linear layer.

    shape, levels: see `FlatFlow`; alpha: bound of the logit transform.
    num_classes, context_features: see `Model`; every net is conditioned on them.
    coupling: "coupling" (default), splines of the halves by turns, as fast in either direction; or "autoregressive",
        of every feature given those before it, whose samples take a sweep (`pygen.ops.made_inverse`).
    layers, bins, bound: how many layers of splines of so many bins on [-bound, bound], beyond which they are the
        identity. Data is standardised by the first batch.
    linear: whether there are linear layers (`LULinear`) beside the permutations.
    hidden, blocks, nonlinearity: of the nets, `pygen.nn.ResidualMLP` or `pygen.nn.MADE`.
    dropout: of couplings' nets.
    """

    def __init__(
        self,
        shape: int | tuple[int, ...],
        levels: int | None = None,
        *,
        num_classes: int | None = None,
        context_features: int = 0,
        coupling: str = "coupling",
        layers: int = 8,
        bins: int = 8,
        bound: float = 3.0,
        linear: bool = True,
        hidden: int = 64,
        blocks: int = 2,
        nonlinearity: str = "relu",
        dropout: float = 0.0,
        alpha: float = 0.05,
    ) -> None:
        check_choice("coupling", coupling, KINDS)
        check_integer("layers", layers, 1)
        config = {
            "levels": levels, "num_classes": num_classes, "context_features": context_features, "coupling": coupling,
            "layers": layers, "bins": bins, "bound": bound, "linear": linear, "hidden": hidden, "blocks": blocks,
            "nonlinearity": nonlinearity, "dropout": dropout, "alpha": alpha,
        }  # fmt: skip
        super().__init__(config, shape, levels, num_classes, context_features, alpha)
        if coupling == "coupling" and self.features < 2:
            raise ValueError("expected 2 features or more, of which a coupling keeps some and changes some, got 1")
        if coupling == "autoregressive" and dropout:
            raise ValueError(f"expected no dropout in masked nets, got {dropout}")
        sizes = self.features, self.condition.features
        net: dict[str, Any] = {"hidden": hidden, "blocks": blocks, "nonlinearity": nonlinearity}
        self.layers.append(Standardize(self.features))
        for i in range(layers):
            self.layers.append(Permutation.random(self.features))
            if linear:
                self.layers.append(LULinear(self.features))
            if coupling == "coupling":
                part = ("second", "first")[i % 2]
                self.layers.append(coupling_layer(*sizes, part, Spline(bins, bound), dropout=dropout, **net))
            else:
                self.layers.append(autoregressive_layer(*sizes, Spline(bins, bound), **net))


class SplineFlow(MultiscaleFlow):
    """Multiscale neural spline flow of images with integer grey levels.

    Every scale: squeeze, and couplings that change one half of the channels and then the other, with a random
    permutation of the channels after each two; half of the channels becomes latent after every scale but the last.
    Images enter dequantised, through `Logit`. Likelihoods, `encode` and `transform` of levels are as in `Flow`.

    shape: (C, H, W) of an image.
    levels: images hold integers 0 .. levels - 1.
    num_classes, context_features: see `Model`; every coupling net is conditioned on them.
    scales: H and W must be divisible by 2^scales. None: as many as leave the last scale no smaller than 4 x 4.
    couplings, bins, bound: how many to a scale, by splines of so many bins on [-bound, bound].
    hidden, blocks, dropout: channels, residual blocks and dropout of the coupling nets, `pygen.nn.ResidualNet`.
    alpha: bound of the logit transform.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int = 256,
        *,
        num_classes: int | None = None,
        context_features: int = 0,
        scales: int | None = None,
        couplings: int = 6,
        bins: int = 8,
        bound: float = 4.0,
        hidden: int = 64,
        blocks: int = 2,
        dropout: float = 0.0,
        alpha: float = 0.05,
    ) -> None:
        check_image(shape)
        channels, height, width = shape
        scales = max(1, halvings(height, width)) if scales is None else scales
        check_integer("scales", scales, 1)
        check_integer("couplings", couplings, 2)  # each changes one half
        check_halvings(height, width, scales)
        config = {
            "shape": list(shape), "levels": levels, "num_classes": num_classes, "context_features": context_features,
            "scales": scales, "couplings": couplings, "bins": bins, "bound": bound, "hidden": hidden,
            "blocks": blocks, "dropout": dropout, "alpha": alpha,
        }  # fmt: skip
        super().__init__(config, shape, levels, num_classes, context_features, alpha)
        spline = Spline(bins, bound)
        for _ in range(scales):
            channels *= 4
            layers = Chain([Squeeze()])
            for i in range(couplings):
                if i and i % 2 == 0:
                    layers.append(Permutation.random(channels))
                net = ResidualNet(
                    channels // 2, channels // 2 * spline.parameters, hidden=hidden, blocks=blocks, dims=2,
                    condition_features=self.condition.features, dropout=dropout,
                    start=spline.identity().repeat(channels // 2),
                )  # fmt: skip
                layers.append(SplineCoupling(net, channels // 2, ("second", "first")[i % 2], spline))
            self.scales.append(layers)
            channels //= 2
