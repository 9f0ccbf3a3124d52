"""Layers of spline and autoregressive flows: inverses, log-determinants, who sees whom, clear errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pygen.models.flat import coupling_layer
from pygen.nn import (
    MADE,
    Affine,
    Chain,
    Inverse,
    LULinear,
    MaskedAutoregressive,
    Permutation,
    ResidualMLP,
    ResidualNet,
    Spline,
    SplineCoupling,
    Standardize,
)

from .test_layers import jacobian_logdet, perturbed

NONLINEARITIES = ("relu", "leaky_relu", "elu", "tanh", "sigmoid", "silu")
TRANSFORMS = (Affine(), Spline(), Spline(5, bounds=(0, 1, 0, 1), tails=None))


def check_flow_layer(layer: torch.nn.Module, x: Tensor, condition: Tensor | None = None) -> Tensor:
    """Inverse, both log-determinants, and the running one; returns y."""
    start = torch.randn(len(x), dtype=torch.float64)
    y, logdet = layer(x, start, condition)
    back, zero = layer(y, logdet, condition, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(zero, start, rtol=0, atol=1e-10)
    expected = [
        jacobian_logdet(lambda v, c=c: layer(v, None, c)[0], one)
        for one, c in zip(x.split(1), [None] * len(x) if condition is None else condition.split(1), strict=True)
    ]
    torch.testing.assert_close(logdet - start, torch.cat(expected), rtol=0, atol=1e-10)
    return y


# --- MADE ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("features", [1, 2, 5])
def test_outputs_see_features_of_lower_degree_alone(features: int, nonlinearity: str, residual: bool) -> None:
    made = perturbed(MADE(features, 3, hidden=64, residual=residual, nonlinearity=nonlinearity, condition_features=2))
    x, condition = torch.randn(features, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: made(v[None], condition)[0], x)
    depends = jacobian.reshape(features, 3, features).abs().amax(1)
    assert torch.equal(depends != 0, torch.ones_like(depends).tril(-1) != 0)


def test_degrees_of_any_order() -> None:
    degrees = [[2, 3, 1], [1, 2, 2, 1, 2, 1], [2, 2, 2, 1, 2, 1], [2, 2, 2, 1, 2, 2]]
    made = perturbed(MADE(3, 1, hidden=6, blocks=1, degrees=degrees, nonlinearity="tanh"))
    x = torch.randn(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: made(v[None])[0], x)
    assert torch.equal(jacobian != 0, torch.tensor([[0, 0, 1], [1, 0, 1], [0, 0, 0]]).bool())


def test_nets_put_out_what_they_start_at() -> None:
    start = torch.tensor([1.0, -2.0])
    assert torch.equal(MADE(3, 2, hidden=4, start=start)(torch.randn(5, 3)), start.repeat(3).expand(5, 6))
    assert torch.equal(ResidualMLP(3, 2, hidden=4, start=start)(torch.randn(5, 3)), start.expand(5, 2))
    net = ResidualNet(3, 2, hidden=4, blocks=1, dims=2, start=start)
    assert torch.equal(net(torch.randn(5, 3, 2, 2)), start[:, None, None].expand(5, 2, 2, 2))


def test_made_refuses() -> None:
    for name, least in (("features", 1), ("outputs", 1), ("hidden", 1), ("blocks", 0), ("condition_features", 0)):
        sizes = {"features": 3, "outputs": 2, "hidden": 4, "blocks": 1, "condition_features": 0}
        with pytest.raises(TypeError, match=rf"expected {name} as an integer, got 2\.0"):
            MADE(**{**sizes, name: 2.0})
        with pytest.raises(ValueError, match=f"expected {name} >= {least}, got {least - 1}"):
            MADE(**{**sizes, name: least - 1})
    with pytest.raises(ValueError, match=r"expected nonlinearity as one of relu, .*, got 'gelu'"):
        MADE(3, 2, hidden=4, nonlinearity="gelu")
    with pytest.raises(ValueError, match=r"expected degrees of 3 and 4 units, got \[3, 5\]"):
        MADE(3, 2, hidden=4, blocks=0, degrees=[[1, 2, 3], [1] * 5])
    with pytest.raises(TypeError, match="expected degrees as integers, got"):
        MADE(3, 2, hidden=4, blocks=0, degrees=[[1.0, 2.7, 3.0], [1] * 4])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "make",
    [
        lambda features: MADE(3, 2, hidden=4, condition_features=features),
        lambda features: ResidualMLP(3, 2, hidden=4, condition_features=features),
        lambda features: ResidualNet(3, 2, hidden=4, blocks=1, dims=0, condition_features=features),
    ],
)
def test_conditions_that_do_not_fit(make: Callable[[int], torch.nn.Module]) -> None:
    for features, given in ((0, 2), (2, 0), (2, 3)):
        condition = torch.randn(5, given) if given else None
        with pytest.raises(ValueError, match=f"expected a condition of {features} features, got {given}"):
            make(features)(torch.randn(5, 3), condition)


def test_residual_mlp_refuses() -> None:
    sizes = {"inputs": 2, "outputs": 2, "hidden": 4, "blocks": 1, "condition_features": 0}
    for name in sizes:
        with pytest.raises(TypeError, match=rf"expected {name} as an integer, got 2\.0"):
            ResidualMLP(**{**sizes, name: 2.0})
    with pytest.raises(ValueError, match=r"expected nonlinearity as one of relu, .*, got 'gelu'"):
        ResidualMLP(**sizes, nonlinearity="gelu")


def test_residual_mlp_sees_its_condition_and_drops_out_in_training() -> None:
    net = perturbed(ResidualMLP(2, 3, hidden=8, condition_features=2, dropout=0.5))
    x, condition = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    assert (net(x, condition) != net(x, condition.flip(0))).all()
    assert torch.equal(net(x, condition), net(x, condition))
    net.train()
    assert not torch.equal(net(x, condition), net(x, condition))


# --- autoregressive layers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("condition_features", [0, 2])
def test_autoregressive(transform: Affine | Spline, residual: bool, condition_features: int) -> None:
    made = MADE(4, transform.parameters, hidden=9, residual=residual, condition_features=condition_features)
    layer = perturbed(MaskedAutoregressive(made, transform))
    x = torch.rand(3, 4, dtype=torch.float64)
    condition = torch.randn(3, condition_features, dtype=torch.float64) if condition_features else None
    y = check_flow_layer(layer, x, condition)
    check_flow_layer(Inverse(layer), y, condition)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_identity(transform: Affine | Spline) -> None:
    made = MADE(4, transform.parameters, hidden=9, start=transform.identity())
    x = torch.rand(3, 4)
    y, logdet = MaskedAutoregressive(made, transform)(x)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(logdet, torch.zeros(3), rtol=0, atol=1e-5)


def test_gradients_of_the_inverse_are_those_of_the_passes() -> None:
    """By implicit gradients, and by D passes that autograd follows."""
    layer = perturbed(MaskedAutoregressive(MADE(3, 23, hidden=7, condition_features=2, nonlinearity="tanh"), Spline()))
    y, condition = (torch.randn(4, size, dtype=torch.float64, requires_grad=True) for size in (3, 2))
    leaves = [y, condition, *layer.parameters()]

    def of(x: Tensor, logdet: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((x.sin() * torch.arange(1, 4)).sum() + logdet.square().sum(), leaves)

    x, passed = torch.zeros_like(y), None
    for _ in range(3):
        x, passed = layer.transform(y, layer.made(x, condition), inverse=True)
    for found, expected in zip(of(*layer(y, None, condition, inverse=True)), of(x, passed), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_autoregressive_refuses() -> None:
    with pytest.raises(ValueError, match="expected a net of 23 outputs a feature, got 2"):
        MaskedAutoregressive(MADE(3, 2, hidden=4), Spline())


# --- transforms ------------------------------------------------------------------------------------------------------


def test_transforms_refuse() -> None:
    with pytest.raises(ValueError, match="expected eps"):
        Affine(-1.0)
    with pytest.raises(ValueError, match=r"expected eps >= 0 and < 1, got 1\.0"):
        Affine(1.0)
    with pytest.raises((TypeError, ValueError), match="expected bounds of numbers, got None"):
        Spline(bounds=None)  # type: ignore[arg-type]
    for bins in (1, 65):
        with pytest.raises(ValueError, match=f"expected bins from 2 to 64, got {bins}"):
            Spline(bins)
    with pytest.raises(ValueError, match="expected tails to be one of"):
        Spline(tails="mirrored")
    with pytest.raises(ValueError, match="expected min_width of 1 / 8 at most for 8 bins"):
        Spline(min_width=0.2)
    with pytest.raises(ValueError, match="expected bounds as a positive number"):
        Spline(bounds=-1.0)
    assert Spline(bounds=[0, 1, 0, 1], tails=None) == Spline(bounds=(0, 1, 0, 1), tails=None)


# --- couplings -------------------------------------------------------------------------------------------------------

PARTS = (("first", 2), ("second", 3), ("even", 3), ("odd", 2), ([True, False, False, True, False], 2))


@pytest.mark.parametrize(("part", "changes"), PARTS)
def test_couplings_of_vectors(part: str | list[bool], changes: int) -> None:
    spline = Spline(4)
    net = ResidualMLP(5 - changes, changes * spline.parameters, hidden=6, condition_features=2)
    layer = perturbed(SplineCoupling(net, changes, part, spline))
    x, condition = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    y = check_flow_layer(layer, x, condition)
    masks = {"first": [1, 1, 0, 0, 0], "second": [0, 0, 1, 1, 1], "even": [1, 0, 1, 0, 1], "odd": [0, 1, 0, 1, 0]}
    mask = torch.tensor(masks[part] if isinstance(part, str) else part).bool()
    assert torch.equal(y[:, ~mask], x[:, ~mask])
    assert (y != x)[:, mask].any(0).all()
    other = layer(torch.where(mask, x.flip(0), x), None, condition)[0]
    assert torch.equal(other[:, ~mask], x[:, ~mask])


@pytest.mark.parametrize(("part", "changes"), [("first", 2), ("second", 1), ([False, True, True], 2)])
def test_couplings_of_images(part: str | list[bool], changes: int) -> None:
    spline = Spline(4)
    net = ResidualNet(3 - changes, changes * spline.parameters, hidden=4, blocks=1, dims=2)
    layer = perturbed(SplineCoupling(net, changes, part, spline))
    check_flow_layer(layer, torch.randn(2, 3, 2, 3, dtype=torch.float64))


def test_couplings_refuse() -> None:
    net = ResidualMLP(2, 2 * 23, hidden=4)
    with pytest.raises(ValueError, match="expected part to be 'first', 'second', 'even' or 'odd', got 'all'"):
        SplineCoupling(net, 2, "all", Spline())
    with pytest.raises(ValueError, match="expected channels >= 1, got 0"):
        SplineCoupling(net, 0, "first", Spline())
    for mask in ([True, False], [1, 1]):
        with pytest.raises(ValueError, match="expected part as a mask with 2 True"):
            SplineCoupling(net, 2, mask, Spline())
    with pytest.raises(ValueError, match=r"expected x \[B, C\] for a coupling of even features, got \[1, 4, 2, 2\]"):
        SplineCoupling(net, 2, "even", Spline())(torch.randn(1, 4, 2, 2))
    with pytest.raises(ValueError, match=r"expected x \[B, 4, \.\.\.\], got \[1, 5\]"):
        SplineCoupling(net, 2, [True, False, True, False], Spline())(torch.randn(1, 5))
    with pytest.raises(ValueError, match="expected part as a mask of 5 features, got 4"):
        coupling_layer(5, 0, [True, False, True, False], Spline(), hidden=4)


# --- linear layers ---------------------------------------------------------------------------------------------------


def test_lu_linear() -> None:
    layer = LULinear(4)
    x = torch.randn(3, 4)
    y, logdet = layer(x)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(logdet, torch.zeros(3), rtol=0, atol=1e-6)
    check_flow_layer(perturbed(layer), x.double())
    with pytest.raises(ValueError, match="expected features >= 1"):
        LULinear(0)


def test_permutations() -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(Permutation.reverse(3)(x)[0], x.flip(1))
    assert torch.equal(Permutation([1, 2, 0])(x)[0], x[:, [1, 2, 0]])
    check_flow_layer(Chain([Standardize(3), Permutation([1, 2, 0])]), x)
    torch.manual_seed(0)
    drawn = {tuple(Permutation.random(3).order.tolist()) for _ in range(100)}
    assert drawn == set(itertools.permutations(range(3)))
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(Permutation([1, 2, 0])(images)[0], images[:, [1, 2, 0]])
    for wrong in ([0, 2], [0, 0], [-1, 0]):
        with pytest.raises(ValueError, match=r"expected an order of 0 to 1, got"):
            Permutation(wrong)
    for none in ([1.0, 0.0], [True, False], [], [[0, 1]]):
        with pytest.raises(ValueError, match=r"expected an order as integers \[C\], got"):
            Permutation(none)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected x \[B, 3, \.\.\.\], got \[2, 4\]"):
        Permutation.reverse(3)(torch.randn(2, 4))


def test_standardize() -> None:
    layer = Standardize(3).double()
    x = torch.randn(50, 3, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.0]) + 2
    layer.observe(x)
    y = check_flow_layer(layer, x)
    torch.testing.assert_close(y.mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(y.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    assert not list(layer.parameters())
    for wrong in (torch.randn(2, 1), torch.randn(2, 4), torch.randn(3)):
        with pytest.raises(ValueError, match=r"expected x \[B, 3, \.\.\.\], got"):
            layer(wrong)
    x[3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"expected finite x, got NaN or infinities in the features \[1\]"):
        layer.observe(x)
