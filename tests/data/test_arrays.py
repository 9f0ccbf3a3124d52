""".npy and .npz."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pygen.data import load

from .files import pixels


def npy(path: Path, array: np.ndarray, **options: object) -> Path:
    np.save(path / "x.npy", array, **options)
    return path / "x.npy"


def npz(path: Path, **arrays: object) -> Path:
    np.savez_compressed(path / "x.npz", **arrays)
    return path / "x.npz"


IMAGES = pixels(6, 3, 4, 5)  # [N, C, H, W]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (IMAGES, IMAGES),
        (np.moveaxis(IMAGES, 1, 3), IMAGES),
        (IMAGES[:, :1], IMAGES[:, :1]),
        (IMAGES[:, 0], IMAGES[:, :1]),
        (pixels(4, 3, 8, 3), pixels(4, 3, 8, 3)),
    ],
)
def test_images(tmp_path: Path, array: np.ndarray, expected: np.ndarray, order: str) -> None:
    array = np.asarray(array, order=order)
    for path in (npy(tmp_path, array), npz(tmp_path, images=array)):
        data = load(path, held_out=0)
        assert (data.shape, data.levels, data.classes) == (expected.shape[1:], 256, None)
        (x,) = data.batch(range(len(expected)))
        assert torch.equal(x, torch.from_numpy(expected.copy()))
        assert x.is_contiguous()


@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f4", "<f8", ">f8"])
def test_tables(tmp_path: Path, dtype: str) -> None:
    table = np.random.RandomState(0).randn(7, 3).astype(dtype)
    for path in (npy(tmp_path, table), npz(tmp_path, x=table)):
        data = load(path, held_out=0)
        assert (data.shape, data.levels) == ((3,), None)
        assert torch.equal(data.batch(range(7))[0], torch.from_numpy(table.astype(np.float32)))


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels"), ("samples", "labels"), ("arr_0", "arr_1")])
def test_labels(tmp_path: Path, names: tuple[str, str]) -> None:
    path = npz(tmp_path, **dict(zip(names, (IMAGES, np.array([0, 3, 1, 0, 0, 2], np.int16)), strict=True)))
    data = load(path, held_out=0)
    assert data.classes == ("0", "1", "2", "3")
    assert data.batch([1, 5])[1].tolist() == [3, 2]
    train, test = load(path), load(path, split="test")
    assert (len(train), len(test)) == (5, 1)
    assert train.classes == test.classes == data.classes


def test_splits_as_keras_names_them(tmp_path: Path) -> None:
    path = npz(tmp_path, x_train=IMAGES, y_train=np.arange(6), x_test=IMAGES[:2], y_test=np.array([9, 0]), other=1)
    train, test = load(path), load(path, split="test")
    assert (len(train), len(test)) == (6, 2)
    assert len(train.classes) == len(test.classes) == 10
    assert test[0][1] == 9
    with pytest.raises(ValueError, match="expected no held_out, for it has a test split of its own"):
        load(path, held_out=0.5)
    with pytest.raises(ValueError, match=r"got x_train, and none of x, images, samples, arr_0, x_test"):
        load(npz(tmp_path, x_train=IMAGES), split="test")


def test_levels(tmp_path: Path) -> None:
    x = IMAGES % 17
    data = load(npz(tmp_path, samples=x, levels=17), held_out=0)
    assert data.levels == 17
    assert torch.equal(data.batch(range(6))[0], torch.from_numpy(x))
    data = load(tmp_path / "x.npz", held_out=0, levels=4)
    assert data.levels == 4
    assert torch.equal(data.batch(range(6))[0], torch.from_numpy(x.astype(int) * 4 // 17).byte())
    assert load(npz(tmp_path, x_train=x, x_test=x, levels=17), split="test").levels == 17


@pytest.mark.parametrize(
    ("x", "levels", "message"),
    [
        (IMAGES, 17, "expected images of values below levels, 17, got "),
        (IMAGES, 257, "expected levels as an integer in 2 .. 256, got 257"),
        (IMAGES, 17.0, "expected levels as an integer in 2 .. 256, got 17.0"),
        (IMAGES, [17, 17], "expected levels as an integer in 2 .. 256, got int64 [2]"),
        (np.zeros((4, 2)), 17, "expected no levels beside a table of floats, got 17"),
    ],
)
def test_wrong_levels(tmp_path: Path, x: np.ndarray, levels: object, message: str) -> None:
    path = npz(tmp_path, x=x, levels=levels)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        load(path)


def test_npy_is_mapped_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (300_000, 3, 64, 64)).flush()  # 3.7 GB, sparse
    data = load(path)
    assert len(data) == 270_000
    assert data.batch([269_999])[0].sum() == 0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pixels(4, 2, 4, 5), "got uint8 [4, 2, 4, 5]"),
        (pixels(4, 5), "got uint8 [4, 5]"),
        (np.zeros((4, 3, 8, 8), np.float32), "got float32 [4, 3, 8, 8]"),
        (np.zeros((4, 3, 8, 8), np.int64), "got int64 [4, 3, 8, 8]"),
        (np.zeros((4, 2), np.complex64), "got complex64 [4, 2]"),
        (np.zeros((4, 2), [("a", "f4")]), "got [('a', '<f4')] [4, 2]"),
        (np.zeros(4), "got float64 [4]"),
        (np.float64(4), "got float64 []"),
        (np.array([["a"]]), "got <U1 [1, 1]"),
        (np.zeros((0, 2)), "expected at least one sample, got an empty array [0, 2]"),
        (np.zeros((4, 0)), "expected at least one sample, got an empty array [4, 0]"),
    ],
)
def test_arrays_of_something_else(tmp_path: Path, array: np.ndarray, message: str) -> None:
    for path in (npy(tmp_path, array), npz(tmp_path, x=array)):
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: expected ")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(5), "expected 6 labels, as many as samples, got 5"),
        (np.zeros(6), "expected labels as integers [N], got float64 [6]"),
        (np.zeros((6, 1), int), "expected labels as integers [N], got int64 [6, 1]"),
        (np.zeros(0, int), "expected labels as integers [N], got int64 [0]"),
        (np.array([0, 1, 2, 3, 4, -1]), "expected labels in 0 .. 65535, got -1 .. 4"),
        (np.array([0, 1, 2, 3, 4, 2**63], np.uint64), "expected labels in 0 .. 65535, got 0 .. 9223372036854775808"),
    ],
)
def test_wrong_labels(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    path = npz(tmp_path, x=IMAGES, y=labels)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        load(path)


class Attack:
    def __reduce__(self) -> object:
        return (exec, ("raise SystemExit('run')",))


def test_pickles_are_not_read(tmp_path: Path) -> None:
    array = np.array([Attack()], object)
    for path in (npy(tmp_path, array), npz(tmp_path, x=array), npz(tmp_path, x=IMAGES, y=array)):
        with pytest.raises(ValueError, match=re.escape(f"{path}: expected ")):
            load(path)
    path = tmp_path / "x.npy"
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match=re.escape(f"{path}: expected an array (.npy), got the magic")):
        load(path)


def test_files_of_another_kind(tmp_path: Path) -> None:
    path = npy(tmp_path, IMAGES)
    path.rename(tmp_path / "renamed.npz")
    with pytest.raises(ValueError, match=r"renamed.npz: expected arrays \(.npz\), got a file that is none"):
        load(tmp_path / "renamed.npz")
    path = npz(tmp_path, z=IMAGES)
    with pytest.raises(ValueError, match=r"got z, and none of x, images, samples, arr_0"):
        load(path)
    path.rename(tmp_path / "renamed.npy")
    with pytest.raises(ValueError, match=r"renamed.npy: expected an array \(.npy\), got the magic string"):
        load(tmp_path / "renamed.npy")
    path = npy(tmp_path, IMAGES)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"x.npy: expected an array \(.npy\), got more than one array"):
        load(path)
