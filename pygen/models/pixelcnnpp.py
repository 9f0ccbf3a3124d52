"""PixelCNN++."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .._arguments import check_integer
from ..nn import Channels, MaskedConv2d, MixtureHead, NormalizedConv2d, ProgramBuilder, initializing
from .autoregressive import Autoregressive, check_image


class PixelCNNPlusPlus(Autoregressive):
    """PixelCNN++ (Salimans, Karpathy, Chen and Kingma 2017, arXiv 1701.05517).

    One stream sees the rows above (2x3 convolutions), one also what lies to the left (2x2), which reads the first.
    Gated residual blocks of concatenated ELUs at three resolutions, down and up again with short-cuts; a mixture of
    discretised logistic distributions of a pixel's channels at once. All convolutions are weight-normalised:
    `initialize` sets their scales by data. The published size is the default for 32x32 RGB: 53.6 million parameters.

    shape: (C, H, W) of an image, any. levels: images hold integers 0 .. levels - 1; at most 65,536.
    num_classes, context_features: see `Model`; they shift the pre-activations of every gate.
    hidden: channels of a stream. blocks: residual blocks of a resolution on the way down, one more on the way up.
    mixtures: components. dropout: of the features within a block, in training.

    `complete` takes pixels of which all channels are known, or none.
    """

    head: MixtureHead
    ONES = True

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int = 256,
        *,
        num_classes: int | None = None,
        context_features: int = 0,
        hidden: int = 160,
        blocks: int = 5,
        mixtures: int = 10,
        dropout: float = 0.5,
    ) -> None:
        check_image(shape, levels, hidden=hidden, blocks=blocks)
        check_integer("blocks", blocks, 1)
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
            raise TypeError(f"expected dropout as a number, got {dropout!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"expected dropout in [0, 1), got {dropout}")
        config = {
            "shape": list(shape), "levels": levels, "num_classes": num_classes, "context_features": context_features,
            "hidden": hidden, "blocks": blocks, "mixtures": mixtures, "dropout": dropout,
        }  # fmt: skip
        super().__init__(config, tuple(shape), num_classes, context_features)
        self.levels = levels
        inputs = shape[0] + 1  # and ones, which tell the image from what is outside

        def stages(blocks: list[int], short: bool) -> nn.ModuleList:
            found: list[nn.Module] = []
            for count in blocks:
                found += [_Resampling(hidden, transposed=short)] if found else []
                found += [_Streams(hidden, short, self.condition.features, dropout) for _ in range(count)]
            return nn.ModuleList(found)

        self.above = NormalizedConv2d(inputs, hidden, _shifted(-1, _ABOVE))
        self.row_above = NormalizedConv2d(inputs, hidden, ((-1, -1), (-1, 0), (-1, 1)))
        self.left = NormalizedConv2d(inputs, hidden, ((-1, -1), (0, -1)))
        self.down = stages([blocks] * 3, short=False)
        self.up = stages([blocks, blocks + 1, blocks + 1], short=True)
        self.head = MixtureHead(hidden, shape[0], levels, mixtures)

    @torch.no_grad()
    def initialize(self, x: Tensor, y: Tensor | None = None, *, context: Tensor | None = None) -> None:
        """Sets the scales and biases of all convolutions so that, for these images, what they make has mean 0 and
        standard deviation 1 (0.1 in front of a gate) in every channel; without dropout."""
        x, given = self._prepare(x, None), self._given(len(x), y, context)
        if len(x) == 0:
            raise ValueError("expected a batch of at least one image to initialise by, got an empty one")
        with self.evaluating(), initializing(self):
            self._log_density(x, given)

    def _features(self, x: Tensor, condition: Tensor | None) -> Tensor:
        x = F.pad(x.movedim(1, -1), (0, 1), value=1.0).movedim(-1, 1)
        streams = (self.above(x), self.left(x, residual=self.row_above(x)))
        shorts = [streams]
        for stage in self.down:
            streams = stage(*streams, condition=condition)
            shorts.append(streams)
        streams = shorts.pop()
        for stage in self.up:
            if isinstance(stage, _Resampling):
                height, width = shorts[-1][0].shape[2:]
                streams = stage(*streams, output_size=(height, width))
            else:
                streams = stage(*streams, shorts.pop(), condition=condition)
        return F.elu(streams[1])

    def _stages(self, builder: ProgramBuilder) -> int:
        stage: Any
        image = builder.image
        streams = (builder.conv((self.above, image)), builder.conv((self.left, image), (self.row_above, image)))
        shorts = [streams]
        for stage in self.down:
            streams = stage.stages(builder, *streams)
            shorts.append(streams)
        streams = shorts.pop()
        for stage in self.up:
            streams = stage.stages(builder, *streams, *([] if isinstance(stage, _Resampling) else [shorts.pop()]))
        return builder.pointwise(streams[1], "elu")


_ABOVE = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1))  # of the stream of the rows above
_BESIDE = ((-1, -1), (-1, 0), (0, -1), (0, 0))  # of the other one


def _shifted(rows: int, taps: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    return tuple((dy + rows, dx) for dy, dx in taps)


class _Resampling(nn.Module):
    """Both streams at half or, transposed, twice the resolution."""

    def __init__(self, hidden: int, *, transposed: bool) -> None:
        super().__init__()
        self.above = NormalizedConv2d(hidden, hidden, _ABOVE, stride=2, transposed=transposed)
        self.beside = NormalizedConv2d(hidden, hidden, _BESIDE, stride=2, transposed=transposed)

    def forward(
        self, u: Tensor, ul: Tensor, *, condition: Tensor | None = None, output_size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.above(u, output_size=output_size), self.beside(ul, output_size=output_size)

    def stages(self, builder: ProgramBuilder, u: int, ul: int) -> tuple[int, int]:
        return builder.conv((self.above, u)), builder.conv((self.beside, ul))


class _Streams(nn.Module):
    """A residual block of each stream. The first reads its short-cut, if any, the other the first's result and its."""

    def __init__(self, hidden: int, short: bool, condition_features: int, dropout: float) -> None:
        super().__init__()
        self.above = _GatedResidual(hidden, _ABOVE, hidden if short else 0, condition_features, dropout)
        self.beside = _GatedResidual(hidden, _BESIDE, 2 * hidden if short else hidden, condition_features, dropout)

    def forward(
        self, u: Tensor, ul: Tensor, shorts: tuple[Tensor, Tensor] | None = None, *, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if shorts is None:
            u = self.above(u, None, condition)
            return u, self.beside(ul, u, condition)
        u = self.above(u, shorts[0], condition)
        return u, self.beside(ul, torch.cat([u, shorts[1]], 1), condition)

    def stages(
        self, builder: ProgramBuilder, u: int, ul: int, shorts: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        if shorts is None:
            u = self.above.stages(builder, u, [])
            return u, self.beside.stages(builder, ul, [u])
        u = self.above.stages(builder, u, [shorts[0]])
        return u, self.beside.stages(builder, ul, [u, shorts[1]])


class _GatedResidual(nn.Module):
    """x + a sigmoid(b) with (a, b) = conv(dropout(celu(conv(celu(x)) + 1x1(celu(short))))) + condition."""

    def __init__(
        self, hidden: int, taps: tuple[tuple[int, int], ...], short: int, condition_features: int, dropout: float
    ) -> None:
        super().__init__()
        self.first = NormalizedConv2d(2 * hidden, hidden, taps)
        self.short = NormalizedConv2d(2 * short, hidden, ((0, 0),)) if short else None
        self.dropout = nn.Dropout(dropout)
        self.second = NormalizedConv2d(2 * hidden, 2 * hidden, taps, init_scale=0.1, activation="glu")
        self.condition = nn.Linear(condition_features, 2 * hidden) if condition_features else None

    def forward(self, x: Tensor, short: Tensor | None, condition: Tensor | None) -> Tensor:
        side = None if self.short is None or short is None else self.short(ops.concat_elu(short))
        h = self.first(ops.concat_elu(x), residual=side)
        bias = None if self.condition is None else self.condition(condition)
        out: Tensor = self.second(self.dropout(ops.concat_elu(h)), bias=bias, residual=x)
        return out

    def stages(self, builder: ProgramBuilder, x: int, shorts: list[int]) -> int:
        inputs: list[tuple[MaskedConv2d, int | list[Channels]]] = [(self.first, builder.pointwise(x, "concat_elu"))]
        if self.short is not None:
            hidden = self.short.weight.shape[1] // (2 * len(shorts))
            both = [builder.pointwise(short, "concat_elu") for short in shorts]
            inputs.append((self.short, [Channels(p, first, hidden) for first in (0, hidden) for p in both]))
        h = builder.pointwise(builder.conv(*inputs), "concat_elu")
        return builder.conv((self.second, h), condition=self.condition, residual=x)
