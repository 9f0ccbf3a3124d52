"""Gradients against finite differences, of any order, of any subset of the inputs, and what they keep in memory."""

from __future__ import annotations

from tests.contract.params import cases, few, small
from tests.harness import backend, checks


def differentiable(spec):
    return spec.order > 0


@cases(small, where=differentiable, backends=backend.OPS[:1])
def test_first_order(spec, sample, backend):
    with backend.active():
        checks.first_order(spec, sample, backend.device)


@cases(few, where=lambda spec: not spec.exact, backends=backend.ALL)
def test_second_order(spec, sample, backend):
    with backend.active():
        checks.second_order(spec, sample, backend.device, must_raise=backend.name != "reference")


@cases(few, where=differentiable, backends=backend.ALL)
def test_each_gradient_alone(spec, sample, backend):
    with backend.active():
        checks.partial_gradients(spec, sample, backend.device, skips=backend.name != "reference")


@cases(few, where=lambda spec: spec.skips)
def test_gradients_not_asked_for(spec, sample, backend):
    with backend.active():
        checks.skipped_outputs(spec, sample, backend.device)


@cases(small, where=lambda spec: spec.keeps is not None)
def test_saved_memory(spec, sample, backend):
    with backend.active():
        checks.saved_memory(spec, sample, backend.device)
