"""What every data set shares: batches by index, parts, conversions."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from .._arguments import check_integer
from ..nn import normalize

D = TypeVar("D", bound="Dataset")


class Dataset(torch.utils.data.Dataset[tuple[Tensor, ...]]):
    """Samples x, perhaps with labels y, by index: torch's map-style data set, which also reads whole batches.

    `dataset[i]` is (x, y), or (x,) without labels; `dataset.batch(indices)` the same, stacked. A subclass implements
    `_read(indices [B]) -> (x [B, *shape],) or (x, y [B])`.

    shape: of one sample: (C, H, W) for images, (features,) for tables, (1, T) for audio.
    levels: x holds integers 0 .. levels - 1, as uint8; None: x is continuous, float32.
    classes: the labels' names, y being int64 in 0 .. len(classes) - 1; None: no labels.
    """

    def __init__(
        self,
        count: int,
        shape: Sequence[int],
        levels: int | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.shape = tuple(shape)
        self.levels = levels
        self.classes = None if classes is None else tuple(classes)
        self._count = count
        self._chosen: Tensor | None = None  # which of the source's samples are in this part; None: all
        self._conversions: tuple[Callable[[Tensor], Tensor], ...] = ()

    def _read(self, indices: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def __len__(self) -> int:
        return self._count if self._chosen is None else len(self._chosen)

    def __repr__(self) -> str:
        kind = "continuous" if self.levels is None else f"{self.levels} levels"
        labels = "" if self.classes is None else f", {len(self.classes)} classes"
        return f"{type(self).__name__}({len(self)} x {list(self.shape)}, {kind}{labels})"

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        index = operator.index(index)
        return tuple(tensor[0] for tensor in self.batch([index + len(self) if index < 0 else index]))

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """What torch's DataLoader asks for: the samples of a batch at once."""
        return list(zip(*self.batch(indices), strict=True))

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, ...]:
        """The samples `indices`, in that order: x [B, *shape] and, with labels, y [B]."""
        chosen = self._checked(indices)
        x, *y = self._read(chosen if self._chosen is None else self._chosen[chosen])
        for convert in self._conversions:
            x = convert(x)
        return (x, *y) if self.classes is not None else (x,)

    # --- parts and conversions: each returns a data set over the same source ----------------------------------------

    def subset(self: D, indices: Tensor | Sequence[int]) -> D:
        """The samples `indices`, in that order."""
        chosen = self._checked(indices)
        return self._changed(_chosen=chosen if self._chosen is None else self._chosen[chosen])

    def with_levels(self: D, levels: int) -> D:
        """Fewer levels: floor(x levels / self.levels); 32 of 256 are Glow's 5 bits, 2 are black and white."""
        check_integer("levels", levels, 2)
        old = self._levels(f"levels={levels}")
        if levels > old:
            raise ValueError(f"expected levels <= {old}, got {levels}")
        return self._changed(levels=levels, _conversions=(*self._conversions, partial(_requantize, old, levels)))

    def normalized(self: D) -> D:
        """Levels as float32 in [-1, 1] (`pygen.nn.normalize`)."""
        convert = partial(normalize, levels=self._levels("normalize"))
        return self._changed(levels=None, _conversions=(*self._conversions, convert))

    def without_labels(self: D) -> D:
        return self._changed(classes=None)

    def _checked(self, indices: Tensor | Sequence[int]) -> Tensor:
        chosen = torch.as_tensor(indices)
        if chosen.numel() == 0:
            chosen = chosen.long()
        if chosen.dim() != 1 or chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool:
            raise TypeError(f"expected indices as a vector of integers, got {list(chosen.shape)} {chosen.dtype}")
        chosen = chosen.long().cpu()
        if len(chosen):
            low, high = int(chosen.min()), int(chosen.max())
            if low < 0 or high >= len(self):
                raise IndexError(f"expected indices in [0, {len(self)}), got {low if low < 0 else high}")
        return chosen

    def _levels(self, option: str) -> int:
        if self.levels is None:
            raise ValueError(f"{option} is for data of integer levels, such as images; got {self}")
        return self.levels

    def _changed(self: D, **attributes: Any) -> D:
        changed = copy.copy(self)
        vars(changed).update(attributes)
        return changed


def _requantize(old: int, levels: int, x: Tensor) -> Tensor:
    return (x.to(torch.int32) * levels // old).to(torch.uint8)


def full_range(x: Tensor, levels: int) -> Tensor:
    """Integer levels 0 .. levels - 1 as uint8 from black, 0, to white, 255: floor(255 x / (levels - 1))."""
    return (x.to(torch.int32) * 255 // (levels - 1)).to(torch.uint8)


class Arrays(Dataset):
    """Samples x [N, *shape] in an array, in memory or mapped from a file, and labels y [N].

    x: uint8 for levels, else floats, which become float32. source: the file that errors name.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray | None = None,
        *,
        levels: int | None = None,
        classes: Sequence[str] | None = None,
        source: object = "",
    ) -> None:
        super().__init__(len(x), x.shape[1:], levels, classes)
        self._x = np.asarray(x)  # a mapped file as a plain array: batches of it are plain arrays too
        self._y = None if y is None else torch.from_numpy(np.asarray(y).astype(np.int64))
        self._source = source

    def _read(self, indices: Tensor) -> tuple[Tensor, ...]:
        x = np.ascontiguousarray(self._x[indices.numpy()])
        if x.dtype != np.uint8:
            with np.errstate(over="ignore"):  # what float32 cannot hold is not finite, and reported so
                x = x.astype(np.float32, copy=False)
            check_finite(torch.from_numpy(x), lambda row: f"{self._source}: sample {int(indices[row])}")
        return (torch.from_numpy(x),) if self._y is None else (torch.from_numpy(x), self._y[indices])


def check_finite(x: Tensor, name: Callable[[int], str]) -> None:
    """Raises ValueError for a batch x [B, ...] with NaN or infinity; name(row): what the error calls the sample."""
    finite = x.isfinite().flatten(1).all(1)
    if not finite.all():
        raise ValueError(f"{name(int(finite.byte().argmin()))}: expected finite numbers, got NaN or infinity")
