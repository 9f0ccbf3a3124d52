"""What sampling commands write."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .. import files
from .._extras import need
from ..models import Model


def check(path: Path, model: Model) -> None:
    """Raises where samples of the model could not be written to a file: before the work, not after it."""
    if path.suffix not in (".png", ".npz"):
        raise ValueError(f"{path}: expected a name that ends in .png or .npz")
    check_place(path)
    if path.suffix == ".png":
        need("a picture", "train", "matplotlib", "PIL")
        from .. import figures

        if not figures.drawable(model.shape, model.levels):
            shape = " x ".join(map(str, model.shape))
            raise ValueError(f"{path}: samples of shape {shape} cannot be drawn: expected a name that ends in .npz")


def check_place(path: Path) -> None:
    """Raises where a file cannot be written."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: expected a file in a folder that exists")
    if not os.access(path.absolute().parent, os.W_OK):
        raise PermissionError(f"{path}: the folder cannot be written to")


def write(path: Path, model: Model, x: Tensor, labels: Tensor | None, columns: int | None = None) -> None:
    """Writes samples [N, ...] as a picture, or as arrays: `samples`, and `labels` and `levels` if the model has any."""
    if path.suffix == ".png":
        from .. import figures

        figures.samples(path, x, levels=model.levels, columns=columns)
    else:
        file = io.BytesIO()
        arrays: dict[str, Any] = {"samples": x.numpy()}
        if labels is not None:
            arrays["labels"] = labels.cpu().numpy()
        if model.levels is not None:
            arrays["levels"] = np.array(model.levels)
        np.savez(file, **arrays)
        files.write(path, file.getvalue())
