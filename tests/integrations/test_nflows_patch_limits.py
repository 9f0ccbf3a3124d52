"""What the patched inverse leaves to nflows, and what its flows may be made of."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import prune, weight_norm

from pygen.integrations.nflows import from_nflows, patch
from pygen.models import MAF, CompositeFlow, SplineFlowFlat
from pygen.nn import MADE, Affine, Permutation, Spline, Standardize

transforms = pytest.importorskip("nflows.transforms")


def layer(**options):
    torch.manual_seed(0)
    made = transforms.MaskedAffineAutoregressiveTransform(4, 9, **options)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.double().eval()


def linears(t):
    return [m for m in t.modules() if isinstance(m, torch.nn.Linear)]


def stale_weight_norm(t):
    for m in linears(t):
        weight_norm(m)
    with torch.no_grad():
        for parameter in t.parameters():
            parameter.add_(0.1)


def pruned(t):
    for m in linears(t):
        prune.random_unstructured(m, "weight", amount=0.3)
    with torch.no_grad():
        for parameter in t.parameters():
            parameter.add_(0.1)


def hooked(t):
    t.autoregressive_net.final_layer.register_forward_hook(lambda module, given, out: 2 * out)


def other_activation(t):
    t.autoregressive_net.blocks[0].activation = torch.tanh


def own_method(t):
    original = t._unconstrained_scale_and_shift
    t._unconstrained_scale_and_shift = lambda params: tuple(2 * each for each in original(params))


def tensor_eps(t):
    t._epsilon = torch.tensor(0.01, dtype=torch.float64)


@pytest.mark.parametrize("change", [stale_weight_norm, pruned, hooked, other_activation, own_method, tensor_eps])
def test_what_the_sweep_does_not_see_is_left_to_nflows(change):
    t, y = layer(), torch.randn(7, 4, dtype=torch.float64)
    change(t)
    with patch():
        x, logabsdet = t.inverse(y)
    expected, expected_logabsdet = t.inverse(y)
    torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logabsdet, expected_logabsdet, rtol=1e-12, atol=1e-12)


def test_bounds_that_are_tensors_are_left_to_nflows():
    t = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
        features=4, hidden_features=8, num_bins=5, tails="linear", tail_bound=torch.tensor(3.0)
    ).double()
    y = torch.randn(7, 4, dtype=torch.float64)
    with patch():
        x, _ = t.inverse(y)
    torch.testing.assert_close(x, t.inverse(y)[0])


def test_dropout_alone_in_training():
    t, y = layer(dropout_probability=0.5), torch.randn(7, 4, dtype=torch.float64)
    for m in t.modules():
        if isinstance(m, torch.nn.Dropout):
            m.train()
    with patch():
        torch.manual_seed(1)
        x, _ = t.inverse(y)
    torch.manual_seed(1)
    torch.testing.assert_close(x, t.inverse(y)[0])


def test_context_of_one_row():
    t, y, context = layer(context_features=2), *torch.randn(2, 7, 4, dtype=torch.float64)
    with patch():
        x, _ = t.inverse(y, context[:1, :2])
    torch.testing.assert_close(x, t.inverse(y, context[:1, :2])[0], rtol=1e-10, atol=1e-10)


def test_activations_that_differ_are_refused():
    from nflows import distributions, flows

    t = layer()
    other_activation(t)
    with pytest.raises(ValueError, match="one activation"):
        from_nflows(flows.Flow(t, distributions.StandardNormal([4])))


def test_degrees_that_fall():
    with pytest.raises(ValueError, match="2 and then 1"):
        MADE(3, 2, hidden=2, blocks=1, degrees=[[1, 2, 3], [2, 2], [1, 1], [1, 1]])


@pytest.mark.parametrize("make", [MAF, SplineFlowFlat])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flows_of_16_bits(make, dtype):
    model = make(3).to(dtype)
    x = model.sample(5, generator=0)
    assert x.dtype == dtype
    assert model.log_prob(x).isfinite().all()


def test_constant_features_keep_a_deviation_of_1():
    s = Standardize(1)
    s.observe(torch.full((1000, 1), 0.1))
    assert s.std.tolist() == [1.0]
    with pytest.raises(ValueError, match="at least one sample"):
        s.observe(torch.zeros(0, 1))


def test_flows_without_parameters():
    model = CompositeFlow(3, [{"layer": "permutation"}])
    assert isinstance(model.layers[0], Permutation)
    x = model.sample(4, generator=0)
    torch.testing.assert_close(model.log_prob(x), -0.5 * (x.square() + torch.tensor(2 * torch.pi).log()).sum(1))


def test_numbers_of_transforms():
    with pytest.raises(TypeError, match="eps"):
        Affine(torch.tensor(0.1))
    assert Spline(min_derivative=1.0).identity().isfinite().all()
