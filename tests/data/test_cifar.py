"""CIFAR's pickles, and pickles that only look like them."""

from __future__ import annotations

import os
import pickle
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pygen.data import cifar, load

from .files import pixels, python2_pickle, write_cifar10, write_cifar100


def test_cifar10(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    assert repr(load(tmp_path)) == "Arrays(10 x [3, 32, 32], 256 levels, 10 classes)"
    train, test = load(folder), load(folder, split="test")
    assert train.classes == test.classes == tuple(f"class {i}" for i in range(10))
    x, y = train.batch(range(10))
    expected = np.concatenate([pixels(2, 3072, seed=i) for i in range(1, 6)]).reshape(10, 3, 32, 32)
    assert torch.equal(x, torch.from_numpy(expected))
    assert y.tolist() == [0, 1] * 5
    assert torch.equal(test.batch([1])[0].flatten(), torch.from_numpy(pixels(2, 3072, seed=6)[1]))


def test_cifar100(tmp_path: Path) -> None:
    write_cifar100(tmp_path)
    train, test = load(tmp_path), load(tmp_path, split="test")
    assert len(train.classes) == 100
    assert train.batch(range(4))[1].tolist() == [99, 98, 97, 96]
    assert torch.equal(test[0][0].flatten(), torch.from_numpy(pixels(4, 3072, seed=1)[0]))
    write_cifar10(tmp_path)
    with pytest.raises(ValueError, match=r"expected one data set, got .*cifar-10-batches-py and .*cifar-100-python"):
        load(tmp_path)


@pytest.mark.parametrize("protocol", [3, 4])
def test_pickled_again_by_python_3(tmp_path: Path, protocol: int) -> None:
    folder = write_cifar10(tmp_path)
    content = {b"labels": [3, 4], b"data": np.asfortranarray(pixels(2, 3072))}
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol))
    assert torch.equal(load(folder, split="test")[1][0].flatten(), torch.from_numpy(pixels(2, 3072)[1]))


class Attack:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def attacks(marker: Path) -> dict[str, bytes]:
    command = f"touch {marker}"
    return {
        "os.system": pickle.dumps({b"data": Attack(os.system, command)}, 2),
        "eval": pickle.dumps(Attack(eval, f"open({str(marker)!r}, 'w')"), 0),
        "stack global": pickle.dumps(Attack(os.system, command), 4),
        "inst": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'" + command.encode() + b"'\no.",
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x13ndarray.__class__.mro\x93)R.",
        "numpy": b"cnumpy\nload\n(S'" + str(marker).encode() + b"'\ntR.",
        "numpy.f2py": b"cnumpy.testing._private.utils\nrunstring\n(S'" + command.encode() + b"'\n}tR.",
        "persistent": b"Ppickle\n.",
        "extension": b"\x82\x01.",
        "a buffer": b"\x97.",
    }


@pytest.mark.parametrize("name", attacks(Path()))
def test_nothing_a_pickle_names_is_run(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "run"
    for file in ("batches.meta", "data_batch_3"):
        folder = write_cifar10(tmp_path / file)
        (folder / file).write_bytes(attacks(marker)[name])
        with pytest.raises(ValueError, match=f"{re.escape(str(folder / file))}: expected a pickle of CIFAR, got "):
            load(folder)
    assert not marker.exists()


def test_the_error_names_what_was_refused(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps(Attack(os.system, "true"), 2))
    with pytest.raises(ValueError, match=r"got (posix|nt)\.system, which such a file has no need of and is not loaded"):
        load(folder, split="test")


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    """A memo index or a length of 4 GB makes pickle's unpickler in C take as much."""
    folder = write_cifar10(tmp_path)
    started = time.process_time()
    for content in (b"Nr\xf0\xff\xff\xff.", b"\x8e\0\0\0\0\0\1\0\0.", b"\x8b\xff\xff\xff\x7f."):
        (folder / "test_batch").write_bytes(content)
        with pytest.raises(ValueError, match="test_batch: expected a pickle of CIFAR, got"):
            load(folder, split="test")
    assert time.process_time() - started < 5


GOOD: dict[str, Any] = {"labels": [0, 1], "data": pixels(2, 3072)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "expected a pickle of CIFAR, got one of a list"),
        ({}, "expected an array data and a list labels, got None and None"),
        (GOOD | {"labels": 3}, "expected an array data and a list labels, got an array and 3"),
        (GOOD | {"data": pixels(2, 3071)}, "expected data of shape [N, 3072], got [2, 3071]"),
        (GOOD | {"data": pixels(0, 3072), "labels": []}, "expected data of shape [N, 3072], got [0, 3072]"),
        (GOOD | {"data": np.zeros((2, 3072))}, "expected an array of bytes (uint8), got another or a truncated one"),
        (GOOD | {"data": np.zeros((2, 3072), object)}, "expected an array of bytes (uint8), got another or a trunc"),
        (GOOD | {"labels": [0]}, "expected 2 labels, as many as images, got 1"),
        (GOOD | {"labels": [0, 10]}, "expected labels in 0 .. 9, got 10"),
        (GOOD | {"labels": [0, -1]}, "expected labels in 0 .. 9, got -1"),
        (GOOD | {"labels": [0, "cat"]}, "expected labels in 0 .. 9, got a str"),
        (GOOD | {"labels": [0, True]}, "expected labels in 0 .. 9, got True"),
    ],
)
def test_pickles_of_something_else(tmp_path: Path, content: Any, message: str) -> None:
    path = write_cifar10(tmp_path) / "test_batch"
    path.write_bytes(python2_pickle(content))
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        load(path.parent, split="test")


def test_missing_files(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    (folder / "data_batch_4").unlink()
    assert len(load(folder, split="test")) == 2
    with pytest.raises(FileNotFoundError, match="data_batch_4: expected a file or a folder, found nothing there"):
        load(folder)
    (folder / "batches.meta").write_bytes(python2_pickle({"label_names": []}))
    with pytest.raises(ValueError, match=r"batches.meta: expected label_names, a list of names, got another kind"):
        load(folder)
    with pytest.raises(FileNotFoundError, match=r"expected CIFAR's unpacked Python version \(data_batch_1 and batches"):
        cifar(Path(__file__).parent)
