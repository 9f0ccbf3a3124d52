"""The Frechet distance on handwritten digits: how it grows with what is done to them, and a generator trained by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .. import figures, random
from ..data import Split, digits, load
from ..data.dataset import full_range
from ..data.digits import LEVELS
from ..metrics import FeatureQueue, FrechetReference, frechet_distance_from_features, frechet_loss
from ..metrics.classifier import FEATURES, STEPS, Classifier, train_classifier
from ..progress import Progress

GENERATOR_STEPS, BATCH, STRENGTHS = 800, 64, (0.0, 0.25, 0.5, 0.75, 1.0)


def run(out: Path, seed: int, steps: int | None, console: Console) -> None:
    train, test = digits()
    with Progress(console, "classifier, digits", STEPS, "steps") as progress:
        extractor, accuracy = train_classifier(
            load("digits"), load("digits", split="test"), seed=seed, advance=progress.advance
        )
    console.print(f"Features: {FEATURES} of a classifier with {accuracy:.1%} accuracy on held-out digits")
    disturb(extractor, train, test, out, seed, console)
    generate(train, out, seed, steps or GENERATOR_STEPS, console)
    console.print(f"Pictures: {', '.join(str(path) for path in sorted(out.glob('frechet_*.png')))}", soft_wrap=True)


# --- disturbances (after figure 3 of Heusel et al. 2017, arXiv 1706.08500) --------------------------------------------


def noise(x: Tensor, strength: float, seed: int) -> Tensor:
    return x + strength * random.normal(x.shape, generator=seed)


def blur(x: Tensor, strength: float, seed: int) -> Tensor:
    wide = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return x + strength * (wide - x)


def salt_and_pepper(x: Tensor, strength: float, seed: int) -> Tensor:
    u = random.uniform(x.shape, generator=seed, step=1)
    return torch.where(u < strength / 2, (u < strength / 4).to(x), x)


def hole(x: Tensor, strength: float, seed: int) -> Tensor:
    side = round(strength * 6)
    covered = x.clone()
    covered[..., 1 : 1 + side, 1 : 1 + side] = 0
    return covered


DISTURBANCES: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "noise": noise,
    "blur": blur,
    "specks": salt_and_pepper,
    "hole": hole,
}


@torch.no_grad()
def disturb(extractor: Classifier, train: Split, test: Split, out: Path, seed: int, console: Console) -> None:
    """Distances from the training digits to held-out ones, disturbed."""

    def features(levels: Tensor) -> Tensor:
        rows: Tensor = extractor(full_range(levels, LEVELS).expand(-1, 3, -1, -1))
        return rows.double()

    reference = features(train.images)
    table = Table(title="Distance of disturbed held-out digits to the training digits", title_justify="left")
    table.add_column("disturbance")
    for strength in STRENGTHS:
        table.add_column(f"{strength:g}", justify="right")
    pictures = []
    for name, function in DISTURBANCES.items():
        disturbed = []
        for strength in STRENGTHS:
            x = function(test.images / (LEVELS - 1), strength, seed).clamp(0, 1)
            disturbed.append((x * (LEVELS - 1)).round().to(torch.uint8))
        table.add_row(name, *(f"{frechet_distance_from_features(features(x), reference):.3f}" for x in disturbed))
        pictures.append(torch.cat([x[:3] for x in disturbed]).squeeze(1))  # three digits of each strength
    console.print(table)
    figures.image_grid(
        out / "frechet_disturbances.png", torch.stack(pictures), levels=LEVELS, rows=list(DISTURBANCES),
        columns=[f"{strength:g}" if i == 1 else "" for strength in STRENGTHS for i in range(3)],
        title="Disturbed digits", note="Held-out digits, from left to right more and more disturbed.",
    )  # fmt: skip


# --- as a loss --------------------------------------------------------------------------------------------------------


def generate(train: Split, out: Path, seed: int, steps: int, console: Console) -> None:
    """A linear map of noise, trained until its pixels have the mean and the covariance of the digits'."""

    def pixels(levels: Tensor) -> Tensor:
        return levels.flatten(1) / (LEVELS - 1)

    reference = FrechetReference.from_features(pixels(train.images))
    torch.manual_seed(seed)
    generator = torch.nn.Linear(64, 64)
    optimizer, queue = torch.optim.Adam(generator.parameters(), 3e-3), FeatureQueue(8 * BATCH)

    def made(n: int, step: int) -> Tensor:
        x: Tensor = generator(random.normal((n, 64), generator=seed, step=step))
        return x

    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    before = made(16, 0)
    first = frechet_distance_from_features(made(5000, 0), reference).item()
    with Progress(console, "generator, digits", steps, "steps") as progress:
        for step in range(1, steps + 1):
            loss = frechet_loss(made(BATCH, step), reference, queue=queue)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.advance(1, f"{loss.item():.3f}")
    last = frechet_distance_from_features(made(5000, 0), reference).item()
    console.print(
        f"A linear generator trained by frechet_loss on pixels: distance {first:.3f} before, {last:.4f} after"
    )
    rows = [
        train.images[:16].squeeze(1).float(),
        *((LEVELS - 1) * x.detach().reshape(-1, 8, 8) for x in (before, made(16, 0))),
    ]
    figures.image_grid(
        out / "frechet_generator.png", torch.stack(rows), levels=LEVELS, rows=["digits", "before", "after"],
        title="Trained by the Frechet distance alone",
        note="A linear map of noise: it learns the digits' mean and covariance, and nothing else.",
    )  # fmt: skip
