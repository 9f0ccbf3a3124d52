"""What schedulers do beside steps: put noise on data, make targets of it, scale the network's input."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...diffusion.level import Level, cumulative, flow, ve
from ...diffusion.step import Row, Step, X, Z, table
from ...ops import diffusion_step
from ._call import Unchanged, index_of, kept, methods, numbers
from ._solvers import level_at

_Mix = Callable[[Level], Row]
_Levels = Callable[[float], Level]


def _noisy(at: Level) -> Row:
    return at.alpha * X + at.sigma * Z


def _velocity(at: Level) -> Row:
    return at.alpha * Z - at.sigma * X


def _table(levels: Sequence[Level], mix: _Mix) -> Tensor:
    return table([Step(0.0, 0.0, (mix(at),)) for at in levels], ())


@functools.lru_cache(maxsize=8192)
def _row(at: Level, mix: _Mix) -> Tensor:
    return _table([at], mix)


def _mixed(
    scheduler: Any,
    sample: Any,
    noise: Any,
    index: Tensor | int,
    name: str,
    level: _Levels,
    mix: _Mix = _noisy,
    least: torch.dtype | None = None,
) -> Tensor:
    """Samples and noise mixed by the levels of a scheduler's table `name`.

    index: where in the table: an int, or [B] or [1]. least: the result has this type at least.

    What the op refuses (shapes that broadcast, an index that is not in the table) is left to the scheduler, which may
    have another opinion.
    """
    if not (isinstance(sample, Tensor) and isinstance(noise, Tensor) and sample.is_floating_point()):
        raise Unchanged
    try:
        if isinstance(index, Tensor):
            device = sample.device
            made = kept(
                scheduler, (name, level, mix, device), getattr(scheduler, name),
                lambda: _table([*map(level, numbers(scheduler, name))], mix).to(device),
            )  # fmt: skip
            index = index.reshape(()) if len(index) == 1 else index
        else:
            made, index = _row(level(numbers(scheduler, name)[index]), mix), 0
        own = torch.promote_types(sample.dtype, noise.dtype)
        own = own if least is None else torch.promote_types(own, least)
        return diffusion_step(sample, [], made, index, noise=noise, dtypes=[own])[0]
    except (IndexError, TypeError, ValueError):
        raise Unchanged from None


# --- levels by whole times --------------------------------------------------------------------------------------------

_BY_TIME = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler")


def _by_time(scheduler: Any, sample: Any, noise: Any, times: Any, mix: _Mix) -> Tensor:
    if not (isinstance(sample, Tensor) and isinstance(times, Tensor) and times.dtype in (torch.int32, torch.int64)):
        raise Unchanged
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(sample.device)  # where it stays, as theirs leave it
    index = times.to(sample.device, torch.int64).flatten()
    return _mixed(scheduler, sample, noise, index, "alphas_cumprod", cumulative, mix)


@methods("add_noise", *_BY_TIME, "PNDMScheduler")
def add_noise_by_time(scheduler: Any, options: dict[str, Any]) -> Tensor:
    return _by_time(scheduler, options["original_samples"], options["noise"], options["timesteps"], _noisy)


@methods("get_velocity", *_BY_TIME)
def velocity_by_time(scheduler: Any, options: dict[str, Any]) -> Tensor:
    return _by_time(scheduler, options["sample"], options["noise"], options["timesteps"], _velocity)


# --- sigmas of the times of a run -------------------------------------------------------------------------------------


def _places(scheduler: Any, sample: Any, times: Any, absent: int) -> Tensor | int:
    """Which of a scheduler's sigmas is meant: for each of some times, `absent` for those that it does not have.

    Where a pipeline said at which step it begins it is that one's, or that of the step that is due.
    """
    if not (isinstance(sample, Tensor) and isinstance(times, Tensor) and times.dim() == 1):
        raise Unchanged
    if not (sample.dim() and len(times) in (1, len(sample))):
        raise Unchanged
    if scheduler.begin_index is not None:
        return int(scheduler.begin_index if scheduler.step_index is None else scheduler.step_index)
    device = sample.device
    values, places = kept(
        scheduler, ("places", device), scheduler.timesteps,
        lambda: tuple(tensor.to(device) for tensor in _sorted(scheduler)),
    )  # fmt: skip
    kind = torch.result_type(scheduler.timesteps, times.new_empty(()))  # in which theirs compares them
    values, times = values.to(kind), times.to(device, kind)
    at = torch.searchsorted(values, times).clamp(max=len(values) - 1)
    return torch.where(values[at] == times, places[at], absent)


def _sorted(scheduler: Any) -> tuple[Tensor, Tensor]:
    """A scheduler's times, rising, and the place of each: the second if it is there more than once."""
    found: dict[float, list[int]] = {}
    for place, time in enumerate(numbers(scheduler, "timesteps")):
        found.setdefault(time, []).append(place)
    values = sorted(found)
    return scheduler.timesteps.new_tensor(values), torch.tensor([found[time][:2][-1] for time in values])


_EXPLODING = (
    "CMStochasticIterativeScheduler", "DPMSolverSDEScheduler", "EDMEulerScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
)  # fmt: skip
_SOLVERS = (
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler", "UniPCMultistepScheduler",
)  # fmt: skip


@methods("add_noise", *_EXPLODING)
def add_noise_by_sigma(scheduler: Any, options: dict[str, Any]) -> Tensor:
    sample, noise = options["original_samples"], options["noise"]
    return _mixed(scheduler, sample, noise, _places(scheduler, sample, options["timesteps"], -1), "sigmas", ve)


@methods("add_noise", *_SOLVERS)
def add_noise_of_solvers(scheduler: Any, options: dict[str, Any]) -> Tensor:
    """Times that a solver does not have are its last."""
    sample, noise = options["original_samples"], options["noise"]
    places = _places(scheduler, sample, options["timesteps"], scheduler.timesteps.shape[0] - 1)
    return _mixed(scheduler, sample, noise, places, "sigmas", level_at(scheduler.config))


@methods("add_noise", "ScoreSdeVeScheduler")
def add_noise_by_place(scheduler: Any, options: dict[str, Any]) -> Tensor:
    """Of images; theirs draws what noise is not given, and mixes in float32 at least."""
    sample, times = options["original_samples"], options["timesteps"]
    if not (isinstance(sample, Tensor) and isinstance(times, Tensor) and sample.dim() == 4 and times.dim() == 1):
        raise Unchanged
    if times.dtype not in (torch.int32, torch.int64):
        raise Unchanged
    index = times.to(sample.device, torch.int64)
    return _mixed(scheduler, sample, options["noise"], index, "discrete_sigmas", ve, least=torch.float32)


@methods("scale_noise", "FlowMatchEulerDiscreteScheduler")
def noise_of_flow(scheduler: Any, options: dict[str, Any]) -> Tensor:
    sample, noise = options["sample"], options["noise"]
    return _mixed(scheduler, sample, noise, _places(scheduler, sample, options["timestep"], -1), "sigmas", flow)


@methods("scale_noise", "FlowMatchHeunDiscreteScheduler")
def noise_of_flow_heun(scheduler: Any, options: dict[str, Any]) -> Tensor:
    place = index_of(scheduler, options["timestep"])
    return _mixed(scheduler, options["sample"], options["noise"], place, "sigmas", flow)


# --- the network's input: one pass of torch's own is as fast as any, by a number --------------------------------------


def _scaled(sample: Any, sigma: float, sigma_data: float = 1.0) -> Tensor:
    if not (isinstance(sample, Tensor) and sample.is_floating_point()):
        raise Unchanged
    return sample / math.hypot(sigma, sigma_data)


@methods(
    "scale_model_input", "CMStochasticIterativeScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "LMSDiscreteScheduler",
)  # fmt: skip
def scaled_input(scheduler: Any, options: dict[str, Any]) -> Tensor:
    sigma = numbers(scheduler, "sigmas")[index_of(scheduler, options["timestep"])]
    scaled = _scaled(options["sample"], sigma, scheduler.config.get("sigma_data", 1.0))
    scheduler.is_scale_input_called = True
    return scaled


@methods("scale_model_input", "HeunDiscreteScheduler")
def scaled_input_of_heun(scheduler: Any, options: dict[str, Any]) -> Tensor:
    return _scaled(options["sample"], numbers(scheduler, "sigmas")[index_of(scheduler, options["timestep"])])


@methods("scale_model_input", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler")
def scaled_input_of_dpm2(scheduler: Any, options: dict[str, Any]) -> Tensor:
    place = index_of(scheduler, options["timestep"])
    if scheduler.state_in_first_order:
        return _scaled(options["sample"], numbers(scheduler, "sigmas")[place])
    place -= hasattr(scheduler, "sigmas_up")  # the ancestral one counts middles from 0
    return _scaled(options["sample"], numbers(scheduler, "sigmas_interpol")[place])


@methods("scale_model_input", "DPMSolverSDEScheduler")
def scaled_input_of_sde(scheduler: Any, options: dict[str, Any]) -> Tensor:
    sigma = numbers(scheduler, "sigmas")[index_of(scheduler, options["timestep"])]
    if not scheduler.state_in_first_order:
        middle = scheduler.mid_point_sigma
        sigma = kept(scheduler, "middle", middle, middle.item)
    return _scaled(options["sample"], sigma)
