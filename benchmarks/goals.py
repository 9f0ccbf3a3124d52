"""Holds the rows of a run against `goals.toml`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .runner import JUDGED, Result

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PATH = Path(__file__).parent / "goals.toml"
Row = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """One entry of goals.toml, its set of cases resolved."""

    op: str
    kind: str
    mode: str
    cases: tuple[str, ...]
    at_least: float = -math.inf
    at_most: float = math.inf
    versus: str = "eager"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{PATH.name}: expected kind in {tuple(KINDS)}, got {self.kind!r}")

    @property
    def text(self) -> str:
        what = {
            "geomean": f"geometric mean over {self.versus}",
            "min_ratio": f"{'never below' if self.at_least == 1 else 'least ratio over'} {self.versus}",
            "pct_limit": "% of the limit beyond the last-level cache",
            "pct_fma": "% of the arithmetic limit",
            "over_empty_us": "us over an empty op",
            "median_ms": "ms",
        }[self.kind]
        where = self.cases[0] if len(self.cases) == 1 else f"{len(self.cases)} cases"
        return f"{what}, {self.mode}, {where}"

    @property
    def target(self) -> str:
        return f">= {self.at_least:g}" if math.isfinite(self.at_least) else f"<= {self.at_most:g}"


@dataclass(frozen=True)
class Verdict:
    """measured is None where the goal could not be judged; verdict says why: "met", "MISSED", or a reason."""

    goal: Goal
    measured: float | None
    verdict: str

    @property
    def missed(self) -> bool:
        return self.verdict == "MISSED"


def read(path: Path = PATH) -> tuple[Goal, ...]:
    tables = tomllib.loads(path.read_text())
    return tuple(
        Goal(op=op, **goal | {"cases": tuple(table["cases"][goal["cases"]])})
        for op, table in tables.items()
        for goal in table["goals"]
    )


def judge(result: Result, ops: Sequence[str]) -> list[Verdict]:
    """A verdict for every goal of these ops on the device that ran. A case that ran without giving a figure misses."""
    host, rows = result["host"], result["rows"]
    device = rows[0]["device"] if rows else "cpu"
    return [_judge(goal, host, rows) for goal in read() if goal.op in ops and goal.device == device]


def _judge(goal: Goal, host: dict[str, Any], rows: Sequence[Row]) -> Verdict:
    ran = [case for case in goal.cases if f"{goal.op}/{case}" in host["cases"]]
    if len(ran) < len(goal.cases):
        return Verdict(goal, None, f"not run: {len(ran)} of {len(goal.cases)} cases in this run")
    if goal.kind == "pct_limit":
        ran = [case for case in ran if host["cases"][f"{goal.op}/{case}"].get("beyond_llc")]
        if not ran:
            return Verdict(goal, None, "not judged: no case beyond this host's last-level cache")

    def median(case: str, impl: str) -> Row | None:
        wanted = {"op": goal.op, "case": case, "mode": goal.mode, "heap": JUDGED, "impl": impl}
        found = (row for row in rows if all(row[k] == v for k, v in wanted.items()) and row["median_s"] is not None)
        return next(found, None)

    ours = [median(case, "pygen") for case in ran]
    other = [median(case, {"over_empty_us": "empty", "median_ms": "pygen"}.get(goal.kind, goal.versus)) for case in ran]
    pairs = [(a, b) for a, b in zip(ours, other, strict=True) if a and b]
    if len(pairs) < len(ran):
        return Verdict(goal, None, "MISSED")
    measured = KINDS[goal.kind](pairs)
    return Verdict(goal, measured, "met" if goal.at_least <= measured <= goal.at_most else "MISSED")


def _geomean(pairs: Sequence[tuple[Row, Row]]) -> float:
    return math.exp(sum(math.log(other["ratio"]) for _, other in pairs) / len(pairs))


KINDS: dict[str, Callable[[Sequence[tuple[Row, Row]]], float]] = {  # of pairs (pygen's row, the other's)
    "geomean": _geomean,
    "min_ratio": lambda pairs: min(other["ratio"] for _, other in pairs),
    "pct_limit": lambda pairs: min(ours["pct_limit"] for ours, _ in pairs),
    "pct_fma": lambda pairs: min(ours["pct_limit"] for ours, _ in pairs),
    "median_ms": lambda pairs: max(1e3 * ours["median_s"] for ours, _ in pairs),
    "over_empty_us": lambda pairs: max(1e6 * (ours["median_s"] - other["median_s"]) for ours, other in pairs),
}
