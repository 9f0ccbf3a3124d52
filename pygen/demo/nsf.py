"""A neural spline flow on a two-dimensional density with sharp edges."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ..data import load
from ..models import SplineFlowFlat
from ..training import Options
from ..training.run import held_out_bits
from .density import draw_density
from .fit import fit

STEPS, DATA = 1500, "checkerboard"
ENTROPY = math.log2(8) / 2  # bits/dim: the points are uniform on eight squares of side 1


def run(out: Path, seed: int, steps: int | None, console: Console) -> None:
    model, _ = train(steps or STEPS, seed, console)
    console.print(scores(model))
    draw_density(
        out / "nsf_density.png", model, DATA, seed, f"Neural spline flow: a two-dimensional density ({DATA})",
        "Monotone splines bend where they have to: edges are sharp, and the squares even.",
    )  # fmt: skip
    console.print(f"Pictures: {out / 'nsf_density.png'}", soft_wrap=True)


def train(steps: int, seed: int, console: Console) -> tuple[SplineFlowFlat, list[float]]:
    model = SplineFlowFlat(2, layers=6, hidden=32)
    options = Options(steps=steps, batch_size=256, lr=6e-3, ema=0.99, seed=seed)
    return fit(model, load(DATA), options, console, f"Spline flow, {DATA}")


def scores(model: SplineFlowFlat) -> Table:
    """Held-out likelihood, beside the best that there is."""
    test = load(DATA, split="test")
    table = Table(title=f"{len(test):,} held-out points", title_justify="left")
    table.add_column("model")
    table.add_column("bits/dim", justify="right")
    table.add_row("spline flow", f"{held_out_bits(model, test, torch.device('cpu'), Options()):.3f}")
    table.add_row("the density that they are from", f"{ENTROPY:.3f}")
    return table
