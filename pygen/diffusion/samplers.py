"""Samplers: for a grid of levels, the evaluations and the step after each. Nothing here computes on tensors."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, get_args

from .._arguments import check_choice, check_integer, check_number
from .coefficients import adams, exponential, first_order, sde, two_stage
from .coefficients.exponential import Solver
from .coefficients.first_order import Variance
from .grid import Discrete, Edm, Flow, Grid
from .level import Level
from .plan import Evaluation, Plan
from .step import G, H, Row, Step, X

Schedule = Discrete | Flow | Edm
Steps = Iterator[Evaluation]


def _pairs(grid: Grid) -> Iterator[tuple[float, Level, Level]]:
    return ((t, now, then) for t, (now, then) in zip(grid.times, pairwise(grid.levels), strict=True))


def _back(grid: Grid, i: int, count: int) -> list[Level]:
    """The level after evaluation i, its own, and up to `count` - 1 before."""
    return [grid.levels[i + 1 - k] for k in range(min(count, i + 1) + 1)]


# --- one evaluation a step --------------------------------------------------------------------------------------------


def ddim(grid: Grid, *, eta: float = 0.0, reuse_clamped: bool = False, noise_scale: float = 1.0) -> Steps:
    """DDIM, Song et al. 2020 (2010.02502); with eta = 1 ancestral sampling. See `coefficients.first_order.ddim`."""
    for t, now, then in _pairs(grid):
        options: dict[str, Any] = {"eta": eta, "reuse_clamped": reuse_clamped, "noise_scale": noise_scale}
        yield Evaluation(t, now, first_order.ddim(now, then, grid.predicted(now), **options))


def ddim_inverse(grid: Grid) -> Steps:
    """From data to noise, by the network's word at the level where a step ends."""
    for t, then, now in reversed([*_pairs(grid)]):
        yield Evaluation(t, now, first_order.ddim(now, then, grid.predicted(now)))


def ddpm(grid: Grid, *, variance: Variance = "fixed_small") -> Steps:
    """Ancestral sampling, Ho et al. 2020 (2006.11239). See `coefficients.first_order.ddpm` for variances."""
    for t, now, then in _pairs(grid):
        step = first_order.ddpm(now, then, grid.predicted(now), variance=variance, noisy=then.sigma > 0)
        yield Evaluation(t, now, step)


def euler(
    grid: Grid, *, churn: float = 0.0, churn_from: float = 0.0, churn_to: float = math.inf, noise_scale: float = 1.0
) -> Steps:
    """Euler's method in sigma, Karras et al. 2022 (2206.00364), with churn of sigmas within churn_from .. churn_to."""
    return _churned(grid, _euler, churn, churn_from, churn_to, noise_scale)


def euler_ancestral(grid: Grid, *, eta: float = 1.0, noise_scale: float = 1.0) -> Steps:
    """Euler's step down, and noise up again; eta: of the noise, 0 is `euler`."""
    return ddim(grid, eta=eta, noise_scale=noise_scale, reuse_clamped=True)


def repaint(grid: Grid, *, eta: float = 0.0, jump: int = 10, resample: int = 10) -> Steps:
    """Lugmayr et al. 2022 (2201.09865): known pixels are put in, and every `jump` steps the last ones are taken back,
    by noise, and made again, `resample` times in all."""
    n = len(grid.times)
    left = {k: resample - 1 for k in range(0, n - jump, jump)}
    k = n  # steps that remain
    while k:
        now, then = grid.levels[n - k], grid.levels[n - k + 1]
        yield Evaluation(grid.times[n - k], now, sde.repaint(now, then, grid.predicted(now), eta=eta))
        k -= 1
        if left.get(k, 0):
            left[k] -= 1
            yield Evaluation(None, then, sde.renoise(then, grid.levels[n - k - jump]))
            k += jump


def consistency(grid: Grid, *, noise_scale: float = 1.0) -> Steps:
    """The data predicted, and noised anew: consistency models, whose data have the smallest noise, and flows."""
    for t, now, then in _pairs(grid):
        least = grid.smallest if grid.prediction == "consistency" else 0.0
        added = Level(then.alpha, math.sqrt(max(then.sigma**2 - least**2, 0.0)))
        yield Evaluation(t, now, first_order.consistency(added, grid.predicted(now), noise_scale=noise_scale))


def lcm(grid: Grid, *, sigma_data: float = 0.5, time_scale: float = 10.0) -> Steps:
    """Latent consistency models, Luo et al. 2023 (2310.04378), of a network that is told times in 0 .. N - 1."""
    for t, now, then in _pairs(grid):
        r = math.hypot(t * time_scale, sigma_data)
        skip, out = (sigma_data / r) ** 2, t * time_scale / r
        yield Evaluation(t, now, first_order.consistency(then, grid.predicted(now), skip=skip, out=out))


def tcd(grid: Grid, *, eta: float = 0.3) -> Steps:
    """eta: how far below a step's end the data are predicted, as a share of its time."""
    if grid.level_of is None:
        raise ValueError("expected a discrete schedule for tcd")
    for i, (t, now, then) in enumerate(_pairs(grid)):
        last = i + 1 == len(grid.times)
        middle = then if last else grid.level_of(math.floor((1 - eta) * grid.times[i + 1]))
        yield Evaluation(t, now, first_order.trajectory_consistency(now, middle, then, grid.predicted(now)))


# --- churn: a state is made noisier before the network is asked -------------------------------------------------------


def _churned(
    grid: Grid,
    stages: Callable[[Grid, float, Level, Level, float | None], Steps],
    churn: float,
    churn_from: float,
    churn_to: float,
    noise_scale: float,
) -> Steps:
    """Karras et al. 2022 (2206.00364), algorithm 2. Noise of a step is added by the step before it."""
    gamma = min(churn / len(grid.times), math.sqrt(2) - 1)
    pairs = [*_pairs(grid)]
    noisier = [
        Level(now.alpha, now.sigma * (1 + gamma)) if churn_from <= now.sigma <= churn_to else now for _, now, _ in pairs
    ]
    if noisier[0] != pairs[0][1]:
        yield Evaluation(None, pairs[0][1], _with_noise(Step(0.0, 0.0, (X,)), pairs[0][1], noisier[0], noise_scale))
    for i, (t, now, then) in enumerate(pairs):
        asked = t if noisier[i] == now else grid.time_of(noisier[i])
        t_then = grid.times[i + 1] if i + 1 < len(pairs) else None
        *first, last = stages(grid, asked, noisier[i], then, t_then)
        yield from first
        if i + 1 < len(pairs) and noisier[i + 1] != then:
            last = replace(last, step=_with_noise(last.step, then, noisier[i + 1], noise_scale))
        yield last


def _with_noise(step: Step, now: Level, then: Level, scale: float) -> Step:
    return noised(step, scale * math.sqrt(then.sigma**2 - now.sigma**2))


def _euler(grid: Grid, t: float, now: Level, then: Level, t_then: float | None = None) -> Steps:
    yield Evaluation(t, now, two_stage.euler(now, then, grid.predicted(now)))


def _heun(grid: Grid, t: float, now: Level, then: Level, t_then: float | None) -> Steps:
    if then.sigma == 0 or now == then:
        yield from _euler(grid, t, now, then)
        return
    yield Evaluation(t, now, two_stage.heun_first(now, then, grid.predicted(now)))
    t_then = grid.time_of(then) if t_then is None else t_then
    yield Evaluation(t_then, then, two_stage.heun_second(now, then, grid.predicted(then)), 1)


def _midpoint(grid: Grid, t: float, now: Level, then: Level, t_then: float | None = None, std: float = 0.0) -> Steps:
    if then.sigma == 0 or now == then:
        step = two_stage.euler(now, then, grid.predicted(now))
        yield Evaluation(t, now, noised(step, std))
        return
    middle = two_stage.log_middle(now, then)
    yield Evaluation(t, now, two_stage.midpoint_first(now, middle, grid.predicted(now)))
    second = two_stage.midpoint_second(now, middle, then, grid.predicted(middle), std=std)
    yield Evaluation(grid.time_of(middle), middle, second, 1)


# --- two evaluations a step -------------------------------------------------------------------------------------------


def heun(
    grid: Grid, *, churn: float = 0.0, churn_from: float = 0.0, churn_to: float = math.inf, noise_scale: float = 1.0
) -> Steps:
    """Heun's method in sigma, Karras et al. 2022 (2206.00364), algorithm 2, churn as in `euler`."""
    return _churned(grid, _heun, churn, churn_from, churn_to, noise_scale)


def dpm2(
    grid: Grid, *, churn: float = 0.0, churn_from: float = 0.0, churn_to: float = math.inf, noise_scale: float = 1.0
) -> Steps:
    """Steps by the slope in the middle of log sigma, churn as in `euler`."""
    return _churned(grid, _midpoint, churn, churn_from, churn_to, noise_scale)


def dpm2_ancestral(grid: Grid, *, eta: float = 1.0, noise_scale: float = 1.0) -> Steps:
    """`dpm2` down, and noise up again."""
    for t, now, then in _pairs(grid):
        down, std = two_stage.descent(now, then, eta)
        yield from _midpoint(grid, t, now, down, std=std * noise_scale)


def dpmpp_2s(grid: Grid, *, eta: float = 0.0, noise_scale: float = 1.0) -> Steps:
    """DPM-Solver++(2S); with eta ancestral."""
    for t, now, then in _pairs(grid):
        down, std = two_stage.descent(now, then, eta)
        if down.sigma == 0 or now == down:
            step = first_order.ddim(now, down, grid.predicted(now), reuse_clamped=True)
            yield Evaluation(t, now, noised(step, std * noise_scale))
            continue
        middle = two_stage.log_middle(now, down)
        yield Evaluation(t, now, two_stage.midpoint_first(now, middle, grid.predicted(now)))
        second = two_stage.dpmpp_2s_second(now, down, grid.predicted(middle), std=std * noise_scale)
        yield Evaluation(grid.time_of(middle), middle, second, 1)


def noised(step: Step, std: float) -> Step:
    """With noise of a standard deviation on the next state."""
    return replace(step, rows=(replace(step.rows[0], noise=std), *step.rows[1:]))


def dpmpp_sde(
    grid: Grid, *, eta: float = 1.0, noise_scale: float = 1.0, share: float = 0.5, whole_noise: bool = False
) -> Steps:
    """DPM-Solver++ (2S) of the SDE, as k-diffusion has it: noise of the whole step contains that of its first part.

    whole_noise: what is given to the second stage is noise of the whole step, not of the rest of it.
    """
    for t, now, then in _pairs(grid):
        if then.sigma == 0 or now == then:
            yield from _euler(grid, t, now, then)
            continue
        middle = two_stage.log_middle(now, then, share)
        models = grid.predicted(now), grid.predicted(middle)
        options: dict[str, Any] = {"eta": eta, "share": share, "noise_scale": noise_scale, "whole_noise": whole_noise}
        first, second = two_stage.dpmpp_sde(now, middle, then, *models, **options)
        yield Evaluation(t, now, first)
        yield Evaluation(grid.time_of(middle), middle, second, 1)


# --- many steps -------------------------------------------------------------------------------------------------------


def dpm_multistep(
    grid: Grid,
    *,
    order: int = 2,
    space: exponential.Space = "data",
    solver: Solver = "midpoint",
    eta: float = 0.0,
    noise_scale: float = 1.0,
    lower_order_final: bool = True,
    curvature: float = 1.0,
) -> Steps:
    """curvature: 2 for order 3 that is of third order, see `coefficients.exponential.dpm_multistep`.

    lower_order_final: below 15 steps the last two are of order 1 and 2, as in the paper's code."""
    n = len(grid.times)
    for i, t in enumerate(grid.times):
        left = n - i if lower_order_final and n < 15 else order
        levels = _back(grid, i, min(order, left))
        model = grid.predicted(levels[1])
        options: dict[str, Any] = {"space": space, "solver": solver, "eta": eta, "noise_scale": noise_scale}
        step = exponential.dpm_multistep(levels, model, order=len(levels) - 1, curvature=curvature, **options)
        yield Evaluation(t, levels[1], replace(step, keep=("y1", "h0")))


def dpm_singlestep(
    grid: Grid,
    *,
    order: int = 2,
    space: exponential.Space = "data",
    solver: Solver = "midpoint",
    eta: float = 0.0,
    noise_scale: float = 1.0,
) -> Steps:
    """Steps of `order` evaluations each; the last of fewer, and of one evaluation to no noise."""
    n = len(grid.times)
    stages = [1 + i % order for i in range(n)]
    if grid.levels[-1].sigma == 0:
        stages[-1] = 1
    for i, (t, stage) in enumerate(zip(grid.times, stages, strict=True)):
        levels = _back(grid, i, stage)
        options: dict[str, Any] = {"space": space, "solver": solver, "eta": eta, "noise_scale": noise_scale}
        step = exponential.dpm_singlestep(levels, grid.predicted(levels[1]), order=stage, **options)
        yield Evaluation(t, levels[1], step, stage - 1)


def unipc(
    grid: Grid,
    *,
    order: int = 2,
    space: exponential.Space = "data",
    kind: Literal["bh1", "bh2"] = "bh2",
    corrector: bool = True,
    lower_order_final: bool = True,
) -> Steps:
    """UniPC, Zhao et al. 2023 (2302.04867). See `coefficients.exponential.unipc`.

    lower_order_final: the last steps are of order ..., 2, 1.
    """
    n, last_order = len(grid.times), 0
    for i, t in enumerate(grid.times):
        this_order = min(order, i + 1, n - i if lower_order_final else order)
        levels = _back(grid, i, max(this_order, last_order + 1))
        model = grid.predicted(levels[1])
        correct = last_order if corrector else 0
        step = exponential.unipc(levels, model, order=this_order, correct=correct, space=space, kind=kind)
        yield Evaluation(t, levels[1], step)
        last_order = this_order


def lms(grid: Grid, *, order: int = 4) -> Steps:
    """Linear multistep in sigma."""
    for i, t in enumerate(grid.times):
        levels = _back(grid, i, order)
        step = adams.lms(levels, grid.predicted(levels[1]), order=order)
        yield Evaluation(t, levels[1], step)


def deis(grid: Grid, *, order: int = 2, lower_order_final: bool = True) -> Steps:
    """DEIS in log rho, Zhang and Chen 2022 (2204.13902). lower_order_final: as in `dpm_multistep`."""
    n = len(grid.times)
    for i, t in enumerate(grid.times):
        left = n - i if lower_order_final and n < 15 else order
        levels = _back(grid, i, min(order, left))
        step = adams.deis(levels, grid.predicted(levels[1]), order=order)
        yield Evaluation(t, levels[1], step)


def ipndm(grid: Grid, *, order: int = 4) -> Steps:
    """Adams and Bashforth's method along eps, of order up to 4."""
    for i, (t, now, then) in enumerate(_pairs(grid)):
        yield Evaluation(t, now, adams.ipndm(now, then, grid.predicted(now), order=min(order, i + 1)))


def pndm(grid: Grid, *, runge_kutta: bool = False) -> Steps:
    """Pseudo linear multistep, eq. 11 and 12 of Liu et al. 2022 (2202.09778), whose first step is taken twice: PLMS of
    latent diffusion.

    runge_kutta: instead its first three steps have four evaluations each, as in the paper's algorithm 2.
    """
    first = 0
    if runge_kutta:
        first = 3
        if grid.level_of is None or len(grid.times) <= first:
            raise ValueError(f"expected a discrete schedule and at least {first + 1} steps for runge_kutta")
        for i in range(first):
            yield from _pseudo_runge_kutta(grid.times[i], grid.times[i + 1], grid)
    for i, (t, now, then) in [*enumerate(_pairs(grid))][first:]:
        model = grid.predicted(now)
        output = adams.adams(G, min(i + 1, 4))
        if i == 0 and len(grid.times) > 1:
            yield Evaluation(t, now, Step(*model.data, (adams.pndm(now, then, model, G), G), keep=("x", "y1")))
            at_then = grid.predicted(then)
            mean = (G + H(1)) / 2
            row = adams.pndm(now, then, model, mean, H(0))
            yield Evaluation(grid.times[1], then, Step(*at_then.data, (row,), keep=("h1",)), 1)
        else:
            yield Evaluation(
                t, now, Step(*model.data, (adams.pndm(now, then, model, output), G), keep=("y1", "h0", "h1"))
            )


def _pseudo_runge_kutta(t: float, after: float, grid: Grid) -> Steps:
    """From one time to another by eq. 10 of the paper; a middle that is not whole is rounded to either side.

    History: the outputs at the beginning of past steps, the newest first; in between the state, and the weighted sum of
    this step's outputs before them.
    """
    assert grid.level_of is not None
    half = (t - after) // 2
    now, above, below, then = (grid.level_of(int(time)) for time in (t, t - half, after + half, after))
    model = grid.predicted(now)

    def stage(number: int, time: float, at: Level, end: Level, total: Row, keep: tuple[str, ...]) -> Evaluation:
        output, x = (total if number == 3 else G), (H(0) if number else X)
        rows = (adams.pndm(now, end, model, output, x), total)
        return Evaluation(time, at, Step(*model.data, rows, keep=keep), number)

    yield stage(0, t, now, above, G, ("x", "y1", "h0", "h1"))
    yield stage(1, after + half, above, below, H(1) / 6 + G / 3, ("h0", "y1", "h1", "h2", "h3"))
    yield stage(2, after + half, below, then, H(1) + G / 3, ("h0", "y1", "h2", "h3", "h4"))
    yield stage(3, after, then, then, H(1) + G / 6, ("h2", "h3", "h4"))


# --- the list ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampler:
    """How evaluations are made, and the grid they want of a discrete schedule. orders: the highest that there is."""

    build: Callable[..., Steps]
    space: Literal["table", "vp", "ve"] = "ve"
    one_more: bool = False
    whole: bool = True
    orders: int = 0


SAMPLERS = {
    "ddpm": Sampler(ddpm, "table"),
    "ddim": Sampler(ddim, "table"),
    "ddim-inverse": Sampler(ddim_inverse, "table"),
    "repaint": Sampler(repaint, "table"),
    "pndm": Sampler(pndm, "table"),
    "lcm": Sampler(lcm, "table"),
    "tcd": Sampler(tcd, "table"),
    "euler": Sampler(euler, whole=False),
    "euler-ancestral": Sampler(euler_ancestral, whole=False),
    "consistency": Sampler(consistency, whole=False),
    "heun": Sampler(heun, whole=False),
    "dpm2": Sampler(dpm2, whole=False),
    "dpm2-ancestral": Sampler(dpm2_ancestral, whole=False),
    "lms": Sampler(lms, whole=False, orders=4),
    "ipndm": Sampler(ipndm, "vp", one_more=True, orders=4),
    "deis": Sampler(deis, "vp", one_more=True, orders=3),
    "dpm": Sampler(dpm_multistep, "vp", one_more=True, orders=3),
    "dpm-singlestep": Sampler(dpm_singlestep, "vp", one_more=True, orders=3),
    "dpmpp-2s": Sampler(dpmpp_2s, whole=False),
    "dpmpp-sde": Sampler(dpmpp_sde, whole=False),
    "unipc": Sampler(unipc, "vp", one_more=True, orders=3),
}
"""Every sampler by its name."""

ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpmpp-2m": ("dpm", {"order": 2}),
    "dpmpp-3m": ("dpm", {"order": 3}),
    "dpmpp-2m-sde": ("dpm", {"order": 2, "eta": 1.0}),
    "dpmpp-3m-sde": ("dpm", {"order": 3, "eta": 1.0}),
    "dpmpp-2s-ancestral": ("dpmpp-2s", {"eta": 1.0}),
}
"""Names of samplers with options."""


def plan(
    sampler: str,
    schedule: Schedule,
    steps: int,
    *,
    clip: float = math.inf,
    threshold: bool = False,
    grid: dict[str, Any] | None = None,
    **options: Any,
) -> Plan:
    """A sampling run: `steps` steps of a sampler on what a network was trained on.

    sampler: a name of `SAMPLERS` or `ALIASES`; options: those of its function there.
    clip: x0 is clamped to +-clip. threshold: to a quantile of its sample, see `sample_loop`.
    grid: options of the schedule's grid: spacing, sigmas, timesteps, shift, ...

    >>> from pygen.diffusion import Discrete, plan
    >>> len(plan("dpmpp-2m", Discrete.of("scaled_linear", start=0.00085, end=0.012), 20, grid={"sigmas": "karras"}))
    20

    Raises ValueError for a name or a number, TypeError for an option that does not apply.
    """
    check_number("clip", clip, 0, math.inf, above=True)
    name, preset = ALIASES.get(sampler, (sampler, {}))
    if name not in SAMPLERS:
        raise ValueError(f"expected sampler as one of {', '.join(sorted([*SAMPLERS, *ALIASES]))}, got {sampler!r}")
    kind = SAMPLERS[name]
    _check_options(kind, options)
    if isinstance(schedule, Discrete):
        points = schedule.grid(steps, kind.space, one_more=kind.one_more, whole=kind.whole, **grid or {})
    else:
        points = schedule.grid(steps, **grid or {})
    found = [
        replace(e, step=replace(e.step, clip=clip, threshold=threshold)) for e in kind.build(points, **preset | options)
    ]
    return Plan.of(found, start=points.start, scales=[points.scale(e.level) for e in found])


_CHOICES: dict[str, Any] = {
    "space": get_args(exponential.Space), "solver": get_args(Solver), "variance": get_args(Variance),
    "kind": ("bh1", "bh2"),
}  # fmt: skip
_AT_MOST = {"churn_to": math.inf, "share": 1.0}
_SIGNED = {"curvature"}


def _check_options(kind: Sampler, options: dict[str, Any]) -> None:
    """Of a sampler's function, which itself says whether it has them."""
    for name, value in options.items():
        if name == "order" and kind.orders:
            check_integer(name, value, 1, kind.orders)
        elif name in ("jump", "resample"):
            check_integer(name, value, 1)
        elif name in _CHOICES:
            check_choice(name, value, _CHOICES[name])
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and name not in _SIGNED:
            check_number(name, value, 0.0, _AT_MOST.get(name, sys.float_info.max))
