"""frechet_distance and trace_sqrt_product against fifty digits, closed forms, and what breaks other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pygen.metrics import FrechetReference, frechet_distance, frechet_distance_from_features, trace_sqrt_product
from tests.harness.calls import random
from tests.metrics import peers, truth


def rotation(name: str, d: int) -> Tensor:
    return torch.linalg.qr(random(f"rotation {name}", d, d))[0]


def with_spectrum(name: str, values: Tensor) -> Tensor:
    q = rotation(name, len(values))
    sigma = (q * values) @ q.mT
    return (sigma + sigma.mT) / 2


def powers(d: int, power: float) -> Tensor:
    return torch.arange(1, d + 1, dtype=torch.float64) ** -power


def features(name: str, n: int, d: int, power: float = 0.5) -> Tensor:
    return random(f"features {name}", n, d) * powers(d, power) @ rotation(name, d) + 0.5 * random(f"mean {name}", d)


# --- to fifty digits --------------------------------------------------------------------------------------------------

PAIRS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "one": lambda: (torch.full((1, 1), 3.0).double(), torch.full((1, 1), 0.7).double()),
    "well-conditioned": lambda: (with_spectrum("a", powers(24, 1)), with_spectrum("b", powers(24, 0.5))),
    "commuting": lambda: (with_spectrum("a", powers(13, 1)), with_spectrum("a", powers(13, 2))),
    "equal": lambda: (with_spectrum("a", powers(24, 1)), with_spectrum("a", powers(24, 1))),
    "tiny": lambda: (1e-200 * with_spectrum("a", powers(9, 1)), 1e-150 * with_spectrum("b", powers(9, 1))),
    "huge": lambda: (1e150 * with_spectrum("a", powers(9, 1)), 1e120 * with_spectrum("b", powers(9, 1))),
    "condition 1e8": lambda: (
        with_spectrum("a", torch.logspace(0, -8, 16).double()),
        with_spectrum("b", powers(16, 1)),
    ),
}
SINGULAR: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "condition 1e16": lambda: (
        with_spectrum("a", torch.logspace(0, -16, 16).double()),
        with_spectrum("b", torch.logspace(0, -16, 16).double()),
    ),
    "rank 1": lambda: (
        with_spectrum("a", (powers(8, 1) == 1).double()),
        with_spectrum("b", (powers(8, 1) == 1).double()),
    ),
    "one deficient": lambda: (
        with_spectrum("a", powers(12, 1) * (powers(12, 1) > 0.2)),
        with_spectrum("b", powers(12, 1)),
    ),
    "both deficient": lambda: (
        with_spectrum("a", powers(12, 1) * (powers(12, 1) > 0.2)),
        with_spectrum("b", powers(12, 1) * (powers(12, 1) > 0.1)),
    ),
    "zero": lambda: (torch.zeros(4, 4).double(), with_spectrum("b", powers(4, 1))),
    "dead features": lambda: (torch.diag(powers(6, 1) * (powers(6, 1) > 0.3)), with_spectrum("b", powers(6, 1))),
}


@pytest.mark.parametrize("accurate", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_trace_to_fifty_digits(name: str, accurate: bool) -> None:
    one, two = PAIRS[name]()
    expected = truth.trace(one, two)
    for pair in ((one, two), (two, one)):
        assert float(trace_sqrt_product(*pair, accurate=accurate)) == pytest.approx(expected, rel=2e-12)


@pytest.mark.parametrize("name", SINGULAR)
def test_trace_of_singular_matrices(name: str) -> None:
    """A singular matrix in floats is off by eps, and the root of that is what no method can know better."""
    one, two = SINGULAR[name]()
    scale = math.sqrt(float(one.trace() * two.trace()))
    for pair in ((one, two), (two, one)):
        found = float(trace_sqrt_product(*pair))
        assert found == pytest.approx(truth.trace(one, two), abs=1e-7 * scale)


@pytest.mark.parametrize("n", [2, 3, 6, 12, 13, 24, 48])
@pytest.mark.parametrize("power", [0.0, 1.0, 6.0])
def test_features_to_fifty_digits(n: int, power: float) -> None:
    """From 2 samples to 4 d, in spectra that fall to 1e-13: never below half the digits, since nothing is squared."""
    x, y = features("x", n, 12, power), features("y", 2 * n, 12, power)
    expected = truth.of_features(x, y)
    scale = float(x.var(0).sum() + y.var(0).sum())
    for pair in ((x, y), (y, x)):
        assert float(frechet_distance_from_features(*pair)) == pytest.approx(expected, abs=1e-13 * scale)
    assert float(FrechetReference.from_features(x).to_features(y)) == pytest.approx(expected, abs=1e-7 * scale)
    if n > 12:
        one, two = FrechetReference.from_features(x), FrechetReference.from_features(y)
        statistics = one.distance(two.mu, two.sigma)
        assert float(statistics) == pytest.approx(expected, abs=1e-7 * scale)


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_commuting_covariances() -> None:
    """|dmu|^2 + sum (sqrt a - sqrt b)^2."""
    a, b, q = powers(20, 1), powers(20, 0.3), rotation("q", 20)
    mu = random("mu", 2, 20)
    found = frechet_distance(mu[0], (q * a) @ q.mT, mu[1], (q * b) @ q.mT)
    assert float(found) == pytest.approx(
        float((mu[0] - mu[1]).square().sum() + (a.sqrt() - b.sqrt()).square().sum()), rel=1e-12
    )


def test_rotation_and_scale() -> None:
    """A rotation of both changes nothing, and FD(c X, c Y) = c^2 FD(X, Y)."""
    x, y, q = features("x", 50, 10), features("y", 60, 10), rotation("q", 10)
    d = frechet_distance_from_features(x, y)
    assert float(frechet_distance_from_features(x @ q, y @ q)) == pytest.approx(float(d), rel=1e-12)
    for c in (1e-60, 1e-3, 1e3, 1e60):
        assert float(frechet_distance_from_features(c * x, c * y)) == pytest.approx(float(c**2 * d), rel=1e-12)


def test_disjoint_supports() -> None:
    """Nothing shared: the trace is 0."""
    one, two = torch.diag(torch.tensor([1.0, 2, 0, 0])).double(), torch.diag(torch.tensor([0.0, 0, 3, 4])).double()
    mu = torch.zeros(4).double()
    assert float(frechet_distance(mu, one, mu, two)) == pytest.approx(10, abs=1e-12)


def test_one_dimension() -> None:
    assert frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[9.0]])) == pytest.approx(5)


@pytest.mark.parametrize(("n", "d"), [(2, 100), (10, 100), (99, 100), (100, 100), (101, 100), (400, 100), (64, 512)])
def test_equal_sets_are_at_distance_zero(n: int, d: int) -> None:
    x = features("x", n, d)
    assert abs(float(frechet_distance_from_features(x, x))) < 1e-10
    reference = FrechetReference.from_features(x)
    assert abs(float(reference.to_features(x))) < 1e-10
    assert abs(float(reference.distance(reference.mu, reference.sigma))) < 1e-10


def test_float32_features_lose_float32s_digits_only() -> None:
    """Eigenvalue forms are off by 4e-2 here: notes of torcheval #192, BigGAN."""
    x, y = features("x", 64, 192), features("y", 64, 192)
    expected = frechet_distance_from_features(x, y)
    assert float(frechet_distance_from_features(x.float(), y.float())) == pytest.approx(float(expected), rel=3e-6)


@pytest.mark.parametrize("n", [520, 4000])
def test_near_equal_statistics(n: int) -> None:
    """What is wanted is a small difference of large traces: eigenvalues alone are 1e-7 of these off."""
    x = features("x", n, 512, 1.0)
    x *= (98 / x.var(0).sum()).sqrt()
    one = FrechetReference.from_features(x)
    assert abs(float(one.distance(one.mu, one.sigma))) < 1e-10
    y = x + 1e-4 * random("noise", n, 512)
    two = FrechetReference.from_features(y)
    expected = float(frechet_distance_from_features(x, y))
    assert float(one.distance(two.mu, two.sigma)) == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_steep_spectra_to_a_millionth() -> None:
    scale = torch.logspace(0, -8, 128).double()
    x, y = random("x", 1000, 128) * scale, random("y", 1000, 128) * scale
    one, two = FrechetReference.from_features(x), FrechetReference.from_features(y)
    expected = float(frechet_distance_from_features(x, y))
    assert float(one.distance(two.mu, two.sigma)) == pytest.approx(expected, rel=1e-6)


# --- what breaks other libraries --------------------------------------------------------------------------------------


def test_fewer_samples_than_features_is_no_trouble() -> None:
    """pytorch-fid #13, #29, #100 (complex, 9e7, 3e114), torch-fidelity #54 (2e111): the product is singular."""
    x, y = features("x", 20, 64), features("y", 30, 64)
    one, two = FrechetReference.from_features(x), FrechetReference.from_features(y)
    expected = float(frechet_distance_from_features(x, y))
    assert float(one.distance(two.mu, two.sigma)) == pytest.approx(expected, rel=1e-6)


def test_indefinite_by_rounding() -> None:
    """torcheval #192: a covariance from float32 sums has negative eigenvalues."""
    sigma = with_spectrum("a", powers(30, 6)).float().double()
    sigma = (sigma + sigma.mT) / 2
    below = torch.linalg.eigvalsh(sigma).clamp(max=0).sum()
    assert below < 0
    other = with_spectrum("b", powers(30, 1))
    mu = torch.zeros(30).double()
    assert abs(float(frechet_distance(mu, sigma, mu, sigma))) < -2.1 * float(below)
    assert 0 < float(frechet_distance(mu, sigma, mu, other)) < float(sigma.trace() + other.trace())


def test_eps_is_the_peers_and_biases_low() -> None:
    x, y = features("x", 64, 192, 0.0), features("y", 64, 192, 0.0)
    one, two = FrechetReference.from_features(x), FrechetReference.from_features(y)
    plain = frechet_distance(one.mu, one.sigma, two.mu, two.sigma)
    biased = frechet_distance(one.mu, one.sigma, two.mu, two.sigma, eps=1e-6)
    ridge = 1e-6 * torch.eye(192)
    rest = (one.mu - two.mu).square().sum() + one.trace + two.trace
    assert float(biased) == pytest.approx(
        float(rest - 2 * trace_sqrt_product(one.sigma + ridge, two.sigma + ridge)), rel=1e-12
    )
    assert biased < plain - 1e-5
    regular, four = torch.eye(3).double(), 4 * torch.eye(3).double()
    lower = frechet_distance(MU, regular, MU, four, eps=1e-3) - frechet_distance(MU, regular, MU, four)
    assert float(lower) == pytest.approx(-1e-3 * 3 * 2.5, rel=1e-2)  # -eps tr (s1 s2)^(-1/2) (s1 + s2)


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_pytorch_fid_agrees() -> None:
    x, y = features("x", 1000, 64), features("y", 900, 64)
    statistics = [part.numpy() for t in (x, y) for part in (t.mean(0), torch.cov(t.mT))]
    expected = peers.pytorch_fid().fid_score.calculate_frechet_distance(*statistics)
    assert frechet_distance(*statistics) == pytest.approx(expected, rel=1e-6)
    assert float(frechet_distance_from_features(x, y)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.peer
@pytest.mark.parametrize("d", [64, 300, 2048])
def test_scipy_agrees(d: int) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    one, two = with_spectrum("a", powers(d, 0.5)), with_spectrum("b", powers(d, 0.3))
    expected = linalg.sqrtm(one.numpy() @ two.numpy()).trace().real
    assert float(trace_sqrt_product(one, two)) == pytest.approx(expected, rel=1e-6)


# --- the interface ----------------------------------------------------------------------------------------------------


def test_arrays_give_a_float_and_tensors_a_tensor() -> None:
    mu, sigma = np.zeros(3), np.eye(3)
    assert type(frechet_distance(mu, sigma, mu, sigma)) is float
    assert type(trace_sqrt_product(sigma, sigma)) is float
    found = frechet_distance(*(torch.from_numpy(a).float() for a in (mu, sigma, mu, sigma)))
    assert (found.shape, found.dtype) == ((), torch.float64)


def test_lists_of_floats_pass() -> None:
    assert frechet_distance([0.0], [[1.0]], [2.0], [[1.0]]) == pytest.approx(4)


MU, SIGMA = torch.zeros(3).double(), torch.eye(3).double()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((MU, SIGMA, torch.zeros(4).double(), torch.eye(4).double()), ValueError, "(3, 3) and (4, 4)"),
        ((MU, torch.eye(4).double(), MU, SIGMA), ValueError, "sigma1 (3, 3)"),
        ((MU[None], SIGMA, MU, SIGMA), ValueError, "mu1 [d], got (1, 3)"),
        ((MU, MU, MU, SIGMA), ValueError, "sigma1 [d, d], got (3,)"),
        ((MU, SIGMA, MU, SIGMA[:2]), ValueError, "sigma2 [d, d], got (2, 3)"),
        ((MU, SIGMA * math.nan, MU, SIGMA), ValueError, "sigma1 of finite numbers, got 9 of 9"),
        ((MU, SIGMA, MU + math.inf, SIGMA), ValueError, "mu2 of finite numbers, got 3 of 3"),
        ((MU, -SIGMA, MU, SIGMA), ValueError, "negative variance"),
        ((MU, SIGMA + torch.ones(3).double().diag(0).roll(1, 0), MU, SIGMA), ValueError, "not symmetric"),
        ((MU.long(), SIGMA, MU, SIGMA), TypeError, "int64"),
        ((MU[:2], torch.tensor([[1.0, 2], [2, 1]]), MU[:2], SIGMA[:2, :2]), ValueError, "variances allow"),
        ((MU[:2], torch.tensor([[0.0, 1], [1, 0]]), MU[:2], SIGMA[:2, :2]), ValueError, "variances allow"),
        ((MU, 2.2 * SIGMA - 1, MU, 2.2 * SIGMA - 1), ValueError, "eigenvalues from -0.8"),
        ((MU, 1e200 * (SIGMA + torch.ones(3, 3).triu(1) / 2), MU, SIGMA), ValueError, "not symmetric"),
        ((MU, 1e308 * SIGMA, MU, 1e308 * SIGMA), ValueError, "up to 1e+308"),
        ((MU + 1e200, SIGMA, MU, SIGMA), ValueError, "up to 1e+200"),
        ((None, SIGMA, MU, SIGMA), TypeError, "NoneType"),
        ((np.ma.masked_less(np.zeros(3), 1), SIGMA, MU, SIGMA), TypeError, "mask"),
    ],
)
def test_bad_statistics(arguments: tuple[Tensor, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match="expected") as caught:
        frechet_distance(*arguments)
    assert words in str(caught.value)


def test_arrays_of_any_kind() -> None:
    sigma = np.cov(random("cov", 5, 50).numpy())
    expected = frechet_distance(np.zeros(5), sigma, np.ones(5), np.eye(5))
    mapped = sigma.copy()
    mapped.setflags(write=False)
    for same in (
        sigma[::-1, ::-1][::-1, ::-1],
        sigma.astype(">f8"),
        sigma.astype(np.longdouble),
        np.asfortranarray(sigma),
        mapped,
    ):
        assert frechet_distance(np.zeros(5), same, np.ones(5), np.eye(5)) == expected
    tiny = 1e-200 * sigma
    tiny[0, 1] *= 1 + 1e-14
    assert frechet_distance(np.zeros(5), tiny, np.zeros(5), 4 * tiny) == pytest.approx(np.trace(tiny), rel=1e-9)


def test_a_reference_is_a_copy() -> None:
    mu, sigma = torch.zeros(3).double(), torch.eye(3).double()
    reference, x = FrechetReference(mu, sigma), features("x", 10, 3)
    expected = reference.to_features(x)
    mu += 1
    sigma *= 4
    assert torch.equal(reference.to_features(x), expected)
    assert type(reference.distance(np.zeros(3), np.eye(3))) is float


def test_nan_features_give_nan() -> None:
    x, y = features("x", 10, 3), features("y", 10, 3)
    x[1, 2] = math.nan
    reference = FrechetReference.from_features(y)
    for leaf in (x, x.clone().requires_grad_()):
        assert frechet_distance_from_features(leaf, y).isnan()
        assert frechet_distance_from_features(y, leaf).isnan()
        assert reference.to_features(leaf).isnan()


def test_forward_mode_is_refused() -> None:
    x, reference = features("x", 10, 3), FrechetReference(MU, SIGMA)
    for other in (x, reference):
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.func.jvp(lambda t, other=other: frechet_distance_from_features(t, other), (x,), (x,))


def test_gradients_are_refused_not_lost() -> None:
    with pytest.raises(NotImplementedError, match="frechet_loss"):
        frechet_distance(MU.clone().requires_grad_(), SIGMA, MU, SIGMA)


@pytest.mark.parametrize(
    ("x", "y", "error", "words"),
    [
        (torch.zeros(1, 3), torch.zeros(4, 3), ValueError, "at least 2 samples, got (1, 3)"),
        (torch.zeros(4), torch.zeros(4, 3), ValueError, "x [N, d]"),
        (torch.zeros(4, 3), torch.zeros(4, 5), ValueError, "[M, 3]"),
        (torch.zeros(4, 3), torch.zeros(4, 3).double(), ValueError, "float64"),
        (torch.zeros(4, 3).long(), torch.zeros(4, 3), TypeError, "int64"),
        (np.zeros((4, 3)), torch.zeros(4, 3), TypeError, "ndarray"),
        (torch.zeros(4, 5), FrechetReference(MU, SIGMA), ValueError, "[N, 3]"),
    ],
)
def test_bad_features(x: Tensor, y: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match="expected") as caught:
        frechet_distance_from_features(x, y)
    assert words in str(caught.value)


def test_bad_eps() -> None:
    for eps in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="eps >= 0"):
            frechet_distance(MU, SIGMA, MU, SIGMA, eps=eps)


def test_reference_of_nan_features_counts_them() -> None:
    x = features("x", 5, 3)
    x[2, 1] = math.nan
    with pytest.raises(ValueError, match="got 1 of 15 that are NaN"):
        FrechetReference.from_features(x)
