"""The kernels of csrc/cuda/made_inverse.cu without a GPU: their threads are fibers of the host (tests/cuda/emulation.h).
The op runs them in the place of its CPU kernels, so that the checks of the contract apply."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pygen.ops import made_inverse
from tests.contract.params import small
from tests.cuda.host import compiled, needs_compiler, pointers
from tests.harness import checks
from tests.harness.calls import assert_same_bits, build, evaluate, random
from tests.harness.combine import pairwise
from tests.harness.spec import F32, F64, Sample

from .samples import BACKWARD, SPEC, sample, shapes, threaded

pytestmark = needs_compiler


class Arguments(ctypes.Structure):
    """As on_the_host.cpp has them."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("degrees", "counts")),
        *((name, ctypes.c_int64) for name in ("hidden", "parameters", "wide", "backward", "batch")),
        *((name, ctypes.c_void_p) for name in ("weights", "biases", "bias_samples")),
        *((name, ctypes.c_char_p) for name in ("options", "own")),
        *((name, ctypes.c_void_p) for name in ("y", "x", "logabsdet", "found", "grad_x", "grad_logabsdet", "grad_y")),
        *((name, ctypes.c_int64) for name in ("shares", "blocks", "order")),
    )


@dataclass
class OnTheHost(TorchDispatchMode):
    """Within it the ops run the kernels: `blocks` of them, which take turns, weights packed by `shares` a step, threads
    in the order that `order` draws."""

    kernel: ctypes.CDLL
    blocks: int = 2
    shares: int = 1
    order: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.pygen.made_inverse.default:
            y = args[0]
            x, logabsdet = torch.full_like(y, torch.nan).contiguous(), y.new_full(y.shape[:1], torch.nan)
            self._run(*args, x=x, logabsdet=logabsdet)
            return x, logabsdet
        if func is torch.ops.pygen.made_inverse_backward.default:
            grad_x, grad_logabsdet, x, y, *net = args
            grad_y = torch.full_like(y, torch.nan).contiguous()
            self._run(y, *net, found=x, grad_x=grad_x, grad_logabsdet=grad_logabsdet, grad_y=grad_y)
            return grad_y
        return func(*args, **(kwargs or {}))

    def _run(
        self,
        y: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        degrees: list[Tensor],
        options: str,
        own: str,
        **tensors: Tensor,
    ) -> None:
        self.calls += 1
        if len(y) == 0:
            return  # as the glue does
        tensors = {name: t.contiguous() for name, t in ({"y": y} | tensors).items()}
        weights, biases = [w.contiguous() for w in weights], [b.contiguous() for b in biases]
        lists = pointers(weights), pointers(biases)
        strides = torch.tensor([b.shape[1] if b.dim() == 2 else 0 for b in biases])
        numbers, counts = torch.cat(list(degrees)), torch.tensor([len(d) for d in degrees])
        arguments = Arguments(
            degrees=numbers.data_ptr(), counts=counts.data_ptr(), hidden=len(degrees) - 1,
            parameters=len(weights[-1]) // len(degrees[0]), wide=y.dtype == torch.float64,
            backward="grad_y" in tensors, batch=len(y), weights=ctypes.addressof(lists[0]),
            biases=ctypes.addressof(lists[1]), bias_samples=strides.data_ptr(), options=options.encode(),
            own=own.encode(), shares=self.shares, blocks=self.blocks, order=self.order,
            **{name: t.data_ptr() for name, t in tensors.items()},
        )  # fmt: skip
        assert self.kernel.made_inverse_on_the_host(ctypes.byref(arguments)) == 0


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    return compiled(Path(__file__).with_name("on_the_host.cpp"), tmp_path_factory.mktemp("kernel"))


# Two degrees, so that there are more tiles than warps and sums longer than a chain; and the opposite.
LARGE = (
    sample("wide", 35, 2, 300, hidden=2, net=("silu", False)),
    sample("deep", 33, 20, 70, "spline", hidden=5),
    *threaded(),
)


def every(samples: Any) -> Any:
    rows = pairwise(sample=list(samples), dtypes=(F32, F64))
    return pytest.mark.parametrize(("sample", "dtypes"), [tuple(r.values()) for r in rows], ids=str)


@every((*small(SPEC), *shapes(), *LARGE))
def test_accuracy(kernel, sample, dtypes):
    """With the gradients, of which that of y is the second kernel's."""
    with OnTheHost(kernel) as mode:
        checks.accuracy(SPEC, sample, dtypes)
    assert mode.calls
