"""diffusers' schedulers with steps of one pass each: the same classes, configurations, signatures, state and results.

    from pygen.integrations.diffusers import patch, patch_scheduler
    patch_scheduler(pipe.scheduler)          # this one, from now on
    with patch():                            # every scheduler, while it lasts
        pipe(...)

`step` computes what the scheduler's own does, in float32 at least (float64 for float64 samples) and rounds once; its
coefficients are float64, of the scheduler's float32 tables. Where it has an option that is not covered here (see
`covered`), or raises, the scheduler's own `step` is called.

Noise is torch's own, of the generator or of the global seed, as without the patch; noise="pygen" takes it from
`pygen.random` instead, so that it depends on the seed, the sample and the step alone, whatever the batch or device. Its
seed is drawn from the generator, or torch's default one, at the first step of a run.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .._extras import need
from .._seed import seed_of
from ..diffusion._apply import diffusion_step
from ..diffusion.coefficients import adams, exponential, first_order, sde, two_stage
from ..diffusion.level import Level, Predicted, cumulative, flow, predicted, ve, vp
from ..diffusion.loop import Threshold
from ..diffusion.step import X0, G, H, Row, Step, X, Z, table

Noise = Literal["torch", "pygen"]

__all__ = ["covered", "patch", "patch_scheduler"]


class _Made(NamedTuple):
    """A step and its table."""

    step: Step
    table: Tensor


def _cached(build: Callable[..., Step]) -> Callable[..., _Made]:
    """A step's coefficients are made once for the same numbers."""

    @functools.lru_cache(maxsize=8192)
    def made(*args: Any) -> _Made:
        step = build(*args)
        return _Made(step, table([step]))

    return made


class _Unchanged(Exception):
    """The scheduler's own step is to be called."""


# --- what a scheduler has at hand -------------------------------------------------------------------------------------


def _numbers(scheduler: Any, name: str) -> list[float]:
    """A table of a scheduler, as numbers; read again only when it is another."""
    tensor = getattr(scheduler, name)
    cache = scheduler.__dict__.setdefault("_pygen_numbers", {})
    found = cache.get(name)
    if found is None or found[0] is not tensor or found[1] != tensor._version:
        found = cache[name] = (tensor, tensor._version, tensor.tolist())
    return found[2]  # type: ignore[no-any-return]


def _index(scheduler: Any, timestep: Any) -> int:
    """Of the step that is due, for schedulers that count."""
    if scheduler.step_index is None:
        place = _place(scheduler, timestep)
        if place is None or scheduler.begin_index is not None:
            scheduler._init_step_index(timestep)
        else:
            scheduler._step_index = place
    return int(scheduler.step_index)


def _place(scheduler: Any, timestep: Any) -> int | None:
    """Where a timestep is among the scheduler's, if it is one of their views on a GPU: without a wait for it."""
    times = scheduler.timesteps
    if not isinstance(timestep, Tensor) or timestep.device.type == "cpu" or timestep.dim() != 0:
        return None
    if timestep.untyped_storage().data_ptr() != times.untyped_storage().data_ptr() or times.dim() != 1:
        return None
    place = timestep.storage_offset() - times.storage_offset()
    repeated = _numbers(scheduler, "timesteps")
    return place // times.stride(0) if repeated.count(repeated[place // times.stride(0)]) == 1 else None


def _time(scheduler: Any, timestep: Any) -> int:
    """A timestep as a number."""
    if not isinstance(timestep, Tensor):
        return int(timestep)
    place = _place(scheduler, timestep)
    return int(timestep.item()) if place is None else int(_numbers(scheduler, "timesteps")[place])


def _level(scheduler: Any, time: int, beyond: str = "final_alpha_cumprod") -> Level:
    """Of a time of a discrete schedule; below 0, of an attribute of the scheduler."""
    if time >= 0:
        return cumulative(_numbers(scheduler, "alphas_cumprod")[time])
    return cumulative(float(getattr(scheduler, beyond)))


def _clamp(config: Any) -> tuple[float, Threshold | None]:
    """The bound of x0, or its dynamic threshold; one of at most 1 is a bound of 1."""
    if config.get("thresholding", False):
        if config.sample_max_value <= 1:
            return 1.0, None
        return math.inf, Threshold(config.dynamic_thresholding_ratio, config.sample_max_value)
    return (config.get("clip_sample_range", 1.0) if config.get("clip_sample", False) else math.inf), None


def _prediction(config: Any) -> Any:
    kind = config.get("prediction_type", "epsilon")
    return "sample" if kind == "original_sample" else kind


# --- one step ---------------------------------------------------------------------------------------------------------


class _Call:
    """One call of a scheduler's step."""

    def __init__(self, scheduler: Any, model_output: Tensor, sample: Tensor, options: dict[str, Any]) -> None:
        self.scheduler, self.output, self.sample, self.options = scheduler, model_output, sample, options
        self.threshold: Threshold | None = None
        self.log_std: Tensor | None = None
        self.mask: tuple[Tensor, Tensor] | None = None

    def drawn(self, made: _Made, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """Arguments of the op for noise, if the step has any: like the model's output, or of another type."""
        if not made.step.noisy:
            return {}
        given = self.options.get("variance_noise")
        if given is not None:
            return {"noise": given}
        generator = self.options.get("generator")
        if self.scheduler.__dict__.get("_pygen_noise") == "pygen":
            return {"draws": True, **self._stream(generator)}
        home = sys.modules[_home(type(self.scheduler)).__module__]
        like = self.output if self.log_std is None else self.sample
        return {
            "noise": home.randn_tensor(
                like.shape, generator=generator, device=like.device, dtype=dtype or self.output.dtype
            )
        }

    def _stream(self, generator: Any) -> dict[str, Any]:
        """Seed and step of the package's stream: steps are counted from where the scheduler's times were set."""
        if isinstance(generator, list):
            raise ValueError("expected one generator for noise='pygen', which tells samples apart by their number")
        state = self.scheduler.__dict__
        times = self.scheduler.timesteps
        if state.get("_pygen_run", (None,))[0] is not times:
            state["_pygen_run"] = (times, seed_of(generator), 0)
        _, seed, count = state["_pygen_run"]
        state["_pygen_run"] = (times, seed, count + 1)
        return {"generator": seed, "step": count}

    def apply(
        self,
        made: _Made,
        history: Sequence[Any] = (),
        *,
        x: Tensor | None = None,
        noise_dtype: torch.dtype | None = None,
        dtypes: Sequence[torch.dtype] | None = None,
    ) -> list[Tensor]:
        """The step's results; the first in the type that its operands have together, unless `dtypes` says."""
        step = made.step
        x = self.sample if x is None else x
        bound = None
        if step.threshold and self.threshold is not None:
            bound = self.threshold.of(x, self.output, step)
        own = torch.promote_types(x.dtype, self.output.dtype)
        return diffusion_step(
            x, [self.output], made.table, 0,
            rows=len(step.rows),
            history=[history[i] for i in step.reads],
            threshold=bound,
            log_std=self.log_std,
            known=None if self.mask is None else self.mask[0],
            known_mask=None if self.mask is None else self.mask[1],
            dtypes=dtypes or [own] * len(step.rows),
            **self.drawn(made, noise_dtype),
        )  # fmt: skip


class _Pair(tuple):  # type: ignore[type-arg]
    """(prev_sample, x0) whose second is computed when it is asked for, since pipelines never do."""

    _second: Callable[[], Tensor]

    def __new__(cls, first: Tensor, second: Callable[[], Tensor]) -> _Pair:
        pair = super().__new__(cls, (first, None))
        pair._second = functools.cache(second)
        return pair

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) and index in (0, -2):
            return super().__getitem__(index)
        return (super().__getitem__(0), self._second())[index]

    def __iter__(self) -> Iterator[Tensor]:
        yield self[0]
        yield self._second()


def _returned(call: _Call, name: str, first: Tensor, second: Callable[[], Tensor] | None = None) -> Any:
    """As the scheduler returns it: a tuple, or its class of outputs."""
    if not call.options["return_dict"]:
        return (first,) if second is None else _Pair(first, second)
    kind = getattr(sys.modules[_home(type(call.scheduler)).__module__], name)
    if second is None:
        return kind(prev_sample=first)
    rest = next(field for field in inspect.signature(kind).parameters if field != "prev_sample")
    return kind(prev_sample=first, **{rest: second()})


def _x0_of(call: _Call, made: _Made, dtype: torch.dtype | None = None) -> Callable[[], Tensor]:
    """The data predicted, when asked for."""
    sample, output = call.sample, call.output
    step = Step(made.step.p, made.step.q, (X0,), clip=made.step.clip, threshold=made.step.threshold)

    def compute() -> Tensor:
        told = _Call(call.scheduler, output, sample, {})
        told.threshold = call.threshold
        return told.apply(
            _Made(step, table([step])), dtypes=[dtype or torch.promote_types(sample.dtype, output.dtype)]
        )[0]

    return compute


# --- schedulers of discrete times -------------------------------------------------------------------------------------


@_cached
def _ddim_step(now: Level, then: Level, kind: Any, eta: float, reuse: bool, clip: float, dynamic: bool) -> Step:
    step = first_order.ddim(now, then, predicted(kind, now), eta=eta, reuse_clamped=reuse)
    return replace(step, clip=clip, threshold=dynamic)


def _ddim(call: _Call, timestep: Any) -> Any:
    s, config, options = call.scheduler, call.scheduler.config, call.options
    if s.num_inference_steps is None or (
        options["eta"] > 0 and options["variance_noise"] is not None and options["generator"] is not None
    ):
        raise _Unchanged
    t = _time(s, timestep)
    now, then = _level(s, t), _level(s, t - config.num_train_timesteps // s.num_inference_steps)
    clip, call.threshold = _clamp(config)
    reuse = options["use_clipped_model_output"]
    made = _ddim_step(now, then, _prediction(config), options["eta"], reuse, clip, call.threshold is not None)
    return _returned(call, "DDIMSchedulerOutput", call.apply(made)[0], _x0_of(call, made))


def _ddim_inverse(call: _Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    t = _time(s, timestep)
    before = min(t - config.num_train_timesteps // s.num_inference_steps, config.num_train_timesteps - 1)
    now, then = _level(s, before, "initial_alpha_cumprod"), _level(s, t)
    made = _ddim_step(now, then, _prediction(config), 0.0, False, _clamp(config)[0], False)
    return _returned(call, "DDIMSchedulerOutput", call.apply(made)[0], _x0_of(call, made))


@_cached
def _ddpm_step(now: Level, then: Level, kind: Any, variance: Any, noisy: bool, clip: float, dynamic: bool) -> Step:
    step = first_order.ddpm(now, then, predicted(kind, now), variance=variance, noisy=noisy)
    return replace(step, clip=clip, threshold=dynamic)


def _ddpm(call: _Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    variance = {"fixed_small_log": "fixed_small"}.get(s.variance_type, s.variance_type)
    if variance not in ("fixed_small", "fixed_large", "learned", "learned_range"):
        raise _Unchanged
    t = _time(s, timestep)
    if s.custom_timesteps or s.num_inference_steps:
        times = _numbers(s, "timesteps")
        place = times.index(t)
        before = int(times[place + 1]) if place + 1 < len(times) else -1
    else:
        before = t - 1
    if "learned" in variance:
        if call.output.shape[1] != 2 * call.sample.shape[1]:
            raise _Unchanged
        call.output, learned = call.output.split(call.sample.shape[1], 1)
        call.log_std = 0.5 * torch.log(learned) if variance == "learned" else learned
    clip, call.threshold = _clamp(config)
    now, then = _level(s, t), _level(s, before, "one")
    made = _ddpm_step(now, then, _prediction(config), variance, t > 0, clip, call.threshold is not None)
    if made.step.log_std is None:
        call.log_std = None
    return _returned(call, "DDPMSchedulerOutput", call.apply(made)[0], _x0_of(call, made))


@_cached
def _pndm_step(now: Level, then: Level, kind: Any, output: Row, x: Row, rest: tuple[Row, ...]) -> Step:
    model = predicted(kind, now)
    return Step(*model.data, (adams.pndm(now, then, model, output, x), *rest))


def _pndm(call: _Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    if s.num_inference_steps is None or config.prediction_type not in ("epsilon", "v_prediction"):
        raise _Unchanged
    if s.counter < len(s.prk_timesteps) and not config.skip_prk_steps:
        return _pndm_runge_kutta(call, timestep)
    if not config.skip_prk_steps and len(s.ets) < 3:
        raise _Unchanged
    stride = config.num_train_timesteps // s.num_inference_steps
    t = _time(s, timestep)
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
        raise _Unchanged
    made = _pndm_step(_level(s, now), _level(s, then), config.prediction_type, output, x, ())
    s.counter += 1
    return _returned(call, "SchedulerOutput", call.apply(made, history)[0])


def _pndm_runge_kutta(call: _Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    half = 0 if s.counter % 2 else config.num_train_timesteps // s.num_inference_steps // 2
    then = _time(s, timestep) - half
    now = int(s.prk_timesteps[s.counter // 4 * 4])
    stage = s.counter % 4
    total = H(1) if isinstance(s.cur_model_output, Tensor) else Row()
    total += (1 / 6, 1 / 3, 1 / 3, 1 / 6)[stage] * G
    if stage == 0:
        s.ets.append(call.output)
        s.cur_sample = call.sample
    history = [call.sample if s.cur_sample is None else s.cur_sample, s.cur_model_output]
    output, rest = (G, (total,)) if stage < 3 else (total, ())
    made = _pndm_step(_level(s, now), _level(s, then), config.prediction_type, output, H(0), rest)
    results = call.apply(made, history)
    s.cur_model_output = results[1] if rest else 0
    s.counter += 1
    return _returned(call, "SchedulerOutput", results[0])


@_cached
def _lcm_step(then: Level, now: Level, kind: Any, skip: float, out: float, clip: float, dynamic: bool) -> Step:
    step = first_order.consistency(then, predicted(kind, now), skip=skip, out=out)
    return replace(step, rows=(*step.rows, skip * X + out * X0), clip=clip, threshold=dynamic)


def _lcm(call: _Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    if s.num_inference_steps is None:
        raise _Unchanged
    i = _index(s, timestep)
    times = _numbers(s, "timesteps")
    t = _time(s, timestep)
    last = i == s.num_inference_steps - 1
    then = Level(1.0, 0.0) if last else _level(s, int(times[i + 1]) if i + 1 < len(times) else t)
    skip, out = (float(value) for value in s.get_scalings_for_boundary_condition_discrete(t))
    clip, call.threshold = _clamp(config)
    made = _lcm_step(then, _level(s, t), _prediction(config), skip, out, clip, call.threshold is not None)
    results = call.apply(made)
    s._step_index += 1
    return _returned(call, "LCMSchedulerOutput", results[0], lambda: results[1])


@_cached
def _tcd_step(now: Level, middle: Level, then: Level, kind: Any) -> Step:
    model = predicted(kind, now)
    step = first_order.trajectory_consistency(now, middle, then, model)
    return replace(step, rows=(*step.rows, middle.alpha * X0 + middle.sigma * model.eps))


def _tcd(call: _Call, timestep: Any) -> Any:
    s, eta = call.scheduler, call.options["eta"]
    if s.num_inference_steps is None or not 0 <= eta <= 1:
        raise _Unchanged
    i = _index(s, timestep)
    times = _numbers(s, "timesteps")
    after = int(times[i + 1]) if i + 1 < len(times) else 0
    middle = _level(s, math.floor((1 - eta) * after))
    then = _level(s, after) if eta > 0 and i != s.num_inference_steps - 1 else middle
    made = _tcd_step(_level(s, _time(s, timestep)), middle, then, _prediction(s.config))
    results = call.apply(made)
    s._step_index += 1
    return _returned(call, "TCDSchedulerOutput", results[0], lambda: results[1])


@_cached
def _repaint_step(now: Level, then: Level, eta: float, clip: float) -> Step:
    return replace(sde.repaint(now, then, predicted("epsilon", now), eta=eta), clip=clip)


def _repaint(call: _Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    t = _time(s, timestep)
    then = _level(s, t - config.num_train_timesteps // s.num_inference_steps)
    made = _repaint_step(_level(s, t), then, s.eta, 1.0 if config.clip_sample else math.inf)
    image, mask = call.options["original_image"], call.options["mask"]
    call.mask = image.expand_as(call.sample), mask.expand_as(call.sample)
    return _returned(call, "RePaintSchedulerOutput", call.apply(made)[0], _x0_of(call, made))


# --- schedulers of sigmas ---------------------------------------------------------------------------------------------


def _churn(call: _Call, sigmas: list[float], sigma: float) -> float:
    options = call.options
    if not options["s_tmin"] <= sigma <= options["s_tmax"]:
        return 0.0
    return float(min(options["s_churn"] / (len(sigmas) - 1), math.sqrt(2) - 1))


def _preconditioned(kind: Any, sigma: float, sigma_data: float) -> Predicted:
    """As EDM's schedulers have it, where a v is the negative of Karras' F."""
    model = predicted("edm", ve(sigma), sigma_data)
    if kind == "epsilon":
        return model
    return Predicted(replace(model.x0, g=-model.x0.g), replace(model.eps, g=-model.eps.g))


@_cached
def _euler_step(model: Predicted, sigma: float, hat: float, then: float, noise_scale: float) -> Step:
    """Churn comes after the network was asked: it says x0 of the state with noise."""
    x = X + noise_scale * math.sqrt(max(hat**2 - sigma**2, 0.0)) * Z
    x0 = model.x0.x * x + model.x0.g * G
    return Step(0.0, 0.0, (x + (then - hat) / hat * (x - x0), x0))


def _euler(call: _Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    edm = "sigma_data" in config
    if isinstance(timestep, (int, torch.IntTensor, torch.LongTensor)) or not s.is_scale_input_called:
        raise _Unchanged
    if call.options.get("pred_original_sample") is not None:
        raise _Unchanged
    i = _index(s, timestep)
    sigmas = _numbers(s, "sigmas")
    sigma = sigmas[i]
    hat = sigma * (1 + _churn(call, sigmas, sigma))
    kind = _prediction(config)
    if edm:
        model = _preconditioned(kind, hat, config.sigma_data)
    else:
        model = predicted(kind, ve(hat if kind == "epsilon" else sigma))
    made = _euler_step(model, sigma, hat, sigmas[i + 1], call.options["s_noise"])
    wide = torch.promote_types(call.sample.dtype, torch.float32)
    results = call.apply(made, dtypes=[call.output.dtype, wide])
    s._step_index += 1
    return _returned(
        call, "EDMEulerSchedulerOutput" if edm else "EulerDiscreteSchedulerOutput", results[0], lambda: results[1]
    )


@_cached
def _ancestral_step(kind: Any, sigma: float, then: float) -> Step:
    return first_order.ddim(ve(sigma), ve(then), predicted(kind, ve(sigma)), eta=1.0, reuse_clamped=True)


def _euler_ancestral(call: _Call, timestep: Any) -> Any:
    s = call.scheduler
    kind = s.config.prediction_type
    if isinstance(timestep, (int, torch.IntTensor, torch.LongTensor)) or not s.is_scale_input_called:
        raise _Unchanged
    if kind not in ("epsilon", "v_prediction"):
        raise _Unchanged
    i = _index(s, timestep)
    sigmas = _numbers(s, "sigmas")
    made = _ancestral_step(kind, sigmas[i], sigmas[i + 1])
    if not made.step.noisy:  # it draws at the last step too
        _advance(call)
    wide = torch.promote_types(call.sample.dtype, torch.float32)
    result = call.apply(made, dtypes=[call.output.dtype])[0]
    s._step_index += 1
    return _returned(call, "EulerAncestralDiscreteSchedulerOutput", result, _x0_of(call, made, wide))


def _advance(call: _Call) -> None:
    """Draws what the scheduler draws and multiplies by 0, so that the generator goes on from the same state."""
    call.drawn(_Made(Step(0.0, 0.0, (Z,)), Tensor()))


@_cached
def _heun_step(kind: Any, sigma: float, then: float, second: bool, clip: float) -> Step:
    if second:
        return replace(two_stage.heun_second(ve(sigma), ve(then), predicted(kind, ve(then))), clip=clip)
    return replace(two_stage.heun_first(ve(sigma), ve(then), predicted(kind, ve(sigma))), clip=clip)


def _heun(call: _Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    moving = hasattr(config, "shift")
    if moving and (isinstance(timestep, (int, torch.IntTensor, torch.LongTensor)) or call.options["s_churn"] > 0):
        raise _Unchanged
    i = _index(s, timestep)
    sigmas = _numbers(s, "sigmas")
    second = not s.state_in_first_order
    sigma, then = sigmas[i - second], sigmas[i + 1 - second]
    kind = "flow_prediction" if moving else _prediction(config)
    build = _flow_heun_step if moving else _heun_step
    made = build(kind, sigma, then, second, math.inf if moving else _clamp(config)[0])
    wide = torch.promote_types(call.sample.dtype, torch.float32)
    first_type = call.output.dtype if moving else torch.promote_types(call.sample.dtype, call.output.dtype)
    types = [first_type] if second else [first_type, wide if moving else first_type]
    results = call.apply(made, [s.sample, s.prev_derivative] if second else (), dtypes=types)
    if second:
        s.prev_derivative = s.dt = s.sample = None
    else:
        s.prev_derivative, s.sample = results[1], call.sample.to(wide) if moving else call.sample
        s.dt = s.sigmas[i + 1] - s.sigmas[i]
    s._step_index += 1
    if moving:
        return _returned(call, "FlowMatchHeunDiscreteSchedulerOutput", results[0])
    return _returned(call, "HeunDiscreteSchedulerOutput", results[0], _x0_of(call, made))


@_cached
def _flow_heun_step(kind: Any, sigma: float, then: float, second: bool, clip: float) -> Step:
    if second:
        return two_stage.heun_second(flow(sigma), flow(then), predicted(kind, flow(then)))
    return two_stage.heun_first(flow(sigma), flow(then), predicted(kind, flow(sigma)))


@_cached
def _dpm2_step(kind: Any, sigma: float, middle: float, then: float, second: bool, std: float) -> Step:
    if second:
        model = predicted(kind, ve(middle))
        return two_stage.midpoint_second(ve(sigma), ve(middle), ve(then), model, std=std)
    return two_stage.midpoint_first(ve(sigma), ve(middle), predicted(kind, ve(sigma)))


def _dpm2(call: _Call, timestep: Any) -> Any:
    s, kind = call.scheduler, call.scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise _Unchanged
    i = _index(s, timestep)
    second = not s.state_in_first_order
    first = i - second  # of the step
    sigmas, middles = _numbers(s, "sigmas"), _numbers(s, "sigmas_interpol")
    std = 0.0
    if hasattr(s, "sigmas_up"):
        middle, then = middles[first], _numbers(s, "sigmas_down")[first]
        std = _numbers(s, "sigmas_up")[first] if second else 0.0
        name = "KDPM2AncestralDiscreteSchedulerOutput"
    else:
        middle, then, name = middles[first + 1], sigmas[first + 1], "KDPM2DiscreteSchedulerOutput"
    made = _dpm2_step(kind, sigmas[first], middle, then, second, std)
    if second and name.startswith("KDPM2A") and not made.step.noisy:
        _advance(call)
    result = call.apply(made, [s.sample] if second else ())[0]
    if not second and name.startswith("KDPM2A"):
        s.dt = s.sigmas_interpol[i] - s.sigmas[i]
    s.sample = None if second else call.sample
    s._step_index += 1
    return _returned(call, name, result, _x0_of(call, made))


@_cached
def _lms_step(kind: Any, sigmas: tuple[float, ...], order: int, past: int) -> Step:
    step = adams.lms([ve(sigma) for sigma in sigmas], predicted(kind, ve(sigmas[1])), order=order)
    row, slope = step.rows
    return replace(step, rows=(replace(row, history=row.history[:past]), slope))


def _lms(call: _Call, timestep: Any) -> Any:
    s = call.scheduler
    if not s.is_scale_input_called:
        raise _Unchanged
    i = _index(s, timestep)
    order = min(i + 1, call.options["order"])
    sigmas = _numbers(s, "sigmas")
    s.derivatives = s.derivatives[-call.options["order"] :]
    past = s.derivatives[::-1][: call.options["order"] - 1]
    made = _lms_step(_prediction(s.config), tuple(sigmas[i + 1 - k] for k in range(order + 1)), order, len(past))
    results = call.apply(made, past)
    s.derivatives.append(results[1])
    if len(s.derivatives) > call.options["order"]:
        s.derivatives.pop(0)
    s._step_index += 1
    return _returned(call, "LMSDiscreteSchedulerOutput", results[0], _x0_of(call, made))


@_cached
def _ipndm_step(now: Level, then: Level, order: int) -> Step:
    """Of a network's v, at a level whose squares sum to 1 but for rounding; without data eps alone matters."""
    eps = now.sigma * X + now.alpha * G
    return adams.ipndm(Level(max(now.alpha, 1e-8), now.sigma), then, Predicted(Row(), eps), order=order)


def _ipndm(call: _Call, timestep: Any) -> Any:
    s = call.scheduler
    if s.num_inference_steps is None:
        raise _Unchanged
    i = _index(s, timestep)
    alphas, betas = _numbers(s, "alphas"), _numbers(s, "betas")
    now, then = Level(alphas[i], betas[i]), Level(alphas[i + 1], betas[i + 1])
    made = _ipndm_step(now, then, min(len(s.ets) + 1, 4))
    results = call.apply(made, s.ets[::-1])
    s.ets.append(results[1])
    s._step_index += 1
    return _returned(call, "SchedulerOutput", results[0])


@_cached
def _consistency_step(sigma: float, then: float, sigma_data: float, least: float, scale: float, clip: float) -> Step:
    model = predicted("consistency", ve(sigma), sigma_data, least)
    added = ve(math.sqrt(max(then**2 - least**2, 0.0)))
    return replace(first_order.consistency(added, model, noise_scale=scale), clip=clip)


def _consistency(call: _Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    if isinstance(timestep, (int, torch.IntTensor, torch.LongTensor)) or not s.is_scale_input_called:
        raise _Unchanged
    i = _index(s, timestep)
    sigmas = _numbers(s, "sigmas")
    after = sigmas[i + 1] if i + 1 < config.num_train_timesteps else sigmas[-1]
    then = min(max(after, config.sigma_min), config.sigma_max)
    scale = config.s_noise if len(s.timesteps) > 1 else 0.0
    clip = 1.0 if config.clip_denoised else math.inf
    made = _consistency_step(sigmas[i], then, config.sigma_data, config.sigma_min, scale, clip)
    if not made.step.noisy and len(s.timesteps) > 1:
        _advance(call)
    result = call.apply(made)[0]
    s._step_index += 1
    return _returned(call, "CMStochasticIterativeSchedulerOutput", result)


@_cached
def _flow_step(sigma: float, then: float, stochastic: bool) -> Step:
    model = predicted("flow_prediction", flow(sigma))
    if stochastic:
        return first_order.consistency(flow(then), model)
    return Step(*model.data, (X + (then - sigma) * G,))


def _flow_euler(call: _Call, timestep: Any) -> Any:
    s = call.scheduler
    if isinstance(timestep, (int, torch.IntTensor, torch.LongTensor)):
        raise _Unchanged
    if call.options["per_token_timesteps"] is not None:
        raise _Unchanged
    i = _index(s, timestep)
    sigmas = _numbers(s, "sigmas")
    made = _flow_step(sigmas[i], sigmas[i + 1], bool(s.config.stochastic_sampling))
    wide = torch.promote_types(call.sample.dtype, torch.float32)
    if s.config.stochastic_sampling and not made.step.noisy:
        _advance(call)
    result = call.apply(made, noise_dtype=wide, dtypes=[call.output.dtype])[0]
    s._step_index += 1
    return _returned(call, "FlowMatchEulerDiscreteSchedulerOutput", result)


# --- exponential integrators ------------------------------------------------------------------------------------------


def _space(config: Any) -> str:
    if "sigma_data" in config:
        return "edm"
    return "flow" if config.get("use_flow_sigmas", False) else "vp"


_LEVELS: dict[str, Callable[[float], Level]] = {"edm": ve, "flow": flow, "vp": vp}


def _model_at(config: Any, at: Level, clamped: bool = False) -> Predicted:
    """What the network says; clamped: eps is that of the clamped x0."""
    kind = _prediction(config)
    if (kind == "flow_prediction") != (_space(config) == "flow") and kind in ("flow_prediction", "v_prediction"):
        raise _Unchanged  # the peer mixes the two spaces
    model = _preconditioned(kind, at.sigma, config.sigma_data) if "sigma_data" in config else predicted(kind, at)
    return Predicted(model.x0, first_order.clamped_eps(at)) if clamped else model


@_cached
def _dpm_step(
    single: bool, model: Predicted, levels: tuple[Level, ...], order: int, space: Any, solver: Any, eta: float,
    clip: float, dynamic: bool,
) -> Step:  # fmt: skip
    third = -1.0 if eta and order == 3 and (not single or solver == "heun") else 0.0  # a sign is wrong in the peer
    build = exponential.dpm_singlestep if single else exponential.dpm_multistep
    step = build(levels, model, order=order, space=space, solver=solver, eta=eta, third=third)
    return replace(step, clip=clip, threshold=dynamic)


def _dpm_call(call: _Call, i: int, order: int, single: bool) -> _Made:
    """The step of a DPM-Solver scheduler, of the output that it is given."""
    s, config = call.scheduler, call.scheduler.config
    if config.get("variance_type") in ("learned", "learned_range"):
        call.output = call.output[:, :3]
    space = "data" if "++" in config.algorithm_type else "noise"
    sigmas = _numbers(s, "sigmas")
    at = _LEVELS[_space(config)]
    levels = tuple(at(sigmas[i + 1 - k]) for k in range(order + 1))
    clip, call.threshold = _clamp(config)
    clamped = space == "noise" and (clip < math.inf or call.threshold is not None)
    model = _model_at(config, levels[1], clamped)
    eta = 1.0 if "sde" in config.algorithm_type else 0.0
    return _dpm_step(single, model, levels, order, space, config.solver_type, eta, clip, call.threshold is not None)


def _shift(scheduler: Any, newest: Tensor) -> None:
    scheduler.model_outputs[:] = [*scheduler.model_outputs[1:], newest]


def _count(scheduler: Any) -> None:
    """One more step, as far as a scheduler's order goes."""
    if scheduler.lower_order_nums < scheduler.config.solver_order:
        scheduler.lower_order_nums += 1


def _dpm_multistep(call: _Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    if s.num_inference_steps is None:
        raise _Unchanged
    i = _index(s, timestep)
    n, few = len(s.timesteps), config.lower_order_final and len(s.timesteps) < 15
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
        _advance(call)
    results = call.apply(made, s.model_outputs[::-1], noise_dtype=wide)
    _shift(s, results[1])
    _count(s)
    s._step_index += 1
    return _returned(call, "SchedulerOutput", results[0])


def _dpm_singlestep(call: _Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    if s.num_inference_steps is None or (config.thresholding and "++" not in config.algorithm_type):
        raise _Unchanged
    i = _index(s, timestep)
    order = s.order_list[i]
    while order > 1 and s.model_outputs[1 - order] is None:
        order -= 1
    if order == 1:
        s.sample = call.sample
    made = _dpm_call(call, i, order, single=True)
    if not made.step.noisy and "sde" in config.algorithm_type:
        _advance(call)
    results = call.apply(made, [s.sample, *s.model_outputs[::-1]])
    _shift(s, results[1])
    s._step_index += 1
    return _returned(call, "SchedulerOutput", results[0])


@_cached
def _deis_step(model: Predicted, levels: tuple[Level, ...], order: int, clip: float, dynamic: bool) -> Step:
    return replace(adams.deis(levels, model, order=order), clip=clip, threshold=dynamic)


def _deis(call: _Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    if s.num_inference_steps is None:
        raise _Unchanged
    i = _index(s, timestep)
    n, few = len(s.timesteps), config.lower_order_final and len(s.timesteps) < 15
    order = min(config.solver_order, s.lower_order_nums + 1)
    order = 1 if i == n - 1 and few else min(order, 2) if i == n - 2 and few else order
    sigmas = _numbers(s, "sigmas")
    levels = tuple(_LEVELS[_space(config)](sigmas[i + 1 - k]) for k in range(order + 1))
    clip, call.threshold = _clamp(config)
    made = _deis_step(_model_at(config, levels[1]), levels, order, clip, call.threshold is not None)
    results = call.apply(made, s.model_outputs[::-1])
    _shift(s, results[1])
    _count(s)
    s._step_index += 1
    return _returned(call, "SchedulerOutput", results[0])


@_cached
def _unipc_step(
    model: Predicted, levels: tuple[Level, ...], order: int, correct: int, space: Any, kind: Any, clip: float,
    dynamic: bool,
) -> Step:  # fmt: skip
    step = exponential.unipc(levels, model, order=order, correct=correct, space=space, kind=kind)
    return replace(step, clip=clip, threshold=dynamic)


def _unipc(call: _Call, timestep: Any) -> Any:
    s, config = call.scheduler, call.scheduler.config
    if s.num_inference_steps is None or s.solver_p is not None:
        raise _Unchanged
    i = _index(s, timestep)
    correct = s.this_order if i > 0 and i - 1 not in s.disable_corrector and s.last_sample is not None else 0
    order = min(config.solver_order, len(s.timesteps) - i if config.lower_order_final else config.solver_order)
    order = min(order, s.lower_order_nums + 1)
    sigmas = _numbers(s, "sigmas")
    count = min(max(order, correct + 1), i + 1)
    levels = tuple(_LEVELS[_space(config)](sigmas[i + 1 - k]) for k in range(count + 1))
    space = "data" if s.predict_x0 else "noise"
    clip, call.threshold = _clamp(config) if s.predict_x0 else (math.inf, None)
    model, dynamic = _model_at(config, levels[1]), call.threshold is not None
    made = _unipc_step(model, levels, order, correct, space, config.solver_type, clip, dynamic)
    results = call.apply(made, [s.last_sample, *s.model_outputs[::-1]])
    _shift(s, results[1])
    s.timestep_list[:] = [*s.timestep_list[1:], timestep]
    s.this_order, s.last_sample = order, results[2] if correct else call.sample
    _count(s)
    s._step_index += 1
    return _returned(call, "SchedulerOutput", results[0])


# --- putting them in place --------------------------------------------------------------------------------------------

_STEPS: dict[str, Callable[[_Call, Any], Any]] = {
    "CMStochasticIterativeScheduler": _consistency,
    "DDIMInverseScheduler": _ddim_inverse,
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "DEISMultistepScheduler": _deis,
    "DPMSolverMultistepScheduler": _dpm_multistep,
    "DPMSolverSinglestepScheduler": _dpm_singlestep,
    "EDMDPMSolverMultistepScheduler": _dpm_multistep,
    "EDMEulerScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "EulerDiscreteScheduler": _euler,
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
    "FlowMatchHeunDiscreteScheduler": _heun,
    "HeunDiscreteScheduler": _heun,
    "IPNDMScheduler": _ipndm,
    "KDPM2AncestralDiscreteScheduler": _dpm2,
    "KDPM2DiscreteScheduler": _dpm2,
    "LCMScheduler": _lcm,
    "LMSDiscreteScheduler": _lms,
    "PNDMScheduler": _pndm,
    "RePaintScheduler": _repaint,
    "TCDScheduler": _tcd,
    "UniPCMultistepScheduler": _unipc,
}


def covered() -> tuple[str, ...]:
    """The names of the schedulers that have steps here.

    Not covered are, of their options: fixed_large_log variances, which are NaN there; per-token times and churn of
    flow matching; `solver_p`; noise of Brownian trees. With them the scheduler's own step runs.
    """
    return tuple(_STEPS)


def _home(kind: type) -> type:
    """The class of diffusers that a scheduler's step comes from."""
    for base in kind.__mro__:
        if base.__name__ in _STEPS and base.__module__.startswith("diffusers."):
            return base
    raise TypeError(f"expected one of {', '.join(_STEPS)}, got {kind.__name__}")


def _replacement(original: Callable[..., Any], function: Callable[[_Call, Any], Any]) -> Callable[..., Any]:
    """A method in the place of `original`, of the same signature."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        options = dict(bound.arguments)
        output, sample, timestep = (options.pop(name) for name in ("model_output", "sample", "timestep"))
        if isinstance(output, Tensor) and isinstance(sample, Tensor) and output.dim() == sample.dim() > 0:
            try:
                return function(_Call(self, output, sample, options), timestep)
            except _Unchanged:
                pass
        return original(self, *args, **kwargs)

    step.__signature__ = signature  # type: ignore[attr-defined]
    return step


def patch_scheduler(scheduler: Any, *, noise: Noise = "torch") -> Any:
    """Gives one scheduler the steps of this module, and returns it. Its type and configuration stay as they are.

    noise: "torch", as without the patch; "pygen", see above.

    Raises TypeError for a scheduler that is not covered, ValueError for another noise.
    """
    if noise not in ("torch", "pygen"):
        raise ValueError(f"expected noise as 'torch' or 'pygen', got {noise!r}")
    home = _home(type(scheduler))
    original = inspect.unwrap(type(scheduler).step)
    scheduler.step = _replacement(original, _STEPS[home.__name__]).__get__(scheduler)
    scheduler._pygen_noise = noise
    return scheduler


@contextmanager
def patch() -> Iterator[None]:
    """Gives every covered class of diffusers the steps of this module while the context lasts.

    Raises ImportError without diffusers.
    """
    need("pygen.integrations.diffusers.patch", "bench", "diffusers")
    import diffusers

    replaced = []
    try:
        for name, function in _STEPS.items():
            kind = getattr(diffusers, name)
            replaced.append((kind, kind.step))
            kind.step = _replacement(kind.step, function)
        yield
    finally:
        for kind, original in reversed(replaced):
            kind.step = original
