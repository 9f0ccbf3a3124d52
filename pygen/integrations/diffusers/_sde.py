"""Steps of stochastic differential equations: DPM-Solver++ along Brownian paths, and score-based predictors."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...diffusion.coefficients import sde, two_stage
from ...diffusion.level import predicted, ve
from ...diffusion.step import G, Step, X, Z, table
from ...ops import diffusion_step, sample_stats
from ...reference.diffusion_step import Columns
from ._call import Call, Unchanged, cached, home_of, index_of, kept, number_of, numbers, returned, steps_of, x0_of


@cached
def _dpm_sde_step(kind: Any, sigma: float, then: float, second: bool, noise_scale: float, own: bool) -> Step:
    """own: the second stage is given noise of what is left of the step, and the first's as history."""
    now, end = ve(sigma), ve(then)
    if not then:
        return two_stage.euler(now, end, predicted(kind, now))
    middle = two_stage.log_middle(now, end)
    models = predicted(kind, now), predicted(kind, middle)
    stages = two_stage.dpmpp_sde(now, middle, end, *models, noise_scale=noise_scale, whole_noise=not own)
    if second:
        return stages[1]
    return replace(stages[0], rows=(stages[0].rows[0], Z) if own else stages[0].rows[:1], keep=())


@steps_of("DPMSolverSDEScheduler")
def dpm_sde(call: Call, timestep: Any) -> Any:
    s, kind = call.scheduler, call.scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise Unchanged
    second = not s.state_in_first_order
    first = index_of(s, timestep) - second  # of the step
    sigmas = numbers(s, "sigmas")
    sigma, then = sigmas[first], sigmas[first + 1]
    made = _dpm_sde_step(kind, sigma, then, second, call.options["s_noise"], call.own_noise)
    start, end = (s.sigmas[place].log().neg() for place in (first, first + 1))  # their times, rounded as theirs are
    if not second:
        end = start + (end - start) * 0.5
    if call.own_noise:
        call.options["generator"] = s.noise_sampler_seed
    else:
        tree = _tree(call)
        if made.step.noisy:
            call.options["variance_noise"] = tree(start.neg().exp(), end.neg().exp())
    results = call.apply(made, [s.sample, None, s.__dict__.get("_pygen_first_noise")])
    if then:
        s.sample = None if second else call.sample
        s.mid_point_sigma = None if second else end.neg().exp()
        if not second:
            kept(s, "middle", s.mid_point_sigma, lambda: two_stage.log_middle(ve(sigma), ve(then)).sigma)
        s._pygen_first_noise = results[1] if call.own_noise and not second else None
    s._step_index += 1
    return returned(call, "DPMSolverSDESchedulerOutput", results[0], x0_of(call, made))


def _tree(call: Call) -> Any:
    """The scheduler's own source of noise, which it keeps from its first step on."""
    s = call.scheduler
    if s.noise_sampler is None:
        sigmas = [sigma for sigma in numbers(s, "sigmas") if sigma > 0]
        kind = sys.modules[home_of(type(s)).__module__].BrownianTreeNoiseSampler
        s.noise_sampler = kind(call.sample, min(sigmas), max(sigmas), s.noise_sampler_seed)
    return s.noise_sampler


# --- score-based SDEs -------------------------------------------------------------------------------------------------


@cached
def _ve_step(sigma: float, then: float) -> Step:
    diffusion = (sigma**2 - then**2) ** 0.5
    return sde.reverse_diffusion(ve(sigma), predicted("score", ve(sigma)), diffusion=diffusion)


def _type_of(call: Call) -> torch.dtype:
    """Their coefficients are float32 tensors."""
    return torch.promote_types(torch.promote_types(call.sample.dtype, call.output.dtype), torch.float32)


@steps_of("ScoreSdeVeScheduler", method="step_pred")
def predict(call: Call, timestep: Any) -> Any:
    s = call.scheduler
    if s.timesteps is None or (isinstance(timestep, Tensor) and timestep.dim()):
        raise Unchanged
    place = int(np.float32(number_of(s, timestep)) * np.float32(s.timesteps.shape[0] - 1))
    sigmas = numbers(s, "discrete_sigmas")
    if not 0 <= place < len(sigmas):
        raise Unchanged
    made = _ve_step(sigmas[place], sigmas[place - 1] if place else 0.0)
    results = call.apply(made, noise_dtype=call.sample.dtype, dtypes=[_type_of(call)] * 2)
    return returned(call, "SdeVeOutput", results[0], lambda: results[1])


@steps_of("ScoreSdeVeScheduler", method="step_correct")
def correct(call: Call, _: Any) -> Any:
    """Langevin's step, by the mean norms of score and noise over the batch: on the device, where they are found."""
    s, x, score = call.scheduler, call.sample, call.output
    if s.timesteps is None:
        raise Unchanged
    if call.own_noise:
        noise = call.noise(torch.float32)
    else:  # on the CPU, in torch's default type
        randn = sys.modules[home_of(type(s)).__module__].randn_tensor
        noise = randn(x.shape, layout=x.layout, generator=call.options["generator"]).to(x.device)
    norms = [sample_stats(tensor)[:, -1].sqrt().mean() for tensor in (noise, score)]
    size = 2 * (s.config.snr * norms[0] / norms[1]).square()
    made, at = _langevin(x.device).clone(), Columns.of(1).rows
    made[0, at + 1], made[0, at + 3] = size, (2 * size).sqrt()  # of the score and of the noise
    own = torch.promote_types(_type_of(call), noise.dtype)
    return returned(call, "SchedulerOutput", diffusion_step(x, [score], made, noise=noise, dtypes=[own])[0])


@functools.lru_cache(maxsize=64)
def _langevin(device: torch.device) -> Tensor:
    return table([Step(0.0, 0.0, (X + G + Z,))]).to(device)
