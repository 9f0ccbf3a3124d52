"""Functional, deterministic, the same in every mode; clear about what it does not take."""

from __future__ import annotations

import os

import pytest
import torch

import pygen
from pygen import _ext
from tests.contract.params import SPECS, cases, few, small
from tests.harness import backend, checks
from tests.harness.layouts import LAYOUTS

NATIVE, REFERENCE = backend.NATIVE, backend.REFERENCE


@cases(small, dtypes=lambda spec: spec.dtypes, layout=LAYOUTS)
def test_functional(spec, sample, backend, dtypes, layout):
    with backend.active():
        checks.functional(spec, sample, dtypes, layout, backend.device)


@cases(lambda spec: [*few(spec), *spec.threaded()], dtypes=lambda spec: spec.dtypes[:3], backends=backend.ALL)
def test_determinism(spec, sample, backend, dtypes):
    threads = (1, 2, 3) if backend in NATIVE and not spec.library else ()  # PyTorch's own reductions depend on it
    with backend.active():
        checks.determinism(spec, sample, dtypes, threads, backend.device)


@cases(few, backends=backend.ALL)
def test_modes(spec, sample, backend):
    with backend.active():
        checks.modes(spec, sample, backend.device)


@cases(few, backends=backend.ALL)
def test_autocast(spec, sample, backend):
    with backend.active():
        checks.autocast(spec, sample, backend.device, gradients=backend.name != "reference")


@pytest.mark.parametrize(
    ("spec", "bad", "implementation"),
    [
        pytest.param(spec, bad, b, id=f"{spec}-{bad}-{b}")
        for spec in SPECS
        for bad in spec.errors()
        for b in backend.OPS
        if b.device == "cpu"
    ],
)
def test_refusal(spec, bad, implementation):
    checks.refusal(spec, bad, implementation, REFERENCE)


def test_completeness():
    """Every op there is but the private ones (which benchmarks measure with) is in `pygen._lib.OPS` and has a spec."""
    names = {name.removeprefix("pygen::") for name in torch._C._dispatch_get_all_op_names() if "pygen::" in name}
    public = {name for name in names if not name.startswith("_")}
    assert public == pygen._lib.OPS.keys()
    checks.completeness(public, {spec.name: spec for spec in SPECS})


@pytest.mark.parametrize("tier", _ext.TIER_NAMES)
def test_every_tier_is_tested(tier):
    """A tier that this host runs was built, so that everything above ran it."""
    order = list(_ext.TIER_NAMES)
    if order.index(tier) < order.index(_ext._capability()):
        pytest.skip("this host (or ATEN_CPU_CAPABILITY) does not run it")
    if tier not in _ext.tiers():
        reason = _ext.build["reasons"].get(tier) or _ext.reason
        (pytest.fail if os.environ.get("PYGEN_REQUIRE_EXT") == "1" else pytest.skip)(f"was not built: {reason}")
