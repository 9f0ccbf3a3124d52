"""Flows of vectors by layers in a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from .._arguments import check_integer
from ..nn import (
    MADE,
    Affine,
    Chain,
    Inverse,
    Logit,
    LULinear,
    MaskedAutoregressive,
    Permutation,
    ResidualMLP,
    Spline,
    SplineCoupling,
    Standardize,
)
from .flow import Flow


class FlatFlow(Flow):
    """A flow of vectors, or of images as vectors of their pixels, by layers in a row; a subclass fills `layers`.

    shape: of a sample; a number for that of a vector. All its dimensions are one vector to the layers.
    levels: images hold integers 0 .. levels - 1, which enter dequantised, through `Logit`; None: real numbers.

    The first layer may be a `Standardize`, which `initialize` (training calls it) sets by the first batch.
    `log_prob` of real numbers is exact; of levels, see `Flow`.
    """

    CHUNK = 1024

    def __init__(
        self,
        config: dict[str, Any],
        shape: int | Sequence[int],
        levels: int | None,
        num_classes: int | None,
        context_features: int,
        alpha: float = 0.05,
    ) -> None:
        shape = tuple(shape) if isinstance(shape, Sequence) else (shape,)
        super().__init__({"shape": list(shape), **config}, shape, num_classes, context_features)
        self.levels = levels
        self.logit = None if levels is None else Logit(levels, alpha)
        self.features = math.prod(shape)
        self.layers = Chain()

    @torch.no_grad()
    def initialize(self, x: Tensor, y: Tensor | None = None, *, context: Tensor | None = None) -> None:
        if len(self.layers) and isinstance(self.layers[0], Standardize):
            self.layers[0].observe(self._vectors(self._prepare(x, None))[0])

    def _vectors(self, v: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.logit is None:
            return v.flatten(1), None
        x, logdet = self.logit(v)
        return x.flatten(1), logdet

    def _transform(self, v: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        x, logdet = self._vectors(v)
        z, logdet = self.layers(x, logdet, condition)
        return z, z.new_zeros(len(z)) if logdet is None else logdet

    def _inverse(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        x, logdet = self.layers(z, None, condition, inverse=True)
        logdet = x.new_zeros(len(x)) if logdet is None else logdet
        x = x.unflatten(1, self.shape)
        v: tuple[Tensor, Tensor] = (x, logdet) if self.logit is None else self.logit(x, logdet, inverse=True)
        return v


class MAF(FlatFlow):
    """Masked Autoregressive Flow (Papamakarios et al. 2017, arXiv 1705.07057): affine layers of masked nets, the order
    of the features reversed between them.

    The density takes one pass of each net; sampling one sweep (`pygen.ops.made_inverse`).

    shape, levels: see `FlatFlow`; alpha: bound of the logit transform.
    num_classes, context_features: see `Model`; every net is conditioned on them.
    layers: how many.
    hidden, blocks, nonlinearity: of their nets; see `pygen.nn.MADE`.
    """

    def __init__(
        self,
        shape: int | tuple[int, ...],
        levels: int | None = None,
        *,
        num_classes: int | None = None,
        context_features: int = 0,
        layers: int = 5,
        hidden: int = 128,
        blocks: int = 1,
        nonlinearity: str = "relu",
        alpha: float = 0.05,
    ) -> None:
        check_integer("layers", layers, 1)
        config = {
            "levels": levels, "num_classes": num_classes, "context_features": context_features, "layers": layers,
            "hidden": hidden, "blocks": blocks, "nonlinearity": nonlinearity, "alpha": alpha,
        }  # fmt: skip
        super().__init__(config, shape, levels, num_classes, context_features, alpha)
        self.layers.append(Standardize(self.features))
        for i in range(layers):
            if i:
                self.layers.append(Permutation.reverse(self.features))
            net = {"hidden": hidden, "blocks": blocks, "nonlinearity": nonlinearity}
            self.layers.append(
                self._layer(autoregressive_layer(self.features, self.condition.features, Affine(), **net))
            )

    def _layer(self, layer: MaskedAutoregressive) -> nn.Module:
        return layer


class IAF(MAF):
    """Inverse Autoregressive Flow (Kingma et al. 2016, arXiv 1606.04934): `MAF` with its layers the other way round.

    Sampling takes one pass of each net, and the density of given data one sweep.
    """

    def _layer(self, layer: MaskedAutoregressive) -> nn.Module:
        return Inverse(layer)


def autoregressive_layer(
    features: int, condition_features: int, transform: Affine | Spline, **net: Any
) -> MaskedAutoregressive:
    """A layer of a masked net that starts as the identity."""
    made = MADE(
        features, transform.parameters, condition_features=condition_features, start=transform.identity(), **net
    )
    return MaskedAutoregressive(made, transform)


def coupling_layer(
    features: int, condition_features: int, part: str | Sequence[bool], spline: Spline, **net: Any
) -> SplineCoupling:
    """A layer of a residual net that starts as the identity; the halves of an odd number differ by one."""
    if not isinstance(part, str) and len(part) != features:
        raise ValueError(f"expected part as a mask of {features} features, got {len(part)}")
    half = features // 2 if part in ("second", "odd") else features - features // 2
    changed = half if isinstance(part, str) else sum(part)
    start = spline.identity().repeat(changed)
    mlp = ResidualMLP(
        features - changed, changed * spline.parameters, condition_features=condition_features, start=start, **net
    )
    return SplineCoupling(mlp, changed, part, spline)


# --- flows by a description of their layers ---------------------------------------------------------------------------

Description = Mapping[str, Any]


class CompositeFlow(FlatFlow):
    """A flow of vectors by a description of its layers, which JSON can hold; `pygen.integrations.nflows.from_nflows`
    makes them.

    shape: see `FlatFlow`.
    layers: one mapping each; "layer" names it::

        permutation       fixed, at first random
        lu                eps: see `pygen.nn.LULinear`
        standardize       see `pygen.nn.Standardize`
        autoregressive    transform, and hidden, blocks, residual, nonlinearity, degrees as `pygen.nn.MADE` takes them
        coupling          transform, part as `pygen.nn.SplineCoupling`, hidden, blocks, nonlinearity as
                          `pygen.nn.ResidualMLP` take them
        inverse           of: a layer, which is the other way round

        A transform is {"name": "affine", "eps": ...} or {"name": "spline", "bins": ..., ...}, with what
        `pygen.nn.Affine` and `pygen.nn.Spline` take.
    context_features: see `Model`.
    """

    def __init__(
        self, shape: int | tuple[int, ...], layers: Sequence[Description], *, context_features: int = 0
    ) -> None:
        if not isinstance(layers, Sequence) or not all(isinstance(layer, Mapping) for layer in layers):
            raise TypeError(f"expected layers as a sequence of mappings, got {layers!r}")
        config = {"layers": [dict(layer) for layer in layers], "context_features": context_features}
        super().__init__(config, shape, None, None, context_features)
        self.layers.extend(_built(layer, self.features, context_features) for layer in layers)

    def initialize(self, x: Tensor, y: Tensor | None = None, *, context: Tensor | None = None) -> None:
        """Nothing: what is described elsewhere comes with its own mean and deviation."""


def _built(description: Description, features: int, condition_features: int) -> nn.Module:
    try:
        layer = _layer_of(description, features, condition_features)
    except TypeError as error:  # what a layer does not take
        raise TypeError(f"expected layers as CompositeFlow describes them, got {description}: {error}") from error
    if layer is None:
        raise ValueError(f"expected layers as CompositeFlow describes them, got {description}")
    return layer


def _layer_of(description: Any, features: int, condition_features: int) -> nn.Module | None:
    if not isinstance(description, Mapping):
        return None
    given = dict(description)
    kind = given.pop("layer", None)
    if kind == "permutation":
        return Permutation.random(features, **given)
    if kind == "lu":
        return LULinear(features, **given)
    if kind == "standardize":
        return Standardize(features, **given)
    if kind == "inverse" and list(given) == ["of"]:
        return Inverse(_built(given["of"], features, condition_features))
    transform = given.pop("transform", {})
    if not isinstance(transform, Mapping):
        return None
    transform = dict(transform)
    name = transform.pop("name", None)
    if kind == "autoregressive" and name in (Affine.name, Spline.name):
        return autoregressive_layer(
            features, condition_features, (Affine if name == Affine.name else Spline)(**transform), **given
        )
    if kind == "coupling" and name == Spline.name and "part" in given:
        return coupling_layer(features, condition_features, given.pop("part"), Spline(**transform), **given)
    return None


def described(transform: Affine | Spline) -> dict[str, Any]:
    """A transform in the words of `CompositeFlow`."""
    return {"name": transform.name, **asdict(transform)}
