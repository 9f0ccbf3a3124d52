"""Training steps of neural spline flows: loss and gradients of all parameters.

nflows: nflows' own model, as it is ("eager") and with its splines replaced (pygen).
own: `SplineFlowFlat`, and nflows' model of the same layers and weights ("eager").

Ten coupling layers of 8 bins with residual nets, each after a random permutation, a batch of 512.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..integrations import nflows as patched
from ..integrations.nflows import to_nflows
from ..models import SplineFlowFlat
from ..nn import SplineCoupling
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
    splines.unconstrained_rational_quadratic_spline = patched.unconstrained_rational_quadratic_spline
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

        return Problem(Inputs((x,)), replaced, {"nflows": plain}, plain, {"fwd": _work(features)}, slack=100)

    return _case(f"nflows-{features}", build)


@cache
def _own(features: int, dtype: torch.dtype) -> tuple[SplineFlowFlat, nn.Module]:
    """Ours and nflows'."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ours = SplineFlowFlat(features, layers=LAYERS, bins=BINS, hidden=HIDDEN, linear=False)
        for layer in _couplings(ours):
            layer.net.last.reset_parameters()  # they start at zero
    ours = ours.to(dtype)
    return ours, to_nflows(ours)


def _couplings(flow: SplineFlowFlat) -> list[Any]:
    return [layer for layer in flow.layers if isinstance(layer, SplineCoupling)]


def own(features: int) -> Case:
    def build(device: torch.device) -> Problem:
        generator = torch.Generator(device).manual_seed(1)
        x = torch.randn(BATCH, features, generator=generator, device=device)

        def step(flow: Any, x: Tensor, shown: list[Tensor]) -> Tensors:
            """The loss, and those gradients that both have: last layers differ by a factor."""
            parameters = list(flow.parameters())
            places = {parameter: i for i, parameter in enumerate(parameters)}
            loss, *gradients = _step(flow, x)
            return loss, *(gradients[places[weight]] for weight in shown)

        def ours(x: Tensor) -> Tensors:
            flow = _own(features, x.dtype)[0].to(device)
            return step(flow, x, [layer.net.first.weight for layer in _couplings(flow)])

        def theirs(x: Tensor) -> Tensors:
            flow: Any = _own(features, x.dtype)[1].to(device)
            nets = [layer.transform_net for layer in flow._transform._transforms if hasattr(layer, "transform_net")]
            return step(flow, x, [net.initial_layer.weight for net in nets])

        return Problem(Inputs((x,)), ours, {"nflows": theirs}, theirs, {"fwd": _work(features)}, slack=100)

    return _case(f"own-{features}", build)


def _work(features: int) -> Work:
    elements = LAYERS * BATCH * (features - features // 2)
    return Work(elements * (3 * BINS - 1) * 4 * 3)  # parameters read twice, and their gradients


def _case(name: str, build: Callable[[torch.device], Problem]) -> Case:
    quick = name.endswith("-6")
    return Case("spline_flow", name, build, modes=("fwd",), grad=False, compiles=False, quick=quick)


CASES = (case(6), case(63), own(6), own(63))
