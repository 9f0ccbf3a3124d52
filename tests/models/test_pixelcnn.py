"""PixelCNN and its gated form: proper densities, causality, no blind spot, samples and completions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pygen import models
from pygen.models import GatedPixelCNN, PixelCNN
from pygen.models.pixelcnn import Autoregressive
from pygen.nn import CausalHead

from .test_layers import perturbed

Build = Callable[..., Autoregressive]


def plain(shape: tuple[int, int, int], levels: int, **options: int) -> Autoregressive:
    return perturbed(PixelCNN(shape, levels, hidden=6, blocks=2, **options), 0.3).eval()


def gated(shape: tuple[int, int, int], levels: int, **options: int) -> Autoregressive:
    return perturbed(GatedPixelCNN(shape, levels, hidden=6, layers=3, **options), 0.3).eval()


def dilated(shape: tuple[int, int, int], levels: int, **options: int) -> Autoregressive:
    return perturbed(GatedPixelCNN(shape, levels, hidden=6, layers=3, dilations=(1, 2), **options), 0.3).eval()


BUILDS = [plain, gated, dilated]


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

    def logits(x: Tensor) -> Tensor:  # [C * H * W in the order of the factors, levels]
        h = model._features(model._scaled(x), None)
        return model.head.logits(h.movedim(1, -1).flatten(0, 2)).flatten(0, 1)

    before = logits(x)
    order = torch.arange(6 * 5 * channels).view(6, 5, channels).permute(2, 0, 1)
    for channel, row, column in itertools.product(range(channels), range(6), range(5)):
        place = order[channel, row, column]
        changed = x.clone()
        changed[0, channel, row, column] = (changed[0, channel, row, column] + 3) % 8
        after = logits(changed)
        assert torch.equal(after[: place + 1], before[: place + 1])
        if place + 1 < len(before) and column < 4:
            assert not torch.equal(after[place + 1 :], before[place + 1 :])


@pytest.mark.parametrize(("build", "blind"), [(plain, True), (gated, False)])
def test_blind_spot(build: Build, blind: bool) -> None:
    """A mask of 3x3 never looks up and further right than one column a row; two stacks do."""
    torch.manual_seed(0)
    if blind:
        model: Autoregressive = PixelCNN((1, 12, 9), 4, hidden=6, blocks=8).double()
    else:
        model = GatedPixelCNN((1, 12, 9), 4, hidden=6, layers=8).double()
    x = torch.randn(1, 1, 12, 9, dtype=torch.float64, requires_grad=True)
    h = model._features(x, None)[0, :, 11, 2].square().sum()
    reached = torch.autograd.grad(h, x)[0][0, 0] != 0
    place = torch.arange(12 * 9).view(12, 9)
    before = place < place[11, 2]
    assert not reached[~before].any()
    # 8 layers of 3x3 above one of 7x7 reach 11 rows up, and 11 columns to either side
    assert reached[1:11].all() != blind
    assert reached[before].sum() < before.sum() if blind else reached[before][9:].all()


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
    known[:, :2] = True
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
def test_checkpoint(build: Build, tmp_path: Path) -> None:
    model = build((1, 4, 4), 3, context_features=2)
    model.save(tmp_path)
    loaded = models.load(tmp_path)
    x, context = torch.randint(3, (4, 1, 4, 4)), torch.randn(4, 2)
    assert torch.equal(loaded.log_prob(x, context=context), model.log_prob(x, context=context))


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
