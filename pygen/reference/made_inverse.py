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


Pullback = Callable[[Tensor], tuple[Tensor, list[Tensor], list[Tensor]]]


def made_and_pullback(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    *,
    nonlinearity: str = "relu",
    residual: bool = True,
) -> tuple[Tensor, Pullback]:
    """The net's outputs, and what makes of their gradient those of x, the weights and the biases."""
    where = [mask.to(x.device) for mask in masks(degrees, weights[-1].shape[0])]
    weights = [torch.where(mask, w, 0) for mask, w in zip(where, weights, strict=True)]
    f, slope = NONLINEARITIES[nonlinearity]
    layers = hidden_layers(x, weights, biases, nonlinearity, residual)
    read = [x, *(f(h) for h in layers[:-1]), layers[-1] if residual else f(layers[-1])]

    def pullback(grad: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        outputs = [grad] * len(weights)  # gradients of what each layer puts out
        for i in reversed(range(len(layers))):
            grad = outputs[i + 1] @ weights[i + 1]
            if not residual or i + 1 < len(layers):
                grad = grad * slope(layers[i])
            outputs[i] = grad + outputs[i + 2] if residual and i % 2 == 0 and i + 2 < len(layers) else grad
        of_weights = [torch.where(mask, g.mT @ h, 0) for mask, g, h in zip(where, outputs, read, strict=True)]
        of_biases = [g if b.dim() == 2 else g.sum(0) for g, b in zip(outputs, biases, strict=True)]
        return outputs[0] @ weights[0], of_weights, of_biases

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


def apply_transform_backward(
    grad: Tensor, grad_slopes: Tensor, x: Tensor, params: Tensor, name: str, options: dict[str, Any], inverse: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and params."""
    each = params.unflatten(1, (x.shape[1], -1))
    if name == "spline":
        grad_x, grad_params, *_ = rational_quadratic_spline_backward(
            grad, grad_slopes, x, each, None, None, inverse=inverse, **options
        )
        return grad_x, grad_params.flatten(1)
    column, rows = x.reshape(-1, 1), each.flatten(0, 1)
    saved: Tensor | None = column
    if options.get("activation") == "additive":
        saved = None
    elif (options.get("shift", "after") == "before") != inverse:  # it keeps what comes out
        saved, _ = affine_coupling(column, rows, **_affine(options, inverse))
    grad_x, grad_params, _ = affine_coupling_backward(
        grad.reshape(-1, 1), grad_slopes.reshape(-1), saved, rows, **_affine(options, inverse)
    )
    return grad_x.view_as(x), grad_params.view_as(params)


# --- the inverse ------------------------------------------------------------------------------------------------------


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
    """See `pygen.ops.made_inverse`: degree by degree, the features, then the units, each by whole layers' products."""
    dtype, storage = torch.promote_types(y.dtype, torch.float32), y.dtype
    y, weights, biases = y.to(dtype), masked([w.to(dtype) for w in weights], degrees), [b.to(dtype) for b in biases]
    order = torch.cat(list(degrees)).unique().unbind()  # before they are where y is
    of_x, *of_layers = (d.to(y.device) for d in degrees)
    f, _ = NONLINEARITIES[nonlinearity]
    x, each = torch.zeros_like(y), torch.zeros_like(y)
    layers = [y.new_zeros(y.shape[0], len(d)) for d in of_layers]
    for degree in order:
        read = layers[-1] if residual else f(layers[-1])
        params = F.linear(torch.where(of_layers[-1] < degree, read, 0), weights[-1]) + biases[-1]
        found, slopes = apply_transform(y, params, transform, options, True)
        x, each = (torch.where(of_x == degree, new, old) for new, old in ((found, x), (slopes, each)))
        read, known = x, of_x <= degree
        for i, own in enumerate(of_layers):
            h = F.linear(torch.where(known, read, 0), weights[i]) + biases[i]
            if residual and i > 0 and i % 2 == 0:
                h = h + layers[i - 2]
            layers[i] = torch.where(own == degree, h, layers[i])
            read, known = f(layers[i]), own <= degree
    return x.to(storage), each.sum(1)


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
) -> Tensor:
    """The gradient of y: features pass on what they got to those of lower degrees that their parameters depend on."""
    dtype, storage = torch.promote_types(y.dtype, torch.float32), y.dtype
    x, y, grad_x, grad_logabsdet = (t.to(dtype) for t in (x, y, grad_x, grad_logabsdet))
    weights, biases = [w.to(dtype) for w in weights], [b.to(dtype) for b in biases]
    grad_slopes = grad_logabsdet[:, None].expand_as(y)
    net: dict[str, Any] = {"nonlinearity": nonlinearity, "residual": residual}
    params, pullback = made_and_pullback(x, weights, biases, degrees, **net)
    grad_y = torch.zeros_like(y)
    for degree in reversed(degrees[0].unique().unbind()):
        own = (degrees[0] == degree).to(y.device)
        of_y, of_params = apply_transform_backward(grad_x, grad_slopes, y, params, transform, options, True)
        grad_y = torch.where(own, of_y, grad_y)
        of_params = torch.where(own.repeat_interleave(params.shape[1] // len(own)), of_params, 0)
        grad_x = grad_x + pullback(of_params)[0]
    return grad_y.to(storage)
