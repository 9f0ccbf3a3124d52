"""Affine coupling layer: a net of the kept part scales and shifts the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from .._arguments import check_integer
from ..reference.coupling import checkerboard


class AffineCoupling(nn.Module):
    r"""Affine coupling with a learnable bound on the scale (Dinh et al. 2017, eq. 7 and section 4.1).

    s, t = net(kept part);   y = x e^{a tanh s} + t on the changed part, with a learnable a per channel.

    net: called as net(kept, condition) -> [B, 2 C', ...], the raw scale s first, then the shift t.
    channels: C', how many channels change.
    part: "first" or "second" half of the channels: the net sees the other half, [B, C - C', ...];
        "even" or "odd" positions of the checkerboard: the net sees x with them set to zero, [B, C, ...].
    """

    def __init__(self, net: nn.Module, channels: int, part: str) -> None:
        super().__init__()
        if part not in ("first", "second", "even", "odd"):
            raise ValueError(f"expected part to be 'first', 'second', 'even' or 'odd', got {part!r}")
        check_integer("channels", channels, 1)
        self.net = net
        self.part = part
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(
        self, x: Tensor, logdet: Tensor | None = None, condition: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        params = self.net(self.kept(x), condition)
        return ops.affine_coupling(
            x, params, squash="tanh", gain=self.gain, part=self.part, logdet=logdet, inverse=inverse
        )

    def kept(self, x: Tensor) -> Tensor:
        """What the net may see: the part of x that does not change."""
        mask = checkerboard(x, self.part)
        if mask is not None:
            return torch.where(mask, 0, x)
        first, second = x.chunk(2, 1)
        return second if self.part == "first" else first
