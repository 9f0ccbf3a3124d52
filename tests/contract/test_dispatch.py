"""The op as torch sees it: registration, fakes, strides, torch.compile, vmap."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.contract.params import SPECS, cases, few, small
from tests.harness import backend, checks
from tests.harness.layouts import LAYOUTS

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")  # torch's own use

REFERENCE = backend.REFERENCE


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    yield
    torch._dynamo.reset()


@cases(
    few,
    backends=backend.OPS[:1],
    layout=("contiguous", "channels_last", "sliced"),
    requires_grad=lambda spec: (False, True) if spec.order else (False,),
)
def test_registration(spec, sample, backend, layout, requires_grad):
    with backend.active():
        checks.registration(spec, sample, layout, requires_grad)


@cases(small, dtypes=lambda spec: spec.dtypes, layout=LAYOUTS)
def test_metadata(spec, sample, backend, dtypes, layout):
    with backend.active():
        checks.metadata(spec, sample, dtypes, layout, backend.device)


@cases(lambda spec: spec.shapes(), backends=backend.OPS[:1], layout=LAYOUTS)
def test_metadata_of_shapes(spec, sample, backend, layout):
    with backend.active():
        checks.metadata(spec, sample, layout=layout, device=backend.device)


@cases(small, layout=LAYOUTS)
def test_metadata_of_the_reference(spec, sample, backend, layout):
    checks.same_metadata(spec, sample, backend, REFERENCE, layout)


@cases(few, backends=backend.OPS[:1])
def test_compiled(spec, sample, backend):
    with backend.active():
        checks.compiled(spec, sample)


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_compiled_by_inductor(spec):
    with backend.OPS[0].active():
        checks.compiled(spec, few(spec)[0], "inductor", sizes=(2, 3))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@cases(few)
def test_transforms(spec, sample, backend):
    with backend.active():
        checks.transforms(spec, sample, backend.device)


@cases(few, where=lambda spec: spec.order > 0)
def test_forward_mode(spec, sample, backend):
    with backend.active():
        checks.forward_mode(spec, sample, backend.device)
