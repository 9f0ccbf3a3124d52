"""Plans against diffusers: whole loops, every state, in float64 on the peer's float32 tables."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pygen.diffusion import Discrete, Edm, Flow, plan, sample_loop

from . import peers

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = (2, 3, 4, 5)


def compare(scheduler: Any, run: Any, steps: int, set_timesteps: dict[str, Any] | None = None, **options: Any) -> None:
    scheduler.set_timesteps(steps, **set_timesteps or {})
    x = next(peers.draws(SHAPE, seed=1)) * run.start
    expected = peers.diffusers_loop(scheduler, x, **options)
    asked = [e.time for e in run.evaluations if e.time is not None]
    torch.testing.assert_close(
        torch.tensor(asked), scheduler.timesteps.double(), rtol=1e-6, atol=1e-6, check_dtype=False
    )
    noise = peers.draws(SHAPE)
    states = [x]
    result = sample_loop(
        lambda fed, t: peers.network(fed, t[0]),
        x,
        run,
        noise=lambda index, like: next(noise),
        callback=lambda told: states.append(told.result),
    )
    assert len(states) == len(expected)
    for ours, theirs in zip(states, expected):
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * scale)
    assert result is states[-1]


def discrete(scheduler: Any, **options: Any) -> Discrete:
    config = scheduler.config
    betas = config.get("beta_schedule", "linear")
    return Discrete.of(
        betas,
        config.num_train_timesteps,
        config.beta_start,
        config.beta_end,
        zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
        prediction=config.get("prediction_type", "epsilon"),
        **options,
    )


PREDICTIONS = ["epsilon", "sample", "v_prediction"]


@pytest.mark.peer
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("clip", "reuse"), [(False, False), (True, False), (True, True)])
def test_ddim(prediction: str, eta: float, clip: bool, reuse: bool) -> None:
    options = {"clip_sample": clip, "prediction_type": prediction, "clip_sample_range": 0.8}
    scheduler = peers.scheduler_class("DDIMScheduler")(**STABLE, **options)
    run = plan(
        "ddim", discrete(scheduler), 10, clip=0.8 if clip else math.inf, eta=eta, reuse_clamped=reuse,
        grid={"spacing": "leading"},
    )  # fmt: skip
    compare(scheduler, run, 10, eta=eta, use_clipped_model_output=reuse)
