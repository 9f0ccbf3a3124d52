"""Patched schedulers of diffusers against themselves: results, state, random state, types."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.integrations import diffusers as ours
from pygen.integrations.diffusers._call import METHODS

from ..diffusion import peers

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"),
]

SHAPE = (2, 3, 4, 5)
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SPACINGS = ["leading", "trailing", "linspace"]
SPREADS = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
CLAMPS = [{"clip_sample": False}, {"clip_sample": True, "clip_sample_range": 0.7}]
THRESHOLDS = [{}, {"thresholding": True}, {"thresholding": True, "sample_max_value": 1.4}]
Case = tuple[str, dict[str, Any], dict[str, Any]]


def crossed(name: str, options: dict[str, Any], *axes: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pair of values of two axes in some case: the first values of the others stay."""
    seen = []
    for i, j in itertools.combinations(range(len(axes)), 2) if len(axes) > 1 else [(0, 0)]:
        for a, b in itertools.product(axes[i], axes[j]):
            merged = dict(options)
            for axis in axes:
                merged |= axis[0]
            merged |= a | b
            if merged not in seen:
                seen.append(merged)
                yield name, merged


def axis(name: str, values: list[Any]) -> list[dict[str, Any]]:
    return [{name: value} for value in values]


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    prediction, spacing = axis("prediction_type", PREDICTIONS), axis("timestep_spacing", SPACINGS)
    two, last = axis("prediction_type", ["epsilon", "v_prediction"]), axis("final_sigmas_type", ["zero", "sigma_min"])
    zero = axis("rescale_betas_zero_snr", [False, True])
    yield from crossed(
        "DDIMScheduler", STABLE, prediction, spacing, CLAMPS + THRESHOLDS[1:], axis("set_alpha_to_one", [True, False])
    )
    yield from crossed("DDIMInverseScheduler", STABLE | {"set_alpha_to_one": False}, prediction, spacing[:2], CLAMPS)
    variances = axis("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
    yield from crossed("DDPMScheduler", STABLE, prediction, spacing, variances, CLAMPS + THRESHOLDS[1:])
    yield from crossed(
        "PNDMScheduler", STABLE, two, axis("skip_prk_steps", [True, False]), axis("set_alpha_to_one", [True, False])
    )
    yield from crossed("LCMScheduler", {}, prediction, CLAMPS + THRESHOLDS[1:])
    yield from crossed("TCDScheduler", {}, prediction)
    yield "IPNDMScheduler", {}
    yield from crossed("CMStochasticIterativeScheduler", {}, axis("clip_denoised", [True, False]))
    interpolation = axis("interpolation_type", ["linear", "log_linear"])
    yield from crossed(
        "EulerDiscreteScheduler", STABLE, prediction, spacing, [*SPREADS, *interpolation[1:]], last, zero
    )
    yield from crossed("EulerAncestralDiscreteScheduler", STABLE, two, spacing, zero)
    yield from crossed("HeunDiscreteScheduler", STABLE, prediction, spacing, SPREADS, CLAMPS)
    yield from crossed("KDPM2DiscreteScheduler", STABLE, two, spacing, SPREADS)
    yield from crossed("KDPM2AncestralDiscreteScheduler", STABLE, two, spacing, SPREADS)
    yield from crossed("LMSDiscreteScheduler", STABLE, prediction, spacing, SPREADS)
    order = axis("solver_order", [1, 2, 3])
    yield from crossed("DEISMultistepScheduler", STABLE, prediction, spacing, SPREADS, order, THRESHOLDS)
    solver = axis("solver_type", ["midpoint", "heun"])
    data, noise = (
        axis("algorithm_type", ["dpmsolver++", "sde-dpmsolver++"]),
        axis("algorithm_type", ["dpmsolver", "sde-dpmsolver"]),
    )
    spreads = [*SPREADS, {"use_lu_lambdas": True}]
    multistep = (prediction, spacing, spreads, order, solver, THRESHOLDS, last, axis("euler_at_final", [False, True]))
    yield from crossed("DPMSolverMultistepScheduler", STABLE, data, *multistep)
    for options in ({"solver_order": 1}, {"solver_order": 2}):
        fixed = STABLE | {"final_sigmas_type": "sigma_min"} | options
        yield from crossed("DPMSolverMultistepScheduler", fixed, noise, prediction, solver, THRESHOLDS)
    yield from crossed(
        "DPMSolverSinglestepScheduler", STABLE, data, prediction, SPREADS, order, solver, THRESHOLDS, last
    )
    fixed = STABLE | {"final_sigmas_type": "sigma_min"}
    yield from crossed("DPMSolverSinglestepScheduler", fixed, noise[:1], prediction, order, solver)
    kind = axis("solver_type", ["bh2", "bh1"])
    unipc = (
        prediction,
        spacing,
        SPREADS,
        order,
        kind,
        axis("predict_x0", [True, False]),
        axis("lower_order_final", [True, False]),
    )
    yield from crossed("UniPCMultistepScheduler", STABLE | {"final_sigmas_type": "sigma_min"}, *unipc, zero)
    yield from crossed("UniPCMultistepScheduler", STABLE, prediction, order, THRESHOLDS)
    yield "UniPCMultistepScheduler", STABLE | {"disable_corrector": [0, 2]}
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"):
        yield from crossed(name, flow, axis("flow_shift", [1.0, 3.0]), order)
    yield from crossed(
        "FlowMatchEulerDiscreteScheduler", {}, axis("stochastic_sampling", [False, True]), axis("shift", [1.0, 3.0])
    )
    yield "FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}
    yield from crossed("FlowMatchHeunDiscreteScheduler", {}, axis("shift", [1.0, 3.0]))
    edm = axis("sigma_schedule", ["karras", "exponential"])
    yield from crossed("EDMEulerScheduler", {}, two, edm, last)
    yield from crossed("EDMDPMSolverMultistepScheduler", {}, two, edm, data, axis("solver_order", [1, 2]), solver)


STEP_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "DDIMScheduler": [{}, {"eta": 0.6}, {"eta": 1.0, "use_clipped_model_output": True}],
    "EulerDiscreteScheduler": [{}, {"s_churn": 4.0, "s_noise": 1.01}, {"s_churn": 9.0, "s_tmin": 0.5, "s_tmax": 9.0}],
    "EDMEulerScheduler": [{}, {"s_churn": 4.0}],
    "FlowMatchHeunDiscreteScheduler": [
        {},
        {"s_churn": 4.0, "s_noise": 1.01},
        {"s_churn": 9.0, "s_tmin": 0.2, "s_tmax": 0.8},
    ],
    "LMSDiscreteScheduler": [{}, {"order": 2}],
    "TCDScheduler": [{}, {"eta": 0.0}, {"eta": 1.0}],
}

ALL = [(name, options, more) for name, options in cases() for more in STEP_OPTIONS.get(name, [{}])]


def label(value: Any) -> str | None:
    if isinstance(value, dict):
        return ",".join(str(v) for k, v in value.items() if k not in STABLE) or "-"
    return value if isinstance(value, str) else None


def steps_of(name: str) -> int:
    return {"CMStochasticIterativeScheduler": 4, "LCMScheduler": 4, "TCDScheduler": 4}.get(name, 8)


def made(name: str, options: dict[str, Any]) -> Any:
    scheduler = peers.scheduler_class(name)(**options)
    scheduler.set_timesteps(steps_of(name))
    return scheduler


def same_state(patched: Any, plain: Any) -> None:
    """Whatever is in both, history included."""
    skipped = {*METHODS[type(plain).__name__]} | {name for name in vars(patched) if name.startswith("_pygen")}
    for name in vars(plain).keys() | vars(patched).keys() - skipped:
        mine, theirs = getattr(patched, name), getattr(plain, name)
        flat = [(mine, theirs)]
        if isinstance(theirs, list):
            assert len(mine) == len(theirs), name
            flat = list(zip(mine, theirs, strict=True))
        for a, b in flat:
            if isinstance(b, Tensor):
                torch.testing.assert_close(
                    a, b, rtol=1e-9, atol=1e-9, equal_nan=True, msg=lambda t, n=name: f"{n}: {t}"
                )
            elif isinstance(b, (int, float, str, type(None))):
                assert a == b, name


def no_fallback(monkeypatch: pytest.MonkeyPatch, name: str, method: str) -> None:
    """A scheduler that is patched from here on does not find its own method any more."""
    kind = peers.scheduler_class(name)

    def fails(self: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"{name}.{method} was called")

    fails.__signature__ = inspect.signature(getattr(kind, method))  # type: ignore[attr-defined]
    monkeypatch.setattr(kind, method, fails)


@pytest.mark.parametrize(("name", "options", "more"), ALL, ids=label)
def test_equal(name: str, options: dict[str, Any], more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = made(name, options)
    x = next(peers.draws(SHAPE, seed=1)) * init_noise_sigma(plain)
    numbers = name == "LCMScheduler"  # whose coefficients are float32 if it is told tensors
    try:
        expected = peers.diffusers_loop(plain, x, numbers=numbers, **more)
    except AssertionError:
        pytest.skip("the peer fails: its first two timesteps are equal, and it starts from the second")
    no_fallback(monkeypatch, name, "step")
    patched = ours.patch_scheduler(made(name, options))
    found = peers.diffusers_loop(patched, x, numbers=numbers, **more)
    for a, b in zip(found, expected, strict=True):
        if b.isfinite().all():  # repeated sigmas and zeros are NaN in some of theirs
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * max(1.0, b.abs().max().item()))
    if expected[-1].isfinite().all():
        same_state(patched, plain)


def fed(scheduler: Any, x: Tensor, t: Any) -> Tensor:
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def init_noise_sigma(scheduler: Any) -> float:
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def float32_loop(scheduler: Any, x: Tensor, seed: int = 0, **more: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    takes = "generator" in inspect.signature(scheduler.step).parameters
    states = [x]
    for t in scheduler.timesteps:
        output = peers.network(fed(scheduler, x, t), t).to(x.dtype)
        extra = more | ({"generator": generator} if takes else {})
        x = scheduler.step(output, t, x, return_dict=False, **extra)[0]
        states.append(x)
    return states


ONE_EACH = [next(case for case in ALL if case[0] == name) for name in dict.fromkeys(case[0] for case in ALL)]


@pytest.mark.parametrize(("name", "options", "more"), ONE_EACH, ids=label)
def test_float32_as_it_is(name: str, options: dict[str, Any], more: dict[str, Any]) -> None:
    """Over loops the distance from float64 is at most twice the peer's, with torch's own noise."""
    plain, patched, exact = made(name, options), ours.patch_scheduler(made(name, options)), made(name, options)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * init_noise_sigma(plain)
    theirs, mine = float32_loop(plain, x, **more)[-1], float32_loop(patched, x, **more)[-1]
    assert mine.dtype == theirs.dtype
    noise = (torch.randn(SHAPE, generator=g).double() for g in itertools.repeat(torch.Generator().manual_seed(0)))
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(peers, "draws", lambda shape: noise)
        truth = peers.diffusers_loop(exact, x.double(), **more)[-1]
    scale = truth.abs().max().item()
    assert (mine - truth).abs().max() <= 2 * (theirs - truth).abs().max() + 3e-6 * scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "options", "more"), ONE_EACH, ids=label)
def test_half_precision(name: str, options: dict[str, Any], more: dict[str, Any], dtype: torch.dtype) -> None:
    """One step: types as the peer's, and at least as close to float64."""
    plain, patched, exact = made(name, options), ours.patch_scheduler(made(name, options)), made(name, options)
    x = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * init_noise_sigma(plain)).to(dtype)
    t = plain.timesteps[0]
    outputs = {}
    for key, scheduler, state in (("plain", plain, x), ("ours", patched, x), ("exact", exact, x.double())):
        output = peers.network(x.double(), t).to(dtype).to(state.dtype)
        if key == "exact":
            peers.upcast(exact)
        fed(scheduler, state, t)
        torch.manual_seed(4)
        extra = dict(more)
        context = (
            peers.in_float64(exact, rounded(dtype, noise_dtype(name, dtype))) if key == "exact" else torch.no_grad()
        )
        with context:
            outputs[key] = scheduler.step(output, t, state, return_dict=False, **extra)[0]
    assert outputs["ours"].dtype == outputs["plain"].dtype
    ours_off, theirs_off = ((outputs[key].double() - outputs["exact"]).abs().max().item() for key in ("ours", "plain"))
    assert ours_off <= theirs_off * 1.01 + torch.finfo(dtype).eps * outputs["exact"].abs().max().item() / 2


def noise_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    wide = ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler")
    return torch.float32 if name in wide else dtype


def rounded(dtype: torch.dtype, drawn: torch.dtype) -> Iterator[Tensor]:
    while True:
        yield torch.randn(SHAPE, dtype=drawn).double()


def test_learned_variances() -> None:
    for variance in ("learned", "learned_range"):
        plain, patched = (made("DDPMScheduler", STABLE | {"variance_type": variance}) for _ in range(2))
        ours.patch_scheduler(patched)
        x, output = next(peers.draws(SHAPE)), next(peers.draws((2, 6, 4, 5), seed=2)).abs()
        results = []
        for scheduler in (plain, patched):
            peers.upcast(scheduler)
            with peers.in_float64(scheduler, peers.draws(SHAPE)):
                results.append(scheduler.step(output, scheduler.timesteps[2], x).prev_sample)
        torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


def test_repaint() -> None:
    plain, patched = (peers.scheduler_class("RePaintScheduler")(eta=0.4) for _ in range(2))
    ours.patch_scheduler(patched)
    x, image = next(peers.draws(SHAPE)), next(peers.draws(SHAPE, seed=2))
    mask = (next(peers.draws((1, 1, 4, 5), seed=3)) > 0).double()
    for scheduler in (plain, patched):
        scheduler.set_timesteps(20, 5, 2)
        peers.upcast(scheduler)
    for t in plain.timesteps:
        results = []
        for scheduler in (plain, patched):
            with peers.in_float64(scheduler, peers.draws(SHAPE)):
                results.append(scheduler.step(peers.network(x, t), t, x, image, mask))
        torch.testing.assert_close(results[1].prev_sample, results[0].prev_sample, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            results[1].pred_original_sample, results[0].pred_original_sample, rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("option", STEP_OPTIONS["FlowMatchHeunDiscreteScheduler"][1:], ids=label)
def test_churn_of_flows(option: dict[str, Any], dtype: torch.dtype) -> None:
    """By torch's noise, which is drawn at both stages: states as the peer's, to the rounding of their types."""
    states = []
    for scheduler in (made("FlowMatchHeunDiscreteScheduler", {}), made("FlowMatchHeunDiscreteScheduler", {})):
        if states:
            ours.patch_scheduler(scheduler)
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)
        states.append(float32_loop(scheduler, x, **option))
    for a, b in zip(*states, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=100 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("times_dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_times_of_tokens(
    stochastic: bool, dtype: torch.dtype, times_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, options = "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": stochastic, "shift": 2.0}
    shape = (2, 6, 5)
    plain = made(name, options)
    patched = copy.deepcopy(plain)
    if dtype == torch.float64:
        peers.upcast(plain)
        peers.upcast(patched)
    places = torch.tensor([[0, 1, 2, 7, 3, 3], [7, 6, 0, 0, 4, 5]])
    times = plain.timesteps[places].to(times_dtype)
    times[1, 2] = 0.0  # a token that is given
    x, output = next(peers.draws(shape)).to(dtype), next(peers.draws(shape, seed=2)).to(dtype)

    def run(scheduler: Any) -> list[Tensor]:
        results = []
        with peers.in_float64(scheduler, peers.draws(shape)) if dtype == torch.float64 else nullcontext():
            for t in scheduler.timesteps[:2]:
                torch.manual_seed(3)
                results += scheduler.step(output, t, x, per_token_timesteps=times, return_dict=False)
        return [*results, torch.randn(1)]

    expected = run(plain)
    no_fallback(monkeypatch, name, "step")
    found = run(ours.patch_scheduler(patched))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        exact = dtype == times_dtype == torch.float64
        torch.testing.assert_close(
            a, b, rtol=0, atol=1e-10 if exact else 1e-2 if times_dtype == torch.bfloat16 else 2e-6
        )
    same_state(patched, plain)


def test_times_of_tokens_that_are_refused() -> None:
    plain, patched = (made("FlowMatchEulerDiscreteScheduler", {}) for _ in range(2))
    ours.patch_scheduler(patched)
    x = torch.ones(2, 6, 5)
    for sample, times in ((x, torch.ones(2, 5)), (x[0], torch.ones(6)), (x, torch.full((2, 6), 500))):
        outcomes = []
        for scheduler in (plain, patched):
            try:
                outcomes.append(scheduler.step(sample, scheduler.timesteps[0], sample, per_token_timesteps=times)[0])
            except Exception as error:
                outcomes.append(type(error))
        if isinstance(outcomes[0], Tensor):
            torch.testing.assert_close(outcomes[1], outcomes[0])
        else:
            assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(("name", "options", "more"), ONE_EACH, ids=label)
def test_everything_returned(name: str, options: dict[str, Any], more: dict[str, Any]) -> None:
    """Classes of outputs with their fields, tuples, and the random state after."""
    results = []
    for patched in (False, True):
        scheduler = made(name, options)
        if patched:
            ours.patch_scheduler(scheduler)
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
        kept = []
        for return_dict in (True, False):
            torch.manual_seed(7)
            t = scheduler.timesteps[0 if return_dict else 1]
            kept.append(
                scheduler.step(peers.network(fed(scheduler, x, t), t).float(), t, x, return_dict=return_dict, **more)
            )
            kept.append(torch.randn(1))
        results.append(kept)
    (structured, drawn, pair, after), (mine, mine_drawn, mine_pair, mine_after) = results
    assert type(mine) is type(structured)
    assert mine.keys() == structured.keys()
    for key, value in structured.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-4, atol=1e-4)
    assert len(mine_pair) == len(pair)
    for a, b in zip(mine_pair, pair, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert isinstance(mine_pair, tuple)
    assert torch.equal(drawn, mine_drawn)
    assert torch.equal(after, mine_after)


def test_a_pair_is_a_tuple() -> None:
    """Whose second, computed when asked for, is what it would have been at once, or not at all."""
    scheduler = ours.patch_scheduler(made("DDIMScheduler", STABLE))
    x, output = torch.randn(SHAPE), torch.randn(SHAPE)
    first, second = pair = scheduler.step(output, scheduler.timesteps[0], x, return_dict=False)
    twice = pair * 2
    assert [id(tensor) for tensor in twice] == [*map(id, (first, second, first, second))]
    assert "None" not in repr(pair)
    for other in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        assert [torch.equal(a, b) for a, b in zip(other, pair, strict=True)] == [True, True]
    late = scheduler.step(output, scheduler.timesteps[1], x, return_dict=False)
    x.zero_()
    with pytest.raises(RuntimeError, match="expected sample and model_output as the step was given them"):
        late[1]


@pytest.mark.parametrize("name", ours.covered())
def test_type_configuration_and_signature_stay(name: str) -> None:
    plain = peers.scheduler_class(name)()
    patched = ours.patch_scheduler(copy.deepcopy(plain))
    assert type(patched) is type(plain)
    assert patched.config == plain.config
    assert patched.to_json_string() == plain.to_json_string()
    for method in METHODS[name]:
        assert inspect.signature(getattr(patched, method)) == inspect.signature(getattr(plain, method))
    assert isinstance(copy.deepcopy(patched), type(plain))


def test_patch_is_undone() -> None:
    places = [(peers.scheduler_class(name), method) for name in METHODS for method in METHODS[name]]
    before = [getattr(*place) for place in places]
    with peers.importable(), ours.patch():
        assert all(getattr(*place) is not method for place, method in zip(places, before, strict=True))
        scheduler = made("DDIMScheduler", STABLE)
        assert scheduler.step(torch.ones(SHAPE), scheduler.timesteps[0], torch.ones(SHAPE)).prev_sample.shape == SHAPE
    assert [getattr(*place) for place in places] == before


def test_what_a_subclass_overrides_stays() -> None:
    class Own(peers.scheduler_class("DDIMScheduler")):  # type: ignore[misc]
        def add_noise(self, *args: Any) -> str:
            return "own"

    scheduler = ours.patch_scheduler(Own())
    assert scheduler.add_noise(torch.ones(SHAPE), torch.ones(SHAPE), torch.tensor([1])) == "own"
    assert "step" in vars(scheduler)


def test_their_errors() -> None:
    """What a scheduler refuses it refuses in its own words."""
    x = torch.ones(SHAPE)
    for name in ("DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        scheduler = ours.patch_scheduler(peers.scheduler_class(name)())
        with pytest.raises(ValueError, match="Number of inference steps is 'None'"):
            scheduler.step(x, 3, x)
    scheduler = ours.patch_scheduler(made("EulerDiscreteScheduler", STABLE))
    with pytest.raises(ValueError, match="Passing integer indices"):
        scheduler.step(x, 3, x)
    with pytest.raises(ValueError, match="expected noise as"):
        ours.patch_scheduler(scheduler, noise="numpy")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected one of"):
        ours.patch_scheduler(object())


def test_noise_of_the_stream_depends_on_the_sample_alone() -> None:
    def run(batch: int) -> Tensor:
        scheduler = ours.patch_scheduler(made("EulerAncestralDiscreteScheduler", STABLE), noise="pygen")
        x = torch.ones(batch, 3, 4, 4)
        for t in scheduler.timesteps:
            generator = torch.Generator().manual_seed(0)
            x = scheduler.step(fed(scheduler, x, t), t, x, generator=generator).prev_sample
        return x

    assert torch.equal(run(4)[:2], run(2))


def test_gradients_go_through() -> None:
    scheduler = ours.patch_scheduler(made("DDIMScheduler", STABLE | {"clip_sample": False}))
    x = torch.ones(SHAPE, requires_grad=True)
    scheduler.step(2 * x, scheduler.timesteps[0], x).prev_sample.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
