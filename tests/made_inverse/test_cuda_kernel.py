"""The kernels of csrc/cuda/made_inverse.cu without a GPU: their threads are fibers (tests/cuda/emulation.h).
The op runs them in the place of its CPU kernels, so that the checks of the contract apply."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pygen.ops import made_inverse
from pygen.ops.made_inverse import MadeOptions, _own
from pygen.reference import made_inverse as reference
from tests.contract.params import small
from tests.cuda.host import compiled, needs_compiler, pointers
from tests.harness import checks
from tests.harness.calls import Call, assert_same_bits, build, evaluate, random, raw_call
from tests.harness.combine import pairwise
from tests.harness.spec import F32, F64

from .samples import SPEC, sample, shapes, threaded

pytestmark = needs_compiler


class Arguments(ctypes.Structure):
    """As on_the_host.cpp has them."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("degrees", "counts")),
        *((name, ctypes.c_int64) for name in ("hidden", "parameters", "wide", "backward", "batch")),
        *((name, ctypes.c_void_p) for name in ("weights", "biases", "bias_samples")),
        *((name, ctypes.c_char_p) for name in ("options", "own")),
        *((name, ctypes.c_void_p) for name in ("y", "x", "logabsdet", "found", "grad_x", "grad_logabsdet")),
        *((name, ctypes.c_void_p) for name in ("grad_y", "grad_total")),
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
            grad_y, grad_total = (torch.full_like(y, torch.nan).contiguous() for _ in range(2))
            given = {"found": x, "grad_x": grad_x, "grad_logabsdet": grad_logabsdet}
            self._run(y, *net, **given, grad_y=grad_y, grad_total=grad_total)
            return grad_y, grad_total
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


# Two degrees, so that there are more tiles than warps, and sums longer than a chain; many degrees of few units.
LARGE = (
    sample("wide", 35, 2, 300, hidden=2, net=("silu", False)),
    sample("deep", 33, 20, 70, "spline", hidden=5),
    *threaded(),
)


def every(samples: Any) -> Any:
    rows = pairwise(sample=list(samples), dtypes=(F32, F64))
    return pytest.mark.parametrize(("sample", "dtypes"), [tuple(r.values()) for r in rows], ids=str)


def assert_near(found: tuple[Tensor, ...], truth: Callable[[Tensor], tuple[Tensor, ...]], y: Tensor) -> None:
    """Not further from the truth than it moves, within a factor, where y is off by a few units in the last place: what
    is rounded early in a sweep does no less."""
    eps, wide = torch.finfo(found[0].dtype).eps, y.double()
    step = 4 * eps * float(wide.abs().max()) if y.numel() else 0
    for ours, here, up, down in zip(found, truth(wide), truth(wide + step), truth(wide - step), strict=True):
        if here.numel():
            moved = torch.maximum((up - here).abs(), (down - here).abs())
            bound = 10 * eps * here.abs().max() + 4 * moved.amax(-1, keepdim=True)
            error = (ours.double() - here).abs()
            assert (error <= bound).all(), f"off by up to {error.max():.3g}, bounds from {bound.min():.3g}"


@every((*small(SPEC), *shapes(), *LARGE))
def test_accuracy(kernel, sample, dtypes):
    """Of both ops."""
    call = build(SPEC, sample, dtypes)
    op, (y, *net, words, own), _ = raw_call(SPEC, call)
    options = MadeOptions.parse(words)
    keywords = options.net | {"transform": options.transform} | _own(options, own)
    wide = [[t.double() if t.is_floating_point() else t for t in tensors] for tensors in net]
    with OnTheHost(kernel) as mode:
        x, logabsdet = op(y, *net, words, own)
        assert_near((x, logabsdet), lambda y: reference.made_inverse(y, *wide, **keywords), y)
        grads = [random(f"upstream of {name}", *t.shape).to(t) for name, t in (("x", x), ("logabsdet", logabsdet))]
        backward = torch.ops.pygen.made_inverse_backward(*grads, x, y, *net, words, own)
        arguments = [t.double() for t in (*grads, x)]
        assert_near(backward, lambda y: reference.made_inverse_backward(*arguments, y, *wide, **keywords), y)
    assert mode.calls == 2


@pytest.mark.parametrize("dtypes", [F32, F64], ids=str)
@pytest.mark.parametrize("sample", LARGE, ids=str)
def test_same_bits_in_any_batch_and_order(kernel, sample, dtypes):
    """Whatever samples are beside one, whatever turns threads take, and where a block has one group after another."""

    def run(call: Call, **how: int) -> dict[str, Tensor]:
        with OnTheHost(kernel, **how):
            outputs, grads = evaluate(SPEC, SPEC.function, call, "sum")
        return outputs | {"grad_y": grads["grad_y"]}

    call = build(SPEC, sample, dtypes)
    whole = run(call)
    assert_same_bits(run(call, blocks=1, shares=3, order=1), whole, "by other blocks")
    last = call.inputs | {k: t[-1:] for k, t in call.tensors.items() if k in SPEC.batched}
    alone = run(Call(last, call.options))
    assert_same_bits(alone, {k: t[-1:] for k, t in whole.items()}, "alone")


@pytest.mark.parametrize("sample", small(SPEC)[::6], ids=str)
def test_nan_stays_where_it_is(kernel, sample):
    with OnTheHost(kernel):
        checks.nan_containment(SPEC, sample)


# --- transforms: nets without weights, whose biases are the parameters ------------------------------------------------


def transformed(kernel, y: Tensor, params: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """x, its logabsdet and the gradient of y of the sum of both, of y [B] and params [B, P]."""
    y = y[:, None].requires_grad_()
    degrees = [torch.tensor([1]), torch.tensor([1])]
    weights = [y.new_zeros(1, 1), y.new_zeros(params.shape[1], 1)]
    with OnTheHost(kernel):
        x, logabsdet = made_inverse(y, weights, [y.new_zeros(1), params], degrees, residual=False, **options)
        (grad,) = torch.autograd.grad(x.sum() + logabsdet.sum(), y)
    return x[:, 0].detach(), logabsdet.detach(), grad[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shift", ["after", "before"])
@pytest.mark.parametrize(
    "options", [{}, {"activation": "sigmoid"}, {"activation": "softplus"}, {"eps": 1e-3}, {"max_scale": 3.0}], ids=str
)
def test_scales_that_overflow(kernel, options, shift, dtype):
    """Where a scale is past the largest number, or under the smallest, and the result is not."""
    s = torch.tensor([-80.0, -100, -200, -300, -20, 0, 20, 80, 100, 200, 300], dtype=dtype).repeat(4)
    y = torch.tensor([0.0, 1e-30, -1.5, 1e30], dtype=dtype).repeat_interleave(11)
    x, logabsdet, grad = transformed(kernel, y, torch.stack([s, 0 * s], 1), shift=shift, **options)
    wide = y.double()[:, None]
    true_x, slopes = reference.apply_transform(
        wide, torch.stack([s, 0 * s], 1).double(), "affine", {"shift": shift, **options}, True
    )
    tiny, most = (getattr(torch.finfo(dtype), name) for name in ("tiny", "max"))
    close = {"rtol": 20 * torch.finfo(dtype).eps, "atol": tiny}
    torch.testing.assert_close(
        x.double(), true_x[:, 0].where(true_x[:, 0].abs() <= most, torch.inf * y.sign()), **close
    )
    torch.testing.assert_close(logabsdet.double(), slopes[:, 0], **{**close, "atol": 2 * torch.finfo(dtype).eps})
    true_grad = slopes[:, 0].exp()
    torch.testing.assert_close(grad.double(), true_grad.where(true_grad <= most, torch.inf), rtol=1e-4, atol=tiny)


SPLINES = ({}, {"style": "zuko", "slope": 1e-20}, {"tails": "circular"}, {"min_width": 0.0, "min_height": 0.0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("options", SPLINES, ids=str)
def test_splines_are_never_nan(kernel, options, scale, dtype):
    """On knots, at bounds and one unit in the last place beyond, bins of nearly no size, slopes without end."""
    bins, bound = 8, 32.0
    count = 3 * bins - (options.get("tails") != "circular")
    params = (scale * random(f"splines {scale}", 64, count)).to(dtype)
    y = random("y of splines", 64).to(dtype) * 20
    edge = torch.tensor(bound, dtype=dtype)
    beyond = torch.nextafter(edge, 2 * edge)
    y[:8] = torch.stack([edge, -edge, beyond, -beyond, 0 * edge, 1e30 * edge, 0.999 * edge, -0.999 * edge])
    options = {"transform": "spline", "bounds": bound, **options}
    x, logabsdet, grad = transformed(kernel, y, params, **options)
    assert x.isfinite().all()
    assert logabsdet.isfinite().all()
    assert not grad.isnan().any()
    own = {k: v for k, v in options.items() if k != "transform"}
    if scale == 1:
        true_x, slopes = reference.apply_transform(y.double()[:, None], params.double(), "spline", own, True)
        close = {"rtol": 200 * torch.finfo(dtype).eps, "atol": 200 * torch.finfo(dtype).eps}
        torch.testing.assert_close(x.double(), true_x[:, 0], **close)
        torch.testing.assert_close(logabsdet.double(), slopes[:, 0], **close)
    assert torch.equal(x[2:4], y[2:4])
    assert (x[y.abs() <= bound].abs() <= bound).all()


def test_a_spline_without_tails_is_nan_beyond_its_bounds(kernel):
    y = torch.tensor([-1.5, -1.0, 0.3, 1.0, 1.5])
    x, logabsdet, grad = transformed(kernel, y, torch.zeros(5, 10), transform="spline", tails=None)
    assert (
        x.isnan().tolist() == logabsdet.isnan().tolist() == grad.isnan().tolist() == [True, False, False, False, True]
    )
