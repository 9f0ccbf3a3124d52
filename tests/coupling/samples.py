"""affine_coupling and its backward, as the contract suite (tests/harness) sees them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import cycle, product
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import pygen
from pygen.ops import coupling
from pygen.reference import coupling as reference
from tests.harness.calls import build, random, raw_call
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

# Every activation with either shift in either direction; all else in pairs.
FACTORS: dict[str, tuple[Any, ...]] = {
    "form": tuple(product(("exp", "sigmoid", "softplus", "additive"), ("after", "before"), (False, True))),
    "part": ("second", "first", "all", slice(1, 4), "index", [0, 2, 4], "even", "odd"),
    "rank": (2, 3, 4, 5),
    "squash": (None, "tanh", "atan", "softsign"),
    "gain": (1.0, 0.7, "scalar", "channel"),
    "offset": (0.0, 2.0),
    "eps": (0.0, 1e-3),
    "max_scale": (None, 1.5),
    "width": (1.0, 2.0),
    "shift_scale": (1.0, 0.5),
    "order": ("st", "ts"),
    "interleaved": (False, True),
    "logdet": (False, True),
    "memory_efficient": (False, True),
}
SPATIAL = {2: (), 3: (5,), 4: (3, 4), 5: (2, 3, 2)}


def changing(part: Any, channels: int) -> int:
    """C', the number of channels that change."""
    if part in ("first", "second"):
        return channels // 2
    if isinstance(part, slice):
        return part.stop - (part.start or 0)
    return len(part) if isinstance(part, list) else channels


def sample(name: str, shape: tuple[int, ...], scale: float = 1.0, **options: Any) -> Sample:
    """A sample for x of this shape. `gain`: a number, "scalar" or "channel"; `part`: "index" too; `logdet`: whether."""
    options = {"activation": "exp", "part": "second", **options}
    form = options.pop("form", None)
    if form is not None:
        options["activation"], options["shift"], options["inverse"] = form
    index = None
    if options["part"] == "index":  # every other channel, the last one first
        index = torch.arange(shape[1] - 1, -1, -2)
        n = len(index)
    else:
        n = changing(options["part"], shape[1])
    channels = n if options["activation"] == "additive" else 2 * n
    inputs: dict[str, Tensor | None] = {
        "x": random(f"{name} x", *shape),
        "params": scale * random(f"{name} params", shape[0], channels, *shape[2:]),
        "logdet": random(f"{name} logdet", shape[0]) if options.pop("logdet", False) else None,
    }
    if index is not None:
        inputs["part"] = index
        del options["part"]
    if isinstance(options.get("gain"), str):
        size = 1 if options.pop("gain") == "scalar" else n
        inputs["gain"] = 1 + 0.2 * random(f"{name} gain", size).clamp(-2, 2)
    return Sample(name, inputs, options)


def samples() -> Iterator[Sample]:
    for i, row in enumerate(pairwise(**FACTORS)):
        rank, part = row.pop("rank"), row["part"]
        channels = 4 if part in ("first", "second") else 5
        activation, shift, inverse = row["form"]
        name = f"{i:03d}-{activation}-{shift}{'-inverse' * inverse}"
        yield sample(name, (3, channels, *SPATIAL[rank]), **row)


# --- awkward sizes ---------------------------------------------------------------------------------------------------

LENGTHS = (0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 257, 1021)
# One of each kind of kernel: multiply last or first, with and without exponential, either half, any gain.
KINDS: tuple[dict[str, Any], ...] = (
    {"form": ("exp", "after", False), "squash": "tanh", "gain": "channel"},
    {"form": ("sigmoid", "before", False), "offset": 2.0, "order": "ts", "logdet": True},
    {"form": ("softplus", "after", True), "eps": 1e-3, "max_scale": 3.0},
    {"form": ("additive", "before", True), "shift_scale": 0.5},
    {"form": ("exp", "before", True), "squash": "softsign", "width": 6.9, "gain": 6.9, "interleaved": True},
)


def by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def shapes() -> Iterator[Sample]:
    kinds = {options["form"][0] + str(i): options for i, options in enumerate(KINDS)}
    for kind, options in kinds.items():
        for n in LENGTHS:
            yield sample(f"flat-{n}-{kind}", (2, 2 * n), **options)
            yield sample(f"length-{n}-{kind}", (2, 4, n), **options)
        for part, channels in (("all", 1), ("all", 3), (slice(1, 2), 3), (slice(0, 0), 3), ("first", 2), ([2], 3)):
            label = f"{part.start}:{part.stop}" if isinstance(part, slice) else str(part)
            yield sample(f"part-{label}-{channels}-{kind}", (2, channels, 3, 3), part=part, **options)
        for part in ("even", "odd"):
            for shape in ((1, 1), (2, 7), (2, 3, 1), (2, 1, 1, 1), (2, 3, 5, 3), (2, 2, 4, 7), (1, 2, 2, 3, 3)):
                yield sample(f"{part}-{by(shape)}-{kind}", shape, part=part, **options)
        for shape in ((0, 4), (0, 4, 3, 3), (1, 4, 5, 7), (2, 4, 0, 3), (2, 0, 3), (0, 0)):
            yield sample(f"{by(shape)}-{kind}", shape, **options)


def draw() -> st.SearchStrategy[Sample]:
    rows = st.sampled_from([row for row in pairwise(**FACTORS) if not isinstance(row["part"], (slice, list))])
    spatial = st.lists(st.sampled_from((0, 1, 2, 3, 5, 8, 13, 16, 17, 33)), max_size=3)

    def build(row: Mapping[str, Any], batch: int, half: int, dimensions: list[int]) -> Sample:
        options = {k: v for k, v in row.items() if k != "rank"}
        return sample("drawn", (batch, 2 * half, *dimensions), **options)

    return st.builds(build, rows, st.integers(0, 4), st.integers(0, 9), spatial)


def threaded() -> Iterator[Sample]:
    """4 MB of x in float32 each: many samples, few samples, few channels, short samples."""
    sizes = cycle(((64, 16, 32, 32), (3, 350_000), (1, 8, 360, 364), (5000, 200)))
    for options, shape in zip(KINDS, sizes, strict=False):
        yield sample(f"{by(shape)}-{options['form'][0]}-{options['form'][1]}", shape, **options)


def extremes() -> Iterator[Sample]:
    """Raw scales past the ends of the exponent range. The log-determinant is a number for all of them; so is y for the
    values of x here, large, tiny and 0, where S or 1 / S itself is none any more."""
    raw = torch.tensor([-1e4, -800, -110, -95, -80, -30, 0, 40, 80, 95, 110, 1e4], dtype=torch.float64)
    for (activation, shift, inverse), magnitude in product(FACTORS["form"], (0.0, 1e-30, 1e-10, 1.0, 1e30)):
        if activation != "additive":
            name = f"{activation}-{shift}{'-inverse' * inverse}-{magnitude:g}"
            s = sample(name, (3, 4, len(raw)), activation=activation, shift=shift, inverse=inverse)
            s.inputs["params"][:, :2] = raw
            if magnitude != 1:
                s.inputs["x"].mul_(magnitude)
                s.inputs["params"][:, 2:] *= magnitude
            yield s


# --- bounds of its own -----------------------------------------------------------------------------------------------


def multiplies_last(options: Mapping[str, Any]) -> bool:
    return (options.get("shift", "after") == "before") != options.get("inverse", False)


def keeps(s: Sample) -> frozenset[str]:
    """As the docstring says: y where the multiplication comes last or in memory mode, else x; nothing if additive."""
    common = {"params", "gain", "part"}
    if s.options["activation"] == "additive":
        return frozenset(common)
    return frozenset(common | {"y" if s.options.get("memory_efficient") or multiplies_last(s.options) else "x"})


def allowance(
    s: Sample, inputs: Mapping[str, Any], outputs: Mapping[str, Tensor], upstream: Mapping[str, Tensor], dtypes: Dtypes
) -> dict[str, float]:
    """The gradient of the raw scale is c D (g Z + l) gain h' / width, with D, h' <= 1, and Z from `out` as stored:

    - multiply last: Z = out, off by its rounding to storage, eps |out| / 2. Within the general rule, but for a gain's
      gradient: that is stored wider than x of 16 bits.
    - multiply first in memory mode: Z = out - tau, off by eps (|out| + |tau|), which is larger than Z under a large
      shift.
    """
    options, recovers = s.options, not multiplies_last(s.options)
    if "y" not in keeps(s) or "y" not in upstream or not outputs["y"].numel():
        return {}

    def largest(t: Tensor) -> float:
        return t.double().abs().max().item()

    width = options.get("width", 1.0)
    gain = inputs.get("gain")
    tau = options.get("shift_scale", 1.0) * largest(inputs["params"]) if recovers else 0.0
    error = torch.finfo(dtypes.data).eps * largest(upstream["y"]) * (largest(outputs["y"]) + tau)
    bounds = {}
    if recovers:
        bounds["grad_params"] = error * (abs(options.get("gain", 1.0)) if gain is None else largest(gain)) / width
    if gain is not None and (recovers or dtypes.data.itemsize == 2):
        h = {None: largest(inputs["params"]) / width, "atan": math.pi / 2}.get(options.get("squash"), 1.0)
        bounds["grad_gain"] = error * h * outputs["y"].numel()  # a sum over the elements
    return bounds


# --- what is not admitted --------------------------------------------------------------------------------------------


def errors() -> Iterator[ErrorInput]:
    def bad(name: str, error: type[Exception], *words: str, by_value: bool = False, **arguments: Any) -> ErrorInput:
        return ErrorInput(name, {"x": x, "params": params, **arguments}, error, words, by_value)

    x, params = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    yield bad("rank of x", ValueError, "(4,)", x=torch.randn(4))
    yield bad("scalar x", ValueError, "()", x=torch.tensor(1.0))
    yield bad("integer x", TypeError, "torch.int64", x=torch.ones(3, 4, 5, dtype=torch.int64))
    yield bad("complex x", TypeError, "torch.complex64", x=torch.ones(3, 4, 5, dtype=torch.complex64))
    yield bad("integer params", TypeError, "torch.int32", params=torch.ones(3, 4, 5, dtype=torch.int32))
    yield bad("double params", TypeError, "torch.float64", params=params.double())
    yield bad("single params for half x", TypeError, "torch.float32", x=x.half())
    yield bad("batch of params", ValueError, "(2, 4, 5)", params=torch.randn(2, 4, 5))
    yield bad("broadcast batch of params", ValueError, "(1, 4, 5)", params=torch.randn(1, 4, 5))
    yield bad("spatial size of params", ValueError, "(3, 4, 6)", params=torch.randn(3, 4, 6))
    yield bad("rank of params", ValueError, "(3, 4)", params=torch.randn(3, 4))
    yield bad("odd channels of params", ValueError, "even", params=torch.randn(3, 5, 5))
    yield bad("channels of params", ValueError, "8", params=torch.randn(3, 8, 5))
    yield bad("channels of additive params", ValueError, "2", params=torch.randn(3, 3, 5), activation="additive")
    yield bad("odd channels of x", ValueError, "even", "5", x=torch.randn(3, 5, 5))
    yield bad("slice outside", ValueError, "slice(3, 5)", part=slice(3, 5))
    yield bad("negative slice", ValueError, "slice(-2, 4)", part=slice(-2, 4))
    yield bad("slice with a step", ValueError, "slice(0, 4, 2)", part=slice(0, 4, 2))
    yield bad("length of a slice", ValueError, "part", part=slice(0, 3))
    yield bad("float index", TypeError, "torch.float32", part=torch.tensor([0.0, 1.0]))
    yield bad("rank of index", TypeError, "(1, 2)", part=torch.tensor([[0, 1]]))
    yield bad("length of index", ValueError, "channels", part=torch.tensor([0, 1, 2]))
    yield bad("length of mask", ValueError, "(3,)", part=torch.tensor([True, False, True]))
    yield bad("index outside", ValueError, "[0, 4]", part=torch.tensor([0, 4]), by_value=True)
    yield bad("negative index", ValueError, "[-1, 0]", part=torch.tensor([-1, 0]), by_value=True)
    yield bad("index twice", ValueError, "distinct", part=torch.tensor([1, 1]), by_value=True)
    yield bad("size of gain", ValueError, "(3,)", gain=torch.ones(3))
    yield bad("shape of logdet", ValueError, "(2,)", logdet=torch.ones(2))
    yield bad("rank of logdet", ValueError, "(3, 1)", logdet=torch.ones(3, 1))
    yield bad("dtype of logdet", TypeError, "torch.float64", logdet=torch.ones(3, dtype=torch.float64))
    for name in ("activation", "squash", "shift", "order", "part"):
        yield bad(f"unknown {name}", ValueError, name, "'nonsense'", **{name: "nonsense"})
    for name in ("eps", "width", "max_scale"):
        yield bad(f"negative {name}", ValueError, name, "-1.0", **{name: -1.0})
    for name in ("offset", "width", "shift_scale", "gain"):
        yield bad(f"infinite {name}", ValueError, name, "inf", **{name: math.inf})
        yield bad(f"text {name}", TypeError, name, "str", **{name: "1"})


# --- past 2^31 elements ----------------------------------------------------------------------------------------------


def huge(device: torch.device) -> None:
    """Three places of a call with 2^31 + 2048 elements, the inputs of which repeat every 1024 (so take no memory)."""
    repeats = 2**20 + 1
    period = sample("huge", (1, 2, 1024), form=("exp", "before", False))
    x, params = (period.inputs[k].to(device, torch.bfloat16) for k in ("x", "params"))
    wide = [t[:, :, None].expand(1, 2, repeats, 1024) for t in (x, params)]
    y, logdet = pygen.ops.affine_coupling(*wide, **period.options)
    expected, expected_logdet = pygen.reference.affine_coupling(x, params, **period.options)
    for i in (0, repeats // 2, repeats - 1):
        torch.testing.assert_close(y[:, :, i], expected)
    torch.testing.assert_close(logdet, repeats * expected_logdet)


COUPLING = register(
    OpSpec(
        name="affine_coupling",
        function=pygen.ops.affine_coupling,
        reference=pygen.reference.affine_coupling,
        outputs=("y", "logdet"),
        roles={"x": "data", "params": "parameters", "gain": "accumulate", "logdet": "accumulate"},
        batched=frozenset({"x", "params", "logdet", "y"}),
        order=1,
        dtypes=ALL_DTYPES,
        samples=samples,
        shapes=shapes,
        threaded=threaded,
        extremes=extremes,
        errors=errors,
        draw=draw(),
        huge=huge,
        huge_gb=5,  # y alone; 14 where a kernel copies its inputs first
        keeps=keeps,
        allowance=allowance,
    )
)


# --- the backward op -------------------------------------------------------------------------------------------------

_BACKWARD = torch.ops.pygen.affine_coupling_backward.default
_NEEDS = ("need_x", "need_params", "need_gain")


def backward_sample(forward: Sample) -> Sample:
    """The backward of a sample: its options as the public function hands them to the op, with a z of any value."""
    call = build(COUPLING, forward, F64, device="meta")
    _, (x, _, gain, index, _, options), _ = raw_call(COUPLING, call)
    inputs = forward.inputs
    part = forward.options.get("part")
    return Sample(
        forward.name,
        {
            "grad_y": random(f"{forward.name} grad_y", *x.shape),
            "grad_logdet": random(f"{forward.name} grad_logdet", x.shape[0]),
            "saved": None if forward.options["activation"] == "additive" else inputs["x"],
            "params": inputs["params"],
            "gain": None if gain is None else inputs["gain"],
            "index": torch.tensor(part) if isinstance(part, list) else None if index is None else inputs["part"],
        },
        {"options": options, **dict.fromkeys(_NEEDS, True)},
        traits=forward.options,
    )


def backward_samples() -> Iterator[Sample]:
    return map(backward_sample, samples())


def call_backward(**arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    if pygen.backends.forced == "reference":
        return _BACKWARD._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, **arguments)
    return _BACKWARD(**arguments)


def reference_backward(
    grad_y: Tensor,
    grad_logdet: Tensor,
    saved: Tensor | None,
    params: Tensor,
    gain: Tensor | None,
    index: Tensor | None,
    options: str,
    **needs: bool,
) -> tuple[Tensor, ...]:
    """The reference's gradients; those that are not asked for are empty."""
    keywords = coupling.CouplingOptions.parse(options).keywords(gain, index)
    grads = reference.affine_coupling_backward(grad_y, grad_logdet, saved, params, **keywords)
    return tuple(g if need else g.new_empty(0) for g, need in zip(grads, needs.values(), strict=True))


register(
    OpSpec(
        name="affine_coupling_backward",
        function=call_backward,
        reference=reference_backward,
        outputs=("grad_x", "grad_params", "grad_gain"),
        roles=dict.fromkeys(("grad_y", "saved"), "data")
        | dict.fromkeys(("grad_logdet", "gain"), "accumulate")
        | {"params": "parameters"},
        batched=frozenset({"grad_y", "grad_logdet", "saved", "params", "grad_x", "grad_params"}),
        order=0,
        dtypes=ALL_DTYPES,
        samples=backward_samples,
        skips={need: i for i, need in enumerate(_NEEDS)},
        public=False,
    )
)
