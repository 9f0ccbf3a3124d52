"""masked_conv2d and its backward, as the contract suite (tests/harness) sees them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import pygen
from pygen.ops import causal_taps, masked_conv
from pygen.reference import masked_conv as reference
from tests.harness.calls import build, random, raw_call
from tests.harness.combine import pairwise
from tests.harness.spec import F64, Dtypes, ErrorInput, OpSpec, Sample, register

TAPS: dict[str, tuple[tuple[int, int], ...]] = {
    "A3": causal_taps(3, kind="A"),
    "B3": causal_taps(3),
    "reversed": causal_taps((1, 5), order="reversed"),
    "vertical": causal_taps((3, 5), kind="A", stack="vertical"),
    "own-row": causal_taps((1, 3), stack="vertical"),
    "horizontal": causal_taps((1, 5), stack="horizontal"),
    "shifted": ((-1, -1), (-1, 0), (-1, 1), (-2, 0), (-2, -1), (-2, 1)),  # PixelCNN++'s 2 x 3, moved down
    "centre": ((0, 0),),
    "far": ((-7, 2), (0, 0), (5, -6)),  # some wholly outside small images
}

FACTORS: dict[str, tuple[Any, ...]] = {
    "taps": tuple(TAPS),
    "form": ((1, False), (2, False), (3, False), (2, True), (3, True)),  # stride, transposed
    "dilation": (1, 2),
    "mask": (None, ("A", 3, False), ("B", 3, False), ("A", 3, True), ("B", 2, True), ("B", 1, False)),
    "activation": (None, "relu", "elu", "gate", "glu"),
    "bias": (None, "channel", "sample"),
    "condition": (False, True),
    "residual": (False, True),
    "codes": (None, torch.uint8, torch.int16, torch.int32, torch.int64),
    "cut": (0, 1),  # output_size: so much less than stride times the input's
}


def sample(
    name: str,
    shape: tuple[int, int, int, int],
    channels_out: int,
    *,
    taps: str | tuple[tuple[int, int], ...] = "B3",
    form: tuple[int, bool] = (1, False),
    dilation: int = 1,
    mask: tuple[str, int, bool] | None = None,
    activation: str | None = None,
    bias: str | None = "channel",
    condition: bool = False,
    residual: bool = False,
    codes: torch.dtype | None = None,
    cut: int = 0,
) -> Sample:
    """A sample for x [B, Cin, H, W] (codes in [0, Cin)) and so many output channels, twice as many before a gate."""
    stride, transposed = form
    batch, channels, *size = shape
    offsets = TAPS[taps] if isinstance(taps, str) else taps
    options: dict[str, Any] = {
        "taps": offsets, "stride": stride, "transposed": transposed, "dilation": dilation, "activation": activation
    }  # fmt: skip
    height, width = reference.output_size(size, stride, transposed)
    if transposed and cut and min(size) > 0:
        height, width = height - cut, width - cut
        options["output_size"] = (height, width)
    if mask is not None and codes is None:
        options |= dict(zip(("channel_mask", "channel_groups", "interleaved"), mask, strict=True))
    before = 2 * channels_out if activation in ("gate", "glu") else channels_out
    if codes is None:
        x = random(f"{name} x", *shape)
    else:
        x = torch.randint(channels, (batch, *size), generator=torch.Generator().manual_seed(1)).to(codes)
    scale = max(1, len(offsets) * (1 if codes else channels)) ** -0.5
    inputs = {
        "x": x,
        "weight": scale * random(f"{name} weight", len(offsets), channels, before),
        "bias": None,
        "condition": random(f"{name} condition", batch, before, height, width) if condition else None,
        "residual": random(f"{name} residual", batch, channels_out, height, width) if residual else None,
    }
    if bias == "channel":
        inputs["bias"] = random(f"{name} bias", before)
    elif bias == "sample":
        inputs["bias_of_samples"] = random(f"{name} bias", batch, before)
    return Sample(name, inputs, options)


def samples() -> Iterator[Sample]:
    for i, row in enumerate(pairwise(**FACTORS)):
        channels = 4 if row["mask"] and row["mask"][1] == 2 else 3
        form = "transposed" if row["form"][1] else "strided" if row["form"][0] > 1 else "plain"
        name = f"{i:03d}-{row['taps']}-{form}-{row['activation']}{'-codes' * (row['codes'] is not None)}"
        yield sample(name, (2, channels, 3, 4), channels, **row)


# --- awkward sizes ----------------------------------------------------------------------------------------------------

KINDS: tuple[dict[str, Any], ...] = (
    {"taps": causal_taps(5), "activation": "gate", "condition": True, "residual": True, "bias": "sample"},
    {"taps": causal_taps(3, kind="A"), "mask": ("B", 1, False)},
    {"taps": "shifted", "form": (2, False), "activation": "elu"},
    {"taps": "shifted", "form": (2, True), "activation": "glu", "cut": 1},
)


def by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def shapes() -> Iterator[Sample]:
    for i, kind in enumerate(KINDS):
        for channels in (1, 2, 3, 7, 15, 16, 17, 33, 40, 65):
            yield sample(f"in-{channels}-{i}", (2, channels, 5, 6), 3, **kind)
            yield sample(f"out-{channels}-{i}", (2, 3, 5, 6), channels, **kind)
        for size in ((1, 1), (1, 7), (7, 1), (2, 33), (19, 28), (3, 300)):
            yield sample(f"{by(size)}-{i}", (2, 17, *size), 18, **kind)
        for shape in ((0, 3, 4, 4), (1, 3, 4, 4), (19, 2, 3, 3)):
            yield sample(f"batch-{by(shape)}-{i}", shape, 3, **kind)
        yield sample(f"codes-{i}", (3, 9, 6, 7), 17, **{**kind, "codes": torch.int64, "mask": None})
    for shape, out in (((2, 0, 3, 3), 2), ((2, 3, 0, 3), 2), ((2, 3, 3, 3), 0)):
        yield sample(f"empty-{by(shape)}-{out}", shape, out)
    for groups, interleaved in product((2, 4, 16), (False, True)):
        yield sample(f"groups-{groups}-{interleaved}", (2, 48, 5, 7), 32, mask=("B", groups, interleaved))
        yield sample(
            f"gated-{groups}-{interleaved}", (2, 16, 5, 7), 48, mask=("A", groups, interleaved), activation="gate"
        )


def draw() -> st.SearchStrategy[Sample]:
    rows = st.sampled_from(list(pairwise(**FACTORS)))
    sizes = st.sampled_from((0, 1, 2, 3, 5, 8, 16, 17, 30))

    def build(row: Mapping[str, Any], batch: int, height: int, width: int, factors: tuple[int, int]) -> Sample:
        channels, out = (6 * f for f in factors)
        return sample("drawn", (batch, channels, height, width), out, **row)

    return st.builds(build, rows, st.integers(0, 3), sizes, sizes, st.tuples(*[st.sampled_from((1, 3, 6))] * 2))


def threaded() -> Iterator[Sample]:
    for i, (kind, shape) in enumerate(
        zip(KINDS, ((20, 32, 14, 14), (3, 48, 28, 28), (17, 3, 20, 31), (1, 20, 1, 900)), strict=True)
    ):
        yield sample(f"{by(shape)}-{i}", shape, 32, **kind)
    yield sample("codes", (17, 64, 28, 28), 32, taps="A3", codes=torch.uint8)


def extremes() -> Iterator[Sample]:
    """Pre-activations past the ends of the exponential's range."""
    values = torch.tensor([-1e30, -1e4, -800, -110, -80, -30, -1e-30, 0, 1e-30, 40, 90, 1e4, 1e30], dtype=torch.float64)
    for activation in FACTORS["activation"]:
        s = sample(f"{activation}", (1, 1, 1, len(values)), 1, taps="centre", bias=None, activation=activation)
        s.inputs["x"].copy_(values)
        s.inputs["weight"].fill_(1)
        yield s


# --- what is not admitted ---------------------------------------------------------------------------------------------


def errors() -> Iterator[ErrorInput]:
    x, weight, codes = torch.randn(2, 6, 4, 5), torch.randn(5, 6, 8), torch.randint(6, (2, 4, 5))
    codes[0, 0, :2] = torch.tensor([0, 5])  # whatever is drawn

    def bad(name: str, error: type[Exception], *words: str, by_value: bool = False, **arguments: Any) -> ErrorInput:
        return ErrorInput(name, {"x": x, "weight": weight, "taps": TAPS["B3"], **arguments}, error, words, by_value)

    yield bad("rank of x", ValueError, "(6, 4, 5)", x=x[0])
    yield bad("rank of codes", ValueError, "codes", "(2, 6, 4, 5)", x=x.long())
    yield bad("complex x", TypeError, "torch.complex64", x=x.to(torch.complex64))
    yield bad("bool x", TypeError, "torch.bool", x=codes > 1)
    yield bad("dtype of weight", TypeError, "torch.float64", weight=weight.double())
    yield bad("integer weight", TypeError, "torch.int64", weight=weight.long())
    yield bad("channels of weight", ValueError, "6", "(5, 7, 8)", weight=torch.randn(5, 7, 8))
    yield bad("taps of weight", ValueError, "5 taps", "(4, 6, 8)", weight=torch.randn(4, 6, 8))
    yield bad("rank of weight", ValueError, "(5, 6)", weight=torch.randn(5, 6))
    yield bad("no taps", ValueError, "tap", taps=())
    yield bad("the same tap twice", ValueError, "distinct", taps=((0, 0),) * 5)
    yield bad("taps that are no pairs", TypeError, "taps", taps=(0, 1))
    yield bad("float taps", TypeError, "taps", taps=((0.5, 0),))
    yield bad("odd channels of a gate", ValueError, "even", "7", weight=torch.randn(5, 6, 7), activation="gate")
    yield bad("input groups", ValueError, "Cin", "4", channel_mask="A", channel_groups=4)
    yield bad("output groups", ValueError, "3", "8", channel_mask="B")
    yield bad(
        "gated groups",
        ValueError,
        "2",
        "3",
        weight=torch.randn(5, 6, 6),
        channel_mask="B",
        channel_groups=2,
        activation="glu",
    )
    yield bad("no groups", ValueError, "channel_groups", "0", channel_mask="B", channel_groups=0)
    yield bad("groups of codes", ValueError, "channel_mask", x=codes, channel_mask="B", channel_groups=2)
    yield bad("codes too large", ValueError, "[0, 6)", "6", x=codes + 6, by_value=True)
    yield bad("negative codes", ValueError, "[0, 6)", "-6", x=codes - 6, by_value=True)
    yield bad("shape of bias", ValueError, "(8,)", "(7,)", bias=torch.randn(7))
    yield bad("batch of bias", ValueError, "(2, 8)", "(3, 8)", bias=torch.randn(3, 8))
    yield bad("dtype of bias", TypeError, "bias", "torch.float64", bias=torch.randn(8).double())
    yield bad("shape of condition", ValueError, "(2, 8, 4, 5)", condition=torch.randn(2, 8, 1, 1))
    yield bad("shape of residual", ValueError, "(2, 4, 4, 5)", residual=torch.randn(2, 8, 4, 5), activation="gate")
    yield bad("stride 0", ValueError, "stride", "0", stride=0)
    yield bad("float stride", TypeError, "stride", "float", stride=1.0)
    yield bad("dilation 0", ValueError, "dilation", "0", dilation=0)
    yield bad("size of no transposed one", ValueError, "output_size", output_size=(4, 5))
    yield bad("output_size too large", ValueError, "(9, 10)", stride=2, transposed=True, output_size=(9, 10))
    yield bad("output_size too small", ValueError, "(6, 10)", stride=2, transposed=True, output_size=(6, 10))
    yield bad("output_size 0", ValueError, "(0, 10)", stride=2, transposed=True, output_size=(0, 10))
    for name in ("activation", "channel_mask"):
        yield bad(f"unknown {name}", ValueError, name, "'nonsense'", **{name: "nonsense"})
    for name in ("interleaved", "transposed"):
        yield bad(f"{name} no bool", TypeError, name, "2", **{name: 2})


def of_samples(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function with a bias for each sample under a name of its own: it is cut where the batch is, the other not."""

    @functools.wraps(function)
    def call(*, bias: Tensor | None = None, bias_of_samples: Tensor | None = None, **arguments: Any) -> Tensor:
        return function(bias=bias if bias_of_samples is None else bias_of_samples, **arguments)

    return call


def rounded_preactivations(
    s: Sample, inputs: Mapping[str, Any], outputs: Any, upstream: Mapping[str, Tensor], dtypes: Dtypes
) -> dict[str, float]:
    """What the backward keeps is rounded to 16 bits, which autograd's is not: an activation's slope is off by up to
    half of eps, and the gradients by sums of such, of either sign: thrice their standard deviation. (Seen: a drawn
    gate in bfloat16 whose gradient is 0.0016 off where eager's errors allow 0.0005.)"""
    smooth = s.options.get("activation") in ("elu", "gate", "glu")  # of relu the slope is not rounded
    if dtypes.data.itemsize > 2 or not smooth or not upstream["y"].numel():
        return {}
    each = 1.5 * torch.finfo(dtypes.data).eps * upstream["y"].double().abs().max().item()
    x, weight, sites = inputs["x"], inputs["weight"], upstream["y"][:, 0].numel()
    seen = x.double().square().sum((0, 2, 3)).max().item() if x.is_floating_point() else sites
    norms = {"x": weight.double().square().sum((0, 2)).max().item(), "weight": seen, "bias": sites}
    norms |= {"bias_of_samples": sites, "condition": 1}
    return {f"grad_{name}": each * squared**0.5 for name, squared in norms.items()}


CONV = register(
    OpSpec(
        name="masked_conv2d",
        function=of_samples(pygen.ops.masked_conv2d),
        reference=of_samples(pygen.reference.masked_conv2d),
        outputs=("y",),
        roles=dict.fromkeys(("x", "weight", "bias", "bias_of_samples", "condition", "residual"), "data"),
        batched=frozenset({"x", "bias_of_samples", "condition", "residual", "y"}),
        order=1,
        samples=samples,
        shapes=shapes,
        threaded=threaded,
        extremes=extremes,
        errors=errors,
        draw=draw(),
        allowance=rounded_preactivations,
    )
)


# --- the backward op --------------------------------------------------------------------------------------------------

_BACKWARD = torch.ops.pygen.masked_conv2d_backward.default
_NEEDS = ("need_x", "need_weight", "need_bias", "need_pre")


def backward_sample(forward: Sample) -> Sample:
    """The backward of a sample: its options as the public function hands them to the op, with any pre-activations."""
    call = build(CONV, forward, F64, device="meta")
    op, (x, weight, *rest, options), _ = raw_call(CONV, call)
    y, pre = op(x, weight, *rest, options)
    return Sample(
        forward.name,
        {
            "grad_y": random(f"{forward.name} grad_y", *y.shape),
            "x": forward.inputs["x"],
            "weight": forward.inputs["weight"],
            "pre": random(f"{forward.name} pre", *pre.shape) if forward.options["activation"] else None,
        },
        {"options": options, **dict.fromkeys(_NEEDS, True), "bias_of_samples": "bias_of_samples" in forward.inputs},
        traits=forward.options,
    )


def call_backward(**arguments: Any) -> tuple[Tensor, ...]:
    if pygen.backends.forced == "reference":
        arguments["options"] = masked_conv.ConvOptions.parse(arguments["options"])
        return masked_conv._default_backward(*arguments.values())
    return _BACKWARD(*arguments.values())


def reference_backward(grad_y: Tensor, x: Tensor, weight: Tensor, pre: Tensor | None, **options: Any) -> Any:
    """The backward's formulas."""
    options["options"] = masked_conv.ConvOptions.parse(options["options"])
    return masked_conv._default_backward(grad_y, x, weight, pre, *options.values())


register(
    OpSpec(
        name="masked_conv2d_backward",
        function=call_backward,
        reference=reference_backward,
        outputs=("grad_x", "grad_weight", "grad_bias", "grad_pre"),
        roles=dict.fromkeys(("grad_y", "x", "weight", "pre"), "data"),
        batched=frozenset({"grad_y", "x", "pre", "grad_x", "grad_pre"}),
        order=0,
        samples=lambda: map(backward_sample, samples()),
        skips={name: i for i, name in enumerate(_NEEDS)},
        public=False,
    )
)
