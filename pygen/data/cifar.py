"""CIFAR-10 and CIFAR-100 in their Python version: pickles, read without running what a pickle may contain.

(https://www.cs.toronto.edu/~kriz/cifar.html)
"""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._files import check_split, existing, reading
from .dataset import Arrays


class _Layout(NamedTuple):
    folder: str  # what the archive unpacks to
    files: dict[str, tuple[str, ...]]  # by split
    labels: str
    meta: str
    names: str


_LAYOUTS = (
    _Layout(
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        "labels", "batches.meta", "label_names",
    ),
    _Layout("cifar-100-python", {"train": ("train",), "test": ("test",)}, "fine_labels", "meta", "fine_label_names"),
)  # fmt: skip


def cifar(path: str | os.PathLike[str], *, split: str = "train") -> Arrays:
    """Images uint8 [3, 32, 32] of 256 levels with labels, of CIFAR-10 or, with its 100 fine labels, CIFAR-100.

    path: the folder of the pickles (cifar-10-batches-py, cifar-100-python), or the one that holds that folder.
    """
    check_split(split)
    path = existing(path)
    found = find_cifar(path)
    if not found:
        looked_for = " or ".join(f"{layout.files['train'][0]} and {layout.meta}" for layout in _LAYOUTS)
        raise FileNotFoundError(f"{path}: expected CIFAR's unpacked Python version ({looked_for}), found neither")
    if len(found) > 1:
        raise ValueError(f"{path}: expected one data set, got {' and '.join(str(folder) for folder, _ in found)}")
    folder, layout = found[0]
    meta = folder / layout.meta
    names = _read(meta).get(layout.names)
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{meta}: expected {layout.names}, a list of names, got another kind of file")
    parts = [_batch(folder / name, layout.labels, len(names)) for name in layout.files[split]]
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Arrays(x, y, levels=256, classes=names, source=folder)


def find_cifar(path: Path) -> list[tuple[Path, _Layout]]:
    """The folders of CIFAR's pickles at a path, with what they hold."""
    return [
        (folder, layout)
        for layout in _LAYOUTS
        for folder in (path, path / layout.folder)
        if (folder / layout.files["train"][0]).is_file() and (folder / layout.meta).is_file()
    ]


def _batch(path: Path, key: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    content = _read(path)
    data, labels = content.get("data"), content.get(key)
    if not (isinstance(data, _Array) and isinstance(labels, list)):
        raise ValueError(f"{path}: expected an array data and a list {key}, got {_brief(data)} and {_brief(labels)}")
    x = data.numpy(path)
    if x.ndim != 2 or x.shape[1] != 3 * 32 * 32 or len(x) == 0:
        raise ValueError(f"{path}: expected data of shape [N, 3072], got {list(x.shape)}")
    if len(labels) != len(x):
        raise ValueError(f"{path}: expected {len(x)} labels, as many as images, got {len(labels)}")
    for label in labels:
        if type(label) is not int or not 0 <= label < classes:
            raise ValueError(f"{path}: expected labels in 0 .. {classes - 1}, got {_brief(label)}")
    return x.reshape(-1, 3, 32, 32), np.array(labels)


def _brief(value: object) -> str:
    if value is None or isinstance(value, int):
        return repr(value)
    return "an array" if isinstance(value, _Array) else f"a {type(value).__name__}"


# --- pickles ---------------------------------------------------------------------------------------------------------


class _Dtype:
    """Stands in for numpy.dtype: its name and nothing else."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, _: object) -> None:
        """The byte order and such, which bytes do not have."""


class _Array:
    """Stands in for numpy.ndarray: what a pickle says of it, checked before numpy sees it."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def numpy(self, path: Path) -> np.ndarray:
        """An array of bytes."""
        match self.state:
            case (_, tuple(shape), _Dtype(name="u1" | b"u1"), bool() | int() as fortran, bytes(content)):
                if all(type(size) is int and size >= 0 for size in shape) and math.prod(shape) == len(content):
                    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
        raise ValueError(f"{path}: expected an array of bytes (uint8), got another or a truncated one")


_STAND_INS = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,  # since numpy 2
}


class _Unpickler(pickle._Unpickler):
    """Knows dicts, lists, numbers, strings and arrays of bytes. Nothing that a pickle names is imported or called.

    It is the one in Python: a file of ten bytes makes the one in C ask for all the memory there is.
    """

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _STAND_INS:
            raise pickle.UnpicklingError(f"{module}.{name}, which such a file has no need of and is not loaded")
        return _STAND_INS[f"{module}.{name}"]


def _read(path: Path) -> dict[str, Any]:
    """A pickled dict with its keys, and lists of strings, as str: Python 2 wrote bytes."""
    with reading(existing(path), "a pickle of CIFAR"), open(path, "rb") as file:
        content = _Unpickler(file, encoding="bytes").load()
        if not isinstance(content, dict):
            raise ValueError(f"one of {_brief(content)}")
        return {_text(key): _text(value) for key, value in content.items()}


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(item) if isinstance(item, bytes) else item for item in value]
    return value.decode() if isinstance(value, bytes) else value
