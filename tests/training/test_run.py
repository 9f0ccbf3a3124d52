"""Runs and their folders: what they write, how they stop, and what they refuse."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from pygen import data, models
from pygen.training import Options, Trainer
from pygen.training.build import build
from pygen.training.folder import Folder
from pygen.training.run import Run, held_out_bits
from pygen.training.start import Request, start

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

SMALL = {"hidden": 4, "blocks": 1}
OPTIONS = {"steps": 12, "batch_size": 8}


@pytest.fixture
def images(tmp_path: Path) -> str:
    numbers = np.random.RandomState(0)
    x = numbers.randint(0, 256, (40, 1, 4, 4)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=numbers.randint(0, 3, 40))
    return str(tmp_path / "data.npz")


def run(spec: str, folder: Path, *, resume: bool = False, model: str = "realnvp", **request: object) -> Run:
    request = {"settings": SMALL if not resume else None, "options": OPTIONS if not resume else {}, **request}
    return start(Request(model, spec, **request), folder, resume=resume, device="cpu", console=Console(quiet=True))


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what they write -------------------------------------------------------------------------------------------------


def test_what_lies_in_the_folder(tmp_path: Path, images: str) -> None:
    folder = tmp_path / "a" / "run"
    ran = run(images, folder, every=5)
    assert ran.train()
    names = {path.name for path in folder.iterdir()}
    (weights,) = (name for name in names if name.startswith("weights-"))
    assert names == {"config.json", weights, "training.safetensors", "metrics.jsonl", "curve.png", "samples"}
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        f"step-{step:07}.png" for step in (5, 10, 12)
    ]
    losses = [row for row in rows(folder) if "loss" in row]
    assert [row["step"] for row in losses] == list(range(1, 13))
    assert losses[3]["bits_per_dim"] == pytest.approx(losses[3]["loss"] / np.log(2))
    held_out = {row["step"]: row["held_out_bits_per_dim"] for row in rows(folder) if "loss" not in row}
    assert list(held_out) == [5, 10, 12]

    model = models.load(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), ran.trainer.averaged.parameters(), strict=True))
    facts = json.loads((folder / "config.json").read_text())["training"]
    assert (facts["step"], facts["data"], facts["held_out_bits_per_dim"]) == (12, images, held_out[12])
    assert facts["options"]["steps"] == 12
    test = data.load(images, split="test")
    x, y = test.batch(range(len(test)))
    expected = model.bits_per_dim(x, y, generator=Options().seed_of("held out", 0)).mean().item()  # one batch holds all
    assert held_out_bits(model, test, torch.device("cpu"), Options()) == pytest.approx(expected) == held_out[12]


def test_vectors_and_models_without_labels(tmp_path: Path, images: str) -> None:
    ran = run("moons", tmp_path / "points", model="realnvp-flat", settings={"hidden": 4, "couplings": 2})
    assert ran.train()
    assert (tmp_path / "points" / "samples" / "step-0000012.png").exists()
    assert run(images, tmp_path / "plain", settings={**SMALL, "num_classes": None}).train()
    assert models.load(tmp_path / "plain").num_classes is None
    table = tmp_path / "table.npy"
    np.save(table, np.random.RandomState(0).randn(30, 5).astype(np.float32))
    assert run(str(table), tmp_path / "table", model="realnvp-flat", settings={"hidden": 4}).train()
    assert not (tmp_path / "table" / "samples").exists()  # nothing to draw


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("maf", {"layers": 2, "hidden": 8}),
        ("iaf", {"layers": 2, "hidden": 8}),
        ("nsf-flat", {"layers": 2, "hidden": 8, "bins": 4}),
        ("nsf-flat", {"layers": 2, "hidden": 8, "bins": 4, "coupling": "autoregressive"}),
    ],
)
def test_flows_of_vectors_and_of_images(tmp_path: Path, images: str, model: str, settings: dict[str, object]) -> None:
    table = tmp_path / "table.npy"
    np.save(table, 100 + 30 * np.random.RandomState(0).randn(30, 5).astype(np.float32))
    for name, spec, pictures in (("points", "moons", True), ("table", str(table), False), ("images", images, True)):
        ran = run(spec, tmp_path / name, model=model, settings=settings)
        assert ran.train()
        assert (tmp_path / name / "samples" / "step-0000012.png").exists() == pictures
        assert models.load(tmp_path / name).layers[0].std.ne(1).all()  # of the first batch


def test_spline_flow_of_images(tmp_path: Path, images: str) -> None:
    assert run(images, tmp_path / "nsf", model="nsf", settings={"hidden": 4, "blocks": 1, "couplings": 2}).train()


# --- how they stop, and go on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_goes_on_to_the_same_weights(
    tmp_path: Path, images: str, monkeypatch: pytest.MonkeyPatch, signum: int
) -> None:
    assert run(images, tmp_path / "whole").train()
    advance = Trainer.advance

    def signalled(self: Trainer[models.Model]) -> torch.Tensor:
        if self.step == 6:
            os.kill(os.getpid(), signum)
        return advance(self)

    handler = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", signalled)
        stopped = run(images, tmp_path / "run")
        assert not stopped.train()
    assert signal.getsignal(signum) is handler
    assert stopped.trainer.step == 7
    assert json.loads((tmp_path / "run" / "config.json").read_text())["training"]["step"] == 7
    assert run(images, tmp_path / "run", resume=True).train()
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_resuming_truncates_the_metrics_and_completes_the_model(tmp_path: Path, images: str) -> None:
    folder = tmp_path / "run"
    assert run(images, folder).train()
    before = contents(folder)
    (folder / "config.json").unlink()  # as if killed between the state and the model
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "loss": 1.0}\n{"step": 14, "lo')
    assert run(images, folder, resume=True).train()
    assert contents(folder) == before


def test_resume_begins_where_there_is_nothing(tmp_path: Path, images: str) -> None:
    assert run(images, tmp_path / "a").train()
    assert run(images, tmp_path / "b", resume=True, settings=SMALL, options=OPTIONS).train()
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_at_a_constant_rate_a_run_can_be_made_longer(tmp_path: Path, images: str) -> None:
    constant = {**OPTIONS, "schedule": "constant", "warmup": 2}
    assert run(images, tmp_path / "long", options={**constant, "steps": 20}).train()
    assert run(images, tmp_path / "short", options=constant).train()
    assert run(images, tmp_path / "short", resume=True, options={"steps": 20}).train()
    long, short = (models.load(tmp_path / name).state_dict() for name in ("long", "short"))
    assert all(torch.equal(long[name], short[name]) for name in long)


def test_a_loss_that_is_not_finite_ends_the_run_at_its_last_checkpoint(
    tmp_path: Path, images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Trainer.advance

    def broken(self: Trainer[models.Model]) -> torch.Tensor:
        loss = advance(self)
        return loss * torch.nan if self.step == 8 else loss

    monkeypatch.setattr(Trainer, "advance", broken)
    with pytest.raises(FloatingPointError, match="not finite between steps 7 and 8: a lower learning rate"):
        run(images, tmp_path / "run", every=4).train()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["training"]["step"] == 4


# --- what they refuse ------------------------------------------------------------------------------------------------


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path, images: str) -> None:
    folder = tmp_path / "run"
    unfinished = run(images, folder)  # has begun
    unfinished.folder.release()
    before = contents(folder)
    with pytest.raises(FileExistsError, match=r"run: expected a new folder, got one with a run .*--resume continues"):
        run(images, folder)
    (folder / "training.safetensors").rename(folder / "other")
    run(images, tmp_path / "another").folder.release()  # any other folder will do
    models.RealNVP((1, 4, 4), **SMALL).save(folder)
    with pytest.raises(FileNotFoundError, match=r"run: has no training.safetensors to resume from, only config.json"):
        run(images, folder, resume=True)
    (folder / "training.safetensors").write_bytes(before["training.safetensors"][:-1])
    with pytest.raises(ValueError, match=r"training.safetensors: expected a safetensors file of pygen"):
        run(images, folder, resume=True)


def test_one_process_at_a_time(tmp_path: Path, images: str) -> None:
    ran = run(images, tmp_path / "run")
    with pytest.raises(FileExistsError, match="run: another pygen train is at work there"):
        run(images, tmp_path / "run", resume=True)
    assert ran.train()
    assert run(images, tmp_path / "run", resume=True).train()


def test_a_run_is_resumed_with_its_own_options(tmp_path: Path, images: str) -> None:
    folder = tmp_path / "run"
    run(images, folder).folder.release()
    before = contents(folder)
    other = str(tmp_path / "other.npz")
    np.savez(other, x=np.zeros((30, 1, 4, 4), np.uint8), y=np.arange(30) % 3)
    for spec, request, named in (
        (images, {"options": {"lr": 0.5, "steps": 13}}, "--lr 0.5, not 0.002; --steps 13, not 12"),
        (images, {"options": {"batch_size": 9}}, "--batch-size 9, not 8"),
        (images, {"settings": {"hidden": 5}}, "--set hidden=5, not hidden=4 blocks=1"),
        (images, {"loading": {"held_out": 0.2}}, "--load held_out=0.2, not nothing"),
        (images, {"model": "realnvp-flat"}, "MODEL realnvp-flat, not realnvp"),
        (other, {}, f"--data {other}, not {images}; the number of samples 27, not 36"),
    ):
        with pytest.raises(ValueError, match=r"run: a run is resumed with the options .*; got ") as caught:
            run(spec, folder, resume=True, **request)
        assert str(caught.value).endswith(named)
    assert contents(folder) == before
    run(images, folder, resume=True, options={"lr": 0.002, "steps": 12}, settings=SMALL).folder.release()


@pytest.mark.parametrize(
    ("model", "spec", "settings", "message"),
    [
        (
            "glow",
            "images",
            {},
            r"expected a model: realnvp, .*maf, iaf, pixelcnn, gated-pixelcnn, pixelcnn\+\+ or ddpm; got 'glow'",
        ),
        ("realnvp", "moons", {}, "realnvp models integer levels; the data is Toy"),
        ("realnvp-flat", "images", {}, "realnvp-flat models vectors of real numbers; the data is Arrays"),
        ("nsf", "moons", {}, "nsf models integer levels; the data is Toy"),
        ("maf", "moons", {"nonlinearity": "gelu"}, "expected nonlinearity as one of relu, leaky_relu"),
        ("nsf-flat", "moons", {"coupling": 2}, "expected coupling as str, got 2"),
        ("realnvp", "images", {"width": 3}, "realnvp has no setting 'width': expected num_classes, scales, hidden"),
        ("realnvp", "images", {"shape": 3}, "realnvp has no setting 'shape'"),
        ("realnvp", "images", {"hidden": "many"}, "expected hidden as an integer, got 'many'"),
        ("realnvp", "images", {"hidden": 2.5}, "expected hidden as an integer, got 2.5"),
        ("realnvp", "images", {"hidden": True}, "expected hidden as an integer, got True"),
        ("gated-pixelcnn", "images", {"dilations": [1, 2.5]}, "expected dilations as an integer, got 2.5"),
        ("gated-pixelcnn", "images", {"spatial_context": True}, "gated-pixelcnn has no setting 'spatial_context'"),
        ("realnvp", "images", {"dropout": "x"}, "expected dropout as a number, got 'x'"),
        ("realnvp", "images", {"scales": "x"}, "expected scales as an integer or none, got 'x'"),
        ("realnvp", "images", {"scales": 9}, "expected height and width divisible"),
        ("realnvp", "images", {"num_classes": 4}, "expected num_classes=3 or none, as the data has, got 4"),
        ("realnvp", "nowhere", {}, "nowhere: expected a path or one of digits"),
    ],
)
def test_what_cannot_be_built(
    tmp_path: Path, images: str, model: str, spec: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(images if spec == "images" else spec, tmp_path / "run", model=model, settings=settings)
    assert not (tmp_path / "run").exists()


def test_settings_reach_the_model(images: str) -> None:
    model = build("realnvp", data.load(images), {"hidden": 5, "dropout": 0, "scales": None, "alpha": 0.1})
    assert {key: model.config[key] for key in ("hidden", "dropout", "alpha")} == {
        "hidden": 5, "dropout": 0.0, "alpha": 0.1,
    }  # fmt: skip
    assert (model.config["levels"], model.num_classes, model.shape) == (256, 3, (1, 4, 4))
    for given, meant in (([1, 2], [1, 2]), (2, [2])):
        gated = build("gated-pixelcnn", data.load(images), {"hidden": 4, "layers": 1, "dilations": given})
        assert gated.config["dilations"] == meant


def test_the_lock_is_the_processes(tmp_path: Path) -> None:
    first, second = Folder(tmp_path), Folder(tmp_path)
    first.claim()
    with pytest.raises(FileExistsError, match="another pygen train"):
        second.claim()
    first.release()
    second.claim()
    second.release()


def test_a_run_that_another_process_did_meanwhile_stays(
    tmp_path: Path, images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Folder.claim

    def late(self: Folder) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "claim", claim)
            assert run(images, tmp_path / "run").train()
        claim(self)

    monkeypatch.setattr(Folder, "claim", late)
    with pytest.raises(FileExistsError, match="with a run"):
        run(images, tmp_path / "run", options={**OPTIONS, "seed": 1})
    assert json.loads((tmp_path / "run" / "config.json").read_text())["training"]["options"]["seed"] == 0


def test_held_out_samples_of_another_kind(tmp_path: Path) -> None:
    x = np.zeros((20, 1, 4, 4), np.uint8)
    np.savez(tmp_path / "shapes.npz", x_train=x, x_test=np.zeros((20, 1, 8, 8), np.uint8))
    np.savez(tmp_path / "labels.npz", x_train=x, x_test=x, y_train=np.arange(20) % 3)
    for name in ("shapes.npz", "labels.npz"):
        with pytest.raises(ValueError, match=f"{name}.*"):
            run(str(tmp_path / name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_options_that_loading_sets_itself(tmp_path: Path, images: str) -> None:
    with pytest.raises(ValueError, match="options of the data's own in --load, got split"):
        run(images, tmp_path / "run", loading={"split": "test"})


def test_a_run_cannot_be_made_shorter_than_it_is(tmp_path: Path, images: str) -> None:
    assert run(images, tmp_path / "run", options={**OPTIONS, "schedule": "constant"}).train()
    with pytest.raises(ValueError, match="--steps 10, not 12"):
        run(images, tmp_path / "run", resume=True, options={"steps": 10})
