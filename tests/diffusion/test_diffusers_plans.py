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

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]


def compare(
    scheduler: Any,
    run: Any,
    steps: int,
    set_timesteps: dict[str, Any] | None = None,
    states: int | None = None,
    last_is_nan: bool = False,
    **options: Any,
) -> None:
    scheduler.set_timesteps(steps, **set_timesteps or {})
    x = next(peers.draws(SHAPE, seed=1)) * run.start
    expected = peers.diffusers_loop(scheduler, x, **options)
    asked = [e.time for e in run.evaluations if e.time is not None]
    torch.testing.assert_close(
        torch.tensor(asked), scheduler.timesteps.double(), rtol=1e-6, atol=1e-3, check_dtype=False
    )
    noise, times = peers.draws(SHAPE), iter(scheduler.timesteps)  # theirs, as some are rounded more than once
    found = [x]
    sample_loop(
        lambda fed, t: peers.network(fed, next(times)),
        x,
        run,
        noise=lambda index, like: next(noise),
        callback=lambda told: found.append(told.result),
    )
    assert len(found) == len(expected)
    if last_is_nan:  # there
        assert found.pop().isfinite().all()
        assert expected.pop().isnan().all()
    for ours, theirs in zip(found[:states], expected[:states], strict=True):
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * scale)


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
SPACINGS = ["leading", "trailing", "linspace"]
SIGMAS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}

PAIRS = [("epsilon", "table"), ("sample", "karras"), ("v_prediction", "exponential"), ("epsilon", "beta")]
"""Of prediction and sigmas: the drop-in's tests have every pair."""


def spread(sigmas: str) -> dict[str, bool]:
    """The switch of a scheduler for a kind of sigmas."""
    switches = {**SIGMAS, "lu": "use_lu_lambdas"}
    return {switches[sigmas]: True} if sigmas in switches else {}


# --- one evaluation a step --------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_inverse(prediction: str) -> None:
    options = {"clip_sample": False, "prediction_type": prediction, "set_alpha_to_one": False}
    scheduler = peers.scheduler_class("DDIMInverseScheduler")(**STABLE, **options)
    run = plan("ddim-inverse", discrete(scheduler, last="sigma_min"), 10, grid={"spacing": "leading"})
    compare(scheduler, run, 10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("clip", [False, True])
def test_ddpm(prediction: str, spacing: str, variance: str, clip: bool) -> None:
    options = {"prediction_type": prediction, "timestep_spacing": spacing, "variance_type": variance}
    scheduler = peers.scheduler_class("DDPMScheduler")(clip_sample=clip, **STABLE, **options)
    run = plan(
        "ddpm", discrete(scheduler), 10, clip=1.0 if clip else math.inf, variance=variance, grid={"spacing": spacing}
    )
    compare(scheduler, run, 10, states=10 if spacing == "trailing" else 11)  # it ends with noise if not at time 0


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
def test_schedules(schedule: str) -> None:
    scheduler = peers.scheduler_class("DDPMScheduler")(beta_schedule=schedule)
    assert torch.equal(discrete(scheduler).alphas_cumprod, scheduler.alphas_cumprod)
    compare(scheduler, plan("ddpm", discrete(scheduler), 7, clip=1.0, grid={"spacing": "leading"}), 7)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_zero_terminal_snr(prediction: str) -> None:
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": prediction}
    scheduler = peers.scheduler_class("DDPMScheduler")(clip_sample=False, **STABLE, **options)
    assert scheduler.alphas_cumprod[-1] == 0
    compare(scheduler, plan("ddpm", discrete(scheduler), 10), 10, states=10)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("last", ["zero", "sigma_min"])
@pytest.mark.parametrize(("prediction", "sigmas"), [*PAIRS, ("sample", "log_linear")])
def test_euler(prediction: str, spacing: str, sigmas: str, last: str) -> None:
    options = {"prediction_type": prediction, "timestep_spacing": spacing, "final_sigmas_type": last}
    if sigmas == "log_linear":
        options["interpolation_type"] = sigmas
    scheduler = peers.scheduler_class("EulerDiscreteScheduler")(**STABLE, **options, **spread(sigmas))
    compare(scheduler, plan("euler", discrete(scheduler, last=last), 9, grid={"spacing": spacing, "sigmas": sigmas}), 9)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("snr", [False, True])
def test_euler_ancestral(prediction: str, spacing: str, snr: bool) -> None:
    options = {"prediction_type": prediction, "timestep_spacing": spacing, "rescale_betas_zero_snr": snr}
    scheduler = peers.scheduler_class("EulerAncestralDiscreteScheduler")(**STABLE, **options)
    compare(scheduler, plan("euler-ancestral", discrete(scheduler), 9, grid={"spacing": spacing}), 9)


# --- two evaluations a step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("prediction", "sigmas"), PAIRS)
def test_heun(prediction: str, spacing: str, sigmas: str, clip: bool) -> None:
    options = {"prediction_type": prediction, "timestep_spacing": spacing, "clip_sample": clip}
    scheduler = peers.scheduler_class("HeunDiscreteScheduler")(**STABLE, **options, **spread(sigmas))
    run = plan(
        "heun", discrete(scheduler), 6, clip=1.0 if clip else math.inf, grid={"spacing": spacing, "sigmas": sigmas}
    )
    compare(scheduler, run, 6)


def exact_middles(scheduler: Any) -> None:
    """What the scheduler computes of sigmas in float32, in float64."""
    sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
    if hasattr(scheduler, "sigmas_up"):
        after = torch.cat([sigmas[1:], sigmas.new_zeros(1)])
        up = (after**2 * (sigmas**2 - after**2) / sigmas**2) ** 0.5
        down = (after**2 - up**2).clamp(0) ** 0.5
        middle = (sigmas.log() + down.log()).div(2).exp()
        names = {"sigmas_up": up, "sigmas_down": down, "sigmas_interpol": middle}
    else:
        names = {"sigmas_interpol": (sigmas.log() + sigmas.roll(1).log()).div(2).exp()}
    for name, value in names.items():
        setattr(scheduler, name, torch.cat([value[:1], value[1:].repeat_interleave(2), value[-1:]]))


@pytest.mark.parametrize("sampler", ["dpm2", "dpm2-ancestral"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sigmas", ["table", *SIGMAS])
def test_dpm2(sampler: str, prediction: str, spacing: str, sigmas: str) -> None:
    names = {"dpm2": "KDPM2DiscreteScheduler", "dpm2-ancestral": "KDPM2AncestralDiscreteScheduler"}
    options = {"prediction_type": prediction, "timestep_spacing": spacing}
    scheduler = peers.scheduler_class(names[sampler])(**STABLE, **options, **spread(sigmas))
    whole = "round" if sigmas == "karras" else None
    grid = {"spacing": spacing, "sigmas": sigmas, "whole_times": whole}
    compare(scheduler, plan(sampler, discrete(scheduler), 6, grid=grid), 6, prepare=exact_middles)


# --- many steps -------------------------------------------------------------------------------------------------------


def multistep_grid(scheduler: Any, sigmas: str, spacing: str) -> dict[str, Any]:
    whole = {"karras": "round", "lu": "round", "exponential": "floor", "beta": "floor"}.get(sigmas)
    return {"spacing": spacing, "sigmas": sigmas, "whole_times": whole}


ALGORITHMS = {
    "dpmsolver++": {},
    "sde-dpmsolver++": {"eta": 1.0},
    "dpmsolver": {"space": "noise"},
    "sde-dpmsolver": {"space": "noise", "eta": 1.0},
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("last", "steps"), [("zero", 16), ("sigma_min", 10)])
def test_dpm_multistep(prediction: str, algorithm: str, solver: str, order: int, last: str, steps: int) -> None:
    if order == 3 and "sde" in algorithm:
        pytest.skip("the peer has no such step for noise, and a wrong sign for data: see the drop-in's tests")
    if "++" not in algorithm and last == "zero":
        pytest.skip("the peer refuses it")
    options = {"prediction_type": prediction, "algorithm_type": algorithm, "solver_type": solver, "solver_order": order}
    scheduler = peers.scheduler_class("DPMSolverMultistepScheduler")(**STABLE, final_sigmas_type=last, **options)
    run = plan(
        "dpm", discrete(scheduler, last=last), steps, order=order, solver=solver, **ALGORITHMS[algorithm],
        grid={"spacing": "linspace"},
    )  # fmt: skip
    compare(scheduler, run, steps)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sigmas", ["table", "lu", *SIGMAS])
@pytest.mark.parametrize("last", ["zero", "sigma_min"])
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_multistep_sigmas(spacing: str, sigmas: str, last: str, order: int) -> None:
    options = {"timestep_spacing": spacing, "final_sigmas_type": last, "solver_order": order}
    scheduler = peers.scheduler_class("DPMSolverMultistepScheduler")(**STABLE, **options, **spread(sigmas))
    grid = multistep_grid(scheduler, sigmas, spacing)
    compare(scheduler, plan("dpm", discrete(scheduler, last=last), 8, order=order, grid=grid), 8)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver", "sde-dpmsolver++"])
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize(("order", "steps"), [(1, 4), (2, 8), (3, 9)])
@pytest.mark.parametrize("last", ["zero", "sigma_min"])
def test_dpm_singlestep(prediction: str, algorithm: str, solver: str, order: int, steps: int, last: str) -> None:
    if order == 3 and "sde" in algorithm:
        pytest.skip("the peer has a wrong sign: see the drop-in's tests")
    if "++" not in algorithm and last == "zero":
        pytest.skip("the peer refuses it")
    options = {"prediction_type": prediction, "algorithm_type": algorithm, "solver_type": solver, "solver_order": order}
    scheduler = peers.scheduler_class("DPMSolverSinglestepScheduler")(**STABLE, final_sigmas_type=last, **options)
    run = plan(
        "dpm-singlestep", discrete(scheduler, last=last), steps, order=order, solver=solver, **ALGORITHMS[algorithm],
        grid={"spacing": "linspace"},
    )  # fmt: skip
    compare(scheduler, run, steps)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("predict_x0", [True, False])
@pytest.mark.parametrize("kind", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("last", ["zero", "sigma_min"])
def test_unipc(prediction: str, predict_x0: bool, kind: str, order: int, last: str) -> None:
    if not predict_x0 and last == "zero":
        pytest.skip("noise says nothing where none is left: NaN in the peer")
    options = {"prediction_type": prediction, "predict_x0": predict_x0, "solver_type": kind, "solver_order": order}
    scheduler = peers.scheduler_class("UniPCMultistepScheduler")(**STABLE, final_sigmas_type=last, **options)
    space = "data" if predict_x0 else "noise"
    schedule = discrete(scheduler, last=last)
    run = plan("unipc", schedule, 10, order=order, kind=kind, space=space, grid={"spacing": "linspace"})
    compare(scheduler, run, 10, last_is_nan=kind == "bh1" and last == "zero")


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sigmas", ["table", *SIGMAS])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("order", [2, 3])
def test_unipc_sigmas(spacing: str, sigmas: str, final: bool, order: int) -> None:
    last = "zero" if final else "sigma_min"
    options = {"timestep_spacing": spacing, "final_sigmas_type": last, "lower_order_final": final}
    scheduler = peers.scheduler_class("UniPCMultistepScheduler")(
        **STABLE, solver_order=order, **options, **spread(sigmas)
    )
    schedule, grid = discrete(scheduler, last=last), multistep_grid(scheduler, sigmas, spacing)
    compare(
        scheduler,
        plan("unipc", schedule, 8, order=order, lower_order_final=final, grid=grid),
        8,
        last_is_nan=order == 3 and not final and sigmas in SIGMAS,
    )


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("prediction", "sigmas"), PAIRS)
def test_deis(prediction: str, sigmas: str, order: int, spacing: str) -> None:
    options = {"prediction_type": prediction, "solver_order": order, "timestep_spacing": spacing}
    scheduler = peers.scheduler_class("DEISMultistepScheduler")(**STABLE, **options, **spread(sigmas))
    schedule, grid = discrete(scheduler, last="sigma_min"), multistep_grid(scheduler, sigmas, spacing)
    compare(scheduler, plan("deis", schedule, 8, order=order, grid=grid), 8)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("prediction", "sigmas"), PAIRS)
def test_lms(prediction: str, sigmas: str, order: int, spacing: str) -> None:
    options = {"prediction_type": prediction, "timestep_spacing": spacing}
    scheduler = peers.scheduler_class("LMSDiscreteScheduler")(**STABLE, **options, **spread(sigmas))
    grid = {"sigmas": sigmas, "spacing": spacing}
    compare(scheduler, plan("lms", discrete(scheduler), 8, order=order, grid=grid), 8, order=order)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize(("runge_kutta", "steps"), [(False, 10), (True, 10), (True, 4), (True, 8), (True, 77)])
def test_pndm(prediction: str, one: bool, runge_kutta: bool, steps: int) -> None:
    """Of 8 steps the middles are not whole."""
    options = {"prediction_type": prediction, "skip_prk_steps": not runge_kutta, "set_alpha_to_one": one}
    scheduler = peers.scheduler_class("PNDMScheduler")(**STABLE, **options)
    schedule = discrete(scheduler, last="zero" if one else "sigma_min")
    run = plan("pndm", schedule, steps, runge_kutta=runge_kutta, grid={"spacing": "leading"})
    assert len(run) == steps + (9 if runge_kutta else 1)
    compare(scheduler, run, steps)


# --- flows, EDM, consistency ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_flow(sampler: str, shift: float) -> None:
    names = {"euler": "FlowMatchEulerDiscreteScheduler", "heun": "FlowMatchHeunDiscreteScheduler"}
    compare(peers.scheduler_class(names[sampler])(shift=shift), plan(sampler, Flow(shift), 8), 8)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("terminal", [None, 0.1])
def test_flow_dynamic_shift(kind: str, terminal: float | None) -> None:
    scheduler = peers.scheduler_class("FlowMatchEulerDiscreteScheduler")(
        use_dynamic_shifting=True, time_shift_type=kind, shift_terminal=terminal
    )
    run = plan("euler", Flow(), 8, grid={"mu": 0.8, "shift_kind": kind, "terminal": terminal})
    compare(scheduler, run, 8, {"mu": 0.8})


def test_flow_given_sigmas() -> None:
    sigmas = [1.0, 0.7, 0.45, 0.1]
    run = plan("euler", Flow(2.0), 4, grid={"sigmas": sigmas})
    compare(peers.scheduler_class("FlowMatchEulerDiscreteScheduler")(shift=2.0), run, 4, {"sigmas": sigmas})


def test_flow_stochastic() -> None:
    scheduler = peers.scheduler_class("FlowMatchEulerDiscreteScheduler")(stochastic_sampling=True)
    compare(scheduler, plan("consistency", Flow(), 6), 6)


@pytest.mark.parametrize("sigmas", ["karras", "exponential"])
@pytest.mark.parametrize("sampler", ["euler", "dpm"])
def test_edm(sampler: str, sigmas: str) -> None:
    names = {"euler": "EDMEulerScheduler", "dpm": "EDMDPMSolverMultistepScheduler"}
    scheduler = peers.scheduler_class(names[sampler])(sigma_schedule=sigmas, prediction_type="epsilon")
    run = plan(sampler, Edm(), 9, grid={"sigmas": sigmas})
    scheduler.set_timesteps(9)
    torch.testing.assert_close(torch.tensor([at.sigma for at in run.levels]), scheduler.sigmas[:-1], rtol=1e-5, atol=0)
    compare(scheduler, plan(sampler, Edm(), 9, grid={"sigmas": scheduler.sigmas[:-1].tolist()}), 9)


@pytest.mark.parametrize("clip", [False, True])
def test_consistency(clip: bool) -> None:
    scheduler = peers.scheduler_class("CMStochasticIterativeScheduler")(clip_denoised=clip)
    scheduler.set_timesteps(5)
    schedule = Edm(prediction="consistency", time_scale=250)
    run = plan(
        "consistency", schedule, 5, clip=1.0 if clip else math.inf, grid={"sigmas": scheduler.sigmas[:-1].tolist()}
    )
    compare(scheduler, run, 5, states=5)  # its last sigma is rounded, and so not the smallest: it adds noise


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [False, True])
def test_lcm(prediction: str, clip: bool) -> None:
    scheduler = peers.scheduler_class("LCMScheduler")(prediction_type=prediction, clip_sample=clip)
    scheduler.set_timesteps(4)
    run = plan(
        "lcm", discrete(scheduler), 4, clip=1.0 if clip else math.inf, grid={"timesteps": scheduler.timesteps.tolist()}
    )
    compare(scheduler, run, 4, numbers=True)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd(prediction: str, eta: float) -> None:
    scheduler = peers.scheduler_class("TCDScheduler")(prediction_type=prediction)
    scheduler.set_timesteps(4)
    schedule = discrete(scheduler, last="sigma_min")
    run = plan("tcd", schedule, 4, eta=eta, grid={"timesteps": scheduler.timesteps.tolist()})
    compare(scheduler, run, 4, eta=eta)
