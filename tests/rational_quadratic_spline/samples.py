"""rational_quadratic_spline and its backward, as the contract suite (tests/harness) sees them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, product
from math import prod
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import pygen
from pygen import ops, reference
from pygen.ops.rational_quadratic_spline import InputOutsideDomain, SplineOptions
from pygen.reference.rational_quadratic_spline import rational_quadratic_spline_backward
from tests.harness.calls import Call, build, evaluate, random, raw_call
from tests.harness.combine import pairwise
from tests.harness.spec import (
    ALL_DTYPES,
    F64,
    Dtypes,
    ErrorInput,
    OpSpec,
    Sample,
    register,
)

STYLES = ("nflows", "zuko", "knots")
ENDS = (("linear", -1), ("linear", 1), ("circular", 0), (None, 1))  # tails, and derivatives more than bins
# Every style in either direction with every kind of ends; all else in pairs.
FACTORS: dict[str, tuple[Any, ...]] = {
    "form": tuple(product(STYLES, (False, True))),
    "ends": ENDS,
    "packed": (False, True),
    "bins": (2, 3, 5, 8),
    "rank": (1, 2, 3, 4),
    "bounds": (1.0, 3.0, (-1.0, 2.0)),
    "min_width": (1e-3, 0.0, 0.08),
    "min_derivative": (1e-3, 0.0),
    "beta": (1.0, 0.7),
    "boundary_slope": (1.0, 1.3),
    "slope": (1e-3, 0.1),
}
SHAPES = {1: (7,), 2: (3, 4), 3: (3, 2, 3), 4: (2, 3, 2, 2)}


def knots(raw: Tensor, first: float, last: float) -> Tensor:
    """Increasing positions, the first and the last near the bounds."""
    steps = (raw.tanh() + 2).cumsum(-1)
    steps = torch.cat([torch.zeros_like(steps[..., :1]), steps], -1)
    return 1.1 * (first + (last - first) * steps / steps[..., -1:])


def parameters(name: str, shape: tuple[int, ...], bins: int, style: str, slopes: int, limits: Any) -> list[Tensor]:
    left, right, bottom, top = limits
    w, h = (0.7 * random(f"{name} {kind}", *shape, bins) for kind in ("widths", "heights"))
    d = 0.7 * random(f"{name} derivatives", *shape, slopes)
    return [knots(w, left, right), knots(h, bottom, top), d.exp()] if style == "knots" else [w, h, d]


def sample(
    name: str,
    shape: tuple[int, ...],
    bins: int = 8,
    style: str = "nflows",
    ends: tuple[str | None, int] = ENDS[0],
    inverse: bool = False,
    packed: bool = False,
    bounds: Any = 3.0,
    **options: Any,
) -> Sample:
    """bounds: a number, or (left, right), of a spline without tails between others along y."""
    tails, more = ENDS[1] if style == "knots" and ends[0] is None else ends  # layouts that repeat knots leave no inside
    left, right = bounds if isinstance(bounds, tuple) else (-bounds, bounds)
    # 0 is within, as are halves of what is
    limits = (left, right, left, right) if tails else (left, right, -1.5, 2.5)
    w, h, d = parameters(name, shape, bins, style, bins + more, limits)
    lower, upper = limits[2:] if inverse else limits[:2]
    x = random(f"{name} x", *shape)
    spread = 0.8 * x if tails else 0.8 * x.tanh()  # some in the tails, where there are any
    x = (lower + upper) / 2 + spread * (upper - lower) / 2
    if style == "knots":  # where a layout repeats the first for all, a slope on it would be any number
        x = torch.where((x - 1.1 * lower).abs() < 0.03 * (upper - lower), lower, x)
    inputs: dict[str, Tensor | None] = {"x": x, "widths": w, "heights": h, "derivatives": d}
    if packed:
        inputs |= {"widths": torch.cat([w, h, d], -1), "heights": None, "derivatives": None}
    options |= {"style": style, "tails": tails, "inverse": inverse, "bounds": limits}
    traits = {k: v for k, v in options.items() if k != "bounds"} | {"more": more, "packed": packed, "rank": len(shape)}
    return Sample(name, inputs, options, traits)


def samples() -> Iterator[Sample]:
    for i, row in enumerate(pairwise(**FACTORS)):
        (style, inverse), ends, rank = row.pop("form"), row.pop("ends"), row.pop("rank")
        name = f"{i:02d}-{style}-{ends[0]}{ends[1]:+d}{'-inverse' * inverse}"
        yield sample(name, SHAPES[rank], style=style, ends=ends, inverse=inverse, **row)


BINS = (2, 3, 4, 7, 8, 9, 16, 17, 31, 33, 63, 64)
SIZES = (0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 257, 1021)


def shapes() -> Iterator[Sample]:
    bins, forms = cycle(BINS), cycle(product(("nflows", "zuko"), (ENDS[0], ENDS[2]), (False, True)))
    for shape in (
        *((n,) for n in SIZES),
        *((2, n) for n in SIZES[3:12]),
        (0, 3),
        (3, 0, 2),
        (1, 2, 5, 7),
        (2, 0, 3, 3),
    ):
        style, ends, inverse = next(forms)
        k = next(bins)
        yield sample(f"{'x'.join(map(str, shape))}-{k}-{style}", shape, k, style, ends, inverse, packed=inverse)
    for k in BINS:
        yield sample(f"knots-{k}", (2, 9), k, "knots", ENDS[k % 3], k % 2 == 0)


def threaded() -> Iterator[Sample]:
    yield sample("40x1000", (40, 1000))
    yield sample("50x3x7x11", (50, 3, 7, 11), 5, "zuko", inverse=True, packed=True)
    yield sample("20000", (20_000,), 4, "knots", ENDS[1])


def errors() -> Iterator[ErrorInput]:
    x, w, d = torch.zeros(3, 4), torch.zeros(3, 4, 8), torch.zeros(3, 4, 7)

    def bad(name: str, error: type[Exception], *words: str, by_value: bool = False, **arguments: Any) -> ErrorInput:
        given = {"x": x, "widths": w, "heights": w, "derivatives": d, **arguments}
        return ErrorInput(name, given, error, words, by_value)

    alone: dict[str, Any] = {"heights": None, "derivatives": None}
    given: dict[str, Any] = {"derivatives": torch.zeros(3, 4, 9), "tails": None}
    yield bad("integer x", TypeError, "torch.int64", x=x.long())
    yield bad("dtype of widths", TypeError, "widths", "torch.float64", widths=w.double())
    yield bad("wide x, narrow parameters", TypeError, "float64", "float32", x=x.double())
    yield bad("dtype of heights", TypeError, "heights", "torch.float16", heights=w.half())
    yield bad("dtype of derivatives", TypeError, "derivatives", "torch.bfloat16", derivatives=d.bfloat16())
    yield bad("shape of widths", ValueError, "widths", "(3, 4)", "(4, 8)", widths=w[0])
    yield bad("broadcast heights", ValueError, "heights", "(1, 4, 8)", heights=w[:1])
    yield bad("heights of other bins", ValueError, "8 heights", "got 9", heights=torch.zeros(3, 4, 9))
    yield bad("derivatives for linear tails", ValueError, "7 or 9", "8 and 8", derivatives=w)
    yield bad("derivatives for circular tails", ValueError, "8 derivatives", "7", tails="circular")
    yield bad("derivatives without tails", ValueError, "9 derivatives", "7", tails=None)
    yield bad("heights alone", ValueError, "heights alone", derivatives=None)
    yield bad(
        "packed, without tails",
        ValueError,
        "9 derivatives",
        "7",
        tails=None,
        **alone | {"widths": torch.zeros(3, 4, 23)},
    )
    yield bad("one bin", ValueError, "2 to 64 bins", "1", widths=w[..., :1], heights=w[..., :1], derivatives=d[..., :0])
    yield bad("packed, one bin", ValueError, "2 to 64 bins", "1", **alone | {"widths": torch.zeros(3, 4, 2)})
    yield bad("no parameters", ValueError, "2 to 64 bins", "0", **alone | {"widths": torch.zeros(3, 4, 0)})
    yield bad("too many bins", ValueError, "65", **alone | {"widths": torch.zeros(3, 4, 3 * 65 - 1)})
    yield bad("least width", ValueError, "min_width", "8 bins", "0.2", min_width=0.2)
    yield bad("least height", ValueError, "min_height", "8 bins", "0.2", min_height=0.2)
    yield bad("negative least slope", ValueError, "min_derivative", "-1", min_derivative=-1.0)
    yield bad("infinite beta", ValueError, "beta", "inf", beta=float("inf"))
    yield bad("no boundary slope", ValueError, "boundary_slope", "0", boundary_slope=0.0)
    yield bad("large slope", ValueError, "slope", "2.0", slope=2.0)
    yield bad("type of a number", TypeError, "min_width", "'1'", min_width="1")
    yield bad("type of inverse", TypeError, "inverse", "1", inverse=1)
    yield bad("unknown style", ValueError, "style", "'bezier'", style="bezier")
    yield bad("unknown tails", ValueError, "tails", "'cubic'", tails="cubic")
    yield bad("negative bound", ValueError, "bounds", "-1.0", bounds=-1.0)
    yield bad("bound of another type", TypeError, "bounds", "None", bounds=None)
    yield bad("bound beyond float32", ValueError, "bounds", "1e+30", "1e+300", bounds=1e300)
    yield bad("boundary slope beyond float32", ValueError, "boundary_slope", "1e+30", boundary_slope=1e300)
    yield bad("bounds the wrong way round", ValueError, "left < right", bounds=(1.0, 0.0, 0.0, 1.0), **given)
    yield bad("two bounds", ValueError, "bounds", "(0.0, 1.0)", bounds=(0.0, 1.0), **given)
    yield bad("empty bounds", ValueError, "bounds", bounds=(0.0, 0.0, 0.0, 1.0), **given)
    yield bad("tails between other bounds", ValueError, "left and right", bounds=(0.0, 1.0, 0.0, 2.0))
    yield bad("beyond the bounds", InputOutsideDomain, "[-1, 1]", "1.5", by_value=True, x=x + 1.5, **given)
    given |= {"inverse": True, "bounds": (0.0, 1.0, 1.0, 2.0)}
    yield bad("below the bottom", InputOutsideDomain, "[1, 2]", "0", by_value=True, **given)


def draw() -> st.SearchStrategy[Sample]:
    rows = st.sampled_from(pairwise(**{k: v for k, v in FACTORS.items() if k not in ("rank", "bins")}))
    lengths = st.lists(st.sampled_from((0, 1, 2, 3, 5, 8, 13, 16, 17, 33)), min_size=1, max_size=4)
    lengths = lengths.filter(lambda shape: prod(shape) <= 3000)  # of up to 191 parameters each

    def build(row: dict[str, Any], bins: int, shape: list[int]) -> Sample:
        style, inverse = row["form"]
        others = {k: v for k, v in row.items() if k not in ("form", "ends")} | ({"min_width": 0.0} if bins > 12 else {})
        return sample("drawn", tuple(shape), bins, style, row["ends"], inverse, **others)

    return st.builds(build, rows, st.integers(2, 64), lengths)


def huge(device: torch.device) -> None:
    """Three places of a call with 2^31 + 2048 elements, the inputs of which repeat every 1024 (so take no memory)."""
    repeats = 2**20 + 1
    x, p = random("huge", 1024).to(device, torch.bfloat16), random("huge p", 1024, 5).to(device, torch.bfloat16)
    y, logabsdet = ops.rational_quadratic_spline(x.expand(repeats, 1024), p.expand(repeats, 1024, 5))
    expected = reference.rational_quadratic_spline(x, p)
    for i in (0, repeats // 2, repeats - 1):
        torch.testing.assert_close((y[i], logabsdet[i]), expected)


def as_x_is_rounded(spec: OpSpec, s: Sample, inputs: Any, upstream: Any, dtypes: Dtypes) -> dict[str, Tensor]:
    """What an x that is off by a few units in the last place of the bound would change: no positions of knots are
    closer. In steep and in flat bins that is much, and by how much eager is off is luck."""
    x = inputs["x"]
    step = 4 * torch.finfo(dtypes.accumulate).eps * float(x.abs().max() if x.numel() else 0)
    results = []
    for way in (0, 1, -1):
        outputs, grads = evaluate(spec, spec.reference, Call(inputs | {"x": x + way * step}, s.options), upstream)
        results.append(outputs | grads)
    here, *moved = results
    return {k: torch.stack([(t[k] - v).abs().nan_to_num(0) for t in moved]).amax(0) for k, v in here.items()}


ROLES = {"x": "data"} | dict.fromkeys(("widths", "heights", "derivatives"), "parameters")

SPEC = register(
    OpSpec(
        name="rational_quadratic_spline",
        function=ops.rational_quadratic_spline,
        reference=reference.rational_quadratic_spline,
        outputs=("y", "logabsdet"),
        roles=ROLES,
        batched=frozenset({*ROLES, "y", "logabsdet"}),
        order=1,
        dtypes=ALL_DTYPES,
        samples=samples,
        shapes=shapes,
        threaded=threaded,
        errors=errors,
        draw=draw(),
        huge=huge,
        huge_gb=14,
        keeps=lambda s: frozenset(ROLES),
        allowance=lambda s, inputs, outputs, upstream, dtypes: as_x_is_rounded(SPEC, s, inputs, upstream, dtypes),
    )
)


# --- the backward op -------------------------------------------------------------------------------------------------

_BACKWARD = torch.ops.pygen.rational_quadratic_spline_backward.default
NEEDS = ("need_x", "need_widths", "need_heights", "need_derivatives")


def backward_samples() -> Iterator[Sample]:
    for s in samples():
        _, (*_, options), _ = raw_call(SPEC, build(SPEC, s, F64))
        x = s.inputs["x"]
        assert x is not None
        grads = {name: random(f"{s.name} {name}", *x.shape) for name in ("grad_y", "grad_logabsdet")}
        yield Sample(s.name, grads | dict(s.inputs), {"options": options, **dict.fromkeys(NEEDS, True)}, s.traits)


def call_backward(**arguments: Any) -> Any:
    """The op, as the backend in force runs it."""
    if pygen.backends.forced == "reference":
        return _BACKWARD._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, **arguments)
    return _BACKWARD(**arguments)


def reference_backward(options: str, **arguments: Any) -> tuple[Tensor, ...]:
    """The reference's gradients; those that are not asked for are empty."""
    needs = [arguments.pop(need) for need in NEEDS]
    grads = rational_quadratic_spline_backward(**arguments, **SplineOptions.parse(options).keywords())
    return tuple(g if need else g.new_empty(0) for g, need in zip(grads, needs, strict=True))


BACKWARD = register(
    OpSpec(
        name="rational_quadratic_spline_backward",
        function=call_backward,
        reference=reference_backward,
        outputs=("grad_x", "grad_widths", "grad_heights", "grad_derivatives"),
        roles={"grad_y": "data", "grad_logabsdet": "accumulate"} | ROLES,
        batched=frozenset(
            {"grad_y", "grad_logabsdet", *ROLES, "grad_x", "grad_widths", "grad_heights", "grad_derivatives"}
        ),
        order=0,
        dtypes=ALL_DTYPES,
        samples=backward_samples,
        skips={need: i for i, need in enumerate(NEEDS)},
        allowance=lambda s, inputs, outputs, upstream, dtypes: as_x_is_rounded(BACKWARD, s, inputs, upstream, dtypes),
        public=False,
    )
)
