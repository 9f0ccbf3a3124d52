"""`pygen train`, `sample`, `interpolate` and `info`: as a user calls them, and as a user gets them wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from pygen import cli, models
from pygen.data import load
from pygen.models import RealNVP

from ..models.test_layers import perturbed

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

SMALL = ("--set", "hidden=4", "--set", "blocks=1", "--steps", "4", "--batch-size", "8", "--device", "cpu")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], catch_exceptions=False)


def refused(*arguments: object) -> str:
    """What a call says that ends with exit code 2, in one sentence."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.output.splitlines() if line]
    return line.removeprefix("Error: ")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    numbers = np.random.RandomState(0)
    x = numbers.randint(0, 256, (40, 1, 4, 4)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=numbers.randint(0, 3, 40))
    return tmp_path / "data.npz"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    perturbed(RealNVP((1, 4, 4), 256, num_classes=3, hidden=4, blocks=1), 0.1).float().save(tmp_path / "model")
    return tmp_path / "model"


# --- as a user calls them --------------------------------------------------------------------------------------------


def test_train_then_sample_then_look(tmp_path: Path, images: Path) -> None:
    run = tmp_path / "run"
    result = invoke("train", "realnvp", "--data", images, "--out", run, *SMALL)
    assert result.exit_code == 0, result.output
    assert "step 4: " in result.output
    assert f"{run} holds the model: pygen sample {run} -n 64 --out samples.png" in result.output

    result = invoke("sample", run, "-n", "64", "--out", tmp_path / "samples.png")
    assert result.exit_code == 0, result.output
    assert result.output.endswith(f"wrote {tmp_path / 'samples.png'}\n")
    sheet = Image.open(tmp_path / "samples.png")
    assert (sheet.mode, sheet.size) == ("L", (8 * (64 + 8) + 8,) * 2)

    facts = json.loads(invoke("info", run, "--json").output)
    assert facts["model"] == "RealNVP"
    assert facts["parameters"] == sum(p.numel() for p in models.load(run).parameters())
    assert facts["training"]["step"] == 4
    text = " ".join(invoke("info", run).output.split())
    for part in ("RealNVP", "hidden=4", "4 of 4 steps on", "held-out bits/dim", "batch_size=8"):
        assert part in text
    models.load(run).save(tmp_path / "copy")  # which knows of no training
    assert "trained" not in invoke("info", tmp_path / "copy").output
    models.load(run).save(tmp_path / "own", training={"epochs": 3})
    assert "epochs=3" in invoke("info", tmp_path / "own").output


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pygen.training.run import Run

    monkeypatch.setattr(Run, "train", lambda self: False)
    result = invoke("train", "realnvp", "--data", images, "--out", tmp_path / "run", *SMALL)
    assert result.exit_code == 130
    command = f"pygen train realnvp --data {images} --out {tmp_path / 'run'} --resume"
    assert f"Stopped and saved after 0 steps; go on with: {command}" in result.output


def test_samples_are_those_of_the_model(tmp_path: Path, saved: Path) -> None:
    model = models.load(saved)
    assert invoke("sample", saved, "-n", "70", "--seed", "3", "--out", tmp_path / "a.npz").exit_code == 0
    with np.load(tmp_path / "a.npz") as arrays:
        assert torch.equal(torch.from_numpy(arrays["samples"]), model.sample(70, generator=3))
        assert torch.equal(torch.from_numpy(arrays["labels"]), model.draw_labels(70, generator=3))
    options = ("--class", "2", "--temperature", "0.5", "--seed", "3")
    assert invoke("sample", saved, "-n", "3", *options, "--out", tmp_path / "b.npz").exit_code == 0
    with np.load(tmp_path / "b.npz") as arrays:
        expected = model.sample(3, 2, generator=3, temperature=0.5)
        assert torch.equal(torch.from_numpy(arrays["samples"]), expected)
        assert arrays["labels"].tolist() == [2, 2, 2]
    RealNVP((1, 4, 4), 256, hidden=4, blocks=1).save(tmp_path / "plain")
    assert invoke("sample", tmp_path / "plain", "-n", "3", "--out", tmp_path / "c.npz").exit_code == 0
    with np.load(tmp_path / "c.npz") as arrays:
        assert (list(arrays), arrays["levels"]) == (["samples", "levels"], 256)


def test_samples_are_data(tmp_path: Path) -> None:
    RealNVP((1, 4, 4), 17, num_classes=3, hidden=4, blocks=1).save(tmp_path / "model")
    assert invoke("sample", tmp_path / "model", "-n", "9", "--out", tmp_path / "a.npz").exit_code == 0
    data = load(tmp_path / "a.npz", held_out=0)
    assert (len(data), data.shape, data.levels, data.classes) == (9, (1, 4, 4), 17, ("0", "1", "2"))
    command = ("interpolate", tmp_path / "model", "--data", tmp_path / "a.npz", "--out", tmp_path / "b.npz")
    assert invoke(*command).exit_code == 0


def test_pictures_show_the_samples(tmp_path: Path) -> None:
    model = perturbed(RealNVP((3, 12, 8), 256, hidden=4, blocks=1), 0.1).float()
    model.save(tmp_path / "model")
    assert invoke("sample", tmp_path / "model", "-n", "3", "--out", tmp_path / "a.png").exit_code == 0
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    gap, zoom = 2, 5  # 12 pixels become 60
    assert sheet.shape == (2 * (60 + gap) + gap, 2 * (40 + gap) + gap, 3)
    x = model.eval().sample(3, generator=0).permute(0, 2, 3, 1).numpy()
    middle = slice(gap + zoom // 2, None, zoom)
    assert (sheet[middle, middle][:12, :8] == x[0]).all()
    assert (sheet[middle, gap + 40 + gap + zoom // 2 :: zoom][:12, :8] == x[1]).all()
    assert (sheet[gap + 60 + gap :, gap + 40 + gap :] == 96).all()  # no fourth sample


@pytest.mark.parametrize(("name", "kind"), [("PixelCNN", "npy"), ("PixelCNN", "png"), ("DDPM", "npy")])
def test_completions(tmp_path: Path, name: str, kind: str) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden": 8, "num_classes": 3} | ({"widths": (1,)} if name == "DDPM" else {})
    getattr(models, name)((1, 2, 2), 256, **sizes).save(tmp_path / "model")
    x = np.random.RandomState(0).randint(0, 256, (5, 1, 2, 2)).astype(np.uint8)
    np.save(tmp_path / "images.npy", x)
    mask = np.array([[True, False], [True, True]])
    if kind == "npy":
        np.save(tmp_path / "mask.npy", mask[None])
    else:
        Image.fromarray((255 * mask).astype(np.uint8)).save(tmp_path / "mask.png")
    given = ("--complete", tmp_path / "images.npy", "--known", tmp_path / f"mask.{kind}")
    steps = ("--steps", "5") if name == "DDPM" else ()
    result = invoke("sample", tmp_path / "model", "-n", "12", *given, *steps, "--out", tmp_path / "out.npz")
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "out.npz") as arrays:
        found, source = arrays["samples"], x[np.arange(12) % 5]
        assert (found[:, 0][:, mask] == source[:, 0][:, mask]).all()
        assert (found != source).any()


def test_interpolation(tmp_path: Path, saved: Path, images: Path) -> None:
    model = models.load(saved)
    pairs = ("--pair", "3", "70", "--pair", "0", "1")
    assert (
        invoke("interpolate", saved, "--seed", "5", *pairs, "--frames", "4", "--out", tmp_path / "a.npz").exit_code == 0
    )
    with np.load(tmp_path / "a.npz") as arrays:
        path = torch.from_numpy(arrays["samples"])
    own = model.sample(71, generator=5)
    assert path.shape == (2, 4, 1, 4, 4)
    # Latents in float32 come back as levels that are off by one at the most.
    assert (path[:, [0, 3]].int() - own[[3, 70, 0, 1]].reshape(2, 2, 1, 4, 4).int()).abs().max() <= 1
    assert invoke("interpolate", saved, "--data", images, "--out", tmp_path / "b.png").exit_code == 0
    assert Image.open(tmp_path / "b.png").size == (10 * (64 + 8) + 8, 8 * (64 + 8) + 8)
    pair = ("--data", images, "--pair", "0", "39", "--frames", "2")
    assert invoke("interpolate", saved, *pair, "--out", tmp_path / "c.npz").exit_code == 0
    with np.load(tmp_path / "c.npz") as arrays, np.load(images) as given:
        assert np.abs(arrays["samples"][0].astype(int) - given["x"][[0, 39]]).max() <= 1


def test_help_has_examples() -> None:
    for command in ("train", "sample", "interpolate", "info", "demo", "fid"):
        text = invoke(command, "--help").output
        assert f"Examples:\n    pygen {command}" in text
        assert max(map(len, text.splitlines())) <= 100


# --- as a user gets them wrong ---------------------------------------------------------------------------------------


def test_wrong_arguments_of_train(tmp_path: Path, images: Path) -> None:
    train = ("train", "realnvp", "--data", images, "--out", tmp_path / "run")
    assert (
        refused("train", "glow", *train[2:])
        == "expected a model: realnvp, realnvp-flat, nsf, nsf-flat, maf, iaf, pixelcnn, gated-pixelcnn, pixelcnn++ or "
        "ddpm; got 'glow'"
    )
    assert refused(*train, "--set", "hiden=4").startswith(
        "realnvp has no setting 'hiden': expected num_classes, scales"
    )
    assert refused(*train, "--set", "hidden") == "expected --set NAME=VALUE, got hidden"
    assert "expected options that apply to arrays" in refused(*train, "--load", "size=4")
    assert refused(*train, "--steps", "0") == "expected steps >= 1, got 0"
    assert refused(*train, "--every", "0") == "expected --every >= 1, got 0"
    assert refused(*train, "--device", "abacus").startswith(
        "expected a device such as cpu, cuda or cuda:1, got 'abacus'"
    )
    missing = refused("train", "realnvp", "--data", tmp_path / "none", "--out", tmp_path / "run")
    assert missing.startswith(f"{tmp_path / 'none'}: expected a path or one of digits")
    assert not (tmp_path / "run").exists()
    assert invoke(*train, "--schedule", "linear").exit_code == 2


def test_a_run_is_not_overwritten(tmp_path: Path, images: Path) -> None:
    train = ("train", "realnvp", "--data", images, "--out", tmp_path / "run", *SMALL)
    assert invoke(*train).exit_code == 0
    before = contents(tmp_path / "run")
    assert refused(*train).startswith(f"{tmp_path / 'run'}: expected a new folder, got one with a run")
    assert refused(*train, "--resume", "--lr", "0.1").endswith("got --lr 0.1, not 0.002")
    assert contents(tmp_path / "run") == before
    assert invoke(*train, "--resume").exit_code == 0
    assert contents(tmp_path / "run") == before


def test_wrong_arguments_of_sample(tmp_path: Path, saved: Path, images: Path) -> None:
    out = ("--out", tmp_path / "s.png")
    (tmp_path / "s.png").write_text("earlier")
    assert refused("sample", tmp_path / "none", *out).endswith("(a folder with config.json), got nothing there")
    assert refused("sample", images, *out).endswith("(a folder with config.json), got a file")
    assert refused("sample", saved, "--class", "3", *out) == "expected labels in [0, 3), got 3"
    assert refused("sample", saved, "--class", 10**20, *out) == f"expected labels in [0, 3), got {10**20}"
    assert invoke("sample", saved, "-n", 10**15, *out).exit_code == 2
    for device in ("xla", "mps:7", "meta"):
        said = refused("sample", saved, "--device", device, *out)
        assert said == f"expected a device that torch can compute on, got {device}"
    assert refused("sample", saved, "--temperature", "-1", *out) == "expected a finite temperature >= 0, got -1.0"
    assert refused("sample", saved, "--seed", "-1", *out) == "expected a seed in [0, 2^64), got -1"
    assert refused("sample", saved, "--out", tmp_path / "s.jpg").endswith("expected a name that ends in .png or .npz")
    assert refused("sample", saved, "--out", tmp_path / "no" / "s.png").endswith(
        "expected a file in a folder that exists"
    )
    together = "expected --complete and --known together: images, and what is known of them"
    assert refused("sample", saved, "--complete", images, *out) == together
    mask = tmp_path / "mask.npy"
    complete = ("sample", saved, "--complete", images, "--known", mask, *out)
    assert refused(*complete) == f"{mask}: No such file or directory"
    np.save(mask, np.ones((3, 3)))
    assert refused(*complete) == f"{mask}: expected a mask of shape (4, 4) or (1, 4, 4), got (3, 3)"
    np.save(mask, np.array([["a"]]))
    assert refused(*complete).startswith(f"{mask}: expected a mask ")
    np.save(mask, np.array([[None]]))
    assert refused(*complete).startswith(f"{mask}: expected an array (.npy), got ")
    for wrong in (b"", images.read_bytes()):
        mask.write_bytes(wrong)
        assert refused(*complete).startswith(f"{mask}: expected an array (.npy), got ")
    picture = tmp_path / "mask.png"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 40)).astype(np.uint8)).save(picture)
    picture.write_bytes(picture.read_bytes()[:-300])
    known = ("--complete", images, "--known", picture)
    assert refused("sample", saved, *known, *out).startswith(f"{picture}: expected a picture, got ")
    loaded = refused("sample", saved, *known, "--load", "spec=x", *out)
    assert loaded == "expected options of the data's own in --load, got spec"
    for command in ("sample", "interpolate"):
        assert refused(command, saved, "--load", "levels=4", *out).startswith("expected --load together with --")
    np.save(mask, np.ones((4, 4)))
    assert refused(*complete) == "RealNVP cannot complete samples that are known in part"
    other = tmp_path / "other.npy"
    np.save(other, np.zeros((9, 1, 2, 2), np.uint8))
    unlike = refused("sample", saved, "--complete", other, "--known", mask, *out)
    assert unlike.startswith(f"{other}: expected samples as the model's, [1, 4, 4], levels 256; got ")
    models.RealNVPFlat(3, hidden=4).save(tmp_path / "flat")
    undrawn = refused("sample", tmp_path / "flat", *out)
    assert undrawn.endswith("samples of shape 3 cannot be drawn: expected a name that ends in .npz")
    assert (tmp_path / "s.png").read_text() == "earlier"


def test_wrong_arguments_of_interpolate(
    tmp_path: Path, saved: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ("--out", tmp_path / "p.png")
    assert refused("interpolate", saved, "--data", images, "--pair", "0", "99", *out).startswith(
        "expected indices in [0, 40), got 99"
    )
    np.save(tmp_path / "x.npy", np.zeros((20, 1, 4, 4), np.uint8))
    unlabelled = refused("interpolate", saved, "--data", tmp_path / "x.npy", *out)
    assert unlabelled.startswith("expected data with labels, which the model needs, got Arrays(20 x ")
    loaded = refused("interpolate", saved, "--data", images, "--load", "spec=x", *out)
    assert loaded == "expected options of the data's own in --load, got spec"
    np.savez(tmp_path / "two.npz", x=np.zeros((2, 1, 4, 4), np.uint8), y=[1, 2])
    apart = refused("interpolate", saved, "--data", tmp_path / "two.npz", *out)
    assert apart == "expected two samples of one label among the first 2, got none: choose with --pair I J"
    models.PixelCNN((1, 4, 4), 256, hidden=8).save(tmp_path / "other")
    assert refused("interpolate", tmp_path / "other", *out) == "PixelCNN has no latent space to interpolate in"
    assert not (tmp_path / "p.png").exists()


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("safetensors", ("train", "realnvp", "--data", "moons", "--out", "run"), "pygen train needs safetensors"),
        ("matplotlib", ("train", "realnvp", "--data", "moons", "--out", "run"), "pygen train needs matplotlib"),
        ("safetensors", ("sample", "model", "--out", "s.png"), "checkpoints need safetensors"),
        ("matplotlib", ("sample", "model", "--out", "s.png"), "a picture needs matplotlib"),
        ("PIL", ("sample", "model", "--out", "s.png"), "a picture needs PIL"),
        ("safetensors", ("info", "model"), "checkpoints need safetensors"),
    ],
)
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, saved: Path, module: str, arguments: tuple[str, ...], said: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == module else found(name, *a))
    assert refused(*arguments) == f"{said}: pip install 'pygen[train]'"
    assert sorted(os.listdir()) == ["model"]


# --- a disk that is full, or not ours --------------------------------------------------------------------------------

FULL = """
import resource, sys
from pygen.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
main(sys.argv[2:])
"""


def with_room_for(size: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A call where no file can grow beyond a size."""
    command = [sys.executable, "-W", "ignore", "-c", FULL, str(size), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, saved: Path, images: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "s.png"
    options = ("--data", images, "--out", run, *SMALL, "--set", "hidden=24")  # a state larger than the pictures
    out.write_text("earlier")
    done = with_room_for(100, "sample", saved, "--out", out)
    assert (done.returncode, done.stderr) == (2, f"Error: {out}: File too large\n")
    done = with_room_for(400_000, "train", "realnvp", *options)
    assert (done.returncode, done.stderr) == (2, f"Error: {run / 'training.safetensors'}: File too large\n")
    assert contents(run) == {}

    assert invoke("train", "realnvp", *options, "--schedule", "constant").exit_code == 0
    before = contents(run)
    longer = ("train", "realnvp", "--data", images, "--out", run, "--resume", "--steps", "8", "--device", "cpu")
    done = with_room_for(400_000, *longer)  # enough for pictures and metrics, not for the state
    assert (done.returncode, done.stderr) == (2, f"Error: {run / 'training.safetensors'}: File too large\n")
    after = contents(run)
    changed = {"config.json", "curve.png", "metrics.jsonl"}  # these say that it is a run of 8 steps now
    assert {name: after[name] for name in before.keys() - changed} == {
        name: before[name] for name in before.keys() - changed
    }
    assert json.loads(after["config.json"])["training"]["step"] == 4
    assert out.read_text() == "earlier"
    assert invoke(*longer).exit_code == 0  # once there is room
    assert json.loads((run / "config.json").read_text())["training"]["step"] == 8


def test_a_sample_that_cannot_be_read(tmp_path: Path) -> None:
    """Pictures are decoded when their turn comes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(20):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(photos / f"{i:02}.png")
    whole = (photos / "03.png").read_bytes()
    (photos / "03.png").write_bytes(whole[:-20])
    result = invoke("train", "realnvp", "--data", photos, "--out", tmp_path / "run", *SMALL)
    assert result.exit_code == 2
    assert f"Error: {photos / '03.png'}: " in result.output.replace("\n", " ")


def test_no_permission(tmp_path: Path, saved: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere: where the operating system does not refuse, its answer is imitated."""
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if os.access(locked, os.W_OK):
        refuse(monkeypatch, locked)
    try:
        said = refused("sample", saved, "--out", locked / "s.png")
        assert said == f"{locked / 's.png'}: the folder cannot be written to"
        said = refused("train", "realnvp", "--data", images, "--out", locked / "run", *SMALL)
        assert said == f"{locked / 'run'}: Permission denied"
        assert list(locked.iterdir()) == []
    finally:
        locked.chmod(0o700)


def refuse(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    access, mkdir = os.access, Path.mkdir

    def no_access(path: Path, mode: int) -> bool:
        return Path(path) != folder and access(path, mode)

    def no_mkdir(self: Path, *arguments: object, **options: object) -> None:
        if self.parent == folder:
            raise PermissionError(13, "Permission denied", str(self))
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(os, "access", no_access)
    monkeypatch.setattr(Path, "mkdir", no_mkdir)
