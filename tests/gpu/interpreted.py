"""Every op's Triton kernels in Triton's interpreter, under the checks of the contract. `test_interpreter.py` runs this
file in a process of its own.

float32 and float64 only: the interpreter's bfloat16 arithmetic is not the GPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

import pygen
from pygen.kernels import coupling, heads, masked_conv
from pygen.kernels.diffusion_loss import launch_diffusion_loss, launch_diffusion_loss_backward
from pygen.kernels.diffusion_step import launch_diffusion_step
from pygen.kernels.rational_quadratic_spline import (
    launch_rational_quadratic_spline,
    launch_rational_quadratic_spline_backward,
)
from pygen.kernels.sample_stats import launch_quantile_abs
from pygen.ops.coupling import CouplingOptions
from pygen.ops.diffusion_step import StepOptions
from pygen.ops.masked_conv import ConvOptions
from pygen.ops.rational_quadratic_spline import SplineOptions
from pygen.reference import heads as reference_heads
from pygen.reference.diffusion_step import width
from tests.contract.conftest import _uninitialised_memory_is_nan  # noqa: F401
from tests.contract.params import few, small
from tests.coupling.samples import KINDS, sample
from tests.frechet.spectra import SPECTRA, with_values
from tests.gpu.on_triton import SPECS, Triton
from tests.harness import checks
from tests.harness.calls import UPSTREAM, random
from tests.harness.layouts import LAYOUTS
from tests.harness.spec import F32, F64, OpSpec, Sample
from tests.heads import samples as heads_samples
from tests.masked_conv import samples as convolutions

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of values that no one uses

INTERPRETER = Triton("interpreter")
DTYPES = (F32, F64)


@pytest.fixture
def _interpreted():
    with INTERPRETER.active():
        yield


def every(samples: Callable[[OpSpec], Iterable[Sample]], **factors: Any) -> Callable[..., Any]:
    """Runs a test on each sample of each op, beside the next value of every factor, in the interpreter."""
    rows = []
    for spec in SPECS:
        for i, one in enumerate(samples(spec)):
            if one.options.get("dtype") == torch.bfloat16:
                continue
            values = [v[i % len(v)] for v in factors.values()]
            rows.append(pytest.param(spec, one, *values, id="-".join(map(str, (spec, one.name, *values)))))
    parametrized = pytest.mark.parametrize(("spec", "sample", *factors), rows)
    return lambda test: pytest.mark.usefixtures("_interpreted")(parametrized(test))


@every(small, dtypes=DTYPES, layout=LAYOUTS, upstream=UPSTREAM)
def test_options(spec, sample, dtypes, layout, upstream):
    checks.accuracy(spec, sample, dtypes, layout, upstream)


def awkward(spec: OpSpec) -> list[Sample]:
    """Every other one; of convolutions, whose taps take long, every third, and those of few pixels."""
    if spec.name == "masked_conv2d":
        return [one for one in list(spec.shapes())[::3] if one.inputs["x"].numel() < 10_000]
    return list(spec.shapes())[::2]


@every(awkward, dtypes=DTYPES, layout=LAYOUTS, upstream=UPSTREAM)
def test_shapes(spec, sample, dtypes, layout, upstream):
    checks.accuracy(spec, sample, dtypes, layout, upstream)


@every(lambda spec: spec.extremes(), dtypes=DTYPES)
def test_extremes(spec, sample, dtypes):
    checks.extremes(spec, sample, dtypes)


@every(lambda spec: () if spec.exact else few(spec), dtypes=DTYPES)
def test_nan_stays_where_it_belongs(spec, sample, dtypes):
    checks.nan_containment(spec, sample, dtypes)


@every(few, dtypes=DTYPES, layout=LAYOUTS)
def test_functional(spec, sample, dtypes, layout):
    checks.functional(spec, sample, dtypes, layout)


@every(few, dtypes=DTYPES, layout=LAYOUTS)
def test_metadata(spec, sample, dtypes, layout):
    checks.metadata(spec, sample, dtypes, layout)


@every(lambda spec: few(spec) if spec.skips else ())
def test_gradients_not_asked_for(spec, sample):
    checks.skipped_outputs(spec, sample)


# --- more than one program takes --------------------------------------------------------------------------------------


def long_samples(spec: OpSpec) -> Iterable[Sample]:
    """More elements than one program sums; more samples than one program takes."""
    if spec.name == "affine_coupling":
        for shape in ((2, 10, 30, 31), (19, 2, 16, 17)):
            for i, options in enumerate(KINDS):
                yield sample(f"{shape}-{i}", shape, **options)
    if spec.name == "masked_conv2d":
        for activation, codes in (("glu", None), (None, torch.uint8)):
            yield convolutions.sample(f"{codes}", (3, 5, 11, 12), 3, taps="A3", activation=activation, codes=codes)


@every(long_samples, layout=("contiguous", "channels_last", "contiguous"))
def test_long_samples(spec, sample, layout):
    checks.accuracy(spec, sample, layout=layout)


@every(long_samples, layout=("channels_last", "contiguous", "sliced"))
def test_offsets_of_64_bits(spec, sample, layout, monkeypatch):
    """As tensors of 2^31 elements take them."""
    coupling._plan.cache_clear()
    for family in (coupling, masked_conv):
        monkeypatch.setattr(family, "REACH", 0)
    checks.accuracy(spec, sample, layout=layout)
    coupling._plan.cache_clear()


@pytest.mark.parametrize("index", [[0, 5], [-1, 2], [3, 3], [2**40, 0]], ids=str)
@pytest.mark.parametrize("activation", ["exp", "additive"])
def test_indices_that_are_no_channels_give_nan(index, activation):
    """On a GPU they cannot be looked at without a wait; no access may go astray."""
    x, params = torch.randn(3, 5, 4), torch.randn(3, 2 if activation == "additive" else 4, 4)
    options = CouplingOptions(activation=activation, part="index")
    wrong = torch.tensor(index)
    outputs = coupling.launch_affine_coupling(x, params, None, wrong, None, options)
    saved = None if activation == "additive" else x
    grads = coupling.launch_affine_coupling_backward(
        x, torch.ones(3), saved, params, None, wrong, options, True, True, False
    )
    for t in (*outputs, *grads):
        assert t.isnan().all()


@pytest.mark.parametrize("code", [7, -1, 255, 2**40])
def test_codes_out_of_range_give_nan(code):
    """Where a tap meets one, there alone; and they have no weight."""
    x, weight = torch.randint(7, (2, 3, 4)), torch.randn(2, 7, 5)
    x[1, 1, 2] = code
    x = x.to(torch.uint8 if code == 255 else torch.int64)
    options = ConvOptions(taps="-1,0;0,-1")
    y, _ = masked_conv.launch_masked_conv2d(x, weight, None, None, None, options)
    wrong = torch.zeros(2, 3, 4, dtype=torch.bool)
    wrong[1, 2, 2] = wrong[1, 1, 3] = True
    assert torch.equal(y.isnan(), wrong[:, None].expand(y.shape))
    grads = masked_conv.launch_masked_conv2d_backward(
        torch.ones_like(y), x, weight, None, options, False, True, False, False, False
    )
    seen = torch.stack([torch.stack([(part == k).sum() for k in range(7)]) for part in (x[:, :-1], x[..., :-1])])
    assert torch.equal(grads[1], seen[..., None].expand(2, 7, 5).float())


@pytest.mark.parametrize("index", [[0, 2, 1], [-1, 0, 2**40]], ids=str)
def test_rows_that_are_not_there_give_nan(index):
    """And no row beyond the table is read; a counter is for all samples."""
    x, table = torch.randn(3, 5), random("rows", 2, width(0, 0, 1))
    where = torch.tensor(index)
    wrong = (where < 0) | (where > 1)
    for at, nan in ((where, wrong), (where[1], wrong[1].expand(3))):
        (y,) = launch_diffusion_step(
            x, [], [], table, at, 0, None, None, None, None, None, None, None, None, 0, 0, 0, StepOptions()
        )
        assert torch.equal(y.isnan(), nan[:, None].expand(3, 5))
        quantile = launch_quantile_abs(x, [], table, at, 0, 0.5, None)
        losses = (x, x, table[:, :3], at, 0, None, False, None, 0, 0, 0, torch.float32)
        loss, difference = launch_diffusion_loss(*losses)
        grads = launch_diffusion_loss_backward(torch.ones(3), x, loss, table[:, :3], at, 0, *[torch.float32] * 3)
        for t in (quantile, loss, difference, *grads):
            assert torch.equal(t.isnan(), nan.reshape(3, *[1] * (t.dim() - 1)).expand(t.shape))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("style", ["nflows", "knots"])
def test_numbers_outside_a_spline_give_nan(style, inverse):
    """Where it has no tails: values and gradients of those elements alone, but for their parameters', which are 0."""
    positions = torch.tensor([-1.0, 0.5, 1.0]).expand(4, 3).contiguous()
    widths = positions if style == "knots" else torch.randn(4, 2)
    parameters = (widths, widths.clone(), torch.rand(4, 3) + 0.5)
    x, wrong = torch.tensor([0.3, 1.5, float("nan"), -1.0]), torch.tensor([False, True, True, False])
    options = SplineOptions(style=style, tails="none", inverse=inverse)
    outputs = launch_rational_quadratic_spline(x, *parameters, options)
    ones = torch.ones(4)
    grad_x, *grads = launch_rational_quadratic_spline_backward(ones, ones, x, *parameters, options, *[True] * 4)
    for t in (*outputs, grad_x):
        assert torch.equal(t.isnan(), wrong)
    for t in grads:
        assert not t[wrong].any()


# --- heads -----------------------------------------------------------------------------------------------------------


def wide_samples(spec: OpSpec) -> Iterable[Sample]:
    """Several tiles of outputs, blocks of sites and chains of a logit's terms; gradients of inputs in several steps."""
    if spec.name == "categorical_nll":
        yield heads_samples.sample("wide", (2, 140, 70), 2, 70, order="level")
    if spec.name == "bernoulli_nll":
        yield heads_samples.bits("wide", (2, 140, 70), 70)


@every(wide_samples)
@pytest.mark.parametrize("programs", [heads.PROGRAMS, 8, 1])
def test_shares_of_the_sites(spec, sample, programs, monkeypatch):
    """Each program that sums over sites takes one block of them, some, or all."""
    monkeypatch.setattr(heads, "PROGRAMS", programs)
    checks.accuracy(spec, sample)


@pytest.mark.parametrize(
    ("name", "outputs", "options"), [("categorical_nll", 4, {"order": "level"}), ("bernoulli_nll", 2, {})]
)
def test_targets_out_of_range_give_nan(name, outputs, options):
    """Nobody looks at them on a GPU. NaN is where the reference has it."""
    given = (torch.randn(5, 4, 3), torch.randn(outputs, 4), torch.randn(outputs))
    given += (torch.tensor([[0, 1], [0, 2], [1, 1], [-1, 0], [1, 2**40]])[:, :, None].expand(5, 2, 3),)
    grad, backward = torch.randn(5, 2, 3), f"{name}_backward"
    ours = getattr(heads, f"launch_{name}")(*given, *options.values())
    grads = getattr(heads, f"launch_{backward}")(grad, *given, *options.values(), True, True, True)
    true = getattr(reference_heads, name)(*given, **options)
    true_grads = getattr(reference_heads, backward)(grad, *given, **options)
    for t, expected in zip((ours, *grads), (true, *true_grads), strict=True):
        torch.testing.assert_close(t, expected, equal_nan=True)


# --- polar, accumulate_moments ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_interpreted")
@pytest.mark.parametrize(
    ("spectrum", "dtype"), [*((name, torch.float32) for name in SPECTRA), ("down to 1e-15", torch.float64)], ids=str
)
def test_polar(spectrum, dtype):
    """On spectra down to 1e-15, of several sizes in one batch: the norm to rounding of the largest singular value."""
    b = with_values(spectrum, SPECTRA[spectrum])
    scales = torch.tensor([1.0, 1e-30, 1e30, 0.0], dtype=torch.float64)
    b = (scales[:, None, None] * b).to(dtype)
    factor, norm = pygen.ops.polar(b)
    values = torch.linalg.svdvals(b.double())
    lost = (norm.double() - values.sum(-1)).abs()
    assert (lost <= 4 * torch.finfo(dtype).eps * values.sum(-1)).all()
    assert torch.linalg.matrix_norm(factor.double(), 2).max() <= 1 + 8 * torch.finfo(dtype).eps
    assert not factor[3].any()


@pytest.mark.usefixtures("_interpreted")
def test_moments_leave_the_upper_triangle():
    x, scatter = torch.randn(300, 70), torch.full((70, 70), float("nan"), dtype=torch.float64).triu(1)
    shift, total = torch.randn(70, dtype=torch.float64), torch.zeros(70, dtype=torch.float64)
    pygen.ops.accumulate_moments(x, shift, total, scatter)
    above = torch.ones(70, 70, dtype=torch.bool).triu(1)
    assert scatter[above].isnan().all()
    assert scatter[~above].isfinite().all()
