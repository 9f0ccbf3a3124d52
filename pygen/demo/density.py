"""Picture of a two-dimensional density."""

from __future__ import annotations

from pathlib import Path

import torch

from .. import figures
from ..data import toy
from ..models import Flow
from ..sampling import log_density


@torch.no_grad()
def draw_density(
    path: Path, model: Flow, name: str, seed: int, title: str, note: str, side: int = 400, extent: float = 2.8
) -> None:
    """Points of the toy density `name`, the density that a model has learned, and points of the model."""
    box = (-extent, extent, -extent, extent)
    figures.densities(
        path, data=toy(name, 8000, generator=seed), log_density=log_density(model, box, side),
        samples=model.sample(8000, generator=seed), box=box, title=title, note=note,
    )  # fmt: skip
