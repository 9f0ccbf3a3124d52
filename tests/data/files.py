"""Tiny files in every format that `pygen.data` reads."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import wave
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


# --- idx -------------------------------------------------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, n: int = 12, *, prefix: str = "", test: str = "t10k", suffix: str = "") -> Path:
    """Training images pixels(n, 5, 4) with labels 0, 1, 2, 0, ..., half as many for testing (seed 1)."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count, seed in (("train", n, 0), (test, n // 2, 1)):
        for what, array in (("images-idx3", pixels(count, 5, 4, seed=seed)), ("labels-idx1", np.arange(count) % 3)):
            content = idx_bytes(array.astype(np.uint8))
            path = folder / f"{prefix}{part}-{what}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content, mtime=0) if suffix == ".gz" else content)
    return folder


# --- CIFAR -----------------------------------------------------------------------------------------------------------


class _Python2(pickle._Pickler):
    """Writes strings as Python 2 did, protocol 2, and names numpy's modules as numpy 1 did."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def _string(self, value: str | bytes) -> None:
        content = value.encode() if isinstance(value, str) else value
        if len(content) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(content)]) + content)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch[str] = dispatch[bytes] = _string


def python2_pickle(value: Any) -> bytes:
    file = io.BytesIO()
    _Python2(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


def write_cifar10(folder: Path, n: int = 2) -> Path:
    """n images in every batch; batch i has pixels(n, 3072, seed=i), the test batch seed 6; labels 0, 1, ..."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names, 1):
        content = {"batch_label": name, "labels": list(range(n)), "data": pixels(n, 3072, seed=seed),
                   "filenames": [f"{i}.png" for i in range(n)]}  # fmt: skip
        (folder / name).write_bytes(python2_pickle(content))
    meta = {"num_cases_per_batch": n, "label_names": [f"class {i}" for i in range(10)], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))
    return folder


def write_cifar100(folder: Path, n: int = 4) -> Path:
    folder = folder / "cifar-100-python"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("train", "test")):
        content = {
            "fine_labels": [99 - i for i in range(n)],
            "coarse_labels": [0] * n,
            "data": pixels(n, 3072, seed=seed),
        }
        (folder / name).write_bytes(python2_pickle(content))
    meta = {"fine_label_names": [f"fine {i}" for i in range(100)], "coarse_label_names": [""] * 20}
    (folder / "meta").write_bytes(python2_pickle(meta))
    return folder


# --- pictures and recordings -----------------------------------------------------------------------------------------


def write_picture(path: Path, array: ArrayLike, **options: Any) -> Path:
    """[H, W] grey, [H, W, 3] or [H, W, 4]; the format by the suffix."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path, **options)
    return path


def write_wav(path: Path, samples: np.ndarray, bits: int, rate: int = 8000) -> Path:
    """Integers [T] or [T, channels], of `bits` bits, as the standard library writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = samples.reshape(len(samples), -1)
    wide = (samples.astype("<i4") + (128 if bits == 8 else 0)).reshape(-1, 1).view(np.uint8)
    with wave.open(str(path), "wb") as file:
        file.setparams((samples.shape[1], bits // 8, rate, 0, "NONE", ""))
        file.writeframes(np.ascontiguousarray(wide[:, : bits // 8]).tobytes())
    return path


def riff(fmt: bytes, data: bytes, *before: tuple[bytes, bytes]) -> bytes:
    """A wave file of these chunks."""
    chunks = b""
    for name, content in ((b"fmt ", fmt), *before, (b"data", data)):
        chunks += name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks
