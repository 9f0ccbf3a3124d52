"""Folders of pictures."""

from __future__ import annotations

import os
import pickle
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pygen.data import _files, images, load

from .files import pixels, write_picture

Image = pytest.importorskip("PIL.Image")


def by_class(folder: Path, n: int = 4, shape: tuple[int, ...] = (6, 5, 3)) -> Path:
    """Folders b and a with n pictures each, pixels(*shape, seed=0 ... 2 n - 1) in the order they are read in."""
    for i in range(2 * n):
        write_picture(folder / "ab"[i // n] / f"{i:03}.png", pixels(*shape, seed=i))
    return folder


def flat(folder: Path, *arrays: np.ndarray) -> Path:
    for i, array in enumerate(arrays):
        write_picture(folder / f"{i}.png", array)
    return folder


def everything(path: Path, **options: object) -> torch.Tensor:
    data = load(path, held_out=0, **options)
    return data.batch(range(len(data)))[0]


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_one_folder_for_each_class(tmp_path: Path, workers: int) -> None:
    data = load(by_class(tmp_path), held_out=0, workers=workers)
    assert repr(data) == "ImageFolder(8 x [3, 6, 5], 256 levels, 2 classes)"
    assert data.classes == ("a", "b")
    x, y = data.batch([5, 0, 7])
    assert y.tolist() == [1, 0, 1]
    for row, seed in enumerate((5, 0, 7)):
        assert torch.equal(x[row], torch.from_numpy(pixels(6, 5, 3, seed=seed)).permute(2, 0, 1))
    assert x.is_contiguous()
    assert data.batch([])[0].shape == (0, 3, 6, 5)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    data = load(flat(tmp_path, pixels(6, 5), pixels(6, 5, seed=1)), held_out=0)
    assert (data.shape, data.classes, len(data[0])) == ((1, 6, 5), None, 1)
    assert torch.equal(data[1][0][0], torch.from_numpy(pixels(6, 5, seed=1)))


def test_folders_without_labels(tmp_path: Path) -> None:
    by_class(tmp_path)
    write_picture(tmp_path / "0.png", pixels(6, 5, 3))
    write_picture(tmp_path / "b" / "c" / "0.png", pixels(6, 5, 3))
    data = load(tmp_path, held_out=0, labels=False)
    assert (len(data), data.classes) == (10, None)


def test_class_names_in_another_encoding(tmp_path: Path) -> None:
    by_class(tmp_path)
    try:
        (tmp_path / "b").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    except OSError:
        pytest.skip("the file system takes no such name")
    assert load(tmp_path, held_out=0).batch(range(8))[1].tolist() == [0] * 4 + [1] * 4


def test_other_and_hidden_files_are_ignored(tmp_path: Path) -> None:
    by_class(tmp_path)
    for name in ("README.txt", "labels.csv", ".DS_Store", ".hidden.png", "a/Thumbs.db", "a/._000.png", ".git/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"none")
    (tmp_path / "a/000.png").rename(tmp_path / "a/000.PNG")
    assert load(tmp_path, held_out=0).classes == ("a", "b")
    assert len(load(tmp_path, held_out=0)) == 8


def test_classes_lie_deep_and_behind_links(tmp_path: Path) -> None:
    by_class(tmp_path / "there")
    (tmp_path / "here" / "a" / "deep").mkdir(parents=True)
    (tmp_path / "here" / "a" / "deep" / "link").symlink_to(tmp_path / "there" / "a")
    (tmp_path / "here" / "a" / "deep" / "up").symlink_to(tmp_path / "here" / "a")  # a circle
    (tmp_path / "here" / "b").symlink_to(tmp_path / "there" / "b")
    data = load(tmp_path / "here", held_out=0)
    assert (len(data), data.classes) == (8, ("a", "b"))


# --- splits ----------------------------------------------------------------------------------------------------------


def test_a_fixed_tenth_is_held_out(tmp_path: Path) -> None:
    by_class(tmp_path, n=10, shape=(2, 2, 3))
    train, test = load(tmp_path), load(tmp_path, split="test")
    assert (len(train), len(test)) == (18, 2)
    assert len(load(tmp_path, held_out=0.5)) == 10
    seen = {tuple(x.flatten().tolist()) for part in (train, test) for x, _ in part}
    assert len(seen) == 20
    assert [y.item() for _, y in test] == [0, 1]
    assert train.classes == test.classes == ("a", "b")


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
def test_folders_of_splits(tmp_path: Path, name: str) -> None:
    by_class(tmp_path / "train")
    by_class(tmp_path / name, n=1)
    (tmp_path / name / "a").rename(tmp_path / name / "b2")
    for path in (tmp_path / name / "b2").iterdir():
        path.rename(tmp_path / name / "b" / "first.png")
    (tmp_path / name / "b2").rmdir()
    train, test = load(tmp_path), load(tmp_path, split="test")
    assert (len(train), len(test)) == (8, 2)
    assert train.classes == test.classes == ("a", "b")
    assert test.batch([0, 1])[1].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"expected no held_out, for it has a test split of its own, got 0.1"):
        load(tmp_path, held_out=0.1)
    write_picture(tmp_path / name / "c" / "0.png", pixels(6, 5, 3))
    with pytest.raises(ValueError, match=f"{name}: expected the classes of .*train, got c; labels=False"):
        load(tmp_path)


def test_a_train_folder_alone_is_split_and_beside_others_a_class(tmp_path: Path) -> None:
    by_class(tmp_path / "train")
    assert (len(load(tmp_path)), len(load(tmp_path, split="test"))) == (7, 1)
    by_class(tmp_path / "car")
    assert load(tmp_path).classes == ("car", "train")


@pytest.mark.parametrize(
    ("held_out", "split", "message"),
    [
        (1.0, "train", r"expected held_out in \[0, 1\), got 1.0"),
        (-0.1, "train", r"expected held_out in \[0, 1\), got -0.1"),
        (float("nan"), "train", r"expected held_out in \[0, 1\), got nan"),
        ("0.1", "train", r"expected held_out in \[0, 1\), got '0.1'"),
        (0, "test", "expected samples for both splits, got 8 and held_out=0"),
        (0.99, "test", "expected samples for both splits, got 8 and held_out=0.99"),
    ],
)
def test_wrong_fractions(tmp_path: Path, held_out: object, split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(by_class(tmp_path), held_out=held_out, split=split)


# --- sizes and channels ----------------------------------------------------------------------------------------------


def test_crop_takes_the_centre(tmp_path: Path) -> None:
    x = pixels(9, 7)
    flat(tmp_path, x)
    assert torch.equal(everything(tmp_path, crop=3)[0, 0], torch.from_numpy(x[3:6, 2:5]))
    assert torch.equal(everything(tmp_path, crop=(5, 7))[0, 0], torch.from_numpy(x[2:7]))
    with pytest.raises(ValueError, match=r"0.png: expected at least 8 x 8 pixels to crop, got 9 x 7"):
        load(tmp_path, crop=8)


def test_size_covers_and_cuts(tmp_path: Path) -> None:
    wide = np.repeat(np.repeat(np.array([[0, 100, 200, 50]], np.uint8), 8, 0), 8, 1)  # [8, 32]: four squares
    flat(tmp_path, wide, wide.T)
    x = everything(tmp_path, size=4)
    assert x.shape == (2, 1, 4, 4)
    assert torch.equal(x[0], x[1].mT)
    assert x[0, 0, 0, 0] in range(70, 101)
    assert x[0, 0, 0, 3] in range(200, 240)
    assert everything(tmp_path, size=(2, 8)).shape == (2, 1, 2, 8)
    assert everything(tmp_path, crop=8, size=(4, 2)).shape == (2, 1, 4, 2)


def test_pictures_of_the_right_size_are_left_alone(tmp_path: Path) -> None:
    flat(tmp_path, pixels(5, 5), pixels(9, 7))
    assert torch.equal(everything(tmp_path, size=5)[0, 0], torch.from_numpy(pixels(5, 5)))


def test_channels(tmp_path: Path) -> None:
    grey, colour = pixels(4, 4), pixels(4, 4, 3)
    flat(tmp_path / "grey", grey)
    flat(tmp_path / "both", grey, colour)
    assert everything(tmp_path / "grey", channels=3)[0].eq(torch.from_numpy(grey)).all()
    assert everything(tmp_path / "both").shape == (2, 3, 4, 4)
    luma = everything(tmp_path / "both", channels=1)[1, 0].float()
    assert (luma - torch.from_numpy(colour @ np.array([0.299, 0.587, 0.114])).float()).abs().max() < 1
    for wrong in (2, "rgb"):
        with pytest.raises(ValueError, match="expected channels to be 1 or 3, got"):
            images(tmp_path / "both", channels=wrong)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    x = pixels(4, 4, 4)
    x[:2, :, 3], x[2:, :, 3] = 0, 255
    seen = everything(flat(tmp_path, x))[0].permute(1, 2, 0).numpy()
    assert (seen[:2] == 255).all()
    assert (seen[2:] == x[2:, :, :3]).all()


def test_photographs_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    x = np.zeros((8, 16, 3), np.uint8)
    x[:, 8:] = 255
    write_picture(tmp_path / "0.jpg", x, exif=exif, quality=100)
    seen = everything(tmp_path)
    assert seen.shape == (1, 3, 16, 8)
    assert seen[0, :, :8].max() < 9
    assert seen[0, :, 8:].min() > 246


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tif", ".webp"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    write_picture(tmp_path / f"0{suffix}", pixels(4, 6, 3), **({"lossless": True} if suffix == ".webp" else {}))
    assert torch.equal(everything(tmp_path)[0], torch.from_numpy(pixels(4, 6, 3)).permute(2, 0, 1))


# --- errors ----------------------------------------------------------------------------------------------------------


def test_mixed_sizes(tmp_path: Path) -> None:
    flat(tmp_path, pixels(4, 4), pixels(4, 4), pixels(4, 5))
    message = f"{tmp_path}/2.png: expected 4 x 4 pixels as in {tmp_path}/0.png, got 4 x 5; size= scales all"
    with pytest.raises(ValueError, match=re.escape(message)):
        load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a" + bytes(9)]
)
def test_what_is_no_picture_is_found_at_once(tmp_path: Path, content: bytes) -> None:
    (by_class(tmp_path) / "b" / "x.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}/b/x.jpg: expected a picture, got"):
        load(tmp_path)


def test_a_broken_picture_is_named_when_decoded(tmp_path: Path) -> None:
    path = by_class(tmp_path) / "b" / "006.png"
    path.write_bytes(path.read_bytes()[:-40])
    data = load(tmp_path, held_out=0, workers=2)
    data.batch([0, 1, 5, 7])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: expected a picture, got"):
        data.batch([0, 6, 1])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: expected a picture, got"):
        data[6]


def test_pictures_that_change_or_vanish(tmp_path: Path) -> None:
    data = load(flat(tmp_path, pixels(4, 4), pixels(4, 4)), held_out=0)
    write_picture(tmp_path / "0.png", pixels(5, 4))
    (tmp_path / "1.png").unlink()
    with pytest.raises(
        ValueError, match=re.escape("0.png: expected [1, 4, 4] as when it was first read, got [1, 5, 4]")
    ):
        data[0]
    with pytest.raises(FileNotFoundError, match=r"1\.png"):
        data[1]


def test_deep_pictures_are_no_silent_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"0.png: expected a picture, got one of mode I.*, which is not 8 bits"):
        load(tmp_path)


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    with pytest.raises(ValueError, match=r"0.png: expected a picture, got Image size .* exceeds limit"):
        load(flat(tmp_path, pixels(5, 5)))


def test_folders_nobody_can_make_sense_of(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: expected pictures \(.jpg, .*\), got none"):
        images(tmp_path / "empty")
    (by_class(tmp_path / "hole") / "c").mkdir()
    with pytest.raises(ValueError, match="hole/c: expected pictures of the class c, got none; labels=False"):
        load(tmp_path / "hole")
    write_picture(by_class(tmp_path / "both") / "0.png", pixels(6, 5, 3))
    with pytest.raises(
        ValueError, match=r"both: expected pictures or folders of them, .* got both \(0.png and the fold"
    ):
        load(tmp_path / "both")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "0.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(FileNotFoundError, match=r"links/0\.png"):
        load(tmp_path / "links")


@pytest.mark.parametrize("name", ["size", "crop"])
def test_wrong_sizes(tmp_path: Path, name: str) -> None:
    flat(tmp_path, pixels(4, 4))
    for wrong, error in (
        (0, ValueError),
        ((4, 0), ValueError),
        ((4, 4, 4), ValueError),
        (2.5, TypeError),
        ("4", TypeError),
    ):
        with pytest.raises(error, match=f"expected {name} "):
            load(tmp_path, **{name: wrong})
    with pytest.raises(ValueError, match="expected workers >= 1, got 0"):
        load(tmp_path, workers=0)


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat(tmp_path, pixels(4, 4))
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=re.escape("folders of pictures need PIL: pip install 'pygen[train]'")):
        load(tmp_path)


# --- threads ---------------------------------------------------------------------------------------------------------


def test_threads_keep_the_order_and_work_at_once() -> None:
    barrier = threading.Barrier(3, timeout=30)

    def wait(item: int) -> int:
        barrier.wait()
        return item

    assert _files.in_threads(wait, range(6), 3) == list(range(6))


def test_a_folder_can_be_pickled(tmp_path: Path) -> None:
    data = load(by_class(tmp_path), held_out=0)
    data.batch(range(8))
    assert torch.equal(pickle.loads(pickle.dumps(data)).batch([3])[0], data.batch([3])[0])


def test_many_headers_are_checked_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "_CHUNK", 3)
    assert _files.check_files(str, range(10), 2, "") == [str(i) for i in range(10)]
