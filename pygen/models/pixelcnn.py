"""PixelCNN and its gated form: a product of conditional distributions, one for every pixel and channel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops, random
from ..nn._arguments import check_integer
from ..nn.masked_conv import CausalHead, MaskedConv2d
from ..ops.random import INTEGERS
from ..random import Source
from .model import Model


class Autoregressive(Model):
    """log p(x) = sum over pixels, in raster order, and their channels of log p(x_i | all before it): exact.

    A subclass implements `_features`, from which `head` makes the distribution of each level. `sample` and `complete`
    run the net once for every pixel and channel, on the rows down to it.
    """

    CHUNK = 16
    levels: int
    head: CausalHead

    def _features(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Levels scaled to [-1, 1] [B, C, H, W] -> [B, F, H, W], which at a pixel depend on those before it, and, in
        group c of F, on the pixel's channels before c."""
        raise NotImplementedError

    def _prepare(self, x: Tensor, generator: Source) -> Tensor:
        self._check_shape("x", x, self.shape)
        if x.dtype not in INTEGERS:
            raise TypeError(f"expected x as integer levels 0 .. {self.levels - 1}, got {x.dtype}")
        if x.device.type == "cpu" and x.numel() and not torch.compiler.is_compiling():
            low, high = (int(v) for v in x.aminmax())
            if low < 0 or high >= self.levels:
                raise ValueError(f"expected levels in [0, {self.levels}), got {low if low < 0 else high}")
        return x

    def _scaled(self, x: Tensor) -> Tensor:
        scaled = x.to(self._like.dtype) * (2 / (self.levels - 1)) - 1
        return scaled.contiguous(memory_format=torch.channels_last)

    def _log_density(self, v: Tensor, condition: Tensor | None) -> Tensor:
        nll = self.head.nll(self._features(self._scaled(v), condition), v)
        return -nll.double().sum((1, 2, 3)).to(nll.dtype)

    def _sample(self, first: int, y: Tensor | None, context: Tensor | None, seed: int, temperature: float) -> Tensor:
        x = torch.zeros(self.CHUNK, *self.shape, dtype=torch.int64, device=self._like.device)
        return self._complete(first, x, torch.zeros_like(x, dtype=torch.bool), y, context, seed, temperature)

    def _complete(
        self,
        first: int,
        x: Tensor,
        known: Tensor,
        y: Tensor | None,
        context: Tensor | None,
        seed: int,
        temperature: float,
    ) -> Tensor:
        condition = self._given(self.CHUNK, y, context)
        x = self._prepare(x, None).long()
        channels, height, width = self.shape
        for row in range(height):
            if known[:, :, row].all():
                continue
            for column in range(width):
                for channel in range(channels):
                    h = self._features(self._scaled(x[:, :, : row + 1]), condition)[:, :, row, column]
                    logits = self.head.logits(h)[:, channel]
                    place = (row * width + column) * channels + channel
                    new = _draw(logits, temperature, seed, first, place)
                    pixel = x[:, channel, row, column]
                    pixel.copy_(pixel.where(known[:, channel, row, column], new))
        return x.to(torch.uint8) if self.levels <= 256 else x


def _draw(logits: Tensor, temperature: float, seed: int, first: int, place: int) -> Tensor:
    if temperature == 0:
        return logits.argmax(1)
    logits = logits.float() / temperature
    return random.categorical(logits[:, None], generator=seed, first_sample=first, offset=place)[:, 0]


class PixelCNN(Autoregressive):
    """PixelCNN (van den Oord, Kalchbrenner and Kavukcuoglu 2016, arXiv 1601.06759, table 1).

    A 7x7 convolution with mask A; residual blocks of ReLU, 1x1, ReLU, 3x3, ReLU, 1x1 with mask B; two layers of ReLU
    and 1x1; a softmax over the levels of each channel. Channels of an image are in order: the features are in as many
    groups. Its receptive field has a blind spot: see `GatedPixelCNN`.

    shape: (C, H, W) of an image. levels: images hold integers 0 .. levels - 1.
    num_classes, context_features: see `Model`; they shift the pre-activations of every block.
    hidden: channels within a block, 2 hidden between blocks; a multiple of C. blocks: their number.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int = 256,
        *,
        num_classes: int | None = None,
        context_features: int = 0,
        hidden: int = 48,
        blocks: int = 5,
    ) -> None:
        _check_image(shape, levels, hidden=hidden, blocks=blocks)
        config = {
            "shape": list(shape), "levels": levels, "num_classes": num_classes, "context_features": context_features,
            "hidden": hidden, "blocks": blocks,
        }  # fmt: skip
        super().__init__(config, tuple(shape), num_classes, context_features)
        self.levels = levels
        channels, wide = shape[0], 2 * hidden
        self.first = _conv(channels, wide, 7, "A", channels)
        self.blocks = nn.ModuleList(_Block(hidden, channels, self.condition.features) for _ in range(blocks))
        self.last = nn.ModuleList(_conv(wide, wide, 1, "B", channels, activation="relu") for _ in range(2))
        self.head = CausalHead(wide, channels, levels)

    def _features(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h: Tensor = self.first(x)
        for block in self.blocks:
            h = block(h, condition)
        h = F.relu(h)
        for layer in self.last:
            h = layer(h)
        return h


class _Block(nn.Module):
    """x + 1x1(relu(3x3(relu(1x1(relu(x)) + condition))))."""

    def __init__(self, hidden: int, channels: int, condition_features: int) -> None:
        super().__init__()
        self.down = _conv(2 * hidden, hidden, 1, "B", channels, activation="relu")
        self.middle = _conv(hidden, hidden, 3, "B", channels, activation="relu")
        self.up = _conv(hidden, 2 * hidden, 1, "B", channels)
        self.condition = nn.Linear(condition_features, hidden) if condition_features else None

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        bias = None if self.condition is None else self.condition(condition)
        out: Tensor = self.up(self.middle(self.down(F.relu(x), bias=bias)), residual=x)
        return out


class GatedPixelCNN(Autoregressive):
    """Gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328): two stacks without a blind spot, gated units.

    The vertical stack sees the rows above, the horizontal one what lies to the left, and the vertical one through a 1x1
    link before its gate (figure 2). Vertical convolutions of the first layer leave the own row out; a 1x1 adds the
    horizontal gate to its stack, but for the first layer, and to the sum that the head reads.

    shape: (C, H, W) of an image. levels: images hold integers 0 .. levels - 1.
    num_classes, context_features: see `Model`; they shift the pre-activations of every gate (equation 4).
    hidden: channels of a stack; a multiple of C. layers: after the first. kernel: their size, odd; the first's is 7.
    dilations: of the layers, by turns.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int = 256,
        *,
        num_classes: int | None = None,
        context_features: int = 0,
        hidden: int = 48,
        layers: int = 6,
        kernel: int = 3,
        dilations: tuple[int, ...] = (1,),
    ) -> None:
        _check_image(shape, levels, hidden=hidden, blocks=layers)
        check_integer("kernel", kernel, 1)
        for dilation in dilations:
            check_integer("dilations", dilation, 1)
        if not dilations or kernel % 2 == 0:
            raise ValueError(f"expected an odd kernel and some dilations, got kernel={kernel}, dilations={dilations}")
        config = {
            "shape": list(shape), "levels": levels, "num_classes": num_classes, "context_features": context_features,
            "hidden": hidden, "layers": layers, "kernel": kernel, "dilations": list(dilations),
        }  # fmt: skip
        super().__init__(config, tuple(shape), num_classes, context_features)
        self.levels = levels
        channels = shape[0]
        features = self.condition.features
        self.layers = nn.ModuleList([_GatedLayer(channels, hidden, 7, "A", 1, channels, features)])
        for i in range(layers):
            dilation = dilations[i % len(dilations)]
            self.layers.append(_GatedLayer(hidden, hidden, kernel, "B", dilation, channels, features))
        self.last = _conv(hidden, hidden, 1, "B", channels, activation="relu")
        self.head = CausalHead(hidden, channels, levels)

    def _features(self, x: Tensor, condition: Tensor | None) -> Tensor:
        vertical, horizontal, total = self.layers[0](x, x, None, condition)
        for layer in self.layers[1:]:
            vertical, horizontal, total = layer(vertical, horizontal, total, condition)
        h: Tensor = self.last(F.relu(total))
        return h


class _GatedLayer(nn.Module):
    """v, h, total -> gate(v'), h + 1x1(g), total + 1x1(g) with v' = conv(v) and g = gate(conv(h) + 1x1(v'))."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        kernel: int,
        kind: str,
        dilation: int,
        channels: int,
        condition_features: int,
    ) -> None:
        super().__init__()
        above = ops.causal_taps(kernel, stack="vertical", kind=kind)
        self.vertical = MaskedConv2d(inputs, 2 * hidden, above, dilation=dilation)
        self.link = MaskedConv2d(2 * hidden, 2 * hidden, ((0, 0),))
        self.horizontal = _conv(inputs, 2 * hidden, kernel, kind, channels, "horizontal", "gate", dilation)
        self.out = _conv(hidden, hidden, 1, "B", channels)
        self.skip = _conv(hidden, hidden, 1, "B", channels)
        self.residual = kind == "B"
        self.condition = nn.Linear(condition_features, 4 * hidden) if condition_features else None

    def forward(
        self, vertical: Tensor, horizontal: Tensor, total: Tensor | None, condition: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        bias_v, bias_h = (None, None) if self.condition is None else self.condition(condition).chunk(2, 1)
        v = self.vertical(vertical)
        gate = self.horizontal(horizontal, bias=bias_h, condition=self.link(v))
        out = self.out(gate, residual=horizontal if self.residual else None)
        return ops.gated_activation(v, bias=bias_v), out, self.skip(gate, residual=total)


def _conv(
    inputs: int,
    outputs: int,
    kernel: int,
    kind: str,
    channels: int,
    stack: str | None = None,
    activation: str | None = None,
    dilation: int = 1,
) -> MaskedConv2d:
    """A convolution whose features are in as many groups as an image has channels: mask A leaves the own one out."""
    taps = ops.causal_taps(kernel, stack=stack, kind="B" if channels > 1 else kind)
    options: dict[str, Any] = {"channel_mask": kind, "channel_groups": channels} if channels > 1 else {}
    return MaskedConv2d(inputs, outputs, taps, activation=activation, dilation=dilation, **options)


def _check_image(shape: tuple[int, int, int], levels: int, *, hidden: int, blocks: int) -> None:
    if len(shape) != 3:
        raise ValueError(f"expected shape as (C, H, W), got {shape}")
    for size in shape:
        check_integer("every size in shape", size, 1)
    check_integer("levels", levels, 2)
    check_integer("hidden", hidden, 1)
    check_integer("blocks", blocks, 0)
    if hidden % shape[0]:
        raise ValueError(f"expected hidden as a multiple of the {shape[0]} channels, got {hidden}")
