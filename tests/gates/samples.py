"""gated_activation, concat_elu and their backward ops, as the contract suite (tests/harness) sees them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import pygen
from pygen import ops, reference
from pygen.reference import gates
from tests.harness.calls import random
from tests.harness.combine import pairwise
from tests.harness.spec import ErrorInput, OpSpec, Sample, register

KINDS = ("tanh", "linear")
BIASES = (None, "bias", "per_sample")
FACTORS: dict[str, tuple[Any, ...]] = {
    "form": tuple(product(KINDS, BIASES)),
    "condition": (False, True),
    "residual": (False, True),
    "rank": (2, 3, 4, 5),
}
SPATIAL = {2: (), 3: (5,), 4: (3, 4), 5: (2, 3, 2)}
SIZES = (0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 257, 1021)


def sample(
    name: str,
    shape: tuple[int, ...],
    kind: str = "tanh",
    bias: str | None = None,
    condition: bool = False,
    residual: bool = False,
) -> Sample:
    """x of this shape, [B, 2C, ...]. bias: "bias" [2C] or "per_sample" [B, 2C]."""
    wide = shape[1]

    def draw(role: str, there: bool, *size: int) -> Tensor | None:
        return random(f"{name} {role}", *size) if there else None

    inputs = {
        "x": 2 * random(f"{name} x", *shape),
        "bias": draw("bias", bias == "bias", wide),
        "per_sample": draw("per_sample", bias == "per_sample", shape[0], wide),
        "condition": draw("condition", condition, *shape),
        "residual": draw("residual", residual, shape[0], wide // 2, *shape[2:]),
    }
    traits = {"kind": kind, "bias": bias, "condition": condition, "residual": residual, "rank": len(shape)}
    return Sample(name, inputs, {"kind": kind}, traits)


def by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def samples() -> Iterator[Sample]:
    for i, row in enumerate(pairwise(**FACTORS)):
        (kind, bias), rank = row.pop("form"), row.pop("rank")
        yield sample(f"{i:02d}-{kind}-{bias}", (3, 6, *SPATIAL[rank]), kind, bias, **row)


def awkward() -> Iterator[tuple[int, ...]]:
    for n in SIZES:
        yield (2, 2 * n)
        yield (2, 4, n)
    yield from ((0, 4), (0, 4, 3, 3), (1, 2, 5, 7), (2, 4, 0, 3), (2, 0, 3), (0, 0), (3, 34, 3, 3), (2, 2, 1, 1))


def shapes() -> Iterator[Sample]:
    for i, shape in enumerate(awkward()):
        for kind, bias in ((KINDS[i % 2], None), (KINDS[1 - i % 2], BIASES[1 + i // 2 % 2])):
            yield sample(f"{by(shape)}-{kind}-{bias}", shape, kind, bias, bias is None, bias is not None)


def threaded() -> Iterator[Sample]:
    yield sample("16x128x32x32", (16, 128, 32, 32))
    yield sample("3x2x200000", (3, 2, 200_000), "linear", "bias", residual=True)
    yield sample("2000x40x5", (2000, 40, 5), "tanh", "per_sample", condition=True)
    yield sample("5000x200", (5000, 200), "tanh", "bias")


def extremes() -> Iterator[Sample]:
    """Past the ends of the exponent range, and small: the results are numbers, and most are not 0."""
    values = [-1e4, -800, -110, -95, -80, -30, -9, -1e-3, -1e-20, 0, 1e-30, 1e-6, 0.3, 9, 17, 40, 80, 95, 110, 1e4]
    grid = torch.tensor(list(product(values, values)), dtype=torch.float64).T[None]  # [1, 2, 400]
    for kind in KINDS:
        for scale in (1.0, 1e30) if kind == "linear" else (1.0,):
            s = sample(f"{kind}-{scale:g}", (1, 2, len(values) ** 2), kind)
            s.inputs["x"].copy_(grid * torch.tensor([scale, 1.0], dtype=torch.float64)[:, None])
            yield s


def draw() -> st.SearchStrategy[Sample]:
    spatial = st.lists(st.sampled_from((0, 1, 2, 3, 5, 8, 13, 16, 17, 33)), max_size=3)
    rows = st.sampled_from(pairwise(**{k: v for k, v in FACTORS.items() if k != "rank"}))

    def build(row: dict[str, Any], batch: int, half: int, dimensions: list[int]) -> Sample:
        options = {k: v for k, v in row.items() if k != "form"}
        return sample("drawn", (batch, 2 * half, *dimensions), *row["form"], **options)

    return st.builds(build, rows, st.integers(0, 4), st.integers(0, 9), spatial)


def errors() -> Iterator[ErrorInput]:
    def bad(name: str, error: type[Exception], *words: str, **arguments: Any) -> ErrorInput:
        return ErrorInput(name, {"x": torch.randn(3, 4, 5), **arguments}, error, words)

    yield bad("rank of x", ValueError, "(4,)", x=torch.randn(4))
    yield bad("integer x", TypeError, "torch.int64", x=torch.ones(3, 4, 5, dtype=torch.int64))
    yield bad("complex x", TypeError, "torch.complex64", x=torch.ones(3, 4, 5, dtype=torch.complex64))
    yield bad("odd channels", ValueError, "even", "3", x=torch.randn(3, 3, 5))
    yield bad("unknown kind", ValueError, "kind", "'nonsense'", kind="nonsense")
    yield bad("shape of bias", ValueError, "bias", "(4,) or (3, 4)", "(2,)", bias=torch.randn(2))
    yield bad("broadcast bias", ValueError, "bias", "(1, 4)", bias=torch.randn(1, 4))
    yield bad("dtype of bias", TypeError, "bias", "torch.float64", bias=torch.randn(4).double())
    yield bad("shape of condition", ValueError, "condition", "(3, 4, 5)", "(3, 2, 5)", condition=torch.randn(3, 2, 5))
    yield bad("dtype of condition", TypeError, "condition", "float16", condition=torch.randn(3, 4, 5).half())
    yield bad("shape of residual", ValueError, "residual", "(3, 2, 5)", "(3, 4, 5)", residual=torch.randn(3, 4, 5))
    yield bad("dtype of residual", TypeError, "residual", "float16", residual=torch.randn(3, 2, 5).half())


def with_bias(function: Any) -> Any:
    """A bias a sample as an input of its own: the suite cuts batches of what has samples."""

    @functools.wraps(function)
    def call(*, bias: Tensor | None = None, per_sample: Tensor | None = None, **others: Any) -> Any:
        return function(bias=bias if per_sample is None else per_sample, **others)

    return call


def huge(device: torch.device) -> None:
    """Three places of a call with 2^31 + 2048 elements, the inputs of which repeat every 1024 (so take no memory)."""
    repeats = 2**20 + 1
    x = random("huge", 1, 2, 1024).to(device, torch.bfloat16)
    wide = x[:, :, None].expand(1, 2, repeats, 1024)
    y, expected = ops.gated_activation(wide), reference.gated_activation(x)
    for i in (0, repeats // 2, repeats - 1):
        torch.testing.assert_close(y[:, :, i], expected)


GATE = register(
    OpSpec(
        name="gated_activation",
        function=with_bias(ops.gated_activation),
        reference=with_bias(reference.gated_activation),
        outputs=("y",),
        roles=dict.fromkeys(("x", "bias", "per_sample", "condition", "residual"), "data"),
        batched=frozenset({"x", "per_sample", "condition", "residual", "y"}),
        order=1,
        samples=samples,
        shapes=shapes,
        threaded=threaded,
        extremes=extremes,
        errors=errors,
        draw=draw(),
        huge=huge,
        huge_gb=7,
        keeps=lambda s: frozenset({"x", "bias", "per_sample", "condition"}),
    )
)


# --- concat_elu ------------------------------------------------------------------------------------------------------


def elu_sample(name: str, shape: tuple[int, ...]) -> Sample:
    return Sample(name, {"x": 2 * random(f"{name} x", *shape)}, traits={"rank": len(shape)})


def elu_extremes() -> Iterator[Sample]:
    values = [0.0, 1e-40, 1e-30, 1e-8, 1e-3, 0.3, 1, 9, 17, 40, 90, 110, 800, 1e4, 1e38]
    s = elu_sample("elu", (1, 1, 2 * len(values)))
    s.inputs["x"].copy_(torch.tensor([*values, *(-v for v in values)], dtype=torch.float64))
    yield s


def elu_errors() -> Iterator[ErrorInput]:
    yield ErrorInput("rank of x", {"x": torch.randn(4)}, ValueError, ("(4,)",))
    yield ErrorInput("integer x", {"x": torch.ones(3, 4, dtype=torch.int64)}, TypeError, ("torch.int64",))


ELU = register(
    OpSpec(
        name="concat_elu",
        function=ops.concat_elu,
        reference=reference.concat_elu,
        outputs=("y",),
        roles={"x": "data"},
        batched=frozenset({"x", "y"}),
        order=1,
        samples=lambda: (elu_sample(str(rank), (3, 3, *SPATIAL[rank])) for rank in SPATIAL),
        shapes=lambda: (elu_sample(by(shape), shape) for shape in awkward()),
        threaded=lambda: (elu_sample(by(shape), shape) for shape in ((16, 64, 32, 32), (3, 1, 200_000), (5000, 100))),
        extremes=elu_extremes,
        errors=elu_errors,
        draw=st.builds(
            lambda *shape: elu_sample("drawn", shape), st.integers(0, 4), st.integers(0, 9), st.sampled_from(SIZES)
        ),
        keeps=lambda s: frozenset({"x"}),
    )
)


# --- the backward ops ------------------------------------------------------------------------------------------------


def backward_sample(s: Sample) -> Sample:
    x = s.inputs["x"]
    grad_y = random(f"{s.name} grad_y", x.shape[0], x.shape[1] // 2, *x.shape[2:])
    inputs = {"grad_y": grad_y, **s.inputs}
    del inputs["residual"]
    return Sample(s.name, inputs, {**s.options, "need_x": True, "need_bias": True}, s.traits)


def calling(name: str) -> Any:
    """The backward op of this name, as the backend in force runs it."""
    op = getattr(torch.ops.pygen, name).default

    def call(**arguments: Any) -> Any:
        if pygen.backends.forced == "reference":
            return op._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, **arguments)
        return op(**arguments)

    return call


def reference_backward(*, bias: Tensor | None, need_x: bool, need_bias: bool, **arguments: Any) -> tuple[Tensor, ...]:
    """The reference's gradients; those that are not asked for are empty."""
    grads = gates.gated_activation_backward(bias=bias, **arguments)
    return tuple(g if need else g.new_empty(0) for g, need in zip(grads, (need_x, need_bias), strict=True))


def reference_elu_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    """The reference's gradient."""
    return gates.concat_elu_backward(grad_y, x)


register(
    OpSpec(
        name="gated_activation_backward",
        function=with_bias(calling("gated_activation_backward")),
        reference=with_bias(reference_backward),
        outputs=("grad_x", "grad_bias"),
        roles=dict.fromkeys(("grad_y", "x", "bias", "per_sample", "condition"), "data"),
        batched=frozenset({"grad_y", "x", "per_sample", "condition", "grad_x"}),
        order=0,
        samples=lambda: map(backward_sample, samples()),
        skips={"need_x": 0, "need_bias": 1},
        public=False,
    )
)
register(
    OpSpec(
        name="concat_elu_backward",
        function=calling("concat_elu_backward"),
        reference=reference_elu_backward,
        outputs=("grad_x",),
        roles=dict.fromkeys(("grad_y", "x"), "data"),
        batched=frozenset({"grad_y", "x", "grad_x"}),
        order=0,
        samples=lambda: (
            Sample(s.name, {"grad_y": random(f"{s.name} grad_y", *ops.concat_elu(s.inputs["x"]).shape), **s.inputs})
            for s in (elu_sample(str(rank), (3, 3, *SPATIAL[rank])) for rank in SPATIAL)
        ),
        public=False,
    )
)
