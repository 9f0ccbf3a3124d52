"""The kernel of csrc/cuda/causal_sampler.cu without a GPU: its threads are fibers of the host (emulation.h)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pygen.models import GatedPixelCNN, PixelCNN, PixelCNNPlusPlus
from pygen.program import Program
from pygen.reference.causal_sampler import causal_sampler as reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")

STORAGE = (torch.float32, torch.float64, torch.bfloat16)
LONG = ("seed", "first_sample", "step", "offset", "top_k", "blocks", "order")


class Arguments(ctypes.Structure):
    _fields_ = (
        ("words", ctypes.c_void_p), ("word_count", ctypes.c_int64),
        ("tensors", ctypes.c_void_p), ("tensor_count", ctypes.c_int64),
        ("conditions", ctypes.c_void_p), ("condition_count", ctypes.c_int64),
        ("is_map", ctypes.c_void_p), ("storage", ctypes.c_int64), ("batch", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x", "known", "noise", "temperature_and_top_p", "log_prob", "ids")),
        *((name, ctypes.c_int64) for name in LONG),
    )  # fmt: skip


class Sampling(NamedTuple):
    """What a model hands to the op."""

    program: Program
    tensors: list[Tensor]
    conditions: list[Tensor]

    def first(self, images: slice) -> Sampling:
        return self._replace(conditions=[t[images].contiguous() for t in self.conditions])


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    library = tmp_path_factory.mktemp("kernel") / "kernel.so"
    source = Path(__file__).with_name("on_the_host.cpp")
    include = Path(__file__).parents[2] / "csrc"
    command = ["g++", "-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
               "-U_FORTIFY_SOURCE"]  # which takes jumps between fibers for mistakes
    subprocess.run([*command, "-shared", "-fPIC", f"-I{include}", "-o", str(library), str(source)], check=True)
    return ctypes.CDLL(str(library))


def pointers(tensors: list[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def run(
    kernel, model: Sampling, x, known, noise=None, ids=None, temperature=1.0, top_p=1.0, blocks=2, **numbers
) -> tuple[Tensor, Tensor]:
    x, log_prob = x.clone().contiguous(), torch.full((len(x),), torch.nan, dtype=torch.float64)
    known = known.contiguous()
    words, options = model.program.encode(), torch.tensor([temperature, top_p], dtype=torch.float64)
    tensors, conditions = pointers(model.tensors), pointers(model.conditions)
    storage = STORAGE.index(next(t.dtype for t in model.tensors if t.dim() == 3))
    is_map = bytes(t.dim() == 4 for t in model.conditions)
    flags = ctypes.create_string_buffer(is_map, max(1, len(is_map)))
    arguments = Arguments(
        words.data_ptr(), len(words), ctypes.addressof(tensors), len(tensors), ctypes.addressof(conditions),
        len(conditions), ctypes.addressof(flags), storage, len(x), x.data_ptr(), known.data_ptr(),
        None if noise is None else noise.data_ptr(), options.data_ptr(), log_prob.data_ptr(),
        None if ids is None else ids.data_ptr(), *((numbers | {"blocks": blocks}).get(name, 0) for name in LONG),
    )  # fmt: skip
    assert kernel.sample_on_the_host(ctypes.byref(arguments)) == 0
    return x, log_prob


def sampling(model: torch.nn.Module, dtype: torch.dtype, batch: int) -> Sampling:
    model = model.to(dtype).eval()
    for p in model.parameters():
        if p.dim() > 1:
            p.data.mul_(1.5)  # so that it matters
    compiled = model.program()
    y = torch.arange(batch) % 3 if model.num_classes else None
    context = torch.randn(batch, 2, *model.shape[1:], dtype=dtype) if getattr(model, "context_features", 0) else None
    with torch.no_grad():
        given = model._given(batch, y, context)
        return Sampling(compiled.program, compiled.tensors, [f(given).contiguous() for f in compiled.conditions])


MODELS = {
    "pixelcnn": lambda: PixelCNN((1, 6, 5), levels=4, hidden=8, blocks=2),
    "pixelcnn-rgb": lambda: PixelCNN((3, 4, 4), levels=5, hidden=6, blocks=2, num_classes=3),
    "gated": lambda: GatedPixelCNN((1, 6, 5), levels=40, hidden=8, layers=2),
    "gated-wide": lambda: GatedPixelCNN((2, 3, 11), levels=300, hidden=72, layers=2, dilations=(1, 2), num_classes=3),
    "plus-plus": lambda: PixelCNNPlusPlus((1, 6, 5), levels=4, hidden=8, blocks=1, mixtures=3),
    "plus-plus-rgb": lambda: PixelCNNPlusPlus((3, 5, 6), levels=256, hidden=6, blocks=1, mixtures=3, num_classes=3),
}


def unknown(program: Program, batch: int) -> tuple[Tensor, Tensor]:
    size = (batch, program.channels, program.height, program.width)
    return torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.bool)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_draws_what_the_reference_draws(kernel, name, dtype):
    torch.manual_seed(0)
    model = sampling(MODELS[name](), dtype, 10)
    x, known = unknown(model.program, 10)
    expected, log_prob = reference(*model, x, known, seed=3, step=7, offset=5)
    found, found_log_prob = run(kernel, model, x, known, seed=3, step=7, offset=5)
    assert torch.equal(found, expected)
    torch.testing.assert_close(found_log_prob, log_prob, rtol=1e-9 if dtype == torch.float64 else 1e-5, atol=1e-6)
