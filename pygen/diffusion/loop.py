"""The loop of a sampling run: the network, a step, the network, ..."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import Tensor

from .._arguments import check_number
from .._seed import Source, seed_of
from ..ops import diffusion_step, quantile_abs
from ..progress import Progress
from ._graph import DEVICES, Replay, State
from .plan import Plan

Network = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Threshold:
    """Dynamic thresholding, Saharia et al. 2022 (2205.11487), section 2.3: x0 is clamped to a quantile of |x0| of its
    sample, between 1 and `largest`, and divided by it."""

    quantile: float = 0.995
    largest: float = 1.0

    def __post_init__(self) -> None:
        check_number("quantile", self.quantile, 0, 1)
        check_number("largest", self.largest, 0, math.inf, above=True)

    def of(self, x: Tensor, outputs: Sequence[Tensor], table: Tensor, row: int | Tensor = 0) -> Tensor:
        """The bound of each sample [B], in the arithmetic's type, for a step of `pygen.ops.diffusion_step`."""
        if self.largest <= 1:
            return torch.ones(len(x), dtype=torch.float32, device=x.device)
        return quantile_abs(x, outputs, table, row, self.quantile).clamp(1, self.largest)


@dataclass(frozen=True)
class Progressed:
    """What a callback is told after evaluation `index` of a plan: the state before, the model's outputs, the state."""

    index: int
    x: Tensor
    outputs: tuple[Tensor, ...]
    result: Tensor


@torch.no_grad()
def sample_loop(
    network: Network,
    x: Tensor,
    plan: Plan,
    *,
    guidance: float | Sequence[float] | None = None,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
    noise: Noise | None = None,
    threshold: Threshold | None = None,
    known: Tensor | None = None,
    known_mask: Tensor | None = None,
    progress: bool | Callable[[int, int], None] = False,
    callback: Callable[[Progressed], None] | None = None,
    graph: bool = False,
) -> Tensor:
    """Runs a plan from a first state and returns the last.

    network: called as network(input, t) with the state, scaled as it was trained, and t [B], the time of `plan` in
        the input's dtype (float32 for 16-bit ones); returns what the plan's prediction says, [B, C, ...], or twice
        as many channels where the second half are variances that the network learned.
    x: [B, C, ...], plan.start times standard normal noise, in float32 or float64; see `Plan.first_state`.
    guidance: s for the outputs of an unconditional and a conditional copy of the batch, u + s (c - u), Ho and Salimans
        2022 (2207.12598); or a weight for the output of each copy. The network is called once, on copies [k B, ...]
        in the order of their weights, and t [k B]. None: without.
    generator, first_sample, sample_ids: of the noise drawn, see `pygen.random`; its steps are the plan's, from 1 on:
        0 is the first state's.
    noise: gives what is drawn instead: noise(index, x), like x, for the step after evaluation `index`.
    threshold: for plans with threshold=True.
    known, known_mask: for plans that repaint: the image, and 1 where its pixels are known.
    progress: True shows a bar; or it is called with (evaluations done, all).
    callback: called after each step.
    graph: evaluations of one form, as most of a plan's are, run as one CUDA graph, which is captured once: for small
        networks, whose launches take longer than they. The network must be capturable: no waits for the device, no
        work that depends on values. Progress then tells what is on its way.

    The noise of a sample depends on the seed, its id and the step alone: not on the batch, the rank or the device.
    Not differentiable.
    """
    weights = _weights(guidance)
    if x.dim() < 1 or not x.is_floating_point():
        raise ValueError(f"expected x as a floating-point state [B, ...], got {x.dtype} {tuple(x.shape)}")
    if plan.needs_threshold and threshold is None:
        raise ValueError("expected threshold for a plan with threshold=True, got None")
    if threshold is not None and not plan.needs_threshold:
        raise ValueError(f"expected a plan with threshold=True for {threshold}, got one without")
    if (known is None) != (known_mask is None):
        raise ValueError("expected known and known_mask together, got one")
    if (known is not None) != plan.repaints:
        raise ValueError(
            "expected known and known_mask for a plan that repaints, and for no other, got "
            + ("neither" if known is None else "a plan that does not")
        )
    if known is not None and known_mask is not None:
        known, known_mask = _like("known", known, x), _like("known_mask", known_mask, x)
    if graph and x.device.type not in DEVICES:
        raise ValueError(f"expected x on a CUDA device for graph=True, got {x.device}")
    if graph and (noise is not None or callback is not None):
        raise ValueError("expected no callback and no noise for graph=True, which calls no Python between kernels")
    seed = seed_of(generator) if noise is None and plan.noisy else 0
    tables = plan.tables(weights)
    time_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    times = plan.timesteps.to(device=x.device, dtype=time_dtype, non_blocking=True)
    times = times[:, None].expand(-1, len(weights) * len(x))
    told = times.unbind()
    if graph:
        on_device = {id(table): table.to(x.device, non_blocking=True) for table in tables}
        tables = [on_device[id(table)] for table in tables]
    scaled = [len(weights) > 1 or scale != 1 for scale in (plan.scale, *(step.scale for step in plan.steps[:-1]))]
    copies = [len(weights) if wanted else 0 for wanted in (*scaled[1:], False)]

    def evaluate(index: int, row: int | Tensor, state: State) -> State:
        """Evaluation `index`, by the numbers at `row`, which are its own."""
        x, step, table = state.x, plan.steps[index], tables[index]
        outputs: tuple[Tensor, ...] = ()
        variance = None
        if plan.evaluations[index].time is not None:
            time = told[row] if isinstance(row, int) else times.index_select(0, row.reshape(1)).squeeze(0)
            output = network(state.fed, time)
            if not isinstance(output, Tensor):
                raise TypeError(f"expected the network to return a tensor, got {type(output).__name__}")
            if step.log_std is not None:
                if output.shape[1:2] == x.shape[1:2]:
                    raise ValueError(
                        "expected the network to return variances as channels beside its prediction, for a plan with "
                        f"learned ones: twice the channels of x {tuple(x.shape)}, got {tuple(output.shape)}"
                    )
                output, variance = output.chunk(2, 1)
                variance = variance[-len(x) :]  # of the conditional copy
            outputs = output.chunk(len(weights)) if len(weights) > 1 else (output,)
        results = diffusion_step(
            x, outputs, table, row,
            rows=len(step.rows),
            history=[given(state.history, i) for i in step.reads],
            noise=noise(index, x) if noise is not None and step.noisy else None,
            draws=noise is None and step.noisy,
            generator=seed,
            first_sample=first_sample,
            sample_ids=sample_ids,
            step=1,
            threshold=threshold.of(x, outputs, table, row) if step.threshold and threshold else None,
            log_std=variance,
            known=known if step.repaints else None,
            known_mask=known_mask if step.repaints else None,
            copies=copies[index],
        )  # fmt: skip
        fed = results.pop() if copies[index] else results[0]
        if callback is not None:
            callback(Progressed(index, x, outputs, results[0]))
        return State(results[0], fed, tuple(kept(name, x, results, state.history) for name in step.keep))

    state = State(x, torch.cat([x * plan.scale] * len(weights)) if scaled[0] else x)
    replay = Replay(evaluate, x.device) if graph else None
    with _Reporter(progress, len(plan)) as report:
        for index, step in enumerate(plan.steps):
            if replay is None:
                state = evaluate(index, index, state)
            else:
                form = id(tables[index]), step.form, copies[index]
                state = replay(index, form, state)
            report(index + 1)
    return state.x.clone() if graph else state.x


def _weights(guidance: float | Sequence[float] | None) -> tuple[float, ...]:
    if guidance is None:
        return (1.0,)
    if isinstance(guidance, Sequence) and not 1 <= len(guidance) <= 4:
        raise ValueError(f"expected 1 to 4 weights of guidance, got {len(guidance)}")
    weights = tuple(guidance) if isinstance(guidance, Sequence) else (1.0 - guidance, guidance)
    if not all(map(math.isfinite, weights)):
        raise ValueError(f"expected finite weights of guidance, got {guidance}")
    return weights


def _like(name: str, tensor: Tensor, x: Tensor) -> Tensor:
    try:
        return tensor.expand_as(x)
    except RuntimeError:
        shapes = f"{tuple(x.shape)}, got {tuple(tensor.shape)}"
        raise ValueError(f"expected {name} of x's shape, or one that expands to it, {shapes}") from None


def given(history: Sequence[Tensor | None], index: int) -> Tensor:
    """A tensor of history that a step reads."""
    tensor = history[index]
    assert tensor is not None  # plans keep what they read
    return tensor


def kept(name: str, x: Tensor, results: Sequence[Tensor], history: Sequence[Tensor | None]) -> Tensor | None:
    """What a name of `Step.keep` stands for; None where nothing reads it."""
    if not name:
        return None
    if name == "x":
        return x
    index = int(name[1:])
    return results[index] if name[0] == "y" else history[index] if index < len(history) else None


class _Reporter:
    """A bar, a function or nothing."""

    def __init__(self, progress: bool | Callable[[int, int], None], total: int) -> None:
        self._total = total
        self._tell = progress if callable(progress) else None
        self._bar = Progress(Console(stderr=True), "sampling", total, "steps") if progress is True else None

    def __enter__(self) -> _Reporter:
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)

    def __call__(self, done: int) -> None:
        if self._bar is not None:
            self._bar.advance(1)
        if self._tell is not None:
            self._tell(done, self._total)
