"""Checkpoints: what was saved comes back, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from pygen.models import RealNVP, RealNVPFlat

from .test_layers import perturbed

safetensors = pytest.importorskip("safetensors.torch")


def model() -> RealNVPFlat:
    return perturbed(RealNVPFlat(3, num_classes=2, couplings=3, hidden=5, dropout=0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = model().to(dtype)
    saved.save(tmp_path / "flow.safetensors")
    before = torch.random.get_rng_state()
    loaded = RealNVPFlat.load(tmp_path / "flow.safetensors")
    assert torch.equal(before, torch.random.get_rng_state())
    assert loaded.config == saved.config
    assert not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())
    x, y = torch.randn(4, 3, dtype=dtype), torch.tensor([0, 1, 1, 0])
    assert loaded.log_prob(x, y).dtype == dtype
    assert torch.equal(loaded.log_prob(x, y), saved.log_prob(x, y))
    assert [p.name for p in tmp_path.iterdir()] == ["flow.safetensors"]


def test_images_round_trip(tmp_path: Path) -> None:
    saved = perturbed(RealNVP((1, 8, 8), 17, num_classes=10, hidden=4, blocks=1), 0.1)
    saved.save(tmp_path / "a")
    loaded = RealNVP.load(str(tmp_path / "a"))
    assert torch.equal(loaded.sample(10, list(range(10)), generator=0), saved.sample(10, list(range(10)), generator=0))


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "flow.safetensors"
    old = model()
    old.save(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        model().save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "flow.safetensors"
    with pytest.raises(FileNotFoundError):
        RealNVPFlat.load(path)
    model().save(path)
    whole = path.read_bytes()
    for broken in (b"", whole[:4], whole[:100], whole[:-1], b"x" * 200, safetensors.save({"a": torch.zeros(1)})):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="expected a pygen checkpoint"):
            RealNVPFlat.load(path)
    for header in ("{", "[]", json.dumps({"model": "RealNVPFlat"}), json.dumps({"config": {}})):
        path.write_bytes(safetensors.save({"a": torch.zeros(1)}, {"pygen": header}))
        with pytest.raises(ValueError, match="expected a pygen checkpoint"):
            RealNVPFlat.load(path)
    with pytest.raises(IsADirectoryError, match="got a directory"):
        RealNVPFlat.load(tmp_path)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="expected a checkpoint of RealNVP, got one of RealNVPFlat"):
        RealNVP.load(path)
