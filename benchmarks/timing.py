"""The clock: samples of every arm taken in turn, the hardware's ceilings among them, and peak memory.

`torch.utils.benchmark` times one statement to its end before the next, and cannot prepare arguments between repeats (a
backward pass consumes its graph); so the loop is here. Clocks and bandwidth of a machine drift by factors within an
hour: only figures that were taken in turn can be divided by each other.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .cases import Work

WARM_UP = 3  # calls before anything is timed
BLOCK_S = 1e-3  # a sample lasts at least this long, so that the clock's resolution and its own cost vanish
MAX_REPEATS = 2000
MAX_PREPARED = 16  # graphs kept alive at once for a sample of a backward pass
SLOW_S = 0.5  # a call this long finds no caches warm, and has seconds to average over: it is timed without ceremony
SLOW_ROUNDS = 3  # of an arm that takes ten times the budget of all
LAUNCH_BOUND_S = 100e-6
FMA_STEPS = 200_000  # of a register-resident loop: some milliseconds

Sampler = Callable[[], float]  # seconds of one call, or of the work a ceiling stands for


@dataclass(frozen=True)
class Job:
    """A call to time. `prepare` makes the arguments of one call outside the timed span."""

    call: Callable[..., object]
    args: tuple[Any, ...] = ()
    prepare: Callable[[], tuple[Any, ...]] | None = None
    grad: bool = False

    def arguments(self, n: int) -> list[tuple[Any, ...]]:
        return [self.prepare() for _ in range(n)] if self.prepare else [self.args] * n


def samplers(jobs: dict[str, Job], device: torch.device, host: bool = False) -> dict[str, Sampler]:
    """One sampler for each job. host: time what the calling thread spends, on every device."""
    if device.type == "cuda" and not host:
        return _cuda_samplers(jobs, device)
    return {name: _host_sampler(job, device) for name, job in jobs.items()}


def _host_sampler(job: Job, device: torch.device) -> Sampler:
    def block(n: int) -> float:
        with torch.set_grad_enabled(job.grad):
            arguments, call = job.arguments(n), job.call
            start = time.perf_counter()
            for args in arguments:
                call(*args)
            seconds = time.perf_counter() - start
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return seconds / n

    for _ in range(WARM_UP):
        if block(1) > SLOW_S:
            return lambda: block(1)
    most = MAX_PREPARED if job.prepare else MAX_REPEATS
    repeats = min(most, math.ceil(BLOCK_S / min(block(1) for _ in range(3))))

    def sample() -> float:
        block(1)  # brings this arm's data back into the caches that the other arms have filled
        return block(repeats)

    return sample


def _cuda_samplers(jobs: dict[str, Job], device: torch.device) -> dict[str, Sampler]:
    """Events around single calls, with L2 flushed before each; replayed graphs where launches would be what is timed.

    Graphs are used for all arms or none. Unverified: this has not run on a GPU yet.
    """
    flush = torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.int8, device=device)
    stream = torch.cuda.Stream(device)
    torch.cuda.synchronize(device)  # inputs were made on another stream

    def sampler(job: Job) -> Sampler:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def sample() -> float:
            with torch.set_grad_enabled(job.grad), torch.cuda.stream(stream):
                (args,) = job.arguments(1)
                flush.zero_()
                begin.record()
                job.call(*args)
                end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) * 1e-3

        for _ in range(WARM_UP):
            sample()
        return sample

    def captured(job: Job) -> Job:
        graph = torch.cuda.CUDAGraph()
        with torch.set_grad_enabled(job.grad), torch.cuda.graph(graph, stream=stream):
            job.call(*job.args)
        return Job(graph.replay)

    direct = {name: sampler(job) for name, job in jobs.items()}
    prepared = any(job.prepare for job in jobs.values())  # a graph cannot hold a backward pass without its forward one
    if prepared or min(sample() for sample in direct.values()) > LAUNCH_BOUND_S:
        return direct
    return {name: sampler(captured(job)) for name, job in jobs.items()}


def interleave(arms: dict[str, Sampler], budget_s: float, rounds: tuple[int, int]) -> dict[str, list[float]]:
    """Samples of every arm, one each in a round; as many rounds as fit in budget_s, with fewer samples of slow arms.

    The order of a round is drawn: an arm that leaves threads spinning or caches cold must not precede the same one.
    """
    samples: dict[str, list[float]] = {name: [] for name in arms}
    spent = dict.fromkeys(arms, 0.0)
    fewest, most = rounds
    draw = random.Random(0)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for done in range(most):
            order = [name for name in arms if done < SLOW_ROUNDS or spent[name] <= 10 * budget_s]
            if not order or (done >= fewest and sum(spent[name] for name in order) > budget_s):
                break
            draw.shuffle(order)
            for name in order:
                start = time.perf_counter()
                samples[name].append(arms[name]())
                spent[name] += time.perf_counter() - start
    finally:
        if collecting:
            gc.enable()
    return samples


# --- ceilings: named functions that give a sampler of the seconds some work takes at best, or None --------------------


def copy(work: Work, dtype: torch.dtype, device: torch.device) -> Sampler | None:
    """A copy that reads and writes as many bytes, in all, as the op must move."""
    source = torch.ones(max(1, work.bytes // 2 // 4), device=device)
    job = Job(torch.empty_like(source).copy_, (source,))
    return samplers({"copy": job}, device)["copy"]


def fma(work: Work, dtype: torch.dtype, device: torch.device) -> Sampler | None:
    """Fused multiply-adds that stay in registers, on every thread."""
    if device.type != "cpu" or not hasattr(torch.ops.pygen, "_fma_rate"):
        return None
    return lambda: work.flops / float(torch.ops.pygen._fma_rate(FMA_STEPS, dtype == torch.float64))


def matmul(work: Work, dtype: torch.dtype, device: torch.device, size: int = 1024) -> Sampler | None:
    """The library's matrix product."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    sample = samplers({"matmul": Job(torch.mm, (a, b))}, device)["matmul"]
    return lambda: sample() * work.flops / (2 * size**3)


CEILINGS = {"copy": copy, "fma": fma, "matmul": matmul}


def limits(work: Work, dtype: torch.dtype, device: torch.device) -> dict[str, Sampler]:
    """The ceilings this work meets, by name; the slowest of them is its limit."""
    names = ("copy", work.unit) if work.flops else ("copy",)
    found = {name: CEILINGS[name](work, dtype, device) for name in names}
    return {name: sampler for name, sampler in found.items() if sampler is not None}


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_bytes(job: Job, device: torch.device) -> int:
    """The most that one call has allocated at any time, outputs included, what was there before excluded."""
    with torch.set_grad_enabled(job.grad):
        (args,) = job.arguments(1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            result = job.call(*args)
            torch.cuda.synchronize(device)
            del result
            return torch.cuda.max_memory_allocated(device) - before
        # The allocator reports to the profiler: it sees eager, compiled and native code alike, on every thread.
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            result = job.call(*args)
        del result
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: int(e.start_ns())):
        total += event.nbytes()
        peak = max(peak, total)
    return peak
