"""The harness itself: what it must refuse, and what it must not get wrong. No figure is judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from pygen.benchmarks import goals, report, results, runner, timing
from pygen.benchmarks.cases import OPS, Case, Inputs, Problem, Work, load
from pygen.benchmarks.cli import bench
from pygen.benchmarks.gate import Gate, bind, gate_of
from pygen.benchmarks.worker import Session

CPU = torch.device("cpu")


def square(x: Tensor) -> tuple[Tensor, ...]:
    return x * x, x.sum(1)


def slightly_off(x: Tensor) -> tuple[Tensor, ...]:
    return x * x * (1 + 1e-5), x.sum(1)


def off_in_backward(x: Tensor) -> tuple[Tensor, ...]:
    return x * x.detach(), x.sum(1)


def not_a_number(x: Tensor) -> tuple[Tensor, ...]:
    return x * x, x.sum(1) * torch.nan


def too_few(x: Tensor) -> tuple[Tensor, ...]:
    return (x * x,)


def cube(x: Tensor) -> tuple[Tensor, ...]:
    return x**3, x.sum(1)


def raises(x: Tensor) -> tuple[Tensor, ...]:
    raise RuntimeError("no kernel")


def toy(ours: Any = square, **changes: Any) -> tuple[Case, Problem]:
    work = Work(bytes=8 * 64 * 4)
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    problem = Problem(Inputs((x,)), ours, {"square": square}, square, {"fwd": work, "bwd": work, "full": work + work})
    problem = Problem(**{**vars(problem), **changes})
    return Case("coupling", "toy", lambda _: problem), problem


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Session of a toy, with compilation left out."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)

    def start(*args: Any, **kwargs: Any) -> Session:
        started = Session(toy(*args, **kwargs)[0], "default", CPU, quick=True)
        started.admit()
        return started

    return start


# --- gate -------------------------------------------------------------------------------------------------------------


def test_gate_passes_what_is_right() -> None:
    case, problem = toy()
    assert Gate(case, problem).ours(bind(square, problem.inputs)) is None


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (slightly_off, "output 0"),
        (off_in_backward, "gradient 0"),
        (not_a_number, "output 1"),
        (too_few, "output 1"),
        (cube, "output 0"),
    ],
)
def test_gate_refuses_ours(function: Any, named: str) -> None:
    case, problem = toy()
    assert named in (Gate(case, problem).ours(bind(function, problem.inputs)) or "")


def test_gate_admits_a_baseline_that_rounds_differently_but_not_another_function() -> None:
    case, problem = toy()
    gate = Gate(case, problem)
    assert gate.baseline(bind(slightly_off, problem.inputs)) is None
    assert gate.baseline(bind(cube, problem.inputs)) is not None


@pytest.mark.parametrize("case", [case for op in OPS for case in load(op) if case.quick], ids=lambda case: case.key)
def test_ours_and_every_baseline_of_the_quick_cases_pass(case: Case) -> None:
    problem = case.build(CPU)
    gate = gate_of(case, problem)
    assert gate.ours(bind(problem.ours, problem.inputs, case.records)) is None
    for function in problem.eager.values():
        assert gate.baseline(bind(function, problem.inputs, case.records)) is None


def test_draws_are_judged_by_bits_and_by_distribution() -> None:
    case = next(case for case in load("random") if case.name == "normal-64x64")
    problem = case.build(CPU)
    gate = gate_of(case, problem)
    randn, rand = (lambda x: (torch.randn_like(x),)), (lambda x: (torch.rand_like(x),))
    assert gate.ours(bind(randn, problem.inputs, case.records)) == "not the numbers of the reference"
    assert gate.baseline(bind(randn, problem.inputs, case.records)) is None
    assert "expected" in (gate.baseline(bind(rand, problem.inputs, case.records)) or "")


# --- one case ---------------------------------------------------------------------------------------------------------


def test_a_wrong_result_has_no_figure(session: Any) -> None:
    rows = {row["impl"]: row for row in session(ours=cube).time("full")}
    assert rows["pygen"]["gate"] == "failed"
    assert all(rows["pygen"][key] is None for key in ("median_s", "p20_s", "p80_s", "ratio", "pct_limit", "peak_bytes"))
    assert rows["eager"]["gate"] == "passed"
    assert rows["eager"]["median_s"] > 0
    assert rows["eager"]["ratio"] is None  # nothing to divide by


def test_an_arm_that_raises_leaves_the_others(session: Any) -> None:
    rows = {row["impl"]: row for row in session(peers={"broken": lambda: raises}).time("fwd")}
    assert rows["peer:broken"]["gate"] == "failed"
    assert rows["pygen"]["ratio"] == 1.0


def test_a_peer_that_is_not_installed_is_named(session: Any) -> None:
    def factory() -> Any:
        raise ImportError("No module named 'peer'")

    started = session(peers={"absent": factory})
    assert started.missing == {"peer:absent": "No module named 'peer'"}
    assert "peer:absent" not in {row["impl"] for row in started.time("fwd")}


@pytest.mark.parametrize("mode", ["fwd", "bwd", "full"])
def test_rows_are_complete(session: Any, mode: str) -> None:
    keys = "op case mode dtype device heap impl median_s p20_s p80_s ratio pct_limit peak_bytes gate"
    for row in session().time(mode):
        assert list(row) == keys.split()
        assert None not in row.values()
        assert row["p20_s"] <= row["median_s"] <= row["p80_s"]


# --- the clock --------------------------------------------------------------------------------------------------------


def test_arms_take_turns_in_rotating_order() -> None:
    order: list[str] = []

    def sampler(name: str) -> timing.Sampler:
        return lambda: order.append(name) or 1.0  # type: ignore[func-returns-value]

    samples = timing.interleave({name: sampler(name) for name in "abc"}, budget_s=60, rounds=(2, 30))
    rounds = ["".join(order[i : i + 3]) for i in range(0, 90, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 3  # what precedes an arm changes
    assert {name: len(values) for name, values in samples.items()} == {"a": 30, "b": 30, "c": 30}


def test_rounds_stop_at_the_budget_but_not_before_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def takes(seconds: float) -> timing.Sampler:
        def sampler() -> float:
            nonlocal now
            now += seconds
            return seconds

        return sampler

    def counts(budget_s: float, **arms: float) -> dict[str, int]:
        samples = timing.interleave({name: takes(s) for name, s in arms.items()}, budget_s, (4, 100))
        return {name: len(values) for name, values in samples.items()}

    assert counts(10, a=1) == {"a": 11}
    assert counts(10, a=1, b=2) == {"a": 4, "b": 4}
    assert counts(10, a=1, slow=40) == {"a": 11, "slow": 3}
    assert counts(10, slow=40) == {"slow": 3}


@pytest.mark.parametrize("grad", [False, True])
def test_peak_counts_what_is_alive_together(grad: bool) -> None:
    x = torch.ones(1 << 20, requires_grad=grad)
    job = timing.Job(lambda: x.exp().exp().exp(), grad=grad)  # exp keeps its result for backward
    tensors = timing.peak_bytes(job, CPU) / (4 << 20)
    assert round(tensors, 2) == (3 if grad else 2)


def test_backward_gets_a_fresh_graph_for_every_call() -> None:
    _, problem = toy()
    bound = bind(square, problem.inputs)
    job = timing.Job(bound.backward, prepare=bound.forward, grad=True)
    assert timing.samplers({"bwd": job}, CPU)["bwd"]() > 0


def test_limit_is_the_slowest_ceiling(session: Any) -> None:
    work = Work(bytes=8, flops=2 * 1024**3 * 50, unit="matmul")  # 50 matrix products of 1024
    rows = session(work=dict.fromkeys(("fwd", "bwd", "full"), work)).time("fwd")
    assert min(row["pct_limit"] for row in rows) > 1000  # a toy that "beats" such a limit: it was not the copy


# --- processes, heaps -------------------------------------------------------------------------------------------------


def test_heap_modes_differ_by_the_allocators_settings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    retained, default = runner.environment("retained"), runner.environment("default")
    assert {k: v for k, v in retained.items() if k not in default} == runner.HEAPS["retained"]
    assert "OMP_WAIT_POLICY" not in default


def test_a_process_that_dies_is_reported() -> None:
    case = Case("coupling", "no such case", lambda _: toy()[1])
    result = runner.run([case], CPU, quick=True)
    (failure,) = result["host"]["failures"]
    assert failure["impl"] == "pygen"
    assert "exit code 1" in failure["reason"]
    assert any("no such case" in text for text in report.warnings(result))


# --- goals ------------------------------------------------------------------------------------------------------------


def outcome(**of_goal: Any) -> goals.Verdict:
    """The verdict on a goal over two cases: ratios of eager 2 and 8, 90 % and 120 % of the limit, 2 and 3 us a call."""
    rows = [
        {"op": "coupling", "case": case, "mode": "full", "heap": heap, "impl": impl, "device": "cpu"}
        | {"median_s": seconds, "ratio": ratio, "pct_limit": limit}
        for case, ours, theirs, limit in (("a", 2e-6, 2.0, 90.0), ("b", 3e-6, 8.0, 120.0))
        for heap, slower in (("default", 100), ("retained", 1))
        for impl, seconds, ratio in (
            ("pygen", ours * slower, 1.0),
            ("eager", ours * theirs * slower, theirs / slower),
            ("empty", 1e-6, 0.5),
        )
    ]
    host = {"cases": {"coupling/a": {"beyond_llc": False}, "coupling/b": {"beyond_llc": True}}}
    goal = goals.Goal(**{"op": "coupling", "mode": "full", "cases": ("a", "b"), **of_goal})
    return goals._judge(goal, host, rows)


@pytest.mark.parametrize(
    ("of_goal", "measured", "verdict"),
    [
        ({"kind": "geomean", "at_least": 3.9}, 4.0, "met"),
        ({"kind": "geomean", "at_least": 4.1}, 4.0, "MISSED"),
        ({"kind": "min_ratio", "at_least": 1.0}, 2.0, "met"),
        ({"kind": "min_ratio", "at_least": 2.1}, 2.0, "MISSED"),
        ({"kind": "pct_limit", "at_least": 100.0}, 120.0, "met"),  # only case b is beyond the cache
        ({"kind": "over_empty_us", "at_most": 1.9}, 2.0, "MISSED"),
        ({"kind": "over_empty_us", "at_most": 2.1}, 2.0, "met"),
    ],
)
def test_verdicts(of_goal: dict[str, Any], measured: float, verdict: str) -> None:
    found = outcome(**of_goal)
    assert found.measured == pytest.approx(measured)
    assert found.verdict == verdict


def test_a_goal_is_not_judged_on_part_of_its_cases() -> None:
    found = outcome(kind="geomean", at_least=1.0, cases=("a", "b", "c"))
    assert found.verdict.startswith("not run")
    assert not found.missed


def test_a_baseline_without_figure_misses_the_goal() -> None:
    assert outcome(kind="geomean", at_least=1.0, versus="compile").missed


def test_no_case_beyond_the_cache_is_no_verdict() -> None:
    assert outcome(kind="pct_limit", at_least=1.0, cases=("a",)).verdict.startswith("not judged")


def test_goals_name_cases_that_exist() -> None:
    for goal in goals.read():
        cases = {case.name: case for case in load(goal.op)}
        assert set(goal.cases) <= set(cases)
        assert all(goal.mode in cases[name].modes for name in goal.cases)


def test_unknown_kind_of_goal_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected kind in .*geomean.* got 'mean'"):
        goals.Goal("coupling", "mean", "full", ("a",))


# --- reports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234e-7, "0.12 us"), (1.234e-5, "12.3 us"), (1e-3, "1.00 ms"), (0.25, "250 ms"), (61, "61.0 s")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert report.seconds(seconds) == text


def test_readme_keeps_what_is_outside_the_markers() -> None:
    readme = f"# A\n{results.BEGIN}\nold\n{results.END}\nB\n"
    assert results.spliced(readme, "new") == f"# A\n{results.BEGIN}\n\nnew\n\n{results.END}\nB\n"
    assert results.spliced("no markers", "new") == "no markers"


def test_results_page_is_what_the_committed_files_say() -> None:
    if not results.read(results.HERE / "results"):
        pytest.skip("no machine's results are committed")
    found = CliRunner().invoke(results.main, ["--check"])
    assert found.exit_code == 0, found.output


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["spline?"], "'spline?' is not"),
        (["--device", "tpu7"], "tpu7"),
        (["--device", "meta"], "expected cpu or cuda"),
        (["--case", "nothing like it"], f"no case of {', '.join(OPS)} has 'nothing like it'"),
    ],
)
def test_arguments_that_are_refused(arguments: list[str], message: str) -> None:
    found = CliRunner().invoke(bench, arguments)
    assert found.exit_code == 2
    assert message in found.output


def test_end_to_end(tmp_path: Path) -> None:
    """A real run of the smallest case: processes, gate, compiler, files and pictures."""
    arguments = [
        "coupling",
        "--quick",
        "--case",
        "8x12x8x8",
        "--json",
        str(tmp_path / "run.json"),
        "--plot",
        str(tmp_path),
    ]
    command = [sys.executable, "-c", "from pygen.benchmarks.cli import bench; bench()", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "run.json").read_text())
    assert {row["gate"] for row in result["rows"]} == {"passed"}
    by_mode = {
        mode: {r["impl"] for r in result["rows"] if r["mode"] == mode} for mode in ("fwd", "bwd", "full", "call")
    }
    arms = {"pygen", "eager", "compile"}
    assert by_mode == {"fwd": arms, "bwd": arms, "full": arms, "call": arms | {"empty"}}
    assert {path.name for path in tmp_path.glob("*.png")} == {"coupling_speedup.png", "coupling_limit.png"}
    assert "## run" in results.results_page({"run": result})
