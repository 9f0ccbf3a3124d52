"""The `pygen` command, and what importing pygen costs."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

import pygen
from pygen import backends, cli, info
from pygen import demo as sections


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    "module", ["pygen", "pygen.models", "pygen.data", "pygen.cli", "pygen.info", "pygen.demo", "pygen.training"]
)
def test_import_is_light(module: str) -> None:
    heavy = ("triton", "sklearn", "matplotlib", "diffusers", "safetensors", "PIL", "pygen.kernels", "pygen.benchmarks")
    code = (
        f"import sys, torch; before = set(sys.modules); import {module}; "
        f"print([m for m in {heavy} if m in sys.modules and m not in before])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_lists_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for command in ("bench", "demo", "info", "interpolate", "sample", "train"):
        assert f"  {command}  " in result.output
    assert pygen.__version__ in invoke("--version").output
    assert invoke("nonsense").exit_code == 2


def test_a_command_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli._COMMANDS, "bench", "pygen.nowhere")
    assert "No module named 'pygen.nowhere'" in invoke("--help").output.replace("\n", " ")
    result = invoke("bench", "coupling", "--quick")
    assert result.exit_code == 2
    assert "pygen bench is not available: No module named 'pygen.nowhere'" in result.output


# --- info ------------------------------------------------------------------------------------------------------------


def test_info_as_json() -> None:
    data = json.loads(invoke("info", "--json").output)
    assert data["versions"]["torch"] == torch.__version__
    assert data["tiers"]["in use"] == pygen._ext.tier
    rows = {(row["op"], row["device"]): row for row in data["ops"]}
    row = rows["affine_coupling", "cpu"]
    choice = backends.explain("affine_coupling", "cpu")
    assert (row["runs"], row["reasons"]) == (choice.implementation, list(choice.reasons))
    assert ("affine_coupling_backward", "cuda") in rows
    assert {row["state"] for row in data["verified on"]} >= {"verified"}


def test_info_names_switches_in_force_and_what_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in info.SWITCHES:
        monkeypatch.delenv(name, raising=False)
    assert "Environment switches in force: none" in invoke("info").output
    monkeypatch.setenv("OMP_NUM_THREADS", "[3]")  # brackets are not markup
    output = invoke("info").output
    assert "[3]" in output
    assert info.SWITCHES["OMP_NUM_THREADS"] in output
    assert json.loads(invoke("info", "--json").output)["switches"] == {"OMP_NUM_THREADS": "[3]"}


def test_info_knows_every_switch_of_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rows = readme.split("## Switches")[1].split("\n## ")[0].splitlines()
    switches = {name for row in rows for name in re.findall(r"`([A-Z_]+)[`=]", row.split(" | ")[0])}
    assert switches == set(info.SWITCHES)


def test_info_says_what_would_run_and_why_nothing_better() -> None:
    with backends.use("reference"):
        output = invoke("info").output
    assert "PyTorch reference" in output
    assert "asked for" in output
    for kernels, hardware, _ in info.VERIFIED_ON:
        assert kernels in output
        assert hardware in output


# --- demo ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def demo() -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")


@pytest.mark.usefixtures("demo")
def test_demo_draws_repeats_itself_and_leaves_the_global_stream_alone(tmp_path: Path) -> None:
    outputs, state = [], torch.random.get_rng_state()
    for folder in ("a", "b/c"):
        result = invoke("demo", "realnvp", "--steps", "2", "--out", str(tmp_path / folder), "--no-bench")
        assert result.exit_code == 0
        outputs.append(result.output[result.output.index("held-out") : result.output.index("RealNVP, moons")])
    pictures = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert pictures == [f"realnvp_{name}.png" for name in ("attributes", "density", "interpolations", "samples")]
    for name in pictures:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b/c" / name).read_bytes()
    assert outputs[0] == outputs[1]
    for row in ("Gaussian", "Gaussian per class", "RealNVP"):
        assert row in outputs[0]
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.usefixtures("demo")
def test_demo_of_a_density(tmp_path: Path) -> None:
    result = invoke("demo", "nsf", "--steps", "2", "--out", str(tmp_path), "--no-bench")
    assert result.exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["nsf_density.png"]
    rows = re.findall(r"(spline flow|they are from) *│ *(\d\.\d{3})", result.output)
    assert [name for name, _ in rows] == ["spline flow", "they are from"]
    assert float(rows[0][1]) > float(rows[1][1]) == 1.5


@pytest.mark.usefixtures("demo")
def test_the_same_seed_gives_the_same_losses() -> None:
    from pygen.demo import realnvp

    console = Console(quiet=True)
    curves = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        curves.append(realnvp.train_digits(3, seed, console)[1] + realnvp.train_density(3, seed, console)[1])
    assert len(curves[0]) == 6
    assert curves[0] == curves[1] != curves[2]


@pytest.mark.usefixtures("demo")
def test_training_lowers_the_loss_and_returns_the_average() -> None:
    from pygen.demo import realnvp

    model, losses = realnvp.train_density(60, 0, Console(quiet=True))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])  # worst of 6 seeds: 0.88
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.usefixtures("demo")
def test_the_baseline_is_the_gaussian_of_the_noisy_pixels() -> None:
    from pygen.demo.realnvp import gaussian

    images = torch.randint(17, (500, 1, 2, 2))
    u = (torch.arange(5, dtype=torch.float64) + 0.5) / 5
    noise = torch.cartesian_prod(u, u, u, u)  # [625, 4]: every pixel's noise on a grid, independent of the others'
    noisy = (images.flatten(1)[:, None] + noise).flatten(0, 1)  # [312500, 4]
    fitted = gaussian(images)
    # Worst of 8 seeds: 2e-15.
    torch.testing.assert_close(fitted.mean, noisy.mean(0), rtol=0, atol=1e-13)
    # The grid's variance is 1 / 12 - 1 / (12 * 5^2) per pixel. Worst of 8 seeds: 2.4e-9, as 1 / 12 is of float32.
    covariance = noisy.T.cov(correction=0) + torch.eye(4) / 300
    torch.testing.assert_close(fitted.covariance_matrix, covariance, rtol=0, atol=1e-8)


@pytest.mark.usefixtures("demo")
def test_demo_of_the_frechet_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pygen.metrics.classifier.STEPS", 30)
    outputs = []
    for folder in ("a", "b"):
        result = invoke("demo", "frechet", "--steps", "30", "--out", str(tmp_path / folder), "--no-bench")
        assert result.exit_code == 0
        outputs.append(result.output[result.output.index("Features:") : result.output.index("Pictures:")])
    for name in ("disturbances", "generator"):
        first, second = ((tmp_path / folder / f"frechet_{name}.png").read_bytes() for folder in ("a", "b"))
        assert first == second
    rows = [line.strip("│ ").split("│") for line in outputs[0].splitlines() if line.startswith("│")]
    for _, none, *_, most in rows:
        assert float(none) < float(most)
    before, after = (float(word) for word in re.findall(r"distance\s+([\d.]+)\s+before,\s+([\d.]+)", outputs[0])[0])
    assert after < before


@pytest.mark.usefixtures("demo")
def test_demo_of_diffusion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pygen.metrics.classifier.STEPS", 30)
    monkeypatch.setattr("pygen.demo.ddpm.STEPS", (2, 4))
    monkeypatch.setattr("pygen.demo.ddpm.SAMPLES", 64)
    result = invoke("demo", "ddpm", "--steps", "2", "--out", str(tmp_path), "--no-bench")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ddpm_distance.png", "ddpm_samples.png"]
    rows = [line.strip("│ ").split("│") for line in result.output.splitlines() if line.startswith("│")]
    assert [name.strip() for name, *_ in rows] == [
        "ddpm, ancestral", "ddim, first order", "dpmpp-2m, second order",
        "ddpm, seconds", "ddim, seconds", "dpmpp-2m, seconds",
    ]  # fmt: skip
    assert all(float(value) > 0 for _, *values in rows for value in values)


def test_demo_refuses(tmp_path: Path) -> None:
    result = invoke("demo", "glow")
    assert result.exit_code == 2
    assert "expected realnvp, nsf, frechet, pixelcnn, ddpm, got glow" in result.output
    (tmp_path / "file").touch()
    assert invoke("demo", "--out", str(tmp_path / "file")).exit_code == 2
    assert invoke("demo", "--steps", "0").exit_code == 2


def test_demo_names_the_extra_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "sklearn" else found(name, *a))
    result = invoke("demo", "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "the demo needs sklearn: pip install 'pygen[demo]'" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("demo")
def test_demo_ends_with_the_quick_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @click.argument("ops", nargs=-1)
    @click.option("--quick", is_flag=True)
    @click.pass_context
    def bench(ctx: click.Context, ops: tuple[str, ...], quick: bool) -> None:
        click.echo(f"benchmark of {ops}, quick={quick}")
        ctx.exit(3)

    module = types.ModuleType("stand_in")
    module.bench = bench
    monkeypatch.setitem(sys.modules, "stand_in", module)
    monkeypatch.setitem(cli._COMMANDS, "bench", "stand_in")
    monkeypatch.setattr("pygen.demo.ddpm.STEPS", (2,))
    result = invoke("demo", "--steps", "1", "--out", str(tmp_path))
    assert result.output.rstrip().endswith("'logistic_mixture'), quick=True")
    assert result.exit_code == 3
    monkeypatch.setitem(cli._COMMANDS, "bench", "pygen.nowhere")
    monkeypatch.setattr(sections, "run", lambda *_, **__: None)
    result = invoke("demo", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "pygen bench is not available" in result.output
