"""diffusion_loss and its backward op, as the contract suite (tests/harness) sees them.

Tables are given as integers of the same bits, as in tests/diffusion_step/samples.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import pygen
from pygen import ops, reference
from pygen.ops._diffusion import noise_of
from pygen.reference.diffusion_loss import WEIGHT, diffusion_loss_backward
from tests.diffusion_step.samples import ROWS, SEED, SIZES, SPATIAL, bits, floats
from tests.harness.calls import random
from tests.harness.combine import pairwise
from tests.harness.spec import BF16, F16, F32, F64, MIXED_BF16, ErrorInput, OpSpec, Sample, register

FACTORS: dict[str, tuple[Any, ...]] = {
    "noise": ("draws", "given", None),
    "index": ("sample", "int", "counter", "token"),
    "pixels": (True, False),
    "narrow": (False, True),
    "rank": (2, 1, 3, 4, 5),
}
DTYPES = (F32, F64, BF16, F16, MIXED_BF16)


def table(name: str, narrow: bool = False) -> Tensor:
    """Weights above 0, as bits."""
    c = 0.7 * random(f"{name} table", ROWS, 3)
    c[:, WEIGHT] = c[:, WEIGHT].abs() + 0.2
    return bits(c.float() if narrow else c)


def places(index: str, shape: tuple[int, ...]) -> dict[str, Tensor | None]:
    size = {"token": shape[:2], "sample": shape[:1]}.get(index)
    return {
        "counter": torch.tensor(1) if index == "counter" else None,
        "index": None if size is None else (torch.arange(math.prod(size)) % ROWS).view(size),
    }


def sample(
    name: str,
    shape: tuple[int, ...],
    noise: str | None = "given",
    index: str = "sample",
    pixels: bool = False,
    narrow: bool = False,
) -> Sample:
    levels = (random(f"{name} x0", *shape) * 80 + 128).clamp(0, 255).to(torch.uint8)
    inputs = {
        "output": random(f"{name} output", *shape),
        "x0": levels if pixels else random(f"{name} x0", *shape),
        "table": table(name, narrow),
        **places(index, shape),
        "noise": random(f"{name} noise", *shape) if noise == "given" else None,
    }
    options: dict[str, Any] = {"row": 2}
    if noise == "draws":
        options |= {"draws": True, "generator": SEED, "first_sample": 7, "step": 5}
    traits = {"noise": noise, "index": index, "pixels": pixels, "narrow": narrow, "rank": len(shape)}
    return Sample(name, inputs, options, traits)


def on_tensors(function: Any) -> Any:
    """With the table in its own dtype and one argument for the index."""

    @functools.wraps(function)
    def call(
        *, output: Tensor, x0: Tensor, table: Tensor, counter: Tensor | None, index: Tensor | None, row: int,
        **others: Any,
    ) -> Any:  # fmt: skip
        where = row if counter is None and index is None else index if counter is None else counter
        return function(output, x0, floats(table), where, **others)

    return call


def with_noise(function: Any) -> Any:
    """The reference, with the noise that the op draws."""

    @functools.wraps(function)
    def call(output: Tensor, x0: Tensor, table: Tensor, index: Any, **others: Any) -> Any:
        stream = {k: others.pop(k, None) for k in ("draws", "generator", "first_sample", "step")}
        if stream["draws"]:
            where, row = (None, index) if isinstance(index, int) else (index, 0)
            seed = stream["generator"]
            noise = noise_of(output, where, row, None, seed, stream["first_sample"], stream["step"])
            others["noise"] = noise
        return function(output, x0, table, index, **others)

    return call


def samples() -> Iterator[Sample]:
    for i, row in enumerate(pairwise(**FACTORS)):
        rank = row.pop("rank")
        if rank == 1 and row["index"] == "token":
            row["index"] = "sample"
        yield sample(f"{i:02d}", (3, *SPATIAL[rank]), **row)


def awkward() -> Iterator[tuple[int, ...]]:
    yield from ((2, n) for n in SIZES)
    yield from ((0, 3), (0,), (4,), (3, 0, 2), (1, 3, 5, 7), (2, 4, 3, 3), (2, 3, 1, 1), (40, 3), (70, 17))


def shapes() -> Iterator[Sample]:
    noise, index = cycle(("given", "draws", None)), cycle(("sample", "int", "token", "counter"))
    for shape in awkward():
        where = next(index)
        where = "sample" if where == "token" and len(shape) == 1 else where
        yield sample("x".join(map(str, shape)), shape, next(noise), where, pixels=len(shape) % 3 == 2)


def threaded() -> Iterator[Sample]:
    yield sample("3x40000", (3, 40_000), "draws", pixels=True)
    yield sample("2000x40", (2000, 40), "draws")
    yield sample("9x3x61x64", (9, 3, 61, 64), "given")
    yield sample("5x7x3000", (5, 7, 3000), None, "token")
    yield sample("2x900x20", (2, 900, 20), "draws", "token")


def errors() -> Iterator[ErrorInput]:
    def bad(name: str, error: type[Exception], *words: str, by_value: bool = False, **arguments: Any) -> ErrorInput:
        given = {"output": torch.randn(3, 4), "x0": torch.randn(3, 4), "table": bits(torch.randn(2, 3)), "row": 0}
        return ErrorInput(name, {"counter": None, "index": None, **given, **arguments}, error, words, by_value)

    yield bad("rank", ValueError, "[B, ...]", "()", output=torch.tensor(1.0))
    yield bad("integer output", TypeError, "output", "torch.uint8", output=torch.ones(3, 4).byte())
    yield bad("integer x0", TypeError, "x0", "torch.int64", x0=torch.ones(3, 4).long())
    yield bad("shape of x0", ValueError, "x0", "(3, 4)", "(3, 1)", x0=torch.randn(3, 1))
    yield bad("shape of noise", ValueError, "noise", "for output (3, 4)", "(3,)", noise=torch.randn(3))
    yield bad("noise and draws", ValueError, "noise or draws", "both", noise=torch.randn(3, 4), draws=True)
    yield bad("columns", ValueError, "[R, 3]", "(2, 4)", table=bits(torch.randn(2, 4)))
    yield bad("rank of the table", ValueError, "table", "(3,)", table=bits(torch.randn(3)))
    yield bad("no rows in the table", ValueError, "table", "(0, 3)", table=bits(torch.randn(0, 3)))
    yield bad("row", ValueError, "index in [0, 2)", "got -1", row=-1)
    yield bad("index of another type", TypeError, "index", "0.5", row=0.5)
    yield bad("dtype of index", TypeError, "index", "torch.int32", index=torch.zeros(3, dtype=torch.int32))
    yield bad("shape of index", ValueError, "[B, L]", "(4,)", index=torch.zeros(4, dtype=torch.int64))
    yield bad("index", ValueError, "index in [0, 2)", "got 7", by_value=True, index=torch.tensor([0, 1, 7]))
    yield bad("counter", ValueError, "index in [0, 2)", "got -1", by_value=True, counter=torch.tensor(-1))
    yield bad("float ids", TypeError, "sample_ids", "torch.float32", draws=True, sample_ids=torch.ones(3))
    yield bad("step and index", ValueError, "step + index below 2^24", "16777216", draws=True, step=2**24 - 1)


register(
    OpSpec(
        name="diffusion_loss",
        function=on_tensors(ops.diffusion_loss),
        reference=on_tensors(with_noise(reference.diffusion_loss)),
        outputs=("loss",),
        roles={"output": "parameters", "x0": "data", "noise": "data"},
        batched=frozenset({"output", "x0", "index", "noise", "loss"}),
        order=1,
        dtypes=DTYPES,
        samples=samples,
        shapes=shapes,
        threaded=threaded,
        errors=errors,
        draw=st.builds(
            lambda row, *shape: sample("drawn", shape, **{k: v for k, v in row.items() if k != "rank"}),
            st.sampled_from(pairwise(**FACTORS)),
            st.integers(0, 4),
            st.integers(0, 9),
            st.sampled_from(SIZES),
        ),
        keeps=lambda s: frozenset({"loss", "table", "counter", "index", "grad_output"}),
    )
)


# --- the backward op --------------------------------------------------------------------------------------------------


NEEDS = ("need_output", "need_x0", "need_noise")


def backward(
    *, grad: Tensor, difference: Tensor, loss: Tensor, table: Tensor, counter: Tensor | None, index: Tensor | None,
    row: int, **need: bool,
) -> Any:  # fmt: skip
    op = torch.ops.pygen.diffusion_loss_backward.default
    where = index if counter is None else counter
    arguments = (grad, difference, loss, floats(table), where, row)
    dtypes = [difference.dtype if need[name] else None for name in NEEDS]
    if pygen.backends.forced == "reference":
        return op._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments, *dtypes)
    return op(*arguments, *dtypes)


def backward_reference(
    *, grad: Tensor, difference: Tensor, loss: Tensor, table: Tensor, counter: Tensor | None, index: Tensor | None,
    row: int, **need: bool,
) -> Any:  # fmt: skip
    """The reference's gradients; those that are not asked for are empty."""
    where = row if counter is None and index is None else index if counter is None else counter
    found = diffusion_loss_backward(grad, difference, floats(table), where)
    return tuple(
        t.to(difference.dtype) if need[name] else difference.new_empty(0) for t, name in zip(found, NEEDS, strict=True)
    )


def backward_sample(shape: tuple[int, ...], index: str = "sample") -> Sample:
    name = f"{'x'.join(map(str, shape))}-{index}"
    inputs = {
        "grad": random(f"{name} grad", shape[0]),
        "difference": random(f"{name} difference", *shape),
        "loss": random(f"{name} loss", shape[0]),
        "table": table(name),
        **places(index, shape),
    }
    return Sample(name, inputs, {"row": 2, **dict.fromkeys(NEEDS, True)}, {"index": index, "rank": len(shape)})


register(
    OpSpec(
        name="diffusion_loss_backward",
        function=backward,
        reference=backward_reference,
        outputs=("grad_output", "grad_x0", "grad_noise"),
        roles={"grad": "accumulate", "difference": "data", "loss": "accumulate"},
        batched=frozenset({"grad", "difference", "loss", "index", "grad_output", "grad_x0", "grad_noise"}),
        order=0,
        samples=lambda: (
            backward_sample((3, *SPATIAL[rank]), index)
            for rank, index in ((1, "sample"), (2, "int"), (3, "token"), (4, "sample"), (5, "counter"))
        ),
        shapes=lambda: (backward_sample(shape) for shape in awkward()),
        threaded=lambda: (backward_sample((3, 40_000)), backward_sample((5, 7, 3000), "token")),
        skips={name: i for i, name in enumerate(NEEDS)},
        public=False,
    )
)
