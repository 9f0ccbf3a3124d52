"""What is special to a step: identities, the noise it draws, indices, aliases, gradients that it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen import random
from pygen.ops import diffusion_step
from pygen.reference import diffusion_step as reference
from pygen.reference.diffusion_step import Columns, width
from tests.contract.conftest import _uninitialised_memory_is_nan  # noqa: F401
from tests.harness import backend
from tests.harness.calls import same_bits

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = ((2,), (3, 5), (2, 3, 64), (2, 3, 5, 7), (1, 2, 3, 2, 33))


@pytest.fixture(autouse=True, params=backend.OPS, ids=str)
def _implementation(request: pytest.FixtureRequest) -> Any:
    with request.param.active():
        yield


def table(*rows: dict[str, float], outputs: int = 0, history: int = 0, results: int = 1) -> Tensor:
    """Rows of named coefficients (a, e, b, d: of the first result), 0 beside them; no clip."""
    at = Columns.of(outputs)
    place = {**at._asdict(), **{name: at.rows + i for i, name in enumerate("aebd")}}
    c = torch.zeros(len(rows), width(outputs, history, results), dtype=torch.float64)
    c[:, at.clip] = math.inf
    for i, row in enumerate(rows):
        for name, value in row.items():
            c[i, place[name]] = value
    return c


def coefficients(rows: int, outputs: int = 1, **sizes: int) -> Tensor:
    c = torch.randn(rows, width(outputs, sizes.get("history", 0), sizes.get("results", 1)), dtype=torch.float64)
    c[:, Columns.of(outputs).clip] = 1.5
    return c


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_step_of_length_zero_is_the_identity(shape, dtype):
    x, g, h, z = (torch.randn(shape).to(dtype) for _ in range(4))
    (y,) = diffusion_step(x, [g], table({"p": 3.0, "q": -2.0, "a": 1.0}, outputs=1, history=1), history=[h], noise=z)
    assert torch.equal(y, x)


# --- noise -----------------------------------------------------------------------------------------------------------

NOISE = {"d": 1.0}  # y = z


@pytest.mark.parametrize("shape", [*SHAPES, (5, 200), (40, 3), (3, 1000), (70, 16), (2, 3, 130)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_noise_is_the_streams(shape, dtype):
    x = torch.zeros(shape, dtype=dtype)
    place = {"generator": 2**64 - 3, "first_sample": 2**40 + 1}
    (y,) = diffusion_step(x, [], table({}, {}, NOISE), 2, draws=True, step=9, **place)
    assert same_bits(y, random.normal(shape, dtype=dtype, step=11, **place))


@pytest.mark.parametrize("kind", ["int", "counter", "sample", "token"])
def test_a_step_that_all_are_at_counts_as_the_streams(kind):
    x, seed = torch.zeros(3, 4, 70), {"generator": 5}
    index = {"int": 2, "counter": torch.tensor(2), "sample": torch.full((3,), 2), "token": torch.full((3, 4), 2)}[kind]
    (y,) = diffusion_step(x, [], table({}, {}, NOISE), index, draws=True, step=9, **seed)
    assert same_bits(y, random.normal(x.shape, step=11 if kind in ("int", "counter") else 9, **seed))


@pytest.mark.parametrize("channels", [1, 3, 64])
def test_the_noise_does_not_depend_on_the_layout(channels):
    x = torch.zeros(2, channels, 5, 7).to(memory_format=torch.channels_last)
    (y,) = diffusion_step(x, [], table(NOISE), draws=True, generator=1)
    assert torch.equal(y, random.normal(x.shape, generator=1))
    assert y.stride() == x.contiguous(memory_format=torch.channels_last).stride() or channels == 1


@pytest.mark.parametrize("shape", [(7, 5), (7, 3, 129), (7, 64, 4, 4)], ids=str)
def test_a_sample_does_not_depend_on_its_batch(shape):
    x, g = torch.randn(shape), torch.randn(shape)
    options = {"draws": True, "generator": 3, "copies": 1}
    c = coefficients(1)
    whole = diffusion_step(x, [g], c, first_sample=10, **options)
    ids = torch.tensor([16, 12, 10])
    some = diffusion_step(x[ids - 10], [g[ids - 10]], c, sample_ids=ids, **options)
    for i in range(len(x)):
        alone = diffusion_step(x[i : i + 1], [g[i : i + 1]], c, first_sample=10 + i, **options)
        for one, all_ in zip(alone, whole, strict=True):
            assert same_bits(one[0], all_[i])
    for few, all_ in zip(some, whole, strict=True):
        assert same_bits(few, all_[ids - 10])


def test_seeds_come_from_generators():
    x, c = torch.zeros(2, 3), table(NOISE)
    torch.manual_seed(7)
    first, second = (diffusion_step(x, [], c, draws=True)[0] for _ in range(2))
    torch.manual_seed(7)
    assert torch.equal(first, diffusion_step(x, [], c, draws=True)[0])
    assert not torch.equal(first, second)
    generator = torch.Generator().manual_seed(7)
    third = diffusion_step(x, [], c, draws=True, generator=generator)[0]
    assert torch.equal(first, third)
    assert not torch.equal(third, diffusion_step(x, [], c, draws=True, generator=generator)[0])


def test_what_is_known_and_learned_variances_take_the_drawn_noise():
    shape, seed = (3, 2, 65), 11
    x, g, log_std, known = (torch.randn(shape) for _ in range(4))
    mask = torch.rand(shape) < 0.5
    given = {"log_std": log_std, "known": known, "known_mask": mask, "copies": 2}
    c = coefficients(2)
    drawn = diffusion_step(x, [g], c, 1, draws=True, generator=seed, **given)
    noise = random.normal(shape, generator=seed, step=1)
    for ours, true in zip(drawn, diffusion_step(x, [g], c, 1, noise=noise, **given), strict=True):
        assert same_bits(ours, true)


def test_without_noise_its_terms_are_left_out():
    x = torch.randn(2, 3)
    given = {"log_std": torch.full((2, 3), 1e4), "known": x, "known_mask": torch.ones(2, 3)}
    (y,) = diffusion_step(
        x, [], table({"a": 1.0, "d": 1.0, "known": 1.0, "known_noise": 1.0, "log_std_slope": 1.0}), **given
    )
    assert torch.equal(y, x)


# --- indices, types, aliases -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 64), (4, 2, 5, 7)], ids=str)
def test_every_sample_and_token_has_its_row(shape):
    x, g = torch.randn(shape), torch.randn(shape)
    c = coefficients(6)
    samples, tokens = torch.randint(6, shape[:1]), torch.randint(6, shape[:2])
    by_sample, by_token = diffusion_step(x, [g], c, samples), diffusion_step(x, [g], c, tokens)
    for b in range(shape[0]):
        (y,) = diffusion_step(x[b : b + 1], [g[b : b + 1]], c, int(samples[b]))
        assert same_bits(by_sample[0][b], y[0])
        for t in range(shape[1]):
            (y,) = diffusion_step(x[b : b + 1, t], [g[b : b + 1, t]], c, int(tokens[b, t]))
            assert same_bits(by_token[0][b, t], y[0])


def test_bytes_are_normalised():
    """q_sample: no outputs."""
    x, z = torch.arange(256, dtype=torch.uint8).view(2, 128), torch.randn(2, 128)
    (y,) = diffusion_step(x, [], table({"a": 0.6, "d": 0.8}), noise=z)
    torch.testing.assert_close(y, 0.6 * (x.float() - 127.5) / 127.5 + 0.8 * z)
    (y,) = diffusion_step(x, [], table({"a": 1.0}))
    assert (y.min(), y.max()) == (-1, 1)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float16, torch.float64)], ids=str)
def test_each_tensor_has_its_own_type(dtypes):
    x, g, z = torch.randn(3, 70).double(), torch.randn(3, 70).bfloat16(), torch.randn(3, 70).half()
    h = [torch.randn(3, 70), torch.randn(3, 70).double()]
    c = coefficients(1, history=2)
    for given in (x, x.float(), x.half()):
        ours = diffusion_step(given, [g], c, history=h, noise=z, copies=1, dtypes=dtypes)
        true = reference(given, [g], c, history=h, noise=z, copies=1, dtypes=dtypes)
        assert tuple(y.dtype for y in ours) == dtypes
        for y, t in zip(ours, true, strict=True):
            torch.testing.assert_close(y, t)


def test_tensors_may_be_one():
    x = torch.randn(2, 3, 40)
    c = coefficients(1, outputs=2, history=1)
    (y,) = diffusion_step(x, [x, x], c, history=[x], noise=x)
    (true,) = diffusion_step(x, [x.clone(), x.clone()], c, history=[x.clone()], noise=x.clone())
    assert same_bits(y, true)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 3, 2), (3, 2, 1, 0), (0, 2, 3, 1)], ids=str)
def test_permuted_tensors(order):
    shape = torch.Size(torch.tensor((2, 3, 5, 7))[list(order)])
    x, g = (torch.randn(shape).permute(*map(int, torch.tensor(order).argsort())) for _ in range(2))
    c = coefficients(1)
    assert x.shape == (2, 3, 5, 7)
    (y,) = diffusion_step(x, [g], c)
    assert same_bits(y, diffusion_step(x.contiguous(), [g.contiguous()], c)[0])


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["table", "rescale", "threshold"])
def test_coefficients_have_no_gradient(name):
    given = {"table": coefficients(1), "rescale": torch.ones(2), "threshold": torch.ones(2)}
    given[name].requires_grad_()
    x, outputs = torch.randn(2, 3), [torch.randn(2, 3)]
    with pytest.raises(NotImplementedError, match="table, rescale and threshold is not differentiable"):
        diffusion_step(x, outputs, **given)
    with torch.no_grad():
        diffusion_step(x, outputs, **given)


@pytest.mark.parametrize("name", ["log_std", "known_mask"])
def test_what_needs_the_drawn_noise_has_no_gradient(name):
    given = {k: torch.rand(2, 3) for k in ("log_std", "known", "known_mask")}
    given[name].requires_grad_()
    with pytest.raises(NotImplementedError, match="pass it as `noise`"):
        diffusion_step(torch.randn(2, 3), [], coefficients(1, outputs=0), draws=True, **given)


def test_clamps_have_the_derivative_of_torch_clamp():
    """1 on the bound too."""
    x = torch.tensor([[0.5, 1.0, 1.5, -1.0]], requires_grad=True)
    c = table({"p": 1.0, "clip": 1.0, "b": 1.0})
    (y,) = diffusion_step(x, [], c)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.tolist() == [[1, 1, 0, 1]]
    (y,) = diffusion_step(x, [], c, threshold=torch.tensor([1.0]))
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [[1, 1, 0, 1]]
