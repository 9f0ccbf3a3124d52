"""Coupling nets."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .._arguments import check_integer


class ResidualNet(nn.Module):
    """Residual net with weight normalisation, of 3x3 convolutions or, for rank-2 inputs, of linear layers.

    [B, in_channels, ...], condition [B, condition_features] or None -> [B, out_channels, ...]

    As in Dinh et al. 2017 (section 3.5), but without batch normalisation: the density of one sample must not depend on
    the rest of its batch. The condition scales and shifts the hidden units of every block. The last layer starts at
    zero, so that a coupling starts as the identity.

    dims: 2 for images, 0 for vectors.
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
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
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
