"""`pygen interpolate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import INPUT, failing
from .given import samples

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Dataset
    from ..models import Model

ROWS = 8
LOOK = 128  # samples among which pairs are looked for


@click.command(
    epilog="""\b
Examples:
  pygen interpolate run --out path.png
  pygen interpolate run --seed 3 --pair 0 7 --pair 1 5 --frames 16 --out path.png
  pygen interpolate run --data digits --pair 12 340 --out path.png"""
)
@click.argument("checkpoint", metavar="CKPT", type=click.Path(path_type=Path))
@click.option("--data", "spec", metavar="SPEC", help="Between samples of this data, not the model's own.")
@click.option("--load", "loading", multiple=True, metavar="NAME=VALUE", help="An option of the data; repeatable.")
@click.option(
    "--pair",
    "chosen",
    type=(click.IntRange(min=0), click.IntRange(min=0)),
    multiple=True,
    metavar="I J",
    help=f"From sample I to sample J; repeatable. By default {ROWS} pairs, of one label each.",
)
@click.option("--frames", type=click.IntRange(min=2), default=10, show_default=True, help="With both ends.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the model's own samples.")
@click.option("--out", type=click.Path(path_type=Path), default="path.png", show_default=True, help=".png or .npz.")
@click.option("--device", metavar="D", help="cpu, cuda, cuda:N.  [default: a GPU if there is one]")
def interpolate(
    checkpoint: Path,
    spec: str | None,
    loading: tuple[str, ...],
    chosen: tuple[tuple[int, int], ...],
    frames: int,
    seed: int,
    out: Path,
    device: str | None,
) -> None:
    """Draw paths from one sample to another through the latent space of the model in the folder CKPT.

    Each row is a path. A frame has the label of the end that it is nearer to.
    """
    from .. import models, ranks, sampling
    from . import outputs

    with failing(*INPUT):
        if loading and spec is None:
            raise ValueError("expected --load together with --data, whose option it is")
        model = models.load(checkpoint, device=ranks.local_device(device))
        outputs.check(out, model)
        if not isinstance(model, models.Flow):
            raise NotImplementedError(f"{type(model).__name__} has no latent space to interpolate in")
        source = _Own(model, seed) if spec is None else _Given(model, samples(spec, loading))
        ids = chosen or _of_one_label(source.labels(range(LOOK)))
        first, y_first = source.samples([i for i, _ in ids])
        last, y_last = source.samples([j for _, j in ids])
        y = None if y_first is None or y_last is None else (y_first, y_last)
        x = sampling.interpolate(model, first, last, y, frames).cpu()
    if out.suffix == ".npz":
        outputs.write(out, model, x, None)
    else:
        outputs.write(out, model, x.flatten(0, 1), None, columns=frames)
    click.echo(f"wrote {out}")


def _of_one_label(labels: list[int]) -> list[tuple[int, int]]:
    """The first pairs of samples with one label, none twice."""
    waiting: dict[int, int] = {}
    found = []
    for i, label in enumerate(labels):
        if label in waiting:
            found.append((waiting.pop(label), i))
        else:
            waiting[label] = i
    if not found:
        raise ValueError(
            f"expected two samples of one label among the first {len(labels)}, got none: choose with --pair I J"
        )
    return found[:ROWS]


class _Own:
    """Samples of the model, numbered as in `pygen sample` with that seed."""

    def __init__(self, model: Model, seed: int) -> None:
        self._model, self._seed = model, seed

    def labels(self, ids: range) -> list[int]:
        if self._model.num_classes is None:
            return [0] * len(ids)
        labels: list[int] = self._model.draw_labels(len(ids), generator=self._seed).tolist()
        return labels

    def samples(self, ids: list[int]) -> tuple[Tensor, Tensor | None]:
        import torch

        model = self._model
        where: list[dict[str, Any]] = [{"generator": self._seed, "first_sample": i} for i in ids]
        x = torch.cat([model.sample(1, **place) for place in where])
        return x, None if model.num_classes is None else torch.cat([model.draw_labels(1, **place) for place in where])


class _Given:
    """Samples of data."""

    def __init__(self, model: Model, data: Dataset) -> None:
        self._data, self._device = data, next(model.parameters()).device
        self._labelled = model.num_classes is not None
        if self._labelled and data.classes is None:
            raise ValueError(f"expected data with labels, which the model needs, got {data}")

    def labels(self, ids: range) -> list[int]:
        ids = range(min(len(ids), len(self._data)))
        labels: list[int] = self._data.batch(ids)[1].tolist() if self._labelled else [0] * len(ids)
        return labels

    def samples(self, ids: list[int]) -> tuple[Tensor, Tensor | None]:
        x, *y = (part.to(self._device) for part in self._data.batch(ids))
        return x, y[0] if self._labelled else None
