"""categorical_nll and its backward, as the contract suite (tests/harness) sees them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
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


def sample(
    name: str, shape: tuple[int, ...], channels: int, levels: int, bias: bool = True, order: str = "channel"
) -> Sample:
    """h of this shape; logits of a few units."""
    outputs, generator = channels * levels, torch.Generator().manual_seed(zlib.crc32(name.encode()))
    inputs = {
        "h": random(f"{name} h", *shape),
        "weight": 2 * random(f"{name} weight", outputs, shape[1]) / max(1, shape[1]) ** 0.5,
        "bias": random(f"{name} bias", outputs) if bias else None,
        "target": torch.randint(levels, (shape[0], channels, *shape[2:]), generator=generator),
    }
    return Sample(name, inputs, {"order": order}, {"bias": bias, "order": order, "rank": len(shape)})


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


# --- the backward op -------------------------------------------------------------------------------------------------

_BACKWARD = torch.ops.pygen.categorical_nll_backward.default
_NEEDS = ("need_h", "need_weight", "need_bias")


def backward_sample(s: Sample) -> Sample:
    grad = random(f"{s.name} grad_nll", *s.inputs["target"].shape)
    return Sample(s.name, {"grad_nll": grad, **s.inputs}, {**s.options, **dict.fromkeys(_NEEDS, True)}, s.traits)


def call_backward(**arguments: Any) -> tuple[Tensor, ...]:
    if pygen.backends.forced == "reference":
        return _BACKWARD._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, **arguments)
    return _BACKWARD(**arguments)


def reference_backward(need_h: bool, need_weight: bool, need_bias: bool, **arguments: Any) -> tuple[Tensor, ...]:
    """The reference's gradients; those that are not asked for are empty."""
    grads = heads.categorical_nll_backward(**arguments)
    needs = (need_h, need_weight, need_bias)
    return tuple(g if need else g.new_empty(0) for g, need in zip(grads, needs, strict=True))


register(
    OpSpec(
        name="categorical_nll_backward",
        function=call_backward,
        reference=reference_backward,
        outputs=("grad_h", "grad_weight", "grad_bias"),
        roles={"grad_nll": "accumulate", "h": "data", "weight": "data", "bias": "data"},
        batched=frozenset({"grad_nll", "h", "target", "grad_h"}),
        order=0,
        samples=lambda: map(backward_sample, samples()),
        skips={need: i for i, need in enumerate(_NEEDS)},
        public=False,
    )
)
