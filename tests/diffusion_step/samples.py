"""diffusion_step as the contract suite (tests/harness) sees it.

The suite differentiates in, and rounds, every floating-point input. Tables, rescalings and thresholds are neither for
it: they are given as integers of the same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import pygen
from pygen import ops, reference
from pygen.ops.diffusion_step import StepOptions
from pygen.ops.random import samples_of
from pygen.reference.diffusion_step import Columns, Each, arithmetic, diffusion_step_backward, width
from pygen.reference.random import random as reference_random
from tests.harness.calls import random
from tests.harness.combine import pairwise
from tests.harness.spec import BF16, F16, F32, F64, MIXED_BF16, ErrorInput, OpSpec, Sample, register

OUTPUTS, HISTORY = ("m0", "m1", "m2", "m3"), ("h0", "h1", "h2", "h3")
RESULTS = ("y0", "y1", "y2", "next")
ROWS = 3  # of a table
SEED = 2**63 + 5

FACTORS: dict[str, tuple[Any, ...]] = {
    "outputs": (0, 1, 2, 4),
    "history": (0, 1, 4),
    "rows": (1, 2, 3),
    "noise": (None, "given", "draws"),
    "index": ("int", "counter", "sample", "token"),
    "clip": (math.inf, 0.8),
    "rescale": (False, True),
    "threshold": (False, True),
    "log_std": (False, True),
    "known": (None, "plain", "noisy", "bytes"),
    "copies": (0, 1, 2),
    "pixels": (False, True),
    "rank": (2, 1, 3, 4, 5),
    "narrow": (False, True),
}
SPATIAL = {1: (), 2: (5,), 3: (2, 3), 4: (2, 3, 2), 5: (2, 2, 1, 2)}


def bits(values: Tensor) -> Tensor:
    return values.view({8: torch.int64, 4: torch.int32}[values.element_size()])


def floats(values: Tensor) -> Tensor:
    return values.view({8: torch.float64, 4: torch.float32}[values.element_size()])


def table(name: str, outputs: int, history: int, rows: int, clip: float, narrow: bool = False) -> Tensor:
    """Coefficients of the size that samplers have, as bits."""
    c = 0.7 * random(f"{name} table", ROWS, width(outputs, history, rows))
    c[:, Columns.of(outputs).clip] = clip
    return bits(c.float() if narrow else c)


def sample(
    name: str,
    shape: tuple[int, ...],
    outputs: int = 1,
    history: int = 0,
    rows: int = 1,
    noise: str | None = None,
    index: str = "int",
    clip: float = 0.8,
    rescale: bool = False,
    threshold: bool = False,
    log_std: bool = False,
    known: str | None = None,
    copies: int = 0,
    pixels: bool = False,
    narrow: bool = False,
) -> Sample:
    """x of this shape. Draws have no gradient of log_std and known_mask, which are left out beside them."""

    def draw(role: str, there: bool = True) -> Tensor | None:
        return random(f"{name} {role}", *shape) if there else None

    def levels(role: str) -> Tensor:
        return (random(f"{name} {role}", *shape) * 80 + 128).clamp(0, 255).to(torch.uint8)

    drawn = noise == "draws"
    known = None if drawn else known
    batch, tokens = shape[0], shape[:2]
    by_sample, by_token = (torch.arange(math.prod(size)) % ROWS for size in ((batch,), tokens))
    inputs = {
        "x": levels("x") if pixels else draw("x"),
        **{m: draw(m, j < outputs) for j, m in enumerate(OUTPUTS)},
        **{h: draw(h, i < history) for i, h in enumerate(HISTORY)},
        "table": table(name, outputs, history, rows, clip, narrow),
        "counter": torch.tensor(1) if index == "counter" else None,
        "index": by_token.view(tokens) if index == "token" else by_sample if index == "sample" else None,
        "noise": draw("noise", noise == "given"),
        "rescale": bits(1 + 0.2 * random(f"{name} rescale", batch)) if rescale else None,
        "threshold": bits(1 + 0.4 * random(f"{name} threshold", batch).tanh()) if threshold else None,
        "log_std": draw("log_std", log_std and not drawn),
        "known": levels("known") if known == "bytes" else draw("known", known is not None),
        "known_mask": None if known is None else random(f"{name} mask", *shape).sigmoid(),
        "known_noise": draw("known_noise", known == "noisy"),
    }
    options = {"rows": rows, "copies": copies, "row": 2}
    if drawn:
        options |= {"draws": True, "generator": SEED, "first_sample": 7, "step": 5}
    traits = {"outputs": outputs, "history": history, "rows": rows, "noise": noise, "index": index, "known": known}
    traits |= {"clip": clip, "rescale": rescale, "threshold": threshold, "log_std": log_std and not drawn}
    return Sample(name, inputs, options, traits | {"copies": copies, "pixels": pixels, "narrow": narrow})


def on_tensors(function: Any) -> Any:
    """With its lists as tensors of their own, and four results for every call: those that are not there are empty."""

    @functools.wraps(function)
    def call(*, x: Tensor, table: Tensor, counter: Tensor | None, index: Tensor | None, row: int, **others: Any) -> Any:
        lists = [[t for t in map(others.pop, names) if t is not None] for names in (OUTPUTS, HISTORY)]
        for name in ("rescale", "threshold"):
            others[name] = None if others[name] is None else floats(others[name])
        if x.dtype == torch.uint8:  # whose results are of the others' dtype, which the suite chooses
            given = (*lists[0], *lists[1], others["noise"], others["known_noise"])
            dtype = next((t.dtype for t in given if t is not None and t.is_floating_point()), torch.float32)
            others.setdefault("dtypes", [dtype] * (others["rows"] + (others["copies"] > 0)))
        where = row if counter is None and index is None else index if counter is None else counter
        results = function(x, lists[0], floats(table), where, history=lists[1], **others)
        last = results[others["rows"] :] or [torch.empty(0, device=x.device)]
        absent = [torch.empty(0, device=x.device) for _ in range(3 - others["rows"])]
        return (*results[: others["rows"]], *absent, *last)

    return call


def with_noise(function: Any) -> Any:
    """The reference, with the noise that the op draws."""

    @functools.wraps(function)
    def call(x: Tensor, outputs: Any, table: Tensor, index: Any, **others: Any) -> Any:
        stream = {k: others.pop(k, None) for k in ("draws", "generator", "first_sample", "step")}
        if stream["draws"]:
            step = stream["step"] + (int(index) if isinstance(index, int) or index.dim() == 0 else 0)
            ids = samples_of(torch.empty(0, dtype=torch.int64, device=x.device), stream["first_sample"], len(x))
            others["noise"] = reference_random(ids, x.shape, stream["generator"], step, 0, "normal", torch.float32)
        return function(x, outputs, table, index, **others)

    return call


def samples() -> Iterator[Sample]:
    for i, row in enumerate(pairwise(**FACTORS)):
        rank = row.pop("rank")
        if rank == 1 and row["index"] == "token":
            row["index"] = "sample"
        yield sample(f"{i:02d}", (3, *SPATIAL[rank]), **row)


SIZES = (0, 1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 255, 257, 1021, 1025)


def shapes() -> Iterator[Sample]:
    for i, n in enumerate(SIZES):
        kind = {"noise": ("given", "draws")[i % 2], "history": i % 3, "rows": 1 + i % 3, "copies": i % 2}
        yield sample(f"2x{n}", (2, n), index=("int", "sample")[i // 2 % 2], pixels=i % 5 == 4, **kind)
        yield sample(f"{n}", (n,), threshold=i % 2 == 0)
    for shape in (
        (0, 3),
        (0,),
        (3, 0, 2),
        (1, 3, 5, 7),
        (2, 4, 3, 3),
        (2, 3, 1, 1),
        (40, 3),
        (70, 17),
        (2, 2, 3, 2, 2),
    ):
        for index, noise in product(("int", "token"), (None, "draws")):
            if len(shape) > 1 or index == "int":
                yield sample(f"{'x'.join(map(str, shape))}-{index}-{noise}", shape, index=index, noise=noise, copies=2)


def threaded() -> Iterator[Sample]:
    yield sample("3x40000", (3, 40_000), 2, history=1, rows=2)
    yield sample("2000x40", (2000, 40), noise="draws", index="sample", copies=1)
    yield sample("9x3x61x64", (9, 3, 61, 64), noise="draws")
    yield sample("5x7x3000", (5, 7, 3000), noise="given", index="token", log_std=True, rescale=True)


def draw() -> st.SearchStrategy[Sample]:
    rest = st.lists(st.sampled_from((0, 1, 2, 3, 5, 8, 13, 16, 17, 33, 64)), max_size=3)
    rows = st.sampled_from(pairwise(**{k: v for k, v in FACTORS.items() if k != "rank"}))

    def build(row: dict[str, Any], batch: int, dimensions: list[int]) -> Sample:
        index = "sample" if row["index"] == "token" and not dimensions else row["index"]
        return sample("drawn", (batch, *dimensions), **row | {"index": index})

    return st.builds(build, rows, st.integers(0, 4), rest)


def errors() -> Iterator[ErrorInput]:
    def bad(name: str, error: type[Exception], *words: str, by_value: bool = False, **arguments: Any) -> ErrorInput:
        absent = ("noise", "known_noise", "counter", "index", "rescale", "threshold")
        inputs = dict.fromkeys((*OUTPUTS, *HISTORY, *absent))
        given = {"x": torch.randn(3, 4), "m0": torch.randn(3, 4), "row": 0, "rows": 1, "copies": 0}
        given |= {"table": bits(torch.randn(2, width(1, 0, 1)))}
        return ErrorInput(name, inputs | given | arguments, error, words, by_value)

    yield bad("rank of x", ValueError, "[B, ...]", "()", x=torch.tensor(1.0))
    yield bad("integer x", TypeError, "x", "torch.int64", x=torch.ones(3, 4).long())
    yield bad("shape of an output", ValueError, "output 0", "(3, 4)", "(3, 1)", m0=torch.randn(3, 1))
    yield bad("dtype of an output", TypeError, "output 0", "torch.uint8", m0=torch.ones(3, 4).byte())
    yield bad("shape of history", ValueError, "history 0", "(4,)", h0=torch.randn(4))
    yield bad("no rows", ValueError, "1 to 3 rows", "0", rows=0)
    yield bad("rows", ValueError, "1 to 3 rows", "4", rows=4)
    yield bad("copies", ValueError, "copies", "-1", copies=-1)
    yield bad("columns", ValueError, "table", "[R, 14]", "(2, 13)", h0=torch.randn(3, 4))
    yield bad("rank of the table", ValueError, "table", "(13,)", table=bits(torch.randn(13)))
    yield bad("no rows in the table", ValueError, "table", "(0, 13)", table=bits(torch.randn(0, 13)))
    yield bad("row", ValueError, "index in [0, 2)", "got 2", row=2)
    yield bad("negative row", ValueError, "index in [0, 2)", "got -1", row=-1)
    yield bad("index of another type", TypeError, "index", "0.5", row=0.5)
    yield bad("dtype of index", TypeError, "index", "torch.int32", index=torch.zeros(3, dtype=torch.int32))
    yield bad("shape of index", ValueError, "[B, L]", "(4,)", index=torch.zeros(4, dtype=torch.int64))
    yield bad("rank of index", ValueError, "[B, L]", "(3, 4, 1)", index=torch.zeros(3, 4, 1, dtype=torch.int64))
    yield bad("index", ValueError, "index in [0, 2)", "got 7", by_value=True, index=torch.tensor([0, 1, 7]))
    yield bad("counter", ValueError, "index in [0, 2)", "got -1", by_value=True, counter=torch.tensor(-1))
    yield bad("shape of noise", ValueError, "noise", "(3,)", noise=torch.randn(3))
    yield bad("noise and draws", ValueError, "noise or draws", "both", noise=torch.randn(3, 4), draws=True)
    yield bad("shape of rescale", ValueError, "rescale", "(3,)", "(3, 1)", rescale=bits(torch.randn(3, 1)))
    yield bad("shape of threshold", ValueError, "threshold", "(3,)", "()", threshold=bits(torch.randn(())))
    yield bad("known alone", ValueError, "known and known_mask", "known alone", known=torch.randn(3, 4))
    yield bad("mask alone", ValueError, "known and known_mask", "known_mask alone", known_mask=torch.randn(3, 4))
    yield bad("known_noise alone", ValueError, "known_noise beside known", "alone", known_noise=torch.randn(3, 4))
    yield bad("dtypes", ValueError, "expected 1 dtypes", "got 2", dtypes=[torch.float32] * 2)
    yield bad("integer dtypes", TypeError, "dtypes among", "int32", dtypes=[torch.int32])
    yield bad("rank of ids", ValueError, "sample_ids", "(3, 1)", draws=True, sample_ids=torch.ones(3, 1).long())
    yield bad("float ids", TypeError, "sample_ids", "torch.float32", draws=True, sample_ids=torch.ones(3))
    yield bad("both ids", ValueError, "first_sample", "both", draws=True, sample_ids=torch.arange(3), first_sample=1)
    yield bad("step", ValueError, "step", "16777216", draws=True, step=2**24)
    yield bad("step and index", ValueError, "step + index below 2^24", "16777216", draws=True, step=2**24 - 1)
    yield bad("seed", ValueError, "seed", "-1", draws=True, generator=-1)


def keeps(s: Sample) -> frozenset[str]:
    kept = {"x", *OUTPUTS, "table", "counter", "index", "rescale", "threshold", "known_mask"}
    if s.inputs["known_mask"] is not None:
        kept |= s.inputs.keys()
    if s.inputs["log_std"] is not None:
        kept |= {"noise", "log_std"}
    return frozenset(kept)


def allowance(s: Sample, inputs: Any, outputs: Any, upstream: Any, dtypes: Any) -> dict[str, float]:
    """Rounding of the terms, where eager's on inputs near these says nothing: bytes and drawn noise have none near."""
    if any(tensor is not None and tensor.is_floating_point() for tensor in s.inputs.values()):
        return {}
    c = floats(s.inputs["table"])
    largest = c[c.isfinite()].abs().max().item()
    return dict.fromkeys(RESULTS, 2 * torch.finfo(dtypes.accumulate).eps * largest)


STEP = register(
    OpSpec(
        name="diffusion_step",
        function=on_tensors(ops.diffusion_step),
        reference=on_tensors(with_noise(reference.diffusion_step)),
        outputs=RESULTS,
        roles={
            **dict.fromkeys((*OUTPUTS, *HISTORY), "parameters"),
            **dict.fromkeys(("x", "noise", "log_std", "known", "known_mask", "known_noise"), "data"),
        },
        batched=frozenset(
            {"x", *OUTPUTS, *HISTORY, "index", "noise", "rescale", "threshold", "log_std", "known", "known_mask",
             "known_noise", "y0", "y1", "y2"}
        ),
        order=1,
        dtypes=(F32, F64, BF16, F16, MIXED_BF16),
        samples=samples,
        shapes=shapes,
        threaded=threaded,
        errors=errors,
        draw=draw(),
        keeps=keeps,
        allowance=allowance,
    )
)  # fmt: skip


# --- the backward op --------------------------------------------------------------------------------------------------

GRADS = ("g0", "g1", "g2", "g3")
GIVEN = ("noise", "rescale", "threshold", "log_std", "known", "known_mask", "known_noise")
FOUND = ("x", *OUTPUTS, *HISTORY, "noise", "log_std", "known", "known_mask", "known_noise")


def backward_samples() -> Iterator[Sample]:
    """Those that draw no noise and repeat no batch, with gradients of their results."""
    for s in samples():
        count = s.options["rows"] + s.options["copies"]
        if "draws" not in s.options and s.options["copies"] < 2:
            drawn = [random(f"{s.name} {g}", *s.inputs["x"].shape) for g in GRADS[:count]]
            grads = dict.fromkeys(GRADS) | dict(zip(GRADS, drawn, strict=False))
            yield Sample(s.name, {**grads, **s.inputs}, s.options, s.traits)


def on_lists(function: Any) -> Any:
    """With tensors of their own for its lists; of the gradients of what is not there empty ones."""

    @functools.wraps(function)
    def call(*, x: Tensor, table: Tensor, row: int, rows: int, copies: int, **inputs: Any) -> tuple[Tensor, ...]:
        grads, outputs, past = ([inputs[k] for k in ks if inputs[k] is not None] for ks in (GRADS, OUTPUTS, HISTORY))
        given = {k: inputs[k] for k in GIVEN}
        for k in ("rescale", "threshold"):
            given[k] = None if given[k] is None else floats(given[k])
        index = inputs["index"] if inputs["counter"] is None else inputs["counter"]
        options = StepOptions(rows, copies, dtypes=",".join(str(g.dtype).removeprefix("torch.") for g in grads))
        found = function(grads, x, outputs, past, floats(table), index, row, *given.values(), options)
        there = [k for k in FOUND if k in GIVEN or k == "x" or inputs[k] is not None]
        by_name = dict(zip(there, found, strict=True))
        return tuple(by_name[k] if k in by_name else torch.empty(0, device=x.device) for k in FOUND)

    return call


def gradients(*args: Any) -> list[Tensor]:
    """The backward op, as the backend in force runs it; all gradients."""
    *rest, options = args
    op, wanted = torch.ops.pygen.diffusion_step_backward.default, [True] * (6 + len(args[2]) + len(args[3]))
    if pygen.backends.forced == "reference":
        return op._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *rest, wanted, str(options))
    return op(*rest, wanted, str(options))


def reference_gradients(
    grads: Any, x: Tensor, outputs: Any, past: Any, table: Tensor, index: Any, row: int, *args: Any
) -> list[Tensor]:
    """The reference's, zeros for those that do not count."""
    *given, options = args
    dtype = arithmetic(x, outputs, options.dtypes_for(x))
    found = diffusion_step_backward(
        grads, x, outputs, table, row if index is None else index,
        Each(True, [True] * len(outputs), [True] * len(past), True, True, True, True, True),
        dtype=dtype, rows=options.rows, history=past, **dict(zip(GIVEN, given, strict=True)), copies=options.copies,
    )  # fmt: skip
    flat = (found.x, *found.outputs, *found.history, *found[3:])
    return [torch.zeros(x.shape, dtype=dtype, device=x.device) if g is None else g for g in flat]


register(
    OpSpec(
        name="diffusion_step_backward",
        function=on_lists(gradients),
        reference=on_lists(reference_gradients),
        outputs=tuple(f"grad_{k}" for k in FOUND),
        roles=STEP.roles | dict.fromkeys(GRADS, "data"),
        batched=frozenset({*GRADS, *STEP.batched, *(f"grad_{k}" for k in FOUND)} - {"y0", "y1", "y2"}),
        order=0,
        samples=backward_samples,
        public=False,
    )
)
