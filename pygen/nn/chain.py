"""Flow layers in a row."""

from __future__ import annotations

from torch import Tensor, nn


class Chain(nn.ModuleList):
    """Flow layers in a row, in reverse for the inverse; itself a flow layer."""

    def forward(
        self, x: Tensor, logdet: Tensor | None = None, condition: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        for layer in reversed(self) if inverse else self:
            x, logdet = layer(x, logdet, condition, inverse=inverse)
        return x, logdet


class Inverse(nn.Module):
    """A flow layer the other way round."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, x: Tensor, logdet: Tensor | None = None, condition: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        y: tuple[Tensor, Tensor | None] = self.layer(x, logdet, condition, inverse=not inverse)
        return y
