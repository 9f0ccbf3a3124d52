"""RealNVP on handwritten digits, and on a two-dimensional density."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.distributions import MultivariateNormal

from .. import figures, random
from ..data import Split, digits, load
from ..data.digits import CLASSES, LEVELS
from ..models import RealNVP, RealNVPFlat
from ..nn import dequantize
from ..training import Options
from .density import draw_density
from .fit import fit

STEPS, FLAT_STEPS, FLAT = 500, 2000, "moons"


def run(out: Path, seed: int, steps: int | None, console: Console) -> None:
    train, test = digits()
    model, _ = train_digits(steps or STEPS, seed, console)
    console.print(scores(model, train, test, seed))
    draw_digits(model, test, out, seed)
    torch.manual_seed(seed)  # whatever the digits drew
    flat, _ = train_density(steps or FLAT_STEPS, seed, console)
    draw_density(
        out / "realnvp_density.png", flat, FLAT, seed, f"RealNVP: a two-dimensional density ({FLAT})",
        "An invertible map bends and stretches one Gaussian but cannot tear it: a thin bridge remains.",
    )  # fmt: skip
    console.print(f"Pictures: {', '.join(str(path) for path in sorted(out.glob('realnvp_*.png')))}", soft_wrap=True)


# --- training --------------------------------------------------------------------------------------------------------


def train_digits(steps: int, seed: int, console: Console) -> tuple[RealNVP, list[float]]:
    model = RealNVP((1, 8, 8), LEVELS, num_classes=CLASSES, hidden=48, blocks=1, dropout=0.2)
    options = Options(steps=steps, batch_size=128, lr=4e-3, ema=0.98, seed=seed)
    return fit(model, load("digits"), options, console, "RealNVP, digits")


def train_density(steps: int, seed: int, console: Console) -> tuple[RealNVPFlat, list[float]]:
    options = Options(steps=steps, batch_size=256, lr=8e-3, ema=0.98, seed=seed)
    return fit(RealNVPFlat(2), load(FLAT), options, console, f"RealNVP, {FLAT}")


# --- how good it is --------------------------------------------------------------------------------------------------


def scores(model: RealNVP, train: Split, test: Split, seed: int) -> Table:
    """Held-out likelihood and Bayes classification, beside Gaussians of the same noisy pixels."""
    bits = math.prod(model.shape) * math.log(2)
    noise = random.uniform(test.images.shape, generator=seed, dtype=torch.float64)
    x = dequantize(test.images, LEVELS, noise, torch.float64).flatten(1)  # [N, 64]
    by_class = [gaussian(train.images[train.labels == y]).log_prob(x) for y in range(CLASSES)]
    with torch.no_grad():
        flow = model.class_log_prob(test.images, generator=seed)  # [N, 10]

    table = Table(title=f"{len(x)} held-out digits x with labels y", title_justify="left")
    table.add_column("model")
    for column in ("bits/dim, p(x)", "bits/dim, p(x|y)", "accuracy, p(y|x)"):
        table.add_column(column, justify="right")
    table.add_row("Gaussian", f"{-gaussian(train.images).log_prob(x).mean() / bits:.3f}", "", "")
    for name, log_prob in (("Gaussian per class", torch.stack(by_class, 1)), ("RealNVP", flow)):
        marginal = log_prob.logsumexp(1) - math.log(CLASSES)
        given = log_prob.gather(1, test.labels[:, None])
        right = (log_prob.argmax(1) == test.labels).double().mean()
        table.add_row(name, f"{-marginal.mean() / bits:.3f}", f"{-given.mean() / bits:.3f}", f"{right:.1%}")
    return table


def gaussian(images: Tensor) -> MultivariateNormal:
    """The Gaussian with the mean and the full covariance of images + noise: uniform noise adds 1/2 and 1/12."""
    pixels = images.double().flatten(1)  # [N, D]
    return MultivariateNormal(pixels.mean(0) + 0.5, pixels.T.cov(correction=0) + torch.eye(pixels.shape[1]) / 12)


# --- pictures --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def draw_digits(model: RealNVP, test: Split, out: Path, seed: int, columns: int = 16) -> None:
    labels = torch.arange(CLASSES)
    names = [str(y) for y in range(CLASSES)]
    size = model.shape[1:]

    samples = model.sample(CLASSES * columns, labels.repeat_interleave(columns), generator=seed)
    figures.image_grid(
        out / "realnvp_samples.png", samples.reshape(CLASSES, columns, *size), levels=LEVELS, rows=names,
        title="RealNVP: samples of every class", note="One row per label, temperature 1.",
    )  # fmt: skip

    first, last = (torch.stack([test.images[test.labels == y][i] for y in range(CLASSES)]) for i in (0, 1))
    z, z_last = model.encode(first, labels), model.encode(last, labels)  # [10, D]
    angles = torch.linspace(0, math.pi / 2, 11)[1:-1]  # at the ends the path is at the digits themselves
    path = torch.stack([model.decode(a.cos() * z + a.sin() * z_last, labels) for a in angles], 1)  # [10, 9, 1, H, W]
    path = torch.cat([first[:, None], path, last[:, None]], 1).squeeze(2)
    figures.image_grid(
        out / "realnvp_interpolations.png", path, levels=LEVELS, rows=names, real=(0, 10),
        title="RealNVP: from one digit to another",
        note="Framed: held-out digits. Between them: decoded from an arc of latents.",
    )  # fmt: skip

    changed = torch.stack([model.decode(z, y.expand(CLASSES)) for y in labels], 1)  # [10 sources, 10 labels, 1, H, W]
    changed = torch.cat([first[:, None], changed], 1).squeeze(2)
    figures.image_grid(
        out / "realnvp_attributes.png", changed, levels=LEVELS, rows=names, columns=["digit", *names], real=(0,),
        title="RealNVP: another label, the same latent",
        note="Framed: held-out digits, encoded with their label, decoded with every label.",
    )  # fmt: skip
