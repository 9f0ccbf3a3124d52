"""trace_sqrt_product and polar on every tier, and the reference, in what the contract suite's samples leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from pygen import ops, reference
from tests.harness.backend import ALL, Backend
from tests.harness.calls import random

from .samples import covariance, orthogonal
from .spectra import SPECTRA, with_values


@pytest.fixture(params=ALL, ids=str)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    backend: Backend = request.param
    with backend.active():
        yield backend.device


# --- trace_sqrt_product -----------------------------------------------------------------------------------------------


def tridiagonal(d: int) -> Tensor:
    return (
        torch.diag(torch.full((d,), 2.0)) - torch.ones(d, d).tril(1).triu(1) - torch.ones(d, d).tril(-1).triu(-1)
    ).double()


SIGMAS: dict[str, Callable[[int], Tensor]] = {
    "identity": lambda d: torch.eye(d).double(),
    "diagonal": lambda d: torch.diag(torch.linspace(1, 2, d, dtype=torch.float64)),
    "graded": lambda d: torch.diag(torch.logspace(0, -12, d, dtype=torch.float64)),
    "graded upwards": lambda d: torch.diag(torch.logspace(-12, 0, d, dtype=torch.float64)),
    "tridiagonal": tridiagonal,
    "blocks": lambda d: torch.block_diag(*(covariance(f"block {i}", 1, 5)[0] for i in range(-(-d // 5))))[:d, :d],
    "one value": lambda d: torch.eye(d).double() + torch.ones(d, d),
    "dense": lambda d: covariance("dense", 1, d)[0],
}


@pytest.mark.parametrize("d", [1, 2, 3, 20, 70, 150])
@pytest.mark.parametrize("name", SIGMAS)
def test_special_matrices(name: str, d: int, device: str) -> None:
    one = SIGMAS[name](d).to(device)
    for other in (one, torch.eye(d).to(one), covariance("other", 1, d)[0].to(one)):
        expected = torch.linalg.svdvals(torch.linalg.cholesky(one).mT @ torch.linalg.cholesky(other)).sum()
        trace, bound = ops.trace_sqrt_product(one, other)
        assert 0 <= bound <= 1e-6 * trace
        assert (trace - expected).abs() <= bound + 1e-14 * expected * d


def test_bound_is_the_references(device: str) -> None:
    if device != "cpu":
        pytest.skip("on CUDA it is the bound of another method")
    for d, power in ((5, 0.0), (40, 1.0), (130, 2.0)):
        one, two = covariance("a", 2, d, power=power), covariance("b", 2, d, power=power)
        bound, expected = ops.trace_sqrt_product(one, two)[1], reference.trace_sqrt_product(one, two)[1]
        assert torch.allclose(bound, expected, rtol=1e-4, atol=0)


def test_bound_holds_for_singular_matrices(device: str) -> None:
    """One factor is enough; the roots of the zeros are off by sqrt(eps), within the bound."""
    for d, rank in ((60, 15), (60, 55), (200, 100)):
        one, root = covariance("one", 1, d)[0].to(device), random("root", d, rank).to(device)
        expected = torch.linalg.svdvals(torch.linalg.cholesky(one).mT @ root).sum()
        for pair in ((one, root @ root.mT), (root @ root.mT, one)):
            trace, bound = ops.trace_sqrt_product(*pair)
            if trace.isnan():  # rounding made a pivot negative, or the device needs both factors
                assert bound == torch.inf
            else:
                assert (trace - expected).abs() <= bound + 1e-13 * expected
                assert bound > 1e-9 * trace


@pytest.mark.parametrize(
    ("c1", "c2"), [(1e-300, 1e-300), (1e-150, 1e-200), (1e150, 1e150), (1e300, 1e-300), (1e300, 1e300)]
)
def test_scales(c1: float, c2: float, device: str) -> None:
    one, two = covariance("a", 1, 12)[0].to(device), covariance("b", 1, 12)[0].to(device)
    expected = ops.trace_sqrt_product(one, two)[0] * c1**0.5 * c2**0.5
    assert float(ops.trace_sqrt_product(c1 * one, c2 * two)[0]) == pytest.approx(float(expected), rel=1e-12)


def test_without_a_factor(device: str) -> None:
    zero, one = torch.zeros(4, 4).double().to(device), covariance("a", 1, 4)[0].to(device)
    trace, bound = ops.trace_sqrt_product(torch.stack([zero, -one, one]), torch.stack([zero, -one, one]))
    assert trace.isnan().tolist() == [True, True, False]
    assert bound.isinf().tolist() == [True, True, False]
    one[2, 1] = torch.nan
    assert all(part.isnan() for part in ops.trace_sqrt_product(one, covariance("a", 1, 4)[0].to(device)))


def test_what_lies_above_the_diagonal_is_not_read(device: str) -> None:
    one, two = covariance("a", 1, 9)[0].to(device), covariance("b", 1, 9)[0].to(device)
    expected = ops.trace_sqrt_product(one, two)
    above = torch.full((9, 9), torch.nan).to(one).triu(1)
    found = ops.trace_sqrt_product(one.tril() + above, two.tril() + above)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


# --- polar ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_polar_of_any_spectrum(spectrum: str, scale: float, dtype: torch.dtype, device: str) -> None:
    """Square and tall: the norm is right, the factor no longer than 1, and where singular values are not of rounding's
    size, orthogonal. A scaled step without its margin turns the sign of equal values at the top.

    Worst seen of the norm: 45 eps (rank 1, whose 39 zeros LAPACK finds as eps each), 25 eps of the reference."""
    eps, values = torch.finfo(dtype).eps, SPECTRA[spectrum].double() * scale
    square = with_values(spectrum, values)
    for b in (square, orthogonal("tall", 90, len(values)) @ square, square @ orthogonal("wide", len(values), 60)):
        b = b.to(device, dtype)
        factor, norm = (part.double() for part in ops.polar(b))
        u, s, vh = torch.linalg.svd(b.double(), full_matrices=False)
        assert norm.item() == pytest.approx(s.sum().item(), rel=64 * eps)
        assert (factor * b.double()).sum().item() == pytest.approx(norm.item(), rel=64 * eps)
        assert torch.linalg.matrix_norm(factor, 2) < 1 + 32 * eps
        large = s > 100 * eps * s[0]
        along = (u[:, large].mT @ factor @ vh[large].mT).diagonal()
        assert (along - 1).abs().max() < 1e-3
        if large.all() and s[-1] > 1e-2 * s[0]:
            assert (factor - u @ vh).abs().max() < 1e4 * eps


def test_polar_of_what_is_no_number(device: str) -> None:
    b = random("b", 4, 6, 5).float().to(device)
    expected = ops.polar(b)
    b[1], b[2, 3, 1], b[3, 0, 0] = 0, torch.nan, torch.inf
    factor, norm = ops.polar(b)
    assert torch.equal(factor[0], expected[0][0])
    assert norm[1] == 0
    assert not factor[1].any()
    assert factor[2:].isnan().all()
    assert norm[2:].isnan().all()


def test_polar_without_leading_dimensions(device: str) -> None:
    b = random("b", 3, 5).float().to(device)
    factor, norm = ops.polar(b)
    assert (factor.shape, norm.shape) == ((3, 5), ())
    assert torch.allclose(factor @ factor.mT, torch.eye(3).to(factor), atol=1e-5)


@pytest.mark.parametrize("n", [17, 64, 128])
def test_bits_of_square_matrices_for_any_number_of_threads(n: int) -> None:
    """No LAPACK is called for these; the contract suite asks it of ops that never call it."""
    before, results = torch.get_num_threads(), []
    b = random("threads", 5, n, n).float()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([ops.polar(b), ops.polar(b[0])])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
