"""made_inverse against what it replaces: the net run once per feature, autograd through that, and nflows."""

from __future__ import annotations

import pytest
import torch

from pygen import ops
from pygen.reference.made_inverse import apply_transform, made
from tests.harness import backend
from tests.harness.calls import same_bits
from tests.made_inverse.samples import TRANSFORMS, layers, sample, samples

SAMPLES = list(samples())


def arguments(s, dtype=torch.float64):
    given = {name: None if t is None else t.to(dtype) for name, t in s.inputs.items()}
    options = dict(s.options["options"])
    net = {name: options.pop(name) for name in ("nonlinearity", "residual")}
    return given.pop("y"), layers(given, s.options["degrees"]), net, options.pop("transform", "affine"), options


def loop(y, layers, net, transform, options):
    """As MAF's authors and nflows do it: D passes of the whole net, each of which makes one more feature right."""
    x = torch.zeros_like(y)
    slopes = x
    for _ in range(y.shape[1]):
        x, slopes = apply_transform(y, made(x, *layers, **net), transform, options, True)
    return x, slopes.sum(1)


@pytest.mark.parametrize("implementation", backend.ALL, ids=str)
@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_one_sweep_is_the_loop(s, implementation):
    y, *rest = arguments(s)
    with implementation.active():
        x, logabsdet = ops.made_inverse(y, *rest[0], transform=rest[2], **rest[1], **rest[3])
    expected, expected_logabsdet = loop(y, *rest)
    torch.testing.assert_close(x, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(logabsdet, expected_logabsdet, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_round_trip(s):
    y, net, how, transform, options = arguments(s)
    x, logabsdet = ops.made_inverse(y, *net, transform=transform, **how, **options)
    back, slopes = apply_transform(x, made(x, *net, **how), transform, options, False)
    torch.testing.assert_close(back, y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slopes.sum(1), -logabsdet, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("transform", ["maf", "before", "spline"])
def test_implicit_gradients_are_those_of_the_loop(transform):
    s = sample(f"gradients {transform}", 6, 5, 9, transform, ("tanh", True), 3, "shuffled", per_sample=True)
    y, (weights, biases, degrees), net, name, options = arguments(s)
    leaves = [t.requires_grad_() for t in (y, *weights, *biases)]
    upstream = torch.randn_like(y), torch.randn_like(y[:, 0])
    ours = torch.autograd.grad(
        ops.made_inverse(y, weights, biases, degrees, transform=name, **net, **options), leaves, upstream
    )
    theirs = torch.autograd.grad(loop(y, (weights, biases, degrees), net, name, options), leaves, upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("implementation", backend.TIERS, ids=str)
@pytest.mark.parametrize("transform", ["maf", "spline"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_sample_is_the_same_in_any_batch(transform, dtype, implementation):
    """However many vectors of samples are worked on together, and whatever is beside it."""
    s = sample(f"batches {transform}", 200, 6, 23, transform, hidden=3)
    y, net, how, name, options = arguments(s, dtype)
    with implementation.active():
        whole, _ = ops.made_inverse(y, *net, transform=name, **how, **options)
        for first, last in ((0, 1), (3, 12), (7, 40), (1, 100), (60, 200)):
            part, _ = ops.made_inverse(y[first:last], *net, transform=name, **how, **options)
            assert same_bits(part, whole[first:last]), (first, last)


def test_gradient_of_a_part():
    """Only what is asked for is computed, and what is not has none."""
    s = sample("part", 4, 3, 5)
    y, (weights, biases, degrees), net, name, options = arguments(s)
    biases[1].requires_grad_()
    x, _ = ops.made_inverse(y, weights, biases, degrees, transform=name, **net, **options)
    x.sum().backward()
    assert biases[1].grad is not None
    assert weights[0].grad is None
    assert y.grad is None


def test_every_transform_is_tried():
    assert {s.traits["transform"] for s in SAMPLES} == set(TRANSFORMS)


def test_what_is_no_tensor_or_no_option():
    y, weights, biases = torch.zeros(2, 3), [torch.zeros(4, 3), torch.zeros(6, 4)], [torch.zeros(4), torch.zeros(6)]
    degrees = [torch.tensor([1, 2, 3]), torch.tensor([1, 2, 1, 2])]

    def refused(error, message, *given, **options):
        with pytest.raises(error, match=message):
            ops.made_inverse(*given, residual=False, **options)

    refused(TypeError, "expected y as a tensor, got list", [[0.0] * 3], weights, biases, degrees)
    refused(TypeError, r"expected biases\[1\] as a tensor, got NoneType", y, weights, [biases[0], None], degrees)
    refused(TypeError, r"expected degrees\[0\] as a tensor, got list", y, weights, biases, [[1, 2, 3], [1] * 4])
    refused(TypeError, "expected weights as a sequence of tensors, got Tensor", y, weights[0], biases, degrees)
    refused(
        ValueError, r"weights\[1\] of shape \[3, 4\], got \[2, 4\]", y, [weights[0], weights[1][:2]], biases, degrees
    )
    net = (y, weights, biases, degrees)
    parameters = torch.nn.ParameterList(weights), dict(enumerate(biases)).values(), iter(degrees)
    assert torch.equal(ops.made_inverse(y, *parameters, residual=False)[0], ops.made_inverse(*net, residual=False)[0])
    refused(TypeError, "expected options of the affine transform, activation, .* got 'scale'", *net, scale=1)
    refused(TypeError, "expected options of the spline transform, style, .* got 'eps'", *net, transform="spline", eps=1)
    refused((TypeError, ValueError), r"expected activation to be one of .* got \['exp'\]", *net, activation=["exp"])


# --- nflows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("context", [None, 3])
@pytest.mark.parametrize("features", [1, 2, 7])
def test_nflows(features, context, residual):
    transforms = pytest.importorskip("nflows.transforms")
    torch.manual_seed(3)
    theirs = transforms.MaskedAffineAutoregressiveTransform(
        features, 16, context_features=context, num_blocks=2, use_residual_blocks=residual
    ).double()
    net = theirs.autoregressive_net
    for parameter in net.parameters():  # theirs begins near zero
        torch.nn.init.normal_(parameter, std=0.3)
    y = torch.randn(9, features, dtype=torch.float64)
    c = None if context is None else torch.randn(9, context, dtype=torch.float64)
    linears, terms = [net.initial_layer], [net.activation(net.context_layer(c)) if context else None]
    for block in net.blocks:
        linears += block.linear_layers if residual else [block.linear]
        terms += [block.context_layer(c) if context else None, None] if residual else [None]
    linears.append(net.final_layer)
    terms.append(None)
    biases = [m.bias if t is None else m.bias + t for m, t in zip(linears, terms, strict=True)]
    degrees = [torch.arange(1, features + 1), *[m.degrees for m in linears[:-1]]]
    x, logabsdet = ops.made_inverse(
        y, [m.weight for m in linears], biases, degrees, residual=residual, activation="softplus", eps=1e-3
    )
    expected, expected_logabsdet = theirs.inverse(y, c)
    torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(logabsdet, expected_logabsdet, rtol=1e-10, atol=1e-10)
