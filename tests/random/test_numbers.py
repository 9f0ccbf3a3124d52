"""The numbers: their distributions, their independence, and how far they are from the formulas.

Seeds are fixed, so a test passes always or never. Bounds are ones that a right stream misses with a probability below
1e-6 each: 5 standard deviations of a mean, the 1 - 1e-6 quantiles of chi-square and of Kolmogorov's distribution (the
latter: sqrt(-log(1e-6 / 2) / 2) = 2.69 over sqrt n).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pygen import random
from pygen.ops import dequantize
from pygen.reference import random as reference
from tests.harness import backend

N = 1 << 20
KOLMOGOROV = math.sqrt(-math.log(1e-6 / 2) / 2)


def chi_square_bound(freedom: int) -> float:
    """The 1 - 1e-6 quantile, by Wilson and Hilferty's cube (within 1 % from 3 degrees of freedom on)."""
    z, k = 4.753, 2 / (9 * freedom)
    return 1.01 * freedom * (1 - k + z * math.sqrt(k)) ** 3


def chi_square(found: Tensor, expected: Tensor) -> None:
    found, expected = found.double(), expected.double()
    assert expected.min() >= 5
    statistic = ((found - expected) ** 2 / expected).sum()
    assert statistic < chi_square_bound(len(expected) - 1), (statistic, len(expected))


# Distribution function, and the moments about zero, 1 to 4, and 8 (for the variance of the fourth).
EULER, ZETA3 = 0.5772156649015329, 1.2020569031595943
LAWS: dict[str, tuple[Callable[[Tensor], Tensor], float, float, float, float]] = {
    # name: cdf, mean, variance, skewness, kurtosis
    "uniform": (lambda x: x, 0.5, 1 / 12, 0.0, 1.8),
    "normal": (lambda x: torch.special.ndtr(x), 0.0, 1.0, 0.0, 3.0),
    "logistic": (torch.sigmoid, 0.0, math.pi**2 / 3, 0.0, 4.2),
    "gumbel": (
        lambda x: torch.exp(-torch.exp(-x)),
        EULER,
        math.pi**2 / 6,
        12 * math.sqrt(6) * ZETA3 / math.pi**3,
        5.4,
    ),
}
laws = pytest.mark.parametrize("name", LAWS)
# Rows as users draw them: one long sample, many short ones, single numbers at many steps.
ways = pytest.mark.parametrize("way", ["long", "short", "single"])


def draw(name: str, way: str, seed: int = 11) -> Tensor:
    """2^20 numbers, float64."""
    function = getattr(random, name)
    options = {"generator": seed} | ({} if name == "bits" else {"dtype": torch.float64})
    if way == "long":
        return function((1, N), **options).flatten()
    if way == "short":
        return function((N // 4, 4), **options).flatten()
    return torch.cat([function((N // 64,), step=step, **options) for step in range(64)])


# --- distributions ---------------------------------------------------------------------------------------------------


@ways
@laws
def test_kolmogorov_smirnov(name: str, way: str) -> None:
    u = LAWS[name][0](draw(name, way).sort().values)
    i = torch.arange(N, dtype=torch.float64)
    distance = torch.maximum((u - i / N).abs(), (u - (i + 1) / N).abs()).max()
    assert distance * math.sqrt(N) < KOLMOGOROV


@ways
@laws
def test_moments_to_the_fourth(name: str, way: str) -> None:
    """Standardised moments within 5 standard errors, which the sample itself gives: the eighth moment is finite."""
    _, mean, variance, skewness, kurtosis = LAWS[name]
    x = (draw(name, way) - mean) / math.sqrt(variance)
    for power, expected in ((1, 0.0), (2, 1.0), (3, skewness), (4, kurtosis)):
        y = x**power
        assert (y.mean() - expected).abs() < 5 * y.std() / math.sqrt(N), power


@ways
def test_every_bit_is_fair_and_every_pair_of_bytes_as_likely(way: str) -> None:
    w = draw("bits", way).long() & 0xFFFFFFFF
    for bit in range(32):
        ones = (w >> bit & 1).sum()
        assert (ones - N / 2).abs() < 5 * math.sqrt(N) / 2, bit
    for pair in (w & 0xFFFF, w >> 16):
        chi_square(torch.bincount(pair, minlength=1 << 16), torch.full((1 << 16,), N / (1 << 16)))


def test_the_tails_of_the_normal() -> None:
    x = torch.cat([random.normal((N * 4,), generator=1, draw=d).abs() for d in range(4)]).double()  # 2^24
    for bound in (3.0, 4.0, 5.0):
        expected = len(x) * math.erfc(bound / math.sqrt(2))
        assert ((x > bound).sum() - expected).abs() < 5 * math.sqrt(expected)
    assert x.max() < math.sqrt(2 * 33 * math.log(2))


@pytest.mark.parametrize("high", [1, 2, 3, 10, 1000])
def test_integers(high: int) -> None:
    x = random.integers(high, (N,), generator=5)
    assert x.dtype == torch.int64
    counts = torch.bincount(x)
    assert len(counts) == high
    if high > 1:
        chi_square(counts, torch.full((high,), N / high))


def test_integers_of_any_size() -> None:
    assert random.integers(2**32, (1000,), generator=5).max() > 0.99 * 2**32
    big = random.integers(3 * 2**30, (N,), generator=5)
    assert (big.double().mean() / (3 * 2**30) - 0.5).abs() < 5 / math.sqrt(12 * N)


def test_bernoulli_compares_exactly() -> None:
    """The least p that gives 1 is the next above w / 2^32, for all words, small ones too."""
    w = random.bits((N,), generator=4).long() & 0xFFFFFFFF
    p = w.double() / 2**32
    assert random.bernoulli(p, generator=4).sum() == 0
    assert random.bernoulli(p + 2.0**-33, generator=4).sum() == N
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        near = p.to(dtype)  # above or below
        expected = (w.double() < near.double() * 2**32).to(dtype)
        for implementation in backend.ALL:
            with implementation.active():
                assert torch.equal(random.bernoulli(near, generator=4), expected)


def test_bernoulli_is_as_likely_as_told() -> None:
    for value in (0.0, 1e-3, 0.3, 0.5, 0.999, 1.0):
        p = torch.tensor(value).expand(64, N // 64)
        mean = random.bernoulli(p, generator=2).double().mean()
        assert (mean - value).abs() <= 5 * math.sqrt(value * (1 - value) / N)


@pytest.mark.parametrize("categories", [2, 3, 10, 64, 65, 256, 1000])
def test_categorical_is_as_likely_as_told(categories: int) -> None:
    logits = 2 * random.normal((1, categories), generator=1)
    p = logits.double().softmax(1)[0]
    n = N // 4
    x = random.categorical(logits.expand(n, categories), generator=3)
    counts, expected = torch.bincount(x, minlength=categories), n * p
    rare = expected < 5
    if rare.any():  # as one
        counts = torch.cat([counts[~rare], counts[rare].sum()[None] + 0])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        if expected[-1] < 5:
            counts, expected = counts[:-1], expected[:-1] * counts[:-1].sum() / expected[:-1].sum()
    if len(expected) > 1:
        chi_square(counts, expected)


def test_categorical_never_draws_what_is_impossible() -> None:
    logits = random.normal((2000, 100), generator=1)
    possible = random.bernoulli(torch.full((2000, 100), 0.1), generator=2).bool()
    possible[:, 57] = True
    x = random.categorical(logits.masked_fill(~possible, -math.inf), generator=3)
    assert possible.gather(1, x[:, None]).all()
    one = torch.full((3, 5), -math.inf).index_fill(1, torch.tensor([4]), -1e30)
    assert random.categorical(one, generator=1).tolist() == [4, 4, 4]
    assert random.categorical(torch.tensor([[3e38, -3e38]]).expand(9, 2), generator=1).tolist() == [0] * 9


def test_dequantized_levels_stay_levels() -> None:
    for levels, dtype in ((2, torch.uint8), (256, torch.uint8), (65536, torch.int32), (2**23, torch.int64)):
        x = random.integers(levels, (64, N // 64), generator=1).to(dtype)
        v = dequantize(x, levels, generator=2)
        assert torch.equal(v.floor().to(dtype), x)
        assert torch.equal(v.double(), dequantize(x, levels, generator=2, dtype=torch.float64))
        u = v.double() - x.double()
        step = 2.0 ** -reference.noise_bits(levels)
        assert (u.mean() + step / 2 - 0.5).abs() < 5 / math.sqrt(12 * N)
    assert torch.equal(dequantize(torch.zeros(3, 5).byte(), 1, generator=2), random.uniform((3, 5), generator=2))


# --- independence ----------------------------------------------------------------------------------------------------


def correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.flatten().double(), b.flatten().double()
    return ((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std())


@pytest.mark.parametrize("name", ["uniform", "normal"])
def test_nothing_is_correlated(name: str) -> None:
    """Neighbours in every direction, plainly and squared: 5 / sqrt(n)."""
    function = getattr(random, name)
    x = function((1024, 1024), generator=1)  # [samples, elements]
    centred = x - x.mean()
    others = {
        "next step": function((1024, 1024), generator=1, step=1),
        "next draw": function((1024, 1024), generator=1, draw=1),
        "next seed": function((1024, 1024), generator=2),
        "far sample": function((1024, 1024), generator=1, first_sample=2**32),
        **{f"element + {lag}": x.roll(-lag, 1) for lag in (1, 2, 15, 16, 17, 32, 48, 64)},
        **{f"sample + {lag}": x.roll(-lag, 0) for lag in (1, 2, 16)},
    }
    for what, y in others.items():
        assert correlation(x, y).abs() < 5 / math.sqrt(x.numel()), what
        assert correlation(centred**2, (y - y.mean()) ** 2).abs() < 5 / math.sqrt(x.numel()), what


def test_pairs_fill_the_square() -> None:
    """Neighbouring elements, samples and steps: 64 x 64 cells as likely each."""
    x = random.uniform((1024, 1024), generator=3)
    y = random.uniform((1024, 1024), generator=3, step=1)
    cells = lambda t: (64 * t).long()  # noqa: E731
    for a, b in ((x[:, ::2], x[:, 1::2]), (x[:, :512], x[:, 512:]), (x[::2], x[1::2]), (x, y)):
        counts = torch.bincount((64 * cells(a) + cells(b)).flatten(), minlength=4096)
        chi_square(counts, torch.full((4096,), a.numel() / 4096))


# --- accuracy --------------------------------------------------------------------------------------------------------


def words() -> Tensor:
    """A dense grid of words, all of them near the ends and the middle, and around the powers of two."""
    grid = torch.arange(0, 2**32, 4001)
    near = torch.arange(2000)
    places = [near, 2**32 - 1 - near, 2**31 + near - 1000]
    places += [(2.0**k * r) + near[:64] - 32 for k in range(8, 32) for r in (1.0, math.sqrt(0.5))]
    w = torch.cat([p.long() for p in (grid, *places)])
    return w[(w >= 0) & (w < 2**32)].unique()


def ulps(found: Tensor, true: Tensor, least: float = 0.0) -> float:
    """The largest error in units of the last place of float32, of numbers below `least` in those of `least`."""
    exponent = torch.frexp(true.abs().clamp(min=max(least, 1e-30)))[1] - 24
    return float(((found.double() - true).abs() / torch.ldexp(torch.ones(()).double(), exponent)).max())


def test_worst_errors_against_float64() -> None:
    """In ulp, measured over these words: log u 2.36, the normal's radius 1.73, cosine and sine 2.71, their product over
    random pairs 4.2; logistic 2.0; Gumbel 2.06 (of 1, below 1)."""
    w = words()
    u, rest = (w.double() + 0.5) / 2**32, ((w ^ 0xFFFFFFFF).double() + 0.5) / 2**32
    log_u = torch.where(u < 0.5, u.log(), torch.log1p(-rest))
    log_rest = torch.where(u < 0.5, torch.log1p(-u), rest.log())
    log = reference._join(*reference._split_unit(w))
    cosine, sine = reference._cos_sin(w)
    # Cosine and sine of 2 pi w / 2^32 near their zeros: from the distance to these, which is an integer.
    turn = math.pi / 2**31
    quarter = ((w + 2**30) % 2**31 - 2**30).double() * turn  # from the nearest half turn
    true_sine = quarter.sin() * (1 - 2 * ((w + 2**30) // 2**31 % 2)).double()
    v = w + 2**30
    true_cosine = (((v + 2**30) % 2**31 - 2**30).double() * turn).sin() * (1 - 2 * ((v + 2**30) // 2**31 % 2)).double()
    errors = {
        "log": ulps(log, log_u),
        "radius": ulps((log * -2.0).double().sqrt().float(), (-2 * log_u).sqrt()),
        "cosine": ulps(cosine, true_cosine),
        "sine": ulps(sine, true_sine),
        "logistic": ulps(reference._logistic(w), log_u - log_rest),
        "gumbel": ulps(reference._gumbel(w), -(-log_u).log(), 1.0),
    }
    order = torch.randperm(len(w))
    product = (log * -2.0).double().sqrt().float() * cosine[order]
    errors["normal"] = ulps(product, (-2 * log_u).sqrt() * true_cosine[order])
    print(errors)
    bounds = {"log": 2.5, "radius": 2, "cosine": 3, "sine": 3, "normal": 5, "logistic": 2.5, "gumbel": 2.5}
    assert all(errors[k] <= bounds[k] for k in bounds), errors


def test_exp_of_the_weights() -> None:
    """round(2^30 e^x), up to 2.5e-7 of it."""
    x = torch.linspace(-33, 0, 100_001)
    found = reference.weights(torch.stack([x, torch.zeros_like(x)], 1))[:, 0]
    true = x.double().exp() * 2**30
    assert ((found - true).abs() <= 0.5 + 2.5e-7 * true).all()
