"""Plans from a scheduler's configuration, as diffusers writes it: `scheduler_config.json`. diffusers is not needed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .._arguments import check_integer
from .grid import Discrete, Edm, Flow, spread
from .plan import Plan
from .samplers import Schedule, plan
from .schedules import distilled_timesteps


class _Run(NamedTuple):
    sampler: str
    schedule: Schedule
    grid: dict[str, Any]
    options: dict[str, Any]  # of the sampler


def plan_from_config(
    config: Mapping[str, Any] | str | Path, steps: int, *, mu: float | None = None, **options: Any
) -> Plan:
    """The run of a scheduler of diffusers with this configuration: the same timesteps, levels and states.

    config: a mapping, or the path of its JSON file or of its folder; keys that no scheduler has are ignored.
    mu: how far a flow is shifted, which a pipeline makes of the image's size: with use_dynamic_shifting, and only then.
    options: of the sampler, as those of the scheduler's `step` (eta, ...), besides those that the configuration has.

    Dynamic thresholds of more than 1 need `threshold` of `sample_loop`. What differs: DDIM and PNDM of steps that are
    not evenly spaced go to the next timestep, where diffusers goes to that of even spacing; so do single steps of
    DEIS and UniPC with other sigmas than the table's; consistency models add no noise after the last step.

    Raises ValueError for a class or a value that plans do not cover, FileNotFoundError without a file.
    """
    values = dict(config) if isinstance(config, Mapping) else _read(Path(config))
    name = values.get("_class_name")
    if name not in _RUNS:
        raise ValueError(f"expected _class_name as one of {', '.join(sorted(_RUNS))}, got {name!r}")
    for key, fine in _COVERED.get(name, {}).items():
        if values.get(key, fine[0]) not in fine:
            raise ValueError(f"expected {key} of {name} as {' or '.join(map(repr, fine))}, got {values[key]!r}")
    if (mu is None) == bool(values.get("use_dynamic_shifting", False)):
        raise ValueError(f"expected mu with use_dynamic_shifting, and only then, got {mu}")
    run = _RUNS[name](values | {"mu": mu, "steps": steps})
    clip = math.inf
    threshold = values.get("thresholding", False)
    if threshold and values.get("sample_max_value", 1.0) <= 1:
        clip, threshold = 1.0, False
    elif not threshold and values.get("clip_sample", values.get("clip_denoised", _CLIPS.get(name, False))):
        clip = values.get("clip_sample_range", 1.0)
    return plan(
        run.sampler, run.schedule, steps, clip=clip, threshold=threshold, grid=run.grid, **run.options | options
    )


def _read(path: Path) -> dict[str, Any]:
    file = path / "scheduler_config.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: expected the configuration of a scheduler, and found no file") from None
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(values).__name__}")
    return values


# where a file does not say
_CLIPS = dict.fromkeys(
    ("DDIMScheduler", "DDIMInverseScheduler", "DDPMScheduler", "CMStochasticIterativeScheduler"), True
)


def _discrete(values: Mapping[str, Any], last: str, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
    betas = values.get("beta_schedule", "linear")
    if values.get("trained_betas") is not None:
        betas = torch.tensor(values["trained_betas"], dtype=torch.float32)
    return Discrete.of(
        betas,
        values.get("num_train_timesteps", 1000),
        values.get("beta_start", beta_start),
        values.get("beta_end", beta_end),
        zero_terminal_snr=values.get("rescale_betas_zero_snr", False),
        prediction=values.get("prediction_type", "epsilon"),
        last="zero" if last == "zero" else "sigma_min",
    )


def _grid(values: Mapping[str, Any], spacing: str, whole: Mapping[str, str] | None = None) -> dict[str, Any]:
    """whole: how times of a kind of sigmas are made whole."""
    kinds = {
        "use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta",
        "use_lu_lambdas": "lu",
    }  # fmt: skip
    sigmas = next((kind for key, kind in kinds.items() if values.get(key)), "table")
    if sigmas == "table" and values.get("interpolation_type") == "log_linear":
        sigmas = "log_linear"
    grid = {
        "spacing": values.get("timestep_spacing", spacing),
        "sigmas": sigmas,
        "offset": values.get("steps_offset", 0),
    }
    return grid | {"whole_times": (whole or {}).get(sigmas)}


_ROUNDED = {"karras": "round", "lu": "round", "exponential": "floor", "beta": "floor"}


def _by_table(sampler: str, spacing: str = "leading", one: bool = True) -> Callable[[Mapping[str, Any]], _Run]:
    def run(values: Mapping[str, Any]) -> _Run:
        schedule = _discrete(values, "zero" if values.get("set_alpha_to_one", one) else "sigma_min")
        options: dict[str, Any] = {}
        if sampler == "ddpm":
            options["variance"] = values.get("variance_type", "fixed_small").removesuffix("_log")
        elif sampler == "pndm":
            options["runge_kutta"] = not values.get("skip_prk_steps", False)
        grid = {"spacing": values.get("timestep_spacing", spacing), "offset": values.get("steps_offset", 0)}
        return _Run(sampler, schedule, grid, options)

    return run


def _by_sigma(
    sampler: str, start: float, end: float, whole: Mapping[str, str] | None = None
) -> Callable[[Mapping[str, Any]], _Run]:
    def run(values: Mapping[str, Any]) -> _Run:
        schedule = _discrete(values, values.get("final_sigmas_type", "zero"), start, end)
        return _Run(sampler, schedule, _grid(values, "linspace", whole), {})

    return run


def _solver_schedule(values: Mapping[str, Any], last: str, even: str = "last") -> tuple[Schedule, dict[str, Any]]:
    """Of multistep solvers, whose levels are a discrete schedule's or a flow's, and the options of its grid.

    even: where a flow's even sigmas are, see `Flow.grid`.
    """
    prediction = values.get("prediction_type", "epsilon")
    moving = values.get("use_flow_sigmas", False)
    refused = "v_prediction" if moving else "flow_prediction"
    if prediction == refused:
        raise ValueError(f"expected another prediction_type than {refused} with use_flow_sigmas {moving}")
    if not moving:
        return _discrete(values, last), _grid(values, "linspace", _ROUNDED)
    grid = _grid(values, "linspace")
    if grid["sigmas"] != "table":
        raise ValueError(f"expected use_flow_sigmas without other sigmas, got {grid['sigmas']}")
    total, shift, mu = values.get("num_train_timesteps", 1000), values.get("flow_shift", 1.0), values["mu"]
    grid = {"even": even, "last": last, "whole": True}
    if even == "first":
        return Flow(shift, total, prediction), grid | _shifts(values) | {"largest": 1 - 1e-6}
    return Flow(shift if mu is None else math.exp(mu), total, prediction), grid


def _shifts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a flow's grid."""
    return {
        "mu": values["mu"],
        "terminal": values.get("shift_terminal"),
        "shift_kind": values.get("time_shift_type", "exponential"),
    }


def _dpm(sampler: str) -> Callable[[Mapping[str, Any]], _Run]:
    def run(values: Mapping[str, Any]) -> _Run:
        algorithm = values.get("algorithm_type", "dpmsolver++")
        options = {
            "order": values.get("solver_order", 2),
            "solver": values.get("solver_type", "midpoint"),
            "space": "data" if "++" in algorithm else "noise",
            "eta": 1.0 if "sde" in algorithm else 0.0,
        }
        if values.get("euler_at_final", False) and values.get("final_sigmas_type", "zero") != "zero":
            raise ValueError("expected euler_at_final only with final_sigmas_type 'zero', where it changes nothing")
        if sampler == "dpm":
            options["lower_order_final"] = values.get("lower_order_final", True)
        last = values.get("final_sigmas_type", "zero")
        if last != "zero" and values.get("use_flow_sigmas", False):
            raise ValueError(f"expected final_sigmas_type 'zero' with use_flow_sigmas, got {last!r}")
        return _Run(sampler, *_solver_schedule(values, last), options)

    return run


def _deis(values: Mapping[str, Any]) -> _Run:
    options = {"order": values.get("solver_order", 2), "lower_order_final": values.get("lower_order_final", True)}
    return _Run("deis", *_solver_schedule(values, "sigma_min"), options)


def _unipc(values: Mapping[str, Any]) -> _Run:
    options = {
        "order": values.get("solver_order", 2),
        "kind": values.get("solver_type", "bh2"),
        "space": "data" if values.get("predict_x0", True) else "noise",
        "lower_order_final": values.get("lower_order_final", True),
    }
    return _Run("unipc", *_solver_schedule(values, values.get("final_sigmas_type", "zero"), "first"), options)


def _flow_euler(values: Mapping[str, Any]) -> _Run:
    name = "consistency" if values.get("stochastic_sampling", False) else "euler"
    grid = _shifts(values) | {"sigmas": _grid(values, "linspace")["sigmas"]}
    return _Run(name, _flow(values), grid, {})


def _flow_heun(values: Mapping[str, Any]) -> _Run:
    return _Run("heun", _flow(values), {}, {})


def _flow(values: Mapping[str, Any]) -> Flow:
    return Flow(values.get("shift", 1.0), values.get("num_train_timesteps", 1000))


def _edm(values: Mapping[str, Any]) -> _Run:
    if values.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(f"expected prediction_type of EDM as epsilon, got {values['prediction_type']!r}")
    schedule = Edm(values.get("sigma_min", 0.002), values.get("sigma_max", 80.0), values.get("sigma_data", 0.5))
    grid = {"sigmas": values.get("sigma_schedule", "karras"), "rho": values.get("rho", 7.0)}
    return _Run("euler", schedule, grid, {})


def _edm_dpm(values: Mapping[str, Any]) -> _Run:
    return _edm(values)._replace(sampler="dpm", options=_dpm("dpm")(values).options)


def _distilled(sampler: str) -> Callable[[Mapping[str, Any]], _Run]:
    def run(values: Mapping[str, Any]) -> _Run:
        last = "zero" if sampler == "lcm" and values.get("set_alpha_to_one", True) else "sigma_min"
        schedule = _discrete({"beta_schedule": "scaled_linear", **values}, last, 0.00085, 0.012)
        original = values.get("original_inference_steps", 50)
        times = distilled_timesteps(values["steps"], len(schedule.alphas_cumprod), original)
        options = {"time_scale": values.get("timestep_scaling", 10.0)} if sampler == "lcm" else {}
        return _Run(sampler, schedule, {"timesteps": times.tolist()}, options)

    return run


def _consistency(values: Mapping[str, Any]) -> _Run:
    """Sigmas are those of some of the times that the model was trained at."""
    smallest, largest = values.get("sigma_min", 0.002), values.get("sigma_max", 80.0)
    total, rho = values.get("num_train_timesteps", 40), values.get("rho", 7.0)
    check_integer("steps", values["steps"], 1, total)
    all_sigmas = spread("karras", total, smallest, largest, rho)
    sigmas = all_sigmas[:: total // values["steps"]][: values["steps"]]
    schedule = Edm(smallest, largest, values.get("sigma_data", 0.5), "consistency", time_scale=250)
    return _Run("consistency", schedule, {"sigmas": sigmas.tolist()}, {"noise_scale": values.get("s_noise", 1.0)})


_RUNS: dict[str, Callable[[Mapping[str, Any]], _Run]] = {
    "DDIMScheduler": _by_table("ddim"),
    "DDIMInverseScheduler": _by_table("ddim-inverse"),
    "DDPMScheduler": _by_table("ddpm"),
    "PNDMScheduler": _by_table("pndm", one=False),
    "EulerDiscreteScheduler": _by_sigma("euler", 1e-4, 0.02),
    "EulerAncestralDiscreteScheduler": _by_sigma("euler-ancestral", 1e-4, 0.02),
    "LMSDiscreteScheduler": _by_sigma("lms", 1e-4, 0.02),
    "HeunDiscreteScheduler": _by_sigma("heun", 0.00085, 0.012),
    "KDPM2DiscreteScheduler": _by_sigma("dpm2", 0.00085, 0.012, {"karras": "round"}),
    "KDPM2AncestralDiscreteScheduler": _by_sigma("dpm2-ancestral", 0.00085, 0.012, {"karras": "round"}),
    "DPMSolverMultistepScheduler": _dpm("dpm"),
    "DPMSolverSinglestepScheduler": _dpm("dpm-singlestep"),
    "DEISMultistepScheduler": _deis,
    "UniPCMultistepScheduler": _unipc,
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
    "FlowMatchHeunDiscreteScheduler": _flow_heun,
    "EDMEulerScheduler": _edm,
    "EDMDPMSolverMultistepScheduler": _edm_dpm,
    "LCMScheduler": _distilled("lcm"),
    "TCDScheduler": _distilled("tcd"),
    "CMStochasticIterativeScheduler": _consistency,
}

_FLOWS = {"time_shift_type": ("exponential",)}
_DPM = {
    **_FLOWS,
    "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"),
    "variance_type": (None, "fixed_small", "fixed_large"),
    "lambda_min_clipped": (-math.inf,),
}
_COVERED: dict[str, dict[str, tuple[Any, ...]]] = {
    "DDPMScheduler": {"variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range")},
    "EulerDiscreteScheduler": {"timestep_type": ("discrete",), "sigma_min": (None,), "sigma_max": (None,)},
    "DPMSolverMultistepScheduler": _DPM,
    "DPMSolverSinglestepScheduler": _DPM,
    "DEISMultistepScheduler": _FLOWS,
    "UniPCMultistepScheduler": {
        "disable_corrector": ([],),
        "solver_p": (None,),
        "sigma_min": (None,),
        "sigma_max": (None,),
    },
    "FlowMatchEulerDiscreteScheduler": {"invert_sigmas": (False,)},
    "EDMEulerScheduler": {"final_sigmas_type": ("zero",)},
    "EDMDPMSolverMultistepScheduler": {
        "final_sigmas_type": ("zero",),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    },
}
"""Values of keys that plans cover, the default first; of keys that are not here every value."""
