"""Results and gradients are right, whatever the implementation, dtype, layout, size and upstream gradient."""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import strategies as st

from tests.contract.params import SPECS, cases, few, small
from tests.harness import backend, checks
from tests.harness.calls import UPSTREAM
from tests.harness.layouts import LAYOUTS


@cases(small, dtypes=lambda spec: spec.dtypes, layout=LAYOUTS, upstream=UPSTREAM)
def test_options(spec, sample, backend, dtypes, layout, upstream):
    with backend.active():
        checks.accuracy(spec, sample, dtypes, layout, upstream, backend.device)


@cases(lambda spec: spec.shapes(), dtypes=lambda spec: spec.dtypes, layout=LAYOUTS, upstream=UPSTREAM)
def test_shapes(spec, sample, backend, dtypes, layout, upstream):
    with backend.active():
        checks.accuracy(spec, sample, dtypes, layout, upstream, backend.device)


@pytest.mark.parametrize("implementation", backend.OPS, ids=str)
@pytest.mark.parametrize("spec", [s for s in SPECS if s.draw is not None], ids=str)
@hypothesis.settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@hypothesis.given(data=st.data())
def test_drawn_shapes(spec, implementation, data):
    sample = data.draw(spec.draw)
    dtypes = data.draw(st.sampled_from(spec.dtypes), "dtypes")
    layout = data.draw(st.sampled_from(LAYOUTS), "layout")
    upstream = data.draw(st.sampled_from(UPSTREAM), "upstream")
    with implementation.active():
        checks.accuracy(spec, sample, dtypes, layout, upstream, implementation.device)


@cases(lambda spec: spec.threaded(), dtypes=lambda spec: spec.dtypes[:3])
def test_threaded(spec, sample, backend, dtypes):
    with backend.active():
        checks.accuracy(spec, sample, dtypes, device=backend.device)


@cases(lambda spec: spec.extremes(), dtypes=lambda spec: spec.dtypes, backends=backend.NATIVE)
def test_extremes(spec, sample, backend, dtypes):
    with backend.active():
        checks.extremes(spec, sample, dtypes, backend.device)


@cases(few, where=lambda spec: not spec.exact, dtypes=lambda spec: spec.dtypes)
def test_nan_stays_where_it_belongs(spec, sample, backend, dtypes):
    with backend.active():
        checks.nan_containment(spec, sample, dtypes, backend.device)


@pytest.mark.big
@pytest.mark.parametrize("implementation", [backend.OPS[0], *backend.CUDA], ids=str)
@pytest.mark.parametrize("spec", [s for s in SPECS if s.huge is not None], ids=str)
def test_more_than_2_31_elements(spec, implementation):
    if os.environ.get("PYGEN_TEST_BIG") != "1":
        pytest.skip(f"needs {spec.huge_gb} GB of memory: set PYGEN_TEST_BIG=1")
    with implementation.active():
        spec.huge(torch.device(implementation.device))
