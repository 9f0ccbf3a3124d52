"""MNIST's idx files, which Fashion-MNIST, KMNIST and EMNIST share (http://yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np

from ._files import check_split, entries, existing, reading
from .dataset import Arrays

_NAME = re.compile(r"(.*?)(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
_LOOKED_FOR = "train-images-idx3-ubyte, train-labels-idx1-ubyte and their t10k- or test- counterparts, perhaps .gz"

Key = tuple[str, str]  # split, "images" or "labels"


def idx(path: str | os.PathLike[str], *, split: str = "train") -> Arrays:
    """Images uint8 [1, H, W] of 256 levels with labels.

    path: the folder of the four files, or of torchvision's `raw` folder; or, where a folder holds several data sets, as
    EMNIST's does, one of the files. Plain files are mapped into memory, compressed ones read. EMNIST's images, which
    are stored on their side, are turned upright.
    """
    check_split(split)
    path = existing(path)
    files = _files(path)
    x, y = (read_idx(_require(files, (split, what), path), dims) for what, dims in (("images", 3), ("labels", 1)))
    if len(x) != len(y):
        labels = files[split, "labels"]
        raise ValueError(f"{labels}: expected {len(x)} labels, as many as {files[split, 'images'].name} has images, "
                         f"got {len(y)}")  # fmt: skip
    other = files.get(("test" if split == "train" else "train", "labels"))
    classes = 1 + int(max(y.max(), 0 if other is None else read_idx(other, 1).max()))
    source = files[split, "images"]
    if source.name.startswith("emnist"):
        x = x.transpose(0, 2, 1)
    return Arrays(x[:, None], y, levels=256, classes=[str(label) for label in range(classes)], source=source)


def find_idx(path: Path) -> dict[tuple[Path, str], dict[Key, Path]]:
    """The idx files at a path, by data set (folder and what comes before "train-" in the names), plain before .gz."""
    found: dict[tuple[Path, str], dict[Key, Path]] = {}
    for file in _candidates(path):
        if match := _NAME.fullmatch(file.name):
            prefix, part, what, compressed = match.groups()
            of_set = found.setdefault((file.parent, prefix), {})
            key = ("train" if part == "train" else "test", what)
            if not (compressed and key in of_set):
                of_set[key] = file
    if path.is_file():
        match = _NAME.fullmatch(path.name)
        return {key: files for key, files in found.items() if match and key[1] == match[1]}
    return found


def _candidates(path: Path) -> Iterator[Path]:
    if path.is_file():
        folders = [path.parent]
    else:
        below = [Path(entry.path) for entry in entries(path) if entry.is_dir()]
        folders = [path, *(folder / "raw" for folder in (path, *below) if (folder / "raw").is_dir())]
    for folder in folders:
        yield from (Path(entry.path) for entry in entries(folder) if entry.is_file())


def _files(path: Path) -> dict[Key, Path]:
    found = find_idx(path)
    if not found:
        raise FileNotFoundError(f"{path}: expected idx files ({_LOOKED_FOR}), found none")
    if len(found) > 1:
        names = ", ".join(str(next(iter(files.values()))) for files in found.values())
        raise ValueError(f"{path}: expected one data set, got {len(found)}; pass one of the files, such as {names}")
    return next(iter(found.values()))


def _require(files: dict[Key, Path], key: Key, path: Path) -> Path:
    if key not in files:
        names = ", ".join(file.name for file in files.values())
        raise FileNotFoundError(f"{path}: expected a file of {key[0]} {key[1]} ({_LOOKED_FOR}), found only {names}")
    return files[key]


def read_idx(path: Path, dims: int) -> np.ndarray:
    """An idx file of bytes with `dims` dimensions: mapped into memory, or read where it is compressed."""
    what = f"an idx file of bytes in {dims} dimension{'s' * (dims > 1)}"
    compressed = path.suffix == ".gz"
    with reading(path, what), _open(path) as file:
        header = file.read(4 + 4 * dims)
        if header[:4] != bytes([0, 0, 8, dims]):
            raise ValueError(f"one that begins with {header[:4].hex(' ') or 'nothing'}")
        if len(header) < 4 + 4 * dims:
            raise ValueError(f"{len(header)} bytes")
        shape = struct.unpack(f">{dims}I", header[4:])
        size = math.prod(shape)
        content = _read_at_most(file, size + 1) if compressed else b""
    have = len(content) if compressed else path.stat().st_size - len(header)
    if have != size:
        more = "more" if have > size else have
        raise ValueError(f"{path}: expected {size} bytes for {' x '.join(map(str, shape))}, got {more}")
    if size == 0:
        raise ValueError(f"{path}: expected at least one sample, got an empty array {' x '.join(map(str, shape))}")
    if compressed:
        return np.frombuffer(content, np.uint8).reshape(shape)
    return np.memmap(path, np.uint8, "r", len(header), shape)


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else open(path, "rb")


def _read_at_most(file: IO[bytes], size: int) -> bytes:
    """Up to `size` bytes: never more memory than the file has to fill, whatever its header says."""
    content = bytearray()
    while len(content) < size and (piece := file.read(min(1 << 20, size - len(content)))):
        content += piece
    return bytes(content)
