"""sample_stats and quantile_abs, as the contract suite (tests/harness) sees them.

Tables and rescalings are given as integers of the same bits, as in tests/diffusion_step/samples.py.
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

from pygen import ops, reference
from pygen.reference.diffusion_step import Columns
from tests.diffusion_loss.samples import places
from tests.diffusion_step.samples import OUTPUTS, ROWS, SPATIAL, bits, floats
from tests.harness.calls import random
from tests.harness.combine import pairwise
from tests.harness.spec import BF16, F16, F32, F64, MIXED_BF16, ErrorInput, OpSpec, Sample, register

SIZES = (1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 511, 512, 513, 1025)
DTYPES = (F32, F64, BF16, F16, MIXED_BF16)


def by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


# --- sample_stats -----------------------------------------------------------------------------------------------------


def pair(shape: tuple[int, ...], both: bool = True) -> Sample:
    name = by(shape) + ("" if both else "-alone")
    b = random(f"{name} b", *shape) + 0.3 if both else None
    return Sample(name, {"a": random(f"{name} a", *shape), "b": b}, traits={"both": both, "rank": len(shape)})


def shapes() -> Iterator[Sample]:
    for i, n in enumerate(SIZES):
        yield pair((2, n), i % 3 > 0)
    for shape in ((0, 3), (0,), (3,), (3, 0, 2), (2, 3, 3, 3), (70, 17)):
        yield pair(shape)
        yield pair(shape, both=False)


def errors() -> Iterator[ErrorInput]:
    def bad(name: str, error: type[Exception], *words: str, **arguments: Any) -> ErrorInput:
        return ErrorInput(name, {"a": torch.randn(3, 4), "b": torch.randn(3, 4), **arguments}, error, words)

    yield bad("rank", ValueError, "[B, ...]", "()", a=torch.tensor(1.0), b=None)
    yield bad("integers", TypeError, "a", "torch.int64", a=torch.ones(3, 4).long())
    yield bad("other integers", TypeError, "b", "torch.uint8", b=torch.ones(3, 4).byte())
    yield bad("shape", ValueError, "b", "(3, 4)", "(3, 1)", b=torch.randn(3, 1))


STATS = register(
    OpSpec(
        name="sample_stats",
        function=ops.sample_stats,
        reference=reference.sample_stats,
        outputs=("stats",),
        roles={"a": "data", "b": "parameters"},
        batched=frozenset({"a", "b", "stats"}),
        order=2,
        dtypes=DTYPES,
        samples=lambda: (pair((3, *SPATIAL[rank]), both) for rank in SPATIAL for both in (True, False)),
        shapes=shapes,
        threaded=lambda: (pair(shape) for shape in ((3, 40_000), (2000, 40), (5, 3, 61, 64), (1, 200_001))),
        errors=errors,
        draw=st.builds(lambda *shape: pair(shape), st.integers(0, 4), st.integers(0, 9), st.sampled_from(SIZES)),
        keeps=lambda sample: frozenset({"a", "b"}),
    )
)


# --- quantile_abs -----------------------------------------------------------------------------------------------------

QUANTILES = (0.995, 0.5, 0.0, 1.0, 0.73)
FACTORS: dict[str, tuple[Any, ...]] = {
    "outputs": (0, 1, 2, 4),
    "index": ("int", "counter", "sample", "token"),
    "rescale": (False, True),
    "pixels": (False, True),
    "narrow": (False, True),
    "q": QUANTILES,
    "rank": (2, 1, 3, 4, 5),
}


def sample(
    name: str,
    shape: tuple[int, ...],
    outputs: int = 1,
    index: str = "int",
    q: float = 0.995,
    rescale: bool = False,
    pixels: bool = False,
    narrow: bool = False,
    more: int = 2,
) -> Sample:
    """more: columns behind those that are read."""
    c = 0.7 * random(f"{name} table", ROWS, Columns.of(outputs).clip + more)
    levels = (random(f"{name} x", *shape) * 80 + 128).clamp(0, 255).to(torch.uint8)
    inputs = {
        "x": levels if pixels else random(f"{name} x", *shape),
        **{m: random(f"{name} {m}", *shape) if j < outputs else None for j, m in enumerate(OUTPUTS)},
        "table": bits(c.float() if narrow else c),
        **places(index, shape),
        "rescale": bits(1 + 0.2 * random(f"{name} rescale", shape[0])) if rescale else None,
    }
    traits = {"outputs": outputs, "index": index, "q": q, "rescale": rescale, "pixels": pixels, "narrow": narrow}
    return Sample(name, inputs, {"q": q, "row": 2}, traits)


def on_tensors(function: Any) -> Any:
    """With its list as tensors of their own."""

    @functools.wraps(function)
    def call(*, x: Tensor, table: Tensor, counter: Tensor | None, index: Tensor | None, row: int, **others: Any) -> Any:
        outputs = [t for t in map(others.pop, OUTPUTS) if t is not None]
        rescale = None if others["rescale"] is None else floats(others["rescale"])
        where = row if counter is None and index is None else index if counter is None else counter
        return function(x, outputs, floats(table), where, **others | {"rescale": rescale})

    return call


def quantile_samples() -> Iterator[Sample]:
    for i, row in enumerate(pairwise(**FACTORS)):
        rank = row.pop("rank")
        if rank == 1 and row["index"] == "token":
            row["index"] = "sample"
        yield sample(f"{i:02d}", (3, *SPATIAL[rank]), more=i % 3, **row)


def quantile_shapes() -> Iterator[Sample]:
    """Sizes about those at which elements are counted before they are looked at."""
    q = cycle(QUANTILES)
    for n in (*SIZES, 2047, 2048, 2049, 5000):
        yield sample(f"2x{n}", (2, n), q=next(q), index=("int", "sample")[n % 2], pixels=n % 5 == 0)
    for shape in ((0, 3), (0,), (5,), (2, 4, 3, 3), (2, 3, 1, 1), (40, 3), (2, 700, 5)):
        yield sample(by(shape), shape, q=next(q), index="int" if len(shape) == 1 else "token")


def quantile_errors() -> Iterator[ErrorInput]:
    def bad(name: str, error: type[Exception], *words: str, by_value: bool = False, **arguments: Any) -> ErrorInput:
        given = {"x": torch.randn(3, 4), "m0": torch.randn(3, 4), "row": 0, "q": 0.5, "table": bits(torch.randn(2, 3))}
        return ErrorInput(name, dict.fromkeys((*OUTPUTS, "counter", "index", "rescale")) | given | arguments, error,
                          words, by_value)  # fmt: skip

    yield bad("rank of x", ValueError, "[B, ...]", "()", x=torch.tensor(1.0))
    yield bad("integer x", TypeError, "x", "torch.int64", x=torch.ones(3, 4).long())
    yield bad("nothing", ValueError, "an element", "(3, 0)", x=torch.randn(3, 0), m0=torch.randn(3, 0))
    yield bad("shape of an output", ValueError, "output 0", "(3, 4)", "(3, 1)", m0=torch.randn(3, 1))
    yield bad("dtype of an output", TypeError, "output 0", "torch.uint8", m0=torch.ones(3, 4).byte())
    yield bad("columns", ValueError, "[R, 3 or more]", "(2, 2)", table=bits(torch.randn(2, 2)))
    yield bad("row", ValueError, "index in [0, 2)", "got 2", row=2)
    yield bad("index of another type", TypeError, "index", "0.5", row=0.5)
    yield bad("dtype of index", TypeError, "index", "torch.int32", index=torch.zeros(3, dtype=torch.int32))
    yield bad("shape of index", ValueError, "[B, L]", "(4,)", index=torch.zeros(4, dtype=torch.int64))
    yield bad("index", ValueError, "index in [0, 2)", "got 7", by_value=True, index=torch.tensor([0, 1, 7]))
    yield bad("shape of rescale", ValueError, "rescale", "(3,)", "(3, 1)", rescale=bits(torch.randn(3, 1)))
    yield bad("q above 1", ValueError, "q in [0, 1]", "1.5", q=1.5)
    yield bad("no q", ValueError, "q in [0, 1]", "nan", q=math.nan)
    yield bad("type of q", TypeError, "q", "'0.5'", q="0.5")


QUANTILE = register(
    OpSpec(
        name="quantile_abs",
        function=on_tensors(ops.quantile_abs),
        reference=on_tensors(reference.quantile_abs),
        outputs=("quantile",),
        roles={"x": "data", **dict.fromkeys(OUTPUTS, "parameters")},
        batched=frozenset({"x", *OUTPUTS, "index", "rescale", "quantile"}),
        order=0,
        dtypes=DTYPES,
        samples=quantile_samples,
        shapes=quantile_shapes,
        threaded=lambda: (
            sample("3x40000", (3, 40_000), 2),
            sample("2000x40", (2000, 40), index="sample", q=0.73),
            sample("1x300000", (1, 300_000), rescale=True),
            sample("5x7x3000", (5, 7, 3000), index="token", pixels=True),
        ),
        errors=quantile_errors,
        draw=st.builds(
            lambda row, *shape: sample("drawn", shape, **{k: v for k, v in row.items() if k != "rank"}),
            st.sampled_from(pairwise(**FACTORS)),
            st.integers(0, 4),
            st.integers(1, 9),
            st.sampled_from(SIZES),
        ),
    )
)
