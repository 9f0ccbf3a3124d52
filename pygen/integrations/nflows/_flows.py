"""Flows of nflows as pygen's, and back: the same layers with the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models import CompositeFlow, FlatFlow
from ...models.flat import described
from ...nn import (
    Affine,
    Inverse,
    LULinear,
    MaskedAutoregressive,
    Permutation,
    ResidualMLP,
    Spline,
    SplineCoupling,
    Standardize,
)
from ...nn.made import standard_degrees

Part = tuple[dict[str, Any], dict[str, Tensor]]  # a layer in the words of `CompositeFlow`, and its state

# Activations that nflows' nets may be given, which have no names there; the first of each name is the one we give.
_FUNCTIONS: dict[Callable[[Tensor], Tensor], str] = {
    F.relu: "relu",
    F.leaky_relu: "leaky_relu",
    F.elu: "elu",
    torch.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    F.silu: "silu",
    torch.relu: "relu",
    F.tanh: "tanh",
    F.sigmoid: "sigmoid",
}
_MODULES = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SiLU: "silu"}
_UNIT = (0.0, 1.0, 0.0, 1.0)  # the bounds of nflows' splines without tails


def nonlinearity(activation: Any) -> str | None:
    """The name of an activation that a net of nflows was given; None for one that has none here."""
    if type(activation) is nn.LeakyReLU and activation.negative_slope == 0.01:
        return "leaky_relu"
    if type(activation) is nn.ELU and activation.alpha == 1:
        return "elu"
    try:
        return _FUNCTIONS.get(activation) or _MODULES.get(type(activation))
    except TypeError:  # what is no key
        return None


# --- from nflows ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def from_nflows(flow: nn.Module) -> CompositeFlow:
    """A flow of vectors of nflows as one of pygen, with copies of its weights, in its dtype and on its device; what is
    frozen (requires_grad=False) stays so.

    The same density, and samples of the same latents, to rounding, but faster: splines in one pass, autoregressive
    layers sampled in one sweep. It can be saved, loaded and trained on as every model. To read a checkpoint of nflows,
    build its flow and load the state there first.

    flow: nflows.flows.Flow, with a StandardNormal and without an embedding net, of CompositeTransform,
        InverseTransform, permutations, LULinear, PointwiseAffineTransform, IdentityTransform,
        MaskedAffineAutoregressiveTransform, MaskedPiecewiseRationalQuadraticAutoregressiveTransform, and
        PiecewiseRationalQuadraticCouplingTransform with nflows' ResidualNet. Contexts are taken too.

    Raises TypeError for other transforms, nets and distributions, ValueError for settings that pygen's do not have:
    batch normalisation, dropout, other activations than `pygen.nn.MADE`'s, unconditional transforms.

    >>> from pygen.integrations.nflows import from_nflows
    >>> from nflows import distributions, flows, transforms
    >>> layers = [transforms.ReversePermutation(3), transforms.MaskedAffineAutoregressiveTransform(3, 16)]
    >>> theirs = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([3]))
    >>> from_nflows(theirs).sample(5, generator=0).shape
    torch.Size([5, 3])
    """
    from nflows import distributions, flows

    if not isinstance(flow, flows.Flow):
        raise TypeError(f"expected a Flow of nflows, got {type(flow).__name__}")
    if type(flow._embedding_net) is not nn.Identity:
        raise TypeError(
            f"expected a flow without an embedding net, whose context is embedded beforehand, got one with "
            f"{type(flow._embedding_net).__name__}"
        )
    if not isinstance(flow._distribution, distributions.StandardNormal) or len(flow._distribution._shape) != 1:
        raise TypeError(f"expected a flow with a StandardNormal of vectors, got {type(flow._distribution).__name__}")
    (features,) = flow._distribution._shape
    parts = list(_parts(flow._transform, features))
    widths = {_condition_features(*part) for part in parts if "transform" in _innermost(part[0])}
    if len(widths) > 1:
        raise ValueError(f"expected nets with the same number of context features, got {sorted(widths)}")
    model = CompositeFlow(features, [description for description, _ in parts], context_features=max(widths, default=0))
    if (like := next(flow.parameters(), None)) is not None:
        model.to(like)
    _load(model, {f"layers.{i}.{key}": t for i, (_, state) in enumerate(parts) for key, t in state.items()})
    return model.train(flow.training)


def _innermost(description: dict[str, Any]) -> dict[str, Any]:
    return _innermost(description["of"]) if description["layer"] == "inverse" else description


def _condition_features(description: dict[str, Any], state: dict[str, Tensor]) -> int:
    part: list[bool] | None = _innermost(description).get("part")
    if part is not None:  # a coupling's net is given what is kept, and the condition
        return next(t.shape[1] for key, t in state.items() if key.endswith("net.first.weight")) - part.count(False)
    return max((t.shape[1] for key, t in state.items() if "condition" in key and key.endswith("weight")), default=0)


def _load(module: nn.Module, state: dict[str, Tensor], *, strict: bool = True) -> None:
    """Weights, and which of them are frozen."""
    module.load_state_dict(state, strict=strict)
    for name, parameter in module.named_parameters():
        if name in state:
            parameter.requires_grad_(state[name].requires_grad)


def _parts(transform: nn.Module, features: int) -> Iterator[Part]:
    from nflows import transforms as theirs

    t: Any = transform
    if isinstance(t, theirs.CompositeTransform):
        for each in t._transforms:
            yield from _parts(each, features)
    elif isinstance(t, theirs.InverseTransform):
        for description, state in reversed(list(_parts(t._transform, features))):
            yield {"layer": "inverse", "of": description}, {f"layer.{key}": value for key, value in state.items()}
    elif isinstance(t, theirs.IdentityTransform):
        return
    elif isinstance(t, theirs.Permutation) and t._dim == 1:
        yield {"layer": "permutation"}, {"order": t._permutation}
    elif isinstance(t, theirs.PointwiseAffineTransform):
        shift, scale = (value.expand(features) for value in (t._shift, t._scale))
        yield {"layer": "standardize"}, {"mean": -shift / scale, "std": 1 / scale}
    elif isinstance(t, theirs.LULinear):
        weight = t.unconstrained_upper_diag.diag()
        weight[t.lower_indices] = t.lower_entries
        weight[t.upper_indices] = t.upper_entries
        frozen = not any(p.requires_grad for p in (t.lower_entries, t.upper_entries, t.unconstrained_upper_diag))
        yield {"layer": "lu", "eps": t.eps}, {"weight": weight.requires_grad_(not frozen), "bias": t.bias}
    elif isinstance(t, theirs.MaskedAffineAutoregressiveTransform):
        yield _of_made(t.autoregressive_net, Affine(t._epsilon), features)
    elif isinstance(t, theirs.MaskedPiecewiseRationalQuadraticAutoregressiveTransform):
        yield _of_made(t.autoregressive_net, spline_of(t), features)
    elif isinstance(t, theirs.PiecewiseRationalQuadraticCouplingTransform):
        yield _of_coupling(t, features)
    else:
        raise TypeError(f"expected transforms of nflows that from_nflows lists, got {type(t).__name__}")


def spline_of(t: Any) -> Spline:
    if t.tails not in (None, "linear"):
        raise ValueError(f"expected splines with linear tails or none, got {t.tails!r}")
    bounds = _UNIT if t.tails is None else t.tail_bound
    return Spline(t.num_bins, bounds, t.tails, t.min_bin_width, t.min_bin_height, t.min_derivative)


def net_settings(net: Any, *, dropout: bool = True) -> dict[str, Any]:
    """Sizes and nonlinearity of a MADE or a ResidualNet of nflows, in our words; ValueError for what we do not have.

    dropout: whether that counts in eval mode.
    """
    blocks = list(net.blocks)
    own = [net.activation] if hasattr(net, "activation") else []
    activations = [*own, *(block.activation for block in blocks)] or [F.relu]
    name, *others = dict.fromkeys(map(nonlinearity, activations))
    if name is None or others:
        expected = ", ".join(dict.fromkeys(_FUNCTIONS.values()))
        raise ValueError(f"expected one activation of {expected}, got {list(dict.fromkeys(activations))}")
    if any(getattr(block, "use_batch_norm", False) or getattr(block, "batch_norm", None) for block in blocks):
        raise ValueError("expected nets without batch normalisation, under which a sample's density is its batch's")
    if any(block.dropout.p for block in blocks if dropout or block.dropout.training):
        raise ValueError(f"expected nets without dropout, got a probability of {blocks[0].dropout.p}")
    return {"hidden": net.initial_layer.out_features, "blocks": len(blocks), "nonlinearity": name}


def _of_made(net: Any, transform: Affine | Spline, features: int) -> Part:
    settings = {**net_settings(net), "residual": net.use_residual_blocks}
    degrees = [each.tolist() for each in made_degrees(net)]
    if degrees != standard_degrees(features, settings["hidden"], len(degrees) - 1):
        settings["degrees"] = degrees
    state = _renamed(net, {theirs: ours for ours, theirs in made_names(net)})
    _scale(state, f"layers.{len(degrees) - 1}", transform, divisor(net), features)
    return {"layer": "autoregressive", "transform": described(transform), **settings}, {
        f"made.{key}": value for key, value in state.items()
    }


def made_layers(net: Any) -> list[Any]:
    """The masked layers of a MADE of nflows."""
    return [net.get_submodule(theirs) for ours, theirs in made_names(net) if ours.startswith("layers")]


def made_degrees(net: Any) -> list[Tensor]:
    """Those of a MADE of nflows, on the CPU: of the inputs and of every hidden layer."""
    layers = made_layers(net)
    return [torch.arange(1, layers[0].in_features + 1), *[layer.degrees.cpu() for layer in layers[:-1]]]


def _of_coupling(t: Any, features: int) -> Part:
    from nflows.nn.nets import ResidualNet

    net = t.transform_net
    if not isinstance(net, ResidualNet):
        raise TypeError(f"expected couplings with the ResidualNet of nflows, got {type(net).__name__}")
    if t.unconditional_transform is not None:
        raise ValueError("expected couplings without an unconditional transform, got one")
    settings, spline, changes = net_settings(net), spline_of(t), t.transform_features.tolist()
    state = _renamed(net, {theirs: ours for ours, theirs in _residual_names(len(net.blocks))})
    _scale(state, "last", spline, divisor(net), len(changes))
    description = {"part": [i in changes for i in range(features)], "transform": described(spline), **settings}
    return {"layer": "coupling", **description}, {f"net.{key}": value for key, value in state.items()}


def _renamed(net: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """The weights and biases of modules by their new names, copied."""
    state = {}
    for key, value in net.named_parameters(remove_duplicate=False):
        module, _, name = key.rpartition(".")
        if module in names and name in ("weight", "bias"):
            state[f"{names[module]}.{name}"] = value.detach().clone().requires_grad_(value.requires_grad)
    return state


def divisor(net: Any) -> float:
    """nflows divides the widths and heights that a net puts out by the root of its width, if it says what that is."""
    return math.sqrt(getattr(net, "hidden_features", 1))


def _scale(state: dict[str, Tensor], last: str, transform: Affine | Spline, divided: float, changes: int) -> None:
    """Divides what the last layer puts out for widths and heights."""
    if isinstance(transform, Spline):
        for name in ("weight", "bias"):
            rows = state[f"{last}.{name}"].unflatten(0, (changes, transform.parameters))
            rows[:, : 2 * transform.bins] /= divided


def _residual_names(blocks: int) -> Iterator[tuple[str, str]]:
    """Modules of a `ResidualMLP`, and nflows' names of them in a ResidualNet."""
    yield "first", "initial_layer"
    for i in range(blocks):
        yield f"blocks.{i}.first", f"blocks.{i}.linear_layers.0"
        yield f"blocks.{i}.second", f"blocks.{i}.linear_layers.1"
        yield f"blocks.{i}.condition", f"blocks.{i}.context_layer"
    yield "last", "final_layer"


def made_names(net: Any) -> Iterator[tuple[str, str]]:
    """Modules of our `MADE`, and nflows' names of them in its own."""
    linears = ["initial_layer"]
    yield "conditions.0", "context_layer"
    for i in range(len(net.blocks)):
        if net.use_residual_blocks:
            yield f"conditions.{len(linears)}", f"blocks.{i}.context_layer"
            linears += [f"blocks.{i}.linear_layers.0", f"blocks.{i}.linear_layers.1"]
        else:
            linears.append(f"blocks.{i}.linear")
    for i, name in enumerate([*linears, "final_layer"]):
        yield f"layers.{i}", name


# --- to nflows --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def to_nflows(model: FlatFlow) -> nn.Module:
    """A flow of vectors of pygen as nflows.flows.Flow, with copies of its weights, in its dtype and on its device; what
    is frozen (requires_grad=False) stays so.

    model: `MAF`, `IAF`, `SplineFlowFlat` or `CompositeFlow`, of real numbers, without labels and without dropout.

    Raises TypeError for other models, ValueError for what nflows does not have: levels, labels, a MADE of inputs in
    another order, splines whose bounds differ from side to side.
    """
    from nflows import distributions, flows, transforms

    if not isinstance(model, FlatFlow):
        raise TypeError(f"expected a flow of vectors by layers in a row, got {type(model).__name__}")
    if model.levels is not None or model.num_classes is not None:
        raise ValueError("expected a model of real numbers without labels: nflows has neither levels nor labels")
    layers = [_theirs(layer, model.features, model.condition.context_features or None) for layer in model.layers]
    flow: nn.Module = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([model.features]))
    return flow.to(model._like).train(model.training)


def _theirs(layer: nn.Module, features: int, context_features: int | None) -> Any:
    from nflows import transforms

    if isinstance(layer, Inverse):
        return transforms.InverseTransform(_theirs(layer.layer, features, context_features))
    if isinstance(layer, Permutation):
        return transforms.Permutation(layer.get_buffer("order").clone())
    if isinstance(layer, Standardize):
        return transforms.PointwiseAffineTransform(-layer.mean / layer.std, 1 / layer.std)
    if isinstance(layer, LULinear):
        lu = transforms.LULinear(features, eps=layer.eps).to(layer.weight)
        lu.lower_entries.copy_(layer.weight[lu.lower_indices])
        lu.upper_entries.copy_(layer.weight[lu.upper_indices])
        lu.unconstrained_upper_diag.copy_(layer.weight.diagonal())
        lu.bias.copy_(layer.bias)
        for parameter in lu.parameters():
            parameter.requires_grad_(layer.weight.requires_grad)
        lu.bias.requires_grad_(layer.bias.requires_grad)
        return lu
    if isinstance(layer, MaskedAutoregressive):
        return _autoregressive(layer, features, context_features)
    if isinstance(layer, SplineCoupling):
        return _coupling(layer, features, context_features)
    raise TypeError(f"expected layers that nflows has, got {type(layer).__name__}")


def _splines(spline: Spline) -> dict[str, Any]:
    bounds = spline.bounds if isinstance(spline.bounds, tuple) else (-spline.bounds, spline.bounds) * 2
    bound = max(bounds)
    if spline.tails == "circular" or tuple(bounds) != (_UNIT if spline.tails is None else (-bound, bound) * 2):
        raise ValueError(f"expected splines with linear tails on [-B, B], or without tails on [0, 1], got {spline}")
    return {
        "num_bins": spline.bins, "tails": spline.tails, "tail_bound": bound, "min_bin_width": spline.min_width,
        "min_bin_height": spline.min_height, "min_derivative": spline.min_derivative,
    }  # fmt: skip


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    return next(function for function, known in _FUNCTIONS.items() if known == name)


def _autoregressive(layer: MaskedAutoregressive, features: int, context_features: int | None) -> Any:
    from nflows import transforms

    made, transform = layer.made, layer.transform
    if made.degrees[0].tolist() != list(range(1, features + 1)):
        raise ValueError(f"expected a MADE whose inputs are of degrees 1 to {features}, as nflows' are")
    hidden = len(made.degrees[1])
    blocks = (len(made.degrees) - 2) // (2 if made.residual else 1)
    settings: dict[str, Any] = {
        "features": features, "hidden_features": hidden, "context_features": context_features, "num_blocks": blocks,
        "use_residual_blocks": made.residual, "activation": _activation(made.nonlinearity),
    }  # fmt: skip
    if isinstance(transform, Spline):
        theirs = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(**settings, **_splines(transform))
    else:
        theirs = transforms.MaskedAffineAutoregressiveTransform(**settings)
        theirs._epsilon = transform.eps
    net = theirs.autoregressive_net
    state = _renamed(made, dict(made_names(net)))
    _scale(state, "final_layer", transform, 1 / divisor(net), features)
    _load(net.to(made.weights()[0]), state, strict=False)  # masks are buffers, and follow
    for i, masked in enumerate(made_layers(net)):
        masked.mask.copy_(made.get_buffer(f"mask{i}"))
        if i + 1 < len(made.degrees):
            masked.degrees.copy_(made.degrees[i + 1])
    return theirs


def _coupling(layer: SplineCoupling, features: int, context_features: int | None) -> Any:
    from nflows import transforms
    from nflows.nn.nets import ResidualNet

    net, spline = layer.net, layer.spline
    if not isinstance(net, ResidualMLP):
        raise TypeError(f"expected couplings with a ResidualMLP, got {type(net).__name__}")
    if any(module.p for module in net.modules() if isinstance(module, nn.Dropout)):
        raise ValueError("expected couplings without dropout")

    def create(inputs: int, outputs: int) -> Any:
        return ResidualNet(
            inputs, outputs, net.first.out_features, context_features, len(net.blocks), _activation(net.nonlinearity)
        )

    changed = layer.split(torch.arange(features, device=net.first.weight.device)[None])[1][0].cpu()
    mask = torch.zeros(features, dtype=torch.int64).index_fill(0, changed, 1)
    theirs = transforms.PiecewiseRationalQuadraticCouplingTransform(mask, create, **_splines(spline))
    state = _renamed(net, dict(_residual_names(len(net.blocks))))
    _scale(state, "final_layer", spline, 1 / divisor(theirs.transform_net), len(changed))
    _load(theirs.transform_net.to(net.first.weight), state)
    return theirs
