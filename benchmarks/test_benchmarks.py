"""`pytest benchmarks/`: the cases of `pygen bench` under pytest-benchmark, for comparing two states of the source.

One process and the heap it has: goals are judged by `pygen bench --check` only.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pygen.benchmarks.cases import OPS, Case, load
from pygen.benchmarks.gate import bind, gate_of
from pygen.benchmarks.worker import job

pytest.importorskip("pytest_benchmark")

CASES = [case for op in OPS for case in load(op)]


@pytest.mark.parametrize("impl", ["pygen", "eager", "compile", "peer"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_speed(benchmark: Any, case: Case, impl: str) -> None:
    problem = case.build(torch.device("cpu"))
    eager = next(iter(problem.eager.values()), None)
    if eager is None and impl in ("eager", "compile"):
        pytest.skip("there is no eager arm")
    if impl == "compile" and not case.compiles:
        pytest.skip("there is no compiled arm")
    if impl == "peer" and (not problem.peers or problem.repeats):
        pytest.skip("no peer has this convention, or can be timed whole")
    if impl == "peer":
        try:
            function = next(iter(problem.peers.values()))()
        except ImportError as error:
            pytest.skip(str(error))
    else:
        function = problem.ours if impl == "pygen" or eager is None else eager
        function = torch.compile(function, dynamic=False) if impl == "compile" else function
    bound = bind(function, problem.likes.get(impl, problem.inputs), case.records)
    gate = gate_of(case, problem)
    assert (gate.ours(bound) if impl == "pygen" else gate.baseline(bound)) is None
    mode = "full" if "full" in case.modes else case.modes[0]
    timed = job(bound, mode, case.call_grad)
    benchmark.group = f"{case.key} {mode}"
    with torch.set_grad_enabled(timed.grad):
        benchmark(timed.call, *timed.args)
