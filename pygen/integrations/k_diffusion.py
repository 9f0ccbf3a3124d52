"""k-diffusion's samplers and schedules, argument for argument, each step one pass over the state.

    from pygen.integrations import k_diffusion as K
    x = K.sample_dpmpp_2m(model, x, K.get_sigmas_karras(20, 0.03, 14.6))

What differs: coefficients are float64 (there they have the dtype of sigmas), so states are nearer to the exact ones;
repeated sigmas are steps that change nothing (there some divide by zero); sigmas are read once, not at every step.
Where a sampler draws from a Brownian tree there, it draws independent noise of torch's default generator here, of the
same law; give `noise_sampler` for a tree. Elsewhere the noise is that of k-diffusion, draw by draw.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from .._arguments import check_integer
from ..diffusion import samplers, schedules
from ..diffusion.coefficients import exponential, two_stage
from ..diffusion.grid import Grid
from ..diffusion.level import Level, predicted, ve
from ..diffusion.loop import given, kept
from ..diffusion.plan import Evaluation, Plan
from ..diffusion.step import Step, table
from ..ops import diffusion_step
from ..progress import Progress

Model = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], None]
NoiseSampler = Callable[[Any, Any], Tensor]
Draw = Callable[[int, int, bool], "Tensor | None"]

__all__ = [
    "append_zero", "get_ancestral_step", "get_sigmas_exponential", "get_sigmas_karras", "get_sigmas_polyexponential",
    "get_sigmas_vp", "sample_dpm_2", "sample_dpm_2_ancestral", "sample_dpm_adaptive", "sample_dpm_fast",
    "sample_dpmpp_2m", "sample_dpmpp_2m_sde", "sample_dpmpp_2s_ancestral", "sample_dpmpp_3m_sde", "sample_dpmpp_sde",
    "sample_euler", "sample_euler_ancestral", "sample_heun", "sample_lms", "to_d",
]  # fmt: skip


# --- schedules --------------------------------------------------------------------------------------------------------


def append_zero(x: Tensor) -> Tensor:
    """x, and a zero."""
    return torch.cat([x, x.new_zeros([1])])


def _sigmas(values: schedules.Floats, device: torch.device | str) -> Tensor:
    return append_zero(torch.from_numpy(values).float()).to(device)


def get_sigmas_karras(
    n: int, sigma_min: float, sigma_max: float, rho: float = 7.0, device: torch.device | str = "cpu"
) -> Tensor:
    """The schedule of Karras et al. 2022 (2206.00364), eq. 5, and 0; float32 [n + 1]."""
    return _sigmas(schedules.karras(n, sigma_min, sigma_max, rho), device)


def get_sigmas_exponential(n: int, sigma_min: float, sigma_max: float, device: torch.device | str = "cpu") -> Tensor:
    """Sigmas even in their logarithm, and 0; float32 [n + 1]."""
    return _sigmas(schedules.exponential(n, sigma_min, sigma_max), device)


def get_sigmas_polyexponential(
    n: int, sigma_min: float, sigma_max: float, rho: float = 1.0, device: torch.device | str = "cpu"
) -> Tensor:
    """Sigmas whose logarithm is a polynomial of degree rho, and 0; float32 [n + 1]."""
    return _sigmas(schedules.polyexponential(n, sigma_min, sigma_max, rho), device)


def get_sigmas_vp(
    n: int, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3, device: torch.device | str = "cpu"
) -> Tensor:
    """Sigmas of the continuous variance-preserving SDE, and 0; float32 [n + 1]."""
    return _sigmas(schedules.vp_sigmas(n, beta_d, beta_min, eps_s), device)


def to_d(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """The derivative (x - denoised) / sigma."""
    return (x - denoised) / sigma.reshape(*sigma.shape, *[1] * (x.dim() - sigma.dim()))


def get_ancestral_step(sigma_from: float, sigma_to: float, eta: float = 1.0) -> tuple[float, float]:
    """The sigma to step down to, and that of the noise to add, for an ancestral step."""
    down, up = two_stage.descent(ve(sigma_from), ve(sigma_to), eta)
    return down.sigma, up


# --- the loop ---------------------------------------------------------------------------------------------------------


class _Run:
    """One call of a sampler: the model, the state and who is told of it."""

    def __init__(
        self, model: Model, x: Tensor, extra_args: dict[str, Any] | None, callback: Callback | None, dtype: torch.dtype
    ) -> None:
        self._model, self.x, self._extra, self._callback, self._dtype = model, x, extra_args or {}, callback, dtype
        self._history: list[Tensor | None] = []

    def evaluate(self, sigma: float) -> Tensor:
        """The data that the model sees in the state."""
        self._denoised = self._model(self.x, self.x.new_full([len(self.x)], sigma), **self._extra)
        return self._denoised

    def tell(self, **values: Any) -> None:
        if self._callback is not None:
            told = {k: self.scalar(v) if isinstance(v, float) else v for k, v in values.items()}
            self._callback({"x": self.x, "denoised": self._denoised, **told})

    def scalar(self, value: float) -> Tensor:
        """As the peer's sigmas are, a tensor without dimensions."""
        return torch.tensor(value, dtype=self._dtype, device=self.x.device)

    def step(self, step: Step, noise: Tensor | None = None, *, asked: bool = True) -> list[Tensor]:
        """Applies it to the state, which becomes its first result; with the model's answer if it was asked."""
        outputs = [self._denoised] if asked else []
        results = diffusion_step(
            self.x, outputs, table([step], [1.0] * len(outputs)), 0,
            rows=len(step.rows),
            history=[given(self._history, i) for i in step.reads],
            noise=noise if step.noisy else None,
        )  # fmt: skip
        self._history = [kept(name, self.x, results, self._history) for name in step.keep]
        self.x = results[0]
        return results


def _progress(total: int, disable: bool | None) -> AbstractContextManager[Any]:
    """A bar, unless disabled; None: where there is a terminal."""
    if disable or (disable is None and not sys.stderr.isatty()):
        return nullcontext()
    return Progress(Console(stderr=True), "sampling", total, "steps")


@torch.no_grad()
def _sample(
    sampler: Callable[..., Iterable[Evaluation]],
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None,
    callback: Callback | None,
    disable: bool | None,
    draw: Draw = lambda i, stage, last: None,
    **options: Any,
) -> Tensor:
    """Runs a sampler on sigmas. draw: what is drawn after a stage of step i, its last or not; step -1: at the start."""
    values = sigmas.tolist()
    grid = Grid(tuple(values[:-1]), tuple(map(ve, values)), lambda at: at.sigma, lambda at: 1.0, 1.0, "sample")
    plan = Plan.of(sampler(grid, **options), start=1.0)
    run = _Run(model, x, extra_args, callback, sigmas.dtype)
    index = -1
    stages = [evaluation.stage for evaluation in plan.evaluations]
    with _progress(len(values) - 1, disable) as bar:
        noise = draw(-1, 0, True)
        for evaluation, following in zip(plan.evaluations, [*stages[1:], 0], strict=True):
            if evaluation.time is None:
                run.step(evaluation.step, noise, asked=False)
                continue
            run.evaluate(evaluation.time)
            if evaluation.stage == 0:
                index += 1
                run.tell(i=index, sigma=sigmas[index], sigma_hat=evaluation.level.sigma)
                if bar is not None:
                    bar.advance(1)
            run.step(evaluation.step, draw(index, evaluation.stage, following == 0))
    return run.x


def _churns(x: Tensor, sigmas: Tensor) -> Draw:
    """Noise of churn, drawn for every step, used or not, at the end of the step before."""
    steps = len(sigmas) - 1
    return lambda i, stage, last: torch.randn_like(x) if last and i + 1 < steps else None


def _ancestral(x: Tensor, sigmas: Tensor, noise_sampler: NoiseSampler | None, least_stage: int = 0) -> Draw:
    """Noise at the end of every step but those to sigma 0."""
    values = sigmas.tolist()

    def draw(i: int, stage: int, last: bool) -> Tensor | None:
        if i < 0 or not last or stage < least_stage or values[i + 1] == 0:
            return None
        return torch.randn_like(x) if noise_sampler is None else noise_sampler(sigmas[i], sigmas[i + 1])

    return draw


# --- samplers ---------------------------------------------------------------------------------------------------------


def sample_euler(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Euler's steps with churn, Karras et al. 2022 (2206.00364), algorithm 2."""
    draw = _churns(x, sigmas)
    churn = {"churn": s_churn, "churn_from": s_tmin, "churn_to": s_tmax, "noise_scale": s_noise}
    return _sample(samplers.euler, model, x, sigmas, extra_args, callback, disable, draw, **churn)


def sample_euler_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Ancestral steps."""
    draw = _ancestral(x, sigmas, noise_sampler)
    options = {"eta": eta, "noise_scale": s_noise}
    return _sample(samplers.euler_ancestral, model, x, sigmas, extra_args, callback, disable, draw, **options)


def sample_heun(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Heun's steps with churn, Karras et al. 2022 (2206.00364), algorithm 2."""
    churn = {"churn": s_churn, "churn_from": s_tmin, "churn_to": s_tmax, "noise_scale": s_noise}
    draw = _churns(x, sigmas)
    return _sample(samplers.heun, model, x, sigmas, extra_args, callback, disable, draw, **churn)


def sample_dpm_2(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Steps by the slope in the middle of log sigma, with churn."""
    churn = {"churn": s_churn, "churn_from": s_tmin, "churn_to": s_tmax, "noise_scale": s_noise}
    draw = _churns(x, sigmas)
    return _sample(samplers.dpm2, model, x, sigmas, extra_args, callback, disable, draw, **churn)


def sample_dpm_2_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Ancestral steps by the slope in the middle of log sigma."""
    draw = _ancestral(x, sigmas, noise_sampler, least_stage=1)
    options = {"eta": eta, "noise_scale": s_noise}
    return _sample(samplers.dpm2_ancestral, model, x, sigmas, extra_args, callback, disable, draw, **options)


def sample_lms(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    order: int = 4,
) -> Tensor:
    """Linear multistep, of order 1 to 4."""
    check_integer("order", order, 1, 4)
    return _sample(samplers.lms, model, x, sigmas, extra_args, callback, disable, order=order)


def sample_dpmpp_2s_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Ancestral DPM-Solver++(2S)."""
    draw = _ancestral(x, sigmas, noise_sampler)
    options = {"eta": eta, "noise_scale": s_noise}
    return _sample(samplers.dpmpp_2s, model, x, sigmas, extra_args, callback, disable, draw, **options)


def sample_dpmpp_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    r: float = 0.5,
) -> Tensor:
    """DPM-Solver++ of the SDE, two evaluations a step. noise_sampler gives noise of the interval it is asked for."""
    values = sigmas.tolist()

    def draw(i: int, stage: int, last: bool) -> Tensor | None:
        if i < 0 or values[i + 1] == 0 or values[i + 1] == values[i]:
            return None
        if noise_sampler is None:
            return torch.randn_like(x)
        if stage:
            return noise_sampler(sigmas[i], sigmas[i + 1])
        middle = two_stage.log_middle(ve(values[i]), ve(values[i + 1]), r).sigma
        return noise_sampler(sigmas[i], sigmas.new_tensor(middle))

    options = {"eta": eta, "noise_scale": s_noise, "share": r, "whole_noise": noise_sampler is not None}
    return _sample(samplers.dpmpp_sde, model, x, sigmas, extra_args, callback, disable, draw, **options)


def sample_dpmpp_2m(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """DPM-Solver++(2M)."""
    options: dict[str, Any] = {"order": 2, "lower_order_final": False}
    return _sample(samplers.dpm_multistep, model, x, sigmas, extra_args, callback, disable, **options)


def sample_dpmpp_2m_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    solver_type: str = "midpoint",
) -> Tensor:
    """DPM-Solver++(2M) of the SDE."""
    if solver_type not in {"heun", "midpoint"}:
        raise ValueError("solver_type must be 'heun' or 'midpoint'")
    return _multistep_sde(
        model, x, sigmas, extra_args, callback, disable, eta, s_noise, noise_sampler, order=2, solver=solver_type
    )


def sample_dpmpp_3m_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """DPM-Solver++(3M) of the SDE."""
    return _multistep_sde(
        model, x, sigmas, extra_args, callback, disable, eta, s_noise, noise_sampler, order=3, solver="heun"
    )


def _multistep_sde(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None,
    callback: Callback | None,
    disable: bool | None,
    eta: float,
    s_noise: float,
    noise_sampler: NoiseSampler | None,
    **options: Any,
) -> Tensor:
    options |= {"eta": eta, "noise_scale": s_noise, "lower_order_final": False}
    if eta:
        options["draw"] = _ancestral(x, sigmas, noise_sampler)
    return _sample(samplers.dpm_multistep, model, x, sigmas, extra_args, callback, disable, **options)


# --- DPM-Solver in steps of its own -----------------------------------------------------------------------------------


def _solve(run: _Run, now: Level, then: Level, order: int, std: float, noise: Callable[[], Tensor]) -> Tensor | None:
    """A step of DPM-Solver-1, -2 or -3, Lu et al. 2022 (2206.00927), algorithms 1 and 2, whose first evaluation has
    been made, and noise. Returns the state, without noise, of the order below."""
    levels, lower = [now], None
    for stage in range(1, order + 1):
        if stage > 1:
            run.evaluate(levels[0].sigma)
        options: dict[str, Any] = {"order": stage, "space": "noise"}
        model = predicted("sample", levels[0])
        end = exponential.dpm_singlestep([then, *levels], model, **options)
        if stage == order:
            run.step(samplers.noised(end, std), noise())
            return lower
        middle = two_stage.log_middle(now, then, stage / order)
        step = exponential.dpm_singlestep([middle, *levels], model, solver="heun", **options)
        if stage == order - 1:
            step = replace(step, rows=(*step.rows, end.rows[0]))
            lower = run.step(step)[-1]
        else:
            run.step(step)
        levels.insert(0, middle)
    return lower


def _checked(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    if sigma_min <= 0 or sigma_max <= 0:
        raise ValueError("sigma_min and sigma_max must not be 0")
    return -math.log(sigma_max), -math.log(sigma_min)


def _descent(s: float, t: float, t_end: float, eta: float) -> tuple[float, float]:
    """Where, in -log sigma, an ancestral step from s to t goes before noise is added, and of which deviation."""
    if not eta:
        return t, 0.0
    down, _ = get_ancestral_step(math.exp(-s), math.exp(-t), eta)
    below = min(t_end, -math.log(down)) if down else t_end
    return below, math.sqrt(max(math.exp(-2 * t) - math.exp(-2 * below), 0.0))


@torch.no_grad()
def sample_dpm_fast(
    model: Model,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    n: int,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """DPM-Solver-fast, Lu et al. 2022 (2206.00927), section 3.4: n evaluations, as many as can be in steps of three."""
    start, end = _checked(sigma_min, sigma_max)
    if end <= start and eta:
        raise ValueError("eta must be 0 for reverse sampling")
    m = n // 3 + 1
    orders = [3] * (m - 2) + [2, 1] if n % 3 == 0 else [3] * (m - 1) + [n % 3]
    run = _Run(model, x, extra_args, callback, torch.get_default_dtype())
    with _progress(n, disable) as bar:
        for i, order in enumerate(orders):
            s, t = (start + (end - start) * k / m for k in (i, i + 1))
            below, std = _descent(s, t, end, eta)
            sigma, sigma_next = math.exp(-s), math.exp(-t)
            run.evaluate(sigma)
            run.tell(i=i, t=s, t_up=s, sigma=sigma, sigma_hat=sigma)
            noise = _noise(x, noise_sampler, run.scalar(sigma), run.scalar(sigma_next))
            _solve(run, ve(sigma), ve(math.exp(-below)), order, std * s_noise, noise)
            if bar is not None:
                bar.advance(order)
    return run.x


def _noise(x: Tensor, noise_sampler: NoiseSampler | None, sigma: Tensor, sigma_next: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.randn_like(x) if noise_sampler is None else noise_sampler(sigma, sigma_next)


class _StepSize:
    """A PID controller of steps in -log sigma: Gustafsson 1991, "Control theoretic techniques"."""

    def __init__(self, h: float, weights: tuple[float, float, float], order: float, accept: float) -> None:
        p, i, d = (w / order for w in weights)
        self.h, self._accept = h, accept
        self._powers = p + i + d, -(p + 2 * d), d
        self._inverse: list[float] = []  # of the errors of the step, and of the two accepted before

    def accepts(self, error: float) -> bool:
        """Whether the step was good enough; the next has another h."""
        inverse = 1 / (error + 1e-8)
        self._inverse = [inverse, *(self._inverse[1:] or (inverse, inverse))]
        factor = math.prod(e**power for e, power in zip(self._inverse, self._powers, strict=True))
        factor = 1 + math.atan(factor - 1)
        self.h *= factor
        if factor >= self._accept:
            self._inverse[1:] = self._inverse[:2]
            return True
        return False


@torch.no_grad()
def sample_dpm_adaptive(
    model: Model,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, dict[str, int]]:
    """DPM-Solver-12 and -23 with steps as long as their error allows: Lu et al. 2022 (2206.00927), appendix C.

    The error is read on the host after every step.
    """
    start, end = _checked(sigma_min, sigma_max)
    if order not in {2, 3}:
        raise ValueError("order should be 2 or 3")
    forward = end > start
    if not forward and eta:
        raise ValueError("eta must be 0 for reverse sampling")
    sign = 1 if forward else -1
    size = _StepSize(sign * abs(h_init), (pcoeff, icoeff, dcoeff), 1.5 if eta else order, accept_safety)
    run = _Run(model, x, extra_args, callback, torch.get_default_dtype())
    info = {"steps": 0, "nfe": 0, "n_accept": 0, "n_reject": 0}
    s, accepted_lower = start, x
    with _progress(0, disable) as bar:
        while sign * (end - s) > 1e-5:
            t = sign * min(sign * end, sign * (s + size.h))
            below, std = _descent(s, t, end, eta)
            before, sigma = run.x, math.exp(-s)
            denoised = run.evaluate(sigma)
            lower = _solve(run, ve(sigma), ve(math.exp(-below)), order, 0.0, lambda: torch.empty(0))
            assert lower is not None
            delta = torch.maximum(torch.maximum(lower.abs(), accepted_lower.abs()) * rtol, lower.new_tensor(atol))
            error = torch.linalg.norm((lower - run.x) / delta).item() / x.numel() ** 0.5
            if size.accepts(error):
                accepted_lower = lower
                noise = _noise(x, noise_sampler, run.scalar(sigma), run.scalar(math.exp(-t)))()
                if std:
                    run.x = run.x + std * s_noise * noise
                s = t
                info["n_accept"] += 1
            else:
                run.x = before
                info["n_reject"] += 1
            info["nfe"] += order
            info["steps"] += 1
            at = math.exp(-s)
            run.tell(
                i=info["steps"] - 1, t=s, t_up=s, denoised=denoised, error=error, h=size.h, sigma=at, sigma_hat=at,
                **info,
            )  # fmt: skip
            if bar is not None:
                bar.advance(order)
    return (run.x, info) if return_info else run.x
