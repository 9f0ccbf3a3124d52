"""categorical_nll, bernoulli_nll and their backward ops, as the contract suite (tests/harness) sees them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import pygen
from pygen import ops, reference
from pygen.reference import heads
from tests.harness.calls import random
from tests.harness.spec import ErrorInput, OpSpec, Sample, register

SPATIAL = {2: (), 3: (5,), 4: (3, 4), 5: (2, 3, 2)}
SIZES = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 257)


def inputs(name: str, shape: tuple[int, ...], channels: int, outputs: int, values: int, bias: bool) -> dict[str, Any]:
    """h of this shape; logits of a few units; target below `values`."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return {
        "h": random(f"{name} h", *shape),
        "weight": 2 * random(f"{name} weight", outputs, shape[1]) / max(1, shape[1]) ** 0.5,
        "bias": random(f"{name} bias", outputs) if bias else None,
        "target": torch.randint(values, (shape[0], channels, *shape[2:]), generator=generator),
    }


def sample(
    name: str, shape: tuple[int, ...], channels: int, levels: int, bias: bool = True, order: str = "channel"
) -> Sample:
    given = inputs(name, shape, channels, channels * levels, levels, bias)
    return Sample(name, given, {"order": order}, {"bias": bias, "order": order, "rank": len(shape)})


def by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def samples() -> Iterator[Sample]:
    for i, (bias, order) in enumerate(product((True, False), ("channel", "level"))):
        for rank in SPATIAL:
            yield sample(f"{rank}-{bias}-{order}", (3, 4, *SPATIAL[rank]), 1 + (rank + i) % 3, 5, bias, order)


def shapes() -> Iterator[Sample]:
    for n in SIZES:
        yield sample(f"levels-{n}", (2, 3, 5), 2, n)
        yield sample(f"inputs-{n}", (2, n, 3), 1, 5, False)
        yield sample(f"sites-{n}", (2, 3, n), 2, 4)
        yield sample(f"batch-{n}", (n, 3), 1, 6)
    for shape in ((0, 4), (0, 4, 3, 3), (2, 0, 3), (2, 4, 0, 3), (1, 1, 1, 1)):
        yield sample(by(shape), shape, 2, 3)


def threaded() -> Iterator[Sample]:
    yield sample("4x40x16x16", (4, 40, 16, 16), 3, 256)
    yield sample("3000x20", (3000, 20), 2, 50)
    yield sample("2x300x40", (2, 300, 40), 1, 600)


def errors() -> Iterator[ErrorInput]:
    given = {"h": torch.randn(2, 4, 3), "weight": torch.randn(6, 4), "bias": torch.randn(6)}
    given["target"] = torch.ones(2, 2, 3, dtype=torch.int64)

    def bad(name: str, error: type[Exception], *words: str, by_value: bool = False, **changed: Any) -> ErrorInput:
        return ErrorInput(name, {**given, **changed}, error, words, by_value)

    yield bad("rank of h", ValueError, "h", "(4,)", h=torch.randn(4))
    yield bad("integer h", TypeError, "h", "torch.int64", h=torch.ones(2, 4, 3, dtype=torch.int64))
    yield bad("float target", TypeError, "target", "torch.float32", target=torch.ones(2, 2, 3))
    yield bad("double weight", TypeError, "weight", "torch.float64", weight=torch.randn(6, 4).double())
    yield bad("half bias", TypeError, "bias", "torch.float16", bias=torch.randn(6).half())
    yield bad("inputs of weight", ValueError, "weight", "[Cout, 4]", "(6, 5)", weight=torch.randn(6, 5))
    yield bad("weight of a convolution", ValueError, "weight", "(6, 4, 1)", weight=torch.randn(6, 4, 1))
    yield bad("size of bias", ValueError, "bias", "(6,)", "(5,)", bias=torch.randn(5))
    yield bad(
        "sites of target", ValueError, "target", "[2, channels, 3]", "(2, 2, 4)", target=torch.ones(2, 2, 4).int()
    )
    yield bad("channels of target", ValueError, "4 channels", "6", target=torch.ones(2, 4, 3).int())
    yield bad("no channel", ValueError, "0 channels", target=torch.ones(2, 0, 3).int())
    yield bad("order", ValueError, "order", "'nonsense'", order="nonsense")
    yield bad("level 3", ValueError, "[0, 3)", "0 to 3", by_value=True, target=torch.tensor([0, 1, 3]).expand(2, 2, 3))
    yield bad(
        "level -1", ValueError, "[0, 3)", "-1 to 1", by_value=True, target=torch.tensor([-1, 1, 1]).expand(2, 2, 3)
    )


register(
    OpSpec(
        name="categorical_nll",
        function=ops.categorical_nll,
        reference=reference.categorical_nll,
        outputs=("nll",),
        roles=dict.fromkeys(("h", "weight", "bias"), "data"),
        batched=frozenset({"h", "target", "nll"}),
        order=1,
        samples=samples,
        shapes=shapes,
        threaded=threaded,
        errors=errors,
        draw=st.builds(
            lambda b, c, n, channels, levels: sample("drawn", (b, c, n), channels, levels),
            *(st.integers(0, 4), st.integers(0, 9), st.sampled_from((0, *SIZES)), st.integers(1, 3)),
            st.sampled_from(SIZES),
        ),
        keeps=lambda s: frozenset({"h", "weight", "bias", "target"}),
    )
)


# --- bernoulli_nll ----------------------------------------------------------------------------------------------------


def bits(
    name: str, shape: tuple[int, ...], channels: int, bias: bool = True, dtype: torch.dtype = torch.int64
) -> Sample:
    given = inputs(name, shape, channels, channels, 2, bias)
    given["target"] = given["target"].to(dtype)
    return Sample(name, given, traits={"bias": bias, "dtype": dtype, "rank": len(shape)})


def bits_samples() -> Iterator[Sample]:
    for i, (bias, dtype) in enumerate(product((True, False), (torch.int64, torch.bool, torch.uint8))):
        for rank in SPATIAL:
            yield bits(f"{rank}-{bias}-{dtype}", (3, 4, *SPATIAL[rank]), 1 + (rank + i) % 3, bias, dtype)


def bits_shapes() -> Iterator[Sample]:
    for n in SIZES:
        yield bits(f"channels-{n}", (2, 3, 5), n)
        yield bits(f"inputs-{n}", (2, n, 3), 2, False)
        yield bits(f"sites-{n}", (2, 3, n), 2)
        yield bits(f"batch-{n}", (n, 3), 1)
    for shape in ((0, 4), (0, 4, 3, 3), (2, 0, 3), (2, 4, 0, 3), (1, 1, 1, 1)):
        yield bits(by(shape), shape, 2)


def bits_threaded() -> Iterator[Sample]:
    yield bits("16x40x64x64", (16, 40, 64, 64), 1)
    yield bits("4x40x16x16", (4, 40, 16, 16), 300)
    yield bits("3000x20", (3000, 20), 50)


def bits_extremes() -> Iterator[Sample]:
    """Logits past the ends of the exponent range, and small: losses are numbers, and most are not 0."""
    sizes = torch.tensor(
        [0, 1e-30, 1e-6, 1e-3, 0.3, 1, 9, 17, 40, 80, 87, 95, 104, 800, 1e4, 1e38], dtype=torch.float64
    )
    z = torch.cat([sizes, -sizes])
    for bit in (0, 1):
        given = {"h": z[None, None], "weight": torch.ones(1, 1).double(), "bias": None}
        yield Sample(f"bit {bit}", {**given, "target": torch.full((1, 1, len(z)), bit)})


def bits_errors() -> Iterator[ErrorInput]:
    given = {"h": torch.randn(2, 4, 3), "weight": torch.randn(2, 4), "bias": torch.randn(2)}
    given["target"] = torch.ones(2, 2, 3, dtype=torch.int64)

    def bad(name: str, error: type[Exception], *words: str, by_value: bool = False, **changed: Any) -> ErrorInput:
        return ErrorInput(name, {**given, **changed}, error, words, by_value)

    yield bad("rank of h", ValueError, "bernoulli_nll", "h", "(4,)", h=torch.randn(4))
    yield bad("float target", TypeError, "target", "bool", "torch.float32", target=torch.ones(2, 2, 3))
    yield bad("double weight", TypeError, "weight", "torch.float64", weight=torch.randn(2, 4).double())
    yield bad("inputs of weight", ValueError, "weight", "[Cout, 4]", "(2, 5)", weight=torch.randn(2, 5))
    yield bad("size of bias", ValueError, "bias", "(2,)", "(5,)", bias=torch.randn(5))
    yield bad("sites of target", ValueError, "[2, channels, 3]", "(2, 2, 4)", target=torch.ones(2, 2, 4).int())
    yield bad("outputs", ValueError, "2 and 6", weight=torch.randn(6, 4), bias=None)
    yield bad("no channel", ValueError, "0 and 2", target=torch.ones(2, 0, 3).int())
    for value in (2, -1):
        wrong = torch.tensor([0, 1, value]).expand(2, 2, 3)
        words = ("0 and 1", f"{min(value, 0)} to {max(value, 1)}")
        yield bad(f"value {value}", ValueError, *words, by_value=True, target=wrong)


register(
    OpSpec(
        name="bernoulli_nll",
        function=ops.bernoulli_nll,
        reference=reference.bernoulli_nll,
        outputs=("nll",),
        roles=dict.fromkeys(("h", "weight", "bias"), "data"),
        batched=frozenset({"h", "target", "nll"}),
        order=1,
        samples=bits_samples,
        shapes=bits_shapes,
        threaded=bits_threaded,
        extremes=bits_extremes,
        errors=bits_errors,
        draw=st.builds(
            lambda b, c, n, channels: bits("drawn", (b, c, n), channels),
            *(st.integers(0, 4), st.integers(0, 9), st.sampled_from((0, *SIZES)), st.integers(1, 9)),
        ),
        keeps=lambda s: frozenset({"h", "weight", "bias", "target"}),
    )
)


# --- the backward ops -------------------------------------------------------------------------------------------------

_NEEDS = ("need_h", "need_weight", "need_bias")


def backward_sample(s: Sample) -> Sample:
    grad = random(f"{s.name} grad_nll", *s.inputs["target"].shape)
    return Sample(s.name, {"grad_nll": grad, **s.inputs}, {**s.options, **dict.fromkeys(_NEEDS, True)}, s.traits)


def calling(op: Any) -> Callable[..., tuple[Tensor, ...]]:
    """The backward op, as the backend in force runs it."""

    def call(**arguments: Any) -> tuple[Tensor, ...]:
        if pygen.backends.forced == "reference":
            return op._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, **arguments)
        return op(**arguments)

    return call


def those_needed(gradients: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    def call(need_h: bool, need_weight: bool, need_bias: bool, **arguments: Any) -> tuple[Tensor, ...]:
        """The reference's gradients; those that are not asked for are empty."""
        needs = (need_h, need_weight, need_bias)
        return tuple(g if need else g.new_empty(0) for g, need in zip(gradients(**arguments), needs, strict=True))

    return call


for _op, _reference, _samples in (
    (torch.ops.pygen.categorical_nll_backward, heads.categorical_nll_backward, samples),
    (torch.ops.pygen.bernoulli_nll_backward, heads.bernoulli_nll_backward, bits_samples),
):
    register(
        OpSpec(
            name=_reference.__name__,
            function=calling(_op.default),
            reference=those_needed(_reference),
            outputs=("grad_h", "grad_weight", "grad_bias"),
            roles={"grad_nll": "accumulate", "h": "data", "weight": "data", "bias": "data"},
            batched=frozenset({"grad_nll", "h", "target", "grad_h"}),
            order=0,
            samples=lambda samples=_samples: map(backward_sample, samples()),
            skips={need: i for i, need in enumerate(_NEEDS)},
            public=False,
        )
    )
