"""Coupling layers: a net of the kept part says what happens to the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import ops
from .._arguments import check_integer
from ..reference.coupling import checkerboard
from .linear import check_width
from .transforms import Spline


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
        _check_part(part)
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


class SplineCoupling(nn.Module):
    """Coupling by monotone splines (Durkan et al. 2019, arXiv 1906.04032, section 3.1).

    params = net(kept part);   y = spline(x; params) on the changed part, element by element.

    net: called as net(kept, condition) -> [B, C' P, ...], for the P = spline.parameters of each of the C' channels that
        change, side by side.
    channels: C', how many channels change.
    part: "first" or "second": so many channels from the beginning, or up to the end; of vectors also "even" or "odd"
        features; or a bool for each channel, True where it changes. The net sees the others.
    """

    def __init__(self, net: nn.Module, channels: int, part: str | Sequence[bool], spline: Spline) -> None:
        super().__init__()
        check_integer("channels", channels, 1)
        if isinstance(part, str):
            _check_part(part)
        else:
            mask = torch.tensor(part, device="cpu")
            if mask.dtype != torch.bool or int(mask.sum()) != channels:
                raise ValueError(f"expected part as a mask with {channels} True, got {list(part)}")
            order = torch.cat([(~mask).nonzero(), mask.nonzero()])[:, 0]  # the kept ones first
            self.register_buffer("order", order, persistent=False)
            self.register_buffer("places", order.argsort(), persistent=False)
        self.net, self.channels, self.part, self.spline = net, channels, part, spline

    def forward(
        self, x: Tensor, logdet: Tensor | None = None, condition: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        kept, changed = self.split(x)
        y, logdet = self.spline(changed, self.net(kept, condition), logdet, inverse=inverse)
        return self.join(kept, y), logdet

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The kept and the changed channels: views, but for a mask."""
        n, rest = self.channels, x.shape[1] - self.channels
        if self.part == "first":
            changed, kept = x.split((n, rest), 1)
            return kept, changed
        if self.part in ("even", "odd"):
            if x.dim() != 2:
                raise ValueError(f"expected x [B, C] for a coupling of {self.part} features, got {list(x.shape)}")
            even, odd = x[:, ::2], x[:, 1::2]
            return (odd, even) if self.part == "even" else (even, odd)
        if not isinstance(self.part, str):
            check_width(x, len(self.part))
            x = x.index_select(1, self.order)  # type: ignore[arg-type]
        kept, changed = x.split((rest, n), 1)
        return kept, changed

    def join(self, kept: Tensor, changed: Tensor) -> Tensor:
        """Undoes `split`."""
        if self.part == "first":
            return torch.cat([changed, kept], 1)
        if self.part in ("even", "odd"):
            even, odd = (changed, kept) if self.part == "even" else (kept, changed)
            x = kept.new_empty(len(kept), kept.shape[1] + changed.shape[1])
            x[:, ::2], x[:, 1::2] = even, odd
            return x
        x = torch.cat([kept, changed], 1)
        return x if isinstance(self.part, str) else x.index_select(1, self.places)  # type: ignore[arg-type]


def _check_part(part: str) -> None:
    if part not in ("first", "second", "even", "odd"):
        raise ValueError(f"expected part to be 'first', 'second', 'even' or 'odd', got {part!r}")
