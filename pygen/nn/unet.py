"""The network of diffusion models: an image of noise and data, a time and a condition to an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._arguments import check_integer


class UNet(nn.Module):
    """A U-Net of residual blocks, as in Ho et al. 2020 (2006.11239), appendix B.

    x [B, channels, H, W], time [B], condition [B, condition_features] or None -> [B, channels, H, W]

    Each scale but the first halves height and width. The way down keeps what every block makes, and the way up, one
    block longer in each scale, takes it in again. Time and condition scale and shift every block's channels (Nichol and
    Dhariwal 2021, 2102.09672, section 2). What comes out is 0 at first.

    hidden, widths: channels of a scale are hidden times its width.
    blocks: residual blocks of a scale on the way down.
    attention: pixels of a block attend to each other (`F.scaled_dot_product_attention`, one head) in scales that are no
        higher and no wider than this; 0: in none.
    size: (H, W), divisible by 2^(len(widths) - 1).
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        hidden: int = 64,
        widths: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: int = 8,
        dropout: float = 0.0,
        condition_features: int = 0,
    ) -> None:
        super().__init__()
        given = {"channels": channels, "hidden": hidden, "blocks": blocks, "len(widths)": len(widths)}
        for name, value in (*given.items(), *(("every width", width) for width in widths)):
            check_integer(name, value, 1)
        check_integer("attention", attention, 0)
        check_integer("condition_features", condition_features, 0)
        if any(length % 2 ** (len(widths) - 1) for length in size):
            raise ValueError(
                f"expected height and width divisible by 2^(len(widths) - 1), got {size[0]} x {size[1]} and "
                f"{len(widths)} widths"
            )
        self.blocks = blocks
        features = 4 * hidden
        self.time = nn.Sequential(nn.Linear(2 * hidden, features), nn.SiLU(), nn.Linear(features, features))
        self.condition = nn.Linear(condition_features, features) if condition_features else None
        self.first = nn.Conv2d(channels, hidden, 3, padding=1)
        now, kept = hidden, [hidden]  # channels of h, and of what is kept
        sizes = [hidden * width for width in widths]
        attends = [max(size) // 2**scale <= attention for scale in range(len(sizes))]

        def block(inputs: int, outputs: int, scale: int) -> _Block:
            return _Block(inputs, outputs, features, attends=attends[scale], dropout=dropout)

        self.down, self.halvings = nn.ModuleList(), nn.ModuleList()
        for scale, wide in enumerate(sizes):
            if scale:
                self.halvings.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                kept.append(now)
            for _ in range(blocks):
                self.down.append(block(now, wide, scale))
                now = wide
                kept.append(now)
        self.middle = nn.ModuleList([block(now, now, -1), block(now, now, -1)])
        self.up, self.doublings = nn.ModuleList(), nn.ModuleList()
        for scale, wide in reversed([*enumerate(sizes)]):
            if self.up:
                self.doublings.append(nn.Conv2d(now, now, 3, padding=1))
            for _ in range(blocks + 1):
                self.up.append(block(now + kept.pop(), wide, scale))
                now = wide
        self.last = nn.Sequential(_norm(now), nn.SiLU(), _zero(nn.Conv2d(now, channels, 3, padding=1)))

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        e: Tensor = self.time(waves(time, 2 * self.first.out_channels).to(x.dtype))  # [B, features]
        if self.condition is not None:
            e = e + self.condition(condition)
        e = F.silu(e)
        h = self.first(x)
        kept = [h]
        for i, block in enumerate(self.down):
            if i and i % self.blocks == 0:
                h = self.halvings[i // self.blocks - 1](h)
                kept.append(h)
            h = block(h, e)
            kept.append(h)
        for block in self.middle:
            h = block(h, e)
        for i, block in enumerate(self.up):
            if i and i % (self.blocks + 1) == 0:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
                h = self.doublings[i // (self.blocks + 1) - 1](h)
            h = block(torch.cat([h, kept.pop()], 1), e)
        out: Tensor = self.last(h)
        return out


def waves(time: Tensor, features: int) -> Tensor:
    """Cosines and sines of a time [B] at `features` / 2 wavelengths from 2 pi to 2 pi 10^4, [B, features]: Vaswani et
    al. 2017 (1706.03762), section 3.5, in float32 or the time's own dtype if that is float64."""
    half = features // 2
    dtype = torch.float64 if time.dtype == torch.float64 else torch.float32
    rates = torch.exp(torch.arange(half, device=time.device, dtype=dtype) * (-math.log(10_000) / half))
    angles = time.to(dtype)[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1)


class _Block(nn.Module):
    """skip(x) + second(film(first(x))), perhaps followed by attention."""

    def __init__(self, inputs: int, outputs: int, features: int, *, attends: bool, dropout: float) -> None:
        super().__init__()
        self.first = nn.Sequential(_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.film = nn.Linear(features, 2 * outputs)
        self.norm = _norm(outputs)
        self.second = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), _zero(nn.Conv2d(outputs, outputs, 3, padding=1)))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.attention = _Attention(outputs) if attends else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.film(e)[..., None, None].chunk(2, 1)  # [B, outputs, 1, 1] each
        h = self.norm(self.first(x)) * (1 + scale) + shift
        out: Tensor = self.attention(self.skip(x) + self.second(h))
        return out


class _Attention(nn.Module):
    """x + what a pixel finds in all pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.chunk(3, 2)  # [B, H W, channels] each
        found = F.scaled_dot_product_attention(q, k, v)
        h: Tensor = x + self.out(found.mT.unflatten(2, x.shape[2:]))
        return h


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that makes zeros at first."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
