"""The classifier that makes features where no weights are: what it is trained on, where it is kept, what it tells."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pygen.data import load
from pygen.data.arrays import Arrays
from pygen.metrics import classifier
from pygen.metrics.classifier import cache_folder, cached_classifier, train_classifier
from pygen.metrics.fid import compute_fid
from pygen.models import RealNVP

from ..cli.test_models import invoke, refused
from ..data.files import pixels, write_picture
from .test_fid_cli import said

pytest.importorskip("safetensors")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(classifier, "STEPS", 40)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def images(n: int = 60, side: int = 7, channels: int = 3, seed: int = 0) -> Arrays:
    """Images of three labels, each brighter than the one before."""
    numbers = np.random.RandomState(seed)
    y = np.arange(n) % 3
    x = numbers.randint(0, 50, (n, channels, side, side)) + 90 * y[:, None, None, None]
    return Arrays(x.astype(np.uint8), y, levels=256, classes=["a", "b", "c"])


def test_digits() -> None:
    """Digits are near other digits, noise and shuffled pixels are far, and a model is in between."""
    pytest.importorskip("sklearn")
    train, test = load("digits"), load("digits", split="test")
    model, accuracy = train_classifier(train, test)
    assert accuracy > 0.97  # measured: 0.994
    same = compute_fid(test, train, model)
    noise = torch.randint(0, 256, (1437, 1, 8, 8), dtype=torch.uint8)
    x, _ = train.batch(range(len(train)))
    shuffled = (x.flatten(2)[..., torch.randperm(64)].view_as(x) * 15).to(torch.uint8)
    untrained = RealNVP((1, 8, 8), 17, num_classes=10, hidden=8, blocks=1).eval().sample(1437, generator=0)
    assert same < 2  # measured: 0.90; two halves of the training split: 1.01
    for other in (noise, shuffled, (untrained.int() * 255 // 16).to(torch.uint8)):
        assert compute_fid(other, train, model) > 20 * same
    assert abs(compute_fid(train, train, model)) < 1e-10


def test_features_are_standardised_by_the_training_data(quick: None) -> None:
    data = images()
    model, accuracy = train_classifier(data, images(30, seed=1))
    assert accuracy == 1
    x, _ = data.batch(range(60))
    features = model(x)
    assert features.shape == (60, 64)
    assert features.mean(0).abs().max() < 1e-5
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(64), rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_grey_images_are_those_of_three_equal_channels(quick: None) -> None:
    grey = images(channels=1)
    x, y = grey.batch(range(60))
    rgb = Arrays(x.expand(-1, 3, -1, -1).numpy(), y.numpy(), levels=256, classes=["a", "b", "c"])
    one, two = (train_classifier(data, data)[0] for data in (grey, rgb))
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_it_depends_on_data_and_seed_alone(quick: None) -> None:
    data = images()
    results = []
    for threads, seed, noise in ((1, 0, 1), (2, 0, 2), (1, 7, 1)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(noise)
        expected = torch.rand(1)
        torch.manual_seed(noise)
        model, _ = train_classifier(data, data, seed=seed)
        assert torch.equal(torch.rand(1), expected)  # torch's own stream is as it was
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
        results.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_cache(quick: None, tmp_path: Path) -> None:
    data, folder = images(), tmp_path / "some" / "where"
    done: list[int] = []

    def make(train: Arrays = data, test: Arrays = data, where: Path | None = folder, seed: int = 0) -> torch.Tensor:
        done.clear()
        model, accuracy = cached_classifier(train, test, where, seed=seed, advance=lambda n, _: done.append(n))
        assert accuracy == 1
        return model(data.batch([0])[0])

    first = make()
    assert len(done) == 40
    (path,) = folder.iterdir()
    assert torch.equal(make(), first)
    assert done == []
    make(where=None)
    assert len(done) == 40
    assert list(folder.iterdir()) == [path]
    for other in ({"seed": 1}, {"train": images(seed=3)}, {"test": images(seed=3)}):
        make(**other)
        assert len(done) == 40
    assert len(list(folder.iterdir())) == 4
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(make(), first)
    assert len(done) == 40
    assert torch.equal(make(), first)
    assert done == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pygen"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "pygen"


def test_what_it_cannot_be_trained_on() -> None:
    data = images()
    with pytest.raises(ValueError, match="expected data with labels to train a classifier on, got"):
        train_classifier(data.without_labels(), data)
    with pytest.raises(ValueError, match="expected images of integer levels"):
        train_classifier(data.normalized(), data)
    table = Arrays(np.zeros((5, 3), np.uint8), np.arange(5), levels=2, classes=list("abcde"))
    with pytest.raises(ValueError, match=r"expected images \[C, H, W\] to classify, got samples of shape \[3\]"):
        train_classifier(table, table)


def test_what_it_cannot_take(quick: None) -> None:
    model, _ = train_classifier(images(), images())
    with pytest.raises(ValueError, match=r"expected images uint8 of 7 x 7 pixels.*got torch.uint8 \[3, 8, 7\]"):
        model(torch.zeros(2, 3, 8, 7, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got torch.float32"):
        model(torch.zeros(2, 3, 7, 7))


# --- pygen fid --------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    x, y = images(90).batch(range(90))
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    return tmp_path / "data.npz"


def test_command(quick: None, file: Path, tmp_path: Path) -> None:
    RealNVP((3, 7, 7), 256, hidden=4, blocks=1).save(tmp_path / "model")
    command = (tmp_path / "model", file, "--samples", 100)
    result = invoke("fid", *command)
    assert result.exit_code == 0, result.output
    assert f"classifier of {file}: 40/40" in result.stderr
    assert f"classifier trained on {file}: 100.0% of 9 held-out samples right" in result.stderr
    (line,) = result.stdout.splitlines()
    title, _, distance = line.rpartition(":  ")
    assert title == f"FD (classifier trained on {file}, 64 features)"
    assert list((tmp_path / "cache" / "pygen").iterdir())
    again = invoke("fid", *command, "--json")
    assert "40/40" not in again.stderr
    assert f"classifier trained on {file}, kept from before: 100.0%" in again.stderr
    assert json.loads(again.stdout) == {
        "frechet_distance": pytest.approx(float(distance)),
        "extractor": f"classifier trained on {file}",
        "held_out_accuracy": 1.0,
        "features": 64,
    }
    swapped = said(file, tmp_path / "model", "--samples", 100, "--cache", tmp_path / "other")
    assert float(swapped.rpartition(":  ")[2]) == pytest.approx(float(distance), rel=1e-9)
    assert len(list((tmp_path / "other").iterdir())) == 1
    assert "40/40" in invoke("fid", *command, "--no-cache").stderr


def test_splits(quick: None, file: Path) -> None:
    """A source without splits is taken as a whole, and :train and :test are what training and testing take."""
    result = invoke("fid", f"{file}:test", f"{file}:train")
    assert result.exit_code == 0, result.output
    assert f"{file}:test: 9/9" in result.stderr
    assert f"{file}:train: 81/81" in result.stderr
    result = invoke("fid", file, f"{file}:test")
    assert f"{file}: 90/90" in result.stderr
    assert result.stdout.startswith(f"FD (classifier trained on {file}, 64")


def test_two_models(quick: None, file: Path, tmp_path: Path) -> None:
    """They are compared by a classifier of the data that the last one was trained on, as long as these are there."""
    model = RealNVP((3, 7, 7), 256, hidden=4, blocks=1)
    model.save(tmp_path / "untold")
    model.save(tmp_path / "told", training={"data": str(file), "loading": {}})
    for runs in (("told", "untold"), ("untold", "told")):
        result = invoke("fid", *(tmp_path / run for run in runs), "--samples", 70)
        assert result.exit_code == 0, result.output
        title, _, distance = result.stdout.rpartition(":  ")
        assert title == f"FD (classifier trained on {file}, 64 features)"
        assert abs(float(distance)) < 1e-6
    file.unlink()
    for run in ("told", "untold"):
        sentence = refused("fid", tmp_path / run, tmp_path / run, "--extractor", "classifier")
        assert sentence.startswith(f"expected labels in {tmp_path / run}, to train a classifier on")


def test_a_cache_that_cannot_be_written_to(
    quick: None, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's is done without; one that is asked for is refused before the work."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    result = invoke("fid", file, file)
    assert result.exit_code == 0, result.output
    assert f"{file / 'pygen'}: Not a directory: the classifier is not kept" in result.stderr
    assert "40/40" in result.stderr
    assert refused("fid", file, file, "--cache", file / "cache").endswith("cache: Not a directory")


def test_what_the_command_refuses(quick: None, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "plain.npy", np.zeros((20, 3, 7, 7), np.uint8))
    sentence = refused("fid", tmp_path / "plain.npy", tmp_path / "plain.npy", "--extractor", "classifier")
    assert sentence.startswith(f"expected labels in {tmp_path / 'plain.npy'}, to train a classifier on, got none: give")
    np.save(tmp_path / "large.npy", np.zeros((20, 3, 9, 9), np.uint8))
    result = invoke("fid", tmp_path / "large.npy", file)
    assert result.exit_code == 2
    assert "expected images uint8 of 7 x 7 pixels, as the classifier was trained on" in result.stderr
    assert result.stdout == ""
    for i in range(4):
        write_picture(tmp_path / "a" / "some" / f"{i}.png", pixels(9, 9, 3))
    monkeypatch.chdir(tmp_path)
    result = invoke("fid", "a", file, "--extractor", "classifier")
    assert result.output.splitlines()[-1].startswith("Error: a: expected images uint8 of 7 x 7 pixels")
