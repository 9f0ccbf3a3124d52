"""Samplers where the exact solution is known: data of one normal distribution, whose denoiser is linear."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen import diffusion
from pygen.diffusion import ALIASES, SAMPLERS, Discrete, Edm, Flow, Grid, Level, Plan, plan, sample_loop
from pygen.diffusion.level import Prediction, flow, ve, vp

MEAN, STD = 0.3, 0.6


def data(x: Tensor, at: Level) -> Tensor:
    """E[x0 | x]."""
    alpha, sigma = at
    return (alpha * STD**2 * x + sigma**2 * MEAN) / (alpha**2 * STD**2 + sigma**2)


def exact(x: Tensor, now: Level, then: Level) -> Tensor:
    """The probability flow from one level to another."""
    spread = math.sqrt((then.alpha * STD) ** 2 + then.sigma**2) / math.sqrt((now.alpha * STD) ** 2 + now.sigma**2)
    return then.alpha * MEAN + spread * (x - now.alpha * MEAN)


def grid(levels: Iterable[Level], prediction: Prediction = "sample") -> Grid:
    """A grid whose times say nothing: tests know the level that a network is asked at."""
    at = tuple(levels)
    return Grid((0.0,) * (len(at) - 1), at, lambda level: 0.0, lambda level: 1.0, 1.0, prediction)


def run(name: str, levels: Sequence[Level], x: Tensor, seed: int = 0, **options: Any) -> Tensor:
    """A sampler by the exact denoiser."""
    name, preset = ALIASES.get(name, (name, {}))
    made = Plan.of(SAMPLERS[name].build(grid(levels), **preset | options), start=1.0)
    at = iter([e.level for e in made.evaluations if e.time is not None])
    return sample_loop(lambda fed, t: data(fed, next(at)), x, made, generator=seed)


def error(name: str, level_of: Callable[[float], Level], steps: int, **options: Any) -> float:
    """At the end of steps that are even in log sigma; multistep methods, whose order rises with what they remember,
    begin with two of a thousandth of the length."""
    first, last = math.log(8.0), math.log(0.2)
    logs = torch.linspace(first, last, steps + 1, dtype=torch.float64).tolist()
    if name in ("dpm", "deis", "lms", "unipc"):
        logs[1:1] = [first + k * (last - first) / steps / 1000 for k in (1, 2)]
    levels = [level_of(math.exp(value)) for value in logs]
    x = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
    return (run(name, levels, x, **options) - exact(x, levels[0], levels[-1])).abs().max().item()


ORDERS = [
    ("ddim", {}, 1), ("euler", {}, 1), ("heun", {}, 2), ("dpm2", {}, 2), ("dpmpp-2s", {}, 2),
    ("lms", {"order": 1}, 1), ("lms", {"order": 2}, 2), ("lms", {"order": 3}, 3),
    ("dpm", {"order": 1}, 1), ("dpm", {"order": 2}, 2), ("dpm", {"order": 2, "solver": "heun"}, 2),
    ("dpm", {"order": 3}, 2), ("dpm", {"order": 3, "curvature": 2.0}, 3),
    ("dpm", {"order": 2, "space": "noise"}, 2), ("dpm", {"order": 3, "space": "noise", "curvature": 2.0}, 3),
    ("dpm-singlestep", {"order": 2}, 2), ("dpm-singlestep", {"order": 3}, 3),
    ("dpm-singlestep", {"order": 3, "solver": "heun"}, 3),
    ("deis", {"order": 2}, 2), ("deis", {"order": 3}, 3),
    ("unipc", {"order": 1, "lower_order_final": False}, 2), ("unipc", {"order": 2, "lower_order_final": False}, 3),
    ("unipc", {"order": 2, "corrector": False}, 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "order"), ORDERS)
@pytest.mark.parametrize("level_of", [ve, vp], ids=["ve", "vp"])
def test_order(name: str, options: dict[str, Any], order: int, level_of: Callable[[float], Level]) -> None:
    if level_of is vp and name in ("euler", "heun", "dpm2", "lms", "dpmpp-2s"):
        pytest.skip("a method for alpha = 1")
    coarse, fine = (error(name, level_of, n, **options) for n in (48, 96))
    assert abs(math.log2(coarse / fine) - order) < 0.2 * order


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_order_of_a_flow(name: str) -> None:
    def off(steps: int) -> float:
        levels = [flow(sigma) for sigma in torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64).tolist()]
        x = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
        return (run(name, levels, x) - exact(x, levels[0], levels[-1])).abs().max().item()

    assert math.log2(off(32) / off(64)) == pytest.approx({"euler": 1, "heun": 2}[name], abs=0.2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddpm", {}), ("ddpm", {"variance": "fixed_large"}), ("ddim", {"eta": 1.0}), ("ddim", {"eta": 0.5}),
        ("euler-ancestral", {}), ("dpm2-ancestral", {}), ("dpmpp-2s-ancestral", {}), ("dpmpp-sde", {}),
        ("dpmpp-2m-sde", {}), ("dpmpp-3m-sde", {}), ("euler", {"churn": 60.0}), ("heun", {"churn": 60.0}),
        ("dpm", {"eta": 1.0, "order": 1, "space": "noise"}), ("consistency", {}),
    ],
)  # fmt: skip
def test_mean_and_variance_of_sdes(name: str, options: dict[str, Any]) -> None:
    """From pure noise to data: within what is left to chance, at one in a million, for 4000 samples."""
    steps, n = 200, 4000
    sigmas = torch.linspace(math.log(40.0), math.log(0.02), steps, dtype=torch.float64).exp().tolist()
    space = vp if name in ("ddpm", "ddim", "dpm") else ve
    levels = [*map(space, sigmas), Level(1.0, 0.0)]
    if "space" in options:
        levels[-1] = space(1e-3)
    x = torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * levels[0].sigma
    if name == "consistency":  # its steps are independent, and its network is not the denoiser but the map to data
        made = Plan.of(SAMPLERS[name].build(grid(levels)), start=1.0)
        at = iter(made.levels)
        out = sample_loop(lambda fed, t: exact(fed, next(at), levels[-1]), x, made, generator=0)
    else:
        out = run(name, levels, x, **options)
    assert abs(out.mean().item() - MEAN) < 4.9 * STD / math.sqrt(n) + 0.01
    spread = 4.9 * math.sqrt(2 / n)  # of a chi-square distribution's mean
    assert abs(out.var().item() / STD**2 - 1) < spread + 0.02


STAYING = [name for name in SAMPLERS if name not in ("consistency", "lcm", "tcd", "repaint", "ddim-inverse", "ddpm")]


@pytest.mark.parametrize("name", STAYING)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("space", [ve, vp, flow], ids=["ve", "vp", "flow"])
def test_repeated_levels_change_nothing(name: str, prediction: Prediction, space: Callable[[float], Level]) -> None:
    sigmas = [0.9, 0.9, 0.7, 0.5, 0.5, 0.5, 0.2, 0.2]
    options = {"corrector": False} if name == "unipc" else {}  # which changes the state at the same level
    made = Plan.of(SAMPLERS[name].build(grid(map(space, sigmas), prediction), **options), start=1.0)
    begun: list[tuple[Level, Tensor]] = []
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)

    def told(seen: diffusion.Progressed) -> None:
        evaluation = made.evaluations[seen.index]
        if evaluation.stage == 0:
            begun.append((evaluation.level, seen.x))

    out = sample_loop(lambda fed, t: torch.sin(3 * fed), x, made, generator=0, callback=told)
    begun.append((space(sigmas[-1]), out))
    repeats = [(a, b) for (la, a), (lb, b) in pairwise(begun) if la == lb]
    assert repeats
    for before, after in repeats:
        torch.testing.assert_close(after, before, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", [*SAMPLERS, *ALIASES])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_every_sampler_runs_on_a_discrete_schedule(name: str, steps: int) -> None:
    made = plan(name, Discrete.of("scaled_linear", start=0.00085, end=0.012), steps)
    x = made.first_state((2, 3, 4, 4), generator=0)
    out = sample_loop(lambda fed, t: 0.1 * fed, x, made, generator=1, **repainted(name, x))
    assert out.isfinite().all()
    assert out.dtype == torch.float32


def repainted(name: str, x: Tensor) -> dict[str, Tensor]:
    return {"known": torch.zeros_like(x), "known_mask": torch.zeros_like(x)} if name == "repaint" else {}


@pytest.mark.parametrize("schedule", [Flow(2.0), Edm()], ids=["flow", "edm"])
@pytest.mark.parametrize("name", [n for n in [*SAMPLERS, *ALIASES] if n not in ("lcm", "tcd")])
def test_every_sampler_runs_on_flows_and_edm(name: str, schedule: Flow | Edm) -> None:
    along_eps = name in ("pndm", "ipndm") and isinstance(schedule, Flow)
    if along_eps:
        with pytest.raises(ValueError, match="expected data in the state"):
            plan(name, schedule, 5)
    made = plan(name, schedule, 5, grid={"sigmas": [0.99, 0.7, 0.5, 0.3, 0.1]} if along_eps else None)
    x = made.first_state((2, 3, 4, 4), generator=0)
    out = sample_loop(lambda fed, t: 0.1 * fed, x, made, generator=1, **repainted(name, x))
    assert out.isfinite().all()


def test_the_same_sampler_in_three_spaces() -> None:
    """DDIM is Euler's method in sigma / alpha, whatever the space."""
    sigmas = [5.0, 2.0, 0.7, 0.1]
    x = torch.tensor([[1.7]], dtype=torch.float64)
    at_vp = run("ddim", [vp(s) for s in sigmas], x * vp(5.0).alpha) / vp(0.1).alpha
    at_ve = run("euler", [ve(s) for s in sigmas], x)
    at_flow = run("euler", [flow(s / (1 + s)) for s in sigmas], x / 6) * 1.1
    torch.testing.assert_close(at_vp, at_ve, rtol=1e-13, atol=0)
    torch.testing.assert_close(at_flow, at_ve, rtol=1e-13, atol=0)


def test_refused() -> None:
    schedule = Discrete.of()
    with pytest.raises(ValueError, match=r"expected sampler as one of .*ddim.*, got 'dimm'"):
        plan("dimm", schedule, 5)
    with pytest.raises(TypeError, match="order"):
        plan("ddim", schedule, 5, order=2)
    with pytest.raises(ValueError, match="expected steps from 1 to 1000, got 0"):
        plan("ddim", schedule, 0)
    with pytest.raises(ValueError, match="expected sigmas as"):
        plan("euler", schedule, 5, grid={"sigmas": "caras"})
    with pytest.raises(ValueError, match="expected spacing as"):
        plan("euler", schedule, 5, grid={"spacing": "even"})
    with pytest.raises(ValueError, match="expected prediction as one of"):
        plan("ddim", Discrete.of(prediction="eps"), 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected kind as"):
        Discrete.of("cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a prediction that determines step 0"):
        plan("ddim", Discrete.of(zero_terminal_snr=True), 5)
    with pytest.raises(ValueError, match="expected a discrete schedule"):
        plan("tcd", Flow(), 5)
    for refused in (Flow(), schedule):
        with pytest.raises(ValueError, match="expected a discrete schedule and at least 4 steps for runge_kutta"):
            plan("pndm", refused, 3, runge_kutta=True)
    with pytest.raises(ValueError, match="expected clip > 0, got nan"):
        plan("ddim", schedule, 5, clip=math.nan)
    with pytest.raises(ValueError, match="expected last as one of zero, sigma_min, got 'x'"):
        Discrete.of(last="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected shift > 0, got 0"):
        Flow(shift=0.0)
    with pytest.raises(ValueError, match=r"expected largest >= 1, got 0\.5"):
        Edm(smallest=1.0, largest=0.5)


@pytest.mark.parametrize("schedule", [Discrete.of(), Flow(), Edm()])
@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_numbers_of_steps(schedule: Discrete | Flow | Edm, steps: int) -> None:
    with pytest.raises((ValueError, TypeError), match="expected steps"):
        plan("euler", schedule, steps)


@pytest.mark.parametrize("timesteps", [[1, 500, 900], [1500, 500], [0.5], []])
def test_timesteps(timesteps: list[float]) -> None:
    with pytest.raises(ValueError, match=r"expected timesteps falling|expected whole timesteps"):
        plan("ddim", Discrete.of(), 3, grid={"timesteps": timesteps})


@pytest.mark.parametrize(
    ("sampler", "options", "said"),
    [
        ("dpm", {"order": 4}, "order from 1 to 3, got 4"),
        ("lms", {"order": 0}, "order from 1 to 4, got 0"),
        ("dpm", {"solver": "mid"}, "solver as one of midpoint, heun, got 'mid'"),
        ("dpm", {"space": "dat"}, "space as one of data, noise, got 'dat'"),
        ("dpm", {"space": "noise", "eta": 0.5}, "eta of 0 or 1 in the space of noise, got 0.5"),
        ("unipc", {"kind": "bh3"}, "kind as one of bh1, bh2, got 'bh3'"),
        ("ddpm", {"variance": "x"}, "variance as one of"),
        ("ddim", {"eta": math.nan}, "eta >= 0, got nan"),
        ("repaint", {"jump": 0}, "jump >= 1, got 0"),
    ],
)
def test_refused_options(sampler: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"expected {said}"):
        plan(sampler, Discrete.of(), 5, **options)


@pytest.mark.parametrize("option", [{"mu": 1.0, "shift_kind": "x"}, {"terminal": 2.0}])
def test_refused_options_of_a_flow(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"expected {[*option][-1]}"):
        plan("euler", Flow(), 4, grid=option)


def test_whole_numbers_are_checked() -> None:
    with pytest.raises(ValueError, match="expected eta >= 0, got -1"):
        plan("ddim", Discrete.of(), 4, eta=-1)


@pytest.mark.parametrize("values", [[2.0, 1.0], [0.5, -0.1], [math.nan], [[0.5]], []])
def test_tables_that_are_no_products(values: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"expected alphas_cumprod \[N\] within \[0, 1\]"):
        Discrete(torch.tensor(values))
