"""Output heads: PixelCNN's 256-way softmax, and its sigmoid for binary images, at the sizes of its images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops, reference
from .cases import Case, Function, Inputs, Problem, Tensors, Work


def cross_entropy(target: Tensor) -> Function:
    """F.cross_entropy of [B, levels, channels, H, W]."""

    def call(h: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        channels = target.shape[1]
        logits = F.conv2d(h, weight[:, :, None, None], bias)
        grouped = logits.unflatten(1, (channels, -1)).transpose(1, 2)
        return (F.cross_entropy(grouped, target, reduction="none"),)

    return call


def binary_cross_entropy(target: Tensor) -> Function:
    wanted = target.float()

    def call(h: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
        logits = F.conv2d(h, weight[:, :, None, None], bias)
        return (F.binary_cross_entropy_with_logits(logits, wanted, reduction="none"),)

    return call


def case(
    shape: tuple[int, int, int, int], channels: int, levels: int, layout: str = "contiguous", **of_case: bool
) -> Case:
    """levels: 0 for the Bernoulli head."""

    def build(device: torch.device) -> Problem:
        generator = torch.Generator(device).manual_seed(0)
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, device=device)

        outputs, inputs = channels * max(1, levels), shape[1]
        h = normal(*shape).to(memory_format=memory_format)
        weight, bias = normal(outputs, inputs) / inputs**0.5, normal(outputs)
        target = torch.randint(levels or 2, (shape[0], channels, *shape[2:]), generator=generator, device=device)
        product = 2 * h.numel() * outputs
        fwd = Work(h.nbytes + target.nbytes + 4 * target.numel(), product)
        bwd = Work(2 * h.nbytes + target.nbytes + 4 * target.numel(), 2 * product)

        op = "categorical_nll" if levels else "bernoulli_nll"
        own, true = getattr(ops, op), getattr(reference, op)

        def ours(h: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
            return (own(h, weight, bias, target),)

        def truth(h: Tensor, weight: Tensor, bias: Tensor) -> Tensors:
            return (true(h, weight, bias, target),)

        losses = {"cross_entropy": cross_entropy} if levels else {"binary_cross_entropy": binary_cross_entropy}
        eager = {name: loss(target) for name, loss in losses.items()}
        work = {"fwd": fwd, "bwd": bwd, "full": fwd + bwd}
        return Problem(Inputs((h, weight, bias), layout), ours, eager, truth, work)

    head = f"categorical-{channels}x{levels}" if levels else f"bernoulli-{channels}"
    suffix = "-channels_last" if layout == "channels_last" else ""
    return Case("heads", f"{head}{suffix}-{'x'.join(map(str, shape))}", build, **of_case)


CASES = (
    *(
        case((16, 128, 32, 32), 3, 256, layout, quick=layout == "contiguous")
        for layout in ("contiguous", "channels_last")
    ),
    case((64, 64, 28, 28), 1, 256),
    *(case((64, 64, 28, 28), 1, levels, layout) for levels in (16, 0) for layout in ("contiguous", "channels_last")),
)
