"""MNIST's files."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pygen.data import idx, load

from .files import idx_bytes, pixels, write_mnist


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("where", ["", "raw", "MNIST/raw"])
def test_both_splits(tmp_path: Path, suffix: str, where: str) -> None:
    write_mnist(tmp_path / where, suffix=suffix)
    train, test = load(tmp_path), load(tmp_path, split="test")
    assert repr(train) == "Arrays(12 x [1, 5, 4], 256 levels, 3 classes)"
    assert train.classes == test.classes == ("0", "1", "2")
    x, y = train.batch(range(12))
    assert torch.equal(x[:, 0], torch.from_numpy(pixels(12, 5, 4)))
    assert y.tolist() == [0, 1, 2] * 4
    assert torch.equal(test.batch(range(6))[0][:, 0], torch.from_numpy(pixels(6, 5, 4, seed=1)))


def test_other_names(tmp_path: Path) -> None:
    write_mnist(tmp_path, test="test")
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(load(tmp_path, split="test")) == 6


def test_plain_files_go_before_compressed_ones(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(b"broken")
    assert len(load(tmp_path)) == 12
    assert len(load(tmp_path / "train-images-idx3-ubyte.gz")) == 12


def test_a_folder_of_several_and_emnist_upright(tmp_path: Path) -> None:
    write_mnist(tmp_path, prefix="emnist-letters-", test="test")
    write_mnist(tmp_path, 8, prefix="emnist-digits-", test="test")
    with pytest.raises(
        ValueError, match=r"expected one data set, got 2; pass one of the files, such as .*emnist-digits"
    ):
        load(tmp_path)
    data = load(tmp_path / "emnist-letters-train-images-idx3-ubyte")
    assert data.shape == (1, 4, 5)
    assert torch.equal(data[2][0][0], torch.from_numpy(pixels(12, 5, 4)[2].T.copy()))
    assert len(load(tmp_path / "emnist-digits-test-labels-idx1-ubyte", split="test")) == 4


def test_classes_follow_from_both_splits(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(6, 9, np.uint8)))
    assert len(load(tmp_path).classes) == len(load(tmp_path, split="test").classes) == 10


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, b"", "expected an idx file of bytes in 3 dimensions, got one that begins with nothing"),
        (IMAGES, b"GIF89a", "got one that begins with 47 49 46 38"),
        (IMAGES, b"\0\0\x0d\3" + bytes(12), "got one that begins with 00 00 0d 03"),
        (IMAGES, b"\0\0\x08\3\0\0", "got 6 bytes"),
        (IMAGES, idx_bytes(pixels(12, 5, 4))[:-1], "expected 240 bytes for 12 x 5 x 4, got 239"),
        (IMAGES, idx_bytes(pixels(12, 5, 4)) + b"\0", "expected 240 bytes for 12 x 5 x 4, got more"),
        (IMAGES, b"\0\0\x08\3" + struct.pack(">3I", *[2**32 - 1] * 3), "expected 79228162458924105385300197375 bytes"),
        (IMAGES, idx_bytes(pixels(0, 5, 4)), "expected at least one sample, got an empty array 0 x 5 x 4"),
        (LABELS, idx_bytes(pixels(12, 1)), "expected an idx file of bytes in 1 dimension, got one that begins with"),
        (LABELS, idx_bytes(pixels(11)), "expected 12 labels, as many as train-images-idx3-ubyte has images, got 11"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str, compressed: bool) -> None:
    import gzip

    write_mnist(tmp_path)
    path = tmp_path / name
    if compressed:
        path.unlink()
        path = path.with_name(f"{name}.gz")
        content = gzip.compress(content)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"{path}: expected ")


def test_what_is_not_gzip(tmp_path: Path) -> None:
    write_mnist(tmp_path, suffix=".gz")
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(
        ValueError, match=re.escape(f"{path}: expected an idx file of bytes in 3 dimensions, got Not a gz")
    ):
        load(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for name, split in ((LABELS, "train"), ("t10k-images-idx3-ubyte", "test")):
        (tmp_path / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"expected a file of {split} (labels|images) .* found only t"):
            load(tmp_path, split=split)
    with pytest.raises(FileNotFoundError, match=r"expected idx files .* found none"):
        idx(Path(__file__).parent)
