"""Rows of a run as lines of a table: on the terminal and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from .goals import Verdict
from .runner import JUDGED, Result

HEAD = ("case", "mode", "pygen", "spread", "eager", "compile", "peer", "limit", "memory")
GOAL_HEAD = ("goal", "target", "measured", "verdict")
LEGEND = (
    "pygen: its median time; spread: the distance of its 20 % and 80 % quantiles, in percent of that. eager, compile, "
    "peer: their median over pygen's, so 2.0x is twice as slow as pygen. limit: how much pygen reaches of the copy "
    "bandwidth (or arithmetic ceiling) measured between the same calls. memory: the most that one call of eager has "
    "allocated, over pygen's. *: moves more than the last-level cache holds. Modes: fwd without gradient, bwd backward "
    "alone, full both, call one call of the smallest size (empty: of an op that does nothing). causal_sampler's peers "
    "naive and rows are extrapolated: one pass of the net is timed, and multiplied by the passes of a batch."
)


@dataclass
class Line:
    """All implementations of one case and mode on one heap."""

    op: str
    case: str
    mode: str
    heap: str
    by_impl: dict[str, dict[str, Any]] = field(default_factory=dict)

    def timed(self, impl: str) -> dict[str, Any] | None:
        """The row of an implementation that has figures."""
        row = self.by_impl.get(impl)
        return row if row and row["median_s"] is not None else None


def lines(rows: Iterable[dict[str, Any]]) -> list[Line]:
    found: dict[tuple[str, ...], Line] = {}
    for row in rows:
        key = (row["op"], row["case"], row["mode"], row["heap"])
        found.setdefault(key, Line(*key)).by_impl[row["impl"]] = row
    return list(found.values())


def seconds(value: float) -> str:
    """Three digits and a unit."""
    unit, scale = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e3)) if value * s >= 1), ("us", 1e6))
    digits = max(0, 2 - math.floor(math.log10(value * scale)))
    return f"{value * scale:.{min(digits, 2)}f} {unit}"


def ratio(line: Line, impl: str) -> str:
    row = line.by_impl.get(impl)
    if row is None:
        return "-"
    if row["gate"] != "passed":
        return "wrong"
    return f"{row['ratio']:.2f}x" if row["ratio"] is not None else "-"


def peers(line: Line) -> str:
    """Names and ratios of the peers that were timed, and of the empty op."""
    others = [impl for impl in line.by_impl if impl not in ("pygen", "eager", "compile")]
    return ", ".join(f"{impl.removeprefix('peer:')} {ratio(line, impl)}" for impl in others) or "-"


def cells(line: Line, host: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table, in the order of HEAD."""
    ours, eager = line.timed("pygen"), line.timed("eager")
    mark = "*" if host["cases"].get(f"{line.op}/{line.case}", {}).get("beyond_llc") else ""
    time, spread, limit, memory = "WRONG", "-", "-", "-"
    if ours:
        time = seconds(ours["median_s"])
        spread = f"{100 * (ours['p80_s'] - ours['p20_s']) / ours['median_s']:.0f} %"
        if ours["pct_limit"] is not None:
            limit = f"{ours['pct_limit']:.0f} %"
        if ours["peak_bytes"] and eager and eager["peak_bytes"]:
            memory = f"{eager['peak_bytes'] / ours['peak_bytes']:.2f}x"
    return (
        line.case + mark,
        line.mode,
        time,
        spread,
        ratio(line, "eager"),
        ratio(line, "compile"),
        peers(line),
        limit,
        memory,
    )


def goal_cells(verdict: Verdict) -> tuple[str, ...]:
    measured = f"{verdict.measured:.4g}" if verdict.measured is not None else "-"
    return f"{verdict.goal.op}: {verdict.goal.text}", verdict.goal.target, measured, verdict.verdict


def describe(host: dict[str, Any]) -> str:
    """The machine in one sentence."""
    threads = f"{host['threads']} thread{'s' * (host['threads'] != 1)} on {host['cores']} cores"
    cache = f", {host['llc_bytes'] >> 20} MB last-level cache" if host["llc_bytes"] else ""
    device = "" if host["device"] == "cpu" else f"; device {host['device']}"
    return (
        f"{host['cpu']}, {threads}, {host['isa']}{cache}; {host['system']}; "
        f"torch {host['torch']}, Python {host['python']}, pygen {host['pygen']}{device}"
    )


def load_text(host: dict[str, Any]) -> str:
    load = host["load"]
    others = f"; other processes used {100 * load['others']:.0f} % of the CPUs" if load["others"] is not None else ""
    return f"load average {load['before']} before, {load['after']} after{others}"


def warnings(result: Result) -> list[str]:
    """What a reader of the figures must know."""
    host = result["host"]
    found = [f"{f['case']} ({f['heap']} heap) {f['impl']} failed: {f['reason']}" for f in host["failures"]]
    if (host["load"]["others"] or 0) > 0.05:
        found.append(f"the machine was not idle: {load_text(host)}")
    plain = sorted({op_of(key) for key, facts in host["cases"].items() if "reference" in facts.get("backend", "")})
    if plain:
        found.append(f"pygen ran its plain PyTorch reference, not a kernel, for: {', '.join(plain)}")
    if any(facts.get("empty_op") == "Python" for facts in host["cases"].values()):
        found.append("the empty op is registered from Python: a C++ one costs less")
    return [*found, *host["notes"]]


def op_of(key: str) -> str:
    return key.split("/", 1)[0]


def heaps(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The heap modes of some rows, the judged one first."""
    return sorted({row["heap"] for row in rows}, key=lambda heap: heap != JUDGED)


# --- terminal ---------------------------------------------------------------------------------------------------------


def result_table(result: Result, heap: str, width: int) -> Table:
    judged = " (goals are judged on this one)" if heap == JUDGED else ""
    table = Table(title=f"{heap} heap{judged}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [i for i, name in enumerate(HEAD) if width >= 100 or name not in ("spread", "memory")]
    for i in shown:
        wraps = HEAD[i] in ("case", "peer")
        least = 18 if HEAD[i] == "case" else None
        table.add_column(
            HEAD[i], justify="left" if wraps else "right", no_wrap=not wraps, overflow="fold", min_width=least
        )
    previous = ""
    for line in lines(row for row in result["rows"] if row["heap"] == heap):
        slower = any(r["ratio"] is not None and r["ratio"] < 1 and i != "empty" for i, r in line.by_impl.items())
        row = cells(line, result["host"])
        case, previous = row[0] if row[0] != previous else "", row[0]
        table.add_row(case, *(row[i] for i in shown[1:]), style="yellow" if slower else "")
    return table


def goal_table(verdicts: Sequence[Verdict]) -> Table:
    table = Table(*GOAL_HEAD, title="goals", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for verdict in verdicts:
        style = {"met": "green", "MISSED": "red"}.get(verdict.verdict, "dim")
        table.add_row(*goal_cells(verdict), style=style)
    return table


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    rows = [tuple(head), tuple("---" for _ in head), *(tuple(cells) for cells in body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
