"""Masked convolutions as layers, and the layer of a gated PixelCNN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ._arguments import check_integer

Taps = tuple[tuple[int, int], ...]


class MaskedConv2d(nn.Module):
    """`pygen.ops.masked_conv2d` with its parameters: weight [T, in_channels, out_channels], bias [out_channels].

    taps: (dy, dx) of the live taps, as `pygen.ops.causal_taps` lists them; only these are parameters. Weight decay,
        clipping of gradients and the state of optimizers therefore see no dead ones.
    options: the op's, such as channel_mask, dilation and activation.

    Called with x, and with the op's condition and residual; bias [B, out_channels] is added to the layer's own. Weights
    start as torch.nn.Conv2d's, for the live taps' fan-in. `from_dense` and `to_dense` exchange weights with peers.
    """

    def __init__(self, in_channels: int, out_channels: int, taps: Taps, *, bias: bool = True, **options: Any) -> None:
        super().__init__()
        check_integer("in_channels", in_channels, 1)
        check_integer("out_channels", out_channels, 1)
        self.taps, self.options = tuple(taps), options
        self.weight = nn.Parameter(torch.empty(len(self.taps), in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = (self.weight.shape[0] * self.weight.shape[1]) ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(
        self, x: Tensor, *, bias: Tensor | None = None, condition: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        own = self.bias if bias is None or self.bias is None else self.bias + bias
        own = bias if own is None else own
        return ops.masked_conv2d(
            x, self.weight, own, taps=self.taps, condition=condition, residual=residual, **self.options
        )

    @torch.no_grad()
    def from_dense(self, weight: Tensor) -> None:
        """Takes the live taps of a masked kernel [out_channels, in_channels, height, width]."""
        self.weight.copy_(ops.weight_from_dense(weight, self.taps))

    def to_dense(self, kernel: int | tuple[int, int]) -> Tensor:
        """The weight as a kernel [out_channels, in_channels, height, width] with zeros at its dead taps."""
        return ops.weight_to_dense(self.weight, self.taps, kernel)

    def extra_repr(self) -> str:
        taps, inputs, outputs = self.weight.shape
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"{inputs}, {outputs}, {taps} taps{options}"


class CausalHead(nn.Module):
    """The categorical distribution of every channel's level: `pygen.ops.categorical_nll` with its weights.

    Channel c sees the features of groups up to c (mask "B"), where there are several channels.
    """

    mask: Tensor

    def __init__(self, features: int, channels: int, levels: int) -> None:
        super().__init__()
        for name, value in (("features", features), ("channels", channels), ("levels", levels)):
            check_integer(name, value, 1)
        if features % channels:
            raise ValueError(f"expected features as a multiple of the {channels} channels, got {features}")
        self.channels, self.levels = channels, levels
        self.weight = nn.Parameter(torch.empty(channels * levels, features))
        self.bias = nn.Parameter(torch.zeros(channels * levels))
        nn.init.uniform_(self.weight, -(features**-0.5), features**-0.5)
        group = torch.arange(features) * channels // features
        seen = group <= torch.arange(channels).repeat_interleave(levels)[:, None]
        self.register_buffer("mask", seen.to(self.weight.dtype) if channels > 1 else None, persistent=False)

    def _weight(self) -> Tensor:
        return self.weight if self.mask is None else self.weight * self.mask

    def nll(self, h: Tensor, levels: Tensor) -> Tensor:
        """[B, channels, H, W] nats, for features [B, features, H, W]."""
        return ops.categorical_nll(h, self._weight(), self.bias, levels)

    def logits(self, h: Tensor) -> Tensor:
        """[B, channels, levels] of one pixel's features [B, features]."""
        flat = nn.functional.linear(h, self._weight(), self.bias)
        logits: Tensor = flat.unflatten(1, (self.channels, self.levels))
        return logits
