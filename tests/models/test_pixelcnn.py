"""PixelCNN, its gated form and PixelCNN++: proper densities, causality, no blind spot, samples and completions."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen import models, ops
from pygen.models import Autoregressive, GatedPixelCNN, PixelCNN, PixelCNNPlusPlus
from pygen.nn import CausalHead, MaskedConv2d, MixtureHead, NormalizedConv2d

from .test_layers import perturbed

Build = Callable[..., Autoregressive]


def plain(shape: tuple[int, int, int], levels: int, **options: int) -> Autoregressive:
    return perturbed(PixelCNN(shape, levels, hidden=6, blocks=2, **options), 0.3).eval()


def gated(shape: tuple[int, int, int], levels: int, **options: int) -> Autoregressive:
    return perturbed(GatedPixelCNN(shape, levels, hidden=12, layers=3, **options), 0.3).eval()


def dilated(shape: tuple[int, int, int], levels: int, **options: int) -> Autoregressive:
    return perturbed(GatedPixelCNN(shape, levels, hidden=12, layers=3, dilations=(1, 2), **options), 0.3).eval()


def plusplus(shape: tuple[int, int, int], levels: int, **options: int) -> Autoregressive:
    model = PixelCNNPlusPlus(shape, levels, hidden=6, blocks=1, mixtures=3, **options)
    model.initialize(
        torch.randint(levels, (8, *shape)),
        torch.zeros(8, dtype=torch.int64) if "num_classes" in options else None,
        context=torch.randn(8, options["context_features"]) if "context_features" in options else None,
    )
    return perturbed(model, 0.1).eval()


BUILDS = [plain, gated, dilated, plusplus]


def images(shape: tuple[int, ...], levels: int) -> Tensor:
    """All there are."""
    count = torch.Size(shape).numel()
    return torch.tensor(list(itertools.product(range(levels), repeat=count))).view(-1, *shape)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(("shape", "levels"), [((1, 4, 4), 2), ((3, 1, 2), 4), ((2, 2, 1), 5)])
def test_probabilities_of_all_images_sum_to_one(build: Build, shape: tuple[int, int, int], levels: int) -> None:
    model = build(shape, levels, num_classes=2)
    for y in range(2):
        with torch.no_grad():
            parts = [model.log_prob(x, torch.full((len(x),), y)) for x in images(shape, levels).split(8192)]
        assert torch.cat(parts).double().logsumexp(0).exp().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_causality(build: Build, channels: int) -> None:
    """What comes later in raster order, or is a later channel, changes nothing: exact zeros."""
    model = build((channels, 6, 5), 8)
    x = torch.randint(8, (1, channels, 6, 5))
    together = 1 if isinstance(model.head, CausalHead) else channels

    def distributions(x: Tensor) -> Tensor:  # of the factors in their order, one row each
        h = model._features(model._scaled(x), None)
        if isinstance(model.head, CausalHead):
            return model.head.logits(h.movedim(1, -1).flatten(0, 2)).flatten(0, 1)
        return model.head.parameters_of(h).movedim(1, -1).flatten(0, 2)

    before = distributions(x)
    order = torch.arange(6 * 5 * channels).view(6, 5, channels).permute(2, 0, 1)
    for channel, row, column in itertools.product(range(channels), range(6), range(5)):
        place = order[channel, row, column] // together
        changed = x.clone()
        changed[0, channel, row, column] = (changed[0, channel, row, column] + 3) % 8
        after = distributions(changed)
        assert torch.equal(after[: place + 1], before[: place + 1])
        if place + together < len(before) and column < 4:
            assert not torch.equal(after[place + 1 :], before[place + 1 :])


@pytest.mark.parametrize("kind", ["plain", "gated", "plusplus"])
def test_blind_spot(kind: str) -> None:
    """A mask of 3x3 never looks up and further right than one column a row; two stacks do."""
    torch.manual_seed(0)
    kinds: dict[str, Autoregressive] = {
        "plain": PixelCNN((1, 12, 9), 4, hidden=6, blocks=8),
        "gated": GatedPixelCNN((1, 12, 9), 4, hidden=6, layers=8),
        "plusplus": PixelCNNPlusPlus((1, 12, 9), 4, hidden=6, blocks=2).eval(),
    }
    model, blind = kinds[kind].double(), kind == "plain"
    x = torch.randn(1, 1, 12, 9, dtype=torch.float64, requires_grad=True)
    h = model._features(x, None)[0, :, 11, 2].square().sum()
    reached = torch.autograd.grad(h, x)[0][0, 0] != 0
    place = torch.arange(12 * 9).view(12, 9)
    before = place < place[11, 2]
    assert not reached[~before].any()
    # 8 layers of 3x3 above one of 7x7 reach 11 rows up, and 11 columns to either side
    assert reached[1:11].all() != blind
    assert reached[before].sum() < before.sum() if blind else reached[before][9 if kind == "gated" else 0 :].all()


@pytest.mark.parametrize("build", BUILDS)
def test_samples_and_completions(build: Build) -> None:
    model = build((3, 3, 4), 5, num_classes=3)
    y = torch.tensor([0, 1, 2, 1, 0])
    x = model.sample(5, y, generator=7)
    assert x.shape == (5, 3, 3, 4)
    assert x.dtype == torch.uint8
    assert x.max() < 5
    assert torch.equal(model.sample(2, y[3:], generator=7, first_sample=3), x[3:])
    known = torch.zeros(3, 3, 4, dtype=torch.bool)
    known[:, :2] = True  # rows
    assert torch.equal(model.complete(x, known, y, generator=7), x)  # the same numbers draw the rest
    other = model.complete(x, known, y, generator=8)
    assert torch.equal(other[:, :, :2], x[:, :, :2])
    assert not torch.equal(other, x)
    likely = model.sample(3, 0, generator=0, temperature=0)
    assert torch.equal(likely[1], model.sample(1, 0, generator=5, temperature=0)[0])


def test_samples_follow_the_density() -> None:
    model = gated((1, 2, 2), 2)
    every = images((1, 2, 2), 2)
    with torch.no_grad():
        expected = 4000 * model.log_prob(every).double().exp()
    drawn = model.sample(4000, generator=0).flatten(1).long() @ torch.tensor([8, 4, 2, 1])
    counts = drawn.bincount(minlength=16)
    assert ((counts - expected).square() / expected).sum() < 37.7  # chi-square, 15 degrees of freedom: 0.001


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 4)])
def test_every_parameter_has_a_gradient(build: Build, shape: tuple[int, int, int]) -> None:
    """Processes that train together wait for all of them."""
    model = build(shape, 4, num_classes=2)
    model(torch.randint(4, (2, *shape)), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_checkpoint(build: Build, channels: int, tmp_path: Path) -> None:
    model = build((channels, 4, 4), 3, context_features=2)
    model.save(tmp_path)
    loaded = models.load(tmp_path)
    x, context = torch.randint(3, (4, channels, 4, 4)), torch.randn(4, 2)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again.log_prob(x, context=context), model.log_prob(x, context=context))
    assert torch.equal(loaded.log_prob(x, context=context), model.log_prob(x, context=context))


def test_published_size() -> None:
    with torch.device("meta"):
        model = PixelCNNPlusPlus((3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) == 53_659_080  # "53.6 million" in the paper's table


def test_initialization_by_data() -> None:
    """Every convolution makes numbers of mean 0 and standard deviation 1, or 0.1 in front of a gate."""
    torch.manual_seed(0)
    model = PixelCNNPlusPlus((3, 9, 6), 256, hidden=8, blocks=1, num_classes=2).double()
    x, y = torch.randint(256, (16, 3, 9, 6)), torch.randint(2, (16,))
    model.initialize(x, y)
    assert model.training
    seen = 0

    def check(layer: torch.nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], _: Tensor) -> None:
        nonlocal seen
        assert isinstance(layer, NormalizedConv2d)
        options = {**layer.options, "activation": None, "output_size": kwargs.get("output_size")}
        made = ops.masked_conv2d(args[0], layer.weight, layer.bias, taps=layer.taps, **options)
        variance, mean = torch.var_mean(made, (0, 2, 3), correction=0)
        assert mean.abs().max() < 1e-6
        assert torch.allclose(variance.sqrt(), torch.full_like(variance, layer.init_scale), atol=1e-4)
        seen += 1

    for layer in model.modules():
        if isinstance(layer, NormalizedConv2d):
            layer.register_forward_hook(check, with_kwargs=True)
    model.eval().log_prob(x, y)
    assert seen == 3 + 3 * 5 + 4 + 5 * 6 + 4 + 1
    assert all(abs(layer.v.std() - 0.05) < 0.01 for layer in model.modules() if isinstance(layer, NormalizedConv2d))
    storage = {name: p.data_ptr() for name, p in model.named_parameters()}
    model.initialize(torch.zeros_like(x), y)  # constant channels
    assert all(p.isfinite().all() for p in model.parameters())
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == storage  # as DDP and shared memory know them


def test_initialization_refuses_what_it_cannot_use() -> None:
    model = PixelCNNPlusPlus((1, 4, 4), 8, hidden=4, blocks=1, num_classes=2)
    before = copy.deepcopy(model.state_dict())
    x, y = torch.randint(8, (2, 1, 4, 4)), torch.tensor([0, 1])
    for bad, labels, message in (
        (x + 300, y, "levels in"),
        (x[:0], y[:0], "at least one image"),
        (x, None, "labels y"),
    ):
        with pytest.raises(ValueError, match=message):
            model.initialize(bad, labels)
        assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    model.up[0].eval()
    model.initialize(x, y)
    assert [stage.training for stage in model.up[:2]] == [False, True]


def test_normalized_weights_from_dense() -> None:
    layer = NormalizedConv2d(3, 4, ops.causal_taps(3))
    dense = torch.randn(4, 3, 3, 3)
    layer.from_dense(dense)
    assert torch.allclose(layer.weight, ops.weight_from_dense(dense, layer.taps), atol=1e-6)
    assert torch.allclose(layer.to_dense(3), ops.weight_to_dense(layer.weight, layer.taps, 3))
    dense[1] = 0
    layer.from_dense(dense)
    assert torch.equal(layer.weight[..., 1], torch.zeros(5, 3))
    shifted = NormalizedConv2d(3, 4, ((-2, 0), (-1, 1)))
    shifted.from_dense(torch.randn(4, 3, 2, 3), centre=(2, 1))
    with pytest.raises(ValueError, match=r"\[4, 3, height, width\], got \[1, 1, 3, 3\]"):
        layer.from_dense(torch.ones(1, 1, 3, 3))


@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("activation", [None, "gate"])
def test_dense_kernels_hold_nothing_that_a_channel_mask_leaves_out(
    kind: str, interleaved: bool, activation: str | None
) -> None:
    options = {"channel_mask": kind, "interleaved": interleaved, "activation": activation}
    layer = MaskedConv2d(6, 12, ops.causal_taps(3), **options)
    x = torch.randn(2, 6, 4, 4)
    dense = torch.nn.functional.conv2d(x, layer.to_dense(3), layer.bias, padding=1)
    if activation:
        a, b = dense.chunk(2, 1)
        dense = a.tanh() * b.sigmoid()
    assert torch.allclose(layer(x), dense, atol=1e-6)


def test_dropout_is_of_training_alone() -> None:
    model = PixelCNNPlusPlus((1, 4, 4), 4, hidden=6, blocks=1)
    x = torch.randint(4, (2, 1, 4, 4))
    model.initialize(x)
    torch.manual_seed(0)
    first = model.train()(x)
    assert not torch.equal(model(x), first)
    torch.manual_seed(0)
    assert torch.equal(model(x), first)
    assert torch.equal(model.eval()(x), model(x))
    drawn = model.train().sample(3, generator=0)
    assert torch.equal(drawn, model.sample(3, generator=0))
    assert model.training


@pytest.mark.parametrize("build", BUILDS)
def test_autocast(build: Build) -> None:
    model = build((1, 4, 4), 4, num_classes=2).float()
    x, y = torch.randint(4, (2, 1, 4, 4)), torch.tensor([0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x, y)
    assert torch.allclose(loss, model(x, y), rtol=0.02)


@pytest.mark.parametrize("build", BUILDS)
def test_temperatures(build: Build) -> None:
    model = build((1, 3, 3), 4)
    assert torch.equal(model.sample(3, generator=0, temperature=1e-40), model.sample(3, generator=0, temperature=0))
    for wrong in (True, "1", None):
        with pytest.raises(TypeError, match="temperature as a number"):
            model.sample(1, temperature=wrong)  # type: ignore[arg-type]


def test_spatial_context() -> None:
    """Alike everywhere it is a vector; at a place it shifts what is in its row and below."""
    maps = perturbed(GatedPixelCNN((1, 5, 4), 4, context_features=2, spatial_context=True, hidden=6, layers=2), 0.3)
    vectors = GatedPixelCNN((1, 5, 4), 4, context_features=2, hidden=6, layers=2)
    state = {
        name: tensor[0].T if name.endswith("condition.weight") else tensor for name, tensor in maps.state_dict().items()
    }
    vectors.double().load_state_dict(state)
    x, context = torch.randint(4, (3, 1, 5, 4)), torch.randn(3, 2).double()
    everywhere = context[..., None, None].expand(-1, -1, 5, 4)
    expected = vectors.log_prob(x, context=context)
    assert torch.allclose(maps.log_prob(x, context=everywhere), expected)
    here = everywhere.clone()
    here[:, :, 2, 1] += 1
    nll = [maps.head.nll(maps._features(maps._scaled(x), c), x).flatten(1) for c in (everywhere, here)]
    assert torch.equal(nll[0][:, : 2 * 4], nll[1][:, : 2 * 4])
    assert not torch.equal(nll[0][:, 2 * 4 + 1], nll[1][:, 2 * 4 + 1])
    drawn = maps.sample(3, generator=0, context=everywhere)
    assert torch.equal(drawn[2:], maps.sample(1, generator=0, context=everywhere[2:], first_sample=2))
    labelled = GatedPixelCNN((1, 5, 4), 4, num_classes=3, context_features=2, spatial_context=True, hidden=6, layers=1)
    assert labelled.log_prob(x, torch.tensor([0, 1, 2]), context=here.float()).shape == (3,)
    with pytest.raises(ValueError, match=r"context of shape \(3, 2, 5, 4\), got \(3, 2\)"):
        maps.log_prob(x, context=context)


def test_errors() -> None:
    with pytest.raises(ValueError, match="multiple of the 3 channels, got 8"):
        PixelCNN((3, 4, 4), hidden=8)
    with pytest.raises(ValueError, match="odd kernel"):
        GatedPixelCNN((1, 4, 4), kernel=4)
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        GatedPixelCNN((4, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape >= 1, got 0"):
        PixelCNN((0, 4, 4))
    with pytest.raises(ValueError, match="dilations >= 1, got 0"):
        GatedPixelCNN((1, 4, 4), dilations=(1, 0))
    with pytest.raises(ValueError, match="multiple of the 3 channels, got 8"):
        CausalHead(8, 3, 4)
    with pytest.raises(ValueError, match=r"dropout in \[0, 1\), got 1"):
        PixelCNNPlusPlus((1, 4, 4), dropout=1)
    with pytest.raises(ValueError, match="blocks >= 1, got 0"):
        PixelCNNPlusPlus((1, 4, 4), blocks=0)
    with pytest.raises(ValueError, match="layers >= 0, got -1"):
        GatedPixelCNN((1, 4, 4), layers=-1)
    with pytest.raises(ValueError, match="context_features >= 1 with spatial_context"):
        GatedPixelCNN((1, 4, 4), spatial_context=True)
    with pytest.raises(TypeError, match="dilations as a tuple"):
        GatedPixelCNN((1, 4, 4), dilations=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="levels <= 65536, got 70000"):
        MixtureHead(4, 3, 70000)
    with pytest.raises(TypeError, match="activaton"):
        MaskedConv2d(4, 4, ((0, 0),), activaton="relu")
    with pytest.raises(ValueError, match="channels_out divisible by 6, got 9"):
        ops.channel_links(3, 9, "A", gated=True)
    with pytest.raises(ValueError, match="distinct taps"):
        MaskedConv2d(4, 4, ((0, 0), (0, 0)))
    with pytest.raises(ValueError, match="at least one tap"):
        MaskedConv2d(4, 4, ())
    with pytest.raises(ValueError, match="mixtures >= 1, got 0"):
        PixelCNNPlusPlus((1, 4, 4), mixtures=0)
    with pytest.raises(ValueError, match="levels <= 65536, got 65537"):
        PixelCNNPlusPlus((1, 4, 4), 65537)
    green = torch.zeros(3, 4, 4, dtype=torch.bool)
    green[1] = True
    with pytest.raises(ValueError, match="same for all channels"):
        plusplus((3, 4, 4), 4).complete(torch.zeros(1, 3, 4, 4, dtype=torch.int64), green)
    model = gated((1, 4, 4), 3)
    whole = torch.ones(1, 4, 4, dtype=torch.bool)
    for call in (model.log_prob, lambda x: model.complete(x, whole)):
        with pytest.raises(ValueError, match=r"levels in \[0, 3\), got 3"):
            call(torch.full((1, 1, 4, 4), 3))
        with pytest.raises(ValueError, match=r"levels in \[0, 3\), got -1"):
            call(torch.full((1, 1, 4, 4), -1))
        with pytest.raises(TypeError, match="integer levels"):
            call(torch.zeros(1, 1, 4, 4))
    with pytest.raises(TypeError, match=r"integer levels 0 \.\. 2, got torch.float32"):
        model.log_prob(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"\[B, 1, 4, 4\]"):
        model.log_prob(torch.zeros(1, 1, 4, 5, dtype=torch.int64))


def test_bayes() -> None:
    model = gated((1, 3, 3), 4, num_classes=3)
    x = torch.randint(4, (5, 1, 3, 3))
    joint = torch.stack([model.log_prob(x, torch.full((5,), y)) for y in range(3)], 1)
    assert torch.allclose(models.classify(model, x), joint.softmax(1))
    prior = torch.tensor([1.0, 0.0, 3.0])
    posterior = models.classify(model, x, prior=prior)
    assert torch.allclose(posterior, prior * joint.exp() / (prior * joint.exp()).sum(1, keepdim=True))
    assert torch.equal(models.outlier_score(model, x), model.bits_per_dim(x).detach())
    with pytest.raises(ValueError, match=r"prior \[3\].*got \[2\]"):
        models.classify(model, x, prior=prior[:2])
    with pytest.raises(ValueError, match="prior >= 0"):
        models.classify(model, x, prior=-prior)
    with pytest.raises(ValueError, match="finite"):
        models.classify(model, x, prior=prior / 0)
    with pytest.raises(ValueError, match="labels"):
        models.classify(gated((1, 3, 3), 4), x)
