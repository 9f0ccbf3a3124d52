"""Arrays in .npy and .npz files; never what needs pickle."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ._files import check_split, existing, no_held_out, npz, part, reading
from .dataset import Arrays

_NAMES = {"x": ("x", "images", "samples", "arr_0"), "y": ("y", "labels", "arr_1"), "levels": ("levels",)}
_MAX_LABEL = 65_535


def arrays(path: str | os.PathLike[str], *, split: str = "train", held_out: float | None = None) -> Arrays:
    """Images, or a table, perhaps with labels.

    path: .npy: one array, mapped into memory. .npz: an array x (or images, samples, arr_0) and perhaps labels y (or
    labels, or arr_1); or x_train and x_test, y_train and y_test, as Keras names them.
    held_out: the fraction for split="test" where there is no x_test; default 0.1.

    x is uint8 [N, C, H, W], [N, H, W, C] (C = 1 or 3; the former if both fit) or [N, H, W] for images of 256 levels, or
    floats [N, D] for a table, which become float32. Labels are integers [N] from 0 on. Images in an .npz have as many
    levels as its number `levels` says, if it is there: `pygen sample` writes it.
    """
    check_split(split)
    path = existing(path)
    own_split = False
    if path.suffix.lower() == ".npy":
        found = {"x": read_npy(path)}
    else:
        found, own_split = _read_npz(path, split)
    x, levels = _samples(path, found["x"])
    if "levels" in found:
        levels = _levels(path, found.pop("levels"), x)
    labels = {name: _labels(path, y) for name, y in found.items() if name != "x"}
    y = labels.get("y")
    if y is not None and len(y) != len(x):
        raise ValueError(f"{path}: expected {len(x)} labels, as many as samples, got {len(y)}")
    classes = None if y is None else [str(i) for i in range(1 + max(int(y.max()) for y in labels.values()))]
    dataset = Arrays(x, y, levels=levels, classes=classes, source=path)
    if not own_split:
        return part(dataset, split, held_out, path)
    no_held_out(held_out, path)
    return dataset


def read_npy(path: Path) -> np.ndarray:
    with reading(path, "an array (.npy)"):
        x = np.lib.format.open_memmap(path, mode="r")
        if path.stat().st_size != x.offset + x.nbytes:
            raise ValueError("more than one array")
    return x


def _read_npz(path: Path, split: str) -> tuple[dict[str, np.ndarray], bool]:
    """x and, if they are there, y, y_other (the labels of the other split) and levels; whether the file has splits."""
    with npz(path, "arrays (.npz)") as file:
        own_split = "x_train" in file
        if own_split:
            other = "test" if split == "train" else "train"
            names = {"x": f"x_{split}", "y": f"y_{split}", "y_other": f"y_{other}", "levels": "levels"}
        else:
            names = {key: next((name for name in known if name in file), "") for key, known in _NAMES.items()}
        if names["x"] not in file:
            raise ValueError(f"{', '.join(file) or 'nothing'}, and none of {', '.join(_NAMES['x'])}, x_{split}")
        found = {key: file[name] for key, name in names.items() if name in file}
        if wrong := [names[key] for key, array in found.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{wrong[0]} that is no array")
    return found, own_split


def _samples(path: Path, x: np.ndarray) -> tuple[np.ndarray, int | None]:
    """The samples [N, *shape] and their levels."""
    if x.size == 0:
        raise ValueError(f"{path}: expected at least one sample, got an empty array {list(x.shape)}")
    if x.dtype == np.uint8:
        if x.ndim == 3:
            return x[:, None], 256
        if x.ndim == 4 and x.shape[1] in (1, 3):
            return x, 256
        if x.ndim == 4 and x.shape[3] in (1, 3):
            return np.moveaxis(x, 3, 1), 256
    if x.dtype.kind == "f" and x.ndim == 2:
        return x, None
    raise ValueError(
        f"{path}: expected images uint8 [N, C, H, W], [N, H, W, C] (C = 1 or 3) or [N, H, W], or a table of floats "
        f"[N, D], got {x.dtype} {list(x.shape)}"
    )


def _levels(path: Path, levels: np.ndarray, x: np.ndarray) -> int:
    if levels.dtype.kind not in "iu" or levels.ndim != 0 or not 2 <= levels <= 256:
        found = levels if levels.ndim == 0 else f"{levels.dtype} {list(levels.shape)}"
        raise ValueError(f"{path}: expected levels as an integer in 2 .. 256, got {found}")
    if x.dtype != np.uint8:
        raise ValueError(f"{path}: expected no levels beside a table of floats, got {levels}")
    if x.max() >= levels:
        raise ValueError(f"{path}: expected images of values below levels, {levels}, got {x.max()}")
    return int(levels)


def _labels(path: Path, y: np.ndarray) -> np.ndarray:
    if y.dtype.kind not in "iu" or y.ndim != 1 or len(y) == 0:
        raise ValueError(f"{path}: expected labels as integers [N], got {y.dtype} {list(y.shape)}")
    if y.min() < 0 or y.max() > _MAX_LABEL:
        raise ValueError(f"{path}: expected labels in 0 .. {_MAX_LABEL}, got {y.min()} .. {y.max()}")
    return y
