"""One command for a GPU machine, network or none: builds in place, tests on the GPU, benchmarks, writes one JSON file.

    python benchmarks/gpu_report.py [--budget SECONDS] [--json FILE]

It installs nothing but this checkout (editable, against the torch and the packages that are there). What takes too long
is stopped, and the file is written anew after every stage, so that whatever came out is kept:

    {"host": {...}, "stages": [{"name", "status" (ok, failed, timeout, skipped), "seconds", "output"}],
     "tests": {file: {"passed", "failed", "skipped", "failures"}}, "rows": [...]}

with the rows and most of the host as `pygen bench --json` writes them. Exits 1 unless every stage was ok.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
LAST_WORDS = 8_000  # characters of each stage's output that are kept


@dataclass
class Report:
    """What is known so far. Each stage ends with a save."""

    path: Path
    deadline: float
    content: dict[str, Any] = field(default_factory=lambda: {"host": {}, "stages": [], "tests": {}, "rows": []})

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, name: str, command: list[str], limit: float, needs: float = 10.0, **env: str) -> tuple[str, str]:
        """Runs a stage within a limit and what is left of the budget. Returns its status and output."""
        limit = min(limit, self.left())
        start = time.monotonic()
        output, status = "", "skipped"
        if limit >= needs:
            click.echo(f"== {name}: {' '.join(command)} (at most {limit:.0f} s)")
            output, code = _run(command, limit, env)
            status = {0: "ok", None: "timeout"}.get(code, "failed")
        seconds = round(time.monotonic() - start, 1)
        click.echo(f"== {name}: {status} after {seconds} s")
        self.content["stages"].append(
            {"name": name, "status": status, "seconds": seconds, "output": output[-LAST_WORDS:]}
        )
        self.save()
        return status, output

    def save(self) -> None:
        draft = self.path.with_suffix(".part")
        draft.write_text(json.dumps(self.content, indent=1) + "\n")
        draft.replace(self.path)


def _run(command: list[str], limit: float, env: dict[str, str]) -> tuple[str, int | None]:
    """Output, and the exit status or None when it was stopped, with all the processes that it started."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        log.seek(0)
        return log.read(), code


def host() -> dict[str, Any]:
    """The machine as this process sees it; the benchmark adds what it knows."""
    import torch

    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    if importlib.util.find_spec("triton"):
        import triton

        facts["triton"] = triton.__version__
    for tool, command in (
        ("driver", ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]),
        ("nvcc", ["nvcc", "--version"]),
    ):
        try:
            lines = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip().splitlines()
        except (OSError, subprocess.TimeoutExpired):
            lines = []
        facts[tool] = lines[-1] if lines else None
    return facts


# "tests/x.py::test FAILED [  3%]" or, from several processes, "[gw0] [  3%] FAILED tests/x.py::test"
_VERDICT = re.compile(
    r"^(?:\[gw\d+\] \[ *\d+%\] (?P<after>PASSED|FAILED|ERROR|SKIPPED) (?P<second>\S+::.*?)"
    r"|(?P<first>\S+::.*?) (?P<before>PASSED|FAILED|ERROR|SKIPPED)\b.*\[ *\d+%\])\s*$",
    re.MULTILINE,
)


def verdicts(output: str) -> dict[str, Any]:
    """Counts and failures from pytest's verbose lines, which a run that was stopped has written, too."""
    found = [(m["first"] or m["second"], m["before"] or m["after"]) for m in _VERDICT.finditer(output)]
    counts = Counter(verdict for _, verdict in found)
    return {
        "passed": counts["PASSED"],
        "failed": counts["FAILED"] + counts["ERROR"],
        "skipped": counts["SKIPPED"],
        "failures": sorted(name for name, verdict in found if verdict in ("FAILED", "ERROR")),
    }


def workers(count: int) -> list[str]:
    """Several processes, since most of the time of a GPU test goes into compiling, where pytest-xdist is there."""
    return ["-n", str(count)] if importlib.util.find_spec("xdist") else []


@click.command()
@click.option("--budget", default=570.0, show_default=True, help="Seconds for everything.")
@click.option("--json", "path", default="gpu_report.json", show_default=True, type=click.Path(path_type=Path))
def main(budget: float, path: Path) -> None:
    """Builds, tests on the GPU, benchmarks, and writes a JSON file."""
    report = Report(path.resolve(), time.monotonic() + budget)
    report.content["host"] = host()
    report.save()
    python, pygen = [sys.executable], [sys.executable, "-c", "from pygen.cli import main; main()"]
    if not report.content["host"]["gpus"]:
        raise click.ClickException("torch sees no CUDA GPU")

    def test(name: str, paths: list[str], limit: float) -> None:
        options = ["-v", "-k", "cuda", "--tb=short", "-p", "no:cacheprovider", *workers(min(8, os.cpu_count() or 1))]
        _, output = report.run(name, [*python, "-m", "pytest", *options, *paths], limit, OMP_NUM_THREADS="1")
        report.content["tests"][name] = verdicts(output)
        report.save()

    def bench(name: str, limit: float, *options: str, needs: float = 10.0) -> None:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "rows.json"
            command = [*pygen, "bench", "--device", "cuda", "--json", str(result), *options]
            report.run(name, command, limit, needs)
            if result.exists():
                measured = json.loads(result.read_text())
                report.content["rows"] = measured["rows"]
                report.content["host"] |= measured["host"]
        report.save()

    # The order is that of importance: a later stage gets what the earlier ones leave.
    status, _ = report.run(
        "build",
        [*python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--editable", "."],
        0.45 * budget,
        MAX_JOBS=str(os.cpu_count() or 1),
    )
    if status == "ok":
        report.run("info", [*pygen, "info"], 60)
        test("gpu tests", ["tests/gpu/test_cuda.py"], 0.4 * budget)
        bench("quick benchmark", 0.3 * budget, "--quick")
        if report.left() > 0.3 * budget:
            bench("benchmark", 0.6 * report.left())
        test("contract", ["tests/contract", "tests/coupling", "tests/frechet", "tests/metrics"], report.left() - 5)

    for stage in report.content["stages"]:
        click.echo(f"{stage['name']:16} {stage['status']:8} {stage['seconds']:6.1f} s")
    for name, found in report.content["tests"].items():
        click.echo(f"{name:16} {found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped")
    click.echo(f"{len(report.content['rows'])} benchmark rows; wrote {report.path}")
    if any(stage["status"] != "ok" for stage in report.content["stages"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
