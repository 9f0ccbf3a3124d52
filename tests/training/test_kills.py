"""Runs that are killed (SIGKILL, at any moment) and resumed end as if nothing had happened, to the last byte."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

DRIVER = Path(__file__).with_name("driver.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONWARNINGS": "ignore"}


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """A small RealNVP with all that is random: noise, dropout, labels, an order of the data."""
    numbers = np.random.RandomState(0)
    images = numbers.randint(0, 256, (50, 1, 4, 4)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=images, y=numbers.randint(0, 3, 50))
    model = ["realnvp", "--data", str(tmp_path / "data.npz")]
    settings = [word for pair in ("hidden=4", "blocks=1", "dropout=0.2") for word in ("--set", pair)]
    return [*model, *settings, "--batch-size", "16"]


def start(moment: str, folder: Path, options: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(DRIVER), moment, "train", *options, "--out", str(folder), "--resume"]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(folder: Path, options: list[str]) -> dict[str, bytes]:
    """Runs to the end: all files and their bytes."""
    process = start("-", folder, options)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed(folder: Path, options: list[str], moment: str, after: float | None = None) -> bool:
    """Kills a run: by itself at a moment, or from outside `after` seconds from when training began.

    after < 0: from when the process began. Whether the kill came before the end of the run.
    """
    process = start(moment, folder, options)
    if after is not None:
        if after >= 0:
            assert "ready\n" in iter(process.stdout.readline, "")
        time.sleep(abs(after))
        process.kill()
    said, _ = process.communicate()
    assert process.returncode == (-9 if moment != "-" else process.returncode), said
    return process.returncode == -9


def check_bytes(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_a_few_kills(tmp_path: Path, options: list[str]) -> None:
    options = [*options, "--steps", "40", "--every", "10"]
    expected = finish(tmp_path / "undisturbed", options)
    assert {"curve.png", "metrics.jsonl", "samples/step-0000040.png"} <= expected.keys()
    folder = tmp_path / "run"
    # The first state; the second while it is written, and between it and the model; the model's config; while training.
    for moment, after in (
        ("replace:1", None),
        ("fsync:1", None),
        ("replaced:4", None),
        ("replace:6", None),
        ("-", random.Random(0).uniform(0.0, 0.5)),
    ):
        assert killed(folder, options, moment, after)
    check_bytes(finish(folder, options), expected)


@pytest.mark.kills
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.environ.get("PYGEN_TEST_KILLS") != "1", reason="runs with PYGEN_TEST_KILLS=1")
def test_fifty_kills(tmp_path: Path, options: list[str]) -> None:
    options = [*options, "--steps", "2000", "--every", "10"]
    expected = finish(tmp_path / "undisturbed", options)
    folder, chance, kills = tmp_path / "run", random.Random(0), 0
    while kills < 50:
        moment, after = "-", chance.uniform(0, 1)
        if kills % 5 == 3:
            after = chance.uniform(-4.0, 0.0)  # perhaps before training begins
        elif kills % 5 == 4:
            moment, after = f"{chance.choice(['fsync', 'replace', 'replaced'])}:{chance.randint(1, 12)}", None
        assert killed(folder, options, moment, after)
        kills += 1
    check_bytes(finish(folder, options), expected)
