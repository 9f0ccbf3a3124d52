"""Training steps of neural spline flows: nflows' own model, as it is ("eager") and with its splines replaced (pygen).

Ten coupling layers of 8 bins with residual nets, between random permutations, a batch of 512: loss and gradients of all
parameters.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..integrations import nflows as ours
from .cases import Case, Inputs, Problem, Tensors, Work

BATCH, LAYERS, BINS, HIDDEN = 512, 10, 8, 64


@cache
def _flow(features: int, dtype: torch.dtype) -> nn.Module:
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import ResidualNet

    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers: list[nn.Module] = []
        for i in range(LAYERS):
            layers += [
                transforms.RandomPermutation(features),
                transforms.PiecewiseRationalQuadraticCouplingTransform(
                    (torch.arange(features) + i) % 2,
                    lambda inputs, outputs: ResidualNet(inputs, outputs, HIDDEN),
                    num_bins=BINS,
                    tails="linear",
                    tail_bound=3.0,
                ),
            ]
        flow = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([features]))
    return flow.to(dtype)  # type: ignore[no-any-return]


def _step(flow: Any, x: Tensor) -> Tensors:
    parameters = list(flow.parameters())
    with torch.enable_grad():
        loss = -flow.log_prob(x).mean()
        return loss.detach(), *torch.autograd.grad(loss, parameters)


def _patched(flow: Any, x: Tensor) -> Tensors:
    """With the one name that these layers look up replaced, since `patch` looks through all modules."""
    from nflows.transforms import splines

    original = splines.unconstrained_rational_quadratic_spline
    splines.unconstrained_rational_quadratic_spline = ours.unconstrained_rational_quadratic_spline
    try:
        return _step(flow, x)
    finally:
        splines.unconstrained_rational_quadratic_spline = original


def case(features: int) -> Case:
    def build(device: torch.device) -> Problem:
        generator = torch.Generator(device).manual_seed(1)
        x = torch.randn(BATCH, features, generator=generator, device=device)

        def plain(x: Tensor) -> Tensors:
            return _step(_flow(features, x.dtype).to(device), x)

        def replaced(x: Tensor) -> Tensors:
            return _patched(_flow(features, x.dtype).to(device), x)

        elements = LAYERS * BATCH * (features - features // 2)
        work = Work(elements * (3 * BINS - 1) * 4 * 3)  # parameters read twice, and their gradients
        return Problem(Inputs((x,)), replaced, {"nflows": plain}, plain, {"fwd": work}, slack=100)

    quick = features == 6
    return Case("spline_flow", f"nflows-{features}", build, modes=("fwd",), grad=False, compiles=False, quick=quick)


CASES = (case(6), case(63))
