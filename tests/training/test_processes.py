"""Several processes by torchrun, over gloo: one training, one set of samples."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pygen.models import RealNVP

from ..models.test_layers import perturbed
from .test_kills import DRIVER, ENVIRONMENT, check_bytes

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run([*command, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def test_two_processes_sample_what_one_does(tmp_path: Path) -> None:
    model = perturbed(RealNVP((1, 4, 4), 17, num_classes=3, hidden=4, blocks=1), 0.1).float()
    model.save(tmp_path / "model")
    arguments = ["-m", "pygen", "sample", str(tmp_path / "model"), "-n", "150", "--temperature", "0.9", "--out"]
    alone = [sys.executable, *arguments, str(tmp_path / "one.npz")]
    subprocess.run(alone, env=ENVIRONMENT, check=True, capture_output=True)
    done = torchrun(2, *arguments, str(tmp_path / "two.npz"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "two.npz") as arrays:
        assert arrays["samples"].shape == (150, 1, 4, 4)
        assert set(arrays["labels"]) == {0, 1, 2}


def test_three_processes_train_and_resume_to_the_same_bits(tmp_path: Path) -> None:
    """Three, since sums of two numbers have but one order."""
    numbers = np.random.RandomState(0)
    np.savez(tmp_path / "data.npz", x=numbers.randint(0, 256, (50, 1, 4, 4)).astype(np.uint8))
    options = ["train", "realnvp", "--data", str(tmp_path / "data.npz"), "--resume"]
    options += ["--set", "hidden=32", "--set", "dropout=0.2", "--batch-size", "12", "--steps", "12", "--every", "4"]
    contents = []
    for folder, moments in (("whole", ["-"]), ("killed", ["replace:9", "-"])):  # in the second state
        for moment in moments:
            done = torchrun(3, str(DRIVER), moment, *options, "--out", str(tmp_path / folder))
            assert (done.returncode == 0) == (moment == "-"), done.stderr
        files = (path for path in (tmp_path / folder).rglob("*") if path.is_file())
        contents.append({str(path.relative_to(tmp_path / folder)): path.read_bytes() for path in files})
    check_bytes(contents[1], contents[0])
    done = torchrun(2, "-m", "pygen", *options, "--out", str(tmp_path / "whole"))
    assert done.returncode != 0
    assert "the number of processes 2, not 3" in done.stderr
    assert os.path.join("pygen", "cli") not in done.stderr  # no traceback but torchrun's own


@pytest.mark.parametrize(
    ("model", "settings"),
    [("gated-pixelcnn", ["hidden=4", "layers=1"]), ("pixelcnn++", ["hidden=4", "blocks=1", "mixtures=2"])],
)
def test_two_processes_train_what_has_its_own_first_state(tmp_path: Path, model: str, settings: list[str]) -> None:
    """Every gradient is reduced, of what `initialize` has set too; labels, and no pictures."""
    numbers = np.random.RandomState(0)
    np.savez(tmp_path / "data.npz", x=numbers.randint(0, 256, (20, 1, 4, 4)).astype(np.uint8), y=np.arange(20) % 2)
    options = ["train", model, "--data", str(tmp_path / "data.npz"), "--steps", "3", "--batch-size", "8"]
    options += [text for setting in settings for text in ("--set", setting)]
    done = torchrun(2, "-m", "pygen", *options, "--pictures", "0", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run" / "samples").exists()
