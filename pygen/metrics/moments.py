"""Mean and covariance of features that come in batches, and the files that peers keep them in."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from .. import files, ops, ranks
from .._arguments import check_integer
from ..data._files import existing, npz
from .frechet import checked_statistics

HELD = 256  # features that are added to the sums at once: these matrices take longer to pass through than small batches


class StreamingMoments:
    """Mean and covariance of features that come in batches, in two d x d float64 matrices at most.

    The mean of the first samples is taken off all features, so that squares do not cancel, and so their products may be
    float32's (`pygen.ops.accumulate_moments`): distances come out as from two passes in float64, for means of up to 1e4
    standard deviations, as long as the first mean is within some of the others'; one that is k standard deviations off
    costs float32 features k^2 times the rounding. 256 samples are added at a time, and fewer wait until a result is
    asked for: the sizes of smaller batches make no difference.

    d: number of features. device: where the sums are; None: where the first batch is.
    """

    def __init__(self, d: int, *, device: torch.device | str | None = None) -> None:
        check_integer("d", d, 1)
        self.d, self.count = d, 0
        self._device = None if device is None else torch.device(device)
        self._added: tuple[Tensor, Tensor, Tensor] | None = None  # shift [d], total [d], scatter [d, d], lower triangle
        self._held: Tensor | None = None  # [HELD, d], of which the first _rows are still to be added
        self._rows = 0

    def __repr__(self) -> str:
        return f"StreamingMoments(d={self.d}, count={self.count})"

    def update(self, features: Tensor) -> None:
        """Adds features [N, d]: float32, float64, or half precision; without their gradient.

        Raises ValueError for shapes, TypeError for dtypes. NaN is not looked for: it shows in the mean.
        """
        if not isinstance(features, Tensor):
            raise TypeError(f"expected features as a tensor [N, {self.d}], got {type(features).__name__}")
        features = features.detach()
        if features.dim() != 2 or features.shape[1] != self.d:
            raise ValueError(f"expected features [N, {self.d}], got {tuple(features.shape)}")
        if not features.is_floating_point():
            raise TypeError(f"expected features of a floating-point dtype, got {features.dtype}")
        if len(features) == 0:
            return
        if self._device is None:
            self._device = features.device
        features = features.to(self._device)
        if self._held is None or self._held.dtype != features.dtype:
            self._flush()
            self._held = features.new_empty(HELD, self.d)
        self.count += len(features)
        while len(features):
            if self._rows == 0 and len(features) >= HELD:
                part = features[: len(features) // HELD * HELD]
                self._add(part)
            else:
                part = features[: HELD - self._rows]
                self._held[self._rows : self._rows + len(part)] = part
                self._rows += len(part)
                if self._rows == HELD:
                    self._flush()
            features = features[len(part) :]

    def _add(self, features: Tensor) -> None:
        if self._added is None:
            self._added = self._fresh(features.mean(0, dtype=torch.float64).nan_to_num(0, 0, 0))
        ops.accumulate_moments(features, *self._added)

    def _flush(self) -> None:
        if self._rows and self._held is not None:
            self._add(self._held[: self._rows])
            self._rows = 0

    @property
    def _sums(self) -> tuple[Tensor, Tensor, Tensor] | None:
        self._flush()
        return self._added

    @_sums.setter
    def _sums(self, sums: tuple[Tensor, Tensor, Tensor] | None) -> None:
        self._added, self._rows = sums, 0
        self._device = self._device if sums is None else sums[0].device

    def _fresh(self, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return shift, torch.zeros_like(shift), shift.new_zeros(self.d, self.d)

    def _enough(self, ddof: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        if self._sums is None or self.count <= ddof:
            raise ValueError(f"expected at least {ddof + 1} samples, got {self.count}")
        return self._sums

    def mean(self) -> Tensor:
        """[d] float64. Raises ValueError before the first sample."""
        shift, total, _ = self._enough()
        return shift + total / self.count

    def covariance(self, ddof: int = 1) -> Tensor:
        """[d, d] float64, divided by count - ddof: 1 as numpy.cov and most peers do, 0 as the StyleGAN metrics do.

        Raises ValueError for count <= ddof.
        """
        check_integer("ddof", ddof, 0)
        _, total, scatter = self._enough(ddof)
        lower = scatter.clone()
        _rank_one(lower, total, -1 / self.count)
        lower = lower.tril_().div_(self.count - ddof)
        return lower + lower.tril(-1).mT

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance, what `frechet_distance` takes. Raises ValueError for fewer than 2 samples."""
        return self.mean(), self.covariance()

    def merge(self, other: StreamingMoments) -> None:
        """Adds what another one has seen: the same, to rounding, as if this one had, in any order."""
        if not isinstance(other, StreamingMoments):
            raise TypeError(f"expected StreamingMoments to merge, got {type(other).__name__}")
        if other.d != self.d:
            raise ValueError(f"expected moments of {self.d} features, got {other.d}")
        if other._sums is None:
            return
        if self._sums is None:
            self._sums = self._fresh(other._sums[0].to(self._device or other._sums[0].device, copy=True))
        shift, total, scatter = self._sums
        other_total, other_scatter = other._about(shift)
        total += other_total
        scatter += other_scatter
        self.count += other.count

    def _about(self, shift: Tensor) -> tuple[Tensor, Tensor]:
        """total and scatter as if this shift had been taken off, in new tensors."""
        own, total, scatter = (part.to(shift.device) for part in self._enough())
        scatter = scatter.clone()
        step = own - shift + total / self.count  # to the mean
        _rank_one(scatter, total, -1 / self.count)
        _rank_one(scatter, step, self.count)
        return self.count * step, scatter

    def reduce(self) -> None:
        """Under torch.distributed: every process gets what all have seen. Does nothing in a single process.

        All processes must call it; the result is the same on each, and independent of their number to rounding.
        """
        if ranks.world() == 1:
            return
        seen: list[Any] = [None] * ranks.world()
        distributed.all_gather_object(seen, (self.count, None if self._sums is None else self._sums[0].cpu()))
        shifts = [shift for _, shift in seen if shift is not None]
        if not shifts:
            return
        device = self._sums[0].device if self._sums is not None else self._device or torch.device("cpu")
        sums = self._fresh(shifts[0].to(device))
        if self._sums is not None:
            sums = (sums[0], *self._about(sums[0]))
        for part in sums[1:]:
            ranks.total(part)
        self._sums, self.count = sums, sum(count for count, _ in seen)

    def state_dict(self) -> dict[str, Any]:
        """count, shift, total and scatter, for torch.save."""
        shift, total, scatter = self._sums or self._fresh(torch.zeros(self.d, dtype=torch.float64))
        return {"count": self.count, "shift": shift.clone(), "total": total.clone(), "scatter": scatter.tril()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`. Raises ValueError for keys and shapes that do not fit, before it changes any."""
        names, d = ("shift", "total", "scatter"), self.d
        if state.keys() != {"count", *names}:
            raise ValueError(f"expected the keys count, {', '.join(names)}, got {', '.join(map(str, state)) or 'none'}")
        check_integer("count", state["count"], 0)
        for name, shape in zip(names, ((d,), (d,), (d, d)), strict=True):
            if not isinstance(state[name], Tensor) or tuple(state[name].shape) != shape:
                got = tuple(state[name].shape) if isinstance(state[name], Tensor) else type(state[name]).__name__
                raise ValueError(f"expected {name} {shape}, got {got}")
        device = self._device or state["shift"].device
        shift, total, scatter = (state[name].to(device, torch.float64, copy=True) for name in names)
        self.count = int(state["count"])
        self._sums = (shift, total, scatter) if self.count else None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes mean and covariance as `save_statistics` does, with the count."""
        mu, sigma = self.statistics()
        save_statistics(path, mu, sigma, count=self.count)


def _rank_one(matrix: Tensor, v: Tensor, factor: float) -> None:
    matrix.addr_(v, v, alpha=factor)


# --- files ------------------------------------------------------------------------------------------------------------


def save_statistics(path: str | os.PathLike[str], mu: Any, sigma: Any, *, count: int | None = None) -> None:
    """Writes mu [d] and sigma [d, d], float64, to an .npz that pytorch-fid and clean-fid read.

    count: of samples, kept beside them. The file is whole at every moment. Raises ValueError for another suffix, and as
    `frechet_distance` for what is no mean and covariance.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: expected a name that ends in .npz")
    mean, covariance = checked_statistics(mu, sigma)
    arrays = {"mu": mean.cpu().numpy(), "sigma": covariance.cpu().numpy()}
    if count is not None:
        arrays["count"] = np.array(count)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    files.write(path, file.getvalue())


def load_statistics(path: str | os.PathLike[str], *, keys: tuple[str, str] = ("mu", "sigma")) -> tuple[Tensor, Tensor]:
    """mu [d] and sigma [d, d] float64 of an .npz with these keys, as pytorch-fid, clean-fid, TTUR and ADM write them.

    keys: ADM's spatial statistics are ("mu_s", "sigma_s"), averaged ones of some projects ("avg_mu", "avg_sigma").

    Raises ValueError, naming the file, for one that is no .npz, without the keys (it lists those there are), or whose
    arrays do not fit each other; OSError for one that cannot be read.
    """
    path = existing(path)
    with npz(path, f"an .npz with the arrays {' and '.join(keys)}") as archive:
        if any(key not in archive for key in keys):
            raise ValueError(f"the arrays {', '.join(archive)}")
        arrays = [archive[key] for key in keys]
    for key, array in zip(keys, arrays, strict=True):
        if array.dtype.kind != "f":
            raise ValueError(f"{path}: expected {key} of floating-point numbers, got {array.dtype}")
    mu, sigma = (torch.from_numpy(array.astype(np.float64)) for array in arrays)
    if mu.dim() != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(
            f"{path}: expected {keys[0]} [d] and {keys[1]} [d, d], got {tuple(mu.shape)} and {tuple(sigma.shape)}"
        )
    return mu, sigma
