"""What `pygen fid` compares: images, statistics, features, data, samples of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import data, models, ranks
from ..data._files import existing, npz
from ..data.arrays import read_npy
from ..data.cifar import find_cifar
from ..data.idx import find_idx
from ..metrics.features import ImageFiles
from ..metrics.fid import FrechetSide
from ..metrics.moments import load_statistics
from ..models.checkpoint import CONFIG
from ..sampling import Samples
from .given import pairs, samples

_FEATURES = ("features", "feats", "x", "arr_0")  # names in an .npz; clean-fid's is feats
_IMAGES = {"x", "images", "samples", "arr_0", "x_train"}  # what pygen.data.arrays looks for
ROWS = 4096  # features read at once

Source = FrechetSide | ImageFiles | data.Dataset


@dataclass(frozen=True)
class Reading:
    """How A and B are read. kind: of extractor: inception, classifier, features (none), or auto."""

    kind: str
    loading: Sequence[str]
    samples: int
    seed: int
    device: torch.device


def open_side(spec: str, how: Reading) -> Source:
    """What a spec names; only statistics and features are read now. Raises ValueError and OSError, which name it."""
    path = Path(spec).expanduser()
    if path.is_dir() and (path / CONFIG).exists():
        return _suiting(spec, Samples(models.load(path, device=how.device), how.samples, seed=how.seed), how)
    if path.suffix == ".npz" and path.is_file() and _is_statistics(path, how):
        if how.kind == "classifier":
            raise ValueError(f"{spec}: expected samples, from which a classifier makes features, got statistics")
        return _statistics(path)
    if how.kind == "features" and path.suffix in (".npy", ".npz"):
        return FrechetSide.from_features(_rows(existing(path)), device=how.device)
    pictures = path.is_dir() and not find_idx(path) and not find_cifar(path)
    if pictures and how.kind in ("inception", "auto") and not how.loading:
        return _pictures(path)
    name, split = split_of(spec)
    if split is None:
        return _suiting(spec, samples(name, how.loading, "train"), how)
    return _suiting(spec, data.load(name, **{**(pairs("--load", how.loading) or {}), "split": split}), how)


def split_of(spec: str) -> tuple[str, str | None]:
    """The name in a spec such as digits:test, and the split, if it has one."""
    name, _, split = spec.rpartition(":")
    return (name, split) if split in ("train", "test") and not Path(spec).exists() else (spec, None)


def _suiting(spec: str, source: data.Dataset, how: Reading) -> data.Dataset:
    if how.kind == "features":
        if len(source.shape) != 1 or source.levels is not None:
            raise ValueError(f"{spec}: expected features [N, d] with --features, got {source}")
    elif len(source.shape) != 3 or source.levels is None:
        raise ValueError(f"{spec}: expected images, got {source}; --features compares samples as they are")
    return source


def _pictures(folder: Path) -> ImageFiles:
    """Those in a folder itself, as pytorch-fid takes them; where there are none, those in the folders below it."""
    below = ImageFiles(folder, recursive=True)
    return ImageFiles(folder) if any(Path(file).parent == folder for file in below.files) else below


def _is_statistics(path: Path, how: Reading) -> bool:
    """Whether an .npz holds statistics, or at least nothing else that could be meant."""
    with npz(path, "an .npz of arrays") as arrays:
        names = set(arrays)
    return bool(names & {"mu", "sigma"}) or (how.kind != "features" and not names & _IMAGES)


def _statistics(path: Path) -> FrechetSide:
    mu, sigma = load_statistics(path)
    with npz(path, "the number of samples as count") as arrays:
        count = int(arrays["count"]) if "count" in arrays else None
    try:
        return FrechetSide.from_statistics(mu, sigma, count=count)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _rows(path: Path) -> Iterator[Tensor]:
    """This process's part of the features in a file. Raises ValueError for NaN, which it counts."""
    x = read_npy(path) if path.suffix == ".npy" else _read_npz(path)
    if x.ndim != 2 or x.dtype.kind != "f" or x.dtype.itemsize > 8:
        raise ValueError(f"{path}: expected features [N, d] of floating-point numbers, got {x.dtype} {list(x.shape)}")
    wrong = 0
    for first in range(0, len(x), ROWS):
        rows = torch.from_numpy(np.array(x[first : first + ROWS]))
        wrong += len(rows) - int(rows.isfinite().all(1).sum())
        if first // ROWS % ranks.world() == ranks.rank():
            yield rows
    if wrong:
        raise ValueError(f"{path}: expected finite features, got NaN or infinity in {wrong} of {len(x)} rows")


def _read_npz(path: Path) -> np.ndarray:
    with npz(path, "an .npz of features") as arrays:
        names = [name for name in _FEATURES if name in arrays]
        if not names:
            raise ValueError(f"{', '.join(arrays) or 'nothing'}, and none of {', '.join(_FEATURES)}")
        return np.asarray(arrays[names[0]])
