"""What models share that are a product of conditional distributions, one for every pixel."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .._lib import INTEGERS
from ..nn import CausalHead, Compiled, MixtureHead, ProgramBuilder
from ..nn._arguments import check_integer
from ..random import Source
from .model import Model


class Autoregressive(Model):
    """log p(x) = sum over pixels, in raster order, and their channels of log p(x_i | all before it): exact.

    A subclass implements `_features`, from which `head` makes the distribution of each level. `sample` and `complete`
    run the net once for every pixel, and for every channel that its head draws alone, on the rows down to it.
    """

    PICTURES = CHUNK = 16
    ONES = False  # whether `_features` adds a channel of ones to the image
    levels: int
    head: CausalHead | MixtureHead

    def _features(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Levels scaled to [-1, 1] [B, C, H, W] -> [B, F, H, W], which at a pixel depend on those before it, and, for a
        `CausalHead`, in group c of F, on the pixel's channels before c. Of fewer rows, those of F are the same."""
        raise NotImplementedError

    def _stages(self, builder: ProgramBuilder) -> int:
        """Has the builder take down what `_features` does; returns the plane of the features."""
        raise NotImplementedError

    def program(self) -> Compiled:
        """The model as a pixel program, with the weights as they are now; see `pygen.program`."""
        builder = ProgramBuilder(self.shape, self.levels, len(self.head.drawn_together), ones=self.ONES)
        return self.head.compiled(builder, self._stages(builder))

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
        return -nll.double().flatten(1).sum(1).to(nll.dtype)

    def _sample(self, first: int, y: Tensor | None, context: Tensor | None, seed: int, temperature: float) -> Tensor:
        x = torch.zeros(self.CHUNK, *self.shape, dtype=torch.int64, device=self._like.device)
        return self._complete(first, x, torch.ones_like(x, dtype=torch.bool), y, context, seed, temperature)

    def _complete(
        self,
        first: int,
        x: Tensor,
        unknown: Tensor,
        y: Tensor | None,
        context: Tensor | None,
        seed: int,
        temperature: float,
    ) -> Tensor:
        condition = self._given(self.CHUNK, y, context)
        x = self._prepare(x, None).long()
        self.head.check_unknown(unknown)
        _, height, width = self.shape
        wanted = unknown.any(0).cpu()
        for row, column in itertools.product(range(height), range(width)):
            for channels in self.head.drawn_together:
                if not wanted[channels, row, column].any():
                    continue
                h = self._features(self._scaled(x[:, :, : row + 1]), condition)[:, :, row, column]
                new = self.head.draw(h, channels, temperature, seed, first, row * width + column)
                pixel = x[:, channels, row, column]
                pixel.copy_(new.where(unknown[:, channels, row, column], pixel))
        return x.to(torch.uint8) if self.levels <= 256 else x


def check_image(shape: tuple[int, int, int], levels: int, **sizes: int) -> None:
    """Raises for sizes that no such model has."""
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise ValueError(f"expected shape as (C, H, W), got {shape}")
    for size in shape:
        check_integer("every size in shape", size, 1)
    check_integer("levels", levels, 2)
    for name, size in sizes.items():
        check_integer(name, size, 1 if name == "hidden" else 0)
