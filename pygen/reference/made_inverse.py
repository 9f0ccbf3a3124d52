"""Masked autoregressive nets (MADE), transforms by their outputs, and how to invert them, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .coupling import affine_coupling, affine_coupling_backward
from .rational_quadratic_spline import rational_quadratic_spline, rational_quadratic_spline_backward


def _silu_slope(h: Tensor) -> Tensor:
    s = torch.sigmoid(h)
    return s * (1 + h * (1 - s))


# name: f, f'
NONLINEARITIES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (F.relu, lambda h: (h > 0).to(h.dtype)),
    "leaky_relu": (F.leaky_relu, lambda h: torch.where(h > 0, torch.ones_like(h), 0.01)),
    "elu": (F.elu, lambda h: torch.where(h > 0, 1, h.clamp(max=0).exp())),
    "tanh": (torch.tanh, lambda h: 1 - torch.tanh(h).square()),
    "sigmoid": (torch.sigmoid, lambda h: torch.sigmoid(h) * torch.sigmoid(-h)),
    "silu": (F.silu, _silu_slope),
}


# --- the net ----------------------------------------------------------------------------------------------------------


def masks(degrees: Sequence[Tensor], outputs: int) -> list[Tensor]:
    """What each layer may read, [outputs, inputs] of bool: a unit what has its degree at most; a row of the last one,
    of the parameters of a feature, what has a lower degree."""
    hidden = [below <= above[:, None] for below, above in pairwise(degrees)]
    of_rows = degrees[0].repeat_interleave(outputs // len(degrees[0]))
    return [*hidden, degrees[-1] < of_rows[:, None]]


def masked(weights: Sequence[Tensor], degrees: Sequence[Tensor]) -> list[Tensor]:
    """The weights, zero where nothing may be read."""
    where = masks(degrees, weights[-1].shape[0])
    return [torch.where(mask.to(w.device), w, 0) for mask, w in zip(where, weights, strict=True)]


def hidden_layers(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], nonlinearity: str, residual: bool
) -> list[Tensor]:
    """The hidden layers before their nonlinearity, [B, H] each, by weights that are masked."""
    f, _ = NONLINEARITIES[nonlinearity]
    layers = [F.linear(x, weights[0]) + biases[0]]
    for i, (weight, bias) in enumerate(zip(weights[1:-1], biases[1:-1], strict=True), 1):
        h = F.linear(f(layers[-1]), weight) + bias
        layers.append(h + layers[-2] if residual and i % 2 == 0 else h)
    return layers


def made(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    *,
    nonlinearity: str = "relu",
    residual: bool = True,
) -> Tensor:
    """The net's outputs [B, D P]; see `pygen.ops.made_inverse`."""
    weights = masked(weights, degrees)
    h = hidden_layers(x, weights, biases, nonlinearity, residual)[-1]
    return F.linear(h if residual else NONLINEARITIES[nonlinearity][0](h), weights[-1]) + biases[-1]


Needs = Sequence[bool]
Gradients = list[Tensor | None]
Pullback = Callable[[Tensor, Needs, Needs], tuple[Gradients, Gradients]]


def made_and_pullback(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    *,
    nonlinearity: str = "relu",
    residual: bool = True,
) -> tuple[Tensor, Pullback]:
    """The net's outputs, and what makes of their gradient those of the weights and biases that are needed."""
    where = [mask.to(x.device) for mask in masks(degrees, weights[-1].shape[0])]
    weights = [torch.where(mask, w, 0) for mask, w in zip(where, weights, strict=True)]
    f, slope = NONLINEARITIES[nonlinearity]
    layers = hidden_layers(x, weights, biases, nonlinearity, residual)
    read = [x, *(f(h) for h in layers[:-1]), layers[-1] if residual else f(layers[-1])]

    def pullback(grad: Tensor, need_weights: Needs, need_biases: Needs) -> tuple[Gradients, Gradients]:
        needed = [i for i, needs in enumerate(zip(need_weights, need_biases, strict=True)) if any(needs)]
        outputs = [grad] * len(weights)  # gradients of what each layer puts out
        for i in reversed(range(min(needed, default=len(layers)), len(layers))):
            grad = outputs[i + 1] @ weights[i + 1]
            if not residual or i + 1 < len(layers):
                grad = grad * slope(layers[i])
            outputs[i] = grad + outputs[i + 2] if residual and i % 2 == 0 and i + 2 < len(layers) else grad
        into = zip(need_weights, where, outputs, read, strict=True)
        of_weights = [torch.where(mask, g.mT @ h, 0) if need else None for need, mask, g, h in into]
        sums = zip(need_biases, outputs, biases, strict=True)
        return of_weights, [(g if b.dim() == 2 else g.sum(0)) if need else None for need, g, b in sums]

    return F.linear(read[-1], weights[-1]) + biases[-1], pullback


# --- transforms of features by parameters ----------------------------------------------------------------------------


def _affine(options: dict[str, Any], inverse: bool) -> dict[str, Any]:
    return {"part": "all", "interleaved": True, "inverse": inverse, **options}


def apply_transform(
    x: Tensor, params: Tensor, name: str, options: dict[str, Any], inverse: bool
) -> tuple[Tensor, Tensor]:
    """x [B, D] by params [B, D P], and the logarithms of its slopes [B, D]."""
    each = params.unflatten(1, (x.shape[1], -1))
    if name == "spline":
        return rational_quadratic_spline(x, each, inverse=inverse, **options)
    rows = each.flatten(0, 1)  # a feature is a sample: one log-determinant each
    y, slopes = affine_coupling(x.reshape(-1, 1), rows, **_affine(options, inverse))
    return y.view_as(x), slopes.view_as(x)


def invert_transform_backward(
    grad: Tensor, grad_slopes: Tensor, y: Tensor, x: Tensor, params: Tensor, name: str, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Gradients of y and params, of the inverse transform, which made x of y."""
    each = params.unflatten(1, (x.shape[1], -1))
    if name == "spline":
        grad_y, grad_params, *_ = rational_quadratic_spline_backward(
            grad, grad_slopes, y, each, None, None, inverse=True, **options
        )
        return grad_y, grad_params.flatten(1)
    kept = y if options.get("shift", "after") == "before" else x
    saved = None if options.get("activation") == "additive" else kept.reshape(-1, 1)
    grad_y, grad_params, _ = affine_coupling_backward(
        grad.reshape(-1, 1), grad_slopes.reshape(-1), saved, each.flatten(0, 1), **_affine(options, True)
    )
    return grad_y.view_as(y), grad_params.view_as(params)


# --- the inverse ------------------------------------------------------------------------------------------------------


class _Net:
    """A net whose units are computed degree by degree, by whole layers' products; NaN stays where it belongs."""

    def __init__(
        self,
        y: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        degrees: Sequence[Tensor],
        nonlinearity: str,
        residual: bool,
    ) -> None:
        self.weights = masked([w.to(y.dtype) for w in weights], degrees)
        self.biases = [b.to(y.dtype) for b in biases]
        self.order = torch.cat(list(degrees)).unique().unbind()  # before they are where y is
        self.of_x, *self.of_layers = (d.to(y.device) for d in degrees)
        self.residual = residual
        self.f, self.slope = NONLINEARITIES[nonlinearity]
        self.layers = [y.new_zeros(y.shape[0], len(d)) for d in self.of_layers]

    def read(self, i: int) -> Tensor:
        """A layer as the next one reads it."""
        last = i % len(self.layers) + 1 == len(self.layers)
        return self.layers[i] if self.residual and last else self.f(self.layers[i])

    def adds(self, i: int) -> bool:
        """Whether the layer two below is added to this one."""
        return self.residual and i >= 2 and i % 2 == 0

    def params(self, degree: Tensor) -> Tensor:
        """[B, D P], right for the features of a degree."""
        read = torch.where(self.of_layers[-1] < degree, self.read(-1), 0)
        return F.linear(read, self.weights[-1]) + self.biases[-1]

    def units(self, x: Tensor, degree: Tensor) -> None:
        """Computes the units of a degree."""
        read, known = x, self.of_x <= degree
        for i, own in enumerate(self.of_layers):
            h = F.linear(torch.where(known, read, 0), self.weights[i]) + self.biases[i]
            if self.adds(i):
                h = h + self.layers[i - 2]
            self.layers[i] = torch.where(own == degree, h, self.layers[i])
            read, known = self.read(i), own <= degree


def made_inverse(
    y: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    *,
    nonlinearity: str = "relu",
    residual: bool = True,
    transform: str = "affine",
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """See `pygen.ops.made_inverse`: degree by degree, the features, then the units."""
    y, storage = y.to(torch.promote_types(y.dtype, torch.float32)), y.dtype
    net = _Net(y, weights, biases, degrees, nonlinearity, residual)
    x, slopes = torch.zeros_like(y), torch.zeros_like(y)
    for degree in net.order:
        found = apply_transform(y, net.params(degree), transform, options, True)
        x, slopes = (torch.where(net.of_x == degree, new, old) for new, old in zip(found, (x, slopes), strict=True))
        net.units(x, degree)
    return x.to(storage), slopes.sum(1)


def made_inverse_backward(
    grad_x: Tensor,
    grad_logabsdet: Tensor,
    x: Tensor,
    y: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    *,
    nonlinearity: str = "relu",
    residual: bool = True,
    transform: str = "affine",
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Gradients of y, and of x with what features pass on to those of lower degrees that their parameters depend on:
    this one in the type of the arithmetic."""
    dtype, storage = torch.promote_types(y.dtype, torch.float32), y.dtype
    x, y, total, grad_logabsdet = (t.to(dtype) for t in (x, y, grad_x, grad_logabsdet))
    net = _Net(y, weights, biases, degrees, nonlinearity, residual)
    for degree in net.order:
        net.units(x, degree)
    grad_y, grad_slopes = torch.zeros_like(y), grad_logabsdet[:, None].expand_as(y)
    of_reads = [torch.zeros_like(h) for h in net.layers]  # gradients of layers as they are read, and as they are added
    of_added = [torch.zeros_like(h) for h in net.layers]
    highest = degrees[0].max()
    for degree in reversed([d for d in net.order if d <= highest]):
        for i in reversed(range(len(net.layers))) if degree < highest else ():
            whole = residual and i + 1 == len(net.layers)
            grad = of_reads[i] if whole else of_reads[i] * net.slope(net.layers[i])
            own = net.of_layers[i] == degree
            grad = torch.where(own, grad + of_added[i], 0)
            if net.adds(i):
                of_added[i - 2] = of_added[i - 2] + grad
            below = grad @ torch.where(own[:, None], net.weights[i], 0)
            if i:
                of_reads[i - 1] = of_reads[i - 1] + torch.where(net.of_layers[i - 1] <= degree, below, 0)
            else:
                total = total + torch.where(net.of_x <= degree, below, 0)
        own, params = net.of_x == degree, net.params(degree)
        of_y, of_params = invert_transform_backward(total, grad_slopes, y, x, params, transform, options)
        grad_y = torch.where(own, of_y, grad_y)
        rows = own.repeat_interleave(params.shape[1] // len(own))
        below = torch.where(rows, of_params, 0) @ torch.where(rows[:, None], net.weights[-1], 0)
        of_reads[-1] = of_reads[-1] + torch.where(net.of_layers[-1] < degree, below, 0)
    return grad_y.to(storage), total
