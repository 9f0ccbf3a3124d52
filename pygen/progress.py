"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

SECONDS = 10  # between lines, where there is no terminal


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g} {task.fields['unit']}/s")


class Progress:
    """Used as `with Progress(...) as progress`, then `progress.advance(n, figure)`; done: what was done before."""

    def __init__(self, console: Console, title: str, total: int, unit: str, done: int = 0) -> None:
        self._console, self._title, self._total, self._unit = console, title, total, unit
        self._done = self._start = done
        self._began = self._said = time.monotonic()
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[figure]}", markup=False),
            _Rate(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Bar(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(title, total=total, completed=done, figure="", unit=unit)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def advance(self, count: int, figure: str = "") -> None:
        self._done += count
        self._bar.update(self._task, advance=count, figure=figure)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._said >= SECONDS or self._done == self._total):
            self._said = now
            rate = (self._done - self._start) / max(now - self._began, 1e-9)
            left = (self._total - self._done) / rate
            text = f"{self._title}: {self._done}/{self._total}  {figure}  {rate:.3g} {self._unit}/s  {left:.0f} s left"
            self.say(text.replace("    ", "  "))

    def say(self, text: str) -> None:
        """Prints a line, above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
