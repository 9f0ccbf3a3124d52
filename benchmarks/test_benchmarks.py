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
    eager = next(iter(problem.eager.values()))
    if impl == "peer" and not problem.peers:
        pytest.skip("no peer has this convention")
    if impl == "peer":
        try:
            function = next(iter(problem.peers.values()))()
        except ImportError as error:
            pytest.skip(str(error))
    else:
        function = {"pygen": problem.ours, "eager": eager, "compile": torch.compile(eager, dynamic=False)}[impl]
    bound = bind(function, problem.likes.get(impl, problem.inputs), case.records)
    gate = gate_of(case, problem)
    assert (gate.ours(bound) if impl == "pygen" else gate.baseline(bound)) is None
    mode = "full" if "full" in case.modes else case.modes[0]
    timed = job(bound, mode, case.call_grad)
    benchmark.group = f"{case.key} {mode}"
    with torch.set_grad_enabled(timed.grad):
        benchmark(timed.call, *timed.args)
