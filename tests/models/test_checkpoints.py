"""Checkpoints: what was saved comes back, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from pygen import models
from pygen.models import RealNVP, RealNVPFlat, checkpoint

from .test_layers import perturbed

safetensors = pytest.importorskip("safetensors.torch")


def model() -> RealNVPFlat:
    return perturbed(RealNVPFlat(3, num_classes=2, couplings=3, hidden=5, dropout=0.1))


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = model().to(dtype)
    saved.save(tmp_path / "a" / "flow")
    before = torch.random.get_rng_state()
    loaded = RealNVPFlat.load(tmp_path / "a" / "flow")
    assert torch.equal(before, torch.random.get_rng_state())
    assert loaded.config == saved.config
    assert not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())
    x, y = torch.randn(4, 3, dtype=dtype), torch.tensor([0, 1, 1, 0])
    assert loaded.log_prob(x, y).dtype == dtype
    assert torch.equal(loaded.log_prob(x, y), saved.log_prob(x, y))


def test_a_folder_names_its_class(tmp_path: Path) -> None:
    saved = perturbed(RealNVP((1, 8, 8), 17, num_classes=10, hidden=4, blocks=1), 0.1)
    saved.save(str(tmp_path))
    loaded = models.load(str(tmp_path))
    assert type(loaded) is RealNVP
    assert torch.equal(loaded.sample(10, list(range(10)), generator=0), saved.sample(10, list(range(10)), generator=0))


def test_a_checkpoint_replaces_the_older_one_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    model().save(tmp_path, training={"step": 1})
    torch.manual_seed(1)
    new = model()
    new.save(tmp_path, training={"step": 2})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["training"] == {"step": 2}
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "config.json", config["weights"]}
    x = torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(RealNVPFlat.load(tmp_path).double().log_prob(x), new.log_prob(x))
    before = listing(tmp_path)
    new.save(tmp_path, training={"step": 2})  # under the same names
    assert listing(tmp_path) == before


@pytest.mark.parametrize("step", ["replace", "fsync"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_failed_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: int
) -> None:
    """The first file is the weights, the second the config."""
    model().save(tmp_path)
    before, calls, works = listing(tmp_path), [], getattr(os, step)

    def fail(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == (call if step == "replace" else 2 * call - 1):  # every file is followed by its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        works(*arguments)

    monkeypatch.setattr(os, step, fail)
    torch.manual_seed(1)
    with pytest.raises(OSError, match="No space left on device") as caught:
        model().save(tmp_path)
    assert str(tmp_path) in caught.value.filename
    assert listing(tmp_path) == before


def test_weights_that_are_replaced_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = model(), perturbed(RealNVPFlat(3, num_classes=2, couplings=3, hidden=5))
    old.save(tmp_path)
    unpack, calls = checkpoint.unpack, []

    def late(path: Path) -> object:
        if not calls:
            new.save(tmp_path)
        calls.append(path)
        return unpack(path)

    monkeypatch.setattr(checkpoint, "unpack", late)
    loaded = RealNVPFlat.load(tmp_path)
    assert len(calls) == 2
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), new.parameters(), strict=True))


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "flow"
    with pytest.raises(FileNotFoundError, match=r"flow: expected a pygen checkpoint .*, got nothing there"):
        RealNVPFlat.load(folder)
    model().save(folder)
    config = folder / "config.json"
    written = config.read_text()
    weights = folder / json.loads(written)["weights"]
    whole = weights.read_bytes()

    for broken in (b"", whole[:4], whole[:100], whole[:-1], b"x" * 200, safetensors.save({"a": torch.zeros(1)})):
        weights.write_bytes(broken)
        with pytest.raises(ValueError, match=r"flow.*: expected"):
            RealNVPFlat.load(folder)
    weights.unlink()
    with pytest.raises(ValueError, match=r"flow: expected the weights weights-\w+.safetensors, which are not there"):
        RealNVPFlat.load(folder)
    weights.write_bytes(whole)

    right = json.loads(written)
    for wrong in (
        "", "{", "[]", "{}", right | {"format": 2}, right | {"model": 3}, right | {"config": None},
        right | {"weights": "../flow/weights"}, right | {"config": {"features": 0}}, right | {"config": {"nothing": 0}},
        right | {"config": right["config"] | {"hidden": 6}},
    ):  # fmt: skip
        config.write_text(wrong if isinstance(wrong, str) else json.dumps(wrong))
        with pytest.raises(ValueError, match=r"flow.*: expected"):
            RealNVPFlat.load(folder)
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"flow: expected a pygen checkpoint .*, got a folder without one"):
        models.load(folder)
    with pytest.raises(NotADirectoryError, match=r"expected a pygen checkpoint .*, got a file"):
        models.load(weights)
    config.write_text(written)
    with pytest.raises(ValueError, match="expected a checkpoint of RealNVP, got one of RealNVPFlat"):
        RealNVP.load(folder)


def test_a_config_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Other"]}')
    with pytest.raises(ValueError, match=r"config.json: expected a pygen checkpoint's config, got another file"):
        model().save(tmp_path)
    assert listing(tmp_path) == {"config.json": b'{"architectures": ["Other"]}'}


def test_an_interrupt_after_the_last_step_of_saving_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model().save(tmp_path)
    torch.manual_seed(1)
    new, calls = model(), iter([False, True])

    def interrupted(folder: Path) -> None:
        if next(calls):  # the config is in place
            raise KeyboardInterrupt

    monkeypatch.setattr("pygen.files.sync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path)
    weights = zip(models.load(tmp_path).parameters(), new.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
