"""Steps of diffusion samplers in the middle of 50, beside diffusers' schedulers: CIFAR's images, SD's latents, pixels.

Schedules, spacings and options are diffusers' defaults (betas from 1e-4 to 0.02, in float32), except that sigmas are at
whole timesteps. Where a sampler draws noise, every arm draws its own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from .. import ops, reference
from ..reference.diffusion_step import Columns, width
from .cases import Case, Function, Inputs, Problem, Tensors, Work

STEPS, AT = 50, 24


@cache
def alphas_cumprod() -> tuple[float, ...]:
    return tuple((1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0).tolist())


def _abar(t: int) -> float:
    return alphas_cumprod()[t]


class Point:
    """The noise at a timestep: x = alpha x0 + sigma eps."""

    def __init__(self, t: int) -> None:
        self.t, self.alpha, self.sigma = t, math.sqrt(_abar(t)), math.sqrt(1 - _abar(t))
        self.log_snr = math.log(self.alpha / self.sigma)
        self.ratio = self.sigma / self.alpha  # sigma of a variance-exploding process


NOW, NEXT = Point(500), Point(480)  # of timesteps 980, 960, ..., 0
# of timesteps 950, 931, ..., 19
LATTICE = [Point(950 - 19 * i) for i in range(AT - 2, AT + 2)]


@dataclass(frozen=True)
class Sampler:
    """One sampler's step from x, the model's prediction of the noise, and history.

    rows: of coefficients of x, g, x0, noise and history: the next state, and what later steps need. clip: of x0.
    eager: the same as one writes it. draws: whether it needs noise. scheduler: diffusers' class and its options; state:
    what to set before a step from history; kept: what it keeps for later steps.
    """

    p: float
    q: float
    rows: Sequence[Sequence[float]]
    eager: Function
    scheduler: tuple[str, dict[str, Any]]
    state: Callable[..., dict[str, Any]] = lambda: {}
    kept: Callable[[Any], Tensors] = lambda scheduler: ()
    clip: float = math.inf
    history: int = 0
    draws: bool = False

    @cached_property
    def table(self) -> Tensor:
        at, per_row = Columns.of(1), 4 + self.history
        c = torch.zeros(1, width(1, self.history, len(self.rows)), dtype=torch.float64)
        for column, value in ((0, 1.0), (at.p, self.p), (at.q, self.q), (at.clip, self.clip)):
            c[0, column] = value
        for k, row in enumerate(self.rows):
            c[0, at.rows + k * per_row :][: len(row)] = torch.tensor(row, dtype=torch.float64)
        return c


# --- DDIM, DDPM, Euler ------------------------------------------------------------------------------------------------


def _guess(x: Tensor, eps: Tensor) -> Tensor:
    return ((x - NOW.sigma * eps) / NOW.alpha).clamp(-1, 1)


def ddim() -> Sampler:
    def eager(x: Tensor, eps: Tensor) -> Tensors:
        return (NEXT.alpha * _guess(x, eps) + NEXT.sigma * eps,)

    rows = [(0, NEXT.sigma, NEXT.alpha)]
    scheduler = ("DDIMScheduler", {})
    return Sampler(1 / NOW.alpha, -NOW.sigma / NOW.alpha, rows, eager, scheduler, clip=1)


def ddpm() -> Sampler:
    beta = 1 - NOW.alpha**2 / NEXT.alpha**2
    x_weight = math.sqrt(1 - beta) * NEXT.sigma**2 / NOW.sigma**2
    x0_weight = NEXT.alpha * beta / NOW.sigma**2
    std = math.sqrt(beta) * NEXT.sigma / NOW.sigma

    def eager(x: Tensor, eps: Tensor) -> Tensors:
        return (x_weight * x + x0_weight * _guess(x, eps) + std * torch.randn_like(x),)

    rows, scheduler = [(x_weight, 0, x0_weight, std)], ("DDPMScheduler", {})
    return Sampler(1 / NOW.alpha, -NOW.sigma / NOW.alpha, rows, eager, scheduler, clip=1, draws=True)


def _euler_state() -> dict[str, Any]:
    return {"is_scale_input_called": True}


def euler() -> Sampler:
    dt = NEXT.ratio - NOW.ratio

    def eager(x: Tensor, eps: Tensor) -> Tensors:
        return (x + dt * eps,)

    scheduler = ("EulerDiscreteScheduler", {"timestep_spacing": "leading"})
    return Sampler(1, -NOW.ratio, [(1, dt)], eager, scheduler, _euler_state)


def euler_a() -> Sampler:
    up = math.sqrt(NEXT.ratio**2 * (NOW.ratio**2 - NEXT.ratio**2) / NOW.ratio**2)
    dt = math.sqrt(NEXT.ratio**2 - up**2) - NOW.ratio

    def eager(x: Tensor, eps: Tensor) -> Tensors:
        return (x + dt * eps + up * torch.randn_like(x),)

    scheduler = ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"})
    return Sampler(1, -NOW.ratio, [(1, dt, 0, up)], eager, scheduler, _euler_state, draws=True)


# --- DPM-Solver++, UniPC: x0 of the last steps as history -------------------------------------------------------------


def _dpm_state(h: Tensor) -> dict[str, Any]:
    return {"model_outputs": [None, h], "lower_order_nums": 2}


def _newest(scheduler: Any) -> Tensors:
    return (scheduler.model_outputs[-1],)


def _dpm(name: str, x_weight: float, f: float, std: float) -> Sampler:
    """x' = x_weight x + f (x0 + (x0 - h) / (2 r)) + std z."""
    _, before, now, after = LATTICE
    slope = 0.5 * (after.log_snr - now.log_snr) / (now.log_snr - before.log_snr)

    def eager(x: Tensor, eps: Tensor, h: Tensor) -> Tensors:
        x0 = (x - now.sigma * eps) / now.alpha
        y = x_weight * x + f * (x0 + slope * (x0 - h))
        return (y + std * torch.randn_like(x) if std else y, x0)

    scheduler = ("DPMSolverMultistepScheduler", {"algorithm_type": name, "timestep_spacing": "leading"})
    rows = [(x_weight, 0, f * (1 + slope), std, -f * slope), (0, 0, 1)]
    p, q = 1 / now.alpha, -now.sigma / now.alpha
    return Sampler(p, q, rows, eager, scheduler, _dpm_state, _newest, history=1, draws=std > 0)


def dpmpp_2m() -> Sampler:
    _, _, now, after = LATTICE
    h = after.log_snr - now.log_snr
    return _dpm("dpmsolver++", after.sigma / now.sigma, -after.alpha * math.expm1(-h), 0)


def sde_dpmpp() -> Sampler:
    _, _, now, after = LATTICE
    h = after.log_snr - now.log_snr
    x_weight, f = after.sigma / now.sigma * math.exp(-h), -after.alpha * math.expm1(-2 * h)
    return _dpm("sde-dpmsolver++", x_weight, f, after.sigma * math.sqrt(-math.expm1(-2 * h)))


def _phis(h: float) -> tuple[float, list[float]]:
    """B(h) = e^-h - 1, and b of the linear system of UniPC (bh2), two orders."""
    phi, b, factorial = math.expm1(-h), [], 1
    power = phi / -h - 1
    for i in (1, 2):
        b.append(power * factorial / phi)
        factorial *= i + 1
        power = power / -h - 1 / factorial
    return phi, b


def unipc() -> Sampler:
    """Corrects the last step, of order 2, and makes the next, of order 2. History: the last sample, x0 before, and
    before that."""
    older, before, now, after = LATTICE
    h = now.log_snr - before.log_snr
    phi, b = _phis(h)
    r = (older.log_snr - before.log_snr) / h
    # 1 and 1: c1 + c2 = b1; r c1 + c2 = b2
    c1 = (b[0] - b[1]) / (1 - r)
    c2 = b[0] - c1
    last, scale = now.sigma / before.sigma, -now.alpha * phi
    corrected = [last, scale * (1 - c1 / r - c2), scale * c1 / r]  # of last, x0 before, and before that
    corrected_x0 = scale * c2

    h = after.log_snr - now.log_snr
    phi, _ = _phis(h)
    r = (before.log_snr - now.log_snr) / h
    again, scale = after.sigma / now.sigma, -after.alpha * phi
    history = [again * c for c in corrected]
    history[1] += scale * 0.5 / r
    x0_weight = again * corrected_x0 + scale * (1 - 0.5 / r)

    def eager(x: Tensor, eps: Tensor, last: Tensor, h1: Tensor, h2: Tensor) -> Tensors:
        x0 = (x - now.sigma * eps) / now.alpha
        y = corrected[0] * last + corrected[1] * h1 + corrected[2] * h2 + corrected_x0 * x0
        return again * y + scale * (x0 + 0.5 / r * (h1 - x0)), x0, y

    def state(last: Tensor, h1: Tensor, h2: Tensor) -> dict[str, Any]:
        times = [older.t, before.t]
        return {
            "model_outputs": [h2, h1], "timestep_list": times, "last_sample": last, "this_order": 2,
            "lower_order_nums": 2,
        }  # fmt: skip

    rows = [(0, 0, x0_weight, 0, *history), (0, 0, 1), (0, 0, corrected_x0, 0, *corrected)]
    scheduler = ("UniPCMultistepScheduler", {"timestep_spacing": "leading"})

    def kept(scheduler: Any) -> Tensors:
        return *_newest(scheduler), scheduler.last_sample

    return Sampler(1 / now.alpha, -now.sigma / now.alpha, rows, eager, scheduler, state, kept, history=3)


SAMPLERS = {
    "ddim": ddim, "euler": euler, "dpmpp-2m": dpmpp_2m, "unipc": unipc, "ddpm": ddpm, "euler-a": euler_a,
    "sde-dpmpp": sde_dpmpp,
}  # fmt: skip


# --- cases ------------------------------------------------------------------------------------------------------------


def scheduler_of(sampler: Sampler) -> Any:
    """diffusers' scheduler. Raises ImportError without diffusers."""
    import diffusers

    name, options = sampler.scheduler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name)(**options)


def scheduler_step(sampler: Sampler, scheduler: Any) -> Function:
    """A scheduler's step, set to the middle of its steps before each call."""
    scheduler.set_timesteps(STEPS)
    t = scheduler.timesteps[AT]

    def call(x: Tensor, eps: Tensor, *history: Tensor) -> Tensors:
        vars(scheduler).update(sampler.state(*history), _step_index=AT)
        return scheduler.step(eps, t, x, return_dict=False)[0], *sampler.kept(scheduler)

    return call


def case(name: str, shape: tuple[int, ...], dtype: torch.dtype, **of_case: Any) -> Case:
    sampler = SAMPLERS[name]()

    def step(function: Callable[..., list[Tensor]], **options: Any) -> Function:
        def call(x: Tensor, eps: Tensor, *history: Tensor) -> Tensors:
            return tuple(function(x, [eps], sampler.table, rows=len(sampler.rows), history=history, **options))

        return call

    def build(device: torch.device) -> Problem:
        generator = torch.Generator(device).manual_seed(1)  # not the gate's, which draws the noise
        tensors = tuple(
            torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(2 + sampler.history)
        )
        ours = step(ops.diffusion_step, draws=True) if sampler.draws else step(ops.diffusion_step)
        work = Work((len(tensors) + len(sampler.rows)) * tensors[0].nbytes)
        return Problem(
            Inputs(tensors),
            ours,
            {"eager": sampler.eager},
            ours if sampler.draws else step(reference.diffusion_step),
            {"fwd": work},
            {"diffusers": lambda: scheduler_step(sampler, scheduler_of(sampler))},
            rounds=True,
            slack=2 if sampler.draws else 1,  # the reference rounds too
        )

    suffix = "" if dtype == torch.float32 else f"-{str(dtype).removeprefix('torch.')}"
    title = f"{name}-{'x'.join(map(str, shape))}{suffix}"
    return Case("diffusion_step", title, build, dtype, modes=("fwd",), grad=False, draws=sampler.draws, **of_case)


def q_sample(shape: tuple[int, ...]) -> Case:
    """Images of bytes, scaled to [-1, 1] and made noisy, each at a time of its own."""

    def build(device: torch.device) -> Problem:
        generator = torch.Generator(device).manual_seed(1)
        x = torch.randint(256, shape, generator=generator, device=device, dtype=torch.uint8)
        t = torch.randint(1000, shape[:1], generator=generator, device=device)
        abar = torch.tensor(alphas_cumprod(), dtype=torch.float64, device=device)
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        at, table = Columns.of(0), torch.zeros(len(abar), width(0, 0, 1), dtype=torch.float64, device=device)
        table[:, at.rows], table[:, at.rows + 3] = alpha, sigma
        weights = alpha.float(), sigma.float()

        def ours(x: Tensor, t: Tensor) -> Tensors:
            return tuple(ops.diffusion_step(x, [], table, t, draws=True))

        def eager(x: Tensor, t: Tensor) -> Tensors:
            a, s = (weight[t].view(-1, *[1] * (x.dim() - 1)) for weight in weights)
            x0 = x.float() / 127.5 - 1
            return (a * x0 + s * torch.randn_like(x0),)

        work = {"fwd": Work(x.nbytes + 4 * x.numel())}
        return Problem(Inputs((x, t)), ours, {"eager": eager}, ours, work, rounds=True, slack=2)

    title = f"q-sample-{'x'.join(map(str, shape))}"
    return Case("diffusion_step", title, build, modes=("fwd",), grad=False, draws=True, quick=shape[2] == 32)


SIZES = ((16, 3, 32, 32), (4, 4, 128, 128), (16, 3, 256, 256))
CASES = (
    *(
        case(name, shape, dtype, quick=shape[2] == 32 and dtype == torch.float32)
        for name in SAMPLERS
        for shape in SIZES
        for dtype in (torch.float32, torch.bfloat16)
    ),
    *map(q_sample, SIZES),
)
