"""A gated PixelCNN on handwritten digits: likelihood, classes, outliers, sampling, what a pixel depends on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .. import backends, figures, random
from ..data import Split, digits, load
from ..data.digits import CLASSES, LEVELS
from ..models import Autoregressive, GatedPixelCNN, PixelCNN, outlier_score
from ..models.naive import naive_sample
from ..training import Options
from .fit import fit

STEPS = 400


def run(out: Path, seed: int, steps: int | None, console: Console) -> None:
    train, test = digits()
    model = train_digits(steps or STEPS, seed, console)
    console.print(scores(model, train, test))
    console.print(outliers(model, test, seed))
    console.print(speed(model, seed))
    draw(model, test, out, seed)
    draw_fields(out)
    console.print(f"Pictures: {', '.join(str(path) for path in sorted(out.glob('pixelcnn_*.png')))}", soft_wrap=True)


def train_digits(steps: int, seed: int, console: Console) -> GatedPixelCNN:
    model = GatedPixelCNN((1, 8, 8), LEVELS, num_classes=CLASSES, hidden=32, layers=4)
    options = Options(steps=steps, batch_size=128, lr=4e-3, ema=0.98, seed=seed)
    return fit(model, load("digits"), options, console, "GatedPixelCNN, digits")[0]


# --- how good it is --------------------------------------------------------------------------------------------------


@torch.no_grad()
def scores(model: GatedPixelCNN, train: Split, test: Split) -> Table:
    """Held-out likelihood and Bayes classification, beside pixels that are independent given the label."""
    bits = math.prod(model.shape) * math.log(2)
    table = Table(title=f"{len(test.images)} held-out digits x with labels y", title_justify="left")
    table.add_column("model")
    for column in ("bits/dim, p(x)", "bits/dim, p(x|y)", "accuracy, p(y|x)"):
        table.add_column(column, justify="right")
    alone = independent(train, test)
    for name, joint in (("independent pixels", alone), ("GatedPixelCNN", model.class_log_prob(test.images))):
        marginal = joint.logsumexp(1) - math.log(CLASSES)
        given = joint.gather(1, test.labels[:, None])
        right = (joint.argmax(1) == test.labels).double().mean()
        table.add_row(name, f"{-marginal.mean() / bits:.3f}", f"{-given.mean() / bits:.3f}", f"{right:.1%}")
    return table


def independent(train: Split, test: Split) -> Tensor:
    """log p(x | y) [N, CLASSES] of a histogram of levels for every pixel and class, each level seen once more."""
    joint = []
    for y in range(CLASSES):
        seen = torch.nn.functional.one_hot(train.images[train.labels == y].long(), LEVELS).sum(0) + 1.0
        log_p = (seen / seen.sum(-1, keepdim=True)).log()  # [1, 8, 8, LEVELS]
        picked = log_p.expand(len(test.images), -1, -1, -1, -1).gather(-1, test.images.long()[..., None])
        joint.append(picked.sum((1, 2, 3, 4)))
    return torch.stack(joint, 1)


def outliers(model: GatedPixelCNN, test: Split, seed: int) -> Table:
    """How well -log p(x) tells held-out digits from what are none: area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    shape = test.images.shape
    order = torch.randperm(math.prod(shape[1:]), generator=torch.Generator().manual_seed(seed))
    others = {
        "noise": random.integers(LEVELS, tuple(shape), generator=seed),
        "the same pixels, permuted": test.images.flatten(1)[:, order].view(shape),
        "upside down": test.images.flip(2),
    }
    inside = outlier_score(model, test.images)
    table = Table(title="Outliers: bits per dimension as a score", title_justify="left")
    for column in ("against held-out digits", "bits/dim", "ROC-AUC"):
        table.add_column(column, justify="left" if column.startswith("against") else "right")
    table.add_row("held-out digits themselves", f"{inside.mean():.3f}", "")
    for name, x in others.items():
        score = outlier_score(model, x)
        truth = torch.cat([torch.zeros(len(inside)), torch.ones(len(score))])
        area = roc_auc_score(truth.numpy(), torch.cat([inside, score]).numpy())
        table.add_row(name, f"{score.mean():.3f}", f"{area:.4f}")
    return table


def speed(model: GatedPixelCNN, seed: int, n: int = 64) -> Table:
    """Seconds for a batch of digits: the net for every pixel, cached features in plain PyTorch, the native sampler."""
    labels = torch.arange(n) % CLASSES
    blank = torch.zeros(n, *model.shape, dtype=torch.int64)

    def cached() -> Tensor:
        with backends.use("reference"):
            return model.sample(n, labels, generator=seed)

    ways: dict[str, Callable[[], Tensor]] = {
        "the net once for every pixel": lambda: naive_sample(model, blank, blank.bool(), labels, seed=seed),
        "cached features, pygen's PyTorch reference": cached,
        "cached features, native": lambda: model.sample(n, labels, generator=seed),
    }
    table = Table(title=f"Sampling {n} digits", title_justify="left")
    for column in ("how", "seconds", "pixels that differ"):
        table.add_column(column, justify="left" if column == "how" else "right")
    first: Tensor | None = None
    for name, draw in ways.items():
        draw()  # what is only paid once
        start = time.perf_counter()
        x = draw().long()
        seconds = time.perf_counter() - start
        first = x if first is None else first
        table.add_row(name, f"{seconds:.3g}", str(int((x != first).sum())))
    return table


# --- pictures --------------------------------------------------------------------------------------------------------


def draw(model: GatedPixelCNN, test: Split, out: Path, seed: int, columns: int = 16) -> None:
    labels, names = torch.arange(CLASSES), [str(y) for y in range(CLASSES)]
    size = model.shape[1:]
    samples = model.sample(CLASSES * columns, labels.repeat_interleave(columns), generator=seed)
    figures.image_grid(
        out / "pixelcnn_samples.png", samples.reshape(CLASSES, columns, *size), levels=LEVELS, rows=names,
        title="GatedPixelCNN: samples of every class", note="One row per label, temperature 1.",
    )  # fmt: skip

    whole = torch.stack([test.images[test.labels == y][0] for y in range(CLASSES)])  # [10, 1, 8, 8]
    known = torch.zeros(8, 8, dtype=torch.bool)
    known[:4] = True
    drawn = 9
    x = whole.repeat_interleave(drawn, 0)
    ends = model.complete(x, known, labels.repeat_interleave(drawn), generator=seed).view(CLASSES, drawn, 1, 8, 8)
    half = whole.where(known, 0)
    grid = torch.cat([whole[:, None], half[:, None], ends], 1).squeeze(2)
    figures.image_grid(
        out / "pixelcnn_completions.png", grid, levels=LEVELS, rows=names, real=(0,),
        columns=["digit", "upper half", *[""] * drawn], title="GatedPixelCNN: lower halves, given the upper ones",
        note="Framed: held-out digits. Each is completed nine times, given its label.",
    )  # fmt: skip


def draw_fields(out: Path, size: int = 21) -> None:
    """Which pixels the prediction of one depends on: a gradient that is not zero."""
    row, column = size - 4, size // 2 - 3
    fields = []
    depths = (1, 3, 6)
    models: list[Autoregressive] = [PixelCNN((1, size, size), 2, hidden=8, blocks=depth) for depth in depths]
    models += [GatedPixelCNN((1, size, size), 2, hidden=8, layers=depth) for depth in depths]
    for model in models:
        x = torch.randn(1, 1, size, size, dtype=torch.float64, requires_grad=True)
        model.double()._features(x, None)[0, :, row, column].sum().backward()
        assert x.grad is not None
        field = 2 * (x.grad[0, 0] != 0).long()
        field[row, column] = 3
        fields.append(field)
    figures.image_grid(
        out / "pixelcnn_fields.png", torch.stack(fields).view(2, 3, size, size), levels=4,
        rows=["PixelCNN", "Gated"], columns=["1 layer", "3 layers", "6 layers"],
        title="What the prediction of a pixel (black) depends on",
        note="After a first layer of 7x7. Up and to the right, PixelCNN has a blind spot.", cell=2.0,
    )  # fmt: skip
