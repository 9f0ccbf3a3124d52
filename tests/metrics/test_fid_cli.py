"""`pygen fid`: what it prints, of whatever it compares, by one process and several; and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pygen.metrics import Inception, extract_features, frechet_distance, frechet_distance_from_features
from pygen.metrics.fid import FrechetSide, compute_fid
from pygen.models import RealNVP, RealNVPFlat

from ..cli.test_models import invoke, refused
from ..data.files import pixels, write_picture
from ..models.test_layers import perturbed
from ..training.test_kills import ENVIRONMENT
from . import peers

pytest.importorskip("safetensors")
Image = pytest.importorskip("PIL.Image")


def said(*arguments: object) -> str:
    """What a call prints on stdout."""
    result = invoke("fid", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def value(*arguments: object) -> float:
    title, _, number = said(*arguments).rpartition(":  ")
    assert title.startswith("F")
    return float(number)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(peers.state(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of pictures, the second of them brighter."""
    for name, low in (("a", 0), ("b", 90)):
        for i in range(7):
            write_picture(tmp_path / name / f"{i}.png", np.maximum(pixels(20, 24, 3, seed=i), low))
    return tmp_path / "a", tmp_path / "b"


@pytest.fixture
def features(tmp_path: Path) -> Callable[..., tuple[Path, np.ndarray]]:
    def write(name: str, n: int, d: int = 8, scale: float = 1.0, dtype: str = "float32") -> tuple[Path, np.ndarray]:
        x = (scale * np.random.RandomState(n).randn(n, d) + 3).astype(dtype)
        np.save(tmp_path / name, x)
        return tmp_path / name, x

    return write


def gaussian(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = x.astype(np.float64)
    return x.mean(0), np.cov(x, rowvar=False)


# --- what it compares -------------------------------------------------------------------------------------------------


def test_folders(photos: tuple[Path, Path], weights: Path) -> None:
    a, b = photos
    inception = Inception(weights, taps=64)
    x, y = (torch.cat(list(extract_features(folder, inception))) for folder in photos)
    expected = frechet_distance(*gaussian(x.numpy()), *gaussian(y.numpy()))
    result = invoke("fid", a, b, "--weights", weights, "--dims", "64", "--batch-size", "3")
    assert result.exit_code == 0, result.output
    line, _ = result.stdout.split("\n")
    assert line.startswith("FID:  ")
    assert float(line.removeprefix("FID:  ")) == pytest.approx(expected, rel=1e-5)
    assert f"{a}: 7 samples of 64 features: with so few" in result.stderr
    assert f"{a}: 7/7" in result.stderr
    found = json.loads(said(a, b, "--weights", weights, "--dims", "64", "--json"))
    assert found == {"frechet_inception_distance": pytest.approx(expected, rel=1e-5)}
    assert compute_fid(a, b, inception) == pytest.approx(expected, rel=1e-5)
    assert abs(value(a, a, "--weights", weights)) < 1e-10
    other = value(a, b, "--weights", weights, "--dims", "64", "--resize", "torch-fidelity")
    assert other != pytest.approx(expected, rel=1e-3)


@pytest.mark.peer
def test_pytorch_fid(tmp_path: Path, weights: Path) -> None:
    """The same number from the same folders and weights, and from each other's statistics."""
    score = peers.pytorch_fid().fid_score
    folders = [tmp_path / "a", tmp_path / "b"]
    for k, folder in enumerate(folders):
        for i in range(70):
            coarse = Image.fromarray(pixels(4 + k, 4 + k, 3, seed=i))
            folder.mkdir(exist_ok=True)
            coarse.resize((32, 24), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
    inception = peers.pytorch_fid_network()
    options = (inception, 50, 64, "cpu", 0)
    theirs = [score.compute_statistics_of_path(str(folder), *options) for folder in folders]
    expected = pytest.approx(with_root(*theirs[0], *theirs[1]), rel=1e-4)
    ours = ("--weights", weights, "--dims", 64)
    assert value(*folders, *ours) == expected
    np.savez_compressed(tmp_path / "theirs.npz", mu=theirs[1][0], sigma=theirs[1][1])
    assert value(folders[0], tmp_path / "theirs.npz", *ours) == expected
    said("--save-stats", folders[0], tmp_path / "ours.npz", *ours)
    mine = score.compute_statistics_of_path(str(tmp_path / "ours.npz"), *options)
    assert with_root(*mine, *theirs[1]) == expected


def with_root(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """pytorch-fid's formula; its own call of sqrtm has an argument that SciPy 1.18 does not know any more."""
    root = pytest.importorskip("scipy.linalg").sqrtm(sigma1 @ sigma2).real
    return float(((mu1 - mu2) ** 2).sum() + np.trace(sigma1 + sigma2 - 2 * root))


def test_a_folder_of_folders(photos: tuple[Path, Path], weights: Path, tmp_path: Path) -> None:
    for i in range(4):
        write_picture(tmp_path / "c" / "one" / f"{i}.png", pixels(20, 24, 3, seed=i))
        write_picture(tmp_path / "c" / "two" / f"{i}.png", pixels(20, 24, 3, seed=9))
    assert "c: 8 samples" in invoke("fid", tmp_path / "c", photos[0], "--weights", weights, "--dims", 64).stderr
    write_picture(tmp_path / "c" / "0.png", pixels(20, 24, 3))
    write_picture(tmp_path / "c" / "1.png", pixels(20, 24, 3))
    assert "c: 2 samples" in invoke("fid", tmp_path / "c", photos[0], "--weights", weights, "--dims", 64).stderr


def test_statistics(photos: tuple[Path, Path], weights: Path, tmp_path: Path) -> None:
    a, b = photos
    options = ("--weights", weights, "--dims", 64)
    result = invoke("fid", "--save-stats", b, tmp_path / "b.npz", *options)
    assert result.exit_code == 0
    assert f"wrote {tmp_path / 'b.npz'}" in result.stderr
    with np.load(tmp_path / "b.npz") as arrays:
        assert (arrays["mu"].shape, arrays["sigma"].shape, int(arrays["count"])) == ((64,), (64, 64), 7)
    assert value(a, tmp_path / "b.npz", *options) == pytest.approx(value(a, b, *options), rel=1e-5)
    said("--save-stats", a, tmp_path / "a.npz", *options)
    assert value(tmp_path / "a.npz", tmp_path / "b.npz") == pytest.approx(value(a, b, *options), rel=1e-5)


@pytest.mark.parametrize(
    ("d", "title", "key"),
    [(64, "FID", "frechet_inception_distance"), (10, "FD (given statistics)", "frechet_distance")],
)
def test_statistics_alone(tmp_path: Path, d: int, title: str, key: str) -> None:
    """FID only where they are of as many features as Inception has; few samples are said to be few, if known."""
    for name, count in (("a", {"count": d}), ("b", {"count": d + 1}), ("c", {})):
        np.savez(tmp_path / f"{name}.npz", mu=np.zeros(d), sigma=np.eye(d), **count)
    result = invoke("fid", tmp_path / "a.npz", tmp_path / "b.npz")
    assert result.stdout.startswith(f"{title}:  ")
    assert result.stderr.startswith(f"{tmp_path / 'a.npz'}: {d} samples of {d} features: with so few")
    assert len(result.stderr.splitlines()) == 1
    result = invoke("fid", tmp_path / "b.npz", tmp_path / "c.npz", "--json")
    assert json.loads(result.stdout)[key] == pytest.approx(0, abs=1e-10)
    assert result.stderr == ""


@pytest.mark.parametrize("n", [2, 5, 8, 9, 100, 5000])
@pytest.mark.parametrize("m", [2, 8, 300])
def test_features(features: Callable[..., tuple[Path, np.ndarray]], n: int, m: int) -> None:
    (a, x), (b, y) = features("a.npy", n), features("b.npy", m, scale=1.3)
    expected = frechet_distance(*gaussian(x), *gaussian(y), accurate=True)
    assert value(a, b, "--features") == pytest.approx(expected, rel=1e-6)
    assert value(b, a, "--features", "--accurate") == pytest.approx(expected, rel=1e-6)
    assert abs(value(a, a, "--features")) < 1e-10


def test_features_and_others(features: Callable[..., tuple[Path, np.ndarray]], tmp_path: Path) -> None:
    (a, x), (b, y) = features("a.npy", 50, dtype="float64"), features("b.npy", 60, dtype="float16")
    np.savez(tmp_path / "c.npz", feats=y)
    np.savez(tmp_path / "d.npz", mu=y.astype(float).mean(0), sigma=np.cov(y.astype(float), rowvar=False))
    expected = pytest.approx(frechet_distance(*gaussian(x), *gaussian(y)), rel=1e-6)
    for other in (b, tmp_path / "c.npz", tmp_path / "d.npz"):
        assert json.loads(said(a, other, "--features", "--json")) == {
            "frechet_distance": expected,
            "extractor": "given features",
            "features": 8,
        }
    assert said(a, b, "--features").startswith("FD (given features):  ")


def test_points_of_a_model(tmp_path: Path) -> None:
    RealNVPFlat(2, hidden=8, blocks=1).save(tmp_path / "flat")
    points = ("moons", "--features", "--load", "size=3000")
    far = value(tmp_path / "flat", *points, "--samples", 500)
    assert value("moons:test", *points) < 0.01 < far


def test_images_of_a_model(tmp_path: Path, weights: Path) -> None:
    model = perturbed(RealNVP((1, 4, 4), 17, num_classes=3, hidden=4, blocks=1), 0.1).float()
    model.save(tmp_path / "model")
    options = ("--weights", weights, "--dims", 64)
    x = model.eval().sample(70, generator=5)
    np.savez(tmp_path / "samples.npz", samples=x.numpy(), levels=17)
    distance = value(tmp_path / "model", tmp_path / "samples.npz", *options, "--samples", 70, "--seed", 5)
    assert abs(distance) < 1e-5
    assert value(tmp_path / "model", tmp_path / "samples.npz", *options, "--samples", 70, "--seed", 6) > 1e-3


# --- the number of processes ------------------------------------------------------------------------------------------


def test_two_processes(
    features: Callable[..., tuple[Path, np.ndarray]], photos: tuple[Path, Path], weights: Path, tmp_path: Path
) -> None:
    """Sides of features that are kept, and of sums; one of which one process has nothing; a classifier."""
    big, small = features("big.npy", 9000)[0], features("small.npy", 6)[0]
    perturbed(RealNVP((1, 4, 4), 17, hidden=4, blocks=1), 0.1).float().save(tmp_path / "model")
    labelled = {"x": pixels(40, 4, 4), "y": np.arange(40) % 2, "levels": 256}
    np.savez(tmp_path / "data.npz", **labelled)
    inception = ("--weights", weights, "--dims", 64)
    commands: list[tuple[object, ...]] = [
        (big, small, "--features"),
        (*photos, *inception, "--batch-size", 2),
        (tmp_path / "model", tmp_path / "data.npz", "--samples", 150, "--no-cache"),
    ]
    for command in commands:
        done = on_two_processes(*command)
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        assert float(line.rpartition(":  ")[2]) == pytest.approx(value(*command), rel=1e-6, abs=1e-9)


def on_two_processes(*arguments: object) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pygen", "fid"]
    command = [*run, "--device", "cpu", *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)


def test_two_processes_with_bad_input(photos: tuple[Path, Path], weights: Path) -> None:
    (photos[0] / "3.png").write_bytes(b"no picture")
    done = on_two_processes(*photos, "--weights", weights, "--dims", 64, "--batch-size", 1)
    assert done.returncode != 0
    assert f"Error: {photos[0] / '3.png'}: expected a picture" in done.stderr


# --- a side ----------------------------------------------------------------------------------------------------------


def test_side() -> None:
    x = torch.randn(40, 8)
    side = FrechetSide()
    for part in x.split(3):
        side.update(part)
    assert (side.count, side.d, side.features()) == (40, 8, None)
    mu, sigma = side.statistics()
    torch.testing.assert_close(mu, x.double().mean(0))
    torch.testing.assert_close(sigma, x.double().T.cov(), rtol=1e-6, atol=1e-6)
    few = FrechetSide.from_features([x[:3], x[3:8]])
    assert torch.equal(few.features(), x[:8])
    given = FrechetSide.from_statistics(mu, sigma)
    assert (given.count, given.d) == (None, 8)
    for one in (side, given):
        assert one.distance(few) == pytest.approx(few.distance(one), rel=1e-12)
        assert one.distance(few) == pytest.approx(
            float(frechet_distance_from_features(x[:8].double(), x.double())), rel=1e-6
        )
    with pytest.raises(ValueError, match="got one of statistics"):
        given.update(x)
    with pytest.raises(ValueError, match=r"expected features \[n, 8\], got \(2, 7\)"):
        side.update(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="expected sides of one number of features, got 8 and 7"):
        side.distance(FrechetSide.from_features([torch.zeros(3, 7)]))
    with pytest.raises(ValueError, match="expected at least 2 samples, got 1"):
        FrechetSide.from_features([x[:1]]).statistics()


@pytest.mark.parametrize("n", [2, 40])
def test_compute_fid_of_tensors(n: int) -> None:
    def extract(x: Tensor) -> Tensor:
        return x.flatten(1)

    x, y = torch.randn(n, 2, 3), torch.randn(50, 2, 3)
    expected = frechet_distance_from_features(extract(x).double(), extract(y).double())
    done: list[int] = []
    assert compute_fid(x, y, extract, batch_size=7, advance=done.append) == pytest.approx(float(expected), rel=1e-5)
    assert sum(done) == n + 50
    side = FrechetSide.from_features([extract(y)])
    assert compute_fid(x, side, extract) == pytest.approx(float(expected), rel=1e-5)
    assert compute_fid(side, side) == pytest.approx(0, abs=1e-10)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_bad_images(photos: tuple[Path, Path], weights: Path, tmp_path: Path) -> None:
    a, b = photos
    options = ("--weights", weights, "--dims", 64)
    (tmp_path / "empty").mkdir()
    assert refused("fid", a, tmp_path / "empty", *options).startswith(f"{tmp_path / 'empty'}: expected images (")
    assert refused("fid", tmp_path / "no", a, *options).startswith(f"{tmp_path / 'no'}: expected a path or one of")
    write_picture(tmp_path / "one" / "a.png", pixels(4, 4, 3))
    assert last("fid", tmp_path / "one", a, *options) == f"{tmp_path / 'one'}: expected at least 2 samples, got 1"
    (b / "3.png").write_bytes((b / "3.png").read_bytes()[:100])
    assert last("fid", a, b, *options).startswith(f"{b / '3.png'}: expected a picture, got")
    assert last("fid", "--save-stats", b, tmp_path / "b.npz", *options).startswith(f"{b / '3.png'}: expected a picture")
    assert list(tmp_path.glob("*.npz*")) == []


def last(*arguments: object) -> str:
    """The sentence that a call ends with, after others."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.output.splitlines()[-1].removeprefix("Error: ")


def test_mixed_sizes(tmp_path: Path) -> None:
    """Inception scales each; a classifier cannot."""
    for i, side in enumerate((8, 8, 9)):
        for label in "ab":
            write_picture(tmp_path / "mixed" / label / f"{i}.png", pixels(side, side, 3))
    sentence = refused("fid", tmp_path / "mixed", "digits", "--extractor", "classifier")
    assert sentence.startswith(f"{tmp_path / 'mixed' / 'a' / '2.png'}: expected 8 x 8 pixels")


def test_bad_statistics(photos: tuple[Path, Path], weights: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", foo=np.zeros(3))
    sentence = refused("fid", tmp_path / "other.npz", photos[0], "--weights", weights)
    assert sentence == f"{tmp_path / 'other.npz'}: expected an .npz with the arrays mu and sigma, got the arrays foo"
    np.savez(tmp_path / "half.npz", mu=np.zeros(3))
    assert refused("fid", tmp_path / "half.npz", photos[0]).endswith("got the arrays mu")
    (tmp_path / "broken.npz").write_bytes(b"PK")
    assert refused("fid", tmp_path / "broken.npz", photos[0]).startswith(f"{tmp_path / 'broken.npz'}: expected")
    for d in (64, 3):
        np.savez(tmp_path / f"{d}.npz", mu=np.zeros(d), sigma=np.eye(d))
    assert refused("fid", photos[0], tmp_path / "64.npz", "--weights", weights).endswith(
        "expected statistics of 2048 features (--dims), got 64"
    )
    assert refused("fid", tmp_path / "64.npz", tmp_path / "3.npz").startswith(
        f"expected one number of features, got 64 in {tmp_path / '64.npz'} and 3 in"
    )
    np.savez(tmp_path / "nan.npz", mu=np.full(3, np.nan), sigma=np.eye(3))
    sentence = f"{tmp_path / 'nan.npz'}: expected mu of finite numbers, got 3 of 3 that are NaN or infinite"
    assert refused("fid", tmp_path / "3.npz", tmp_path / "nan.npz") == sentence
    assert refused("fid", "--save-stats", tmp_path / "nan.npz", tmp_path / "copy.npz") == sentence
    assert not (tmp_path / "copy.npz").exists()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "64.npz").read_bytes()[:-50])
    for options in ((), ("--features",)):
        sentence = refused("fid", tmp_path / "cut.npz", tmp_path / "3.npz", *options)
        assert sentence == f"{tmp_path / 'cut.npz'}: expected an .npz of arrays, got a file that is none or truncated"
    assert refused("fid", tmp_path / "3.npz", "digits", "--extractor", "classifier").endswith("got statistics")


def test_bad_features(features: Callable[..., tuple[Path, np.ndarray]], tmp_path: Path) -> None:
    good, x = features("good.npy", 20)
    x[[3, 7], 2] = np.nan, np.inf
    np.save(tmp_path / "nan.npy", x)
    sentence = f"{tmp_path / 'nan.npy'}: expected finite features, got NaN or infinity in 2 of 20 rows"
    assert refused("fid", good, tmp_path / "nan.npy", "--features") == sentence
    np.save(tmp_path / "one.npy", x[:1])
    assert refused("fid", good, tmp_path / "one.npy", "--features").endswith("expected at least 2 samples, got 1")
    np.save(tmp_path / "none.npy", x[:0])
    assert refused("fid", good, tmp_path / "none.npy", "--features").endswith("expected at least 2 samples, got 0")
    np.save(tmp_path / "cube.npy", x[None])
    assert refused("fid", good, tmp_path / "cube.npy", "--features").endswith("got float32 [1, 20, 8]")
    np.save(tmp_path / "wide.npy", np.ones((20, 9)))
    assert "got 8 in" in refused("fid", good, tmp_path / "wide.npy", "--features")
    np.savez(tmp_path / "other.npz", foo=x)
    assert refused("fid", good, tmp_path / "other.npz", "--features").endswith(
        "got foo, and none of features, feats, x, arr_0"
    )
    assert "--features compares samples as they are" in refused("fid", good, good)
    assert "expected features [N, d] with --features" in refused("fid", good, "digits", "--features")


def test_bad_options(photos: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = photos
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("PYGEN_INCEPTION", raising=False)
    sentence = refused("fid", a, b)
    for part in ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-", str(tmp_path), "--weights"):
        assert part in sentence
    assert "no file there" in refused("fid", a, b, "--weights", tmp_path / "none.pth")
    assert "without --extractor" in refused("fid", a, b, "--features", "--dims", 64)
    assert "without --extractor classifier" in refused("fid", a, b, "--extractor", "classifier", "--dims", 64)
    assert "--save-stats without" in refused("fid", "--save-stats", a, "b.npz", "--extractor", "classifier")
    assert "got both" in refused("fid", "digits", "digits", "--no-cache", "--cache", tmp_path)
    assert refused("fid", "--save-stats", a, tmp_path / "b.txt").endswith("ends in .npz, for statistics")
    assert refused("fid", "--save-stats", a, tmp_path / "no" / "b.npz").endswith("a file in a folder that exists")
    np.save(tmp_path / "f.npy", np.eye(4))
    options = ("--features", "--load", "size=4")
    assert "whose option it is" in refused("fid", tmp_path / "f.npy", tmp_path / "f.npy", *options)
    assert refused("fid", a, b, "--device", "abacus").startswith("expected a device such as")
    assert "expected images, got Toy" in refused("fid", "moons", "digits")
    assert invoke("fid", a, b, "--dims", 65).exit_code == 2
    np.savez(tmp_path / "s.npz", mu=np.zeros(4), sigma=np.eye(4))
    for sides, option, what in (
        ((a, b), ("--samples", 5), "a model to draw from"),
        ((a, b), ("--seed", 0), "a model to draw from"),
        ((a, b), ("--cache", tmp_path), "data that a classifier is trained on"),
        ((a, b), ("--no-cache",), "data that a classifier is trained on"),
        ((tmp_path / "s.npz",) * 2, ("--weights", "/none"), "images, for Inception"),
        ((tmp_path / "s.npz",) * 2, ("--resize", "clean-fid"), "images, for Inception"),
    ):
        assert refused("fid", *sides, *option) == f"expected {option[0]} together with {what}"
    for option in ("--json", "--accurate"):
        assert "without --json and --accurate" in refused("fid", "--save-stats", a, "b.npz", option)
