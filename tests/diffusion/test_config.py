"""Plans from configurations that diffusers writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pygen.diffusion import Edm, plan, plan_from_config

from . import peers
from .test_diffusers_plans import STABLE, compare

SPREADS = ["karras", "exponential", "beta"]
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
DYNAMIC = {"use_dynamic_shifting": True}
SOLVERS = [
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler",
]  # fmt: skip
FLOW_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "DPMSolverMultistepScheduler": [
        {},
        {"solver_order": 3},
        {"algorithm_type": "sde-dpmsolver++"},
        {"prediction_type": "epsilon"},
        {"num_train_timesteps": 500},
        DYNAMIC,
    ],
    "UniPCMultistepScheduler": [
        {},
        {"solver_order": 3, "flow_shift": 1.0},
        {"final_sigmas_type": "sigma_min"},
        {"prediction_type": "sample"},
        {"shift_terminal": 0.1},
        DYNAMIC,
        DYNAMIC | {"time_shift_type": "linear"},
    ],
}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {}),
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("DDIMInverseScheduler", {"set_alpha_to_one": False, "clip_sample": False}),
    ("DDPMScheduler", {"variance_type": "fixed_large", "prediction_type": "v_prediction"}),
    ("DDPMScheduler", {"thresholding": True}),
    ("PNDMScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear", "timestep_spacing": "trailing"}),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("HeunDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("LMSDiscreteScheduler", {"use_exponential_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True, "solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    ("DPMSolverSinglestepScheduler", {"solver_type": "heun"}),
    ("DEISMultistepScheduler", {"solver_order": 3}),
    ("UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    *[("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, f"use_{kind}_sigmas": True}) for kind in SPREADS],
    *[
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift": 3.0} | more)
        for more in ({}, {"time_shift_type": "linear"}, {"shift_terminal": 0.1}, {"use_karras_sigmas": True})
    ],
    *[(name, FLOW | more) for name in SOLVERS for more in FLOW_OPTIONS.get(name, [{}, {"solver_order": 3}, DYNAMIC])],
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ("EDMEulerScheduler", {}),
    ("LCMScheduler", {"original_inference_steps": 40, "prediction_type": "v_prediction"}),
    ("TCDScheduler", {}),
]


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("name", "options"), CASES)
def test_equal(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    discrete = not name.startswith(("Flow", "EDM"))
    scheduler = peers.scheduler_class(name)(**options, **(STABLE if discrete else {}))
    scheduler.save_config(tmp_path)
    told = {"mu": 0.8} if options.get("use_dynamic_shifting") else {}
    numbers = {"numbers": True} if name == "LCMScheduler" else {}
    compare(scheduler, plan_from_config(tmp_path, 8, **told), 8, told, **numbers)
    assert len(plan_from_config(tmp_path / "scheduler_config.json", 4, **told)) >= 4


@pytest.mark.peer
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("CMStochasticIterativeScheduler", {"clip_denoised": False, "s_noise": 0.5}),
        ("EDMDPMSolverMultistepScheduler", {"solver_order": 3, "sigma_schedule": "exponential", "sigma_min": 0.01}),
    ],
)
def test_levels(name: str, options: dict[str, Any]) -> None:
    """Where theirs are rounded more than once."""
    scheduler = peers.scheduler_class(name)(**options)
    run = plan_from_config({"_class_name": name, **options}, 5)
    scheduler.set_timesteps(5)
    levels = torch.tensor([(e.time, e.level.sigma) for e in run.evaluations], dtype=torch.float64)
    theirs = torch.stack([scheduler.timesteps.double(), scheduler.sigmas[:-1].double()], 1)
    torch.testing.assert_close(levels, theirs, rtol=1e-5, atol=1e-5)


def test_options_of_levels() -> None:
    """Beside levels those are what makes these plans."""
    found = plan_from_config({"_class_name": "EDMDPMSolverMultistepScheduler", "solver_order": 3}, 9)
    assert found.steps == plan("dpm", Edm(), 9, order=3).steps
    clipped = plan_from_config({"_class_name": "CMStochasticIterativeScheduler"}, 5)
    assert all(step.clip == 1 for step in clipped.steps)


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected _class_name as one of .*DDIMScheduler.*, got 'VQDiffusion'"):
        plan_from_config({"_class_name": "VQDiffusion"}, 5)
    with pytest.raises(FileNotFoundError, match="expected the configuration of a scheduler"):
        plan_from_config(tmp_path, 5)
    (tmp_path / "scheduler_config.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        plan_from_config(tmp_path, 5)
    (tmp_path / "scheduler_config.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        plan_from_config(tmp_path, 5)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("DDPM", "variance_type", "fixed_large_log"),
        ("EulerDiscrete", "timestep_type", "continuous"),
        ("EulerDiscrete", "sigma_max", 3.0),
        ("DPMSolverMultistep", "algorithm_type", "dpmsolver+++"),
        ("DPMSolverMultistep", "variance_type", "learned_range"),
        ("DPMSolverSinglestep", "lambda_min_clipped", -5.1),
        ("DEISMultistep", "time_shift_type", "linear"),
        ("UniPCMultistep", "disable_corrector", [0]),
        ("FlowMatchEulerDiscrete", "invert_sigmas", True),
        ("EDMEuler", "final_sigmas_type", "sigma_min"),
    ],
)
def test_values_that_are_not_covered(name: str, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"expected {key} of {name}Scheduler as .*, got "):
        plan_from_config({"_class_name": f"{name}Scheduler", key: value}, 5)


def test_euler_at_final() -> None:
    values = {"_class_name": "DPMSolverMultistepScheduler", "euler_at_final": True}
    assert len(plan_from_config(values, 5)) == 5
    with pytest.raises(ValueError, match="expected euler_at_final only with final_sigmas_type 'zero'"):
        plan_from_config({**values, "final_sigmas_type": "sigma_min"}, 5)


def test_shifts_and_flows() -> None:
    flux = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    with pytest.raises(ValueError, match="expected mu with use_dynamic_shifting, and only then, got None"):
        plan_from_config(flux, 5)
    with pytest.raises(ValueError, match=r"expected mu with use_dynamic_shifting, and only then, got 0\.5"):
        plan_from_config({"_class_name": "DDIMScheduler"}, 5, mu=0.5)
    wan = {"_class_name": "UniPCMultistepScheduler", **FLOW}
    with pytest.raises(ValueError, match="expected use_flow_sigmas without other sigmas, got karras"):
        plan_from_config({**wan, "use_karras_sigmas": True}, 5)
    with pytest.raises(ValueError, match="expected another prediction_type than v_prediction"):
        plan_from_config({**wan, "prediction_type": "v_prediction"}, 5)
    with pytest.raises(ValueError, match="expected another prediction_type than flow_prediction"):
        plan_from_config({**wan, "use_flow_sigmas": False}, 5)
    with pytest.raises(ValueError, match="expected final_sigmas_type 'zero' with use_flow_sigmas"):
        plan_from_config({**wan, "_class_name": "DPMSolverMultistepScheduler", "final_sigmas_type": "sigma_min"}, 5)
