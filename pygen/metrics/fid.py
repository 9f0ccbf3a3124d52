"""From two sets of samples, wherever they are, to the Frechet distance between their features."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed

from .. import ranks
from .features import Extractor, Source, extract_features
from .frechet import Array, FrechetReference, frechet_distance, frechet_distance_from_features
from .inception import Inception
from .moments import StreamingMoments


class FrechetSide:
    """One side of a Frechet distance: features as long as they are few, then their mean and covariance.

    Up to d samples of d features stay as they are, for their covariance is singular, and distances between features
    need none; from d + 1 on `StreamingMoments` takes them. So no side takes more than two d x d matrices.

    d: number of features; 0 before the first. device: where the sums are; None: where the first features are.
    """

    def __init__(self, *, device: torch.device | str | None = None) -> None:
        self.d, self._count = 0, 0
        self._device = device
        self._rows: list[Tensor] = []
        self._moments: StreamingMoments | None = None
        self._given: FrechetReference | None = None

    @classmethod
    def from_features(cls, batches: Iterable[Tensor], *, device: torch.device | str | None = None) -> FrechetSide:
        """Of batches of features [n, d]: of this process's, where several are at it, each with its own."""
        side = cls(device=device)
        for features in batches:
            side.update(features)
        side.reduce()
        return side

    @classmethod
    def from_statistics(cls, mu: Array, sigma: Array, *, count: int | None = None) -> FrechetSide:
        """Of a mean [d] and a covariance [d, d], and of how many samples, if that is known.

        Raises as `frechet_distance` does for what are no statistics.
        """
        side = cls()
        side._given = FrechetReference(mu, sigma)
        side.d, side._count = len(side._given.mu), count or 0
        return side

    def __repr__(self) -> str:
        return f"FrechetSide(d={self.d}, count={self.count}, {'features' if self._rows else 'statistics'})"

    @property
    def count(self) -> int | None:
        """Samples, of all processes once `reduce` was called; None where statistics were given without it."""
        return None if self._given is not None and self._count == 0 else self._count

    def update(self, features: Tensor) -> None:
        """Adds features [n, d], floating point, without their gradient. Raises ValueError for another d."""
        if self._given is not None:
            raise ValueError("expected a side that is made of features, got one of statistics")
        if features.dim() != 2 or features.shape[1] != (self.d or features.shape[1]):
            raise ValueError(f"expected features [n, {self.d or 'd'}], got {tuple(features.shape)}")
        self.d = features.shape[1]
        self._count += len(features)
        if self._moments is not None:
            self._moments.update(features)
        else:
            self._rows.append(features.detach().to(self._device or features.device))
            if self._count > self.d:
                self._to_moments()

    def _to_moments(self) -> StreamingMoments:
        if self._moments is None:
            self._moments = StreamingMoments(self.d, device=self._device)
            if self._rows:
                self._moments.update(torch.cat(self._rows))
            self._rows = []
        return self._moments

    def reduce(self) -> None:
        """Under torch.distributed: every process gets what all have seen; all must call it."""
        if ranks.world() == 1:
            return
        seen: list[Any] = [None] * ranks.world()
        distributed.all_gather_object(seen, (self._count, self.d))
        self._count, self.d = sum(count for count, _ in seen), max(d for _, d in seen)
        if self._count > self.d:
            self._to_moments().reduce()
        else:
            distributed.all_gather_object(seen, [rows.cpu() for rows in self._rows])
            self._rows = [rows.to(self._device or "cpu") for part in seen for rows in part]

    def features(self) -> Tensor | None:
        """[count, d], if they were kept."""
        return torch.cat(self._rows) if self._rows else None

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean [d] and covariance [d, d] (divided by count - 1), float64. Raises ValueError for one sample, or none."""
        if self._given is not None:
            return self._given.mu, self._given.sigma
        if self._count < 2:
            raise ValueError(f"expected at least 2 samples, got {self._count}")
        features = self.features()
        if features is None:
            return self._to_moments().statistics()
        reference = FrechetReference.from_features(features)
        return reference.mu, reference.sigma

    def distance(self, other: FrechetSide, *, accurate: bool = False) -> float:
        """The Frechet distance to another side; a side of any number of samples has the distance 0 to itself.

        accurate: as in `frechet_distance`, where both sides are statistics; others are as accurate anyway.
        Raises ValueError for another d and for fewer than 2 samples.
        """
        if self.d != other.d:
            raise ValueError(f"expected sides of one number of features, got {self.d} and {other.d}")
        few, more = sorted((self, other), key=lambda side: not side._rows)
        features, others = few.features(), more.features()
        if features is None:
            mu, sigma = self.statistics()
            theirs = (part.to(mu.device) for part in other.statistics())
            return float(frechet_distance(mu, sigma, *theirs, accurate=accurate))
        reference = FrechetReference(*more.statistics()) if others is None else others.double()
        return float(frechet_distance_from_features(features.double(), reference))


def compute_fid(
    source1: Source | FrechetSide,
    source2: Source | FrechetSide,
    extractor: Extractor | None = None,
    *,
    batch_size: int = 50,
    workers: int | None = None,
    accurate: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> float:
    """The Frechet distance between the features of two sources: FID, if the extractor is `Inception`.

    source1, source2: whatever `extract_features` takes, or a `FrechetSide`, such as one of statistics in a file.
    extractor: any module or function of a batch of samples; None: `Inception()`, which needs its weights.
    batch_size, workers, advance: as in `extract_features`; accurate: as in `frechet_distance`.

    Under torch.distributed all processes must call it; each extracts its part and gets the result.
    Raises what these raise, and ValueError for fewer than 2 samples.
    """
    if extractor is None and not (isinstance(source1, FrechetSide) and isinstance(source2, FrechetSide)):
        extractor = Inception()

    def side(source: Source | FrechetSide) -> FrechetSide:
        if isinstance(source, FrechetSide):
            return source
        assert extractor is not None
        options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "advance": advance}
        return FrechetSide.from_features(extract_features(source, extractor, **options))

    return side(source1).distance(side(source2), accurate=accurate)
