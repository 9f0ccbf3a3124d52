"""The loss beside a step that makes the model's input; tables of targets and weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pygen import random
from pygen.diffusion.losses import TARGETS, WEIGHTINGS, levels, loss_table, loss_weights, target_coefficients
from pygen.ops import diffusion_loss, diffusion_step
from pygen.reference.diffusion_step import Columns, width
from tests.harness import backend

ABAR = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)


@pytest.fixture(params=backend.ALL, ids=str)
def _every_backend(request):
    if request.param.device == "cuda":
        pytest.skip("the tests of this file are of the CPU")
    with request.param.active():
        yield


def q_sample_table(alpha: Tensor, sigma: Tensor) -> Tensor:
    at = Columns.of(0)
    table = torch.zeros(len(alpha), width(0, 0, 1), dtype=torch.float64)
    table[:, at.clip] = math.inf
    table[:, at.rows], table[:, at.rows + 3] = alpha, sigma
    return table


@pytest.mark.usefixtures("_every_backend")
@pytest.mark.parametrize("index", [torch.tensor([3, 500, 999, 0]), torch.tensor(500), 500], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_noise_is_what_the_step_has_drawn(index: Tensor | int, dtype: torch.dtype) -> None:
    """A model that knows x0 and finds the noise in its input has no loss."""
    alpha, sigma = levels(ABAR)
    x0 = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    stream = {"generator": 11, "first_sample": 9, "step": 77}
    step = 77 + (0 if isinstance(index, Tensor) and index.dim() else 500)
    z = random.normal(x0.shape, generator=11, first_sample=9, step=step, dtype=torch.float32)
    x = diffusion_step(x0, [], q_sample_table(alpha, sigma), index, draws=True, dtypes=[torch.float64], **stream)[0]
    c = [
        v[index] if isinstance(index, int) or index.dim() == 0 else v[index][:, None, None, None]
        for v in (alpha, sigma)
    ]
    torch.testing.assert_close(x, c[0] * ((x0.double() - 127.5) / 127.5) + c[1] * z.double(), rtol=1e-6, atol=1e-6)

    table = loss_table(alpha, sigma, "eps")
    drawn = diffusion_loss(z.to(dtype), x0, table, index, draws=True, **stream)
    given = diffusion_loss(z.to(dtype), x0, table, index, noise=z)
    assert torch.equal(drawn, given)
    assert drawn.max() <= torch.finfo(dtype).eps ** 2


@pytest.mark.usefixtures("_every_backend")
def test_loss_does_not_depend_on_the_batch() -> None:
    output, x0 = torch.randn(5, 3, 77, 77), torch.randn(5, 3, 77, 77)
    table, t = loss_table(*levels(ABAR), "v", "min_snr"), torch.tensor([0, 100, 999, 500, 3])
    together = diffusion_loss(output, x0, table, t, draws=True, generator=5)
    for i in range(5):
        one = slice(i, i + 1)
        alone = diffusion_loss(output[one], x0[one], table, t[one], draws=True, generator=5, first_sample=i)
        assert torch.equal(alone[0], together[i])


@pytest.mark.usefixtures("_every_backend")
def test_gradients_of_half_precision_do_not_overflow() -> None:
    output = torch.tensor([[6e4, 1.0]], dtype=torch.float16, requires_grad=True)
    diffusion_loss(output, -output.detach(), torch.tensor([[1.0, 0.0, 1.0]]), 0).mul(1e-2).sum().backward()
    torch.testing.assert_close(output.grad, torch.tensor([[1200.0, 0.02]], dtype=torch.float16))


@pytest.mark.usefixtures("_every_backend")
def test_small_gradients_of_half_precision_survive_a_scaled_loss() -> None:
    """2 / n (output - target) alone is below float16's smallest number."""
    output = torch.full((1, 200_000), 1e-3, dtype=torch.float16, requires_grad=True)
    loss = diffusion_loss(output, torch.zeros_like(output), torch.tensor([[1.0, 0.0, 1.0]]), 0)
    (65536 * loss).sum().backward()
    torch.testing.assert_close(output.grad.float(), 65536 * 2 / 200_000 * output.detach().float(), rtol=2e-3, atol=0)


def test_table_that_requires_grad_raises() -> None:
    table = torch.ones(1, 3, requires_grad=True)
    with pytest.raises(NotImplementedError, match="table"):
        diffusion_loss(torch.randn(2, 3), torch.randn(2, 3), table, 0)


# --- tables -----------------------------------------------------------------------------------------------------------


def spaces() -> list[tuple[str, Tensor, Tensor]]:
    t, sigma = torch.linspace(0.01, 1, 50, dtype=torch.float64), torch.logspace(-2, 2, 50, dtype=torch.float64)
    alpha, noise = levels(ABAR[::20])
    return [("vp", alpha, noise), ("flow", 1 - t, t), ("edm", torch.ones_like(sigma), sigma)]


@pytest.mark.parametrize("target", TARGETS)
def test_errors_of_targets_are_errors_of_x0(target: str) -> None:
    """The weighting "snr" makes every target's loss that of eps, whatever the model gets wrong."""
    own = {"v": "vp", "flow": "flow", "edm": "edm"}.get(target)  # where alone it says what x0 is
    for space, alpha, sigma in spaces():
        if own not in (None, space):
            continue
        alpha, sigma = alpha[alpha > 0], sigma[alpha > 0]
        x0, z, guess = (torch.randn(len(alpha), dtype=torch.float64) for _ in range(3))
        x = alpha * x0 + sigma * z
        a, s = target_coefficients(alpha, sigma, target)
        implied = (x - alpha * guess) / sigma  # the noise that a guess of x0 implies
        error = a * guess + s * implied - (a * x0 + s * z)
        weight = loss_weights(alpha, sigma, target, "snr")
        torch.testing.assert_close(weight * error**2, (alpha / sigma * (guess - x0)) ** 2)


def test_weights_of_the_literature() -> None:
    alpha, sigma = levels(ABAR)
    snr = (alpha / sigma) ** 2
    gamma = torch.full_like(snr, 5.0)
    for target, expected in (
        ("eps", torch.minimum(snr, gamma) / snr),
        ("x0", torch.minimum(snr, gamma)),
        ("v", torch.minimum(snr, gamma) / (snr + 1)),
    ):
        torch.testing.assert_close(loss_weights(alpha, sigma, target, "min_snr"), expected)
    torch.testing.assert_close(loss_weights(alpha, sigma, "eps", "p2"), 1 / (1 + snr))
    torch.testing.assert_close(loss_weights(alpha, sigma, "x0", "truncated_snr"), snr.clamp(min=1))
    noise = torch.logspace(-2, 2, 9, dtype=torch.float64)
    one = torch.ones_like(noise)
    torch.testing.assert_close(loss_weights(one, noise, "edm", "edm"), one)
    torch.testing.assert_close(loss_weights(one, noise, "x0", "edm"), (noise**2 + 0.25) / (0.5 * noise) ** 2)
    torch.testing.assert_close(loss_weights(one, noise, "flow", "sigma_sqrt"), noise**-2)


def test_edm_target() -> None:
    """(x0 - c_skip x) / c_out."""
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    a, s = target_coefficients(torch.ones_like(sigma), sigma, "edm")
    x0, z = torch.randn(2, 9, dtype=torch.float64)
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(a * x0 + s * z, (x0 - c_skip * (x0 + sigma * z)) / c_out)


@pytest.mark.parametrize("weighting", ["constant", "snr", "min_snr", "p2"])
@pytest.mark.parametrize("target", ["eps", "x0", "v", "flow"])
def test_weights_without_a_signal(target: str, weighting: str) -> None:
    """Zero terminal SNR: alpha is 0."""
    weight = loss_weights(torch.zeros(1), torch.ones(1), target, weighting)
    assert weight.isfinite().all()
    assert (weight >= 0).all()


def test_tables_say_what_is_wrong() -> None:
    one = torch.ones(3)
    for arguments, error, words in (
        ((one, one, "noise"), ValueError, "expected target as one of .* got 'noise'"),
        ((one, one, "eps", "best"), ValueError, "expected weighting as one of .* got 'best'"),
        ((one, one[:2]), ValueError, r"one shape \[R\], got \(3,\) and \(2,\)"),
        ((one.long(), one), TypeError, "alpha of a floating-point dtype, got torch.int64"),
        ((one, 0 * one), ValueError, "sigma above 0, got 0"),
        ((-one, one), ValueError, "alpha at least 0, got -1"),
    ):
        with pytest.raises(error, match=words):
            loss_table(*arguments)
    assert len(WEIGHTINGS) == 8
