"""Steps of schedulers that look levels up by whole times."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...diffusion.coefficients import adams, first_order, sde
from ...diffusion.level import Level, predicted
from ...diffusion.step import X0, G, H, Row, Step, X
from ._call import (
    Call,
    Unchanged,
    cached,
    clamp_of,
    index_of,
    level_of,
    numbers,
    prediction_of,
    returned,
    steps_of,
    time_of,
    x0_of,
)


@cached
def _ddim_step(now: Level, then: Level, kind: Any, eta: float, reuse: bool, clip: float, dynamic: bool) -> Step:
    step = first_order.ddim(now, then, predicted(kind, now), eta=eta, reuse_clamped=reuse)
    return replace(step, clip=clip, threshold=dynamic)


@steps_of("DDIMScheduler")
def ddim(call: Call, timestep: Any) -> Any:
    s, config, options = call.scheduler, call.scheduler.config, call.options
    if s.num_inference_steps is None or (
        options["eta"] > 0 and options["variance_noise"] is not None and options["generator"] is not None
    ):
        raise Unchanged
    t = time_of(s, timestep)
    now, then = level_of(s, t), level_of(s, t - config.num_train_timesteps // s.num_inference_steps)
    clip, call.threshold = clamp_of(config)
    reuse = options["use_clipped_model_output"]
    made = _ddim_step(now, then, prediction_of(config), options["eta"], reuse, clip, call.threshold is not None)
    return returned(call, "DDIMSchedulerOutput", call.apply(made)[0], x0_of(call, made))


@steps_of("DDIMInverseScheduler")
def ddim_inverse(call: Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    t = time_of(s, timestep)
    before = min(t - config.num_train_timesteps // s.num_inference_steps, config.num_train_timesteps - 1)
    now, then = level_of(s, before, "initial_alpha_cumprod"), level_of(s, t)
    made = _ddim_step(now, then, prediction_of(config), 0.0, False, clamp_of(config)[0], False)
    return returned(call, "DDIMSchedulerOutput", call.apply(made)[0], x0_of(call, made))


@cached
def _ddpm_step(now: Level, then: Level, kind: Any, variance: Any, noisy: bool, clip: float, dynamic: bool) -> Step:
    step = first_order.ddpm(now, then, predicted(kind, now), variance=variance, noisy=noisy)
    return replace(step, clip=clip, threshold=dynamic)


@steps_of("DDPMScheduler")
def ddpm(call: Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    variance = {"fixed_small_log": "fixed_small"}.get(s.variance_type, s.variance_type)
    if variance not in ("fixed_small", "fixed_large", "learned", "learned_range"):
        raise Unchanged
    t = time_of(s, timestep)
    if s.custom_timesteps or s.num_inference_steps:
        times = numbers(s, "timesteps")
        place = times.index(t)
        before = int(times[place + 1]) if place + 1 < len(times) else -1
    else:
        before = t - 1
    if "learned" in variance:
        if call.output.shape[1] != 2 * call.sample.shape[1]:
            raise Unchanged
        call.output, learned = call.output.split(call.sample.shape[1], 1)
        call.log_std = 0.5 * torch.log(learned) if variance == "learned" else learned
    clip, call.threshold = clamp_of(config)
    now, then = level_of(s, t), level_of(s, before, "one")
    made = _ddpm_step(now, then, prediction_of(config), variance, t > 0, clip, call.threshold is not None)
    if made.step.log_std is None:
        call.log_std = None
    return returned(call, "DDPMSchedulerOutput", call.apply(made)[0], x0_of(call, made))


@cached
def _pndm_step(now: Level, then: Level, kind: Any, output: Row, x: Row, rest: tuple[Row, ...]) -> Step:
    model = predicted(kind, now)
    return Step(*model.data, (adams.pndm(now, then, model, output, x), *rest))


@steps_of("PNDMScheduler")
def pndm(call: Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    if s.num_inference_steps is None or config.prediction_type not in ("epsilon", "v_prediction"):
        raise Unchanged
    if s.counter < len(s.prk_timesteps) and not config.skip_prk_steps:
        return _pndm_runge_kutta(call, timestep)
    if not config.skip_prk_steps and len(s.ets) < 3:
        raise Unchanged
    stride = config.num_train_timesteps // s.num_inference_steps
    t = time_of(s, timestep)
    x, history = X, []
    if s.counter != 1:
        s.ets = s.ets[-3:]
        s.ets.append(call.output)
        now, then = t, t - stride
        output = adams.adams(G, min(len(s.ets), 4))
        history = s.ets[-2::-1]
    else:
        now, then = t + stride, t
        output = adams.adams(G, min(len(s.ets), 4))
        history = s.ets[::-1]
    if len(s.ets) == 1 and s.counter == 0:
        s.cur_sample = call.sample
    elif len(s.ets) == 1 and s.counter == 1:
        output, x, history = (G + H(0)) / 2, H(1), [s.ets[-1], s.cur_sample]
        s.cur_sample = None
    elif s.counter == 1:  # times set again without a reset, or ets given from outside
        raise Unchanged
    made = _pndm_step(level_of(s, now), level_of(s, then), config.prediction_type, output, x, ())
    s.counter += 1
    return returned(call, "SchedulerOutput", call.apply(made, history)[0])


def _pndm_runge_kutta(call: Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    half = 0 if s.counter % 2 else config.num_train_timesteps // s.num_inference_steps // 2
    then = time_of(s, timestep) - half
    now = int(s.prk_timesteps[s.counter // 4 * 4])
    stage = s.counter % 4
    total = H(1) if isinstance(s.cur_model_output, Tensor) else Row()
    total += (1 / 6, 1 / 3, 1 / 3, 1 / 6)[stage] * G
    if stage == 0:
        s.ets.append(call.output)
        s.cur_sample = call.sample
    history = [call.sample if s.cur_sample is None else s.cur_sample, s.cur_model_output]
    output, rest = (G, (total,)) if stage < 3 else (total, ())
    made = _pndm_step(level_of(s, now), level_of(s, then), config.prediction_type, output, H(0), rest)
    results = call.apply(made, history)
    s.cur_model_output = results[1] if rest else 0
    s.counter += 1
    return returned(call, "SchedulerOutput", results[0])


@cached
def _lcm_step(then: Level, now: Level, kind: Any, skip: float, out: float, clip: float, dynamic: bool) -> Step:
    step = first_order.consistency(then, predicted(kind, now), skip=skip, out=out)
    return replace(step, rows=(*step.rows, skip * X + out * X0), clip=clip, threshold=dynamic)


@steps_of("LCMScheduler")
def lcm(call: Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    if s.num_inference_steps is None:
        raise Unchanged
    i = index_of(s, timestep)
    times = numbers(s, "timesteps")
    t = time_of(s, timestep)
    last = i == s.num_inference_steps - 1
    then = Level(1.0, 0.0) if last else level_of(s, int(times[i + 1]) if i + 1 < len(times) else t)
    skip, out = (float(value) for value in s.get_scalings_for_boundary_condition_discrete(t))
    clip, call.threshold = clamp_of(config)
    made = _lcm_step(then, level_of(s, t), prediction_of(config), skip, out, clip, call.threshold is not None)
    results = call.apply(made)
    s._step_index += 1
    return returned(call, "LCMSchedulerOutput", results[0], lambda: results[1])


@cached
def _tcd_step(now: Level, middle: Level, then: Level, kind: Any) -> Step:
    model = predicted(kind, now)
    step = first_order.trajectory_consistency(now, middle, then, model)
    return replace(step, rows=(*step.rows, middle.alpha * X0 + middle.sigma * model.eps))


@steps_of("TCDScheduler")
def tcd(call: Call, timestep: Any) -> Any:
    s, eta = call.scheduler, call.options["eta"]
    if s.num_inference_steps is None or not 0 <= eta <= 1:
        raise Unchanged
    i = index_of(s, timestep)
    times = numbers(s, "timesteps")
    after = int(times[i + 1]) if i + 1 < len(times) else 0
    middle = level_of(s, math.floor((1 - eta) * after))
    then = level_of(s, after) if eta > 0 and i != s.num_inference_steps - 1 else middle
    made = _tcd_step(level_of(s, time_of(s, timestep)), middle, then, prediction_of(s.config))
    results = call.apply(made)
    s._step_index += 1
    return returned(call, "TCDSchedulerOutput", results[0], lambda: results[1])


@cached
def _repaint_step(now: Level, then: Level, eta: float, clip: float) -> Step:
    return replace(sde.repaint(now, then, predicted("epsilon", now), eta=eta), clip=clip)


@steps_of("RePaintScheduler")
def repaint(call: Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    t = time_of(s, timestep)
    then = level_of(s, t - config.num_train_timesteps // s.num_inference_steps)
    made = _repaint_step(level_of(s, t), then, s.eta, 1.0 if config.clip_sample else math.inf)
    image, mask = call.options["original_image"], call.options["mask"]
    call.mask = image.expand_as(call.sample), mask.expand_as(call.sample)
    return returned(call, "RePaintSchedulerOutput", call.apply(made)[0], x0_of(call, made))
