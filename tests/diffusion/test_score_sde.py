"""Predictor-corrector sampling: against diffusers, and of normal data, whose score is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pygen import random
from pygen.diffusion import predictor_corrector
from pygen.diffusion.coefficients import sde
from pygen.diffusion.level import predicted, ve
from pygen.diffusion.score_sde import Kind, Predictor, _moments
from pygen.diffusion.step import table
from pygen.ops import diffusion_step

from . import peers

MEAN, STD = 0.3, 0.6


@pytest.mark.parametrize("kind", ["ve", "vp", "sub-vp"])
@pytest.mark.parametrize("predictor", ["reverse-diffusion", "ancestral", "euler-maruyama"])
@pytest.mark.parametrize("corrector_steps", [0, 1])
def test_mean_and_variance(kind: Kind, predictor: Predictor, corrector_steps: int) -> None:
    if kind == "sub-vp" and predictor == "ancestral":
        pytest.skip("there is none")
    steps, n, d = 500, 100, 400
    moments = {
        i: m.level for i, m in enumerate(_moments(kind, steps, *((0.01, 20.0) if kind == "ve" else (0.1, 20.0))))
    }

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = moments[round((1 - t[0].item()) * steps)]
        return (alpha * MEAN - x) / ((alpha * STD) ** 2 + sigma**2)

    x = random.normal((n, d), generator=0, dtype=torch.float64) * (20.0 if kind == "ve" else 1.0)
    high = 20.0 if kind == "ve" else None
    out = predictor_corrector(
        score, x, kind=kind, steps=steps, high=high, predictor=predictor, corrector_steps=corrector_steps, generator=0
    )
    assert abs(out.mean().item() - MEAN) < 4.9 * STD / math.sqrt(d * n) + 0.01
    bias = 0.06 if corrector_steps else 0.03  # Langevin steps of a size that is not small
    assert abs(out.var().item() / STD**2 - 1) < 4.9 * math.sqrt(2 / (d * n)) + bias


def test_samples_do_not_depend_on_their_batch() -> None:
    def score(x: Tensor, t: Tensor) -> Tensor:
        return -x / (1 + t[0])

    x = random.normal((4, 3), generator=3, dtype=torch.float64)
    whole = predictor_corrector(score, x, steps=40, generator=1)
    parts = [predictor_corrector(score, x[i : i + 1], steps=40, generator=1, first_sample=i) for i in range(4)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-14, atol=1e-14)


@pytest.mark.peer
def test_predictor_of_diffusers() -> None:
    scheduler = peers.scheduler_class("ScoreSdeVeScheduler")(num_train_timesteps=20)
    scheduler.set_timesteps(20)
    scheduler.set_sigmas(20)
    scheduler.discrete_sigmas = scheduler.discrete_sigmas.double()
    x, score, z = (next(peers.draws((1, 3, 4, 4), seed=k)) for k in range(3))
    for i in (0, 5, 19):
        t = scheduler.timesteps[i]
        index = int((t * 19).long())
        sigma = scheduler.discrete_sigmas[index].item()
        before = scheduler.discrete_sigmas[index - 1].item() if index else 0.0
        with peers.in_float64(scheduler, iter([z])):
            expected = scheduler.step_pred(score, t.double(), x)
        step = sde.reverse_diffusion(
            ve(sigma), predicted("score", ve(sigma)), diffusion=math.sqrt(sigma**2 - before**2)
        )
        y, mean = diffusion_step(x, [score], table([step]), 0, rows=2, noise=z)
        torch.testing.assert_close(y, expected.prev_sample, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(mean, expected.prev_sample_mean, rtol=1e-10, atol=1e-10)


def test_refused() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="expected kind as one of ve, vp, sub-vp, got 'edm'"):
        predictor_corrector(lambda x, t: x, x, kind="edm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected predictor as"):
        predictor_corrector(lambda x, t: x, x, predictor="euler")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no such step"):
        predictor_corrector(lambda x, t: x, x, kind="sub-vp", predictor="ancestral")
    with pytest.raises(ValueError, match="expected steps >= 21, got 20"):
        predictor_corrector(lambda x, t: x, x, steps=20)
    with pytest.raises(ValueError, match="expected steps >= 1, got 0"):
        predictor_corrector(lambda x, t: x, x, steps=0, kind="ve")
    with pytest.raises(ValueError, match="expected corrector_steps >= 0, got -1"):
        predictor_corrector(lambda x, t: x, x, corrector_steps=-1)
    with pytest.raises(ValueError, match="expected snr >= 0, got nan"):
        predictor_corrector(lambda x, t: x, x, snr=float("nan"))
    with pytest.raises(ValueError, match="expected high >= 3, got 1"):
        predictor_corrector(lambda x, t: x, x, kind="ve", low=3.0, high=1.0)


def test_a_score_of_zero() -> None:
    x = predictor_corrector(lambda x, t: 0 * x, torch.ones(2, 3), steps=30, generator=0)
    assert x.isfinite().all()
