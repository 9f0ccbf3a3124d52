"""One way to all data: by name, or by what lies at a path."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ._files import existing, files_below
from ._pictures import SUFFIXES
from .arrays import arrays
from .cifar import cifar, find_cifar
from .dataset import Dataset
from .digits import digits_data
from .idx import find_idx, idx
from .images import images
from .toy import TOYS, Toy
from .wav import wav

_KINDS: dict[str, Callable[..., Dataset]] = {"arrays": arrays, "cifar": cifar, "idx": idx, "images": images, "wav": wav}


def load(
    spec: str | os.PathLike[str],
    *,
    split: str = "train",
    kind: str | None = None,
    levels: int | None = None,
    normalize: bool = False,
    labels: bool = True,
    **options: Any,
) -> Dataset:
    """The data set of that name, or at that path. Nothing is downloaded.

    spec: "digits", scikit-learn's 8 x 8 handwritten digits; a toy density, "moons", "pinwheel", "rings" or
    "checkerboard"; or a path ("./digits" is one), whose kind follows from what lies there:

    - "idx": MNIST, Fashion-MNIST, KMNIST, EMNIST, plain or .gz;
    - "cifar": CIFAR-10 or CIFAR-100, the unpacked Python version;
    - "images": a folder of pictures, or of one folder for each class;
    - "arrays": a file .npy or .npz of images or a table;
    - "wav": a recording, or a folder of them.

    split: "train" or "test". A source without a split of its own holds out a fixed random tenth (held_out=0.1).
    kind: one of those in quotes: takes spec as a path and does not look.
    levels: fewer levels than the data has; 32 of 256 are Glow's 5 bits, 2 are black and white.
    normalize: levels as float32 in [-1, 1].
    labels: False leaves them out.
    options: of the kind, as in `help(pygen.data.images)`; of a toy density, size and seed (`pygen.data.Toy`).

    Raises ValueError or FileNotFoundError, one sentence that names the file, for what is broken, missing or unknown.
    """
    what, make = _opener(os.fspath(spec), kind)
    known = [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(options) - set(known)):
        allowed = ", ".join(sorted({*known, "split", "levels", "normalize", "labels"}))
        raise ValueError(f"{spec}: expected options that apply to {what} ({allowed}), got {', '.join(unknown)}")
    if "labels" in known:  # the kind itself has to know
        options["labels"] = labels
    dataset = make(split=split, **options)
    if not labels:
        dataset = dataset.without_labels()
    if levels is not None:
        dataset = dataset.with_levels(levels)
    return dataset.normalized() if normalize else dataset


def _opener(name: str, kind: str | None) -> tuple[str, Callable[..., Dataset]]:
    """What is at hand, and what makes a data set of it."""
    if kind is None:
        if name == "digits":
            return name, digits_data
        if name in TOYS:
            return "toy densities", partial(Toy, name)
        try:
            kind = _recognise(existing(name))
        except FileNotFoundError:
            names = ", ".join(("digits", *TOYS))
            raise FileNotFoundError(f"{name}: expected a path or one of {names}, found nothing there") from None
    elif kind not in _KINDS:
        raise ValueError(f"expected kind to be one of {', '.join(_KINDS)}, got {kind!r}")
    return kind, partial(_KINDS[kind], name)


def _recognise(path: Path) -> str:
    suffix = path.suffix.lower()
    if path.is_file() and suffix in (".npy", ".npz"):
        return "arrays"
    if path.is_file() and suffix == ".wav":
        return "wav"
    if (path.is_file() or path.is_dir()) and find_idx(path):
        return "idx"
    if path.is_dir():
        if find_cifar(path):
            return "cifar"
        suffixes = {Path(file).suffix.lower() == ".wav" for file in files_below(path, (*SUFFIXES, ".wav"))}
        if len(suffixes) == 2:
            raise ValueError(f"{path}: expected pictures or recordings, got both; kind= says which to take")
        if suffixes:
            return "wav" if True in suffixes else "images"
    raise ValueError(
        f"{path}: expected an .npy, .npz, .wav or idx file, or a folder of idx files (MNIST), of CIFAR's pickles, of "
        "pictures or of recordings, recognised none of them"
    )
