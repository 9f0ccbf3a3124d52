"""A bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pygen import progress
from pygen.progress import Progress


def run(terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=160)
    with Progress(console, "a [b] c", 10, "steps", done=4) as bar:
        for _ in range(3):
            bar.advance(2, "loss 1.000")
            bar.say("said [so]")
    return text.getvalue()


def test_a_terminal_gets_a_bar() -> None:
    text = run(terminal=True)
    for part in ("a [b] c", "10/10", "loss 1.000", "steps/s", "left", "said [so]"):
        assert part in text


def test_elsewhere_there_are_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    last = run(terminal=False).splitlines()
    assert [line.startswith("a [b] c: 10/10  loss 1.000  ") for line in last] == [False, False, True, False]
    monkeypatch.setattr(progress, "SECONDS", 0)
    lines = run(terminal=False).splitlines()
    assert [line[:14] for line in lines[::2]] == ["a [b] c: 6/10 ", "a [b] c: 8/10 ", "a [b] c: 10/10"]
    assert lines[1] == "said [so]"
