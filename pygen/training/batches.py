"""Which samples a step sees."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ranks
from ..data import Dataset
from .options import Options


class DataError(Exception):
    """A sample that cannot be read: the data's own sentence about it."""


def read(data: Dataset, indices: Tensor) -> tuple[Tensor, ...]:
    """Samples of a data set; what is wrong with its files shows only now."""
    try:
        return data.batch(indices)
    except ValueError as error:
        raise DataError(str(error)) from error


class Batches:
    """The batch of every step: the epochs one after the other, each in an order of its own, cut into batches.

    A batch may hold the end of one epoch and the beginning of the next. In a process group: this process's part.
    """

    def __init__(self, data: Dataset, options: Options, *, labels: bool) -> None:
        if len(data) == 0:
            raise ValueError("expected data of at least one sample, got none")
        self.data, self.options, self.labels = data, options, labels
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __getitem__(self, step: int) -> tuple[Tensor, ...]:
        share = self.options.batch_size // ranks.world()
        first = step * self.options.batch_size + ranks.rank() * share
        parts: list[Tensor] = []
        for epoch in range(first // len(self.data), (first + share - 1) // len(self.data) + 1):
            start = epoch * len(self.data)
            parts.append(self._order_of(epoch)[max(first - start, 0) : first + share - start])
        return self._read(torch.cat(parts))

    def first(self) -> tuple[Tensor, ...]:
        """The first batch, of all processes; no more than there are samples."""
        return self._read(self._order_of(0)[: self.options.batch_size])

    def _read(self, indices: Tensor) -> tuple[Tensor, ...]:
        batch = read(self.data, indices)
        return batch if self.labels else batch[:1]

    def _order_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.options.seed_of("epoch", epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self.data), generator=generator)
        return self._order
