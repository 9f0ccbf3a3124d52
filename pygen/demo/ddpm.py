"""A diffusion model of handwritten digits, three samplers, and how many evaluations each of them wants."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .. import figures
from ..data import Split, digits, load
from ..data.dataset import full_range
from ..data.digits import CLASSES, LEVELS
from ..metrics import frechet_distance_from_features
from ..metrics.classifier import FEATURES, train_classifier
from ..models import DDPM
from ..progress import Progress
from ..training import Options
from .fit import fit

TRAINING_STEPS, SAMPLES = 400, 256
SAMPLERS = {"ddpm": "ancestral", "ddim": "first order", "dpmpp-2m": "second order"}
STEPS = (3, 5, 10, 20, 40)

Distance = Callable[[Tensor], float]


def run(out: Path, seed: int, steps: int | None, console: Console) -> None:
    train, test = digits()
    model = train_digits(steps or TRAINING_STEPS, seed, console)
    draw_digits(model, out, seed)
    distance = distance_to(train, seed)
    found, seconds = distances(model, distance, seed, console)
    held_out = distance(test.images)
    console.print(table_of(found, seconds, held_out))
    figures.lines(
        out / "ddpm_distance.png", {name: [*zip(STEPS, row, strict=True)] for name, row in found.items()},
        across="evaluations of the network", up="Frechet distance to the training digits",
        level=("held-out digits", held_out),
        title="Three samplers of one diffusion model",
        note=f"Distance between {FEATURES} features of a classifier; {SAMPLES} digits each.",
    )  # fmt: skip
    console.print(f"Pictures: {', '.join(str(path) for path in sorted(out.glob('ddpm_*.png')))}", soft_wrap=True)


def train_digits(steps: int, seed: int, console: Console) -> DDPM:
    model = DDPM(
        (1, 8, 8), LEVELS, num_classes=CLASSES, hidden=32, widths=(1, 2), blocks=1, attention=4,
        prediction="v_prediction", weighting="min_snr",
    )  # fmt: skip
    options = Options(steps=steps, batch_size=128, lr=4e-3, ema=0.99, seed=seed)
    return fit(model, load("digits"), options, console, "DDPM, digits")[0]


# --- how good it is --------------------------------------------------------------------------------------------------


def distance_to(train: Split, seed: int) -> Distance:
    """The Frechet distance of images from the training digits."""
    extractor, _ = train_classifier(load("digits"), load("digits", split="test"), seed=seed)

    def features(images: Tensor) -> Tensor:
        rows: Tensor = extractor(full_range(images, LEVELS).expand(-1, 3, -1, -1))
        return rows.double()

    reference = features(train.images)
    return lambda images: frechet_distance_from_features(features(images), reference).item()


def distances(
    model: DDPM, distance: Distance, seed: int, console: Console
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The distance of what each sampler draws in each number of steps, and the seconds that it took."""
    labels = torch.arange(SAMPLES) % CLASSES
    found: dict[str, list[float]] = {name: [] for name in SAMPLERS}
    seconds: dict[str, list[float]] = {name: [] for name in SAMPLERS}
    with Progress(console, "sampling, digits", len(SAMPLERS) * sum(STEPS), "steps") as progress:
        for name in SAMPLERS:
            for steps in STEPS:
                start = time.perf_counter()
                x = model.sample(SAMPLES, labels, generator=seed, sampler=name, steps=steps)
                seconds[name].append(time.perf_counter() - start)
                found[name].append(distance(x))
                progress.advance(steps)
    return found, seconds


def table_of(found: dict[str, list[float]], seconds: dict[str, list[float]], held_out: float) -> Table:
    title = f"Distance to the training digits (held-out ones: {held_out:.3f})"
    table = Table(title=title, title_justify="left")
    table.add_column("evaluations of the network")
    for steps in STEPS:
        table.add_column(f"{steps}", justify="right")
    for name, kind in SAMPLERS.items():
        table.add_row(f"{name}, {kind}", *(f"{value:.3f}" for value in found[name]))
    for name in SAMPLERS:
        table.add_row(f"{name}, seconds", *(f"{value:.2f}" for value in seconds[name]))
    return table


# --- pictures --------------------------------------------------------------------------------------------------------


def draw_digits(model: DDPM, out: Path, seed: int, columns: int = 6, steps: int = 10, guidance: float = 2.0) -> None:
    """Digits of every class by every sampler, from the same noise."""
    labels = torch.arange(CLASSES).repeat_interleave(columns)
    parts = [
        model.sample(len(labels), labels, generator=seed, sampler=name, steps=steps, guidance=guidance).view(
            CLASSES, columns, *model.shape[1:]
        )
        for name in SAMPLERS
    ]
    figures.image_grid(
        out / "ddpm_samples.png", torch.cat(parts, 1), levels=LEVELS, rows=[str(y) for y in range(CLASSES)],
        columns=[name if i == columns // 2 else "" for name in SAMPLERS for i in range(columns)], apart=columns,
        title="DDPM: samples of every class",
        note=f"Three samplers from the same noise, {steps} steps, guidance {guidance:g}.",
    )  # fmt: skip
