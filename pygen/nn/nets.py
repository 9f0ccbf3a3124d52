"""Coupling nets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .._arguments import check_choice, check_integer
from ..reference.made_inverse import NONLINEARITIES


class ResidualNet(nn.Module):
    """Residual net with weight normalisation, of 3x3 convolutions or, for rank-2 inputs, of linear layers.

    [B, in_channels, ...], condition [B, condition_features] or None -> [B, out_channels, ...]

    As in Dinh et al. 2017 (section 3.5), but without batch normalisation: the density of one sample must not depend on
    the rest of its batch. The condition scales and shifts the hidden units of every block.

    dims: 2 for images, 0 for vectors.
    start: what is put out, [out_channels], before any training; None: zeros, by which an affine coupling is the
        identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int,
        blocks: int,
        dims: int,
        condition_features: int = 0,
        dropout: float = 0.0,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        if dims not in (0, 2):
            raise ValueError(f"expected dims 2 (images) or 0 (vectors), got {dims}")
        check_integer("in_channels", in_channels, 1)
        check_integer("out_channels", out_channels, 1)
        check_integer("hidden", hidden, 1)
        check_integer("blocks", blocks, 0)
        check_integer("condition_features", condition_features, 0)

        def layer(inputs: int, outputs: int) -> nn.Module:
            return nn.Conv2d(inputs, outputs, 3, padding=1) if dims == 2 else nn.Linear(inputs, outputs)

        self.condition_features = condition_features
        self.first = weight_norm(layer(in_channels, hidden))
        self.blocks = nn.ModuleList(
            _Block(
                weight_norm(layer(hidden, hidden)),
                weight_norm(layer(hidden, hidden)),
                hidden,
                condition_features,
                dropout,
            )
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(hidden, out_channels, 1) if dims == 2 else nn.Linear(hidden, out_channels)
        start_at(self.last, torch.zeros(out_channels) if start is None else start)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        check_condition(condition, self.condition_features)
        h = self.first(x)
        for block in self.blocks:
            h = block(h, condition)
        out: Tensor = self.last(F.elu(h))
        return out


class _Block(nn.Module):
    """x + second(elu(film(first(elu(x)))))."""

    def __init__(
        self, first: nn.Module, second: nn.Module, hidden: int, condition_features: int, dropout: float
    ) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.condition = nn.Linear(condition_features, 2 * hidden) if condition_features else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h: Tensor = self.first(F.elu(x))
        if self.condition is not None:
            film = self.condition(condition)
            scale, shift = film.reshape(*film.shape, *[1] * (h.dim() - 2)).chunk(2, 1)  # [B, hidden, 1, 1] each
            h = h * (1 + scale) + shift
        h = self.second(self.dropout(F.elu(h)))
        return x + h


class ResidualMLP(nn.Module):
    """Residual net of linear layers, without weight normalisation: that of Durkan et al. 2019, and nflows' ResidualNet.

    [B, inputs], condition [B, condition_features] or None -> [B, outputs]::

        h = W_0 [x, c] + b_0     h += (W_2 f(W_1 f(h) + b_1) + b_2) sigmoid(C c + d) for each block     W h + b

    where the factor and c are left out if there is no condition.

    hidden, blocks: width, and number of blocks.
    nonlinearity: f; see `MADE`.
    dropout: of the second f.
    start: what is put out, [outputs], before any training; None: what the random weights give.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: int,
        blocks: int = 2,
        nonlinearity: str = "relu",
        condition_features: int = 0,
        dropout: float = 0.0,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_integer("inputs", inputs, 1)
        check_integer("outputs", outputs, 1)
        check_integer("hidden", hidden, 1)
        check_integer("blocks", blocks, 0)
        check_integer("condition_features", condition_features, 0)
        check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
        self.nonlinearity, self.condition_features = nonlinearity, condition_features
        self.first = nn.Linear(inputs + condition_features, hidden)
        self.blocks = nn.ModuleList(
            _LinearBlock(hidden, nonlinearity, condition_features, dropout) for _ in range(blocks)
        )
        self.last = nn.Linear(hidden, outputs)
        if start is not None:
            start_at(self.last, start)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        check_condition(condition, self.condition_features)
        h = self.first(x if condition is None else torch.cat([x, condition], 1))
        for block in self.blocks:
            h = block(h, condition)
        out: Tensor = self.last(h)
        return out


class _LinearBlock(nn.Module):
    """x + second(f(first(f(x)))) sigmoid(condition)."""

    def __init__(self, hidden: int, nonlinearity: str, condition_features: int, dropout: float) -> None:
        super().__init__()
        self.nonlinearity = nonlinearity
        self.first, self.second = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.condition = nn.Linear(condition_features, hidden) if condition_features else None
        self.dropout = nn.Dropout(dropout) if dropout else None
        start_small(self.second)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        f, _ = NONLINEARITIES[self.nonlinearity]
        h = f(self.first(f(x)))
        if self.dropout is not None:
            h = self.dropout(h)
        h = self.second(h)
        if self.condition is not None:
            h = h * self.condition(condition).sigmoid()
        out: Tensor = x + h
        return out


def check_condition(condition: Tensor | None, features: int) -> None:
    """Raises ValueError unless there is a condition of so many features, or None of 0."""
    given = 0 if condition is None else condition.shape[-1]
    if given != features:
        raise ValueError(f"expected a condition of {features} features, got {given}")


def start_small(second: nn.Linear) -> None:
    """Makes a residual block start as almost nothing, by its second layer."""
    nn.init.uniform_(second.weight, -1e-3, 1e-3)
    nn.init.uniform_(second.bias, -1e-3, 1e-3)


@torch.no_grad()
def start_at(last: nn.Linear | nn.Conv2d, outputs: Tensor) -> None:
    """Makes a net's last layer put out the same for whatever goes in."""
    last.weight.zero_()
    last.bias.copy_(outputs)  # type: ignore[union-attr]
