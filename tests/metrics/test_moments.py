"""StreamingMoments against two passes in float64, its merges, its files."""

from __future__ import annotations

import copy
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pygen.metrics import StreamingMoments, frechet_distance, load_statistics, save_statistics
from tests.harness.calls import random
from tests.metrics.test_frechet import features, powers


def streamed(x: Tensor, batch: int = 50) -> StreamingMoments:
    moments = StreamingMoments(x.shape[1])
    for part in x.split(batch):
        moments.update(part)
    return moments


def two_passes(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.double()
    return x.mean(0), torch.cov(x.mT)


def assert_close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], bound: float) -> None:
    """Elements to `bound` of sqrt(c_ii c_jj), means to as much of a standard deviation."""
    deviations = expected[1].diagonal().sqrt()
    assert ((found[0] - expected[0]).abs() <= bound * deviations).all()
    assert ((found[1] - expected[1]).abs() <= bound * deviations[:, None] * deviations).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 50, 300, 2000])
def test_two_passes(dtype: torch.dtype, batch: int) -> None:
    x = features("x", 2000, 30).to(dtype)
    found = streamed(x, batch)
    assert found.count == 2000
    assert_close(found.statistics(), two_passes(x), 1e-12 if dtype == torch.float64 else 1e-6)
    assert torch.equal(found.covariance(), found.covariance().mT)


@pytest.mark.parametrize("means", [0.0, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("power", [0.5, 2.0])
def test_large_means(means: float, power: float) -> None:
    """Up to 1e4 standard deviations: raw float32 moments (torcheval #192, #220) are indefinite from 1 on."""
    scale = powers(40, power / 2)
    x, y = ((random(f"large {n}", 3000, 40) + means) * scale for n in "xy")
    x, y = x.float(), 1.1 * y.float()
    one, two = streamed(x).statistics(), streamed(y).statistics()
    assert_close(one, two_passes(x), 1e-6)
    expected = frechet_distance(*two_passes(x), *two_passes(y))
    assert float(frechet_distance(*one, *two)) == pytest.approx(float(expected), rel=1e-8, abs=1e-8)


def test_steep_spectrum() -> None:
    """The case in which raw float32 moments report a distance of 2e-4 with an error of -1.5e-4."""
    scale = torch.logspace(0, -4, 64).double()
    x = (1 + random("steep x", 20000, 64) * scale).float()
    y = (1 + random("steep y", 20000, 64) * scale * 1.01).float()
    expected = frechet_distance(*two_passes(x), *two_passes(y))
    found = frechet_distance(*streamed(x).statistics(), *streamed(y).statistics())
    assert float(found) == pytest.approx(float(expected), abs=1e-8)


def test_merge_in_any_order() -> None:
    x = features("x", 500, 20)
    parts = [streamed(part, 7) for part in x.split([1, 99, 150, 250])]
    for order in itertools.permutations(parts):
        merged = StreamingMoments(20)
        for part in order:
            merged.merge(part)
        assert merged.count == 500
        assert_close(merged.statistics(), two_passes(x), 1e-12)
    assert parts[0].count == 1  # what is merged stays


def test_merge_of_far_means() -> None:
    x = torch.cat([features("x", 100, 10), features("y", 300, 10) + 1e4])
    one, two = streamed(x[:100]), streamed(x[100:])
    one.merge(two)
    assert_close(one.statistics(), two_passes(x), 1e-12)


def test_merge_of_nothing() -> None:
    x, nothing = streamed(features("x", 10, 4)), StreamingMoments(4)
    before = x.covariance()
    x.merge(nothing)
    assert torch.equal(x.covariance(), before)
    nothing.merge(x)
    assert nothing.count == 10
    with pytest.raises(ValueError, match="moments of 4 features, got 5"):
        x.merge(StreamingMoments(5))


def test_update_takes_no_gradient_and_changes_nothing_it_is_given() -> None:
    x = features("x", 10, 4).requires_grad_()
    before = x.detach().clone()
    moments = StreamingMoments(4)
    moments.update(x)
    moments.update(x[:0])
    moments.update(x.detach()[::2].mT.contiguous().mT)
    assert moments.count == 15
    assert torch.equal(x, before)
    assert not moments.mean().requires_grad


def test_ddof() -> None:
    x = features("x", 10, 4)
    assert torch.allclose(streamed(x).covariance(ddof=0), torch.cov(x.mT, correction=0))


def test_too_few() -> None:
    moments = StreamingMoments(3)
    for call in (moments.mean, moments.covariance, moments.statistics):
        with pytest.raises(ValueError, match=r"at least \d samples?, got 0"):
            call()
    moments.update(torch.ones(1, 3))
    assert moments.mean().tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        moments.covariance()


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.ones(2, 4), ValueError, "[N, 3], got (2, 4)"),
        (torch.ones(3), ValueError, "[N, 3], got (3,)"),
        (torch.ones(2, 3).long(), TypeError, "int64"),
        (np.ones((2, 3)), TypeError, "ndarray"),
    ],
)
def test_bad_features(x: Tensor, error: type[Exception], words: str) -> None:
    moments = StreamingMoments(3)
    with pytest.raises(error, match="expected") as caught:
        moments.update(x)
    assert words in str(caught.value)
    assert moments.count == 0


def test_nan_shows() -> None:
    x = features("x", 10, 4)
    x[3, 1] = torch.nan
    moments = streamed(x, 5)
    assert moments.mean().isnan().tolist() == [False, True, False, False]
    assert torch.equal(
        moments.covariance().isnan(), torch.tensor([[i == 1 or j == 1 for i in range(4)] for j in range(4)])
    )


def test_state_dict() -> None:
    moments = streamed(features("x", 20, 4))
    file = io.BytesIO()
    torch.save(moments.state_dict(), file)
    file.seek(0)
    other = StreamingMoments(4)
    other.load_state_dict(torch.load(file, weights_only=True))
    for m in (moments, other):
        m.update(features("y", 20, 4))
    assert torch.equal(moments.covariance(), other.covariance())
    assert torch.equal(copy.deepcopy(moments).mean(), moments.mean())
    for wrong in ({"total": torch.zeros(5)}, {"shift": None}, {"count": -5}, {"more": 1}):
        state = {**moments.state_dict(), **wrong}
        with pytest.raises(ValueError, match="expected"):
            other.load_state_dict(state)


# --- files ------------------------------------------------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    moments = streamed(features("x", 20, 4))
    moments.save(tmp_path / "a.npz")
    mu, sigma = load_statistics(tmp_path / "a.npz")
    assert torch.equal(mu, moments.mean())
    assert torch.equal(sigma, moments.covariance())
    with np.load(tmp_path / "a.npz") as archive:  # as pytorch-fid reads it
        assert archive["mu"].dtype == archive["sigma"].dtype == np.float64
        assert archive["count"] == 20


def test_other_projects_files(tmp_path: Path) -> None:
    mu, sigma = np.zeros(3, np.float32), np.eye(3)
    np.savez(tmp_path / "a.npz", mu_s=mu, sigma_s=sigma)
    assert load_statistics(tmp_path / "a.npz", keys=("mu_s", "sigma_s"))[0].dtype == torch.float64


def _broken(folder: Path) -> dict[str, Path]:
    mu, sigma = np.zeros(3), np.eye(3)
    contents: dict[str, Any] = {
        "keys": {"mu": mu, "cov": sigma},
        "shape": {"mu": mu, "sigma": sigma[:2]},
        "integers": {"mu": mu.astype(int), "sigma": sigma},
        "objects": {"mu": np.array([None]), "sigma": sigma},
    }
    for name, arrays in contents.items():
        np.savez(folder / f"{name}.npz", **arrays)
    (folder / "text.npz").write_text("mu, sigma")
    (folder / "empty.npz").write_bytes(b"")
    (folder / "cut.npz").write_bytes((folder / "keys.npz").read_bytes()[:-40])
    np.save(folder / "array.npy", sigma)
    return {path.stem: path for path in folder.iterdir()}


def test_bad_files(tmp_path: Path) -> None:
    for path in _broken(tmp_path).values():
        with pytest.raises(ValueError, match="expected") as caught:
            load_statistics(path)
        assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(ValueError, match="mu and sigma, got the arrays mu, cov"):
        load_statistics(tmp_path / "keys.npz")
    with pytest.raises(FileNotFoundError):
        load_statistics(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        save_statistics(tmp_path / "a.npy", np.zeros(3), np.eye(3))
    for mu, sigma in ((np.eye(3), np.zeros(3)), (np.zeros(3), np.eye(3) * np.nan)):
        with pytest.raises(ValueError, match="expected"):
            save_statistics(tmp_path / "new.npz", mu, sigma)
    assert not (tmp_path / "new.npz").exists()
