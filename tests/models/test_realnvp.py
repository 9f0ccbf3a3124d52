"""RealNVP: a bijection, a density, a conditional one; what goes in wrong comes out as a clear error."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from pygen import random
from pygen.models import Flow, RealNVP, RealNVPFlat

from .test_layers import jacobian_logdet, perturbed


def image_model(shape: tuple[int, int, int] = (1, 8, 8), levels: int = 17, **options: object) -> RealNVP:
    return perturbed(RealNVP(shape, levels, **{"hidden": 8, "blocks": 1, **options}), 0.1)


def flat_model(features: int = 3, **options: object) -> RealNVPFlat:
    return perturbed(RealNVPFlat(features, **{"couplings": 4, "hidden": 8, **options}), 0.2)


def images(n: int, shape: tuple[int, int, int] = (1, 8, 8), levels: int = 17) -> Tensor:
    return torch.randint(levels, (n, *shape))


# --- a bijection -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((1, 8, 8), 2), ((1, 28, 28), 3), ((3, 32, 32), 4), ((1, 5, 7), 1), ((2, 12, 6), 1), ((1, 1, 2), 1)],
)
def test_default_scales_and_exact_inverse(shape: tuple[int, int, int], scales: int) -> None:
    model = image_model(shape)
    assert model.config["scales"] == len(model.scales) == scales
    v = 17 * torch.rand(2, *shape, dtype=torch.float64)
    with torch.no_grad():
        z, logdet = model.transform(v)
        back, inverse_logdet = model.inverse(z)
    assert z.shape == (2, math.prod(shape))
    # Worst of 8 seeds: 2e-14 (values up to 17), and 1e-12 in sums over up to 3,072 values.
    torch.testing.assert_close(back, v, rtol=0, atol=2e-13)
    torch.testing.assert_close(inverse_logdet, -logdet, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_survive_encode_and_decode(dtype: torch.dtype) -> None:
    model, x, y = image_model(num_classes=3).to(dtype), images(6), torch.arange(6) % 3
    assert torch.equal(model.decode(model.encode(x, y), y).long(), x)
    for labels in (y, (y + 1) % 3):  # and latents, where decoding need not clamp
        z = model.encode(x, labels)
        assert torch.equal(model.encode(model.decode(z, labels), labels), z)


def test_squeezing_as_far_as_it_goes() -> None:
    assert len(image_model(scales=4).scales) == 4  # 8 x 8 ... 1 x 1
    with pytest.raises(ValueError, match="divisible by 16, to be halved 4 times, got 8 x 8"):
        RealNVP((1, 8, 8), 17, scales=5)
    with pytest.raises(ValueError, match="got 5 x 7"):
        RealNVP((1, 5, 7), 17, scales=2)


@pytest.mark.parametrize(("shape", "scales"), [((1, 4, 4), 2), ((2, 2, 4), 2), ((1, 3, 3), 1)])
def test_image_logdet_is_the_jacobian(shape: tuple[int, int, int], scales: int) -> None:
    model = image_model(shape, scales=scales, num_classes=2, context_features=3)
    v = 17 * torch.rand(2, *shape, dtype=torch.float64)
    condition = model.condition(2, torch.tensor([0, 1]), torch.randn(2, 3, dtype=torch.float64))
    logdet = model._transform(v, condition)[1]
    expected = torch.cat(
        [
            jacobian_logdet(lambda x, c=c: model._transform(x, c)[0], x)
            for x, c in zip(v.split(1), condition.split(1), strict=True)
        ]
    )
    torch.testing.assert_close(logdet, expected, rtol=0, atol=1e-13)  # worst of 8 seeds 1e-14


@pytest.mark.parametrize("features", [2, 3, 5])
def test_flat_logdet_is_the_jacobian_and_the_inverse_exact(features: int) -> None:
    model, v = flat_model(features), torch.randn(4, features, dtype=torch.float64)
    z, logdet = model.transform(v)
    # Worst of 8 seeds: 9e-16.
    torch.testing.assert_close(logdet, jacobian_logdet(lambda x: model._transform(x, None)[0], v), rtol=0, atol=1e-14)
    torch.testing.assert_close(model.decode(model.encode(v)), v, rtol=0, atol=1e-14)
    torch.testing.assert_close(model.inverse(z)[1], -logdet, rtol=0, atol=1e-14)
    assert (z != v).any(0).all()  # every feature is changed by some coupling


# --- a density -------------------------------------------------------------------------------------------------------


def test_flat_density_integrates_to_one() -> None:
    model = flat_model(2)
    axis = torch.linspace(-12, 12, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = model.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-6)  # 2e-9 away; the trapezoidal rule on a smooth, decaying function


def test_image_density_integrates_to_one() -> None:
    """Over all of the latent grey values, in logits, where it decays."""
    model = image_model((1, 2, 2), levels=2)
    axis = torch.linspace(-9, 9, 19, dtype=torch.float64)
    y = torch.cartesian_prod(axis, axis, axis, axis).reshape(-1, 1, 2, 2)
    with torch.no_grad():
        total = 0.0
        for chunk in y.split(50_000):
            v, logdet = model.logit(chunk, inverse=True)
            total += (model._log_density(v, None) + logdet).exp().sum().item()
    assert total * (axis[1] - axis[0]).item() ** 4 == pytest.approx(1, abs=1e-3)  # 7e-5 away: the grid is coarse


def test_probabilities_of_all_images_match_the_samples() -> None:
    """P(x) of all 16 two-level images, integrated over the noise, against how often a sample lies in their cells."""
    model = image_model((1, 2, 2), levels=2)
    x = torch.tensor(list(itertools.product((0, 1), repeat=4))).reshape(16, 1, 2, 2)
    u = (torch.arange(6, dtype=torch.float64) + 0.5) / 6
    noise = torch.cartesian_prod(u, u, u, u).reshape(-1, 1, 1, 2, 2)  # [1296, 1, 1, 2, 2]
    with torch.no_grad():
        density = model._log_density((x + noise).flatten(0, 1), None).exp()
        probability = density.reshape(-1, 16).mean(0)  # [16]
        n = 100_000
        v, _ = model.inverse(torch.randn(n, 4, dtype=torch.float64))
        level = v.floor()
        inside = ((level >= 0) & (level < 2)).flatten(1).all(1)
        code = (level[inside].flatten(1) @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)).long()
        frequency = code.bincount(minlength=16) / n
    assert 0.5 < probability.sum() < 1  # the logit leaves some mass outside the grey values
    deviation = (probability * (1 - probability) / n).sqrt()
    assert ((probability - frequency).abs() < 5 * deviation + 2e-4).all()  # 2e-4: the midpoint rule's error, 5e-5 seen


def test_log_prob_is_a_draw_of_the_density_and_bits_are_its_scale() -> None:
    model, x = image_model(), images(4)
    log_prob = model.log_prob(x, generator=7)
    assert torch.equal(log_prob, model.log_prob(x, generator=7))
    assert not torch.equal(log_prob, model.log_prob(x, generator=8))
    torch.testing.assert_close(model.bits_per_dim(x, generator=7), -log_prob / 64 / math.log(2))
    torch.manual_seed(3)
    expected = -model.log_prob(x).mean() / 64
    torch.manual_seed(3)
    loss = model(x)
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected)


def test_an_untrained_flow_is_the_logit_of_a_gaussian() -> None:
    model = RealNVP((1, 1, 2), 4).double()
    y, logdet = model.logit(torch.tensor([[[[0.5, 2.5]]]], dtype=torch.float64))
    expected = torch.distributions.Normal(0, 1).log_prob(y).sum() + logdet
    torch.testing.assert_close(model._log_density(torch.tensor([[[[0.5, 2.5]]]], dtype=torch.float64), None), expected)


# --- a conditional one -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: image_model(num_classes=3), lambda: flat_model(3, num_classes=3)])
def test_bayes_over_labels(make: object) -> None:
    model: Flow = make()
    x = images(5) if isinstance(model, RealNVP) else torch.randn(5, 3, dtype=torch.float64)
    joint = model.class_log_prob(x, generator=1)
    assert joint.shape == (5, 3)
    for y in range(3):  # the same noise for every label
        torch.testing.assert_close(joint[:, y], model.log_prob(x, torch.full((5,), y), generator=1))
    assert (joint[:, 0] != joint[:, 1]).all()
    torch.testing.assert_close(model.log_prob(x, generator=1).exp(), joint.exp().mean(1))
    posterior = model.log_posterior(x, generator=1)
    torch.testing.assert_close(posterior.exp(), joint.exp() / joint.exp().sum(1, keepdim=True))


def test_learns_to_tell_labels_apart() -> None:
    """Two point clouds, one per label: after a few steps Bayes' rule names the cloud."""
    model = RealNVPFlat(2, num_classes=2, couplings=4, hidden=16)
    y = torch.arange(256) % 2
    x = 0.3 * torch.randn(256, 2) + (2.0 * y - 1)[:, None]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(x, y).backward()
        optimizer.step()
    assert (model.log_posterior(x).argmax(1) == y).float().mean() > 0.97
    assert (model.sample(200, 1, generator=0) > 0).float().mean() > 0.9
    assert (model.sample(200, 0, generator=0) < 0).float().mean() > 0.9


def test_a_context_conditions_every_sample_on_its_own() -> None:
    model, x = image_model(context_features=2), images(3)
    context = torch.randn(3, 2, dtype=torch.float64)
    log_prob = model.log_prob(x, context=context, generator=0)
    assert (model.log_prob(x, context=context.flip(0), generator=0)[[0, 2]] != log_prob[[0, 2]]).all()
    context[1] = torch.nan
    spoiled = model.log_prob(x, context=context, generator=0)
    assert spoiled.isnan().tolist() == [False, True, False]
    assert torch.equal(spoiled[[0, 2]], log_prob[[0, 2]])
    assert model.sample(3, context=torch.randn(3, 2), generator=0).shape == (3, 1, 8, 8)


def test_gradients_reach_every_parameter() -> None:
    """As several processes in step (DDP) expect of a loss."""
    for model, x in ((image_model(num_classes=2), images(2)), (flat_model(3, num_classes=2), torch.randn(2, 3))):
        model(x, torch.tensor([0, 1])).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert all(p.grad.any() for name, p in model.named_parameters() if "embedding" not in name)


def test_trains_under_ddp(tmp_path: Path) -> None:
    """In a process of its own: gloo's threads have been seen to wait for the interpreter that waits for them."""
    process = torch.multiprocessing.get_context("spawn").Process(target=_train_under_ddp, args=(tmp_path / "store",))
    process.start()
    process.join(timeout=300)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0


def _train_under_ddp(store: Path) -> None:
    """In a group of one: two steps, since unused parameters show in the second."""
    model = RealNVP((1, 8, 8), 17, num_classes=2, context_features=1, hidden=4, blocks=1)
    x, y, context = images(2), torch.tensor([0, 1]), torch.randn(2, 1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    torch.manual_seed(0)
    loss = model(x, y, context=context)
    for _ in range(2):
        torch.manual_seed(0)
        found = parallel(x, y, context=context)
        torch.testing.assert_close(found, loss)
        found.backward()
    os._exit(0)  # without the destructors that may wait for ever


def test_trains_under_autocast() -> None:
    model = image_model(num_classes=2).float()
    x, y = images(4), torch.tensor([0, 1, 1, 0])
    exact = model.log_prob(x, y, generator=0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.log_prob(x, y, generator=0)
    assert rounded.dtype == torch.float32
    # The nets round to 8 bits. Worst of 8 seeds: 0.32 of 280 nats.
    torch.testing.assert_close(rounded, exact, rtol=0, atol=1.5)
    assert not torch.equal(rounded, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_in_narrow_types_with_a_density_in_float32(dtype: torch.dtype) -> None:
    model = RealNVP((1, 4, 4), 4, hidden=4, blocks=1)
    v = torch.randint(4, (5, 1, 4, 4)) + 0.5  # grey values that every type holds
    z, logdet = model.transform(v)
    narrow = model.to(dtype)
    assert narrow.log_prob(v.floor().long()).dtype == torch.float32
    found = narrow._log_density(v.to(dtype), None)
    # An untrained flow is the logit, whose y is rounded to `dtype`; everything after it is exact to float32.
    y = z.to(dtype).float()
    torch.testing.assert_close(found, logdet - 0.5 * (y.square() + math.log(2 * math.pi)).sum(1))
    assert narrow.sample(3).shape == (3, 1, 4, 4)


def test_the_loss_compiles_without_a_break() -> None:
    model, x, y = image_model(num_classes=2), images(3), torch.tensor([0, 1, 1])
    torch.manual_seed(0)
    expected = model(x, y)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(x, y), expected)


# --- samples ---------------------------------------------------------------------------------------------------------


def test_samples_follow_the_generator() -> None:
    model = image_model(num_classes=3)
    first = model.sample(4, 1, generator=5)
    assert first.shape == (4, 1, 8, 8)
    assert first.dtype == torch.uint8
    assert first.max() <= 16
    assert not first.requires_grad
    assert torch.equal(first, model.sample(4, torch.ones(4).long(), generator=5))
    assert torch.equal(first, model.sample(4, [1] * 4, generator=5))
    seed = random.seed_of(torch.Generator().manual_seed(5))
    assert torch.equal(
        model.sample(4, 1, generator=seed), model.sample(4, 1, generator=torch.Generator().manual_seed(5))
    )
    assert not torch.equal(first, model.sample(4, 1, generator=6))
    generator = torch.Generator().manual_seed(5)
    model.sample(4, 1, generator=generator)
    assert not torch.equal(first, model.sample(4, 1, generator=generator))  # it advances
    torch.manual_seed(5)
    free = model.sample(4)  # labels are drawn too
    torch.manual_seed(5)
    assert torch.equal(free, model.sample(4))


def test_samples_at_temperature_zero_are_the_mode_of_their_latent() -> None:
    model = flat_model(2, num_classes=2)
    x = model.sample(3, 1, temperature=0.0)
    torch.testing.assert_close(x, model.decode(torch.zeros(3, 2, dtype=torch.float64), torch.ones(3).long()))
    torch.testing.assert_close(x[0], x[2], rtol=0, atol=1e-14)


def test_samples_have_the_density_they_are_said_to_have() -> None:
    """Mean log-density of samples = minus the entropy, which a grid gives."""
    model = flat_model(2)
    axis = torch.linspace(-12, 12, 601, dtype=torch.float64)
    with torch.no_grad():
        log_prob = model.log_prob(torch.cartesian_prod(axis, axis))
        expected = (log_prob.exp() * log_prob).sum() * (axis[1] - axis[0]) ** 2
        found = model.log_prob(model.sample(50_000, generator=0))
    assert abs(found.mean() - expected) < 5 * found.std() / 50_000**0.5


# --- what goes in wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 1, 8, 9).long(), ValueError, r"expected x of shape \[B, 1, 8, 8\], got \[2, 1, 8, 9\]"),
        (torch.zeros(1, 8, 8).long(), ValueError, r"expected x of shape \[B, 1, 8, 8\], got \[1, 8, 8\]"),
        (torch.zeros(()).long(), ValueError, r"expected x of shape \[B, 1, 8, 8\], got \[\]"),
        (torch.rand(2, 1, 8, 8), TypeError, r"expected integer levels 0 \.\. 16 .*, got torch.float32"),
        (torch.zeros(2, 1, 8, 8).bool(), TypeError, "expected integer levels .*, got torch.bool"),
        (torch.full((2, 1, 8, 8), 17), ValueError, r"expected levels in \[0, 17\), got 17"),
        (torch.full((2, 1, 8, 8), -1), ValueError, r"expected levels in \[0, 17\), got -1"),
        ([[0]], TypeError, "expected x as a tensor, got list"),
    ],
)
@pytest.mark.parametrize("call", ["__call__", "log_prob", "bits_per_dim", "encode", "log_posterior"])
def test_wrong_images(call: str, x: object, error: type[Exception], message: str) -> None:
    model = RealNVP((1, 8, 8), 17, num_classes=2, hidden=4, blocks=0)
    arguments = (x,) if call == "log_posterior" else (x, torch.tensor([0, 1]))
    with pytest.raises(error, match=message):
        getattr(model, call)(*arguments)


@pytest.mark.parametrize("call", ["__call__", "log_prob", "encode", "decode", "sample"])
def test_wrong_labels(call: str) -> None:
    model = RealNVP((1, 8, 8), 17, num_classes=2, hidden=4, blocks=0)
    first = {"decode": torch.zeros(2, 64), "sample": 2}.get(call, images(2))
    with pytest.raises(ValueError, match=r"expected labels in \[0, 2\), got 2"):
        getattr(model, call)(first, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"expected labels y of shape \(2,\), got \(3,\)"):
        getattr(model, call)(first, torch.tensor([0, 1, 1]))
    plain = RealNVP((1, 8, 8), 17, hidden=4, blocks=0)
    with pytest.raises(ValueError, match="expected no labels"):
        getattr(plain, call)(first, torch.tensor([0, 1]))


def test_labels_that_are_missing() -> None:
    model = RealNVP((1, 8, 8), 17, num_classes=2, hidden=4, blocks=0)
    for call, argument in (("encode", images(2)), ("decode", torch.zeros(2, 64))):
        with pytest.raises(ValueError, match="the model has 2 classes, got None"):
            getattr(model, call)(argument)
    with pytest.raises(ValueError, match="a model with labels, got num_classes=None"):
        RealNVP((1, 8, 8), 17, hidden=4, blocks=0).log_posterior(images(2))


def test_wrong_samples() -> None:
    model = RealNVPFlat(2, couplings=2, hidden=4)
    with pytest.raises(ValueError, match="expected n >= 0, got -1"):
        model.sample(-1)
    for n in (2.0, True):
        with pytest.raises(TypeError, match=f"expected n as an integer, got {n}"):
            model.sample(n)
    for temperature in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"expected a finite temperature >= 0, got {temperature}"):
            model.sample(2, temperature=temperature)
    with pytest.raises(TypeError, match=r"expected generator to be a torch.Generator, an int seed or None, got str"):
        model.sample(2, generator="0")
    with pytest.raises(ValueError, match=r"expected z of shape \[B, 2\], got \[1, 3\]"):
        model.decode(torch.zeros(1, 3))


def test_wrong_vectors() -> None:
    model = RealNVPFlat(2, couplings=2, hidden=4)
    with pytest.raises(ValueError, match=r"expected x of shape \[B, 2\], got \[3, 4\]"):
        model.log_prob(torch.zeros(3, 4))
    with pytest.raises(TypeError, match=r"expected x of a floating-point dtype, got torch.int64"):
        model.log_prob(torch.zeros(3, 2).long())
    for dtype in (torch.int64, torch.complex64):
        for call, name in (("encode", "x"), ("transform", "v"), ("inverse", "z"), ("decode", "z")):
            with pytest.raises(TypeError, match=f"expected {name} of a floating-point dtype, got {dtype}"):
                getattr(model, call)(torch.zeros(3, 2, dtype=dtype))


def test_wrong_constructions() -> None:
    with pytest.raises(ValueError, match=r"expected shape as \(C, H, W\), got \(8, 8\)"):
        RealNVP((8, 8), 17)
    with pytest.raises(ValueError, match="expected every size in shape >= 1, got 0"):
        RealNVP((0, 8, 8), 17)
    with pytest.raises(ValueError, match="expected features >= 2"):
        RealNVPFlat(1)
    with pytest.raises(ValueError, match="expected couplings >= 2"):
        RealNVPFlat(2, couplings=1)


@pytest.mark.parametrize(
    ("name", "least"),
    [("levels", 2), ("num_classes", 1), ("context_features", 0), ("scales", 1), ("hidden", 1), ("blocks", 0)],
)
def test_sizes_are_integers_and_large_enough(name: str, least: int) -> None:
    for wrong in (True, 2.5, "2"):
        with pytest.raises(TypeError, match=f"expected {name} as an integer, got {wrong!r}"):
            RealNVP((1, 8, 8), **{name: wrong})
    with pytest.raises(ValueError, match=f"expected {name} >= {least}, got {least - 1}"):
        RealNVP((1, 8, 8), **{name: least - 1})


def test_empty_batches() -> None:
    for model, x in (
        (RealNVP((1, 8, 8), 17, num_classes=2, hidden=4), images(0)),
        (RealNVPFlat(2, num_classes=2, hidden=4), torch.zeros(0, 2)),
    ):
        y = torch.zeros(0).long()
        assert model.log_prob(x, y).shape == (0,)
        assert model.log_posterior(x).shape == (0, 2)
        assert model.decode(model.encode(x, y), y).shape == x.shape
        assert model.sample(0).shape == x.shape
        with pytest.raises(ValueError, match="expected a batch of at least one sample to train on"):
            model(x, y)
