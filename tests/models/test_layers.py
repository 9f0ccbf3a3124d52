"""Layers: exact inverses, exact log-determinants, clear errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pygen.nn import AffineCoupling, Chain, Condition, Logit, ResidualNet, Squeeze, dequantize, quantize


def jacobian_logdet(function: object, x: Tensor) -> Tensor:
    """log |det| of the Jacobian for every sample of a batch, by autograd."""
    rows = [torch.autograd.functional.jacobian(lambda v: function(v[None])[0].flatten(), one) for one in x]
    return torch.stack([row.reshape(one.numel(), -1).slogdet()[1] for row, one in zip(rows, x, strict=True)])


def perturbed(module: torch.nn.Module, scale: float = 0.3) -> torch.nn.Module:
    """float64, with every parameter moved: couplings start as the identity, which would test little."""
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def test_squeeze_orders_channels_as_documented_and_inverts_exactly() -> None:
    x = torch.randn(2, 3, 4, 6)
    y, logdet = Squeeze()(x)
    assert y.shape == (2, 12, 2, 3)
    assert logdet is None
    for c in range(3):
        for i in range(2):
            for j in range(2):
                assert torch.equal(y[:, 4 * c + 2 * i + j], x[:, c, i::2, j::2])
    assert torch.equal(y, torch.nn.functional.pixel_unshuffle(x, 2))
    assert torch.equal(Squeeze()(y, inverse=True)[0], x)


def test_logit_inverts_and_its_logdet_is_the_jacobian() -> None:
    layer = Logit(levels=17, alpha=0.05)
    x = 17 * torch.rand(3, 1, 2, 2, dtype=torch.float64)
    y, logdet = layer(x)
    back, inverse_logdet = layer(y, inverse=True)
    # Worst of 8 seeds: 4e-15, one ulp of numbers up to 17, and 1e-15 in the sums.
    torch.testing.assert_close(back, x, rtol=0, atol=2e-14)
    torch.testing.assert_close(logdet, -inverse_logdet, rtol=0, atol=1e-14)
    torch.testing.assert_close(logdet, jacobian_logdet(lambda v: layer(v)[0], x), rtol=0, atol=1e-14)
    assert torch.equal(layer(x, torch.ones(3, dtype=torch.float64))[1], 1 + logdet)


def test_logit_at_the_ends_of_the_grey_scale() -> None:
    y, logdet = Logit(levels=2, alpha=0.05)(torch.tensor([[0.0], [2.0]]))
    assert y.flatten().tolist() == pytest.approx([math.log(0.05 / 0.95), math.log(0.95 / 0.05)], rel=1e-6)
    assert logdet.tolist() == pytest.approx([math.log(0.45 / (0.05 * 0.95))] * 2, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logit_computes_and_sums_in_float32_for_narrow_types(dtype: torch.dtype) -> None:
    layer = Logit(levels=17)
    x = (17 * torch.rand(3, 64)).to(dtype)
    for inverse in (False, True):
        y, logdet = layer(x, inverse=inverse)
        expected, expected_logdet = layer(x.float(), inverse=inverse)
        assert y.dtype == dtype
        assert torch.equal(y, expected.to(dtype))
        assert torch.equal(logdet, expected_logdet)


@pytest.mark.parametrize(("levels", "alpha"), [(1, 0.05), (17, 0.0), (17, 0.5)])
def test_logit_refuses(levels: int, alpha: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        Logit(levels, alpha)


@pytest.mark.parametrize("dims", [0, 2])
def test_nets_refuse(dims: int) -> None:
    sizes = {"in_channels": 2, "out_channels": 2, "hidden": 4, "blocks": 1, "condition_features": 0}
    for name in sizes:
        with pytest.raises(TypeError, match=rf"expected {name} as an integer, got 2\.0"):
            ResidualNet(**{**sizes, name: 2.0}, dims=dims)
        least = 0 if name in ("blocks", "condition_features") else 1
        with pytest.raises(ValueError, match=rf"expected {name} >= {least}, got {least - 1}"):
            ResidualNet(**{**sizes, name: least - 1}, dims=dims)


@pytest.mark.parametrize(("levels", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int64)])
def test_quantize_undoes_dequantize(levels: int, dtype: torch.dtype) -> None:
    x = torch.arange(levels)
    for noise in (0.0, 0.5, 0.99):
        back = quantize(dequantize(x, levels, noise, torch.float32), levels)
        assert back.dtype == dtype
        assert torch.equal(back.long(), x)
    assert quantize(torch.tensor([-0.3, levels + 0.3]), levels).tolist() == [0, levels - 1]


@pytest.mark.parametrize("wrong", [-1, 17])
def test_dequantize_refuses_levels_out_of_range(wrong: int) -> None:
    x = torch.tensor([[3], [wrong]])
    with pytest.raises(ValueError, match=rf"levels in \[0, 17\), got {wrong}"):
        dequantize(x, 17, 0.5, torch.float32)
    with pytest.raises(TypeError, match=r"integer levels 0 \.\. 16 .*got torch.float32"):
        dequantize(x.float(), 17, 0.5, torch.float32)
    with pytest.raises(ValueError, match=rf"levels in \[0, 17\), got {wrong}"):
        torch.compile(dequantize, backend="eager", fullgraph=True)(x, 17, 0.5, torch.float32)


@pytest.mark.parametrize("part", ["first", "second", "even", "odd"])
@pytest.mark.parametrize("dims", [0, 2])
def test_coupling_changes_its_part_only_and_sees_the_rest_only(part: str, dims: int) -> None:
    shape = (2, 4, 3, 5) if dims else (2, 4)
    half = part in ("first", "second")
    net = ResidualNet(2 if half else 4, 4 if half else 8, hidden=6, blocks=1, dims=dims)
    layer = perturbed(AffineCoupling(net, 2 if half else 4, part))
    x = torch.randn(shape, dtype=torch.float64)
    if half:
        changes = (torch.arange(4) < 2) == (part == "first")
        changes = changes[:, None, None].expand(shape[1:]) if dims else changes
    else:
        parity = torch.arange(shape[-1]) + (torch.arange(3)[:, None] if dims else 0)
        changes = (parity % 2 == (part == "odd")).expand(shape[1:])
    y, logdet = layer(x)
    assert torch.equal(y[:, ~changes], x[:, ~changes])
    assert (y[:, changes] != x[:, changes]).all()
    # What changes is affine in itself: the same scale and shift for other values of it.
    other = torch.where(changes, torch.randn_like(x), x)
    z, logdet_other = layer(other)
    assert torch.equal(logdet, logdet_other)
    slope = (z - y)[:, changes] / (other - x)[:, changes]
    torch.testing.assert_close(
        slope.log().sum(1), logdet, rtol=0, atol=1e-12
    )  # worst of 8 seeds 2e-14: differences cancel
    back, inverse_logdet = layer(y, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-14)  # worst of 8 seeds 5e-16
    assert torch.equal(inverse_logdet, -logdet)


def test_coupling_refuses() -> None:
    with pytest.raises(ValueError, match="expected part to be 'first', 'second', 'even' or 'odd', got 'all'"):
        AffineCoupling(torch.nn.Identity(), 2, "all")
    with pytest.raises(ValueError, match="expected channels >= 1, got 0"):
        AffineCoupling(torch.nn.Identity(), 0, "even")


def test_nets_start_at_zero_and_take_a_condition() -> None:
    net = ResidualNet(2, 6, hidden=5, blocks=2, dims=2, condition_features=3)
    x, condition = torch.randn(4, 2, 3, 3), torch.randn(4, 3)
    assert torch.equal(net(x, condition), torch.zeros(4, 6, 3, 3))
    net = perturbed(net)
    x, condition = x.double(), condition.double()
    assert not torch.equal(net(x, condition), net(x, condition.flip(0)))
    alone = net(x[:1], condition[:1])  # convolutions differ in the last bits between batch sizes
    torch.testing.assert_close(net(x, condition)[:1], alone, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"expected dims 2 \(images\) or 0 \(vectors\), got 1"):
        ResidualNet(2, 6, hidden=5, blocks=2, dims=1)


def test_chain_runs_backwards_for_the_inverse() -> None:
    nets = [ResidualNet(1, 2, hidden=4, blocks=1, dims=2), ResidualNet(2, 4, hidden=4, blocks=1, dims=2)]
    chain = perturbed(Chain([AffineCoupling(nets[0], 1, "even"), Squeeze(), AffineCoupling(nets[1], 2, "first")]))
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    y, logdet = chain(x)
    torch.testing.assert_close(logdet, jacobian_logdet(lambda v: chain(v)[0], x), rtol=0, atol=1e-12)
    back, inverse_logdet = chain(y, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(inverse_logdet, -logdet, rtol=0, atol=1e-12)


def test_condition_joins_label_and_context() -> None:
    condition = Condition(3, context_features=2, embedding=4)
    y, context = torch.tensor([2, 0]), torch.randn(2, 2)
    vector = condition(2, y, context)
    assert vector.shape == (2, condition.features) == (2, 6)
    assert torch.equal(vector[:, 4:], context)
    assert torch.equal(vector[:, :4], condition.embedding.weight[y])
    assert Condition()(2, None, None) is None


@pytest.mark.parametrize(
    ("y", "context", "error", "message"),
    [
        (None, torch.zeros(2, 2), ValueError, r"labels y of shape \(2,\).* got None"),
        (torch.tensor([0, 3]), torch.zeros(2, 2), ValueError, r"labels in \[0, 3\), got 3"),
        (torch.tensor([-1, 1]), torch.zeros(2, 2), ValueError, r"labels in \[0, 3\), got -1"),
        (torch.tensor([0]), torch.zeros(2, 2), ValueError, r"labels y of shape \(2,\), got \(1,\)"),
        (torch.tensor([0.0, 1.0]), torch.zeros(2, 2), TypeError, "integer tensor, got torch.float32"),
        ([0, 1], torch.zeros(2, 2), TypeError, "integer tensor, got list"),
        (torch.tensor([0, 1]), None, ValueError, r"context of shape \(2, 2\), got None"),
        (torch.tensor([0, 1]), torch.zeros(2, 3), ValueError, r"context of shape \(2, 2\), got \(2, 3\)"),
        (torch.tensor([0, 1]), torch.zeros(2, 2).long(), TypeError, "floating-point context, got torch.int64"),
    ],
)
def test_condition_refuses(y: object, context: Tensor | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Condition(3, context_features=2)(2, y, context)


def test_condition_refuses_what_the_model_does_not_take() -> None:
    with pytest.raises(ValueError, match="no labels"):
        Condition()(2, torch.tensor([0, 1]), None)
    with pytest.raises(ValueError, match="no context"):
        Condition()(2, None, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="num_classes >= 1"):
        Condition(0)
    with pytest.raises(ValueError, match="context_features >= 0"):
        Condition(2, -1)
    with pytest.raises(ValueError, match="embedding >= 1"):
        Condition(2, embedding=0)
    with pytest.raises(TypeError, match="expected num_classes as an integer, got True"):
        Condition(True)


def test_labels_out_of_range_are_nan_where_nobody_may_look() -> None:
    condition = torch.compile(Condition(3), backend="eager", fullgraph=True)
    assert condition(3, torch.tensor([0, 3, -1]), None).isnan().all(1).tolist() == [False, True, True]
