"""Flows of nflows as pygen's and back, and nflows' autoregressive inverses in one sweep, beside nflows itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pygen import models, ops
from pygen.integrations.nflows import from_nflows, patch, to_nflows
from pygen.models import IAF, MAF, CompositeFlow, FlatFlow, RealNVP, SplineFlowFlat

from ..models.test_layers import perturbed

pytestmark = pytest.mark.peer
transforms = pytest.importorskip("nflows.transforms")
distributions = pytest.importorskip("nflows.distributions")
flows = pytest.importorskip("nflows.flows")
nets = pytest.importorskip("nflows.nn.nets")

D = 4


@pytest.fixture(autouse=True)
def _ignore_their_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def flow(*layers: nn.Module) -> nn.Module:
    composite = transforms.CompositeTransform(list(layers))
    return perturbed(flows.Flow(composite, distributions.StandardNormal([D])), 0.2)


def affine(**options: Any) -> nn.Module:
    return transforms.MaskedAffineAutoregressiveTransform(D, 10, **options)


def spline(**options: Any) -> nn.Module:
    given = {"num_bins": 5, "tails": "linear", "tail_bound": 2.5, **options}
    return transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(D, 10, **given)


def coupling(mask: tuple[int, ...] = (1, 0, 0, 1), net: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    def create(inputs: int, outputs: int) -> nn.Module:
        return nets.ResidualNet(inputs, outputs, 10, **(net or {}))

    given = {"num_bins": 5, "tails": "linear", "tail_bound": 2.5, **options}
    return transforms.PiecewiseRationalQuadraticCouplingTransform(mask, create, **given)


STACKS: dict[str, Callable[[], nn.Module]] = {
    "maf": lambda: flow(affine(), transforms.ReversePermutation(D), affine(num_blocks=1), affine(num_blocks=0)),
    "plain": lambda: flow(affine(use_residual_blocks=False, activation=F.elu), spline(use_residual_blocks=False)),
    "random mask": lambda: flow(affine(use_residual_blocks=False, random_mask=True, activation=torch.tanh)),
    "context": lambda: flow(
        affine(context_features=3),
        spline(context_features=3, activation=F.silu),
        affine(context_features=3, use_residual_blocks=False),
        coupling(net={"context_features": 3}),
    ),
    "nsf": lambda: flow(
        *(
            layer
            for i in range(3)
            for layer in (
                transforms.CompositeTransform([transforms.RandomPermutation(D), transforms.LULinear(D)]),
                coupling([(j + i) % 2 for j in range(D)]),
            )
        ),
        transforms.LULinear(D, identity_init=False),
    ),
    "nsf-ar": lambda: flow(transforms.RandomPermutation(D), transforms.LULinear(D), spline(min_bin_width=0.01)),
    "options": lambda: flow(
        coupling(min_bin_width=0.02, min_bin_height=0.03, min_derivative=0.1, net={"activation": nn.LeakyReLU()}),
        coupling((0, 1, 0, 0), net={"num_blocks": 0}),
    ),
    "standardised": lambda: flow(
        transforms.PointwiseAffineTransform(torch.randn(D), torch.rand(D) + 0.5),
        transforms.IdentityTransform(),
        transforms.PointwiseAffineTransform(0.5, 2.0),
        affine(),
    ),
    "iaf": lambda: flow(transforms.InverseTransform(transforms.CompositeTransform([affine(), transforms.LULinear(D)]))),
}


def same(theirs: nn.Module, ours: FlatFlow) -> None:
    """log-densities, their gradients and samples of the same latents."""
    x, z = (torch.randn(20, D, dtype=torch.float64) for _ in range(2))
    features = ours.condition.context_features
    context = torch.randn(20, features, dtype=torch.float64) if features else None
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    expected, found = theirs.log_prob(leaves[0], context), ours.log_prob(leaves[1], context=context)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), leaves[1])[0], torch.autograd.grad(expected.sum(), leaves[0])[0],
        rtol=1e-8, atol=1e-8,
    )  # fmt: skip
    with torch.no_grad():
        x, logdet = theirs._transform.inverse(z, context)
        for _ in range(2):
            y, total = ours.inverse(z, context=context)
            torch.testing.assert_close(y, x, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(total, logdet, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", STACKS)
def test_from_nflows_and_back(name: str, tmp_path: Path) -> None:
    theirs = STACKS[name]()
    ours = from_nflows(theirs)
    assert not ours.training
    same(theirs, ours)
    back = to_nflows(ours)
    same(back, ours)
    assert not back.training
    if name == "nsf":
        assert len(ours.layers) == 10
        weights, again = theirs.state_dict(), back.state_dict()
        flat = {key.replace("_transform._transforms.", ""): value for key, value in again.items()}
        assert len(flat) == len(weights)
    pytest.importorskip("safetensors")
    ours.save(tmp_path)
    loaded = models.load(tmp_path)
    assert type(loaded) is CompositeFlow
    same(theirs, loaded)


def test_a_copy_shares_nothing() -> None:
    theirs = STACKS["nsf"]().float().train()
    ours = from_nflows(theirs)
    assert ours.training
    assert ours._like.dtype == torch.float32
    x = torch.randn(5, D)
    before = theirs.log_prob(x)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(1)
    assert torch.equal(theirs.log_prob(x), before)


def test_what_is_frozen_stays_so() -> None:
    theirs = STACKS["context"]()
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("initial_layer" not in name)
    frozen = sum(not p.requires_grad for p in theirs.parameters())
    ours = from_nflows(theirs)
    assert sum(not p.requires_grad for p in ours.parameters()) == frozen == 8
    assert sum(not p.requires_grad for p in to_nflows(ours).parameters()) == frozen
    same(theirs, ours)


def test_tied_weights_and_parameters_of_others() -> None:
    transform = affine()
    blocks = transform.autoregressive_net.blocks
    blocks[1].linear_layers[0].weight = blocks[0].linear_layers[0].weight
    transform.autoregressive_net.register_parameter("unused", nn.Parameter(torch.zeros(3)))
    theirs = flow(transform)
    same(theirs, from_nflows(theirs))


def test_couplings_without_blocks_have_contexts() -> None:
    theirs = flow(coupling(net={"context_features": 3, "num_blocks": 0}))
    same(theirs, from_nflows(theirs))


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: MAF(D, layers=3, hidden=9, **options),
        lambda **options: IAF(D, layers=2, hidden=9, nonlinearity="tanh", **options),
        lambda **options: SplineFlowFlat(D, layers=3, hidden=9, **options),
        lambda **options: SplineFlowFlat(D, layers=2, hidden=9, coupling="autoregressive", linear=False, **options),
    ],
)
@pytest.mark.parametrize("context_features", [0, 2])
def test_to_nflows_and_back(make: Callable[..., FlatFlow], context_features: int) -> None:
    ours = perturbed(make(context_features=context_features), 0.2)
    ours.initialize(
        3 + 2 * torch.randn(50, D, dtype=torch.float64),
        context=torch.zeros(50, context_features, dtype=torch.float64) if context_features else None,
    )
    theirs = to_nflows(ours)
    same(theirs, ours)
    same(theirs, from_nflows(theirs))


@pytest.mark.parametrize("part", ["first", "second", "even", "odd", [True, False, True, False]])
def test_parts_as_masks(part: str | list[bool]) -> None:
    spline = {"name": "spline", "bins": 3, "tails": None, "bounds": [0, 1, 0, 1]}
    layer = {"layer": "coupling", "part": part, "transform": spline, "hidden": 5}
    ours = perturbed(CompositeFlow(D, [layer]), 0.2)
    x = torch.rand(9, D, dtype=torch.float64)
    theirs = to_nflows(ours)
    torch.testing.assert_close(theirs.log_prob(x), ours.log_prob(x))
    torch.testing.assert_close(from_nflows(theirs).log_prob(x), ours.log_prob(x))


# --- what neither has ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: affine(), TypeError, "expected a Flow of nflows, got MaskedAffine"),
        (lambda: flow(affine(use_batch_norm=True)), ValueError, "without batch normalisation"),
        (
            lambda: flow(affine(use_batch_norm=True, use_residual_blocks=False)),
            ValueError,
            "without batch normalisation",
        ),
        (lambda: flow(coupling(net={"use_batch_norm": True})), ValueError, "without batch normalisation"),
        (lambda: flow(affine(dropout_probability=0.1)), ValueError, r"without dropout, got a probability of 0\.1"),
        (lambda: flow(affine(activation=F.gelu)), ValueError, r"expected one activation of relu, .*, got \[<built-in"),
        (lambda: flow(affine(activation=nn.ELU(2.0))), ValueError, "expected one activation of relu"),
        (lambda: flow(coupling(apply_unconditional_transform=True)), ValueError, "unconditional transform"),
        (lambda: flow(coupling(tails="circular")), ValueError, "linear tails or none, got 'circular'"),
        (lambda: flow(transforms.ActNorm(D)), TypeError, "that from_nflows lists, got ActNorm"),
        (lambda: flow(transforms.MaskedPiecewiseLinearAutoregressiveTransform(5, D, 8)), TypeError, "got MaskedPiece"),
        (lambda: flow(affine(), affine(context_features=2)), ValueError, r"context features, got \[0, 2\]"),
        (
            lambda: flow(
                transforms.PiecewiseRationalQuadraticCouplingTransform((1, 0, 0, 1), nn.Linear, tails="linear")
            ),
            TypeError,
            "with the ResidualNet of nflows, got Linear",
        ),
        (
            lambda: flows.Flow(affine(), distributions.StandardNormal([D]), nn.Linear(2, 2)),
            TypeError,
            "without an embedding net",
        ),
        (lambda: flows.Flow(affine(), distributions.DiagonalNormal([D])), TypeError, "StandardNormal of vectors"),
        (lambda: flows.Flow(affine(), distributions.StandardNormal([1, D])), TypeError, "StandardNormal of vectors"),
    ],
)
def test_from_nflows_refuses(make: Callable[[], nn.Module], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_nflows(make())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RealNVP((1, 8, 8), hidden=4), TypeError, "flow of vectors by layers in a row, got RealNVP"),
        (lambda: MAF((1, 2, 2), 4, hidden=4), ValueError, "nflows has neither levels nor labels"),
        (lambda: MAF(2, num_classes=2, hidden=4), ValueError, "nflows has neither levels nor labels"),
        (lambda: SplineFlowFlat(2, dropout=0.1, hidden=4), ValueError, "without dropout"),
    ],
)
def test_to_nflows_refuses(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        to_nflows(make())


def test_to_nflows_refuses_settings() -> None:
    net = {"hidden": 4, "blocks": 0}
    for transform in ({"tails": "circular"}, {"bounds": [-1.0, 2.0, -1.0, 2.0]}, {"tails": None, "bounds": 2.0}):
        layer = {"layer": "coupling", "part": "first", "transform": {"name": "spline", **transform}, **net}
        with pytest.raises(ValueError, match=r"expected splines with linear tails on \[-B, B\], or without tails"):
            to_nflows(CompositeFlow(2, [layer]))
    layer = {"layer": "autoregressive", "transform": {"name": "affine"}, "degrees": [[2, 1], [1] * 4], **net}
    with pytest.raises(ValueError, match="expected a MADE whose inputs are of degrees 1 to 2"):
        to_nflows(CompositeFlow(2, [layer]))


# --- patched inverses ------------------------------------------------------------------------------------------------


def sweeps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the op is called."""
    calls: list[int] = []
    op = ops.made_inverse
    monkeypatch.setattr(ops, "made_inverse", lambda *a, **k: calls.append(1) or op(*a, **k))
    return calls


def inverse(transform: nn.Module, y: Tensor, context: Tensor | None) -> list[Tensor]:
    leaf = y.clone().requires_grad_()
    transform.zero_grad()
    x, logabsdet = transform.inverse(leaf, context)
    (x.sin().sum() + logabsdet.sum()).backward()
    grads = [p.grad for p in transform.parameters()]
    return [x, logabsdet, leaf.grad, *(torch.zeros(()) if g is None else g for g in grads)]


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (affine, {}),
        (affine, {"context_features": 3, "num_blocks": 1}),
        (affine, {"context_features": 3, "use_residual_blocks": False, "activation": torch.sigmoid}),
        (affine, {"use_residual_blocks": False, "random_mask": True, "activation": nn.LeakyReLU()}),
        (affine, {"dropout_probability": 0.5}),
        (spline, {"context_features": 3, "activation": F.elu}),
        (spline, {"tails": None}),
    ],
)
def test_inverses(make: Callable[..., nn.Module], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    transform, calls = perturbed(make(**options), 0.2), sweeps(monkeypatch)
    y = torch.rand(20, D, dtype=torch.float64)
    context = torch.randn(20, 3, dtype=torch.float64) if "context_features" in options else None
    expected = inverse(transform, y, context)
    assert not calls
    with patch():
        found = inverse(transform, y, context)
    assert len(calls) == 1
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def _training(transform: nn.Module) -> nn.Module:
    return transform.train()


@pytest.mark.parametrize(
    "make",
    [
        lambda: perturbed(affine(use_batch_norm=True)),
        lambda: perturbed(affine(activation=F.gelu)),
        lambda: _training(perturbed(affine(dropout_probability=0.5))),
        lambda: perturbed(transforms.MaskedPiecewiseLinearAutoregressiveTransform(5, D, 8)),
    ],
)
def test_what_the_sweep_does_not_have_is_theirs(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    transform, calls = make(), sweeps(monkeypatch)
    y = torch.rand(20, D, dtype=torch.float64)
    torch.manual_seed(0)
    expected = transform.inverse(y)
    with patch():
        torch.manual_seed(0)
        found = transform.inverse(y)
    assert not calls
    assert torch.equal(found[0], expected[0])


def test_patch_of_inverses_is_undone() -> None:
    base = pytest.importorskip("nflows.transforms.autoregressive").AutoregressiveTransform
    before = base.inverse
    patched = patch()
    assert base.inverse is not before
    patched.undo()
    patched.undo()
    assert base.inverse is before


@pytest.mark.parametrize(
    ("y", "context"),
    [
        (torch.zeros(5, D + 1), torch.zeros(5, 3)),
        (torch.zeros(5, D, dtype=torch.float64), torch.zeros(5, 3)),
        (torch.zeros(5, D), torch.zeros(5, 2)),
        (torch.zeros(5, D), torch.zeros(4, 3)),
        (torch.zeros(5, D), torch.zeros(5, 3, dtype=torch.float64)),
    ],
)
def test_inverses_of_what_does_not_fit(y: Tensor, context: Tensor) -> None:
    transform = affine(context_features=3)
    with pytest.raises(RuntimeError) as theirs:
        transform.inverse(y, context)
    with patch(), pytest.raises(RuntimeError) as ours:
        transform.inverse(y, context)
    assert str(ours.value) == str(theirs.value)


def test_inverses_in_16_bits_have_logdets_in_16_bits() -> None:
    transform = affine().bfloat16()
    with patch():
        assert [t.dtype for t in transform.inverse(torch.zeros(5, D, dtype=torch.bfloat16))] == [torch.bfloat16] * 2


def test_errors_of_inverses_are_theirs() -> None:
    error = pytest.importorskip("nflows.transforms.base").InputOutsideDomain
    with patch(), pytest.raises(error, match=r"within \[0, 1\]"):
        spline(tails=None).inverse(torch.full((1, D), 2.0))
