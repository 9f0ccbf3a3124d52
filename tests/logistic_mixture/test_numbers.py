"""The numbers of the mixtures: probabilities, gradients, layouts and samples against formulas written out.

Seeds are fixed, so a test passes always or never; chi-square bounds are those of tests/random.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pygen import random
from pygen.ops import logistic_mixture_nll, logistic_mixture_sample
from pygen.reference.logistic_mixture import pairs
from tests.harness import backend
from tests.random.test_numbers import chi_square


@pytest.fixture(params=backend.ALL, ids=str)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every implementation that this host runs."""
    with request.param.active():
        yield request.param.device


def one_channel(logits: list[float], means: list[float], log_scales: list[float], pixels: int) -> Tensor:
    """The same mixture in all pixels of one image, [1, P, 1, pixels]."""
    return torch.tensor([*logits, *means, *log_scales]).view(1, -1, 1, 1).expand(1, -1, 1, pixels)


# --- probabilities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_scale", [-7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0])
def test_probabilities_sum_to_one(device: str, log_scale: float) -> None:
    """Over all levels, in float32; worst seen 6e-7."""
    x = torch.arange(256, device=device).view(1, 1, 1, 256)
    for means in ([0.1, -0.37], [-1.0, 1.0], [0.00392, 0.9], [-1.3, 1.6]):
        p = one_channel([0.3, -0.5], means, [log_scale, log_scale + 0.5], 256).to(device)
        total = (-logistic_mixture_nll(x, p).double()).exp().sum()
        assert abs(total - 1) < 1e-5, (means, total)


@pytest.mark.parametrize("levels", [3, 17, 200, *(2**bits for bits in range(1, 17))])
def test_probabilities_sum_to_one_for_any_number_of_levels(device: str, levels: int) -> None:
    x = torch.arange(levels, device=device).view(1, 1, 1, levels)
    for log_scale in (-7.0, -2.0, 2.0):
        p = one_channel([0.3, -0.5], [0.21, -0.64], [log_scale, log_scale + 1], levels).to(device)
        total = (-logistic_mixture_nll(x, p, levels=levels).double()).exp().sum()
        assert abs(total - 1) < 1e-5, (log_scale, total)


def test_probabilities_of_three_channels_sum_to_one(device: str) -> None:
    x = torch.tensor(list(itertools.product(range(4), repeat=3)), device=device).T.reshape(1, 3, 1, 64)
    p = random.normal((1, 30, 1, 1), generator=3).to(device).expand(1, 30, 1, 64)
    assert abs((-logistic_mixture_nll(x, p, levels=4)).double().exp().sum() - 1) < 1e-5


def exact_nll(levels: list[int], p: list[mpmath.mpf], mixtures: int, count: int) -> mpmath.mpf:
    """The definition, with the difference of the distribution function that the op never takes."""
    channels, last = len(levels), count - 1
    x = [mpmath.mpf(2 * level) / last - 1 for level in levels]
    sigmoid = lambda v: 1 / (1 + mpmath.exp(-v))  # noqa: E731
    weights = [mpmath.exp(p[k]) for k in range(mixtures)]
    total = mpmath.mpf(0)
    width = 3 if channels == 3 else 2
    for k in range(mixtures):
        probability = weights[k]
        for c in range(channels):
            at = lambda kind, c=c, k=k: p[mixtures + (c * width + kind) * mixtures + k]  # noqa: E731
            mean = at(0)
            for j in range(c):
                mean += mpmath.tanh(p[mixtures + ((c - 1 + j) * width + 2) * mixtures + k]) * x[j]
            scale = mpmath.exp(max(at(1), mpmath.mpf(-7)))
            upper = sigmoid((x[c] - mean + mpmath.mpf(1) / last) / scale) if levels[c] < last else mpmath.mpf(1)
            lower = sigmoid((x[c] - mean - mpmath.mpf(1) / last) / scale) if levels[c] > 0 else mpmath.mpf(0)
            probability *= upper - lower
        total += probability
    return -mpmath.log(total / sum(weights))


@pytest.mark.parametrize("channels", [1, 3])
def test_values_and_gradients_by_mpmath(device: str, channels: int) -> None:
    """1e-5 relative and 1e-6 absolute in float32, 1e-9 in float64. Means of three channels are within e^-4 of rounding:
    tanh(t) x is a float32, whose rounding a scale of e^-7 magnifies to 1e-4."""
    mpmath.mp.dps = 60
    mixtures = 2
    count = mixtures * (1 + 2 * channels + pairs(channels, channels == 3))
    values = random.normal((6, count), generator=5 + channels)
    scales = torch.tensor([-7.5, -7.0, -5.0, -3.0, 0.0, 2.0] if channels == 1 else [-4.0, -3.0, -2.0, -1.0, 0.0, 2.0])
    width = 3 if channels == 3 else 2
    for c in range(channels):
        first = mixtures + (c * width + 1) * mixtures
        values[:, first : first + mixtures] = scales[:, None] + 0.25 * torch.arange(mixtures)
    levels = torch.tensor([[0, 255, 17], [255, 0, 128], [130, 99, 1], [128, 254, 255], [3, 0, 0], [77, 200, 180]])
    levels = levels[:, :channels]
    for dtype, relative, absolute in ((torch.float32, 1e-5, 1e-6), (torch.float64, 1e-9, 1e-10)):
        p = values.to(dtype).to(device).view(6, count, 1, 1).requires_grad_()
        nll = logistic_mixture_nll(levels.view(6, channels, 1, 1).to(device), p)
        (grad,) = torch.autograd.grad(nll.sum(), p)
        for i in range(6):
            given = [mpmath.mpf(v) for v in p[i].flatten().tolist()]
            true = float(exact_nll(levels[i].tolist(), given, mixtures, 256))
            assert abs(nll[i].item() - true) <= relative * abs(true) + absolute, (i, nll[i].item(), true)
            largest = grad[i].abs().max().item()
            for n in range(count):
                if dtype == torch.float64 or n % 3 == 0:

                    def along(v: mpmath.mpf, n: int = n, i: int = i, given: list[mpmath.mpf] = given) -> mpmath.mpf:
                        return exact_nll(levels[i].tolist(), [*given[:n], v, *given[n + 1 :]], mixtures, 256)

                    slope = float(mpmath.diff(along, given[n], h=mpmath.mpf(10) ** -20))
                    found = grad[i].flatten()[n].item()
                    assert abs(found - slope) <= relative * (abs(slope) + largest) + absolute, (i, n, found, slope)


def test_numbers_are_their_nearest_level(device: str) -> None:
    """Whatever their rounding, bit by bit."""
    x = random.integers(256, (3, 3, 5, 7), generator=1).to(device)
    p = random.normal((3, 40, 5, 7), generator=2).to(device)
    expected = logistic_mixture_nll(x, p)
    for numbers in (x / 127.5 - 1, x.double() / 127.5 - 1, (x / 127.5 - 1).bfloat16(), (x / 127.5 - 1).half()):
        assert torch.equal(logistic_mixture_nll(numbers, p), expected)
        assert torch.equal(logistic_mixture_nll(numbers.contiguous(memory_format=torch.channels_last), p), expected)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(logistic_mixture_nll(x.to(dtype), p), expected)


def test_nan_in_x_stays_in_its_pixel(device: str) -> None:
    x = (random.integers(256, (2, 3, 4, 5), generator=1) / 127.5 - 1).to(device)
    p = random.normal((2, 40, 4, 5), generator=2).to(device).requires_grad_()
    clean = logistic_mixture_nll(x, p)
    x[1, 2, 3, 4] = math.nan
    nll = logistic_mixture_nll(x, p)
    wrong = torch.zeros_like(nll, dtype=torch.bool)
    wrong[1, 3, 4] = True
    assert torch.equal(nll.isnan(), wrong)
    assert torch.equal(nll[~wrong], clean[~wrong])
    (grad,) = torch.autograd.grad(nll.sum(), p)
    assert torch.equal(grad.isnan().any(1), wrong)


def test_x_must_not_require_grad() -> None:
    x, p = torch.zeros(1, 3, 2, 2, requires_grad=True), torch.zeros(1, 10, 2, 2)
    with pytest.raises(NotImplementedError, match="detach x"):
        logistic_mixture_nll(x, p)
    with torch.no_grad():
        assert logistic_mixture_nll(x, p).isfinite().all()
    with pytest.raises(NotImplementedError, match="detach parameters"):
        logistic_mixture_sample(p.requires_grad_(), channels=3)


# --- layouts and forms, each by its formula --------------------------------------------------------------------------


def log_sigmoid_difference(a: Tensor, b: Tensor) -> Tensor:
    return torch.log(torch.sigmoid(a) - torch.sigmoid(b))


def plain_nll(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor, coefficients: Tensor | None) -> Tensor:
    """x [B, C, H, W] as levels; logits [B, H, W, K], means and log-scales [B, H, W, C, K], tanh of the coefficients
    [B, H, W, C, C, K], of which those with j < c count."""
    grid = x.movedim(1, -1).double() / 127.5 - 1
    total = torch.log_softmax(logits, -1)
    for c in range(x.shape[1]):
        mean = means[..., c, :]
        for j in range(c if coefficients is not None else 0):
            mean = mean + coefficients[..., c, j, :] * grid[..., j, None]
        scale = log_scales[..., c, :].clamp(min=-7).exp()
        here = grid[..., c, None]
        upper = torch.sigmoid((here + 1 / 255 - mean) / scale).masked_fill(here > 0.999, 1)
        lower = torch.sigmoid((here - 1 / 255 - mean) / scale).masked_fill(here < -0.999, 0)
        total = total + torch.log(upper - lower)
    return -torch.logsumexp(total, -1)


def given(channels: int, own: bool, mixtures: int = 4) -> tuple[Tensor, Tensor]:
    count = mixtures * (1 + 2 * channels + pairs(channels, own))
    x = random.integers(256, (2, channels, 3, 5), generator=channels)
    return x, random.normal((2, count, 3, 5), generator=7, dtype=torch.float64) - 0.5


def square(parts: dict[tuple[int, int], Tensor], like: Tensor, channels: int) -> Tensor:
    out = like.new_zeros(*like.shape[:-1], channels, channels, like.shape[-1])
    for (c, j), t in parts.items():
        out[..., c, j, :] = t.tanh()
    return out


def test_openai_layout(device: str) -> None:
    """Of three channels as in pixel-cnn, of one as in its descendants for grey images."""
    x, p = given(3, True)
    logits, rest = p.movedim(1, -1).split([4, 36], -1)
    rest = rest.reshape(2, 3, 5, 3, 12)
    means, log_scales, t = rest[..., :4], rest[..., 4:8], rest[..., 8:]
    t = square({(1, 0): t[..., 0, :], (2, 0): t[..., 1, :], (2, 1): t[..., 2, :]}, logits, 3)
    expected = plain_nll(x, logits, means, log_scales, t)
    torch.testing.assert_close(logistic_mixture_nll(x.to(device), p.to(device)).cpu(), expected)
    x, p = given(1, False)
    logits, means, log_scales = p.movedim(1, -1).split(4, -1)
    expected = plain_nll(x, logits, means[..., None, :], log_scales[..., None, :], None)
    torch.testing.assert_close(logistic_mixture_nll(x.to(device), p.to(device)).cpu(), expected)


def test_flax_layout(device: str) -> None:
    """With scales 1 / softplus(s), as Flax's network gives them, after the conversion that the docstring names."""
    x, theta = given(3, True)
    logits, rest = theta.movedim(1, -1).split([4, 36], -1)
    means, s, t = rest.reshape(2, 3, 5, 3, 4, 3).unbind(-1)
    t = square({(1, 0): t[..., 0, :], (2, 0): t[..., 1, :], (2, 1): t[..., 2, :]}, logits, 3)
    expected = plain_nll(x, logits, means, -F.softplus(s).log(), t)
    ours = theta.clone()
    ours[:, 5::3] = -F.softplus(theta[:, 5::3]).log()
    torch.testing.assert_close(logistic_mixture_nll(x.to(device), ours.to(device), layout="flax").cpu(), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tfp_layout(device: str, channels: int) -> None:
    x, p = given(channels, True)
    n = pairs(channels, True)
    sizes = [4, 4 * channels, 4 * channels, 4 * n]
    logits, means, log_scales, t = p.movedim(1, -1).split(sizes, -1)
    means, log_scales = (v.reshape(2, 3, 5, 4, channels).mT for v in (means, log_scales))
    t = t.reshape(2, 3, 5, 4, n).mT
    order = [(c, j) for c in range(channels) for j in range(c)]
    t = square({pair: t[..., i, :] for i, pair in enumerate(order)}, logits, channels)
    expected = plain_nll(x, logits, means, log_scales, t)
    ours = logistic_mixture_nll(x.to(device), p.to(device), layout="tfp", autoregressive=True)
    torch.testing.assert_close(ours.cpu(), expected)


def test_openai_form(device: str) -> None:
    """On narrow scales, where it differs from the exact one."""
    x, p = given(1, False, 1)
    p[:, 2] = torch.linspace(-8, 1, 15, dtype=torch.float64).view(3, 5)
    _, mean, log_scale = p.unbind(1)
    log_scale = log_scale.clamp(min=-7)
    grid, q = x[:, 0].double() / 127.5 - 1, torch.exp(-log_scale)
    mean[:] = grid + torch.linspace(-0.03, 0.03, 15, dtype=torch.float64).view(3, 5)  # of p
    plus, minus, middle = (q * (grid - mean + v) for v in (1 / 255, -1 / 255, 0))
    mass = torch.sigmoid(plus) - torch.sigmoid(minus)
    density = middle - log_scale - 2 * F.softplus(middle) - math.log(127.5)
    inside = torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), density)
    first, last = grid < -0.999, grid > 0.999
    log_p = torch.where(first, plus - F.softplus(plus), torch.where(last, -F.softplus(minus), inside))
    assert ((mass < 1e-5) & ~first & ~last).any()
    ours = logistic_mixture_nll(x.to(device), p.to(device), form="openai")
    torch.testing.assert_close(ours.cpu(), -log_p, rtol=1e-6, atol=1e-6)
    exact = logistic_mixture_nll(x.to(device), p.to(device))
    assert (ours - exact).abs().max() > 0.1


# --- samples ---------------------------------------------------------------------------------------------------------


def test_samples_are_as_likely_as_told(device: str) -> None:
    """Of one channel over all levels, and of two joint ones."""
    n = 1 << 16
    p = one_channel([0.3, -0.5, -1.0], [-0.4, 0.5, 0.9], [-3.0, -2.0, -1.0], n).to(device)
    x = logistic_mixture_sample(p, channels=1, generator=3)
    found = ((x.double() + 1) * 127.5).round().long().flatten()
    levels = torch.arange(256, device=device).view(1, 1, 1, 256)
    expected = n * (-logistic_mixture_nll(levels, p[..., :256])).double().exp().flatten()
    enough = expected >= 5
    counts = torch.bincount(found, minlength=256)
    rare = counts[~enough].sum()[None], expected[~enough].sum()[None]
    chi_square(torch.cat([counts[enough], rare[0]]).cpu(), torch.cat([expected[enough], rare[1]]).cpu())

    p = random.normal((1, 12, 1, 1), generator=4).to(device).expand(1, 12, 1, n)
    options = {"layout": "tfp", "autoregressive": True, "levels": 4}
    x = logistic_mixture_sample(p, channels=2, generator=5, **options)
    found = ((x + 1) * 1.5).round().long()
    levels = torch.tensor(list(itertools.product(range(4), repeat=2)), device=device).T.reshape(1, 2, 1, 16)
    expected = n * (-logistic_mixture_nll(levels, p[..., :16], **options)).double().exp().flatten()
    chi_square(torch.bincount((4 * found[0, 0] + found[0, 1]).flatten(), minlength=16).cpu(), expected.cpu())


def test_given_noise_is_the_stream(device: str) -> None:
    p = random.normal((3, 40, 4, 5), generator=1).to(device)
    u = random.uniform((3, 4, 5, 4), generator=9, first_sample=2, step=1, draw=2, offset=3, device=device)
    where = {"generator": 9, "first_sample": 2, "step": 1, "draw": 2, "offset": 3}
    x = logistic_mixture_sample(p, channels=3, **where)
    assert torch.equal(x, logistic_mixture_sample(p, channels=3, noise=u.movedim(-1, 1)))


def test_a_sample_does_not_depend_on_its_batch(device: str) -> None:
    """Nor a pixel on those around it."""
    p = random.normal((5, 40, 7, 6), generator=1).to(device)
    x = logistic_mixture_sample(p, channels=3, generator=2)
    parts = [logistic_mixture_sample(p[i : i + 1], channels=3, generator=2, first_sample=i) for i in range(5)]
    assert torch.equal(x, torch.cat(parts))
    ids = torch.tensor([3, 0, 4], device=device)
    assert torch.equal(x[ids], logistic_mixture_sample(p[ids], channels=3, generator=2, sample_ids=ids))
    for pixel in (0, 11, 41):
        at = p.flatten(2)[:, :, pixel, None, None]
        assert torch.equal(
            x.flatten(2)[:, :, pixel], logistic_mixture_sample(at, channels=3, generator=2, offset=4 * pixel)[..., 0, 0]
        )


def test_temperatures_go_to_zero(device: str) -> None:
    """The likeliest component and its mean: for each channel the level next to it."""
    p = random.normal((4, 40, 5, 6), generator=1).to(device)
    cold = logistic_mixture_sample(p, channels=3, temperature=0.0, scale_temperature=0.0, generator=1)
    assert torch.equal(
        cold, logistic_mixture_sample(p, channels=3, temperature=1e-6, scale_temperature=1e-9, generator=2)
    )
    best = p[:, :4].argmax(1, keepdim=True)
    first = p[:, 4:8].gather(1, best)[:, 0].clamp(-1, 1)
    assert ((cold[:, 0] - first).abs() <= 1 / 255 + 1e-6).all()
    warm = logistic_mixture_sample(p, channels=3, temperature=5.0, scale_temperature=3.0, generator=1)
    assert (warm - cold).abs().mean() > 0.1


def test_nan_parameters_stay_in_their_pixel(device: str) -> None:
    p = random.normal((2, 10, 3, 3), generator=1).to(device)
    clean = logistic_mixture_sample(p, channels=3, generator=1)
    for channel, reached in ((0, (0, 1, 2)), (1, (0, 1, 2)), (3, (1, 2)), (5, (1, 2)), (6, (2,)), (7, (2,))):
        broken = p.clone()
        broken[1, channel, 2, 1] = math.nan
        x = logistic_mixture_sample(broken, channels=3, generator=1)
        wrong = torch.zeros_like(x, dtype=torch.bool)
        wrong[1, list(reached), 2, 1] = True
        assert torch.equal(x.isnan(), wrong), channel
        assert torch.equal(x[~wrong], clean[~wrong])
