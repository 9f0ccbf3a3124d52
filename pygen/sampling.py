"""Many samples: by all processes of a group, chunk by chunk, and paths between two of them; densities of the plane."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed

from . import ranks
from .data import Dataset
from .models import DDPM, Autoregressive, Flow, Model


def in_batches(
    model: Model, n: int, draw: Callable[..., Tensor], advance: Callable[[int], None] = lambda done: None
) -> Tensor | None:
    """Samples 0 .. n - 1, which draw(first, count, **options) makes for batches: the same for any number of processes.

    Every process draws whole batches by turns. The samples [n, ...] come to rank 0 (None elsewhere), on the CPU.
    advance: called on every rank with how many samples are new, as all processes have about as many.
    """
    parts = []
    size = min(batch_of(model), model.CHUNK * -(-n // (ranks.world() * model.CHUNK)))  # something for every process
    for first in range(ranks.rank() * size, n, ranks.world() * size):
        count = min(ranks.world() * size, n - first)
        told = _Told(count, advance)
        options = {"progress": told} if isinstance(model, Autoregressive | DDPM) else {}
        parts.append(draw(first, min(size, n - first), **options).cpu())
        told(1, 1)
    if ranks.world() == 1:
        return torch.cat(parts)
    gathered: list[list[Tensor]] | None = [[] for _ in range(ranks.world())] if ranks.rank() == 0 else None
    distributed.gather_object(parts, gathered)
    if gathered is None:
        return None
    return torch.cat([gathered[i % ranks.world()][i // ranks.world()] for i in range(math.ceil(n / size))])


class _Told:
    """Tells of how many of `count` samples are done when some of the work is."""

    def __init__(self, count: int, advance: Callable[[int], None]) -> None:
        self._count, self._advance, self._done = count, advance, 0

    def __call__(self, done: int, total: int) -> None:
        now = self._count * done // total
        self._advance(now - self._done)
        self._done = now


def batch_of(model: Model) -> int:
    """How many samples to draw in one call."""
    return model.BATCH or model.CHUNK


def sample(
    model: Model,
    n: int,
    y: Tensor | None = None,
    *,
    seed: int,
    temperature: float = 1.0,
    advance: Callable[[int], None] = lambda done: None,
) -> Tensor | None:
    """`model.sample` by all processes together."""

    def draw(first: int, count: int, **options: Any) -> Tensor:
        labels = None if y is None else y[first : first + count]
        return model.sample(count, labels, generator=seed, first_sample=first, temperature=temperature, **options)

    return in_batches(model, n, draw, advance)


class Samples(Dataset):
    """The first n samples that a model draws with a seed, labels drawn too, as a data set; each when it is asked for.

    They come in batches of `batch_of(model)`: read them in batches of multiples of it, in order.
    """

    def __init__(self, model: Model, n: int, *, seed: int) -> None:
        super().__init__(n, model.shape, model.levels)
        self.model, self._seed = model, seed

    def _read(self, indices: Tensor) -> tuple[Tensor, ...]:
        size = batch_of(self.model)
        chunks, places = torch.unique(indices // size, return_inverse=True)
        parts = [self.model.sample(size, generator=self._seed, first_sample=size * chunk) for chunk in chunks.tolist()]
        return (torch.cat(parts).cpu()[size * places + indices % size],)


@torch.no_grad()
def interpolate(model: Flow, first: Tensor, last: Tensor, y: tuple[Tensor, Tensor] | None, frames: int) -> Tensor:
    """Frames [N, frames, *shape] from samples `first` to samples `last` [N, *shape], whose labels are the two of y.

    Frames lie on an arc of latents, cos(t) z_first + sin(t) z_last with t in [0, pi / 2]: the latents of what the model
    samples are normal, and so they stay along an arc. A frame has the label of the end that it is nearer to.
    """
    y_first, y_last = y or (None, None)
    z, z_last = model.encode(first, y_first), model.encode(last, y_last)
    path = []
    for i in range(frames):
        t = math.pi / 2 * i / (frames - 1)
        path.append(model.decode(math.cos(t) * z + math.sin(t) * z_last, y_first if 2 * i < frames else y_last))
    return torch.stack(path, 1)


@torch.no_grad()
def log_density(model: Model, box: tuple[float, float, float, float], side: int = 200) -> Tensor:
    """log p of a model of points of the plane on a grid [side, side] over a box (left, right, bottom, top), on the CPU;
    rows go up."""
    where = next(model.parameters()).device
    across, up = torch.linspace(*box[:2], side, device=where), torch.linspace(*box[2:], side, device=where)
    grid = torch.stack(torch.meshgrid(across, up, indexing="xy"), -1).reshape(-1, 2)
    return torch.cat([model.log_prob(points) for points in grid.split(10_000)]).reshape(side, side).cpu()
