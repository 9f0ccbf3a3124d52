"""Inverses of nflows' autoregressive transforms in one sweep instead of as many passes as there are features."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...nn import Affine, Spline
from ._flows import made_degrees, made_layers, made_names, net_settings, spline_of

Inverse = Callable[..., tuple[Tensor, Tensor]]


def swept(original: Inverse) -> Inverse:
    """AutoregressiveTransform.inverse by `pygen.ops.made_inverse`; `original` computes what that does not have: other
    transforms and nets, batch normalisation, dropout in training, other activations; and raises for what does not fit.
    """

    @functools.wraps(original)
    def inverse(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        found = _covered(self)
        if found is None or not _fits(self.autoregressive_net, inputs, context):
            return original(self, inputs, context)
        net, (transform, nonlinearity) = self.autoregressive_net, found
        layers = made_layers(net)
        biases = [layer.bias for layer in layers]
        if context is not None:
            for ours, theirs in made_names(net):
                kind, i = ours.split(".")
                if kind == "conditions":
                    given = net.get_submodule(theirs)(context)
                    if len(given) == 1:  # which nflows broadcasts
                        given = given.expand(len(inputs), -1)
                    biases[int(i)] = biases[int(i)] + (given if int(i) else net.activation(given))
        x, logabsdet = ops.made_inverse(
            inputs, [layer.weight * layer.mask for layer in layers], biases, made_degrees(net),
            nonlinearity=nonlinearity, residual=net.use_residual_blocks,
            transform=transform.name, **transform.options,
        )  # fmt: skip
        return x, logabsdet.to(inputs.dtype)

    return inverse


def _fits(net: Any, inputs: Tensor, context: Tensor | None) -> bool:
    """Whether a net takes these inputs and this context."""
    weight = net.initial_layer.weight
    if torch.is_autocast_enabled(inputs.device.type):  # under which nflows' own layers choose their types
        return False
    if inputs.dim() != 2 or inputs.shape[1] != weight.shape[1] or inputs.dtype != weight.dtype:
        return False
    if context is None:
        return True
    layer = getattr(net, "context_layer", None)
    return (
        layer is not None
        and context.dim() == 2
        and len(context) in (1, len(inputs))
        and context.shape[1] == layer.in_features
        and context.dtype == weight.dtype
    )


def _covered(t: Any) -> tuple[Affine | Spline, str] | None:
    """What a transform does to a feature, and its net's nonlinearity; None for what the sweep does not have."""
    from nflows import transforms
    from nflows.transforms.made import MADE, MaskedLinear

    net = t.autoregressive_net
    if type(net) is not MADE or any(map(callable, vars(t).values())):  # methods of its own
        return None
    if any(m._forward_hooks or m._forward_pre_hooks for m in net.modules()):  # old weight norm, pruning, a user's own
        return None
    if any(type(layer) is not MaskedLinear or layer.bias is None for layer in made_layers(net)):
        return None
    try:
        nonlinearity: str = net_settings(net, dropout=False)["nonlinearity"]
        if type(t) is transforms.MaskedAffineAutoregressiveTransform:
            return Affine(t._epsilon), nonlinearity
        if type(t) is transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform:
            # Nets that say how wide they are have their widths and heights divided.
            return None if hasattr(net, "hidden_features") else (spline_of(t), nonlinearity)
    except (TypeError, ValueError):  # of settings that are tensors, or numpy's
        pass
    return None
