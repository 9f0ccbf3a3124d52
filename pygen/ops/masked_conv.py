"""Masked convolutions over live taps: public functions, the torch ops, fakes, gradients, and helpers for tap lists."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import backends
from .._lib import FLOATS, define, layout, names, once_differentiable, refuse_tangents
from .._options import Options
from ..reference import masked_conv as reference

ACTIVATIONS = ("relu", "elu", "gate", "glu")
CHANNEL_MASKS = ("A", "B")

_CODES = (torch.uint8, torch.int16, torch.int32, torch.int64)

Taps = Sequence[tuple[int, int]]


# --- options ----------------------------------------------------------------------------------------------------------


def _one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"masked_conv2d: expected {name} to be one of {choices}, got {value!r}")


@dataclass(frozen=True)
class ConvOptions(Options):
    """Options of `masked_conv2d` that are no tensors; see there. csrc/cpu/masked_conv.cpp reads the same."""

    taps: str = ""  # "dy,dx;dy,dx"
    mask: str = "none"
    groups: int = 1
    interleaved: bool = False
    stride: int = 1
    dilation: int = 1
    transposed: bool = False
    height: int = 0  # of the output of a transposed convolution; 0: stride times the input's
    width: int = 0
    activation: str = "none"

    def __post_init__(self) -> None:
        _one_of("channel_mask", self.mask, ("none", *CHANNEL_MASKS))
        _one_of("activation", self.activation, ("none", *ACTIVATIONS))
        for name in ("groups", "stride", "dilation"):
            if getattr(self, name) < 1:
                label = "channel_groups" if name == "groups" else name
                raise ValueError(f"masked_conv2d: expected {label} >= 1, got {getattr(self, name)}")
        if not self.taps:
            raise ValueError("masked_conv2d: expected at least one tap, got none")

    @cached_property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        return tuple((int(y), int(x)) for y, x in (tap.split(",") for tap in self.taps.split(";")))

    @property
    def activates(self) -> bool:
        return self.activation != "none"

    @property
    def gated(self) -> bool:
        return self.activation in ("gate", "glu")

    def output_size(self, x: Tensor) -> tuple[int, int]:
        if self.height:
            return self.height, self.width
        return reference.output_size(x.shape[-2:], self.stride, self.transposed)

    def keywords(self) -> dict[str, Any]:
        """As the reference's inner functions take them."""
        return {
            "taps": self.offsets,
            "channel_mask": None if self.mask == "none" else self.mask,
            "channel_groups": self.groups,
            "interleaved": self.interleaved,
            "stride": self.stride,
            "dilation": self.dilation,
            "transposed": self.transposed,
        }


def _options(
    taps: tuple[tuple[int, int], ...],
    channel_mask: str | None,
    channel_groups: int,
    interleaved: bool,
    stride: int,
    dilation: int,
    transposed: bool,
    output_size: tuple[int, int] | None,
    activation: str | None,
) -> str:
    """The options as the op's argument; raises for types and values that are not admitted."""
    _one_of("channel_mask", channel_mask, (None, *CHANNEL_MASKS))
    _one_of("activation", activation, (None, *ACTIVATIONS))
    if len(set(taps)) != len(taps):
        raise ValueError(f"masked_conv2d: expected distinct taps, got {list(taps)}")
    for name, value in (("interleaved", interleaved), ("transposed", transposed)):
        if not isinstance(value, bool):
            raise TypeError(f"masked_conv2d: expected {name} to be a bool, got {value!r}")
    height, width = output_size or (0, 0)
    if output_size is not None and not transposed:
        raise ValueError(f"masked_conv2d: expected output_size with transposed=True only, got {output_size}")
    if output_size is not None and (height < 1 or width < 1):
        raise ValueError(f"masked_conv2d: expected output_size >= 1, got {output_size}")
    return str(
        ConvOptions(
            taps=";".join([f"{y},{x}" for y, x in taps]),
            mask=channel_mask or "none",
            groups=channel_groups if channel_mask else 1,
            interleaved=interleaved and channel_mask is not None,
            stride=stride,
            dilation=dilation,
            transposed=transposed,
            height=height,
            width=width,
            activation=activation or "none",
        )
    )


_options_cached = lru_cache(maxsize=1024, typed=True)(_options)  # 1 is not True


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"masked_conv2d: expected {name} to be an integer, got {type(value).__name__}") from None


def _pairs(name: str, values: Any) -> tuple[tuple[int, int], ...]:
    """Integer pairs of any sequences."""
    try:
        return tuple([(operator.index(y), operator.index(x)) for y, x in values])
    except (TypeError, ValueError):
        raise TypeError(f"masked_conv2d: expected {name} as pairs of integers (dy, dx), got {values!r}") from None


# --- checks: decided from shapes, dtypes and devices; values only of codes on the CPU ---------------------------------


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    condition: Tensor | None,
    residual: Tensor | None,
    options: ConvOptions,
) -> None:
    """Raises for what the op does not admit. The native kernels hand over to the reference, and so to this, when their
    own compact test fails."""
    op, count = "masked_conv2d", len(options.offsets)
    if weight.dtype not in FLOATS:
        raise TypeError(f"{op}: expected weight of dtype {names(FLOATS)}, got {weight.dtype}")
    codes = x.dtype in _CODES
    if not codes and x.dtype != weight.dtype:
        raise TypeError(
            f"{op}: expected x of weight's dtype {weight.dtype}, or codes of {names(_CODES)}, got {x.dtype}"
        )
    if x.dim() != (3 if codes else 4):
        shape = "codes [B, H, W]" if codes else "x [B, Cin, H, W]"
        raise ValueError(f"{op}: expected {shape}, got {tuple(x.shape)}")
    if weight.dim() != 3 or weight.shape[0] != count or not (codes or weight.shape[1] == x.shape[1]):
        channels = "codes" if codes else x.shape[1]
        raise ValueError(f"{op}: expected weight [{count} taps, {channels}, Cout], got {tuple(weight.shape)}")
    _, channels_in, channels_out = weight.shape
    if options.gated and channels_out % 2:
        raise ValueError(f"{op}: expected an even Cout for {options.activation!r}, got {channels_out}")
    channels_y = channels_out // 2 if options.gated else channels_out
    if options.mask != "none":
        if codes:
            raise ValueError(f"{op}: expected no channel_mask with codes, which are one channel, got {options.mask!r}")
        for name, channels in (("Cin", channels_in), ("output channels", channels_y)):
            if channels % options.groups:
                raise ValueError(f"{op}: expected {name} divisible by {options.groups} groups, got {channels}")
    height, width = options.output_size(x)
    if options.height:
        for n, out in zip(x.shape[-2:], (height, width), strict=True):
            if not (n - 1) * options.stride < out <= n * options.stride:
                raise ValueError(
                    f"{op}: expected output_size in (stride (n - 1), stride n] for x {tuple(x.shape)} and stride "
                    f"{options.stride}, got {(height, width)}"
                )
    batch = x.shape[0]
    shapes: dict[str, tuple[Tensor | None, tuple[tuple[int, ...], ...]]] = {
        "bias": (bias, ((channels_out,), (batch, channels_out))),
        "condition": (condition, ((batch, channels_out, height, width),)),
        "residual": (residual, ((batch, channels_y, height, width),)),
    }
    for name, (tensor, admitted) in shapes.items():
        if tensor is None:
            continue
        if tensor.dtype != weight.dtype:
            raise TypeError(f"{op}: expected {name} of {weight.dtype} as weight, got {tensor.dtype}")
        # ranks first, lest torch.compile takes a batch of Cout samples for one that always has so many
        if not any(len(shape) == tensor.dim() and tuple(tensor.shape) == shape for shape in admitted):
            raise ValueError(f"{op}: expected {name} {' or '.join(map(str, admitted))}, got {tuple(tensor.shape)}")
    for name, other in (("weight", weight), ("bias", bias), ("condition", condition), ("residual", residual)):
        if other is not None and other.device != x.device:
            raise ValueError(f"{op}: expected {name} on {x.device} as x, got {other.device}")
    if codes and x.device.type == "cpu" and not torch.compiler.is_compiling() and type(x) is Tensor and x.numel():
        low, high = (int(v) for v in x.aminmax())
        if low < 0 or high >= channels_in:
            raise ValueError(f"{op}: expected codes in [0, {channels_in}), got values from {low} to {high}")


def _check_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, pre: Tensor | None, options: ConvOptions, *_: bool
) -> None:
    """Raises for what the backward op does not admit; autograd gives it nothing of the kind."""
    check(x, weight, None, pre, grad_y, options)
    if (pre is not None) != options.activates:
        raise ValueError(f"masked_conv2d: expected pre with an activation and only then, got {pre}")


# --- the ops: y and, with an activation, the pre-activations as kernels like them, channels_last ----------------------


def _layout(x: Tensor) -> torch.memory_format:
    return layout(x) if x.is_floating_point() else torch.contiguous_format


def _default(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    condition: Tensor | None,
    residual: Tensor | None,
    options: ConvOptions,
) -> tuple[Tensor, Tensor]:
    check(x, weight, bias, condition, residual, options)
    pre = reference.preactivation(
        x, weight, bias, condition, size=options.output_size(x), gated=options.gated, **options.keywords()
    )
    y = reference.finish(pre, options.activation, residual, weight.dtype)
    kept = y.new_empty(0)
    if options.activates:
        kept = pre.to(weight.dtype).contiguous(memory_format=torch.channels_last)
    return y.contiguous(memory_format=_layout(x)), kept


def _default_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    pre: Tensor | None,
    options: ConvOptions,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    need_pre: bool,
    bias_of_samples: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_backward(grad_y, x, weight, pre, options)
    grad_x, grad_weight, grad_pre = reference.masked_conv2d_backward(
        grad_y, x, weight, pre, activation=options.activation, need_x=need_x, **options.keywords()
    )
    fmt, none = _layout(x), grad_y.new_empty(0)
    over = (2, 3) if bias_of_samples else (0, 2, 3)
    grad_bias = grad_pre.sum(over, dtype=torch.float64).to(weight.dtype) if need_bias else none
    return (
        grad_y.new_empty(0) if grad_x is None else grad_x.to(weight.dtype).contiguous(memory_format=fmt),
        grad_weight.to(weight.dtype) if need_weight else grad_y.new_empty(0),
        grad_bias,
        grad_pre.to(weight.dtype, copy=True).contiguous(memory_format=fmt) if need_pre else grad_y.new_empty(0),
    )


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    condition: Tensor | None,
    residual: Tensor | None,
    options: ConvOptions,
) -> tuple[Tensor, Tensor]:
    check(x, weight, bias, condition, residual, options)
    channels = weight.shape[2]
    size = options.output_size(x)

    def image(channels: int, fmt: torch.memory_format) -> Tensor:
        shape = (x.shape[0], channels, *size)
        return torch.empty(shape, dtype=weight.dtype, device=x.device, memory_format=fmt)

    y = image(channels // 2 if options.gated else channels, _layout(x))
    return y, image(channels, torch.channels_last) if options.activates else weight.new_empty(0)


def _fake_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    pre: Tensor | None,
    options: ConvOptions,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    need_pre: bool,
    bias_of_samples: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels, fmt = weight.shape[2], _layout(x)

    def empty(shape: Sequence[int], needed: bool, fmt: torch.memory_format = torch.contiguous_format) -> Tensor:
        if not needed:
            return weight.new_empty(0)
        return torch.empty(shape, dtype=weight.dtype, device=x.device, memory_format=fmt)

    return (
        empty(x.shape, need_x and x.is_floating_point(), fmt),
        empty(weight.shape, need_weight),
        empty((x.shape[0], channels) if bias_of_samples else (channels,), need_bias),
        empty((x.shape[0], channels, *grad_y.shape[2:]), need_pre, fmt),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, _, _, ctx.options = inputs
    ctx.bias_of_samples = bias is not None and bias.dim() == 2
    ctx.activates = ConvOptions.parse(ctx.options).activates
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, output[1] if ctx.activates else None)


def _backward(ctx: Any, grad_y: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 6
    x, weight, pre = ctx.saved_tensors
    need_x, need_weight, need_bias, need_condition, need_residual, _ = ctx.needs_input_grad
    need_pre = need_condition and ctx.activates  # else it is grad_y
    grads: tuple[Tensor | None, ...] = (None,) * 4
    if need_x or need_weight or need_bias or need_pre:
        grads = torch.ops.pygen.masked_conv2d_backward(
            grad_y, x, weight, pre, ctx.options, need_x, need_weight, need_bias, need_pre, ctx.bias_of_samples
        )
    grad_x, grad_weight, grad_bias, grad_pre = grads
    return (
        grad_x if need_x else None,
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
        (grad_pre if need_pre else grad_y) if need_condition else None,
        grad_y if need_residual else None,
        None,
    )


define(
    "masked_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? condition, Tensor? residual, str options)"
    " -> (Tensor y, Tensor pre)",
    family="masked_conv",
    default=_default,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    check=check,
    options=ConvOptions,
    cuda="triton",
)
define(
    "masked_conv2d_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor? pre, str options, bool need_x, "
    "bool need_weight, bool need_bias, bool need_pre, bool bias_of_samples)"
    " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_pre)",
    family="masked_conv",
    default=_default_backward,
    fake=_fake_backward,
    setup_context=lambda ctx, inputs, output: None,
    backward=once_differentiable("masked_conv2d_backward"),
    check=_check_backward,
    options=ConvOptions,
    cuda="triton",
)


# --- public functions -------------------------------------------------------------------------------------------------


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    taps: Taps,
    channel_mask: str | None = None,
    channel_groups: int = 3,
    interleaved: bool = False,
    stride: int = 1,
    dilation: int = 1,
    transposed: bool = False,
    output_size: tuple[int, int] | None = None,
    condition: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolution over a list of taps, of which only these are parameters, with what follows it in the same pass::

        a[b, o, p, q] = sum over t, i of weight[t, i, o] x[b, i, stride p + dilation dy_t, stride q + dilation dx_t]
        y = act(a + bias + condition) + residual

    Positions outside the image contribute nothing. PixelCNN's masks, the two stacks of Gated PixelCNN, PixelCNN++'s
    shifted convolutions, WaveNet's causal ones and their reversals are lists of taps (`causal_taps`).
    van den Oord et al. 2016 (arXiv 1601.06759, 1606.05328), Salimans et al. 2017 (1701.05517).

    x: [B, Cin, H, W], any strides; channels_last is read as it lies. Or codes [B, H, W] of uint8, int16, int32 or
        int64: x[b, i, ...] is then 1 for i = code, that is rows weight[t, code] are summed; Cin = number of codes.
    weight: [T, Cin, Cout], one matrix for each tap (`weight_from_dense`).
    taps: T distinct pairs (dy, dx) of integers; negative ones look up and left.
    channel_mask: "A" or "B": at the tap (0, 0), group i of the input channels reaches group o of the output channels
        iff i < o ("A") or i <= o ("B"); channel_groups of them, contiguous, or channel c in group c mod channel_groups
        (interleaved). Each half of the output channels has its own groups in front of a gate. Other entries of weight
        are ignored and get zero gradient.
    stride: the output is [B, Cout, ceil(H / stride), ceil(W / stride)].
    transposed: the same taps on x with stride - 1 zeros after each pixel; the output is [B, Cout, stride H, stride W],
        or output_size = (H', W') with stride (H - 1) < H' <= stride H.
    bias: [Cout], or [B, Cout] (a class condition). condition: [B, Cout, H', W'].
    activation: None, "relu", "elu", "gate" (tanh(first half of the channels) sigmoid(second half)) or "glu"
        (first half times sigmoid(second half)). The last two halve the channels of y.
    residual: of y's shape.
    All of weight's dtype: float32, float64, bfloat16 or float16; arithmetic in float32 at least.

    Returns y, channels_last where x is so and not contiguous too, else contiguous. A NaN reaches what its taps reach,
    through live entries of weight alone. The same bits for any number of threads.

    Differentiable once with respect to every floating-point tensor; twice raises NotImplementedError, except under
    `pygen.backends.use("reference")`. The backward keeps x, weight and, with an activation, the pre-activations.
    torch.autocast changes nothing.

    Bytes moved: forward, x, weight and what is added once in, y once out (and the pre-activations with an activation);
    backward, those and the gradient of y in, the gradients out. Backends: C++ (AVX-512, AVX2, baseline) on the CPU,
    Triton on CUDA, else the reference; `pygen.backends.explain("masked_conv2d", x)` says which and why.

    Raises ValueError for shapes, devices, options and codes (on the CPU; the Triton kernels make NaN of them) that do
    not fit, TypeError for dtypes and types.

    >>> import torch
    >>> from pygen.ops import causal_taps, masked_conv2d
    >>> taps = causal_taps(3, kind="A")
    >>> taps
    ((-1, -1), (-1, 0), (-1, 1), (0, -1))
    >>> x, weight = torch.randn(2, 8, 28, 28), torch.randn(4, 8, 16)
    >>> masked_conv2d(x, weight, taps=taps, activation="gate").shape
    torch.Size([2, 8, 28, 28])
    """
    for name, value in (("x", x), ("weight", weight)):
        if not isinstance(value, Tensor):
            raise TypeError(f"masked_conv2d: expected {name} to be a tensor, got {type(value).__name__}")
    compiling = torch.compiler.is_compiling()
    sizes = None if output_size is None else _pairs("output_size", (output_size,))[0]
    options = (_options if compiling else _options_cached)(
        _pairs("taps", taps), channel_mask, _integer("channel_groups", channel_groups), interleaved,
        _integer("stride", stride), _integer("dilation", dilation), transposed, sizes, activation,
    )  # fmt: skip
    if backends.forced is not None and backends.choose("masked_conv2d", x) == "reference":
        return _default(x, weight, bias, condition, residual, ConvOptions.parse(options))[0]
    if forward_ad._current_level >= 0:
        refuse_tangents("masked_conv2d", x, weight, bias, condition, residual)
    y: Tensor = torch.ops.pygen.masked_conv2d(x, weight, bias, condition, residual, options)[0]
    return y


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    taps: Sequence[int],
    channel_mask: str | None = None,
    channel_groups: int = 3,
    interleaved: bool = False,
    dilation: int = 1,
    condition: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`masked_conv2d` of sequences: y[b, o, q] = sum over t, i of weight[t, i, o] x[b, i, q + dilation taps[t]].

    x: [B, Cin, L], or codes [B, L]. taps: distinct integers <= 0, 0 the present: (-1, 0) for WaveNet's layers, (-1,)
        to leave the present out. condition and residual: [B, channels, L]. All else as there.

    Raises ValueError for a tap that looks ahead, and as `masked_conv2d`.
    """
    offsets = [_integer("taps", t) for t in taps]
    if any(t > 0 for t in offsets):
        raise ValueError(f"causal_conv1d: expected taps <= 0, got {offsets}")
    if x.dim() != (3 if x.is_floating_point() else 2):
        raise ValueError(f"causal_conv1d: expected x [B, Cin, L] or codes [B, L], got {tuple(x.shape)}")
    y = masked_conv2d(
        x.unsqueeze(-2),
        weight,
        bias,
        taps=[(0, t) for t in offsets],
        channel_mask=channel_mask,
        channel_groups=channel_groups,
        interleaved=interleaved,
        dilation=dilation,
        condition=None if condition is None else condition.unsqueeze(-2),
        activation=activation,
        residual=None if residual is None else residual.unsqueeze(-2),
    )
    return y.squeeze(-2)


# --- tap lists and other layouts --------------------------------------------------------------------------------------


def _kernel(kernel: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    if height < 1 or width < 1:
        raise ValueError(f"causal_taps: expected a kernel >= 1, got {kernel}")
    return height, width


def causal_taps(
    kernel: int | tuple[int, int], *, kind: str = "B", order: str = "raster", stack: str | None = None
) -> tuple[tuple[int, int], ...]:
    """Taps (dy, dx) of a k x k mask (or height x width) for pixels in raster order, in the order of its rows.

    stack None: the rows above and, in the own row, what lies to the left; kind "B" with the centre, "A" without.
    stack "vertical": the rows above; with the own row, whole, for kind "B", and without it for "A". The first layer
        takes "A" where the shift is at the input (later ones "B", read by 1x1 at the same pixel); "B" in every layer
        where the shift is at the link, which then reads the row above: tap (-1, 0).
    stack "horizontal": what lies to the left in the own row; kind "B" with the centre, "A" without.
    order "reversed" mirrors all taps: below and right instead.

    Raises ValueError for a kernel of even size along an axis about whose centre the mask lies.
    """
    height, width = _kernel(kernel)
    for name, value, choices in (
        ("kind", kind, ("A", "B")),
        ("order", order, ("raster", "reversed")),
        ("stack", stack, (None, "vertical", "horizontal")),
    ):
        if value not in choices:
            raise ValueError(f"causal_taps: expected {name} to be one of {choices}, got {value!r}")
    centred = {None: (height, width), "vertical": (height, width), "horizontal": (width,)}[stack]
    if any(n % 2 == 0 for n in centred):
        raise ValueError(f"causal_taps: expected an odd kernel for a centred mask, got {kernel}")
    rows = range(-(height // 2), 1) if stack != "horizontal" else range(1)
    columns = range(-(width // 2), width // 2 + 1)

    def live(dy: int, dx: int) -> bool:
        if dy < 0:
            return True
        return kind == "B" if stack == "vertical" else dx < 0 or (dx == 0 and kind == "B")

    sign = -1 if order == "reversed" else 1
    return tuple((sign * dy, sign * dx) for dy in rows for dx in columns if live(dy, dx))


def channel_links(
    channels_in: int,
    channels_out: int,
    channel_mask: str,
    *,
    channel_groups: int = 3,
    interleaved: bool = False,
    gated: bool = False,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Which entries of weight [Cin, Cout] at the tap (0, 0) a channel mask leaves: bool; see `masked_conv2d`.

    Raises ValueError for another mask, and for channels (of one half in front of a gate) that the groups do not divide.
    """
    _one_of("channel_mask", channel_mask, CHANNEL_MASKS)
    parts = channel_groups * (2 if gated else 1)
    for name, channels, groups in (("channels_in", channels_in, channel_groups), ("channels_out", channels_out, parts)):
        if channel_groups < 1 or channels % groups:
            raise ValueError(f"channel_links: expected {name} divisible by {groups}, got {channels}")
    where = (channel_groups, interleaved, torch.device(device))
    group_in, group_out = (
        reference.group_of(n, *where, half) for n, half in ((channels_in, False), (channels_out, gated))
    )
    return group_in[:, None] < group_out + (channel_mask == "B")


def _places(
    op: str, kernel: tuple[int, int], taps: Taps, centre: tuple[int, int] | None
) -> tuple[list[int], list[int]]:
    """Row and column of each tap in a kernel whose `centre` is tap (0, 0)."""
    middle = (kernel[0] // 2, kernel[1] // 2) if centre is None else centre
    places = [(middle[0] + dy, middle[1] + dx) for dy, dx in taps]
    if any(not (0 <= y < kernel[0] and 0 <= x < kernel[1]) for y, x in places):
        raise ValueError(f"{op}: expected taps within a kernel {kernel} with tap (0, 0) at {middle}, got {list(taps)}")
    return [y for y, _ in places], [x for _, x in places]


def weight_from_dense(dense: Tensor, taps: Taps, *, centre: tuple[int, int] | None = None) -> Tensor:
    """The weight [T, Cin, Cout] of these taps from the layout [Cout, Cin, height, width] of torch.nn.Conv2d.

    centre: row and column of tap (0, 0); (height // 2, width // 2) unless given, as padding = k // 2 has it.
    """
    rows, columns = _places("weight_from_dense", (dense.shape[2], dense.shape[3]), taps, centre)
    return dense[:, :, rows, columns].permute(2, 1, 0).contiguous()


def weight_to_dense(
    weight: Tensor, taps: Taps, kernel: int | tuple[int, int], *, centre: tuple[int, int] | None = None
) -> Tensor:
    """The inverse of `weight_from_dense`, [Cout, Cin, height, width]: zero at every other tap."""
    size = _kernel(kernel)
    rows, columns = _places("weight_to_dense", size, taps, centre)
    dense = weight.new_zeros(weight.shape[2], weight.shape[1], *size)
    dense[:, :, rows, columns] = weight.permute(2, 1, 0)
    return dense
