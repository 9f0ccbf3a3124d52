"""Masked convolutions: PixelCNN's layers at the sizes of the goals, against masked weights in F.conv2d.

"crop": the same convolution on the top k // 2 + 1 rows of the kernel, which peers could write.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops, reference
from ..ops import causal_taps, weight_to_dense
from .cases import Case, Function, Inputs, Problem, Tensors, Work


def gate(a: Tensor) -> Tensor:
    first, second = a.chunk(2, 1)
    return torch.tanh(first) * torch.sigmoid(second)


def masked(x: Tensor, dense: Tensor, bias: Tensor, *, mask: Tensor, after: Callable[[Tensor], Tensor]) -> Tensors:
    return (after(F.conv2d(x, dense * mask, bias, padding=dense.shape[2] // 2)),)


def crop(x: Tensor, dense: Tensor, bias: Tensor, *, mask: Tensor, after: Callable[[Tensor], Tensor]) -> Tensors:
    rows = dense.shape[2] // 2
    top = dense[:, :, : rows + 1] * mask[:, :, : rows + 1]
    return (after(F.conv2d(F.pad(x, (0, 0, rows, 0)), top, bias, padding=(0, rows))),)


def by_taps(dense: Tensor) -> Tensor:
    """[k, k, Cin, Cout]"""
    return dense.permute(2, 3, 1, 0)


def case(
    batch: int, channels: int, size: int, kernel: int, *, gated: bool = False, last: bool = False, **of_case: Any
) -> Case:
    """Mask B, as many channels out as in. All get the weight as [Cout, Cin, k, k], each as it likes it in memory: ours
    so that the live taps, the first of the kernel, are a view."""
    taps = causal_taps(kernel)
    before = 2 * channels if gated else channels

    def build(device: torch.device) -> Problem:
        generator = torch.Generator(device).manual_seed(0)
        fmt = torch.channels_last if last else torch.contiguous_format

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        x, bias = normal(batch, channels, size, size).to(memory_format=fmt), normal(before)
        live = normal(len(taps), channels, before) / (channels * len(taps)) ** 0.5
        dense = weight_to_dense(live, taps, kernel).to(memory_format=fmt)
        mask = weight_to_dense(live.new_ones(len(taps), 1, 1), taps, kernel)
        after = gate if gated else lambda a: a
        options: dict[str, Any] = {"taps": taps, "activation": "gate" if gated else None}

        def of_dense(function: Callable[..., Tensor]) -> Function:
            return lambda x, dense, bias: (function(x, by_taps(dense).flatten(0, 1)[: len(taps)], bias, **options),)

        flops = 2 * live.numel() * batch * size * size
        pre, y = batch * before * size * size, x.numel()
        fwd = Work(4 * (x.numel() + live.numel() + y + (pre if gated else 0)), flops)
        bwd = Work(4 * (2 * x.numel() + 2 * live.numel() + y + (pre if gated else 0)), 2 * flops)
        name = "channels_last" if last else "contiguous"
        return Problem(
            inputs=Inputs((x, dense, bias), name),
            ours=of_dense(ops.masked_conv2d),
            eager={"masked": partial(masked, mask=mask, after=after)},
            reference=of_dense(reference.masked_conv2d),
            work={"fwd": fwd, "bwd": bwd, "full": fwd + bwd},
            likes={"pygen": Inputs((x, by_taps(dense).contiguous().permute(3, 2, 0, 1), bias), name)},
            peers={"crop": lambda: partial(crop, mask=mask, after=after)},
        )

    layout, shape = "-channels_last" if last else "", f"{batch}x{channels}x{size}x{size}"
    return Case("masked_conv", f"{'gate' if gated else 'conv'}-{kernel}{layout}-{shape}", build, **of_case)


SIZES = ((64, 32, 28, 3), (32, 64, 28, 7), (16, 64, 32, 3), (16, 64, 32, 5), (16, 128, 32, 3), (16, 160, 32, 3))
GATED = ((64, 32, 28, 3), (16, 64, 32, 3), (16, 64, 32, 5), (16, 128, 32, 3))

CASES = tuple(
    case(*shape, gated=gated, last=last, quick=shape == (16, 64, 32, 3) and last)
    for gated, shapes in ((False, SIZES), (True, GATED))
    for last in (False, True)
    for shape in shapes
)
