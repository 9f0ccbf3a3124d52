"""Squeeze: trades space for channels."""

from __future__ import annotations

from torch import Tensor, nn


class Squeeze(nn.Module):
    """Flow layer [B, C, H, W] -> [B, 4 C, H / 2, W / 2]: channel 4 c + 2 i + j holds offset (i, j) of channel c.

    The order of `F.pixel_unshuffle` (which mistakes the shape of an empty batch), Glow, nflows and normflows. RealNVP's
    authors order by offset first, (0, 0), (1, 1), (0, 1), (1, 0), where they factor out. A permutation: its
    log-determinant is zero.
    """

    def forward(
        self, x: Tensor, logdet: Tensor | None = None, condition: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        b, c, h, w = x.shape
        if inverse:
            y = x.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)
        else:
            y = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
        return y, logdet
