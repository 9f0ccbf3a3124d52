"""Steps of exponential integrators: DPM-Solver, DEIS, UniPC."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...diffusion.coefficients import adams, exponential, first_order
from ...diffusion.level import Level, Predicted, flow, predicted, ve, vp
from ...diffusion.step import Step
from ._call import (
    Call,
    Made,
    Unchanged,
    advance,
    cached,
    clamp_of,
    index_of,
    numbers,
    preconditioned,
    prediction_of,
    returned,
    steps_of,
)


def _space(config: Any) -> str:
    if "sigma_data" in config:
        return "edm"
    return "flow" if config.get("use_flow_sigmas", False) else "vp"


_LEVELS: dict[str, Callable[[float], Level]] = {"edm": ve, "flow": flow, "vp": vp}


def level_at(config: Any) -> Callable[[float], Level]:
    """The levels of a solver's sigmas."""
    return _LEVELS[_space(config)]


def _said_as(config: Any) -> tuple[Any, float | None, str]:
    """What the network predicts, EDM's sigma_data, and the space of the states."""
    kind = prediction_of(config)
    space = _space(config)
    if (kind == "flow_prediction") != (space == "flow") and kind in ("flow_prediction", "v_prediction"):
        raise Unchanged  # the peer mixes the two spaces
    return kind, config.get("sigma_data"), space


def _levels(said: tuple[Any, float | None, str], sigmas: tuple[float, ...]) -> tuple[list[Level], Predicted]:
    """Levels of sigmas, those after and at a step first, and what the network says at it."""
    kind, sigma_data, space = said
    levels = [_LEVELS[space](sigma) for sigma in sigmas]
    now = levels[1]
    return levels, predicted(kind, now) if sigma_data is None else preconditioned(kind, now.sigma, sigma_data)


def _behind(sigmas: list[float], i: int, count: int) -> tuple[float, ...]:
    """The sigma after step i, its own, and those before, `count` + 1 in all."""
    return tuple(sigmas[i + 1 - k] for k in range(count + 1))


@cached
def _dpm_step(
    single: bool, said: Any, sigmas: tuple[float, ...], order: int, space: Any, solver: Any, eta: float, clip: float,
    dynamic: bool,
) -> Step:  # fmt: skip
    levels, model = _levels(said, sigmas)
    if space == "noise" and (dynamic or clip < math.inf):
        model = Predicted(model.x0, first_order.clamped_eps(levels[1]))
    third = -1.0 if eta and order == 3 and (not single or solver == "heun") else 0.0  # a sign is wrong in the peer
    build = exponential.dpm_singlestep if single else exponential.dpm_multistep
    step = build(levels, model, order=order, space=space, solver=solver, eta=eta, third=third)
    return replace(step, clip=clip, threshold=dynamic)


def _dpm_call(call: Call, i: int, order: int, single: bool) -> Made:
    """The step of a DPM-Solver scheduler, of the output that it is given."""
    s, config = call.scheduler, call.scheduler.config
    if config.get("variance_type") in ("learned", "learned_range"):
        call.output = call.output[:, :3]
    space = "data" if "++" in config.algorithm_type else "noise"
    sigmas = _behind(numbers(s, "sigmas"), i, order)
    clip, call.threshold = clamp_of(config)
    dynamic = call.threshold is not None
    eta = 1.0 if "sde" in config.algorithm_type else 0.0
    return _dpm_step(single, _said_as(config), sigmas, order, space, config.solver_type, eta, clip, dynamic)


def _shift(scheduler: Any, newest: Tensor) -> None:
    scheduler.model_outputs[:] = [*scheduler.model_outputs[1:], newest]


def _count(scheduler: Any) -> None:
    """One more step, as far as a scheduler's order goes."""
    if scheduler.lower_order_nums < scheduler.config.solver_order:
        scheduler.lower_order_nums += 1


@steps_of("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler")
def dpm_multistep(call: Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    if s.num_inference_steps is None:
        raise Unchanged
    i = index_of(s, timestep)
    n = s.timesteps.shape[0]
    few = config.lower_order_final and n < 15
    final = i == n - 1 and (config.euler_at_final or few or config.final_sigmas_type == "zero")
    order = min(config.solver_order, s.lower_order_nums + 1)
    order = 1 if final else min(order, 2) if i == n - 2 and few else order
    made = _dpm_call(call, i, order, single=False)
    type_of_x0 = torch.promote_types(call.sample.dtype, call.output.dtype)
    wide = torch.promote_types(type_of_x0, torch.float32)
    noise = call.options.get("variance_noise")
    if noise is not None:
        call.options["variance_noise"] = noise.to(device=call.output.device, dtype=wide)
    if not made.step.noisy and "sde" in config.algorithm_type and noise is None:
        advance(call)
    results = call.apply(made, s.model_outputs[::-1], noise_dtype=wide)
    _shift(s, results[1])
    _count(s)
    s._step_index += 1
    return returned(call, "SchedulerOutput", results[0])


@steps_of("DPMSolverSinglestepScheduler")
def dpm_singlestep(call: Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    if s.num_inference_steps is None or (config.thresholding and "++" not in config.algorithm_type):
        raise Unchanged
    i = index_of(s, timestep)
    order = s.order_list[i]
    while order > 1 and s.model_outputs[1 - order] is None:
        order -= 1
    if order == 1:
        s.sample = call.sample
    made = _dpm_call(call, i, order, single=True)
    if not made.step.noisy and "sde" in config.algorithm_type:
        advance(call)
    results = call.apply(made, [s.sample, *s.model_outputs[::-1]])
    _shift(s, results[1])
    s._step_index += 1
    return returned(call, "SchedulerOutput", results[0])


@cached
def _deis_step(said: Any, sigmas: tuple[float, ...], order: int, clip: float, dynamic: bool) -> Step:
    levels, model = _levels(said, sigmas)
    return replace(adams.deis(levels, model, order=order), clip=clip, threshold=dynamic)


@steps_of("DEISMultistepScheduler")
def deis(call: Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    if s.num_inference_steps is None:
        raise Unchanged
    i = index_of(s, timestep)
    n = s.timesteps.shape[0]
    few = config.lower_order_final and n < 15
    order = min(config.solver_order, s.lower_order_nums + 1)
    order = 1 if i == n - 1 and few else min(order, 2) if i == n - 2 and few else order
    sigmas = _behind(numbers(s, "sigmas"), i, order)
    clip, call.threshold = clamp_of(config)
    made = _deis_step(_said_as(config), sigmas, order, clip, call.threshold is not None)
    results = call.apply(made, s.model_outputs[::-1])
    _shift(s, results[1])
    _count(s)
    s._step_index += 1
    return returned(call, "SchedulerOutput", results[0])


@cached
def _unipc_step(
    said: Any, sigmas: tuple[float, ...], order: int, correct: int, space: Any, kind: Any, clip: float, dynamic: bool
) -> Step:
    levels, model = _levels(said, sigmas)
    step = exponential.unipc(levels, model, order=order, correct=correct, space=space, kind=kind)
    return replace(step, clip=clip, threshold=dynamic)


@steps_of("UniPCMultistepScheduler")
def unipc(call: Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    if s.num_inference_steps is None or s.solver_p is not None:
        raise Unchanged
    i = index_of(s, timestep)
    correct = s.this_order if i > 0 and i - 1 not in s.disable_corrector and s.last_sample is not None else 0
    order = min(config.solver_order, s.timesteps.shape[0] - i if config.lower_order_final else config.solver_order)
    order = min(order, s.lower_order_nums + 1)
    sigmas = _behind(numbers(s, "sigmas"), i, min(max(order, correct + 1), i + 1))
    space = "data" if s.predict_x0 else "noise"
    clip, call.threshold = clamp_of(config) if s.predict_x0 else (math.inf, None)
    dynamic = call.threshold is not None
    made = _unipc_step(_said_as(config), sigmas, order, correct, space, config.solver_type, clip, dynamic)
    results = call.apply(made, [s.last_sample, *s.model_outputs[::-1]])
    _shift(s, results[1])
    s.timestep_list[:] = [*s.timestep_list[1:], timestep]
    s.this_order, s.last_sample = order, results[2] if correct else call.sample
    _count(s)
    s._step_index += 1
    return returned(call, "SchedulerOutput", results[0])
