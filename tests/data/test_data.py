"""Data and random numbers."""

from __future__ import annotations

import pytest
import torch

from pygen.data import TOYS, digits, toy


def test_digits_are_split_once_and_for_all() -> None:
    pytest.importorskip("sklearn")
    train, test = digits()
    assert train.images.shape == (1437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    for part in (train, test):
        assert part.images.dtype == torch.uint8
        assert (part.images.min(), part.images.max()) == (0, 16)
        assert part.labels.dtype == torch.int64
        assert part.labels.unique().tolist() == list(range(10))
    assert test.labels[:10].tolist() == [7, 9, 4, 7, 0, 2, 6, 1, 3, 1]
    assert int(test.images.long().sum()) == 112_332


@pytest.mark.parametrize("name", TOYS)
def test_toys_fill_the_plane_and_follow_the_generator(name: str) -> None:
    points = toy(name, 4000, generator=0)
    assert points.shape == (4000, 2)
    assert points.mean(0).abs().max() < 0.15
    assert ((points.std(0) > 0.6) & (points.std(0) < 1.8)).all()
    assert torch.equal(points[:10], toy(name, 10, generator=0))
    drawn = [toy(name, 10, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert not torch.equal(points, toy(name, 4000, generator=1))
    assert toy(name, 0).shape == (0, 2)


def test_checkerboard_has_holes() -> None:
    x, y = (toy("checkerboard", 4000, generator=0) + 2).floor().long().T
    assert ((x + y) % 2 == 0).all()
    assert torch.bincount(4 * y + x, minlength=16).ne(0).sum() == 8


def test_unknown_toys() -> None:
    with pytest.raises(ValueError, match="expected one of moons, pinwheel, rings, checkerboard, got 'spiral'"):
        toy("spiral", 3)
