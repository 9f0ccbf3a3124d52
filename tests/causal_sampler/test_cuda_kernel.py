"""The kernel of csrc/cuda/causal_sampler.cu without a GPU: its threads are fibers of the host (emulation.h)."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pygen.reference.causal_sampler import causal_sampler as reference
from tests.cuda.host import compiled, needs_compiler, pointers

from .models import MODELS, STORAGE, Sampling, sampling

pytestmark = needs_compiler

LONG = ("seed", "first_sample", "step", "offset", "top_k", "blocks", "order")


class Arguments(ctypes.Structure):
    """As on_the_host.cpp has them."""

    _fields_ = (
        ("words", ctypes.c_void_p), ("word_count", ctypes.c_int64),
        ("tensors", ctypes.c_void_p), ("tensor_count", ctypes.c_int64),
        ("conditions", ctypes.c_void_p), ("condition_count", ctypes.c_int64),
        ("is_map", ctypes.c_void_p), ("storage", ctypes.c_int64), ("batch", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x", "known", "noise", "temperature_and_top_p", "log_prob", "ids")),
        *((name, ctypes.c_int64) for name in LONG),
    )  # fmt: skip


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    return compiled(Path(__file__).with_name("on_the_host.cpp"), tmp_path_factory.mktemp("kernel"))


def run(
    kernel, model: Sampling, x: Tensor, known: Tensor, noise=None, ids=None, temperature=1.0, top_p=1.0, **numbers
) -> tuple[Tensor, Tensor]:
    x, known = x.clone().contiguous(), known.contiguous()
    log_prob = torch.full((len(x),), torch.nan, dtype=torch.float64)
    words, options = model.program.encode(), torch.tensor([temperature, top_p], dtype=torch.float64)
    tensors, conditions = pointers(model.tensors), pointers(model.conditions)
    storage = STORAGE.index(next(t.dtype for t in model.tensors if t.dim() == 3))
    is_map = ctypes.create_string_buffer(bytes(t.dim() == 4 for t in model.conditions))
    numbers = {"blocks": 2, **numbers}
    arguments = Arguments(
        words.data_ptr(), len(words), ctypes.addressof(tensors), len(tensors), ctypes.addressof(conditions),
        len(conditions), ctypes.addressof(is_map), storage, len(x), x.data_ptr(), known.data_ptr(),
        None if noise is None else noise.data_ptr(), options.data_ptr(), log_prob.data_ptr(),
        None if ids is None else ids.data_ptr(), *(numbers.get(name, 0) for name in LONG),
    )  # fmt: skip
    assert kernel.sample_on_the_host(ctypes.byref(arguments)) == 0
    return x, log_prob


def assert_like_the_reference(kernel, model: Sampling, x: Tensor, known: Tensor, **options) -> None:
    expected, log_prob = reference(*model, x, known, **options)
    found, found_log_prob = run(kernel, model, x, known, **options)
    assert torch.equal(found, expected)
    wide = model.tensors[0].dtype == torch.float64
    torch.testing.assert_close(found_log_prob, log_prob, rtol=1e-9 if wide else 1e-5, atol=1e-9 if wide else 1e-5)


CASES = [(name, torch.float64) for name in (*MODELS, "deep")]
CASES += [(name, dtype) for name in ("gated-wide", "plus-plus-rgb", "deep") for dtype in STORAGE[::2]]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=lambda value: str(value).removeprefix("torch."))
def test_draws_what_the_reference_draws(kernel, name, dtype):
    model = sampling(name, dtype, 10)
    x, known = model.unknown(10)
    assert_like_the_reference(kernel, model, x, known, seed=3, step=7, offset=5)


@pytest.mark.parametrize("name", ["gated", "plus-plus-rgb"])
def test_completes_what_is_known(kernel, name):
    model = sampling(name, torch.float64, 9)
    x, known = model.unknown(9)
    x = torch.randint(model.program.levels, x.shape)
    known = (torch.rand(9, 1, *x.shape[2:]) < 0.5).expand_as(known).clone()
    known[:, :, 0] = True
    known[2] = True
    known[:8, :, -1] = True  # all that a block has: it ends before the others
    assert_like_the_reference(kernel, model, x, known, seed=4)


OPTIONS = (
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 5},
    {"top_p": 0.6},
    {"temperature": 2.0, "top_k": 9, "top_p": 0.8},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["gated", "plus-plus"])
def test_options(kernel, name, options):
    model = sampling(name, torch.float64, 8)
    if model.program.head == "mixture":
        options = {"temperature": options.get("temperature", 1.0)}
    assert_like_the_reference(kernel, model, *model.unknown(8), seed=5, **options)


@pytest.mark.parametrize("name", ["gated", "plus-plus"])
def test_explicit_noise(kernel, name):
    model = sampling(name, torch.float64, 8)
    x, known = model.unknown(8)
    noise = torch.rand(8, model.program.draws, *x.shape[2:], dtype=torch.float64)
    assert_like_the_reference(kernel, model, x, known, noise=noise)


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_same_bits_in_any_batch_and_order(kernel, dtype):
    """Whatever images are beside one, whatever turns threads take, and where a block has one group after another."""
    model = sampling("gated", dtype, 19)
    x, known = model.unknown(19)
    whole = run(kernel, model, x, known, seed=6, blocks=3)
    turns = run(kernel, model, x, known, seed=6, blocks=1, order=1)
    ids = torch.arange(19).flip(0)
    back = run(kernel, model, x, known, seed=6, ids=ids)
    alone = run(kernel, model.of(slice(11, 12)), x[:1], known[:1], seed=6, first_sample=11)
    for a, b, c, d in zip(whole, turns, back, alone, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c.flip(0))
        assert torch.equal(a[11:12], d)


@pytest.mark.parametrize("name", ["gated", "plus-plus"])
def test_nan_draws_level_0(kernel, name):
    """Nobody looks at what a GPU computes; images without NaN are as ever."""
    model = sampling(name, torch.float32, 3)
    head = model.program.stages[-1]
    condition = torch.zeros(3, head.outputs)
    condition[1] = torch.nan
    stages = (*model.program.stages[:-1], replace(head, condition=len(model.conditions)))
    program = replace(model.program, stages=stages, conditions=model.program.conditions + 1)
    model = Sampling(program, model.tensors, [*model.conditions, condition])
    x, log_prob = run(kernel, model, *model.unknown(3), seed=1)
    assert (x[1] == 0).all()
    assert log_prob.isnan().tolist() == [False, True, False]
    condition.zero_()
    clean, _ = run(kernel, model, *model.unknown(3), seed=1)
    assert torch.equal(x[::2], clean[::2])
