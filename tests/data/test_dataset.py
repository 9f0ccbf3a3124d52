"""What every data set shares, on one in memory."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pygen.data import Toy, load
from pygen.data.dataset import Arrays, full_range
from pygen.nn import denormalize, normalize

from .files import pixels


def images(n: int = 10) -> Arrays:
    return Arrays(pixels(n, 3, 4, 5), np.arange(n) % 3, levels=256, classes="abc", source="here")


def test_samples_and_batches_agree() -> None:
    data = images()
    x, y = data.batch([7, 0, 7])
    assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
    assert torch.equal(x, torch.from_numpy(pixels(10, 3, 4, 5))[[7, 0, 7]])
    assert y.tolist() == [1, 0, 1]
    for row, index in enumerate((7, 0, 7)):
        assert torch.equal(data[index][0], x[row])
        assert data[index][1] == y[row]
    assert torch.equal(data[-3][0], x[0])
    assert torch.equal(data[np.int64(7)][0], x[0])
    assert len(list(data)) == len(data) == 10
    assert (data.shape, data.levels, data.classes) == ((3, 4, 5), 256, ("a", "b", "c"))
    assert repr(data) == "Arrays(10 x [3, 4, 5], 256 levels, 3 classes)"


@pytest.mark.parametrize("indices", [range(2), (0, 1), np.arange(2), torch.arange(2, dtype=torch.int32)])
def test_any_vector_of_integers_selects(indices: object) -> None:
    assert torch.equal(images().batch(indices)[0], images().batch([0, 1])[0])


def test_empty_batches() -> None:
    for data in (images(), load("moons", size=5)):
        assert data.batch([])[0].shape == (0, *data.shape)


@pytest.mark.parametrize("indices", [[0, 10], [-1], torch.tensor([12])])
def test_indices_out_of_range(indices: object) -> None:
    with pytest.raises(IndexError, match=r"expected indices in \[0, 10\), got (10|-1|12)"):
        images().batch(indices)
    with pytest.raises(IndexError, match=r"expected indices in \[0, 10\), got (10|-1)"):
        images()[10], images()[-11]


@pytest.mark.parametrize("indices", [[0.5], torch.tensor([True, False]), 3, [[0, 1]]])
def test_indices_of_another_kind(indices: object) -> None:
    with pytest.raises(TypeError, match="expected indices as a vector of integers, got"):
        images().batch(indices)
    with pytest.raises(TypeError):
        images()[0.5]


def test_subsets_of_subsets() -> None:
    part = images().subset([9, 2, 4, 2]).subset(torch.tensor([3, 0]))
    assert len(part) == 2
    assert torch.equal(part.batch([0, 1])[0], images().batch([2, 9])[0])
    assert len(part.subset([])) == 0
    with pytest.raises(IndexError, match=r"expected indices in \[0, 2\), got 2"):
        part.subset([2])


@pytest.mark.parametrize(("levels", "expected"), [(2, [0, 0, 1, 1]), (32, [0, 15, 16, 31]), (256, [0, 127, 128, 255])])
def test_fewer_levels(levels: int, expected: list[int]) -> None:
    data = Arrays(np.array([[0], [127], [128], [255]], np.uint8), levels=256).with_levels(levels)
    assert data.levels == levels
    x = data.batch(range(4))[0]
    assert x.dtype == torch.uint8
    assert x.flatten().tolist() == expected


def test_fewer_levels_of_fewer_levels_and_of_17() -> None:
    data = Arrays(np.arange(17, dtype=np.uint8)[:, None], levels=17)
    assert data.with_levels(2).batch(range(17))[0].flatten().tolist() == [0] * 9 + [1] * 8
    assert data.with_levels(8).with_levels(2).batch([16, 0])[0].flatten().tolist() == [1, 0]


def test_wrong_levels() -> None:
    with pytest.raises(ValueError, match="expected levels <= 256, got 257"):
        images().with_levels(257)
    with pytest.raises(ValueError, match="expected levels >= 2, got 1"):
        images().with_levels(1)
    for convert in (lambda data: data.with_levels(4), lambda data: data.normalized()):
        with pytest.raises(
            ValueError, match=r"is for data of integer levels, such as images; got Toy\(5 x \[2\], cont"
        ):
            convert(Toy("rings", size=5))


@pytest.mark.parametrize(("levels", "expected"), [(256, [0, 1, 128, 255]), (17, [0, 15, 127, 255]), (2, [0, 255])])
def test_full_range(levels: int, expected: list[int]) -> None:
    x = torch.tensor({256: [0, 1, 128, 255], 17: [0, 1, 8, 16], 2: [0, 1]}[levels])
    for dtype in (torch.uint8, torch.int64):
        assert full_range(x.to(dtype), levels).tolist() == expected
    assert full_range(x, levels).dtype == torch.uint8


def test_normalized_levels_come_back() -> None:
    data = images().with_levels(32)
    x = data.normalized().batch(range(10))[0]
    assert data.normalized().levels is None
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(denormalize(x, 32), data.batch(range(10))[0])
    for levels in (2, 17, 256, 65536):
        every = torch.arange(levels)
        assert torch.equal(denormalize(normalize(every, levels), levels).long(), every)
    assert denormalize(torch.tensor([-3.0, 3.0]), 17).tolist() == [0, 16]


def test_without_labels() -> None:
    data = images().without_labels()
    assert data.classes is None
    assert len(data.batch([0])) == len(data[0]) == 1


def test_conversions_leave_the_original_alone() -> None:
    data = images()
    data.with_levels(2), data.normalized(), data.without_labels(), data.subset([0])
    assert (len(data), data.levels, data.classes) == (10, 256, ("a", "b", "c"))
    assert data[3][0].max() > 1


def test_batches_are_copies() -> None:
    data = images()
    data.batch([0])[0].zero_()
    assert data.batch([0])[0].any()


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_loads_it(workers: int) -> None:
    data = images().subset(range(1, 10)).with_levels(8)
    batches = list(DataLoader(data, batch_size=4, num_workers=workers))
    assert [len(x) for x, _ in batches] == [4, 4, 1]
    assert torch.equal(torch.cat([x for x, _ in batches]), data.batch(range(9))[0])
    assert torch.equal(torch.cat([y for _, y in batches]), data.batch(range(9))[1])


def test_copies_and_pickles() -> None:
    data = images().with_levels(8).subset([3, 1])
    for other in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data)):
        assert torch.equal(other.batch([0, 1])[0], data.batch([0, 1])[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_tables_are_finite(value: float) -> None:
    table = np.zeros((5, 3))
    table[3, 1] = value
    data = Arrays(table, source="table.npy").subset([4, 3])
    assert data.batch([0])[0].dtype == torch.float32
    with pytest.raises(
        ValueError, match=re.escape("table.npy: sample 3: expected finite numbers, got NaN or infinity")
    ):
        data.batch([0, 1])


# --- toys ------------------------------------------------------------------------------------------------------------


def test_a_toy_point_depends_on_its_index_alone() -> None:
    data = Toy("moons", seed=3)
    assert (len(data), data.shape, data.levels, data.classes) == (1_000_000, (2,), None, None)
    x = data.batch(range(100))[0]
    assert torch.equal(data.batch([7, 99, 7])[0], x[[7, 99, 7]])
    assert torch.equal(Toy("moons", seed=3, size=2**40).batch([99])[0], x[[99]])
    assert not torch.equal(Toy("moons", seed=4).batch(range(100))[0], x)
    assert Toy("moons", size=2**40)[-1][0].isfinite().all()


def test_toys_to_test_with_are_others() -> None:
    test = Toy("rings", split="test")
    assert len(test) == 10_000
    assert len(Toy("rings", split="test", size=7)) == 7
    both = torch.cat([test.batch(range(50))[0], Toy("rings").batch(range(50))[0]])
    assert len(both.unique(dim=0)) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "expected size >= 1, got 0"),
        ({"seed": -1}, "expected seed >= 0, got -1"),
        ({"split": "valid"}, "expected split to be 'train' or 'test', got 'valid'"),
    ],
)
def test_wrong_options_of_toys(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Toy("moons", **options)
