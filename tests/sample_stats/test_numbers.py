"""Sums, quantiles, and the formulas of guidance that are made of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pygen.diffusion import guidance
from pygen.ops import diffusion_step, quantile_abs, sample_stats
from pygen.reference.diffusion_step import Columns, width
from tests.harness import backend

IDENTITY = torch.tensor([[1.0, 0.0]], dtype=torch.float64)  # p, q


@pytest.fixture(params=backend.ALL, ids=str, autouse=True)
def _every_backend(request):
    if request.param.device == "cuda":
        pytest.skip("the tests of this file are of the CPU")
    with request.param.active():
        yield


def quantile_of(x: Tensor, q: float) -> Tensor:
    return quantile_abs(x, [], IDENTITY, 0, q)


# --- quantile_abs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 0.995, 0.99999, 1.0])
@pytest.mark.parametrize("n", [1, 2, 100, 2048, 2049, 70_001])
def test_torch_quantile(n: int, q: float, dtype: torch.dtype) -> None:
    x = torch.randn(3, n, dtype=dtype, generator=torch.Generator().manual_seed(n))
    expected = torch.quantile(x.double().abs(), q, 1)
    assert torch.allclose(quantile_of(x, q).double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


HARD = {
    "all equal": lambda n: torch.full((n,), -0.3),
    "all but one equal": lambda n: torch.cat([torch.full((n - 1,), 1.25), torch.tensor([7.0])]),
    "neighbours": lambda n: (torch.arange(n) % 50 + 0x3F800000).to(torch.int32).view(torch.float32),
    "small range": lambda n: 1 + 1e-4 * torch.rand(n),
    "every exponent": lambda n: torch.randn(n) * 10.0 ** torch.linspace(-44, 37, n),
    "zeros": lambda n: torch.zeros(n),
    "subnormal": lambda n: torch.randn(n) * 1e-42,
    "huge": lambda n: torch.randn(n) * 3e37,
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("n", [37, 5000, 200_000])
def test_values_that_share_bits(name: str, n: int) -> None:
    torch.manual_seed(1)
    x = torch.stack([HARD[name](n)[torch.randperm(n)] for _ in range(2)])
    for wide in (x, x.double()):
        for q in (0.0, 0.37, 0.995, 1.0):
            ordered, rank = wide.abs().sort(1).values, q * (n - 1)
            low, high = ordered[:, math.floor(rank)].double(), ordered[:, math.ceil(rank)].double()
            expected = low + (rank - math.floor(rank)) * (high - low)
            found = quantile_of(wide, q)
            eps = torch.finfo(wide.dtype)
            assert torch.allclose(found.double(), expected, rtol=4 * eps.eps, atol=eps.tiny * eps.eps), q


@pytest.mark.parametrize("n", [5, 3000, 70_000])
def test_infinity_and_nan(n: int) -> None:
    x = torch.randn(5, n)
    x[0, 0] = math.nan
    x[1, -1] = -math.inf
    x[2] = math.inf
    x[3, n // 2], x[3, 0] = math.nan, math.inf
    top, median = quantile_of(x, 1.0), quantile_of(x, 0.5)
    for found in (top, median):
        assert found.isnan().tolist() == [True, False, False, True, False]
    assert top[1:3].isinf().all()
    assert median[1:].isfinite().tolist() == [True, False, False, True]
    for payload in (0x7F800001, 0x7FC00000, -1):  # signalling, quiet, negative
        x = torch.randn(1, n)
        x.view(torch.int32)[0, 3] = payload
        assert quantile_of(x, 0.2).isnan().all()


def test_infinite_neighbours_have_a_quantile() -> None:
    """Where torch.quantile gives inf - inf, or 0 inf."""
    x = torch.tensor([[1.0, 2.0, math.inf, math.inf]])
    assert [quantile_of(x, q).item() for q in (1 / 3, 0.5, 0.9)] == [2.0, math.inf, math.inf]


def test_more_than_torch_takes() -> None:
    x = torch.rand(1, 2**24 + 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x, 0.995, 1)
    expected = x[0].kthvalue(round(0.25 * (x.shape[1] - 1)) + 1).values
    assert quantile_of(x, 0.25)[0] == expected


def test_what_requires_grad() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    with pytest.raises(NotImplementedError, match="detach"):
        quantile_of(x, 0.5)
    with torch.no_grad():
        assert not quantile_of(x, 0.5).requires_grad


def test_table_of_integers() -> None:
    with pytest.raises(TypeError, match=r"table of dtype float64 or float32, got torch\.int64"):
        quantile_abs(torch.randn(2, 3), [], torch.ones(1, 2).long(), 0, 0.5)


def test_dynamic_thresholding() -> None:
    """The threshold of a step, with the step's own table, equals diffusers' formula."""
    torch.manual_seed(0)
    x, eps = 2 * torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)
    at = Columns.of(1)
    table = torch.zeros(1, width(1, 0, 1), dtype=torch.float64)
    table[0, [0, at.p, at.q, at.clip, at.rows + 2]] = torch.tensor([1, 1.3, -0.7, math.inf, 1], dtype=torch.float64)
    s = quantile_abs(x, [eps], table, 0, 0.995).clamp(1, 4)
    (found,) = diffusion_step(x, [eps], table, threshold=s)
    x0 = 1.3 * x - 0.7 * eps
    t = torch.quantile(x0.abs().flatten(1), 0.995, 1).clamp(1, 4)[:, None, None, None]
    torch.testing.assert_close(found, x0.clamp(-t, t) / t)


# --- sample_stats, guidance -------------------------------------------------------------------------------------------


def test_narrow_and_wide_together() -> None:
    a, b = torch.randn(3, 77).half(), torch.randn(3, 77, dtype=torch.float64)
    stats = sample_stats(a, b)
    expected = torch.stack([v.sum(1) for v in (a.double(), b, a.double() ** 2, a.double() * b, b * b)], 1)
    torch.testing.assert_close(stats, expected, rtol=1e-14, atol=1e-13)


def test_sums_do_not_depend_on_the_batch() -> None:
    a, b = torch.randn(5, 20_001), torch.randn(5, 20_001)
    together = sample_stats(a, b)
    assert all(torch.equal(sample_stats(a[i : i + 1], b[i : i + 1])[0], together[i]) for i in range(5))
    x0 = quantile_abs(a, [b], torch.tensor([[1.0, 0.5, 0.3]]), 0, 0.9)
    alone = [quantile_abs(a[i : i + 1], [b[i : i + 1]], torch.tensor([[1.0, 0.5, 0.3]]), 0, 0.9) for i in range(5)]
    assert torch.equal(torch.cat(alone), x0)


def outputs() -> tuple[Tensor, Tensor, Tensor]:
    """An unconditional output, a conditional one, and their statistics."""
    torch.manual_seed(3)
    u = torch.randn(4, 3, 8, 8, dtype=torch.float64) + 0.2
    c = 0.6 * u + 0.7 * torch.randn_like(u)
    return u, c, sample_stats(u, c)


def each(values: Tensor) -> Tensor:
    return values[:, None, None, None]


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 7.5, -2.0])
def test_rescaled_guidance(scale: float) -> None:
    u, c, stats = outputs()
    g = u + scale * (c - u)
    std = (c.flatten(1).std(1), g.flatten(1).std(1))
    found = guidance.rescale_guidance(stats, scale, 0.7, u[0].numel())
    torch.testing.assert_close(found, 0.7 * std[0] / std[1] + 0.3, rtol=1e-12, atol=0)


def test_rescaled_guidance_without_deviation() -> None:
    """diffusers divides 0 by 0 there."""
    u = torch.full((2, 3, 4), 0.1)
    found = guidance.rescale_guidance(sample_stats(u, u), 7.5, 0.7, 12)
    assert torch.equal(found, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(("eta", "threshold"), [(0.0, 0.0), (0.3, 2.5), (1.0, 0.0), (-0.5, 1e9)])
def test_projected_guidance(eta: float, threshold: float) -> None:
    u, c, stats = outputs()
    d = c - u
    if threshold:
        d = d * (threshold / each(d.flatten(1).norm(dim=1))).clamp(max=1)
    direction = c / each(c.flatten(1).norm(dim=1))
    parallel = each((d * direction).flatten(1).sum(1)) * direction
    expected = c + (5.0 - 1) * (d - parallel + eta * parallel)
    w_u, w_c = guidance.projected_guidance(stats, 5.0, eta=eta, norm_threshold=threshold)
    torch.testing.assert_close(each(w_u) * u + each(w_c) * c, expected, rtol=1e-10, atol=1e-10)


def test_zero_star_guidance() -> None:
    u, c, stats = outputs()
    s = each((u * c).flatten(1).sum(1) / (u * u).flatten(1).sum(1))
    w_u, w_c = guidance.zero_star_guidance(stats, 4.0)
    torch.testing.assert_close(each(w_u) * u + each(w_c) * c, s * u + 4 * (c - s * u), rtol=1e-10, atol=1e-10)


def test_guidance_of_nothing() -> None:
    zero = torch.zeros(2, 5)
    stats = sample_stats(zero, zero)
    for weights in (guidance.projected_guidance(stats, 5.0, norm_threshold=1), guidance.zero_star_guidance(stats, 5.0)):
        assert all(w.isfinite().all() for w in weights)
    assert (guidance.langevin_step(sample_stats(zero), sample_stats(torch.ones(2, 5)), 0.16) == 0).all()


def test_langevin_step() -> None:
    score, z = torch.randn(4, 30), torch.randn(4, 30)
    norms = [t.double().norm(dim=1) for t in (score, z)]
    found = guidance.langevin_step(sample_stats(score), sample_stats(z), 0.16, 0.9)
    torch.testing.assert_close(found, 2 * 0.9 * (0.16 * norms[1] / norms[0]) ** 2, rtol=1e-12, atol=0)
