"""Patched schedulers of diffusers that follow stochastic differential equations."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.integrations import diffusers as ours

from ..diffusion import peers
from .test_diffusers import SHAPE, SPREADS, STABLE, no_fallback, same_state

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"),
]

SDE, VE = "DPMSolverSDEScheduler", "ScoreSdeVeScheduler"


def made(name: str, steps: int = 6, **options: Any) -> Any:
    scheduler = peers.scheduler_class(name)(**options)
    scheduler.set_timesteps(steps)
    return scheduler


# --- DPM-Solver++ along Brownian paths --------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("more", [{}, {"s_noise": 0.9}])
@pytest.mark.parametrize("seed", [3, [3, 4]])
def test_equal(
    prediction: str, spread: dict[str, bool], more: dict[str, float], seed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same Brownian tree."""
    options = STABLE | spread | {"prediction_type": prediction, "noise_sampler_seed": seed}
    plain, patched = made(SDE, **options), made(SDE, **options)
    x = next(peers.draws(SHAPE, seed=1)) * float(plain.init_noise_sigma)
    expected = peers.diffusers_loop(plain, x, **more)
    for method in ("step", "scale_model_input"):
        no_fallback(monkeypatch, SDE, method)
    found = peers.diffusers_loop(ours.patch_scheduler(patched), x, **more)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * max(1.0, b.abs().max().item()))
    same_state(patched, plain)
    assert type(patched.noise_sampler) is type(plain.noise_sampler)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_as_close_to_float64(dtype: torch.dtype) -> None:
    """Both stages, from the same states, given noise."""
    plain, exact = made(SDE, **STABLE), made(SDE, **STABLE)
    patched = ours.patch_scheduler(made(SDE, **STABLE))
    peers.upcast(exact)
    for scheduler in (plain, exact, patched):
        noise = iter([torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)).to(dtype) for i in (4, 5)])
        wide = torch.float64 if scheduler is exact else dtype
        scheduler.noise_sampler = lambda start, end, noise=noise, wide=wide: next(noise).to(wide)
    x = (next(peers.draws(SHAPE, seed=1)) * 3).to(dtype)
    for t in plain.timesteps[:2]:
        output = peers.network(x.double(), t).to(dtype)
        with peers.in_float64(exact, iter(())):
            truth = exact.step(output.double(), t, x.double())
        theirs, mine = plain.step(output, t, x), patched.step(output, t, x)
        for key in ("prev_sample", "pred_original_sample"):
            off = [(result[key].double() - truth[key]).abs().max().item() for result in (mine, theirs)]
            assert mine[key].dtype == theirs[key].dtype
            assert off[0] <= off[1] * 1.01 + torch.finfo(dtype).eps * truth[key].abs().max().item() / 2


def test_noise_of_the_stream() -> None:
    """It depends on the sample alone, and is that of a Brownian path: the second stage's contains the first's."""

    def run(batch: int) -> list[Tensor]:
        scheduler = ours.patch_scheduler(made(SDE, noise_sampler_seed=7, **STABLE), noise="pygen")
        x, states = torch.zeros(batch, 64, 64), []
        sigma, then = scheduler.sigmas[:2].tolist()
        for t, level in zip(scheduler.timesteps[:2], (sigma, (sigma * then) ** 0.5), strict=True):
            x = scheduler.step(x / level, t, x).prev_sample  # the data are 0
            states.append(x)
        assert scheduler.noise_sampler is None
        return states

    first, second = run(8)
    assert torch.equal(run(3)[1], second[:3])
    scheduler = made(SDE, **STABLE)
    sigma, then = scheduler.sigmas[:2].tolist()
    middle = (sigma * then) ** 0.5
    share = (sigma - middle) / (sigma - then)
    torch.testing.assert_close(second.std().item(), then * (1 - then**2 / sigma**2) ** 0.5, rtol=0.02, atol=0)
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].item()
    assert abs(correlation - share**0.5) < 0.02


def test_sample_predictions_are_refused() -> None:
    scheduler = ours.patch_scheduler(made(SDE, prediction_type="sample"))
    x = torch.ones(SHAPE)
    with pytest.raises(NotImplementedError):
        scheduler.step(x, scheduler.timesteps[0], x)


# --- score-based SDE --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [False, True])
def test_predictor_and_corrector_are_equal(numbers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, patched = (peers.scheduler_class(VE)(num_train_timesteps=20, sigma_max=30.0) for _ in range(2))
    states = []
    for scheduler in (plain, patched):
        if scheduler is patched:
            for method in ("step_pred", "step_correct"):
                no_fallback(monkeypatch, VE, method)
            ours.patch_scheduler(patched)
        peers.upcast(scheduler)
        x = next(peers.draws(SHAPE, seed=1)) * 30
        states.append(loop(scheduler, x, numbers, peers.draws(SHAPE)))
    for a, b in zip(*states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * max(1.0, b.abs().max().item()))
    same_state(patched, plain)


def loop(scheduler: Any, x: Tensor, numbers: bool, noise: Iterator[Tensor]) -> list[Tensor]:
    """The predictor's float32 times are theirs; the corrector's type is torch's default one."""
    states = []
    with peers.in_float64(scheduler, noise):
        for t in scheduler.timesteps.tolist() if numbers else scheduler.timesteps:
            torch.set_default_dtype(torch.float64)
            try:
                x = scheduler.step_correct(-x / 900, x).prev_sample
            finally:
                torch.set_default_dtype(torch.float32)
            states.append(x)
            predicted = scheduler.step_pred(torch.sin(x) / 900, t, x)
            x = predicted.prev_sample
            states += [x, predicted.prev_sample_mean]
    return states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_score_sde_as_it_is(dtype: torch.dtype) -> None:
    """With torch's own noise: the same types, results to rounding and random state."""
    outcomes = []
    for patched in (False, True):
        scheduler = peers.scheduler_class(VE)(num_train_timesteps=50, sigma_max=30.0)
        if patched:
            ours.patch_scheduler(scheduler)
        x, score = (next(peers.draws(SHAPE, seed=i)).to(dtype) for i in (1, 2))
        generator = torch.Generator().manual_seed(0)
        t = scheduler.timesteps[4]
        outcomes.append(
            [
                *scheduler.step_pred(score, t, x, generator=generator, return_dict=False),
                *scheduler.step_correct(score, x, generator=generator, return_dict=False),
                scheduler.add_noise(x, score, torch.tensor([3, 49])),
                torch.randn(2, generator=generator),
            ]
        )
    for theirs, mine in zip(*outcomes, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(
            mine.double(), theirs.double(), rtol=2e-5 if dtype == torch.float32 else 0.05, atol=1e-2
        )


def test_score_sde_from_the_stream() -> None:
    def run(batch: int) -> Tensor:
        scheduler = ours.patch_scheduler(peers.scheduler_class(VE)(num_train_timesteps=50), noise="pygen")
        x, generator = torch.ones(batch, 3, 4, 4), torch.Generator().manual_seed(0)
        return torch.cat([x, scheduler.step_pred(-x, 0.5, x, generator=generator).prev_sample], 1)

    assert torch.equal(run(4)[:2], run(2))
    assert run(2)[:, 3:].std() > 0


def test_their_errors() -> None:
    scheduler = ours.patch_scheduler(peers.scheduler_class(VE)())
    x = torch.ones(2, 3, 4, 4)
    with pytest.raises(IndexError):
        scheduler.step_pred(x, 7.0, x)
    unset = copy.deepcopy(scheduler)
    unset.timesteps = None
    for call in (lambda: unset.step_pred(x, 0.5, x), lambda: unset.step_correct(x, x)):
        with pytest.raises(ValueError, match="is not set"):
            call()


def test_without_torchsde(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for a scheduler that cannot be there is left alone."""
    with peers.importable():
        import diffusers
        from diffusers.utils import dummy_torch_and_torchsde_objects as dummies

        monkeypatch.setattr(diffusers, SDE, dummies.DPMSolverSDEScheduler)
        with ours.patch():
            pass
