"""Models, small, as what they hand to `causal_sampler`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pygen.models import GatedPixelCNN, PixelCNN, PixelCNNPlusPlus
from pygen.program import HEAD, PIXEL, ROW, Plane, Program, Read, Stage, pack

STORAGE = (torch.float32, torch.float64, torch.bfloat16)


class Sampling(NamedTuple):
    program: Program
    tensors: list[Tensor]
    conditions: list[Tensor]

    def of(self, images: slice) -> Sampling:
        return self._replace(conditions=[t[images].contiguous() for t in self.conditions])

    def unknown(self, batch: int) -> tuple[Tensor, Tensor]:
        """x and known with nothing known."""
        p = self.program
        size, device = (batch, p.channels, p.height, p.width), self.tensors[0].device
        return torch.zeros(size, dtype=torch.int64, device=device), torch.zeros(size, dtype=torch.bool, device=device)


MODELS: dict[str, Any] = {
    "pixelcnn": lambda: PixelCNN((1, 5, 4), levels=4, hidden=8, blocks=1),
    "pixelcnn-rgb": lambda: PixelCNN((3, 3, 3), levels=5, hidden=6, blocks=1, num_classes=3),
    "gated": lambda: GatedPixelCNN((1, 4, 5), levels=40, hidden=8, layers=2),
    "gated-wide": lambda: GatedPixelCNN((2, 2, 9), levels=300, hidden=72, layers=1, dilations=(2,), num_classes=3),
    "gated-context": lambda: GatedPixelCNN(
        (1, 3, 4), levels=4, hidden=8, layers=1, context_features=2, spatial_context=True
    ),
    "plus-plus": lambda: PixelCNNPlusPlus((1, 5, 3), levels=4, hidden=8, blocks=1, mixtures=3),
    "plus-plus-rgb": lambda: PixelCNNPlusPlus((3, 3, 5), levels=256, hidden=6, blocks=1, mixtures=3, num_classes=3),
}


def sampling(name: str, dtype: torch.dtype, batch: int, device: str = "cpu") -> Sampling:
    torch.manual_seed(0)
    if name == "deep":
        return deep(dtype, device)
    model = MODELS[name]().to(device, dtype).eval()
    for p in model.parameters():
        if p.dim() > 1:
            p.data.mul_(1.5)  # so that it matters
    compiled = model.program()
    y = torch.arange(batch, device=device) % 3 if model.num_classes else None
    context = None
    if name == "gated-context":
        context = torch.randn(batch, 2, *model.shape[1:], dtype=dtype, device=device)
    with torch.no_grad():
        given = model._given(batch, y, context)
        conditions = [f(given).contiguous() for f in compiled.conditions]
    return Sampling(compiled.program, compiled.tensors, conditions)


def deep(dtype: torch.dtype, device: str) -> Sampling:
    """Stages that read more than any model of a testable size: sums in several parts, columns in several blocks."""
    wide = torch.promote_types(dtype, torch.float32)
    shapes = [(2, 600), (1805, 150), (750, 5)]
    weights = [pack(torch.randn(n) * n[0] ** -0.5).to(device, dtype) for n in shapes]
    bias = torch.randn(600, dtype=wide, device=device)
    planes = (Plane(1), Plane(600), Plane(150), Plane(5))
    rows = (*(Read(1, -1, dx, 0, 600) for dx in (-1, 0, 1)), *(Read(0, -2, dx, 0, 1) for dx in range(-2, 3)))
    inputs = (Read(0, 0, -1, 0, 1), Read(0, -1, 0, 0, 1))
    stages = (
        Stage(2, 0, 150, weight=1, phase=ROW, reads=rows),
        Stage(1, 0, 600, weight=0, bias=3, activation=1, phase=PIXEL, reads=inputs),
        Stage(3, 0, 5, weight=2, phase=HEAD, reads=(Read(1, 0, 0, 0, 600), Read(2, 0, 0, 0, 150))),
    )
    program = Program(3, 4, 1, 5, 1, "categorical", 1, "openai", 3, 4, 0, planes, stages)
    program.check()
    return Sampling(program, [*weights, bias], [])
