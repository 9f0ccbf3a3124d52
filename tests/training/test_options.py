"""Learning rates, decays, seeds; options that cannot be."""

from __future__ import annotations

import math

import pytest

from pygen.training import Options


def test_the_learning_rate_rises_then_falls_or_stays() -> None:
    cosine = Options(steps=100, lr=0.5)
    assert cosine.warmup == 10
    rates = [cosine.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[9] == pytest.approx(0.5 * (0.5 + 0.5 * math.cos(0.09 * math.pi)))
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.001
    constant = Options(steps=100, lr=0.5, schedule="constant", warmup=4)
    assert [constant.rate(step) for step in (0, 1, 2, 3, 4, 99)] == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    assert Options(steps=3, lr=0.5, schedule="constant", warmup=0).rate(0) == 0.5


def test_a_young_average_forgets_sooner() -> None:
    decays = [Options(ema=0.99).decay(step) for step in range(2000)]
    assert decays[0] == 0.1
    assert decays == sorted(decays)
    assert decays[-1] == 0.99
    assert Options(ema=0).decay(5) == 0


def test_every_use_has_a_seed_of_its_own() -> None:
    seeds = {
        Options(seed=seed).seed_of(what, *numbers)
        for seed in (0, 1)
        for what in ("step", "epoch")
        for numbers in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (10,))
    }
    assert len(seeds) == 28
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert Options().seed_of("step", 0, 0) == 2254801054383258429  # runs are resumed by later versions too


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "expected steps >= 1, got 0"),
        ({"batch_size": 0}, "expected batch_size >= 1, got 0"),
        ({"warmup": -1}, "expected warmup >= 0, got -1"),
        ({"seed": -1}, "expected seed >= 0, got -1"),
        ({"lr": 0.0}, "expected lr as a positive number, got 0.0"),
        ({"lr": math.inf}, "expected lr as a positive number, got inf"),
        ({"clip": math.nan}, "expected clip as a positive number, got nan"),
        ({"weight_decay": -1.0}, "expected weight_decay as a positive number or 0, got -1.0"),
        ({"ema": 1.0}, "expected 0 <= ema < 1, got 1.0"),
        ({"schedule": "linear"}, "expected schedule as one of cosine, constant, got 'linear'"),
        ({"precision": "int8"}, "expected precision as one of float32, bfloat16, float16, got 'int8'"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**options)
