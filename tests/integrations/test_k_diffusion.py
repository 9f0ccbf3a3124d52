"""k-diffusion's functions against its own, in float64, noise and random state included."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.integrations import k_diffusion as ours

from ..diffusion import peers

pytestmark = pytest.mark.peer

SHAPE = (2, 3, 4, 5)


def model(x: Tensor, sigma: Tensor, shift: float = 0.0) -> Tensor:
    """Data predicted: not linear, different at every sigma."""
    s = sigma.reshape(-1, *[1] * (x.dim() - 1))
    return torch.tanh(x / (1 + s**2)) + 0.1 * torch.sin(s) + shift


def sigmas(last: float = 0.0, repeat: bool = False) -> Tensor:
    values = [14.6, 7.3, 3.1, 3.1 if repeat else 1.7, 0.9, 0.4, 0.1, last]
    return torch.tensor(values, dtype=torch.float64)


def start() -> Tensor:
    return 14.6 * torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def run(sampler: Any, *args: Any, **options: Any) -> tuple[Tensor, list[dict[str, Any]], Tensor]:
    """The result, what the callback was told, and what torch draws next."""
    torch.manual_seed(3)
    told: list[dict[str, Any]] = []
    x = sampler(model, start(), *args, callback=told.append, disable=True, extra_args={"shift": 0.1}, **options)
    return x, told, torch.randn(2)


def compare(name: str, *args: Any, **options: Any) -> None:
    expected, theirs, drawn = run(getattr(peers.k_diffusion(), name), *args, **options)
    found, told, after = run(getattr(ours, name), *args, **options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(drawn, after)
    assert len(told) == len(theirs)
    for mine, other in zip(told, theirs, strict=True):
        assert mine.keys() == other.keys()
        for key, value in other.items():
            torch.testing.assert_close(
                torch.as_tensor(mine[key], dtype=torch.float64), torch.as_tensor(value, dtype=torch.float64),
                rtol=1e-7, atol=1e-7, msg=lambda text, key=key: f"{key}: {text}",
            )  # fmt: skip


CHURN = [{}, {"s_churn": 3.0}, {"s_churn": 40.0, "s_tmin": 0.3, "s_tmax": 8.0, "s_noise": 1.01}]


@pytest.mark.parametrize("options", CHURN, ids=["plain", "churn", "limits"])
@pytest.mark.parametrize("name", ["sample_euler", "sample_heun", "sample_dpm_2"])
@pytest.mark.parametrize("last", [0.0, 0.02])
def test_churned(name: str, options: dict[str, float], last: float) -> None:
    compare(name, sigmas(last), **options)


@pytest.mark.parametrize("options", [{}, {"eta": 0.0}, {"eta": 0.5, "s_noise": 0.9}, {"eta": 1.7}])
@pytest.mark.parametrize("name", ["sample_euler_ancestral", "sample_dpm_2_ancestral", "sample_dpmpp_2s_ancestral"])
@pytest.mark.parametrize("last", [0.0, 0.02])
def test_ancestral(name: str, options: dict[str, float], last: float) -> None:
    compare(name, sigmas(last), **options)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("last", [0.0, 0.02])
def test_lms(order: int, last: float) -> None:
    compare("sample_lms", sigmas(last), order=order)


@pytest.mark.parametrize("last", [0.0, 0.02])
def test_dpmpp_2m(last: float) -> None:
    compare("sample_dpmpp_2m", sigmas(last))


def sampled() -> Any:
    """A noise sampler that depends on the interval, as a Brownian tree does."""

    def noise(sigma: Any, sigma_next: Any) -> Tensor:
        seed = int(1e6 * float(sigma)) + int(1e3 * float(sigma_next))
        return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    return noise


@pytest.mark.parametrize("options", [{}, {"eta": 0.0}, {"eta": 0.5, "s_noise": 0.9}])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sample_dpmpp_sde", {}),
        ("sample_dpmpp_sde", {"r": 0.3}),
        ("sample_dpmpp_2m_sde", {}),
        ("sample_dpmpp_2m_sde", {"solver_type": "heun"}),
        ("sample_dpmpp_3m_sde", {}),
    ],
)
@pytest.mark.parametrize("last", [0.0, 0.02])
def test_sde(name: str, more: dict[str, Any], options: dict[str, float], last: float) -> None:
    compare(name, sigmas(last), noise_sampler=sampled(), **options, **more)


@pytest.mark.parametrize("n", [3, 4, 5, 6, 10])
@pytest.mark.parametrize("options", [{}, {"eta": 0.7, "s_noise": 0.9}])
def test_dpm_fast(n: int, options: dict[str, float]) -> None:
    with double_default():
        compare("sample_dpm_fast", 0.05, 14.6, n, **options)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("options", [{}, {"eta": 0.5}, {"pcoeff": 0.2, "dcoeff": 0.1, "rtol": 0.01}])
def test_dpm_adaptive(order: int, options: dict[str, float]) -> None:
    with double_default():
        compare("sample_dpm_adaptive", 0.05, 14.6, order=order, **options)


def double_default() -> Any:
    """Numbers that a function makes tensors of are float64."""

    class _Default:
        def __enter__(self) -> None:
            torch.set_default_dtype(torch.float64)

        def __exit__(self, *error: object) -> None:
            torch.set_default_dtype(torch.float32)

    return _Default()


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("get_sigmas_karras", (10, 0.03, 14.6)),
        ("get_sigmas_karras", (7, 0.002, 80.0, 5.0)),
        ("get_sigmas_exponential", (10, 0.03, 14.6)),
        ("get_sigmas_polyexponential", (10, 0.03, 14.6, 2.0)),
        ("get_sigmas_vp", (10,)),
    ],
)
def test_schedules(name: str, args: tuple[float, ...]) -> None:
    expected = getattr(peers.k_diffusion(), name)(*args)
    rtol = 1e-3 if name == "get_sigmas_vp" else 3e-6  # it takes 1 off a float32 near 1
    torch.testing.assert_close(getattr(ours, name)(*args), expected, rtol=rtol, atol=0)


def test_signatures() -> None:
    for name in ours.__all__:
        theirs = inspect.signature(getattr(peers.k_diffusion(), name)).parameters.values()
        mine = inspect.signature(getattr(ours, name)).parameters.values()
        assert [(p.name, p.default) for p in mine] == [(p.name, p.default) for p in theirs], name


@pytest.mark.parametrize("name", [n for n in ours.__all__ if n.startswith("sample_") and "dpm_a" not in n])
def test_repeated_sigmas(name: str) -> None:
    """A step between equal sigmas changes nothing, whatever came before; the peer divides by zero in some."""
    if name == "sample_dpm_fast":
        pytest.skip("it takes no sigmas")
    told: list[dict[str, Any]] = []
    x = getattr(ours, name)(model, start(), sigmas(repeat=True), callback=told.append, disable=True)
    assert x.isfinite().all()
    torch.testing.assert_close(told[2]["x"], told[3]["x"], rtol=1e-14, atol=0)


def test_small_sigmas_are_finite_in_float32() -> None:
    values = ours.get_sigmas_karras(20, 1e-4, 80.0)
    assert ours.sample_dpmpp_3m_sde(model, start().float(), values, disable=True).isfinite().all()


def test_refused() -> None:
    with pytest.raises(ValueError, match="must not be 0"):
        ours.sample_dpm_fast(model, start(), 0.0, 1.0, 5)
    with pytest.raises(ValueError, match="order should be 2 or 3"):
        ours.sample_dpm_adaptive(model, start(), 0.1, 1.0, order=4)
    with pytest.raises(ValueError, match="solver_type must be"):
        ours.sample_dpmpp_2m_sde(model, start(), sigmas(), solver_type="euler")
    assert math.isclose(ours.get_ancestral_step(2.0, 1.0)[0] ** 2 + ours.get_ancestral_step(2.0, 1.0)[1] ** 2, 1.0)
