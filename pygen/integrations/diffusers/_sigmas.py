"""Steps of schedulers that run along sigmas."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...diffusion.coefficients import adams, first_order, two_stage
from ...diffusion.level import Level, Predicted, flow, predicted, ve
from ...diffusion.step import G, H, Row, Step, X, Z
from ._call import (
    Call,
    Unchanged,
    advance,
    cached,
    clamp_of,
    index_of,
    kept,
    numbers,
    preconditioned,
    prediction_of,
    returned,
    steps_of,
    x0_of,
)


def _churn(call: Call, sigmas: list[float], sigma: float) -> float:
    options = call.options
    if not options["s_tmin"] <= sigma <= options["s_tmax"]:
        return 0.0
    return float(min(options["s_churn"] / (len(sigmas) - 1), math.sqrt(2) - 1))


@cached
def _euler_step(kind: Any, sigma_data: float | None, sigma: float, hat: float, then: float, noise_scale: float) -> Step:
    """Churn comes after the network was asked: it says x0, in a second row, of the state with noise."""
    if sigma_data is not None:
        model = preconditioned(kind, hat, sigma_data)
    else:
        model = predicted(kind, ve(hat if kind == "epsilon" else sigma))
    if hat == sigma:
        return two_stage.euler(ve(sigma), ve(then), model)
    x = X + noise_scale * math.sqrt(hat**2 - sigma**2) * Z
    x0 = model.x0.x * x + model.x0.g * G
    return Step(0.0, 0.0, (x + (then - hat) / hat * (x - x0), x0))


@steps_of("EDMEulerScheduler", "EulerDiscreteScheduler")
def euler(call: Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    if isinstance(timestep, (int, torch.IntTensor, torch.LongTensor)) or not s.is_scale_input_called:
        raise Unchanged
    if call.options.get("pred_original_sample") is not None:
        raise Unchanged
    i = index_of(s, timestep)
    sigmas = numbers(s, "sigmas")
    sigma = sigmas[i]
    hat = sigma * (1 + _churn(call, sigmas, sigma))
    sigma_data = config.get("sigma_data")
    made = _euler_step(prediction_of(config), sigma_data, sigma, hat, sigmas[i + 1], call.options["s_noise"])
    wide = torch.promote_types(call.sample.dtype, torch.float32)
    result, *noisy_x0 = call.apply(made, dtypes=[call.output.dtype, wide][: len(made.step.rows)])
    s._step_index += 1
    name = "EulerDiscreteSchedulerOutput" if sigma_data is None else "EDMEulerSchedulerOutput"
    return returned(call, name, result, (lambda: noisy_x0[0]) if noisy_x0 else x0_of(call, made, wide))


@cached
def _ancestral_step(kind: Any, sigma: float, then: float) -> Step:
    return first_order.ddim(ve(sigma), ve(then), predicted(kind, ve(sigma)), eta=1.0, reuse_clamped=True)


@steps_of("EulerAncestralDiscreteScheduler")
def euler_ancestral(call: Call, timestep: Any) -> Any:
    s = call.scheduler
    kind = s.config.prediction_type
    if isinstance(timestep, (int, torch.IntTensor, torch.LongTensor)) or not s.is_scale_input_called:
        raise Unchanged
    if kind not in ("epsilon", "v_prediction"):
        raise Unchanged
    i = index_of(s, timestep)
    sigmas = numbers(s, "sigmas")
    made = _ancestral_step(kind, sigmas[i], sigmas[i + 1])
    if not made.step.noisy:  # it draws at the last step too
        advance(call)
    wide = torch.promote_types(call.sample.dtype, torch.float32)
    result = call.apply(made, dtypes=[call.output.dtype])[0]
    s._step_index += 1
    return returned(call, "EulerAncestralDiscreteSchedulerOutput", result, x0_of(call, made, wide))


@cached
def _heun_step(kind: Any, sigma: float, then: float, second: bool, clip: float) -> Step:
    if second:
        return replace(two_stage.heun_second(ve(sigma), ve(then), predicted(kind, ve(then))), clip=clip)
    return replace(two_stage.heun_first(ve(sigma), ve(then), predicted(kind, ve(sigma))), clip=clip)


@steps_of("HeunDiscreteScheduler")
def heun(call: Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    i = index_of(s, timestep)
    sigmas = numbers(s, "sigmas")
    second = not s.state_in_first_order
    made = _heun_step(prediction_of(config), sigmas[i - second], sigmas[i + 1 - second], second, clamp_of(config)[0])
    results = call.apply(made, [s.sample, s.prev_derivative] if second else ())
    if second:
        s.prev_derivative = s.dt = s.sample = None
    else:
        s.prev_derivative, s.sample = results[1], call.sample
        s.dt = s.sigmas[i + 1] - s.sigmas[i]
    s._step_index += 1
    return returned(call, "HeunDiscreteSchedulerOutput", results[0], x0_of(call, made))


@cached
def _flow_heun_first(sigma: float, hat: float, then: float, noise_scale: float) -> Step:
    """Churn comes after the network was asked; a third row is the state with its noise."""
    x = X + noise_scale * math.sqrt(hat**2 - sigma**2) * Z if hat > sigma else X
    slope = sigma / hat * G
    return Step(0.0, 0.0, (x + (then - hat) * slope, slope, x)[: 3 if hat > sigma else 2])


@cached
def _flow_heun_second(distance: float) -> Step:
    return Step(0.0, 0.0, (H(0) + distance / 2 * (H(1) + G),))


@steps_of("FlowMatchHeunDiscreteScheduler")
def flow_heun(call: Call, timestep: Any) -> Any:
    s = call.scheduler
    if isinstance(timestep, (int, torch.IntTensor, torch.LongTensor)):
        raise Unchanged
    i = index_of(s, timestep)
    sigmas = numbers(s, "sigmas")
    second = not s.state_in_first_order
    sigma, then = sigmas[i - second], sigmas[i + 1 - second]
    hat = sigma * (1 + _churn(call, sigmas, sigma))
    wide = torch.promote_types(call.sample.dtype, torch.float32)
    if second:
        made = _flow_heun_second(kept(s, "dt", s.dt, s.dt.item))
        if hat > sigma:  # its noise cancels
            advance(call)
        result = call.apply(made, [s.sample, s.prev_derivative], dtypes=[call.output.dtype])[0]
        s.prev_derivative = s.dt = s.sample = None
    else:
        made = _flow_heun_first(sigma, hat, then, call.options["s_noise"])
        types = [call.output.dtype, torch.promote_types(wide, call.output.dtype), wide]
        result, s.prev_derivative, *noisy = call.apply(made, dtypes=types[: len(made.step.rows)])
        s.sample = noisy[0] if noisy else call.sample.to(wide)
        s.dt = s.sigmas[i + 1] - s.sigmas[i] * (hat / sigma)
        kept(s, "dt", s.dt, lambda: then - hat)  # without a wait for the device
    s._step_index += 1
    return returned(call, "FlowMatchHeunDiscreteSchedulerOutput", result)


@cached
def _dpm2_step(kind: Any, sigma: float, middle: float, then: float, second: bool, std: float) -> Step:
    if second:
        model = predicted(kind, ve(middle))
        return two_stage.midpoint_second(ve(sigma), ve(middle), ve(then), model, std=std)
    return two_stage.midpoint_first(ve(sigma), ve(middle), predicted(kind, ve(sigma)))


@steps_of("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler")
def dpm2(call: Call, timestep: Any) -> Any:
    s, kind = call.scheduler, call.scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise Unchanged
    i = index_of(s, timestep)
    second = not s.state_in_first_order
    first = i - second  # of the step
    sigmas, middles = numbers(s, "sigmas"), numbers(s, "sigmas_interpol")
    std = 0.0
    if hasattr(s, "sigmas_up"):
        middle, then = middles[first], numbers(s, "sigmas_down")[first]
        std = numbers(s, "sigmas_up")[first] if second else 0.0
        name = "KDPM2AncestralDiscreteSchedulerOutput"
    else:
        middle, then, name = middles[first + 1], sigmas[first + 1], "KDPM2DiscreteSchedulerOutput"
    made = _dpm2_step(kind, sigmas[first], middle, then, second, std)
    if second and name.startswith("KDPM2A") and not made.step.noisy:
        advance(call)
    result = call.apply(made, [s.sample] if second else ())[0]
    if not second and name.startswith("KDPM2A"):
        s.dt = s.sigmas_interpol[i] - s.sigmas[i]
    s.sample = None if second else call.sample
    s._step_index += 1
    return returned(call, name, result, x0_of(call, made))


@cached
def _lms_step(kind: Any, sigmas: tuple[float, ...], order: int, past: int) -> Step:
    step = adams.lms([ve(sigma) for sigma in sigmas], predicted(kind, ve(sigmas[1])), order=order)
    row, slope = step.rows
    return replace(step, rows=(replace(row, history=row.history[:past]), slope))


@steps_of("LMSDiscreteScheduler")
def lms(call: Call, timestep: Any) -> Any:
    s = call.scheduler
    if not s.is_scale_input_called:
        raise Unchanged
    i = index_of(s, timestep)
    order = min(i + 1, call.options["order"])
    sigmas = numbers(s, "sigmas")
    s.derivatives = s.derivatives[-call.options["order"] :]
    past = s.derivatives[::-1][: call.options["order"] - 1]
    made = _lms_step(prediction_of(s.config), tuple(sigmas[i + 1 - k] for k in range(order + 1)), order, len(past))
    results = call.apply(made, past)
    s.derivatives.append(results[1])
    if len(s.derivatives) > call.options["order"]:
        s.derivatives.pop(0)
    s._step_index += 1
    return returned(call, "LMSDiscreteSchedulerOutput", results[0], x0_of(call, made))


@cached
def _ipndm_step(now: Level, then: Level, order: int) -> Step:
    """Of a network's v, at a level whose squares sum to 1 but for rounding; without data eps alone matters."""
    eps = now.sigma * X + now.alpha * G
    return adams.ipndm(Level(max(now.alpha, 1e-8), now.sigma), then, Predicted(Row(), eps), order=order)


@steps_of("IPNDMScheduler")
def ipndm(call: Call, timestep: Any) -> Any:
    s = call.scheduler
    if s.num_inference_steps is None:
        raise Unchanged
    i = index_of(s, timestep)
    alphas, betas = numbers(s, "alphas"), numbers(s, "betas")
    now, then = Level(alphas[i], betas[i]), Level(alphas[i + 1], betas[i + 1])
    made = _ipndm_step(now, then, min(len(s.ets) + 1, 4))
    results = call.apply(made, s.ets[::-1])
    s.ets.append(results[1])
    s._step_index += 1
    return returned(call, "SchedulerOutput", results[0])


@cached
def _consistency_step(sigma: float, then: float, sigma_data: float, least: float, scale: float, clip: float) -> Step:
    model = predicted("consistency", ve(sigma), sigma_data, least)
    added = ve(math.sqrt(max(then**2 - least**2, 0.0)))
    return replace(first_order.consistency(added, model, noise_scale=scale), clip=clip)


@steps_of("CMStochasticIterativeScheduler")
def consistency(call: Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    if isinstance(timestep, (int, torch.IntTensor, torch.LongTensor)) or not s.is_scale_input_called:
        raise Unchanged
    i = index_of(s, timestep)
    sigmas = numbers(s, "sigmas")
    after = sigmas[i + 1] if i + 1 < config.num_train_timesteps else sigmas[-1]
    then = min(max(after, config.sigma_min), config.sigma_max)
    scale = config.s_noise if s.timesteps.shape[0] > 1 else 0.0
    clip = 1.0 if config.clip_denoised else math.inf
    made = _consistency_step(sigmas[i], then, config.sigma_data, config.sigma_min, scale, clip)
    if not made.step.noisy and s.timesteps.shape[0] > 1:
        advance(call)
    result = call.apply(made)[0]
    s._step_index += 1
    return returned(call, "CMStochasticIterativeSchedulerOutput", result)


@cached
def _flow_step(sigma: float, then: float, stochastic: bool) -> Step:
    model = predicted("flow_prediction", flow(sigma))
    if stochastic:
        return first_order.consistency(flow(then), model)
    return Step(*model.data, (X + (then - sigma) * G,))


@steps_of("FlowMatchEulerDiscreteScheduler")
def flow_euler(call: Call, timestep: Any) -> Any:
    s = call.scheduler
    if isinstance(timestep, (int, torch.IntTensor, torch.LongTensor)):
        raise Unchanged
    if call.options["per_token_timesteps"] is not None:
        return _flow_euler_of_tokens(call, timestep, call.options["per_token_timesteps"])
    i = index_of(s, timestep)
    sigmas = numbers(s, "sigmas")
    made = _flow_step(sigmas[i], sigmas[i + 1], bool(s.config.stochastic_sampling))
    wide = torch.promote_types(call.sample.dtype, torch.float32)
    if s.config.stochastic_sampling and not made.step.noisy:
        advance(call)
    result = call.apply(made, noise_dtype=wide, dtypes=[call.output.dtype])[0]
    s._step_index += 1
    return returned(call, "FlowMatchEulerDiscreteSchedulerOutput", result)


def _flow_euler_of_tokens(call: Call, timestep: Any, times: Any) -> Any:
    """For x [B, L, C] and times [B, L]: each token goes to the next sigma below its own, along the output.

    With the other sign than a whole sample: pipelines that tell tokens apart negate what the network says. A pass or
    two of torch's own are as fast as a table with a row for every token.
    """
    s, x, output = call.scheduler, call.sample, call.output
    if not (isinstance(times, Tensor) and times.is_floating_point() and times.device == x.device):
        raise Unchanged
    if x.dim() != 3 or x.shape != output.shape or times.shape != x.shape[:2]:
        raise Unchanged
    index_of(s, timestep)
    levels = kept(
        s, ("levels", x.device), s.sigmas,
        lambda: torch.tensor([0.0, *sorted(numbers(s, "sigmas"))], dtype=torch.float64, device=x.device),
    )  # fmt: skip
    now = times / s.config.num_train_timesteps
    then = levels[torch.searchsorted(levels[1:], (now - 1e-6).double())]
    now = now.double()
    wide = torch.promote_types(x.dtype, torch.float32)
    own = torch.promote_types(torch.promote_types(wide, times.dtype), output.dtype)
    x, output = x.to(own), output.to(own)
    if s.config.stochastic_sampling:
        x0 = torch.addcmul(x, -now.to(own)[..., None], output)
        result = torch.lerp(x0, call.noise(wide).to(own), then.to(own)[..., None])
    else:
        result = torch.addcmul(x, (now - then).to(own)[..., None], output)
    s._step_index += 1
    return returned(call, "FlowMatchEulerDiscreteSchedulerOutput", result)
