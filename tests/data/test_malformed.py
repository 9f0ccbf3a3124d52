"""Files cut off anywhere, and files with bytes changed: an error that names the file, or what the file says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pygen.data import load

from .files import pixels, python2_pickle, write_cifar10, write_mnist, write_picture, write_wav


def npy(folder: Path) -> Path:
    np.save(folder / "x.npy", pixels(4, 1, 2, 2))
    return folder / "x.npy"


def npz(folder: Path, save: Callable[..., None] = np.savez) -> Path:
    save(folder / "x.npz", x=pixels(4, 1, 2, 2), y=np.arange(4))
    return folder / "x.npz"


def cifar(folder: Path) -> Path:
    path = write_cifar10(folder, 1) / "test_batch"
    path.write_bytes(python2_pickle({"labels": [0], "data": np.zeros((1, 3072), np.uint8)}))
    return path


MAKE: dict[str, Callable[[Path], Path]] = {
    "idx images": lambda folder: write_mnist(folder, 2) / "t10k-images-idx3-ubyte",
    "idx labels": lambda folder: write_mnist(folder, 2) / "t10k-labels-idx1-ubyte",
    "idx images.gz": lambda folder: write_mnist(folder, 2, suffix=".gz") / "t10k-images-idx3-ubyte.gz",
    "cifar": cifar,
    "npy": npy,
    "npz": npz,
    "npz compressed": functools.partial(npz, save=np.savez_compressed),
    "wav": lambda folder: write_wav(folder / "a.wav", np.arange(20), 24),
    "png": lambda folder: write_picture(folder / "pictures" / "a.png", pixels(4, 4, 3)),
    "jpg": lambda folder: write_picture(folder / "pictures" / "a.jpg", pixels(16, 16)),
}


def read(kind: str, path: Path) -> None:
    """Everything in the split that the file belongs to."""
    if kind == "wav":
        data = load(path, window=2, held_out=0)
    elif kind in ("png", "jpg"):
        data = load(path.parent, held_out=0)
    elif "np" in kind:
        data = load(path, held_out=0)
    else:
        data = load(path.parent, split="test")
    data.batch(range(min(len(data), 100)))


def outcome(kind: str, path: Path) -> Exception | None:
    try:
        read(kind, path)
    except (ValueError, FileNotFoundError) as error:
        return error
    return None


def names(error: Exception | None, path: Path) -> bool:
    """One line, with the file's name."""
    return path.name in str(error) and "\n" not in str(error)


@pytest.fixture
def path(tmp_path: Path, kind: str) -> Path:
    return MAKE[kind](tmp_path)


@pytest.fixture
def content(path: Path) -> bytes:
    return path.read_bytes()


@pytest.mark.parametrize("kind", MAKE)
def test_truncated_anywhere(kind: str, path: Path, content: bytes) -> None:
    assert outcome(kind, path) is None
    spare = {"png": 20, "jpg": 2}.get(kind, 0)  # what follows the pixels: end marks, checksums
    for size in range(0, len(content), 1 + len(content) // 1000):
        path.write_bytes(content[:size])
        error = outcome(kind, path)
        assert names(error, path) if size < len(content) - spare else error is None or names(error, path), size


@pytest.mark.parametrize("kind", MAKE)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), min_size=1, max_size=3))
def test_changed_bytes(kind: str, path: Path, content: bytes, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(content)
    for where, byte in changes:
        changed[where % len(content)] = byte
    path.write_bytes(changed)
    error = outcome(kind, path)
    assert error is None or names(error, path)
