"""`pygen bench`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import goals, report, runner
from .cases import OPS, load


@click.command()
@click.argument("ops", nargs=-1, type=click.Choice(OPS), metavar="[OP]...")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--quick", is_flag=True, help="A few cases and rounds on the retained heap: about a minute an op.")
@click.option("--case", "pattern", help="Only cases whose name contains this text.")
@click.option("--check", is_flag=True, help="Judge the figures by goals.toml; exit 1 when a goal is missed.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write all rows to a file.")
@click.option("--plot", "plot_dir", type=click.Path(file_okay=False, path_type=Path), help="Write PNGs to a folder.")
def bench(
    ops: tuple[str, ...],
    device: str,
    quick: bool,
    pattern: str | None,
    check: bool,
    json_path: Path | None,
    plot_dir: Path | None,
) -> None:
    """Times pygen's ops beside eager PyTorch, torch.compile, other libraries and the hardware's limit.

    OP is the name of an op's file (all ops by default). Every case runs in a process of its own, once with a heap that
    keeps its pages and once with the C library's default. What computes a wrong result gets no figure. All
    implementations take turns, with as many threads as OMP_NUM_THREADS says (all cores by default): run it on an idle
    machine.

    Exits 1 when a result of pygen was wrong, and with --check when a goal was missed.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=132)  # a file or a log: do not fold the table to 80 columns
    where = _device(device)
    if plot_dir and importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--plot needs matplotlib: pip install 'pygen[demo]'")
    names = ops or OPS
    cases = [case for op in names for case in load(op) if (case.quick or not quick) and (pattern or "") in case.name]
    if not cases:
        raise click.UsageError(f"no {'quick ' * quick}case of {', '.join(names)} has {pattern!r} in its name")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(cases) * len(runner.heaps(where, quick)))
        started = False

        def advance(text: str) -> None:
            nonlocal started
            progress.update(task, description=text, advance=int(started))
            started = True

        result = runner.run(cases, where, quick, advance)

    if json_path:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result, indent=1) + "\n")
    host = result["host"]
    console.print(f"{report.describe(host)}; {report.load_text(host)}", highlight=False)
    for heap in report.heaps(result["rows"]):
        console.print(report.result_table(result, heap, console.width))
    console.print(report.LEGEND, style="dim", highlight=False)
    for warning in report.warnings(result):
        console.print(f"note: {warning}", style="yellow", highlight=False, markup=False)
    if plot_dir:
        from .plots import save

        for path in save(result, plot_dir):
            console.print(f"wrote {path}", highlight=False)

    wrong = any(failure["impl"] == "pygen" for failure in host["failures"])
    verdicts = goals.judge(result, names) if check else []
    if check:
        console.print(report.goal_table(verdicts))
        if not any(verdict.verdict in ("met", "MISSED") for verdict in verdicts):
            raise click.ClickException("--check: this run has no case that a goal could be judged on")
    if wrong or any(verdict.missed for verdict in verdicts):
        raise SystemExit(1)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise click.BadParameter(str(error).splitlines()[0], param_hint="--device") from None
    if device.type not in ("cpu", "cuda"):
        raise click.BadParameter(f"expected cpu or cuda, got {name!r}", param_hint="--device")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter("this torch sees no CUDA device", param_hint="--device")
    return device
