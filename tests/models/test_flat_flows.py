"""MAF, IAF and spline flows: bijections, densities, conditions, checkpoints, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen import models
from pygen.models import IAF, MAF, CompositeFlow, FlatFlow, Flow, SplineFlow, SplineFlowFlat
from pygen.nn import Standardize

from .test_layers import jacobian_logdet, perturbed

Make = Callable[..., Flow]


def _maf(shape: Any = 3, levels: int | None = None, **options: Any) -> MAF:
    return MAF(shape, levels, layers=3, hidden=12, **options)


def _iaf(shape: Any = 3, levels: int | None = None, **options: Any) -> IAF:
    return IAF(shape, levels, layers=2, hidden=12, **options)


def _coupling(shape: Any = 3, levels: int | None = None, **options: Any) -> SplineFlowFlat:
    return SplineFlowFlat(shape, levels, layers=3, hidden=8, bins=5, **options)


def _autoregressive(shape: Any = 3, levels: int | None = None, **options: Any) -> SplineFlowFlat:
    return _coupling(shape, levels, coupling="autoregressive", **options)


def _composite(shape: Any = 3, **options: Any) -> CompositeFlow:
    net = {"hidden": 8, "blocks": 1}
    spline = {"name": "spline", "bins": 4, "bounds": 3.0}
    layers = [
        {"layer": "standardize"},
        {"layer": "coupling", "part": [True, False, True], "transform": spline, **net},
        {"layer": "lu"},
        {"layer": "permutation"},
        {"layer": "inverse", "of": {"layer": "autoregressive", "transform": spline, "residual": False, **net}},
        {"layer": "autoregressive", "transform": {"name": "affine", "eps": 0.01}, **net},
    ]
    return CompositeFlow(shape, layers, **options)


FLAT = (_maf, _iaf, _coupling, _autoregressive)
ALL = (*FLAT, _composite)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("context_features", [0, 2])
def test_vectors(make: Make, context_features: int) -> None:
    model = perturbed(make(context_features=context_features), 0.2)
    v = torch.randn(4, 3, dtype=torch.float64)
    context = torch.randn(4, 2, dtype=torch.float64) if context_features else None
    model.initialize(v, context=context)
    z, logdet = model.transform(v, context=context)
    back, minus = model.inverse(z, context=context)
    torch.testing.assert_close(back, v, rtol=0, atol=1e-9)
    torch.testing.assert_close(minus, -logdet, rtol=0, atol=1e-9)
    expected = [
        jacobian_logdet(lambda x, c=c: model._transform(x, c)[0], one)
        for one, c in zip(v.split(1), [None] * 4 if context is None else context.split(1), strict=True)
    ]
    torch.testing.assert_close(logdet, torch.cat(expected), rtol=0, atol=1e-10)
    normal = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
    torch.testing.assert_close(model.log_prob(v, context=context), normal + logdet)


@pytest.mark.parametrize("make", FLAT)
def test_images_as_vectors(make: Make) -> None:
    model = perturbed(make((1, 2, 3), 17, num_classes=3), 0.1)
    x, y = torch.randint(17, (6, 1, 2, 3)), torch.arange(6) % 3
    model.initialize(x, y)
    assert torch.equal(model.decode(model.encode(x, y), y).long(), x)
    log_prob = model.log_prob(x, y, generator=7)
    assert torch.equal(log_prob, model.log_prob(x, y, generator=7))
    assert not torch.equal(log_prob, model.log_prob(x, y, generator=8))
    joint = model.class_log_prob(x, generator=7)
    torch.testing.assert_close(joint.gather(1, y[:, None])[:, 0], log_prob)
    samples = model.sample(5, 1, generator=0)
    assert samples.shape == (5, 1, 2, 3)
    assert samples.dtype == torch.uint8
    assert samples.max() <= 16


@pytest.mark.parametrize(
    ("shape", "scales", "chosen"),
    [((1, 8, 8), None, 1), ((1, 28, 28), None, 2), ((3, 32, 32), None, 3), ((2, 4, 8), 2, 2)],
)
def test_images(shape: tuple[int, int, int], scales: int | None, chosen: int) -> None:
    model = perturbed(SplineFlow(shape, 17, num_classes=2, scales=scales, couplings=3, hidden=4, blocks=1), 0.05)
    assert len(model.scales) == chosen
    v, y = 17 * torch.rand(2, *shape, dtype=torch.float64), torch.tensor([0, 1])
    with torch.no_grad():
        z, logdet = model.transform(v, y)
        back, minus = model.inverse(z, y)
    assert z.shape == (2, math.prod(shape))
    torch.testing.assert_close(back, v, rtol=0, atol=1e-7)
    torch.testing.assert_close(minus, -logdet, rtol=0, atol=1e-7)
    if math.prod(shape) <= 64:
        condition = model.condition(2, y, None).double()
        expected = [
            jacobian_logdet(lambda x, c=c: model._transform(x, c)[0], one)
            for one, c in zip(v.split(1), condition.split(1), strict=True)
        ]
        torch.testing.assert_close(logdet, torch.cat(expected), rtol=0, atol=1e-9)
    x = torch.randint(17, (3, *shape))
    assert torch.equal(model.decode(model.encode(x, torch.zeros(3).long()), torch.zeros(3).long()).long(), x)
    assert model.sample(2, generator=0).shape == (2, *shape)


@pytest.mark.parametrize("make", FLAT)
def test_density_integrates_to_one(make: Make) -> None:
    model = perturbed(make(2), 0.1)
    axis = torch.linspace(-12, 12, 401, dtype=torch.float64)
    with torch.no_grad():
        mass = model.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-3)  # slopes of splines have kinks, of ReLUs jumps


@pytest.mark.parametrize("make", FLAT)
def test_learns_to_tell_labels_apart(make: Make) -> None:
    """From data far from the origin and of another scale, which the first batch standardises."""
    torch.manual_seed(0)
    model = make(2, num_classes=2)
    y = torch.arange(256) % 2
    x = 100 + 30 * torch.randn(256, 2) + 100 * (2.0 * y - 1)[:, None]
    model.initialize(x, y)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(x, y).backward()
        optimizer.step()
    model.eval()
    assert (model.log_posterior(x).argmax(1) == y).float().mean() > 0.97
    assert (model.sample(200, 1, generator=0).mean(1) > 100).float().mean() > 0.9
    assert (model.sample(200, 0, generator=0).mean(1) < 100).float().mean() > 0.9


@pytest.mark.parametrize("make", [*ALL, lambda **options: SplineFlow((1, 4, 4), 5, hidden=4, blocks=1, **options)])
def test_gradients_reach_every_parameter(make: Make) -> None:
    model = perturbed(make(context_features=2), 0.1)
    x = torch.randint(5, (4, *model.shape)) if model.levels else torch.randn(4, 3)
    model(x, context=torch.randn(4, 2)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("make", [*ALL, lambda **options: SplineFlow((1, 4, 4), 5, hidden=4, blocks=1, **options)])
def test_checkpoints(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    model = perturbed(make(context_features=2), 0.1)
    x = torch.randint(5, (4, *model.shape)) if model.levels else torch.randn(4, 3, dtype=torch.float64)
    context = torch.randn(4, 2, dtype=torch.float64)
    model.initialize(x, context=context)
    model.save(tmp_path)
    loaded = models.load(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(
        loaded.log_prob(x, context=context, generator=0), model.log_prob(x, context=context, generator=0)
    )
    assert torch.equal(loaded.sample(4, context=context, generator=0), model.sample(4, context=context, generator=0))


@pytest.mark.parametrize("make", FLAT)
def test_samples_do_not_depend_on_their_batch(make: Make) -> None:
    model = perturbed(make(num_classes=3), 0.1).float()
    several = model.sample(9, [1] * 9, generator=5)
    assert torch.equal(model.sample(2, 1, generator=5, first_sample=4), several[4:6])


@pytest.mark.parametrize("make", [*ALL, lambda **options: SplineFlow((1, 4, 4), 5, hidden=4, blocks=1, **options)])
def test_the_loss_compiles_without_a_break(make: Make) -> None:
    model = perturbed(make(), 0.1)
    x = torch.randint(5, (3, *model.shape)) if model.levels else torch.randn(3, 3, dtype=torch.float64)
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), expected)


@pytest.mark.parametrize("make", [_maf, _coupling, _autoregressive])
def test_trains_under_autocast(make: Make) -> None:
    model, x = perturbed(make(), 0.1).float(), torch.randn(16, 3)
    exact = model.log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.log_prob(x)
        model(x).backward()
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0, atol=1.0)
    assert not torch.equal(rounded, exact)


def test_a_first_batch_standardises() -> None:
    model = MAF(2, layers=1, hidden=4)
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    model.initialize(x)
    assert isinstance(model.layers[0], Standardize)
    assert model.layers[0].mean.tolist() == [2, 5]
    assert model.layers[0].std.tolist() == [1, 1]
    torch.testing.assert_close(model.encode(x), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    composite = CompositeFlow(2, [{"layer": "standardize"}, {"layer": "lu"}])
    composite.initialize(x)
    assert composite.layers[0].mean.tolist() == [0, 0]  # it has its own
    pixels = MAF((1, 1, 2), 4, layers=1, hidden=4)
    pixels.initialize(torch.tensor([[[[0, 3]]], [[[1, 3]]]]))
    assert pixels.layers[0].mean[0] < pixels.layers[0].mean[1]


def test_empty_batches() -> None:
    for make in FLAT:
        model: Any = make(2, num_classes=2)
        x, y = torch.zeros(0, 2), torch.zeros(0).long()
        assert model.log_prob(x, y).shape == (0,)
        assert model.decode(model.encode(x, y), y).shape == x.shape
        assert model.sample(0).shape == x.shape


# --- what goes in wrong ----------------------------------------------------------------------------------------------


def test_wrong_data() -> None:
    for make in FLAT:
        model: FlatFlow = make(2)  # type: ignore[assignment]
        with pytest.raises(ValueError, match=r"expected x of shape \[B, 2\], got \[3, 4\]"):
            model.log_prob(torch.zeros(3, 4))
        with pytest.raises(TypeError, match=r"expected x of a floating-point dtype, got torch.int64"):
            model.log_prob(torch.zeros(3, 2).long())
        with pytest.raises(ValueError, match=r"expected z of shape \[B, 2\], got \[1, 3\]"):
            model.decode(torch.zeros(1, 3))
        pixels = make((1, 1, 2), 4)
        with pytest.raises(ValueError, match=r"expected levels in \[0, 4\), got 4"):
            pixels.log_prob(torch.tensor([[[[0, 4]]]]))
        with pytest.raises(TypeError, match=r"expected integer levels 0 \.\. 3"):
            pixels.encode(torch.zeros(1, 1, 1, 2))


@pytest.mark.parametrize("cls", [MAF, IAF, SplineFlowFlat])
def test_wrong_constructions(cls: type[FlatFlow]) -> None:
    for name in ("layers", "hidden", "blocks", "context_features"):
        with pytest.raises((TypeError, ValueError), match=r"as an integer, got 2\.5"):
            cls(3, **{name: 2.5})
    with pytest.raises(ValueError, match="expected layers >= 1, got 0"):
        cls(3, layers=0)
    with pytest.raises(ValueError, match="expected every size in shape >= 1, got 0"):
        cls(0)
    with pytest.raises(TypeError, match=r"expected every size in shape as an integer, got 2\.0"):
        cls(2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected levels >= 2, got 1"):
        cls((1, 2, 2), 1)
    with pytest.raises(ValueError, match=r"expected nonlinearity as one of relu, .*, got 'gelu'"):
        cls(3, nonlinearity="gelu")


def test_wrong_spline_flows() -> None:
    with pytest.raises(ValueError, match="expected coupling as one of coupling, autoregressive, got 'affine'"):
        SplineFlowFlat(3, coupling="affine")
    with pytest.raises(ValueError, match=r"expected 2 features or more, .* got 1"):
        SplineFlowFlat(1)
    assert SplineFlowFlat(1, coupling="autoregressive", layers=1).sample(2, generator=0).shape == (2, 1)
    with pytest.raises(ValueError, match=r"expected no dropout in masked nets, got 0\.1"):
        SplineFlowFlat(3, coupling="autoregressive", dropout=0.1)
    with pytest.raises(ValueError, match="expected bins from 2 to 64, got 1"):
        SplineFlowFlat(3, bins=1)
    with pytest.raises(ValueError, match="expected bounds as a positive number"):
        SplineFlowFlat(3, bound=0.0)
    with pytest.raises(ValueError, match=r"expected shape as \(C, H, W\), got \(8, 8\)"):
        SplineFlow((8, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected shape as \(C, H, W\), got 8"):
        SplineFlow(8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="divisible by 2, to be halved 1 times, got 5 x 8"):
        SplineFlow((1, 5, 8), 17)
    with pytest.raises(ValueError, match="expected couplings >= 2, got 1"):
        SplineFlow((1, 8, 8), 17, couplings=1)
    with pytest.raises(ValueError, match="expected scales >= 1, got 0"):
        SplineFlow((1, 8, 8), 17, scales=0)


@pytest.mark.parametrize(
    "layer",
    [
        {},
        {"layer": "glow"},
        {"layer": "coupling", "part": "first"},
        {"layer": "coupling", "transform": {"name": "spline"}},
        {"layer": "autoregressive", "transform": {"name": "cubic"}},
        {"layer": "inverse"},
        {"layer": "permutation", "order": [2, 1, 0]},
        {"layer": "lu", "features": 4},
        {"layer": "inverse", "of": "lu"},
        {"layer": "autoregressive", "transform": "affine"},
        {"layer": "autoregressive", "transform": {"name": "affine"}},
    ],
)
def test_wrong_descriptions(layer: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match="expected layers as CompositeFlow describes them, got"):
        CompositeFlow(3, [layer])
    with pytest.raises(TypeError, match="expected layers as a sequence of mappings, got"):
        CompositeFlow(3, ["lu"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="expected layers as a sequence of mappings, got"):
        CompositeFlow(3, (layer for _ in range(2)))  # type: ignore[arg-type]


def test_tensors_that_a_context_is_made_for() -> None:
    model, x = perturbed(_maf(context_features=2), 0.2), torch.randn(3, 3, dtype=torch.float64)
    context: Tensor = torch.randn(3, 2, dtype=torch.float64)
    log_prob = model.log_prob(x, context=context)
    context[1] = torch.nan
    spoiled = model.log_prob(x, context=context)
    assert spoiled.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(spoiled[[0, 2]], log_prob[[0, 2]])
