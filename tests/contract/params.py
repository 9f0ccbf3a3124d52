"""Which cases the contract suite runs: every op, every option, and the rest in pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pytest

from tests.harness import backend
from tests.harness.combine import pairwise, representatives
from tests.harness.spec import OpSpec, Sample, load

SPECS = list(load().values())


@cache
def small(spec: OpSpec) -> tuple[Sample, ...]:
    """Every option."""
    return tuple(spec.samples())


@cache
def few(spec: OpSpec) -> tuple[Sample, ...]:
    """A handful that still shows each option's values once, for what takes long."""
    return tuple(representatives(small(spec)))


def cases(
    samples: Callable[[OpSpec], Iterable[Sample]],
    *,
    where: Callable[[OpSpec], bool] = lambda spec: True,
    backends: list[backend.Backend] | None = None,
    **factors: Any,
) -> pytest.MarkDecorator:
    """Parametrises over ops, their samples, backends, and any factors (sequences, or functions of the spec), in pairs.
    The arguments are spec, sample, backend and the factors' names."""
    backends = backend.OPS if backends is None else backends
    names = ["spec", "sample", "backend", *factors]
    rows = []
    for spec in filter(where, SPECS):
        values = {k: v(spec) if callable(v) else v for k, v in factors.items()}
        chosen = list(samples(spec))
        if not (chosen and backends):
            continue
        for row in pairwise(sample=chosen, backend=backends, **values):
            identifier = "-".join(str(row[k]) for k in names[1:])
            marks = [pytest.mark.gpu] if row["backend"].device == "cuda" else []
            rows.append(pytest.param(spec, *(row[k] for k in names[1:]), id=f"{spec}-{identifier}", marks=marks))
    return pytest.mark.parametrize(names, rows)
