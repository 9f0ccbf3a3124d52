"""Folders of pictures, decoded when asked for."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .._arguments import check_integer
from .._extras import need
from ._files import (
    check_files,
    check_split,
    default_workers,
    entries,
    existing,
    files_below,
    files_in,
    in_threads,
    no_held_out,
    part,
    split_folders,
)
from ._pictures import SUFFIXES, Size, decode, read_header
from .dataset import Dataset

_HINT = "labels=False takes all pictures, without labels"


def images(
    path: str | os.PathLike[str],
    *,
    split: str = "train",
    held_out: float | None = None,
    size: int | Size | None = None,
    crop: int | Size | None = None,
    channels: int | None = None,
    labels: bool = True,
    workers: int | None = None,
) -> ImageFolder:
    """Pictures uint8 [C, H, W] of 256 levels from a folder: of one folder for each class, or of pictures, unlabelled.

    path: the folder, or one that holds the folders of the splits, train and test (or val, valid, validation).
    held_out: the fraction for split="test" where there is no such folder; default 0.1.
    size: side, or (height, width): pictures are scaled to cover it (bicubic), and what juts out is cut off evenly.
    crop: the central part of this size is cut out first. Without either, all pictures must have one size.
    channels: 3 for RGB, 1 for grey; default 1 if every picture is grey, else 3. Transparency is laid on white.
    labels: False takes all pictures in the folder and below it, without labels.
    workers: threads that decode a batch; default one a core, up to 8.

    A picture is a file named .jpg, .jpeg, .png, .bmp, .pgm, .ppm, .tif, .tiff or .webp; other files and hidden ones
    are ignored. Every header is read at once: a file that is no picture, or one of another size, is an error now; a
    picture that breaks off later is one when it is decoded. Both name the file.
    """
    check_split(split)
    path = existing(path)
    if channels not in (None, 1, 3):
        raise ValueError(f"expected channels to be 1 or 3, got {channels!r}")
    workers = default_workers() if workers is None else workers
    check_integer("workers", workers, 1)
    crop, size = _size("crop", crop), _size("size", size)
    need("folders of pictures", "train", "PIL")

    train, test = split_folders(path)
    files, names = _pictures(train, labels)
    count = len(files)
    if test is not None:
        no_held_out(held_out, path)
        more, more_names = _pictures(test, labels)
        if not set(more_names) <= set(names) or bool(names) != bool(more_names):
            got = ", ".join(sorted(set(more_names) - set(names))) or "no class folders"
            raise ValueError(f"{test}: expected the classes of {train}, got {got}; {_HINT}")
        files, names = files + more, names + more_names

    headers = check_files(read_header, files, workers, "Reading the headers of pictures")
    common = headers[0].size
    for file, (found, _) in zip(files, headers, strict=True):
        if crop is not None and (found[0] < crop[0] or found[1] < crop[1]):
            raise ValueError(f"{file}: expected at least {_by(crop)} pixels to crop, got {_by(found)}")
        if crop is None and size is None and found != common:
            raise ValueError(
                f"{file}: expected {_by(common)} pixels as in {files[0]}, got {_by(found)}; size= scales all"
            )
    if channels is None:
        channels = 1 if all(grey for _, grey in headers) else 3
    dataset = ImageFolder(files, names, (channels, *(size or crop or common)), crop, size, workers)
    if test is None:
        return part(dataset, split, held_out, path)
    return dataset.subset(torch.arange(count) if split == "train" else torch.arange(count, len(files)))


class ImageFolder(Dataset):
    """Pictures in files, as `images` finds them. names: of their classes, or none. shape: when cropped and scaled."""

    def __init__(
        self,
        files: list[str],
        names: list[str],
        shape: tuple[int, int, int],
        crop: Size | None,
        size: Size | None,
        workers: int,
    ) -> None:
        classes, y = np.unique(np.array(names, dtype=str), return_inverse=True)
        super().__init__(len(files), shape, 256, classes.tolist() or None)
        self._files, self._y = files, torch.from_numpy(y).long()
        self._crop, self._size, self._workers = crop, size, workers

    def _read(self, indices: Tensor) -> tuple[Tensor, ...]:
        x = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        in_threads(self._decode, list(zip(x.numpy(), indices.tolist(), strict=True)), self._workers)
        return (x, self._y[indices]) if len(self._y) else (x,)

    def _decode(self, job: tuple[np.ndarray, int]) -> None:
        x, index = job
        file = self._files[index]
        pixels = decode(file, self.shape[0], self._crop, self._size)
        if pixels.shape != x.shape:
            raise ValueError(f"{file}: expected {list(x.shape)} as when it was first read, got {list(pixels.shape)}")
        x[:] = pixels


def _pictures(folder: Path, labels: bool) -> tuple[list[str], list[str]]:
    """The pictures of a folder, and the names of their classes if it has folders for them."""
    if not labels:
        files = files_below(folder, SUFFIXES)
        names = []
    else:
        files = files_in(folder, SUFFIXES)
        classes = {e.name: files_below(Path(e.path), SUFFIXES) for e in entries(folder) if e.is_dir()}
        names = [name for name, inside in classes.items() for _ in inside]
        if files and names:
            raise ValueError(
                f"{folder}: expected pictures or folders of them, one for each class, got both "
                f"({Path(files[0]).name} and the folder {names[0]}); {_HINT}"
            )
        if names and (empty := [name for name, inside in classes.items() if not inside]):
            raise ValueError(f"{folder / empty[0]}: expected pictures of the class {empty[0]}, got none; {_HINT}")
        files = files or [file for inside in classes.values() for file in inside]
    if not files:
        raise ValueError(f"{folder}: expected pictures ({', '.join(SUFFIXES)}), got none")
    return files, names


def _by(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _size(name: str, value: int | Size | None) -> Size | None:
    if value is None:
        return None
    sides = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(sides) != 2:
        raise ValueError(f"expected {name} as one side or (height, width), got {value!r}")
    for side in sides:
        check_integer(name, side, 1)
    return sides
