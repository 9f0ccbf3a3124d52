"""One case in this process: `python -m pygen.benchmarks.worker SPEC RESULT`, two paths of JSON files; see `runner.py`.

The heap mode is that of the process: the allocator reads it from the environment before Python starts.
"""

from __future__ import annotations

import json
import resource
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import _ext, backends
from .._lib import OPS
from . import timing
from .cases import Case, Function, Inputs, Problem, dtype_name, find
from .gate import Bound, bind, gate_of
from .timing import Job

Row = dict[str, Any]

BUDGET_S = 2.0  # for the rounds of one mode
ROUNDS = (9, 41)
QUICK_BUDGET_S = 0.6
QUICK_ROUNDS = (5, 15)


@cache  # an op lives as long as its library: the cache holds on to it
def empty_op() -> tuple[Function, str, torch.library.Library | None]:
    """An op that returns at once, the floor of a call through the dispatcher, and the language it is written in."""
    if hasattr(torch.ops.pygen, "_empty"):
        return torch.ops.pygen._empty.default, "C++", None
    library = torch.library.Library("pygen_benchmarks", "DEF")
    library.define("empty(Tensor x, Tensor params) -> Tensor")
    nothing = torch.empty(0)
    library.impl("empty", lambda x, params: nothing, "CompositeExplicitAutograd")
    return torch.ops.pygen_benchmarks.empty.default, "Python", library


def job(bound: Bound, mode: str, call_grad: bool) -> Job:
    if mode == "full":
        return Job(bound.full, grad=True)
    if mode == "bwd":
        return Job(bound.backward, prepare=bound.forward, grad=True)
    if mode == "call" and call_grad:
        return Job(bound.function, bound.leaves, grad=True)
    return Job(bound.function, bound.inputs)


class Session:
    """Gates the arms of a case and times those that pass."""

    def __init__(self, case: Case, heap: str, device: torch.device, quick: bool) -> None:
        self.case, self.heap, self.device = case, heap, device
        self.budget_s, self.rounds = (QUICK_BUDGET_S, QUICK_ROUNDS) if quick else (BUDGET_S, ROUNDS)
        self.problem: Problem = case.build(device)
        self.arms: dict[str, Bound] = {}
        self.failed: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.forms: dict[str, str] = {}
        self.facts: dict[str, Any] = {}

    def inputs(self, impl: str) -> Inputs:
        return self.problem.likes.get(impl, self.problem.inputs)

    def admit(self) -> None:
        """The correctness gate, and the choice between equally natural baselines."""
        gate = gate_of(self.case, self.problem)

        def passes(impl: str, function: Function, ours: bool = False) -> Bound | None:
            bound: Bound | None = None
            try:
                bound = bind(function, self.inputs(impl), self.case.records)
                wrong = gate.ours(bound) if ours else gate.baseline(bound)
            except Exception as error:  # an arm that raises must not take the others' figures with it
                wrong = f"{type(error).__name__}: {error}".splitlines()[0]
            if wrong:
                self.failed[impl] = wrong
            return None if wrong else bound

        def fastest(impl: str, functions: dict[str, Function]) -> None:
            right = {form: bound for form, f in functions.items() if (bound := passes(impl, f))}
            if not right:
                return
            self.failed.pop(impl, None)
            if len(right) > 1:
                mode = "full" if "full" in self.case.modes else self.case.modes[0]
                jobs = {form: job(bound, mode, self.case.call_grad) for form, bound in right.items()}
                samples = timing.interleave(timing.samplers(jobs, self.device), self.budget_s / 4, (3, 15))
                self.forms[impl] = min(right, key=lambda form: float(np.median(samples[form])))
            self.arms[impl] = right[self.forms.get(impl, next(iter(right)))]

        ours = passes("pygen", self.problem.ours, ours=True)
        if ours:
            self.arms["pygen"] = ours
        eager = self.problem.eager
        fastest("eager", eager)
        if self.case.compiles:
            fastest("compile", {form: torch.compile(f, dynamic=False) for form, f in eager.items()})
        for name, factory in self.problem.peers.items():
            impl = f"peer:{name}"
            try:
                function = factory()
            except ImportError as error:
                self.missing[impl] = str(error)
                continue
            if name in self.problem.repeats:  # its factory has judged it
                self.arms[impl] = bind(function, self.inputs(impl), False)
            elif peer := passes(impl, function):
                self.arms[impl] = peer

    def time(self, mode: str) -> list[Row]:
        """Times every arm and ceiling of one mode in turn."""
        call = mode == "call"
        jobs = {impl: job(bound, mode, self.case.call_grad) for impl, bound in self.arms.items()}
        arms = timing.samplers(jobs, self.device, host=call)
        limits: dict[str, timing.Sampler] = {}
        if call:
            function, self.facts["empty_op"], _ = empty_op()
            empty = Job(function, self.problem.inputs.tensors[:2])
            arms |= timing.samplers({"empty": empty}, self.device, host=True)
        else:
            limits = timing.limits(self.problem.work[mode], self.case.dtype, self.device)
        samples = timing.interleave(arms | {f"limit:{k}": v for k, v in limits.items()}, self.budget_s, self.rounds)
        for name, times in self.problem.repeats.items():
            if (impl := f"peer:{name}") in samples:
                samples[impl] = [times * seconds for seconds in samples[impl]]
        medians = {name: float(np.median(s)) for name, s in samples.items()}
        best = max((medians[f"limit:{name}"] for name in limits), default=None)
        if not call:
            bandwidth = self.problem.work[mode].bytes / medians["limit:copy"]
            self.facts.setdefault("copy_gb_per_s", {})[mode] = round(bandwidth / 1e9, 1)
        rows = []
        for impl in (*arms, *self.failed):
            row = self.row(mode, impl)
            if impl in arms:
                low, high = np.quantile(samples[impl], (0.2, 0.8))
                row |= {"median_s": medians[impl], "p20_s": float(low), "p80_s": float(high), "gate": "passed"}
                if "pygen" in medians:
                    row["ratio"] = medians[impl] / medians["pygen"]
                if best is not None:
                    row["pct_limit"] = 100 * best / medians[impl]
                if impl in jobs and not call:
                    row["peak_bytes"] = timing.peak_bytes(jobs[impl], self.device)
            rows.append(row)
        return rows

    def row(self, mode: str, impl: str) -> Row:
        """A row without figures: what remains of an arm that failed the gate."""
        return {
            "op": self.case.op,
            "case": self.case.name,
            "mode": mode,
            "dtype": dtype_name(self.case.dtype),
            "device": self.device.type,
            "heap": self.heap,
            "impl": impl,
            "median_s": None,
            "p20_s": None,
            "p80_s": None,
            "ratio": None,
            "pct_limit": None,
            "peak_bytes": None,
            "gate": "failed",
        }


def keeps_pages() -> bool:
    """Whether freed memory comes back without page faults, as a retained heap promises once it has grown enough."""

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(2 << 20)  # 8 MB: 2048 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    return min(faults() for _ in range(16)) < 100


def run(case: Case, heap: str, device: torch.device, quick: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    if case.tier is not None:
        _ext.use(case.tier)
    session = Session(case, heap, device, quick)
    session.admit()
    rows = [row for mode in case.modes for row in session.time(mode)]
    op = next((op.name for op in OPS.values() if op.family == case.op), "masked_conv2d")  # or of models: their first op
    layouts = {impl: session.inputs(impl).layout for impl in session.arms}
    facts = session.facts | {
        "layout": next(iter(layouts.values())) if len(set(layouts.values())) == 1 else layouts,
        "bytes": {mode: work.bytes for mode, work in session.problem.work.items()},
        "backend": backends.explain(op, device).implementation,
    }
    if session.forms:
        facts["forms"] = session.forms
    if session.problem.repeats:
        facts["extrapolated"] = session.problem.repeats
    notes = [f"{case.key} {impl}: not timed ({why})" for impl, why in session.missing.items()]
    if heap == "retained" and device.type == "cpu" and not keeps_pages():
        notes.append("the C library does not honour the settings of the retained heap: it is a default heap here")
    return {"rows": rows, "facts": facts, "failed": session.failed, "notes": notes, "threads": threads}


def main(spec_path: str, result_path: str) -> None:
    spec = json.loads(Path(spec_path).read_text())
    case = find(spec["op"], spec["case"])
    result = run(case, spec["heap"], torch.device(spec["device"]), spec["quick"])
    Path(result_path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
