"""The scaled polar iteration in products of torch (kernels/_polar.py), which CUDA runs for all but small matrices: the
same functions on the CPU. That of the Triton kernel is under tests/gpu."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pygen import reference
from pygen.kernels import _polar
from tests.frechet.samples import covariance, orthogonal
from tests.frechet.spectra import SPECTRA, with_values

EPS = torch.finfo(torch.float64).eps


def polar(b: Tensor) -> tuple[Tensor, Tensor]:
    one, power = _polar.unit(b)
    factor, norm = _polar.polar(one)
    return factor, norm * power


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30], ids="{:g}".format)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_norm_and_factor(spectrum: str, scale: float, dtype: torch.dtype) -> None:
    b = (scale * with_values(spectrum, SPECTRA[spectrum])).to(dtype)
    factor, norm = polar(b)
    u, values, vh = torch.linalg.svd(b.double())
    # float32: below its eps nothing has to converge. Worst seen: 2.4e-8 of the largest, "down to 1e-15".
    lost = 40 * EPS if dtype == torch.float64 else 1e-7
    assert abs(norm - values.sum()) <= lost * values[0] + 40 * EPS * values.sum()
    assert torch.linalg.matrix_norm(factor, 2) <= 1 + 1e-14
    known = values > 1e3 * torch.finfo(dtype).eps * values[0]  # of which the directions are known
    error = torch.linalg.vector_norm(factor @ vh.mT[:, known] - u[:, known], dim=0)
    assert (error <= 2 * torch.finfo(dtype).eps + 1e-13 * values[0] / values[known]).all()


@pytest.mark.parametrize("shape", [(200, 30), (33, 32), (5, 1), (1, 1)], ids=str)
def test_tall(shape: tuple[int, int]) -> None:
    b = orthogonal(f"tall {shape}", *shape) * torch.logspace(0, -3, shape[1], dtype=torch.float64)
    factor, norm = polar(b)
    expected, sum_of_values = reference.polar(b)
    torch.testing.assert_close(norm, sum_of_values, rtol=1e-14, atol=0)
    torch.testing.assert_close(factor, expected, rtol=0, atol=1e-12)


def test_zero_and_what_is_no_number() -> None:
    factor, norm = polar(torch.zeros(4, 4))
    assert norm == 0
    assert not factor.any()
    for bad in (float("nan"), float("inf")):
        b = torch.eye(4)
        b[1, 2] = bad
        factor, norm = polar(b)
        assert norm.isnan()
        assert factor.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_unit_is_exact(dtype: torch.dtype) -> None:
    limit = torch.finfo(dtype)
    for size in (limit.max, limit.tiny, 1.0, 3.0, limit.tiny * limit.eps):
        b = torch.tensor([[size, -size / 3], [0, size / 2]], dtype=dtype)
        one, power = _polar.unit(b)
        assert torch.equal(one * power, b)
        assert power.log2().frac() == 0
        assert 1 <= one.abs().max() < 2 or size < limit.tiny


def test_schedule_keeps_within_its_interval() -> None:
    """Every step maps [low, 1], and what rounding adds above 1, into [next low, 1]; nothing changes its sign."""
    for smallest, tolerance, most in ((1.2e-7, 1.2e-7, 21), (2.2e-16, 2.2e-16, 44), (1e-6, 1e-6, 19)):
        steps = _polar.schedule(smallest, tolerance)
        assert len(steps) <= most
        x = torch.logspace(-17, 0, 20_001, dtype=torch.float64).clamp(min=smallest)
        x[-1] = 1.001
        for c, e in steps:
            x = x * (c + e * x * x)
            assert x.min() > 0
            assert x.max() <= 1 + 1e-5
            x[-1] = min(1.001, x.max() * 1.001)
        assert x[:-1].min() >= 1 - tolerance


def test_as_good_as_the_plain_iteration_in_fewer_steps() -> None:
    b = with_values("plain", torch.logspace(0, -6, 40))
    one, _ = _polar.unit(b)
    steps = _polar.schedule(1e-7, 1e-14)
    scaled, plain = _polar.iterate(one, steps), _polar.iterate(one, [(1.5, -0.5)] * 50)
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-9)
    assert len(steps) <= 22


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_why_the_margin_and_why_no_tf32(spectrum: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest singular value is exactly 1. In float32 the margin alone keeps signs; with the products' factors
    rounded to 10 bits, as TF32 does, it still does, but the norm is off a hundred times as far."""
    b = with_values(spectrum, SPECTRA[spectrum]).float()
    b /= torch.linalg.matrix_norm(b.double(), 2)
    true = torch.linalg.svdvals(b.double()).sum()

    def tf32(x: Tensor) -> Tensor:
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    def error(rounded: Callable[[Tensor], Tensor]) -> float:
        x = b
        for c, e in _polar.schedule.__wrapped__(*_polar.accuracy(torch.float32)):
            x = c * x + e * (rounded(x) @ rounded(rounded(x).mT @ rounded(x)))
        return float(((x * b).sum() - true).abs() / true)

    assert error(lambda x: x) < 1e-6
    assert error(tf32) < 1e-4
    monkeypatch.setattr(_polar, "MARGIN", 1.0)
    assert error(lambda x: x) > 1e-4  # 1.8e-4 to 2.0
    assert error(tf32) > 0.1  # 0.12 to 1.5


# --- fewer steps, and what they leave ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_bound(spectrum: str) -> None:
    """The value is never above the truth but by rounding, nor below |B|_F^2 / |B|_2; the error is below its bound, also
    where the iteration is cut far too short, and the bound is not many times the error."""
    b = with_values(spectrum, SPECTRA[spectrum])
    values = torch.linalg.svdvals(b)
    true = values.sum()
    one, power = _polar.unit(b)
    for smallest in (1e-2, 1e-4, _polar.SMALLEST):
        norm, bound = (power * part for part in _polar.nuclear_norm(one, smallest))
        rounding = len(b) * EPS * true
        assert norm <= true + rounding
        assert true - norm <= bound
        assert norm >= values.square().sum() / values[0] - rounding
        assert bound <= 10 * (true - norm) + 1e-10 * true


@pytest.mark.parametrize("condition", [1e4, 1e8, 1e12, 1e15], ids="{:g}".format)
@pytest.mark.parametrize("rotated", [False, True])
def test_steep_covariances_need_no_fallback(condition: float, rotated: bool) -> None:
    """Eigenvalues that fall off geometrically: the bound is below 1e-6 of the trace, what pygen.metrics asks."""
    d = 200
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), d, dtype=torch.float64)
    bases = (orthogonal("one", d, d), orthogonal("two", d, d) if rotated else orthogonal("one", d, d))
    one, two = ((q * values) @ q.mT for q in bases)
    trace, bound = _polar.trace_sqrt_product(one, two)
    lowers = [torch.linalg.cholesky(s) for s in (one, two)]
    true = torch.linalg.svdvals(lowers[0].mT @ lowers[1]).sum()
    assert abs(trace - true) <= bound <= 1e-6 * trace


def test_trace_of_scaled_covariances() -> None:
    one, two = covariance("one", 30), covariance("two", 30)
    expected, _ = reference.trace_sqrt_product(one, two)
    for a, b in ((1.0, 1.0), (1e-200, 1e150), (1e300, 1e300), (1e-300, 1e-5), (3.0, 7.0)):
        trace, bound = _polar.trace_sqrt_product(a * one, b * two)
        true = expected * a**0.5 * b**0.5
        assert abs(trace - true) <= 1e-12 * true
        assert bound <= 1e-12 * true


def test_trace_without_factors() -> None:
    good, singular = covariance("good", 6), covariance("good", 6)
    singular[:, 2] = singular[2] = 0
    nan = good.clone()
    nan[3, 1] = torch.nan
    for pair in ((good, singular), (singular, good), (singular, singular)):
        trace, bound = _polar.trace_sqrt_product(*pair)
        assert trace.isnan()
        assert bound == torch.inf
    for pair in ((good, nan), (nan, good), (nan, singular)):
        assert all(part.isnan() for part in _polar.trace_sqrt_product(*pair))
    upper = good.clone()
    upper[1, 3] = torch.nan
    assert _polar.trace_sqrt_product(upper, good)[0].isfinite()
