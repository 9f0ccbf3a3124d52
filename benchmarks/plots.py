"""Pictures of a run: speed-ups over the baselines, and percentages of the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .report import Line, describe, lines
from .runner import JUDGED, Result

COLOURS = {"eager": "#4477aa", "compile": "#ee6677", "peer": "#228833", "fwd": "#66ccee", "full": "#aa3377"}


def save(result: Result, folder: Path) -> list[Path]:
    """Writes `<op>_speedup.png` and `<op>_limit.png` for every op of a run; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    judged = [line for line in lines(result["rows"]) if line.heap == JUDGED]
    for op in dict.fromkeys(line.op for line in judged):
        of_op = [line for line in judged if line.op == op]
        for name, draw in (("speedup", _speedup), ("limit", _limit)):
            path = folder / f"{op}_{name}.png"
            if _figure(draw, of_op, result["host"], path):
                written.append(path)
    return written


def _figure(draw: Any, of_op: list[Line], host: dict[str, Any], path: Path) -> bool:
    """Lets draw fill the axes; saves them unless it found nothing to draw."""
    cases = list(dict.fromkeys(line.case for line in of_op if line.mode == "full"))
    if not cases:
        return False
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.5 * len(cases)), layout="constrained")
    draw(axes, {(line.case, line.mode): line for line in of_op}, cases)
    marks = [host["cases"].get(f"{of_op[0].op}/{case}", {}).get("beyond_llc", False) for case in cases]
    axes.set_yticks(range(len(cases)), [case + " *" * mark for case, mark in zip(cases, marks, strict=True)])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    note = "\n* moves more than the last-level cache holds" if any(marks) else ""
    figure.supxlabel(describe(host).replace("; ", "\n", 1) + f"\n{JUDGED} heap{note}", fontsize=7, color="0.35")
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


def _bars(axes: Axes, series: dict[str, list[float | None]], form: str) -> None:
    """Groups of horizontal bars, each with its value written beside it."""
    height = 0.8 / len(series)
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # where a value meets the line of the goal
    for i, (name, values) in enumerate(series.items()):
        known = [(y, value) for y, value in enumerate(values) if value is not None]
        at = [y + (i - (len(series) - 1) / 2) * height for y, _ in known]
        bars = axes.barh(at, [value for _, value in known], height * 0.92, color=COLOURS[name], label=name)
        axes.bar_label(bars, fmt=form, padding=3, fontsize=7, bbox=behind)
    axes.margins(y=0.01)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, ncols=len(series), frameon=False)


def _speedup(axes: Axes, by_key: dict[tuple[str, str], Line], cases: list[str]) -> None:
    def value(case: str, name: str) -> float | None:
        line = by_key[case, "full"]
        rows = (line.timed(impl) for impl in line.by_impl if impl.split(":")[0] == name)
        return min((row["ratio"] for row in rows if row and row["ratio"] is not None), default=None)

    series = {name: [value(case, name) for case in cases] for name in ("eager", "compile", "peer")}
    _bars(axes, {name: values for name, values in series.items() if any(values)}, "%.1f")
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_title("Forward and backward: time over pygen's", loc="left", pad=24)


def _limit(axes: Axes, by_key: dict[tuple[str, str], Line], cases: list[str]) -> None:
    def value(case: str, mode: str) -> float | None:
        line = by_key.get((case, mode))
        row = line.timed("pygen") if line else None
        percent: float | None = row["pct_limit"] if row else None
        return percent

    _bars(axes, {mode: [value(case, mode) for case in cases] for mode in ("fwd", "full")}, "%.0f")
    axes.axvline(100.0, color="black", linewidth=1)
    axes.set_title("pygen: percent of the limit measured in the same seconds", loc="left", pad=24)
