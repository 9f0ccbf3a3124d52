"""The harness itself: an op that keeps the contract passes every check; one that breaks an item fails that check."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from tests.harness import backend, broken, checks, toy
from tests.harness.calls import random
from tests.harness.combine import pairwise, representatives
from tests.harness.layouts import LAYOUTS, lay_out
from tests.harness.spec import BF16, OpSpec, Sample
from tests.harness.tolerance import assert_accurate

HOST = backend.OPS[0]


class Case(NamedTuple):
    """A check; words of what it must say of an op with these parts; which sample it gets, and what else."""

    check: Callable[..., None]
    words: str
    parts: dict[str, Any]
    sample: int
    options: dict[str, Any]

    def __str__(self) -> str:
        parts = (getattr(part, "__name__", f"{name}={part}") for name, part in self.parts.items())
        return f"{self.check.__name__}-{'-'.join(parts)}"


def case(check: Callable[..., None], words: str, parts: dict[str, Any], sample: int = 0, **options: Any) -> Case:
    return Case(check, words, parts, sample, options)


CASES = [
    case(checks.accuracy, "y: off by", {"forward": broken.rough}),
    case(checks.accuracy, "y: NaN", {"forward": broken.ignores_strides}, layout="sliced"),
    case(checks.accuracy, "y: off by", {"forward": broken.ignores_strides}, layout="transposed"),
    case(checks.accuracy, "y: NaN", {"forward": broken.forgets_the_tail}),
    case(checks.accuracy, "logdet: expected torch.float32", {"forward": broken.narrow_logdet}, dtypes=BF16),
    case(checks.accuracy, "logdet: off by", {"forward": broken.narrow_sum}, sample=2, dtypes=BF16),
    case(checks.accuracy, "grad_x: off by", {"gradient": broken.wrong_gradient}),
    case(checks.accuracy, "grad_x: NaN", {"gradient": broken.gradient_ignores_strides}, upstream="sliced"),
    case(checks.extremes, "logdet: expected", {"forward": broken.overflows}),
    case(checks.nan_containment, "y is NaN elsewhere", {"forward": broken.mixes_samples}),
    case(checks.nan_containment, "y is NaN elsewhere", {"forward": broken.swallows_nan}),
    case(checks.nan_containment, "logdet of another sample changes", {"forward": broken.minds_the_next_sample}),
    case(checks.nan_containment, "it spreads to", {"gradient": broken.gradient_mixes_elements}),
    case(checks.first_order, "gradcheck", {"gradient": broken.wrong_gradient}),
    case(checks.second_order, "wrong in silence", {"derivative": broken.no_derivative}),
    case(checks.second_order, "wrong in silence", {"derivative": False}),
    case(checks.second_order, "gradgradcheck", {"derivative": broken.no_derivative, "order": 2}),
    case(checks.partial_gradients, "not skipped", {"gradient": broken.gradient_skips_nothing}),
    case(checks.partial_gradients, "grad_x differs", {"gradient": broken.gradient_differs_alone}),
    case(checks.skipped_outputs, "still computes grad_x", {"backward": broken.skips_nothing}),
    case(checks.skipped_outputs, "changes grad_s", {"backward": broken.skipping_changes_others}),
    case(checks.saved_memory, "neither an input nor an output", {"save": broken.saves_more}),
    case(checks.saved_memory, r"keeps \['s', 'x', 'y'\]", {"save": broken.holds_an_input}),
    case(checks.registration, "mutated", {"forward": broken.writes_its_input}),
    case(checks.registration, "test_autograd_registration", {"registered": False}),
    case(checks.registration, "test_faketensor", {"fake": broken.fake_of_other_shape}),
    case(checks.registration, "calls no op", {"wrap": broken.calls_no_op}),
    case(checks.metadata, "fake tensors:", {"fake": broken.fake_of_other_strides}, sample=1, layout="channels_last"),
    case(checks.metadata, "fake tensors:", {"fake": broken.fake_of_other_dtype}, dtypes=BF16),
    case(
        checks.same_metadata,
        "reference:",
        {"wrap": broken.reference_of_other_strides},
        sample=1,
        layout="channels_last",
        one=HOST,
        other=backend.REFERENCE,
    ),
    case(checks.compiled, "fullgraph", {"wrap": broken.breaks_the_graph}),
    case(checks.compiled, "4 compilations", {"wrap": broken.recompiles}),
    case(checks.compiled, "y differs", {"wrap": broken.differs_compiled}),
    case(checks.determinism, "y differs", {"forward": broken.remembers}),
    case(checks.determinism, "y differs", {"forward": broken.counts_threads}),
    case(checks.functional, "input x was written to", {"forward": broken.writes_its_input}),
    case(checks.functional, "its version changed", {"forward": broken.touches_its_input}),
    case(checks.functional, "input x was written to", {"forward": broken.writes_between}, layout="sliced"),
    case(checks.functional, "output logdet shares memory with y", {"forward": broken.shares_memory}),
    case(checks.functional, "gradient of y was written to", {"gradient": broken.gradient_writes_upstream}),
    case(checks.modes, "no_grad: y differs", {"wrap": broken.differs_without_grad}),
    case(checks.modes, "no output requires grad", {"wrap": broken.detaches}),
    case(checks.autocast, "under autocast: logdet differs", {"wrap": broken.is_cast}),
    case(checks.transforms, "vmap is wrong", {"vmap": broken.batching_rule}),
    case(checks.transforms, "vjp is wrong", {"wrap": broken.wrong_reverse_mode}),
    case(checks.forward_mode, "jvp is wrong", {"forwards": False}),
]

REFUSALS = [
    ("nothing is raised", {"forward": broken.no_check}),
    ("fake tensors: expected ValueError, nothing is raised", {"fake": broken.fake_without_check}),
    ("expected 'expected' in the message", {"forward": broken.says_little}),
    ("expected ValueError, got RuntimeError", {"forward": broken.raises_another_error}),
    ("the messages differ", {"forward": broken.says_something_else}),
]


def build(parts: dict[str, Any]) -> OpSpec:
    return toy.make_backward(parts["backward"]) if "backward" in parts else toy.make(**parts)


@pytest.fixture(scope="module")
def sound() -> OpSpec:
    return toy.make()


@pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_broken_op_is_caught(case, sound):
    def check(spec: OpSpec) -> None:
        samples = spec.extremes() if case.check is checks.extremes else spec.samples()
        with HOST.active():
            case.check(spec, list(samples)[case.sample], **case.options)

    with pytest.raises(AssertionError, match=case.words):
        check(build(case.parts))
    check(toy.make_backward() if "backward" in case.parts else sound)


@pytest.mark.parametrize(("words", "parts"), REFUSALS)
def test_a_wrong_refusal_is_caught(words, parts, sound):
    bad = next(toy.errors())
    with pytest.raises(AssertionError, match=words):
        checks.refusal(build(parts), bad, HOST, backend.REFERENCE)
    checks.refusal(sound, bad, HOST, backend.REFERENCE)


def test_incompleteness_is_caught(sound):
    private = toy.make(public=False)
    checks.completeness({private.name}, {private.name: private})
    with pytest.raises(AssertionError, match="ops without samples"):
        checks.completeness({private.name, "new"}, {private.name: private})
    with pytest.raises(AssertionError, match="specs of no op"):
        checks.completeness(set(), {private.name: private})
    with pytest.raises(AssertionError, match="docstring lacks formula"):
        checks.completeness({sound.name}, {sound.name: sound})
    empty = toy.make(public=False, samples=tuple)
    with pytest.raises(AssertionError, match="no samples"):
        checks.completeness({empty.name}, {empty.name: empty})


def test_every_check_is_tried_on_a_broken_op():
    own = {f for _, f in inspect.getmembers(checks, inspect.isfunction) if f.__module__ == checks.__name__}
    public = {f.__name__ for f in own if not f.__name__.startswith("_")}
    assert public == {case.check.__name__ for case in CASES} | {"refusal", "completeness"}


# --- the harness's own parts -----------------------------------------------------------------------------------------


def test_uninitialised_memory_is_nan():
    assert torch.empty(3).isnan().all()
    assert torch.empty_strided((2, 2), (1, 2), dtype=torch.bfloat16).isnan().all()
    assert torch.ones(2).new_empty(3).isnan().all()


@pytest.mark.parametrize("sizes", [(1,), (3, 1), (4, 4, 4), (7, 2, 5, 2, 3), (2,) * 9])
def test_pairwise_holds_every_pair(sizes):
    factors = {f"f{i}": tuple(range(n)) for i, n in enumerate(sizes)}
    rows = pairwise(**factors)
    for a in factors:
        for b in factors:
            if a != b:
                seen = {(row[a], row[b]) for row in rows}
                assert len(seen) == len(factors[a]) * len(factors[b])
    largest = sorted(sizes)[-2:]
    assert len(rows) <= 2 * largest[0] * largest[-1]


def test_representatives_show_every_trait():
    samples = [Sample(str(i), {"x": None}, {"a": i % 3, "b": i % 5}) for i in range(15)]
    few = representatives(samples)
    assert {s.options["a"] for s in few} == {0, 1, 2}
    assert {s.options["b"] for s in few} == {0, 1, 2, 3, 4}
    assert len(few) == 5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 2, 2), (0, 3), (2, 0, 4)])
def test_layouts_keep_shapes_and_values(layout, shape):
    tensors = {"a": random("a", *shape), "b": random("b", *shape), "n": torch.arange(4)}
    for name, t in lay_out(tensors, layout).items():
        assert t.shape == tensors[name].shape
        if layout not in ("expanded", "broadcast"):
            assert torch.equal(t, tensors[name])
        assert not t.isnan().any()


class TestTolerance:
    """The rule of harness/tolerance.py on made-up numbers: eager is 1e-6 off in the first row, exact in the second."""

    truth = torch.tensor([[1.0, -0.5], [1.0, 0.25]], dtype=torch.float64)
    eager_error = torch.tensor([[[1e-6, 0.0], [0.0, 0.0]]], dtype=torch.float64)

    def judge(self, *error: float, dtype: torch.dtype = torch.float32, allowance: float = 0.0) -> None:
        ours = self.truth + torch.tensor(error, dtype=torch.float64).view(2, 2)
        assert_accurate("t", ours.to(dtype), self.truth, self.eager_error, allowance)

    def test_accepts_twice_the_error_of_eager_anywhere_in_the_row(self):
        self.judge(0, 2e-6, 0, 0)

    def test_accepts_a_last_place_of_the_row(self):
        self.judge(0, 0, 0, 1e-7)

    @pytest.mark.parametrize("error", [(0, 2.3e-6, 0, 0), (0, 0, 0, 2e-6), (0, 0, 2e-7, 0)])
    def test_refuses_more(self, error):
        with pytest.raises(AssertionError, match="off by up to"):
            self.judge(*error)
        self.judge(*error, allowance=1e-5)

    def test_takes_the_bound_eight_times_in_float64(self):
        self.judge(0, 15e-6, 0, 0, dtype=torch.float64)
        with pytest.raises(AssertionError, match="off by up to"):
            self.judge(0, 17e-6, 0, 0, dtype=torch.float64)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_refuses_what_is_no_number(self, value):
        with pytest.raises(AssertionError, match=r"NaN where it should not be|infinite where"):
            self.judge(0, value, 0, 0, allowance=1.0)

    def test_refuses_a_small_systematic_error(self):
        """Each element is within the bound of the largest one, but all together are not."""
        truth, error = torch.ones(1000, dtype=torch.float64), torch.zeros(1, 1000, dtype=torch.float64)
        error[0, 0] = 1e-5
        assert_accurate("t", (truth + 1e-7).float(), truth, error)
        with pytest.raises(AssertionError, match="RMS"):
            assert_accurate("t", (truth + 5e-6).float(), truth, error)

    def test_wants_what_is_not_representable_infinite(self):
        truth = torch.tensor([1e39, torch.nan, 1.0], dtype=torch.float64)
        assert_accurate("t", torch.tensor([torch.inf, torch.nan, 1.0]), truth, torch.zeros(1, 3))
        for wrong in ([1e30, torch.nan, 1.0], [-torch.inf, torch.nan, 1.0], [torch.inf, 0.0, 1.0]):
            with pytest.raises(AssertionError, match=r"not infinite|missing"):
                assert_accurate("t", torch.tensor(wrong), truth, torch.zeros(1, 3))
