"""The handwritten digits that scikit-learn ships."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._extras import need
from ._files import check_split
from .dataset import Arrays

LEVELS = 17
CLASSES = 10


class Split(NamedTuple):
    """Images [N, C, H, W] of integer levels and their labels [N]."""

    images: Tensor
    labels: Tensor


def digits() -> tuple[Split, Split]:
    """1,797 handwritten digits, 8 x 8 pixels of 17 grey levels (0 .. 16): 1,437 to train on, 360 held out.

    Images uint8 [N, 1, 8, 8], labels int64 [N]. The split is random and fixed. Source: Alpaydin and
    Kaynak, "Optical recognition of handwritten digits" (UCI 1998), its test part.
    """
    need("the handwritten digits", "demo", "sklearn")
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.RandomState(0).permutation(len(data.target))  # RandomState's stream is frozen across versions
    images = torch.from_numpy(data.images[order]).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(data.target[order]).long()
    return Split(images[:1437], labels[:1437]), Split(images[1437:], labels[1437:])


def digits_data(*, split: str = "train") -> Arrays:
    """`digits` as a data set."""
    check_split(split)
    x, y = digits()[split == "test"]
    return Arrays(x.numpy(), y.numpy(), levels=LEVELS, classes=[str(i) for i in range(CLASSES)], source="digits")
