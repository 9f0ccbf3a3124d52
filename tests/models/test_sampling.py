"""Samples by their numbers: the same in batches of any size, from any of them; completions likewise."""

from __future__ import annotations

import pytest
import torch

from pygen import random, sampling
from pygen.models import DDPM, Model, PixelCNN, RealNVP, RealNVPFlat

from .test_layers import perturbed


def image_model(**options: object) -> RealNVP:
    return perturbed(RealNVP((1, 8, 8), 17, **{"hidden": 8, "blocks": 1, **options}), 0.1).float()


@pytest.mark.parametrize("labels", [None, 3])
def test_a_sample_depends_on_its_number_alone(labels: int | None) -> None:
    """To the bit, in float32 too, where library kernels round differently in batches of different sizes."""
    for model in (image_model(num_classes=labels), perturbed(RealNVPFlat(3, num_classes=labels)).float()):
        chunk = model.CHUNK
        whole = model.sample(2 * chunk + 5, generator=11)
        for first, n in ((0, 1), (3, 2), (chunk - 1, 2), (chunk, chunk), (5, 2 * chunk), (2 * chunk + 4, 1), (7, 0)):
            assert torch.equal(model.sample(n, generator=11, first_sample=first), whole[first : first + n])
        assert (whole[:chunk] != whole[chunk : 2 * chunk]).any()


def test_labels_and_contexts_go_with_the_numbers() -> None:
    model = image_model(num_classes=3, context_features=2)
    y, context = model.draw_labels(70, generator=5), torch.randn(70, 2)
    assert y.unique().tolist() == [0, 1, 2]
    assert torch.equal(model.draw_labels(4, generator=5, first_sample=66), y[66:])
    whole = model.sample(70, generator=5, context=context)
    assert torch.equal(whole, model.sample(70, y, generator=5, context=context))
    for part in (slice(0, 3), slice(62, 70)):
        n = part.stop - part.start
        again = model.sample(n, y[part], generator=5, context=context[part], first_sample=part.start)
        assert torch.equal(again, whole[part])
    spoiled = context.clone()
    spoiled[3] = torch.nan
    same = (model.sample(70, y, generator=5, context=spoiled) == whole).flatten(1).all(1)
    assert same[torch.arange(70) != 3].all()
    with pytest.raises(ValueError, match="expected a model with labels"):
        image_model().draw_labels(3)


def test_where_the_seed_comes_from() -> None:
    model = image_model()
    seed = random.seed_of(torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    first = model.sample(2, generator=generator)
    assert torch.equal(first, model.sample(2, generator=seed))
    assert not torch.equal(first, model.sample(2, generator=generator))  # it advanced


def test_wrong_numbers() -> None:
    with pytest.raises(ValueError, match="expected first_sample >= 0, got -1"):
        image_model().sample(2, first_sample=-1)
    with pytest.raises(ValueError, match="expected context of shape \\(3, 2\\), got None"):
        image_model(context_features=2).sample(3)


@pytest.mark.parametrize("n", [1, 64, 130])
def test_in_chunks(n: int) -> None:
    model, done = image_model(num_classes=3), []
    x = sampling.sample(model, n, seed=3, temperature=0.5, advance=done.append)
    assert torch.equal(x, model.sample(n, generator=3, temperature=0.5))
    assert sum(done) == n
    y = torch.arange(n) % 3
    assert torch.equal(sampling.sample(model, n, y, seed=3), model.sample(n, y, generator=3))


def test_interpolation_starts_and_ends_at_its_ends() -> None:
    model = image_model(num_classes=3).double()
    x = torch.randint(17, (4, 1, 8, 8), dtype=torch.uint8)
    y = (torch.tensor([0, 1]), torch.tensor([2, 1]))
    path = sampling.interpolate(model, x[:2], x[2:], y, 5)
    assert path.shape == (2, 5, 1, 8, 8)
    assert torch.equal(path[:, 0], x[:2])
    assert torch.equal(path[:, -1], x[2:])


# --- completion ------------------------------------------------------------------------------------------------------


def test_a_model_without_complete_says_so() -> None:
    x = torch.zeros(2, 1, 8, 8).byte()
    with pytest.raises(NotImplementedError, match="RealNVP cannot complete samples that are known in part"):
        image_model().complete(x, torch.ones(8, 8).bool())


@pytest.mark.parametrize("model", [PixelCNN((1, 2, 2), 17, hidden=8), DDPM((1, 2, 2), 17, hidden=8, widths=(1,))])
def test_wrong_completions(model: Model) -> None:
    x = torch.zeros(2, 1, 2, 2).byte()
    with pytest.raises(TypeError, match="expected known as a bool tensor"):
        model.complete(x, torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"expected known to broadcast to \[2, 1, 2, 2\], got \[3, 2\]"):
        model.complete(x, torch.ones(3, 2).bool())
    with pytest.raises(ValueError, match=r"expected x of shape \[B, 1, 2, 2\], got \[2, 2\]"):
        model.complete(x[:, 0, 0], torch.ones(2, 2).bool())
