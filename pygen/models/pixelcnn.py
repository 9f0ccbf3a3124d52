"""PixelCNN and its gated form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .._arguments import check_integer
from ..nn import CausalHead, Channels, MaskedConv2d, ProgramBuilder
from .autoregressive import Autoregressive, check_image


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
        check_image(shape, levels, hidden=hidden, blocks=blocks)
        _check_groups(hidden, shape[0])
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

    def _stages(self, builder: ProgramBuilder) -> int:
        block: Any
        layer: Any
        h = builder.conv((self.first, builder.image))
        for block in self.blocks:
            h = block.stages(builder, h)
        h = builder.pointwise(h, "relu")
        for layer in self.last:
            h = builder.conv((layer, h))
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

    def stages(self, builder: ProgramBuilder, x: int) -> int:
        h = builder.conv((self.down, builder.pointwise(x, "relu")), condition=self.condition)
        return builder.conv((self.up, builder.conv((self.middle, h))), residual=x)


class GatedPixelCNN(Autoregressive):
    """Gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328): two stacks without a blind spot, gated units.

    The vertical stack sees the rows above, the horizontal one what lies to the left, and the vertical one through a 1x1
    link before its gate (figure 2). Vertical convolutions of the first layer leave the own row out; a 1x1 adds the
    horizontal gate to its stack, but for the first layer, and to the sum that the head reads, which is all that is of
    use of the last layer.

    shape: (C, H, W) of an image. levels: images hold integers 0 .. levels - 1.
    num_classes, context_features: see `Model`; they shift the pre-activations of every gate (equation 4).
    spatial_context: whether the context is a map [B, context_features, H, W], which shifts those at its own place
        (equation 5), instead of a vector.
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
        spatial_context: bool = False,
        hidden: int = 48,
        layers: int = 6,
        kernel: int = 3,
        dilations: tuple[int, ...] = (1,),
    ) -> None:
        check_image(shape, levels, hidden=hidden, layers=layers)
        _check_groups(hidden, shape[0])
        check_integer("kernel", kernel, 1)
        if not isinstance(dilations, (tuple, list)):
            raise TypeError(f"expected dilations as a tuple of integers, got {dilations!r}")
        for dilation in dilations:
            check_integer("dilations", dilation, 1)
        if spatial_context and not context_features:
            raise ValueError("expected context_features >= 1 with spatial_context=True, got 0")
        if not dilations or kernel % 2 == 0:
            raise ValueError(f"expected an odd kernel and some dilations, got kernel={kernel}, dilations={dilations}")
        config = {
            "shape": list(shape), "levels": levels, "num_classes": num_classes, "context_features": context_features,
            "spatial_context": spatial_context, "hidden": hidden, "layers": layers, "kernel": kernel,
            "dilations": list(dilations),
        }  # fmt: skip
        area = (shape[1], shape[2]) if spatial_context else None
        super().__init__(config, tuple(shape), num_classes, context_features, context_area=area)
        self.levels = levels
        channels = shape[0]
        condition = (self.condition.features, spatial_context)
        self.layers = nn.ModuleList([_GatedLayer(channels, hidden, 7, "A", 1, channels, *condition, last=layers == 0)])
        for i in range(layers):
            dilation, last = dilations[i % len(dilations)], i == layers - 1
            self.layers.append(_GatedLayer(hidden, hidden, kernel, "B", dilation, channels, *condition, last=last))
        self.last = _conv(hidden, hidden, 1, "B", channels, activation="relu")
        self.head = CausalHead(hidden, channels, levels)

    def _features(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if condition is not None and condition.dim() == 4:
            condition = condition[:, :, : x.shape[2]].contiguous(memory_format=torch.channels_last)
        vertical, horizontal, total = self.layers[0](x, x, None, condition)
        for layer in self.layers[1:]:
            vertical, horizontal, total = layer(vertical, horizontal, total, condition)
        h: Tensor = self.last(F.relu(total))
        return h

    def _stages(self, builder: ProgramBuilder) -> int:
        layer: Any
        vertical = state = builder.image
        for layer in self.layers:
            vertical, state = layer.stages(builder, vertical, state)
        return builder.conv((self.last, builder.pointwise(state, "relu")))


class _GatedLayer(nn.Module):
    """v, h, total -> gate(v'), h + 1x1(g), total + 1x1(g) with v' = conv(v) and g = gate(conv(h) + 1x1(v')).

    last: v and h stay as they are.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        kernel: int,
        kind: str,
        dilation: int,
        channels: int,
        condition_features: int,
        spatial: bool,
        *,
        last: bool,
    ) -> None:
        super().__init__()
        above = ops.causal_taps(kernel, stack="vertical", kind=kind)
        self.vertical = MaskedConv2d(inputs, 2 * hidden, above, dilation=dilation)
        self.link = MaskedConv2d(2 * hidden, 2 * hidden, ((0, 0),))
        self.horizontal = _conv(inputs, 2 * hidden, kernel, kind, channels, "horizontal", "gate", dilation)
        self.out = None if last else _conv(hidden, hidden, 1, "B", channels)
        self.skip = _conv(hidden, hidden, 1, "B", channels)
        self.residual = kind == "B"
        self.spatial = spatial
        self.condition: nn.Module | None = None
        if condition_features and spatial:
            self.condition = MaskedConv2d(condition_features, 4 * hidden, ((0, 0),))
        elif condition_features:
            self.condition = nn.Linear(condition_features, 4 * hidden)

    def forward(
        self, vertical: Tensor, horizontal: Tensor, total: Tensor | None, condition: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        v = self.vertical(vertical)
        shifts = (None, None)
        if self.condition is not None:
            shifts = self.condition(condition).to(v.dtype).chunk(2, 1)  # autocast, which the ops leave alone, casts it
        bias, plane = ((None, None), shifts) if self.spatial else (shifts, (None, None))
        gate = self.horizontal(horizontal, bias=bias[1], condition=self.link(v, residual=plane[1]))
        total = self.skip(gate, residual=total)
        if self.out is None:
            return vertical, horizontal, total
        horizontal = self.out(gate, residual=horizontal if self.residual else None)
        return ops.gated_activation(v, bias=bias[0], condition=plane[0]), horizontal, total

    def stages(self, builder: ProgramBuilder, vertical: int, state: int) -> tuple[int, int]:
        """state: a plane of the horizontal stack and, behind it, of the total; or the image."""
        inputs, hidden = self.horizontal.weight.shape[1], self.skip.weight.shape[1]
        v = builder.conv((self.vertical, vertical))
        gate = builder.conv((self.horizontal, [Channels(state, 0, inputs)]), (self.link, v), condition=self._half(1))
        begun = state != builder.image
        if self.out is None:
            return vertical, builder.conv((self.skip, gate), residual=Channels(state, hidden) if begun else None)
        out = builder.plane(2 * hidden)
        builder.conv((self.out, gate), residual=Channels(state) if self.residual else None, out=Channels(out))
        total = Channels(state, hidden) if begun else None
        builder.conv((self.skip, gate), residual=total, out=Channels(out, hidden))
        return builder.pointwise(v, "gate", condition=self._half(0)), out

    def _half(self, half: int) -> Callable[[Tensor], Tensor] | None:
        """The part of the condition that shifts the vertical, or the horizontal, gate."""
        layer = self.condition
        return None if layer is None else lambda condition: layer(condition).chunk(2, 1)[half]


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


def _check_groups(hidden: int, channels: int) -> None:
    if hidden % channels:
        raise ValueError(f"expected hidden as a multiple of the {channels} channels, got {hidden}")
