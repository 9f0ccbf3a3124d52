"""Sampling by masked autoregressive layers: one sweep, beside nflows' inverse ("eager"), a pass of the net for each
feature. Layers of nflows with residual nets (two blocks), and the same layers of ours: affine, as in MAF, and splines
of 8 bins.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..integrations.nflows import from_nflows
from .cases import Case, Inputs, Problem, Tensors, Work

BLOCKS, BINS = 2, 8


@cache
def _layers(kind: str, features: int, hidden: int, dtype: torch.dtype) -> tuple[Any, nn.Module]:
    """nflows' and ours."""
    from nflows import distributions, flows, transforms

    with torch.random.fork_rng():
        torch.manual_seed(1)
        if kind == "affine":
            layer = transforms.MaskedAffineAutoregressiveTransform(features, hidden, num_blocks=BLOCKS)
        else:
            layer = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                features, hidden, num_blocks=BLOCKS, num_bins=BINS, tails="linear", tail_bound=3.0
            )
    layer = layer.to(dtype)
    ours = from_nflows(flows.Flow(layer, distributions.StandardNormal([features])))
    return layer, ours.layers[0]


def case(kind: str, batch: int, features: int, hidden: int) -> Case:
    def build(device: torch.device) -> Problem:
        generator = torch.Generator(device).manual_seed(1)
        y = torch.randn(batch, features, generator=generator, device=device)

        def passes(y: Tensor) -> Tensors:
            layer = _layers(kind, features, hidden, y.dtype)[0].to(device)
            return layer.inverse(y)  # type: ignore[no-any-return]

        def sweep(y: Tensor) -> Tensors:
            layer = _layers(kind, features, hidden, y.dtype)[1].to(device)
            return layer(y, inverse=True)  # type: ignore[no-any-return]

        outputs = features * (2 if kind == "affine" else 3 * BINS - 1)
        weights = hidden * (features + 2 * BLOCKS * hidden + outputs)
        work = Work(4 * (2 * batch * features + weights), flops=batch * weights, unit="matmul")  # half is masked
        return Problem(Inputs((y,)), sweep, {"nflows": passes}, passes, {"fwd": work}, slack=100)

    name, quick = f"{kind}-{batch}x{features}-{hidden}", (kind, batch) == ("affine", 16)
    return Case("made_inverse", name, build, modes=("fwd",), grad=False, compiles=False, quick=quick)


CASES = (
    case("affine", 16, 64, 128),
    case("affine", 512, 64, 128),
    case("affine", 512, 64, 512),
    case("affine", 512, 6, 64),
    case("spline", 512, 64, 128),
    case("spline", 512, 6, 64),
)
