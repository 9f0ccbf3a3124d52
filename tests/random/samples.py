"""The ops of the random stream, as the contract suite (tests/harness) sees them. Seeds are given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

import pygen
from pygen import random
from pygen.reference import random as reference
from tests.harness.calls import random as values
from tests.harness.spec import BF16, F16, F32, F64, ErrorInput, OpSpec, Sample, register

KINDS = ("bits", "uniform", "normal", "logistic", "gumbel")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SEED = 2**64 - 5  # both words of the key count

# Rows that are parts of a tile, of a word of it, several tiles; their ends and the tiles' apart.
ROWS = ((), (1,), (2,), (3, 5), (16,), (17,), (63,), (64,), (65,), (130,), (1021,))
OFFSETS = (0, 5, 63, 64, 1000)


def step_word(step: int = 0, draw: int = 0) -> int:
    return draw << 24 | step


# --- numbers ---------------------------------------------------------------------------------------------------------


def numbers(sample_ids: Tensor, kind: str, rest: tuple[int, ...], **options: Any) -> Tensor:
    """A distribution's elements, [B, *rest]."""
    return getattr(random, kind)((sample_ids.shape[0], *rest), sample_ids=sample_ids, **options)


def numbers_reference(
    sample_ids: Tensor,
    kind: str,
    rest: tuple[int, ...],
    generator: int,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
    dtype: torch.dtype = torch.int32,
) -> Tensor:
    """The same, from the reference."""
    size = (sample_ids.shape[0], *rest)
    return reference.random(sample_ids, size, generator, step_word(step, draw), offset, kind, dtype)


def ids(n: int) -> Tensor:
    """Ids of which every word counts."""
    return (torch.arange(n) - 1) * 0x1_2345_6789


def number_samples() -> Iterator[Sample]:
    dtypes, offsets = cycle(DTYPES), cycle(OFFSETS)
    for kind in KINDS:
        for i, rest in enumerate(ROWS):
            options = {"kind": kind, "rest": rest, "generator": SEED, "step": i, "draw": 3, "offset": next(offsets)}
            if kind != "bits":
                options["dtype"] = next(dtypes)
            traits = {"kind": kind, "dtype": options.get("dtype")}
            yield Sample(f"{kind}-{i}", {"sample_ids": ids(3)}, options, traits)


def number_shapes() -> Iterator[Sample]:
    for kind in KINDS:
        dtype = {} if kind == "bits" else {"dtype": torch.float32}
        for batch, rest in ((0, (3,)), (2, (0,)), (40, (3,)), (33, (1,)), (5, (3, 1, 7)), (1, (4099,))):
            options = {"kind": kind, "rest": rest, "generator": 0, **dtype}
            yield Sample(f"{kind}-{batch}-{rest}", {"sample_ids": ids(batch)}, options)


def number_errors() -> Iterator[ErrorInput]:
    def bad(name: str, error: type[Exception], *words: str, **arguments: Any) -> ErrorInput:
        given = {"sample_ids": torch.arange(3), "kind": "normal", "rest": (4,), "generator": 0, **arguments}
        return ErrorInput(name, given, error, words)

    yield bad("dtype", TypeError, "torch.int64", dtype=torch.int64)
    yield bad("float ids", TypeError, "torch.float32", sample_ids=torch.ones(3))
    yield bad("rank of ids", ValueError, "(3, 1)", sample_ids=torch.ones(3, 1).long())
    yield bad("both ids", ValueError, "first_sample", "got both", first_sample=1)
    yield bad("negative size", ValueError, "(3, -1)", rest=(-1,))
    yield bad("too many elements", ValueError, "2^34", rest=(2,), offset=2**34 - 1)
    yield bad("negative offset", ValueError, "offset in [0, ", "-1", offset=-1)
    yield bad("float offset", TypeError, "offset", "1.0", offset=1.0)
    for name, end in (("step", 2**24), ("draw", 256)):
        yield bad(name, ValueError, name, str(end), **{name: end})
        yield bad(f"negative {name}", ValueError, name, "-1", **{name: -1})
        yield bad(f"float {name}", TypeError, name, "0.5", **{name: 0.5})
    yield bad("seed", ValueError, "2^64", generator=2**64)
    yield bad("negative seed", ValueError, "-1", generator=-1)
    yield bad("type of seed", TypeError, "str", generator="1")


def huge(device: torch.device) -> None:
    """The last elements of more than 2^31 are those of a call of their own."""
    shape, n = (2, 2**30 + 1000), 777
    full = random.uniform(shape, generator=1, dtype=torch.bfloat16, device=device)
    part = random.uniform((1, n), generator=1, first_sample=1, offset=shape[1] - n, dtype=torch.bfloat16, device=device)
    assert torch.equal(full[1:, -n:], part)


NUMBERS = register(
    OpSpec(
        name="random",
        function=numbers,
        reference=numbers_reference,
        outputs=("out",),
        roles={},
        batched=frozenset({"sample_ids", "out"}),
        order=0,
        dtypes=(F32,),
        samples=number_samples,
        shapes=number_shapes,
        threaded=lambda: (
            Sample(f"long-{kind}", {"sample_ids": ids(7)}, {"kind": kind, "rest": (70_001,), "generator": 3} | more)
            for kind, more in (("bits", {}), ("normal", {"dtype": torch.float32}))
        ),
        errors=number_errors,
        huge=huge,
        huge_gb=5,
        exact=True,
        public=False,
    )
)


# --- bernoulli -------------------------------------------------------------------------------------------------------


def bernoulli_reference(p: Tensor, generator: int, step: int = 0, draw: int = 0, offset: int = 0) -> Tensor:
    """The same, for samples 0, 1, ..."""
    return reference.bernoulli(p, torch.arange(len(p), device=p.device), generator, step_word(step, draw), offset)


def probabilities(*shape: int) -> Tensor:
    """Small ones too, and both ends."""
    p = values(f"p{shape}", *shape).sigmoid() ** 6
    p.view(-1)[::7], p.view(-1)[3::7] = 0.0, 1.0
    return p


def bernoulli_samples() -> Iterator[Sample]:
    for i, shape in enumerate(((4,), (3, 5), (3, 130), (2, 3, 4, 5), (1, 3000))):
        options = {"generator": SEED, "step": i, "draw": 1, "offset": OFFSETS[i]}
        yield Sample(f"bernoulli-{i}", {"p": probabilities(*shape)}, options, {})


def bernoulli_errors() -> Iterator[ErrorInput]:
    def bad(name: str, error: type[Exception], *words: str, by_value: bool = False, **arguments: Any) -> ErrorInput:
        return ErrorInput(name, {"generator": 0, **arguments}, error, words, by_value)

    yield bad("integers", TypeError, "torch.int64", p=torch.ones(3).long())
    yield bad("scalar", ValueError, "()", p=torch.tensor(0.5))
    yield bad("ids", ValueError, "(3,)", "(2,)", p=torch.ones(3), sample_ids=torch.arange(2))
    for value in (-1e-9, 1.0001, math.nan, math.inf):
        p = torch.tensor([[0.5, value]])
        yield bad(f"p {value}", ValueError, "[0, 1]", str(p[0, 1].item()), p=p, by_value=True)
        yield bad(f"p {value} float64", ValueError, "[0, 1]", p=p.double(), by_value=True)


BERNOULLI = register(
    OpSpec(
        name="bernoulli",
        function=random.bernoulli,
        reference=bernoulli_reference,
        outputs=("out",),
        roles={"p": "data"},
        batched=frozenset({"p", "out"}),
        order=0,
        dtypes=(F32, F64, BF16, F16),
        samples=bernoulli_samples,
        shapes=lambda: (
            Sample(f"bernoulli-{s}", {"p": probabilities(*s)}, {"generator": 1})
            for s in ((0, 3), (3, 0), (40, 3), (9, 1))
        ),
        threaded=lambda: [Sample("bernoulli-long", {"p": probabilities(7, 70_001)}, {"generator": 1})],
        errors=bernoulli_errors,
        exact=True,
        public=False,
    )
)


# --- categorical -----------------------------------------------------------------------------------------------------


def categorical_reference(logits: Tensor, generator: int, step: int = 0, draw: int = 0, offset: int = 0) -> Tensor:
    """The same, for samples 0, 1, ..."""
    samples = torch.arange(len(logits), device=logits.device)
    return reference.categorical(logits, samples, generator, step_word(step, draw), offset)


def logits(*shape: int) -> Tensor:
    """Of a wide range, some of them -inf, one of each row large."""
    x = 6 * values(f"logits{shape}", *shape)
    x[..., 1::5] = -math.inf
    x[..., -1] = 30 * values(f"offset{shape}", *shape[:-1])
    return x


def categorical_samples() -> Iterator[Sample]:
    for i, shape in enumerate(((3, 1), (3, 2), (4, 3, 10), (2, 17, 65), (3, 300), (2, 2, 2, 16), (2, 64))):
        options = {"generator": SEED, "step": i, "draw": 1, "offset": OFFSETS[i % 5]}
        yield Sample(f"categorical-{i}", {"logits": logits(*shape)}, options, {"many": shape[-1] > 64})


def categorical_errors() -> Iterator[ErrorInput]:
    def bad(name: str, error: type[Exception], *words: str, by_value: bool = False, **arguments: Any) -> ErrorInput:
        return ErrorInput(name, {"generator": 0, **arguments}, error, words, by_value)

    inf = math.inf
    yield bad("integers", TypeError, "torch.int64", logits=torch.ones(3, 2).long())
    yield bad("rank", ValueError, "(3,)", logits=torch.ones(3))
    yield bad("no category", ValueError, "0", logits=torch.ones(3, 0))
    yield bad("nothing possible", ValueError, "-inf", logits=torch.tensor([[0.0, 0.0], [-inf, -inf]]), by_value=True)
    yield bad("infinite", ValueError, "got inf", logits=torch.tensor([[0.0, inf]]), by_value=True)
    yield bad("NaN", ValueError, "got nan", logits=torch.tensor([[0.0, math.nan]]), by_value=True)


CATEGORICAL = register(
    OpSpec(
        name="categorical",
        function=random.categorical,
        reference=categorical_reference,
        outputs=("out",),
        roles={"logits": "data"},
        batched=frozenset({"logits", "out"}),
        order=0,
        dtypes=(F32, F64, BF16, F16),
        samples=categorical_samples,
        shapes=lambda: (
            Sample(f"categorical-{s}", {"logits": logits(*s)}, {"generator": 1})
            for s in ((0, 3), (3, 0, 2), (40, 3), (2, 63), (2, 128), (2, 1021), (1, 17_000))
        ),
        threaded=lambda: [Sample("categorical-many", {"logits": logits(2000, 3, 100)}, {"generator": 1})],
        errors=categorical_errors,
        exact=True,
        public=False,
    )
)


# --- dequantize ------------------------------------------------------------------------------------------------------


def dequantize_reference(
    x: Tensor,
    noise: Tensor | None = None,
    levels: int = 256,
    dtype: torch.dtype | None = None,
    generator: int = 0,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
    scale: float = 1.0,
    shift: float = 0.0,
) -> Tensor:
    """(x + u) scale + shift."""
    dtype = dtype or (torch.float32 if noise is None else noise.dtype)
    samples = torch.arange(len(x), device=x.device)
    return reference.dequantize(
        x, noise, samples, generator, step_word(step, draw), offset, levels, scale, shift, dtype
    ).contiguous()


def dequantize(x: Tensor, noise: Tensor | None = None, **options: Any) -> Tensor:
    return pygen.ops.dequantize(x, noise=noise, **({} if noise is None else {"dtype": noise.dtype}), **options)


dequantize.__doc__ = pygen.ops.dequantize.__doc__


def level_samples() -> Iterator[Sample]:
    types = cycle((torch.uint8, torch.int64, torch.int16, torch.uint8, torch.int32, torch.int8))
    shapes = ((4,), (3, 5), (3, 130), (2, 3, 4, 5), (1, 3000), (40, 3))
    for i, shape in enumerate(shapes):
        top = (17, 256, 100_000, 256, 2**25, 128)[i]
        dtype = next(types)
        x = (values(f"levels{shape}", *shape).sigmoid() * min(top, torch.iinfo(dtype).max)).to(dtype)
        options = {"levels": top, "generator": SEED, "step": i, "offset": OFFSETS[i % 5]}
        if i % 2:
            options |= {"scale": 2 / top, "shift": -1.0}
        yield Sample(f"drawn-{i}", {"x": x}, options, {"noise": False})
        if x.numel() < 200:
            given = {"x": x, "noise": values(f"noise{shape}", *shape).sigmoid()}
            yield Sample(f"given-{i}", given, options, {"noise": True, "scale": i % 2})


def level_errors() -> Iterator[ErrorInput]:
    def bad(name: str, error: type[Exception], *words: str, by_value: bool = False, **arguments: Any) -> ErrorInput:
        return ErrorInput(name, {"x": x, "levels": 4, **arguments}, error, words, by_value)

    x = torch.tensor([[0, 1, 2, 3]])
    yield bad("floats", TypeError, "torch.float32", x=x.float())
    yield bad("rank", ValueError, "()", x=x[0, 0])
    yield bad("shape of noise", ValueError, "(1, 3)", noise=torch.rand(1, 3))
    yield bad("no levels", ValueError, "0", levels=0)
    yield bad("too large", ValueError, "[0, 4)", "got 4", x=x + 1, by_value=True)
    yield bad("negative", ValueError, "[0, 4)", "got -1", x=x - 1, by_value=True)


DEQUANTIZE = register(
    OpSpec(
        name="dequantize",
        function=dequantize,
        reference=dequantize_reference,
        outputs=("out",),
        roles={"noise": "data"},
        batched=frozenset({"x", "noise", "out"}),
        order=2,
        dtypes=(F32, F64, BF16, F16),
        samples=level_samples,
        shapes=lambda: (
            Sample(f"levels-{s}", {"x": torch.zeros(s).byte()}, {"levels": 3, "generator": 1})
            for s in ((0, 3), (3, 0), (9, 1), (2, 1025))
        ),
        threaded=lambda: [Sample("levels-long", {"x": torch.ones(7, 70_001).byte()}, {"levels": 2, "generator": 1})],
        errors=level_errors,
        keeps=lambda sample: frozenset(),
    )
)
