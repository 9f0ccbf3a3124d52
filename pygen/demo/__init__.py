"""`pygen demo`: every section trains a model in a minute or two, says how good it is, and draws what it learned."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from rich.console import Console

from .._extras import need

SECTIONS = (
    "realnvp",
    "nsf",
    "frechet",
    "pixelcnn",
    "ddpm",
)  # modules of this package with run(out, seed, steps, console)


def run(name: str, *, out: Path, seed: int = 0, steps: int | None = None, console: Console | None = None) -> None:
    """Runs one section. PNGs go to the folder `out`. The same seed gives the same result on the same machine.

    steps: training steps of each model; None: the section's own numbers.
    """
    if name not in SECTIONS:
        raise ValueError(f"expected a section in {SECTIONS}, got {name!r}")
    need("the demo", "demo", "matplotlib", "sklearn")
    out.mkdir(parents=True, exist_ok=True)
    console = console or Console()
    console.rule(name)
    section = importlib.import_module(f"{__name__}.{name}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        section.run(out, seed, steps, console)
