"""One name for all of them: what is recognised, which options apply."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pygen.data import TOYS, Dataset, digits, load

from .files import pixels, write_cifar10, write_mnist, write_picture, write_wav


def one_of_each(folder: Path) -> dict[str, Path]:
    np.save(folder / "x.npy", pixels(20, 3, 4, 5))
    np.savez(folder / "x.npz", x=pixels(20, 3, 4, 5), y=np.arange(20) % 3)
    for i in range(20):
        write_picture(folder / "pictures" / "ab"[i % 2] / f"{i}.png", pixels(4, 5, 3, seed=i))
    return {
        "idx": write_mnist(folder / "mnist"),
        "idx.gz": write_mnist(folder / "mnist.gz", suffix=".gz"),
        "cifar": write_cifar10(folder),
        "npy": folder / "x.npy",
        "npz": folder / "x.npz",
        "images": folder / "pictures",
        "wav": write_wav(folder / "wav" / "a.wav", np.arange(200), 16).parent,
    }


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["idx", "idx.gz", "cifar", "npy", "npz", "images", "wav", "digits", "moons"])
def test_every_kind_keeps_the_interface(tmp_path: Path, kind: str, split: str) -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("sklearn")
    options = {"window": 10} if kind == "wav" else {}
    data = load(one_of_each(tmp_path).get(kind, kind), split=split, **options)
    assert isinstance(data, Dataset)
    n = min(len(data), 5)
    assert n > 0
    x, *y = data.batch(torch.arange(n))
    assert x.shape == (n, *data.shape)
    assert x.dtype == (torch.float32 if data.levels is None else torch.uint8)
    assert data.levels is None or int(x.max()) < data.levels
    assert len(y) == (data.classes is not None)
    for labels in y:
        assert (labels.shape, labels.dtype) == ((n,), torch.int64)
        assert 0 <= labels.min() <= labels.max() < len(data.classes)
    for index in range(n):
        for one, all_of_them in zip(data[index], (x, *y), strict=True):
            assert torch.equal(one, all_of_them[index])


def test_conversions(tmp_path: Path) -> None:
    path = one_of_each(tmp_path)["npz"]
    data = load(path, levels=8, normalize=True, labels=False)
    assert (data.levels, data.classes, len(data[0])) == (None, None, 1)
    assert (data.batch(range(10))[0].unique() * 3.5 + 3.5).tolist() == pytest.approx(range(8), abs=1e-6)
    with pytest.raises(ValueError, match="expected levels <= 256, got 300"):
        load(path, levels=300)
    with pytest.raises(ValueError, match="normalize is for data of integer levels, such as images; got Toy"):
        load("rings", normalize=True)


def test_digits() -> None:
    pytest.importorskip("sklearn")
    for split, part in zip(("train", "test"), digits(), strict=True):
        data = load("digits", split=split)
        assert (data.levels, data.shape, data.classes) == (17, (1, 8, 8), tuple("0123456789"))
        x, y = data.batch(range(len(data)))
        assert torch.equal(x, part.images)
        assert torch.equal(y, part.labels)


def test_names_go_before_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_picture(tmp_path / "rings" / "0.png", pixels(2, 2))
    assert load("rings").shape == (2,)
    assert load("./rings", held_out=0).shape == load("rings", kind="images", held_out=0).shape == (1, 2, 2)


@pytest.mark.parametrize("spec", ["digit", "no/such/folder", Path("no"), "", "~no-such-user/data"])
def test_nothing_there(spec: str | Path) -> None:
    names = ", ".join(["digits", *TOYS])
    with pytest.raises(FileNotFoundError, match=f"{spec}: expected a path or one of {names}, found nothing there"):
        load(spec)
    with pytest.raises(FileNotFoundError, match=f"{spec}: expected a file or a folder, found nothing there"):
        load(spec, kind="wav")


def test_nothing_recognised(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "train").mkdir()
    for path in (tmp_path, tmp_path / "a.txt", Path("/dev/null")):
        message = f"{path}: expected an .npy, .npz, .wav or idx file, or a folder of idx files"
        with pytest.raises(ValueError, match=re.escape(message)):
            load(path)


def test_pictures_and_recordings(tmp_path: Path) -> None:
    write_wav(tmp_path / "b" / "a.wav", np.arange(200), 16)
    write_picture(tmp_path / "cover.png", pixels(4, 4))
    with pytest.raises(ValueError, match="expected pictures or recordings, got both; kind= says which to take"):
        load(tmp_path)
    assert len(load(tmp_path, kind="wav", window=100)) == 1
    assert len(load(tmp_path, kind="images", held_out=0)) == 1


def test_wrong_kinds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected kind to be one of arrays, cifar, idx, images, wav, got 'video'"):
        load(tmp_path, kind="video")
    for kind in ("arrays", "cifar", "idx", "images", "wav"):
        with pytest.raises((ValueError, OSError), match=re.escape(str(tmp_path))):
            load(tmp_path, kind=kind)
        with pytest.raises((ValueError, OSError), match=r"test_load\.py"):
            load(__file__, kind=kind)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("digits", {"size": 4}, r"apply to digits \(labels, levels, normalize, split\), got size"),
        (
            "moons",
            {"held_out": 0.1},
            r"apply to toy densities \(labels, levels, normalize, seed, size, split\), got",
        ),
        ("idx", {"window": 4, "crop": 2}, r"apply to idx \(labels, levels, normalize, split\), got crop, window"),
        ("npy", {"window": 4}, r"apply to arrays \(held_out, labels, levels, normalize, split\), got window"),
        (
            "images",
            {"window": 4},
            r"\(channels, crop, held_out, labels, levels, normalize, size, split, workers\)",
        ),
    ],
)
def test_options_that_do_not_apply(tmp_path: Path, kind: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(one_of_each(tmp_path).get(kind, kind), **options)


@pytest.mark.parametrize("kind", ["idx", "cifar", "npy", "npz", "images", "wav", "digits", "moons"])
def test_unknown_splits(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match="expected split to be 'train' or 'test', got 'valid'"):
        load(one_of_each(tmp_path).get(kind, kind), split="valid")
