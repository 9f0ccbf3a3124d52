"""Patched schedulers of diffusers beside their steps: noise on data, velocities, inputs that are scaled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.integrations import diffusers as ours
from pygen.integrations.diffusers._call import METHODS

from ..diffusion import peers
from .test_diffusers import SHAPE, STABLE, no_fallback, same_state

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"),
]

MIXERS = [(name, method) for name in METHODS for method in METHODS[name] if "noise" in method or "velo" in method]
SCALERS = [name for name in METHODS if "scale_model_input" in METHODS[name]]
BY_TIME = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "PNDMScheduler", "ScoreSdeVeScheduler", "TCDScheduler")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    **{
        name: [{}, {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}]
        for name in ("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
    },
    "DDIMScheduler": [STABLE, {"rescale_betas_zero_snr": True}],
    "EulerDiscreteScheduler": [STABLE, {"use_karras_sigmas": True}, {"rescale_betas_zero_snr": True}],
}
CASES = [(name, method, options) for name, method in MIXERS for options in OPTIONS.get(name, [{}])]


def pair(name: str, options: dict[str, Any] | None = None, steps: int | None = 7) -> tuple[Any, Any]:
    """A scheduler as it is, and patched."""
    plain = peers.scheduler_class(name)(**options or {})
    if steps is not None:
        plain.set_timesteps(steps)
    return plain, ours.patch_scheduler(copy.deepcopy(plain))


def times_of(scheduler: Any, name: str, count: int = 5) -> Tensor:
    """Of a batch: of training's, or of a run's, one of which may be there twice."""
    if name in BY_TIME:
        return torch.tensor([0, 999, 3, 500, 1])[:count]
    times = scheduler.timesteps
    return times[[0, len(times) - 1, 1, 2, 1]][:count]


def called(scheduler: Any, method: str, x: Tensor, noise: Any, times: Any) -> Tensor:
    if method == "scale_noise":
        times = times if scheduler.order == 1 else times[0]
        return scheduler.scale_noise(x, times, noise)  # type: ignore[no-any-return]
    return getattr(scheduler, method)(x, noise, times)  # type: ignore[no-any-return]


def tensors(count: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    shape = (count, *SHAPE[1:])
    return next(peers.draws(shape)).to(dtype), next(peers.draws(shape, seed=2)).to(dtype)


@pytest.mark.parametrize(("name", "method", "options"), CASES)
@pytest.mark.parametrize("steps", [7, None])
def test_equal(
    name: str, method: str, options: dict[str, Any], steps: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = pair(name, options, steps)
    x, noise = tensors()
    times = times_of(plain, name)
    peers.upcast(plain)
    untouched = copy.deepcopy(plain)
    expected = called(plain, method, x, noise, times)
    no_fallback(monkeypatch, name, method)
    patched = ours.patch_scheduler(untouched)
    found = called(patched, method, x, noise, times)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * expected.abs().max().item())
    same_state(patched, plain)
    again = called(patched, method, x, noise, times)
    assert torch.equal(again, found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "method", "options"), CASES)
def test_as_close_to_float64(name: str, method: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    """Types as the peer's, and at least as close to what is exact, for noise of any type."""
    plain, patched = pair(name, options)
    exact = copy.deepcopy(plain)
    peers.upcast(exact)
    times = times_of(plain, name)
    x, _ = tensors(dtype=dtype)
    for drawn in (dtype, torch.float32, torch.float64):
        noise = tensors(dtype=drawn)[1]
        theirs, mine = called(plain, method, x, noise, times), called(patched, method, x, noise, times)
        truth = called(exact, method, x.double(), noise.double(), times)
        assert mine.dtype == theirs.dtype
        ours_off, theirs_off = ((y.double() - truth).abs().max().item() for y in (mine, theirs))
        bound = torch.finfo(mine.dtype).eps * truth.abs().max().item() / 2
        assert ours_off <= theirs_off * 1.01 + max(bound, 1e-7 * truth.abs().max().item() * (drawn != dtype))


def test_a_little_noise_is_added_in_half_precision() -> None:
    """bfloat16 rounds the first cumulative products to 1: diffusers #9004."""
    plain, patched = pair("DDPMScheduler")
    x, noise = torch.zeros(1, 4, dtype=torch.bfloat16), torch.ones(1, 4, dtype=torch.bfloat16)
    assert not plain.add_noise(x, noise, torch.tensor([0])).any()
    torch.testing.assert_close(
        patched.add_noise(x, noise, torch.tensor([0])).double(), torch.full((1, 4), 0.01).double(), rtol=4e-3, atol=0
    )


@pytest.mark.parametrize(("name", "method"), MIXERS)
@pytest.mark.parametrize(("count", "given"), [(1, 1), (4, 1), (4, 4), (0, 1), (1, 4), (4, 3)])
def test_batches(name: str, method: str, count: int, given: int) -> None:
    """Of one time for all, of none, and what broadcasts or is refused."""
    plain, patched = pair(name)
    x, noise = tensors(count, torch.float32)
    times = times_of(plain, name, given)
    same_outcome(lambda s: called(s, method, x, noise, times), plain, patched)


@pytest.mark.parametrize(("name", "method"), MIXERS)
@pytest.mark.parametrize(
    "changed",
    [
        lambda t: t[0], lambda t: t.tolist(), lambda t: t[0].item(), lambda t: t[:, None], lambda t: t.int(),
        lambda t: t.double(), lambda t: t.bfloat16(), lambda t: t + 5000, lambda t: t - 5000, lambda t: t * 0 - 2,
        lambda t: t * 0 + 0.25, lambda t: None,
    ],
)  # fmt: skip
def test_times_of_any_kind(name: str, method: str, changed: Callable[[Tensor], Any]) -> None:
    plain, patched = pair(name)
    x, noise = tensors(5, torch.float32)
    times = changed(times_of(plain, name))
    if name.startswith("FlowMatchHeun"):
        times = times if not isinstance(times, Tensor) or not times.dim() else times.flatten()[:1]
    same_outcome(lambda s: called(s, method, x, noise, times), plain, patched)


@pytest.mark.parametrize(("name", "method"), MIXERS)
def test_tensors_of_any_kind(name: str, method: str) -> None:
    plain, patched = pair(name)
    x, noise = tensors(5, torch.float32)
    times = times_of(plain, name)
    for a, b in (
        (x, None), (x, noise[:1]), (x, noise.long()), (x.long(), noise), (x.to(torch.uint8), noise), (x, x),
        (x[..., ::2], noise[..., ::2]), (x.mT, noise.mT), (x[:, None], noise[:, None]), (x[:, 0, 0, 0],) * 2,
    ):  # fmt: skip
        same_outcome(lambda s, a=a, b=b: called(s, method, a, b, times), plain, patched)  # type: ignore[misc]


def same_outcome(call: Callable[[Any], Tensor], plain: Any, patched: Any) -> None:
    """The same result, or error, and state."""
    torch.manual_seed(0)  # some draw noise that is not given
    try:
        expected = call(plain)
    except Exception as error:
        with pytest.raises(type(error)):
            call(patched)
    else:
        torch.manual_seed(0)
        found = call(patched)
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    same_state(patched, plain)


@pytest.mark.parametrize(("name", "method"), [case for case in MIXERS if case[0] not in BY_TIME])
def test_where_a_pipeline_is(name: str, method: str) -> None:
    """Where it says where it begins, timesteps count for nothing; once it runs, the step that is due counts."""
    plain, patched = pair(name)
    x, noise = tensors(3, torch.float32)
    times = times_of(plain, name, 3)
    for scheduler in (plain, patched):
        scheduler.set_begin_index(2)
    same_outcome(lambda s: called(s, method, x, noise, times), plain, patched)
    for scheduler in (plain, patched):
        scheduler._step_index = 4
    same_outcome(lambda s: called(s, method, x, noise, times), plain, patched)
    for scheduler in (plain, patched):
        scheduler.set_timesteps(3)
        scheduler._begin_index = None
    times = times_of(plain, name, 3)
    same_outcome(lambda s: called(s, method, x, noise, times), plain, patched)


@pytest.mark.parametrize("name", SCALERS)
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_scaled_inputs(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step of a run, whose first stage a scheduler with two keeps."""
    plain, _ = pair(name, {} if name.startswith(("EDM", "CM")) else STABLE)
    exact = copy.deepcopy(plain)
    peers.upcast(exact)
    patched = copy.deepcopy(plain)
    for scheduler in (plain, exact):
        scheduler.expected = []
    x, output = tensors(2)
    for scheduler in (plain, exact):
        for t in scheduler.timesteps:
            fed = x.to(dtype) if scheduler is plain else x.to(dtype).double()
            scheduler.expected.append(scheduler.scale_model_input(fed, t))
            scheduler.step(output.to(fed.dtype), t, fed)
    no_fallback(monkeypatch, name, "scale_model_input")
    patched = ours.patch_scheduler(patched)
    for i, t in enumerate(patched.timesteps):
        found = patched.scale_model_input(x.to(dtype), t)
        patched.step(output.to(dtype), t, x.to(dtype))
        theirs, truth = plain.expected[i], exact.expected[i]
        assert found.dtype == theirs.dtype
        if dtype == torch.float64:
            torch.testing.assert_close(found, truth, rtol=1e-10, atol=0)
        else:
            bound = torch.finfo(dtype).eps * truth.abs().max()
            assert (found.double() - truth).abs().max() <= (theirs.double() - truth).abs().max() * 1.01 + bound / 2
    del plain.expected
    assert getattr(patched, "is_scale_input_called", None) == getattr(plain, "is_scale_input_called", None)
    assert patched.step_index == plain.step_index


@pytest.mark.parametrize("name", SCALERS)
def test_scaled_inputs_of_any_kind(name: str) -> None:
    for sample, time in (
        (torch.ones(SHAPE, dtype=torch.int64), 0), (torch.ones(()), 0), (torch.ones(2, 0), 0), (2.0, 0),
        (torch.ones(SHAPE), None),
    ):  # fmt: skip
        plain, patched = pair(name)
        t = plain.timesteps[time] if time is not None else 12345.5
        same_outcome(lambda s, x=sample, t=t: s.scale_model_input(x, t), plain, patched)  # type: ignore[misc]


def test_gradients_go_through() -> None:
    plain, patched = pair("DDPMScheduler")
    gradients = []
    for scheduler in (plain, patched):
        x, noise = (tensor.requires_grad_() for tensor in tensors())
        scheduler.add_noise(x, noise, times_of(scheduler, "DDPMScheduler")).square().sum().backward()
        gradients.append((x.grad, noise.grad))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_tables_are_kept_while_they_are_the_same() -> None:
    plain, patched = pair("DDPMScheduler")
    x, noise = tensors(2)
    times = torch.tensor([3, 30])
    before = patched.add_noise(x, noise, times)
    for scheduler in (plain, patched):
        scheduler.alphas_cumprod[3] = 0.25
    found = patched.add_noise(x, noise, times)
    assert not torch.equal(found[0], before[0])
    assert torch.equal(found[1], before[1])
    torch.testing.assert_close(found, plain.add_noise(x, noise, times), rtol=1e-10, atol=1e-10)


def test_tables_of_inference_mode() -> None:
    with torch.inference_mode():
        plain, patched = pair("EulerDiscreteScheduler", STABLE)
        x, noise = tensors(2, torch.float32)
        same_outcome(lambda s: s.add_noise(x, noise, s.timesteps[:2]), plain, patched)
        same_outcome(lambda s: s.scale_model_input(x, s.timesteps[2]), plain, patched)
