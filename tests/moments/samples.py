"""accumulate_moments, as the contract suite (tests/harness) sees it: on copies of the sums that it adds to."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from pygen import ops, reference
from tests.harness.calls import random
from tests.harness.spec import Dtypes, ErrorInput, OpSpec, Sample, register


def sample(name: str, n: int, d: int) -> Sample:
    """Features of mean 2."""
    x, shift = random(f"{name} x", n, d) + 2, 2 + 0.3 * random(f"{name} shift", d)
    total, scatter = random(f"{name} total", d), random(f"{name} scatter", d, d)
    return Sample(name, {"x": x, "shift": shift, "total": total, "scatter": scatter})


def shapes() -> Iterator[Sample]:
    for d in (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129):
        yield sample(f"5x{d}", 5, d)
    for n in (0, 1, 2, 255, 256, 257, 600):
        yield sample(f"{n}x11", n, 11)


def errors() -> Iterator[ErrorInput]:
    x, v, m = torch.ones(2, 3), torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    for name, changed, error, words in (
        ("integer", {"x": x.long()}, TypeError, ("x", "int64")),
        ("one row", {"x": x[0]}, ValueError, ("[N, d]", "(3,)")),
        ("float32 sums", {"scatter": m.float()}, TypeError, ("scatter", "float64")),
        ("float32 shift", {"shift": v.float()}, TypeError, ("shift", "float64")),
        ("other width", {"x": torch.ones(2, 4)}, ValueError, ("shift", "(4,)", "(3,)")),
        ("not square", {"scatter": m[:2]}, ValueError, ("scatter", "(3, 3)", "(2, 3)")),
    ):
        yield ErrorInput(name, {"x": x, "shift": v, "total": v.clone(), "scatter": m, **changed}, error, words)


def allowance(
    s: Sample, inputs: Mapping[str, Any], outputs: Mapping[str, Tensor], upstream: Mapping[str, Tensor], dtypes: Dtypes
) -> dict[str, float]:
    """Products of float32, which the reference, all in float64, does not have: 1e-6 of the largest on the diagonal."""
    centred = (inputs["x"] - inputs["shift"]).double()
    if dtypes.data == torch.float64 or not centred.numel():
        return {}
    return {"total": 1e-7 * centred.abs().sum(0).max().item(), "scatter": 1e-6 * centred.square().sum(0).max().item()}


@functools.wraps(ops.accumulate_moments)
def function(x: Tensor, shift: Tensor, total: Tensor, scatter: Tensor) -> tuple[Tensor, Tensor]:
    total, scatter = (t.clone(memory_format=torch.contiguous_format) for t in (total, scatter))
    ops.accumulate_moments(x, shift, total, scatter)
    return total, scatter


register(
    OpSpec(
        name="accumulate_moments",
        function=function,
        reference=reference.accumulate_moments,
        outputs=("total", "scatter"),
        roles={"x": "data", "shift": "double", "total": "double", "scatter": "double"},
        allowance=allowance,
        batched=frozenset(),
        order=0,
        samples=lambda: [sample("few", 3, 5), sample("many", 20, 4)],
        shapes=shapes,
        threaded=lambda: [sample("500x300", 500, 300), sample("40x700", 40, 700)],
        errors=errors,
        draw=st.builds(lambda n, d: sample("drawn", n, d), st.integers(0, 40), st.integers(0, 40)),
    )
)
