"""benchmarks/gpu_report.py, as far as it goes without a GPU."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pygen.benchmarks import gpu_report

TESTS = """
import pytest, time
@pytest.mark.parametrize("n", [1, 2, 3])
def test_passes(n): pass
def test_fails(): assert False
def test_is_skipped(): pytest.skip("no reason")
@pytest.fixture
def broken(): raise RuntimeError
def test_errs(broken): pass
def test_hangs(): time.sleep({})
"""


@pytest.fixture
def report(tmp_path: Path) -> gpu_report.Report:
    return gpu_report.Report(tmp_path / "report.json", time.monotonic() + 60)


@pytest.mark.parametrize(("seconds", "limit"), [(0, 50), (100, 12)], ids=["finished", "stopped"])
def test_verdicts(report: gpu_report.Report, tmp_path: Path, seconds: int, limit: int) -> None:
    (tmp_path / "test_some.py").write_text(TESTS.format(seconds))
    command = [sys.executable, "-u", "-m", "pytest", "-v", "-c", "/dev/null", "--rootdir", str(tmp_path), str(tmp_path)]
    status, output = report.run("tests", command, limit)
    found = gpu_report.verdicts(output)
    failures = found.pop("failures")
    assert found == {"passed": 3 + (seconds == 0), "failed": 2, "skipped": 1}, output
    assert [name.rsplit("::")[-1] for name in failures] == ["test_errs", "test_fails"]
    assert status == ("failed" if seconds == 0 else "timeout")


def test_verdicts_of_several_processes() -> None:
    """What pytest-xdist prints."""
    output = (
        "[gw0] [ 25%] PASSED tests/a.py::test_x[1] \n[gw1] [ 50%] FAILED tests/a.py::test_x[2] \n"
        "[gw1] [ 75%] SKIPPED tests/a.py::test_x[3] \n"
    )
    assert gpu_report.verdicts(output) == {
        "passed": 1,
        "failed": 1,
        "skipped": 1,
        "failures": ["tests/a.py::test_x[2]"],
    }


def test_stages_keep_to_the_budget(report: gpu_report.Report) -> None:
    report.deadline = time.monotonic() + 3
    sleep = [sys.executable, "-u", "-c", "import time; print('begun'); time.sleep(60)"]
    start = time.monotonic()
    assert report.run("long", sleep, 60, needs=1)[0] == "timeout"
    assert report.run("late", sleep, 60)[0] == "skipped"
    assert time.monotonic() - start < 20
    stages = json.loads(report.path.read_text())["stages"]
    assert [(s["name"], s["status"], s["output"]) for s in stages] == [
        ("long", "timeout", "begun\n"),
        ("late", "skipped", ""),
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: this would run everything")
def test_without_a_gpu(tmp_path: Path) -> None:
    result = CliRunner().invoke(gpu_report.main, ["--json", str(tmp_path / "report.json")])
    assert result.exit_code == 1
    assert "no CUDA GPU" in result.output
    assert json.loads((tmp_path / "report.json").read_text())["host"]["torch"] == torch.__version__
