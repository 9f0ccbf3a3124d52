"""Sampling as peers do it: the whole net once for every pixel. To compare with, in tests, benchmarks and the demo."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .autoregressive import Autoregressive


@torch.no_grad()
def naive_sample(
    model: Autoregressive,
    x: Tensor,
    known: Tensor,
    y: Tensor | None = None,
    *,
    context: Tensor | None = None,
    seed: int = 0,
    first_sample: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    pixels: int | None = None,
) -> Tensor:
    """Levels [B, C, H, W] that are x where known: what `Autoregressive.complete` draws, by running the net on the rows
    down to each pixel, for every channel that its head draws alone.

    pixels: ends after so many.
    """
    with model.evaluating():
        condition = model._given(len(x), y, context)
        x = x.where(known, 0).long()
        _, height, width = model.shape
        wanted = (~known).any(0).cpu()
        for row, column in itertools.islice(itertools.product(range(height), range(width)), pixels):
            for channels in model.head.drawn_together:
                if not wanted[channels, row, column].any():
                    continue
                h = model._features(model._scaled(x[:, :, : row + 1]), condition)[:, :, row, column]
                new = model.head.draw(
                    h, channels, temperature, seed, first_sample, row * width + column, top_k=top_k, top_p=top_p
                )
                pixel = x[:, channels, row, column]
                pixel.copy_(new.where(~known[:, channels, row, column], pixel))
    return x
