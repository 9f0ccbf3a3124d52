"""Sampling runs of diffusion models: the loop's own time, steps through a patched scheduler, and whole runs of nets.

loop: 50 steps of CIFAR's images with a network that returns what it was given, so that nothing else takes time.
patched: one call of a scheduler's `step` with the pipelines' arguments, in the middle of 50; the peer is the same
    scheduler unpatched. Noise is the package's (noise="pygen").
small, large: runs of a network that computes, an MLP of 64 states with 32 numbers each and a U-Net of 4 images; with
    "-net" the network alone, as often. What the others take longer than it is the steps' share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from .. import backends, reference
from ..diffusion import Plan, plan_from_config, sample_loop
from ..integrations.diffusers import patch_scheduler
from ..nn import UNet
from .cases import Case, Function, Inputs, Problem, Tensors, Work
from .diffusion_step import SAMPLERS, STEPS, Sampler, alphas_cumprod, scheduler_of, scheduler_step

Network = Callable[[Tensor, Tensor], Tensor]
SMALLEST = (16, 3, 32, 32)
SLACK = 1000  # a first step divides rounding by alpha, which is 0.006 at the last timestep


def _plan(sampler: Sampler, steps: int) -> Plan:
    name, options = sampler.scheduler
    return plan_from_config({"_class_name": name, **options}, steps)


def _ours(network: Network, plan: Plan) -> Function:
    return lambda x: (sample_loop(network, x, plan),)


def _diffusers(sampler: Sampler, steps: int, network: Network) -> Function:
    """The loop of a pipeline."""
    scheduler = scheduler_of(sampler)

    def run(x: Tensor) -> Tensors:
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            output = network(scheduler.scale_model_input(x, t), t.expand(len(x)))
            x = scheduler.step(output, t, x, return_dict=False)[0]
        return (x,)

    return run


def _inputs(shape: tuple[int, ...], device: torch.device, count: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(1)
    return Inputs(tuple(torch.randn(shape, generator=generator, device=device) for _ in range(count)))


# --- the loop alone, and patched schedulers ---------------------------------------------------------------------------


def _of_output(make: Callable[[Network], Function]) -> Function:
    """A run whose network returns a tensor that is given."""
    return lambda x, output: make(lambda _, __: output)(x)


def loop(name: str) -> Case:
    sampler = SAMPLERS[name]()

    def build(device: torch.device) -> Problem:
        inputs, plan = _inputs(SMALLEST, device, 2), _plan(sampler, STEPS)
        ours = _of_output(partial(_ours, plan=plan))

        def truth(*tensors: Tensor) -> Tensors:
            with backends.use("reference"):
                return ours(*tensors)

        per_step = 2 + sampler.history + len(sampler.rows)
        work = Work(STEPS * per_step * inputs.tensors[0].nbytes)
        peers = {"diffusers": lambda: _of_output(partial(_diffusers, sampler, STEPS))}
        return Problem(
            inputs, ours, {}, ours if sampler.draws else truth, {"fwd": work}, peers, rounds=True, slack=SLACK
        )

    return Case(
        "sampling", f"loop-{name}", build, modes=("fwd",), grad=False, draws=sampler.draws, quick=name == "dpmpp-2m"
    )


def patched(name: str) -> Case:
    sampler = SAMPLERS[name]()

    def build(device: torch.device) -> Problem:
        inputs = _inputs(SMALLEST, device, 2 + sampler.history)

        def ours() -> Function:
            scheduler = patch_scheduler(scheduler_of(sampler), noise="pygen")
            step = scheduler_step(sampler, scheduler)

            def first(*tensors: Tensor) -> Tensors:
                vars(scheduler).pop("_pygen_run", None)  # or each call would have the noise of another step
                return step(*tensors)

            return first if sampler.draws else step

        def truth(x: Tensor, eps: Tensor, *history: Tensor) -> Tensors:
            rows = len(sampler.rows)
            return tuple(reference.diffusion_step(x, [eps], sampler.table, rows=rows, history=history))

        function = ours()
        work = Work((len(inputs.tensors) + len(sampler.rows)) * inputs.tensors[0].nbytes)
        peers = {"diffusers": lambda: scheduler_step(sampler, scheduler_of(sampler))}
        return Problem(
            inputs, function, {}, function if sampler.draws else truth, {"fwd": work}, peers, rounds=True, slack=4
        )

    return Case("sampling", f"patched-{name}", build, modes=("fwd",), grad=False, draws=sampler.draws)


# --- whole runs -------------------------------------------------------------------------------------------------------


class _MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.t = nn.Linear(32, 128), nn.Linear(1, 128)
        self.hidden, self.out = nn.Linear(128, 128), nn.Linear(128, 32)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = nn.functional.silu(self.x(x) + self.t(t[:, None].to(x.dtype) / 1000))
        out: Tensor = self.out(nn.functional.silu(self.hidden(h)))
        return out


@cache
def _network(name: str, dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = _MLP() if name == "small" else UNet(3, (32, 32), hidden=64)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=1 / math.sqrt(max(1, parameter[0].numel())))
    return net.to(dtype).eval().requires_grad_(False)


def _written_ddim(steps: int, network: Network, x: Tensor) -> Tensors:
    times = range(1000 - 1000 // steps, -1, -1000 // steps)
    abar = [alphas_cumprod()[t] for t in times] + [1.0]
    for t, (now, then) in zip(times, pairwise(abar), strict=True):
        eps = network(x, torch.full((len(x),), t, device=x.device))
        x0 = ((x - math.sqrt(1 - now) * eps) / math.sqrt(now)).clamp(-1, 1)
        x = math.sqrt(then) * x0 + math.sqrt(1 - then) * eps
    return (x,)


def run(size: str, steps: int, sampler_name: str, shape: tuple[int, ...]) -> Case:
    """By the net `size`."""
    sampler = SAMPLERS[sampler_name]()

    def build(device: torch.device) -> Problem:
        plan = _plan(sampler, steps)

        def by(make: Callable[[Network], Function]) -> Function:
            return lambda x: make(_network(size, x.dtype).to(device))(x)

        def truth(x: Tensor) -> Tensors:
            with backends.use("reference"):
                return by(partial(_ours, plan=plan))(x)

        inputs = _inputs(shape, device, 1)
        eager = {"ddim": lambda x: _written_ddim(steps, _network(size, x.dtype).to(device), x)}
        peers = {"diffusers": lambda: by(partial(_diffusers, sampler, steps))}
        work = Work(steps * (2 + sampler.history + len(sampler.rows)) * inputs.tensors[0].nbytes)
        return Problem(
            inputs, by(partial(_ours, plan=plan)), eager if sampler_name == "ddim" else {}, truth, {"fwd": work}, peers,
            slack=SLACK,
        )  # fmt: skip

    return Case("sampling", f"{size}-{steps}", build, modes=("fwd",), grad=False, compiles=False)


def net(size: str, steps: int, shape: tuple[int, ...]) -> Case:
    def build(device: torch.device) -> Problem:
        t = torch.full(shape[:1], 500.0, device=device)

        def alone(x: Tensor) -> Tensors:
            network = _network(size, x.dtype).to(device)
            for _ in range(steps):
                output = network(x, t)
            return (output,)

        inputs = _inputs(shape, device, 1)
        work = Work(steps * 2 * inputs.tensors[0].nbytes)
        return Problem(inputs, alone, {}, alone, {"fwd": work}, slack=SLACK)

    return Case("sampling", f"{size}-{steps}-net", build, modes=("fwd",), grad=False, compiles=False)


POLICY, IMAGES = (64, 32), (4, 3, 32, 32)
CASES = (
    *map(loop, SAMPLERS),
    *map(patched, SAMPLERS),
    run("small", 1000, "ddim", POLICY),
    net("small", 1000, POLICY),
    run("large", 20, "dpmpp-2m", IMAGES),
    net("large", 20, IMAGES),
)
