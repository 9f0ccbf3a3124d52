"""Affine coupling: the public function, its torch op, fakes and gradients."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _ext, backends
from .._lib import FLOATS, define, layout, names, once_differentiable, refuse_tangents
from .._options import Options
from ..reference import coupling as reference

ACTIVATIONS = ("exp", "sigmoid", "softplus", "additive")
SQUASHES = ("none", "tanh", "atan", "softsign")
PARTS = ("first", "second", "all", "even", "odd")


# --- options ----------------------------------------------------------------------------------------------------------


def _one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"affine_coupling: expected {name} to be one of {choices}, got {value!r}")


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)):
        raise TypeError(f"affine_coupling: expected {name} to be a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"affine_coupling: expected {name} to be finite, got an integer beyond it") from None


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"affine_coupling: expected {name} to be a bool, got {value!r}")
    return value


@dataclass(frozen=True)
class CouplingOptions(Options):
    """Options of `affine_coupling` that are no tensors; see there. csrc/cpu/coupling.cpp reads the same."""

    activation: str = "exp"
    squash: str = "none"
    part: str = "second"  # also "range", of start and stop, and "index"
    start: int = 0
    stop: int = 0
    shift: str = "after"
    order: str = "st"
    interleaved: bool = False
    inverse: bool = False
    memory_efficient: bool = False
    offset: float = 0.0
    eps: float = 0.0
    max_scale: float = math.inf
    gain: float = 1.0
    width: float = 1.0
    shift_scale: float = 1.0

    def __post_init__(self) -> None:
        _one_of("activation", self.activation, ACTIVATIONS)
        _one_of("squash", self.squash, SQUASHES)
        _one_of("part", self.part, (*PARTS, "range", "index"))
        _one_of("shift", self.shift, ("after", "before"))
        _one_of("order", self.order, ("st", "ts"))
        for name in ("offset", "eps", "gain", "shift_scale"):
            value = getattr(self, name)
            if not -math.inf < value < math.inf:  # torch.compile cannot trace math.isfinite
                raise ValueError(f"affine_coupling: expected {name} to be finite, got {value}")
        if self.eps < 0:
            raise ValueError(f"affine_coupling: expected eps >= 0, got {self.eps}")
        if not 0 < self.width < math.inf:
            raise ValueError(f"affine_coupling: expected width to be finite and > 0, got {self.width}")
        if not self.max_scale > 0:  # infinite: none
            raise ValueError(f"affine_coupling: expected max_scale to be finite and > 0, got {self.max_scale}")

    @property
    def additive(self) -> bool:
        return self.activation == "additive"

    @property
    def multiply_last(self) -> bool:
        """out = (in + tau) M, else in M + tau, for forward and inverse alike."""
        return (self.shift == "before") != self.inverse

    def keywords(self, gain: Tensor | None, index: Tensor | None) -> dict[str, Any]:
        """As the reference takes them."""
        own = asdict(self)
        start, stop = own.pop("start"), own.pop("stop")
        parts = {"range": slice(start, stop), "index": index}
        return own | {
            "part": parts.get(self.part, self.part),
            "squash": None if self.squash == "none" else self.squash,
            "max_scale": None if math.isinf(self.max_scale) else self.max_scale,
            "gain": self.gain if gain is None else gain,
        }


def _options(
    activation: str,
    squash: str | None,
    part: str,
    start: int,
    stop: int,
    shift: str,
    order: str,
    interleaved: bool,
    inverse: bool,
    memory_efficient: bool,
    offset: float,
    eps: float,
    max_scale: float | None,
    gain: float,
    width: float,
    shift_scale: float,
) -> str:
    """The options as the op's argument; raises for types and values that are not admitted."""
    _one_of("squash", squash, (None, *SQUASHES[1:]))
    options = CouplingOptions(
        activation=activation,
        squash=squash or "none",
        part=part,
        start=start,
        stop=stop,
        shift=shift,
        order=order,
        interleaved=_flag("interleaved", interleaved),
        inverse=_flag("inverse", inverse),
        memory_efficient=_flag("memory_efficient", memory_efficient),
        offset=_number("offset", offset),
        eps=_number("eps", eps),
        max_scale=math.inf if max_scale is None else _number("max_scale", max_scale),
        gain=_number("gain", gain),
        width=_number("width", width),
        shift_scale=_number("shift_scale", shift_scale),
    )
    if max_scale is not None and options.max_scale == math.inf:
        raise ValueError("affine_coupling: expected max_scale to be finite and > 0, got inf")
    return str(options)


_options_cached = lru_cache(maxsize=1024, typed=True)(_options)  # 1 is not True


# --- checks: decided from shapes, dtypes and devices; values only of an index on the CPU ------------------------------


def check(
    x: Tensor,
    params: Tensor,
    gain: Tensor | None,
    index: Tensor | None,
    logdet: Tensor | None,
    options: CouplingOptions,
) -> None:
    """Raises for what the op does not admit. The native kernels hand over to the reference, and so to this, when their
    own compact test fails."""
    op = "affine_coupling"
    if x.dim() < 2:
        raise ValueError(f"{op}: expected x of shape [B, C, ...], got {tuple(x.shape)}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{op}: expected x of dtype {names(FLOATS)}, got {x.dtype}")
    admitted = (torch.float32, torch.bfloat16, torch.float16) if x.dtype == torch.float32 else (x.dtype,)
    if params.dtype not in admitted:
        raise TypeError(f"{op}: expected params of dtype {names(admitted)} for x of {x.dtype}, got {params.dtype}")
    for name, tensor in (("params", params), ("gain", gain), ("index", index), ("logdet", logdet)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{op}: expected {name} on {x.device} as x, got {tensor.device}")
    if params.dim() != x.dim() or params.shape[0] != x.shape[0] or params.shape[2:] != x.shape[2:]:
        expected = ("B", "channels", *x.shape[2:])
        raise ValueError(
            f"{op}: expected params of shape [{', '.join(map(str, expected))}] with B = {x.shape[0]} as in x "
            f"{tuple(x.shape)}, got {tuple(params.shape)}"
        )
    factor = 1 if options.additive else 2
    channels, n = x.shape[1], params.shape[1] // factor
    if params.shape[1] % factor:
        raise ValueError(f"{op}: expected an even number of channels in params (scale, shift), got {params.shape[1]}")
    name, start, stop = options.part, options.start, options.stop
    if index is not None and name != "index":
        raise ValueError(f"{op}: expected no channel indices with part {name!r}, got {tuple(index.shape)} of them")
    if name in ("first", "second"):
        if channels % 2:
            raise ValueError(
                f"{op}: expected an even number of channels in x to change its {name} half, got {channels} "
                "(part takes a slice or channel indices for an uneven split)"
            )
        expected_n = channels // 2
    elif name == "range":
        if not 0 <= start <= stop <= channels:
            raise ValueError(f"{op}: expected a slice within the {channels} channels of x, got slice({start}, {stop})")
        expected_n = stop - start
    elif name == "index":
        if index is None or index.dim() != 1 or index.dtype != torch.int64:
            got = "None" if index is None else f"{index.dtype} of shape {tuple(index.shape)}"
            raise TypeError(f"{op}: expected part as a one-dimensional int64 tensor of channel indices, got {got}")
        expected_n = index.shape[0]
        if expected_n > channels:
            raise ValueError(
                f"{op}: expected at most {channels} channel indices for x {tuple(x.shape)}, got {expected_n}"
            )
        if index.device.type == "cpu" and not torch.compiler.is_compiling() and type(index) is Tensor:
            values = index.tolist()
            if len(set(values)) != len(values) or not set(values) <= set(range(channels)):
                raise ValueError(f"{op}: expected distinct channel indices in [0, {channels}), got {values}")
    else:
        expected_n = channels
    if n != expected_n:
        raise ValueError(
            f"{op}: expected params with {factor * expected_n} channels for {expected_n} changing channels of x "
            f"{tuple(x.shape)} (part {name!r}, activation {options.activation!r}), got {params.shape[1]}"
        )
    accumulate = torch.promote_types(x.dtype, torch.float32)
    for name, tensor in (("gain", gain), ("logdet", logdet)):
        if tensor is not None and tensor.dtype != accumulate:
            raise TypeError(f"{op}: expected {name} of {accumulate} for x of {x.dtype}, got {tensor.dtype}")
    if gain is not None and gain.numel() not in (1, n):
        raise ValueError(f"{op}: expected gain of 1 or {n} elements, got shape {tuple(gain.shape)}")
    if logdet is not None and logdet.shape != x.shape[:1]:
        raise ValueError(f"{op}: expected logdet of shape ({x.shape[0]},), got {tuple(logdet.shape)}")


def _check_backward(
    grad_y: Tensor,
    grad_logdet: Tensor,
    saved: Tensor | None,
    params: Tensor,
    gain: Tensor | None,
    index: Tensor | None,
    options: CouplingOptions,
    *_: bool,
) -> None:
    """Raises for what the backward op does not admit; autograd gives it nothing of the kind."""
    like = grad_y if saved is None else saved
    check(like, params, gain, index, grad_logdet, options)
    if (grad_y.shape, grad_y.dtype, grad_y.device) != (like.shape, like.dtype, like.device):
        raise ValueError(
            f"affine_coupling: expected grad_y of shape {tuple(like.shape)} and {like.dtype} on {like.device}, got "
            f"{tuple(grad_y.shape)} {grad_y.dtype} on {grad_y.device}"
        )
    if (saved is None) != options.additive:
        raise ValueError(f"affine_coupling: expected saved for every activation but additive, got {saved}")


# --- the ops ----------------------------------------------------------------------------------------------------------


def _default(
    x: Tensor,
    params: Tensor,
    gain: Tensor | None,
    index: Tensor | None,
    logdet: Tensor | None,
    options: CouplingOptions,
) -> tuple[Tensor, Tensor]:
    check(x, params, gain, index, logdet, options)
    y, total = reference.affine_coupling(x, params, logdet=logdet, **options.keywords(gain, index))
    return y.contiguous(memory_format=layout(x)), total


def _default_backward(
    grad_y: Tensor,
    grad_logdet: Tensor,
    saved: Tensor | None,
    params: Tensor,
    gain: Tensor | None,
    index: Tensor | None,
    options: CouplingOptions,
    need_x: bool,
    need_params: bool,
    need_gain: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_backward(grad_y, grad_logdet, saved, params, gain, index, options)
    grads = reference.affine_coupling_backward(grad_y, grad_logdet, saved, params, **options.keywords(gain, index))
    fmt = layout(grad_y if saved is None else saved)
    grad_x, grad_params = (g.contiguous(memory_format=fmt) for g in grads[:2])
    return (
        grad_x if need_x else grad_x.new_empty(0),
        grad_params if need_params else grad_params.new_empty(0),
        grads[2] if need_gain else grads[2].new_empty(0),
    )


def _fake(
    x: Tensor,
    params: Tensor,
    gain: Tensor | None,
    index: Tensor | None,
    logdet: Tensor | None,
    options: CouplingOptions,
) -> tuple[Tensor, Tensor]:
    check(x, params, gain, index, logdet, options)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout(x))
    return y, x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))


def _fake_backward(
    grad_y: Tensor,
    grad_logdet: Tensor,
    saved: Tensor | None,
    params: Tensor,
    gain: Tensor | None,
    index: Tensor | None,
    options: CouplingOptions,
    need_x: bool,
    need_params: bool,
    need_gain: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    fmt = layout(grad_y if saved is None else saved)

    def empty(like: Tensor, needed: bool) -> Tensor:
        if not needed:
            return like.new_empty(0)
        return torch.empty(like.shape, dtype=like.dtype, device=like.device, memory_format=fmt)

    grad_gain = grad_logdet.new_empty(gain.shape if need_gain and gain is not None else 0)
    return empty(grad_y, need_x), empty(params, need_params), grad_gain


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, params, gain, index, _, ctx.options = inputs
    options = CouplingOptions.parse(ctx.options)
    keep_output = options.memory_efficient or options.multiply_last
    saved = None if options.additive else output[0] if keep_output else x
    ctx.save_for_backward(saved, params, gain, index)


def _backward(ctx: Any, grad_y: Tensor, grad_logdet: Tensor) -> tuple[Tensor | None, ...]:
    saved, params, gain, index = ctx.saved_tensors
    need = ctx.needs_input_grad[:3]
    grads = torch.ops.pygen.affine_coupling_backward(
        grad_y, grad_logdet, saved, params, gain, index, ctx.options, *need
    )
    grad_x, grad_params, grad_gain = (g if n else None for g, n in zip(grads, need, strict=True))
    return grad_x, grad_params, grad_gain, None, grad_logdet if ctx.needs_input_grad[4] else None, None


define(
    "affine_coupling(Tensor x, Tensor params, Tensor? gain, Tensor? index, Tensor? logdet, str options)"
    " -> (Tensor y, Tensor logdet)",
    family="coupling",
    default=_default,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    check=check,
    options=CouplingOptions,
    cuda="triton",
)
define(
    "affine_coupling_backward(Tensor grad_y, Tensor grad_logdet, Tensor? saved, Tensor params, Tensor? gain, "
    "Tensor? index, str options, bool need_x, bool need_params, bool need_gain)"
    " -> (Tensor grad_x, Tensor grad_params, Tensor grad_gain)",
    family="coupling",
    default=_default_backward,
    fake=_fake_backward,
    setup_context=None,
    backward=once_differentiable("affine_coupling_backward"),
    check=_check_backward,
    options=CouplingOptions,
    cuda="triton",
)


# --- the public function ----------------------------------------------------------------------------------------------


def affine_coupling(
    x: Tensor,
    params: Tensor,
    *,
    activation: str = "exp",
    offset: float = 0.0,
    eps: float = 0.0,
    max_scale: float | None = None,
    squash: str | None = None,
    gain: float | Tensor = 1.0,
    width: float = 1.0,
    shift: str = "after",
    shift_scale: float = 1.0,
    order: str = "st",
    interleaved: bool = False,
    part: str | slice | Tensor | Sequence[int] = "second",
    logdet: Tensor | None = None,
    inverse: bool = False,
    memory_efficient: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Affine coupling: an elementwise affine map of one part of the channels, with its log-determinant.

    With raw scales s and shifts t taken from `params`::

        u  = gain * h(s / width) + offset              h: squash
        S  = min(f(u) + eps, max_scale)                f: activation
        t' = shift_scale * t
        y  = x * S + t'    or    y = (x + t') * S      shift "after" or "before"
        logdet = sum of log S over the sample

    for the part of x that changes; the rest passes. With `inverse`, x is y above: it returns the map's inverse and
    minus the sum. NICE (Dinh et al. 2015, arXiv 1410.8516, section 3.2), RealNVP (Dinh et al. 2017, arXiv 1605.08803,
    sections 3.2 to 3.4), Glow (Kingma and Dhariwal 2018, arXiv 1807.03039, table 1).

    x: [B, C, *S], any number of spatial dimensions, none too; float32, float64, bfloat16 or float16.
    params: [B, 2 C', *S] for C' changing channels, s and t as `order` and `interleaved` say; [B, C', *S], t alone, when
        additive. In the dtype of x; float32 x takes bfloat16 and float16 too. Under a checkerboard C' = C, and the
        values beside unchanged elements do not matter.
    activation: f, "exp" (default), "sigmoid" or "softplus"; "additive": S = 1, and no option of S counts.
    offset: added to u; 0.
    eps: added to f, >= 0; 0.
    max_scale: upper bound of S, > 0, with torch.clamp's gradient; None (default): none.
    squash: h, "tanh", "atan" or "softsign" (v / (1 + |v|)); None (default): the identity.
    gain: a number, 1, or a tensor of 1 or C' elements, one a channel, in any shape; it may require grad.
    width: > 0; 1.
    shift, shift_scale: when t' is added, "after" (default) or "before" the multiplication, and its factor; 1.
    order: what comes first in params: "st" (default) the scales, "ts" the shifts.
    interleaved: params hold pairs (s, t) in neighbouring channels; False (default): two halves of the channels.
    part: what changes. "second" (default) or "first" half of an even number of channels, "all" of them,
        slice(start, stop), or distinct channel indices: a list or an int64 tensor on x's device (its order is the order
        of params), or on the CPU a bool mask [C] (not under torch.compile(fullgraph=True)). Checkerboards: "even" or
        "odd", the elements whose spatial coordinates have such a sum; without spatial dimensions, such channels.
    logdet: [B], a running sum to add to, not changed itself; None (default): zero.
    memory_efficient: see below; False.

    Returns y, with the shape and dtype of x, in channels_last memory where x is (and is not contiguous too), else
    contiguous; and logdet [B] in nats. Arithmetic and logdet are float64 for float64 x, else float32; the log S of a
    sample are added in float64 on the CPU, in a fixed order on GPUs. NaN in an element reaches y there and logdet of
    its sample, no further. The kernels' results are right where they can be represented, even where S itself overflows
    or underflows, and the same bits for any number of threads.

    Differentiable once with respect to x, params, gain and logdet; twice raises NotImplementedError, except under
    `pygen.backends.use("reference")`, which PyTorch differentiates. Besides params (and gain, indices) the backward
    keeps y where the multiplication comes last (shift "before", or "after" inverted), else x; nothing when additive.
    memory_efficient keeps y instead of x and recovers x S as y - t', with an error up to eps(dtype of x) (|y| + |t'|),
    which enters the gradients of s and gain times the upstream gradient; those of x and t do not change.

    torch.autocast leaves the op alone: x keeps its dtype, and may meet the half-precision params of a net in autocast.

    Bytes moved: forward, x and params once in and y out; backward, the gradient of y, what was kept and params in, the
    gradients out. Backends: C++ (AVX-512, AVX2, baseline) on the CPU, Triton on CUDA, else the reference;
    `pygen.backends.explain("affine_coupling", x)` says which and why.

    Raises ValueError for shapes, devices, names of options, numbers and indices (on the CPU; those on a GPU are not
    looked at) that do not fit, TypeError for dtypes and types; both say what was expected and what was given.

    >>> import torch
    >>> from pygen.ops import affine_coupling
    >>> x = torch.randn(16, 6, 8, 8)
    >>> net = torch.nn.Conv2d(3, 6, 3, padding=1)
    >>> params = net(x[:, :3])  # the first half stays, so that the inverse can call the net too
    >>> y, logdet = affine_coupling(x, params, squash="tanh", gain=2.0)
    >>> back, total = affine_coupling(y, params, squash="tanh", gain=2.0, logdet=logdet, inverse=True)
    >>> bool((back - x).abs().max() < 1e-5), bool(total.abs().max() < 1e-3)
    (True, True)

    Options of other libraries' forward maps (inverse=True swaps where given; part as the library splits, if not named;
    a: a learned tensor, c = 2: FrEIA's clamp)::

        nflows affine               activation="sigmoid", offset=2, eps=1e-3, order="ts"
        nflows affine, general      activation="softplus", eps=1e-3, max_scale=3, order="ts"
        nflows MAF                  activation="softplus", eps=1e-3, interleaved=True, part="all"
        normflows exp               order="ts", interleaved=True
        normflows sigmoid           activation="sigmoid", offset=2, shift="before", shift_scale=-1, order="ts",
                                    interleaved=True, inverse=True
        normflows sigmoid_inv       activation="sigmoid", offset=2, order="ts", interleaved=True
        normflows MaskedAffineFlow  -
        zuko                        squash="softsign", gain=log(1e3), width=log(1e3), order="ts", interleaved=True
        FrEIA ATAN                  squash="atan", gain=0.636 * c
        FrEIA TANH                  squash="tanh", gain=c
        FrEIA SIGMOID               squash="tanh", gain=c, width=2
        FrEIA AllInOneBlock 0.2     squash="tanh", gain=c, width=10, shift_scale=0.1
        FrEIA AllInOneBlock, later  squash="tanh", gain=c, width=10 * c, shift_scale=0.1
        openai/glow                 activation="sigmoid", offset=2, shift="before", order="ts", interleaved=True
        rosinality/glow-pytorch     activation="sigmoid", offset=2, shift="before"
        chrischute/glow             squash="tanh", gain=a, shift="before", interleaved=True, part="first"
        chrischute/real-nvp         squash="tanh", gain=a, shift="before"
        survae interleaved          -
        survae sequential           interleaved=True
        WaveGlow, VITS              order="ts"
        NICE, VITS mean_only        activation="additive"
        TarFlow                     gain=-1, shift="before", shift_scale=-1, part="all"
        Jet, y / factor             activation="sigmoid", shift="before", order="ts"
    """
    # The order of these tests is for speed: isinstance of a Tensor is slow.
    if not (type(x) is type(params) is Tensor and (logdet is None or type(logdet) is Tensor)):  # quick, for most calls
        _tensors(x=x, params=params, **({} if logdet is None else {"logdet": logdet}))
    gain_value, gain_tensor = (gain, None) if isinstance(gain, (float, int)) else (1.0, _gain(gain, x))
    index: Tensor | None = None
    name, start, stop = "index", 0, 0
    if isinstance(part, str):
        name = part
        _one_of("part", part, PARTS)
    elif isinstance(part, slice):
        if part.step not in (None, 1):
            raise ValueError(f"affine_coupling: expected part as slice(start, stop), got {part}")
        name = "range"
        start = 0 if part.start is None else operator.index(part.start)
        stop = (x.shape[1] if x.dim() > 1 else 0) if part.stop is None else operator.index(part.stop)
    else:
        index = channel_index(part, x)
    compiling = torch.compiler.is_compiling()
    options = (_options if compiling else _options_cached)(
        activation, squash, name, start, stop, shift, order, interleaved, inverse, memory_efficient, offset, eps,
        max_scale, gain_value, width, shift_scale,
    )  # fmt: skip
    if activation == "additive":
        gain_tensor = None
    if backends.forced is not None and backends.choose("affine_coupling", x) == "reference":
        return _default(x, params, gain_tensor, index, logdet, CouplingOptions.parse(options))
    if forward_ad._current_level >= 0:
        refuse_tangents("affine_coupling", x, params, gain_tensor, logdet)
    return (_op if compiling else _quick_op)(x, params, gain_tensor, index, logdet, options)  # type: ignore[no-any-return]


_op = torch.ops.pygen.affine_coupling.default
_quick_op = _ext.quick(_op)


def _tensors(**arguments: Any) -> None:
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"affine_coupling: expected {name} to be a tensor, got {type(value).__name__}")


def _gain(gain: Any, x: Tensor) -> Tensor:
    if not isinstance(gain, Tensor) or not gain.is_floating_point():
        got = gain.dtype if isinstance(gain, Tensor) else type(gain).__name__
        raise TypeError(f"affine_coupling: expected gain as a number or a floating-point tensor, got {got}")
    return gain.to(torch.promote_types(x.dtype, torch.float32))


def channel_index(part: Any, x: Tensor) -> Tensor:
    """int64 indices of the channels of x that change, from indices, or from a bool mask on the CPU."""
    if not isinstance(part, (Tensor, Sequence)):
        raise TypeError(
            "affine_coupling: expected part to be a name, a slice, or a tensor or sequence of channel indices, "
            f"got {type(part).__name__}"
        )
    index = part if isinstance(part, Tensor) else torch.as_tensor(part)
    if index.dtype == torch.bool:
        if index.shape != x.shape[1:2]:
            raise ValueError(
                f"affine_coupling: expected a bool mask with one entry per channel of x {tuple(x.shape)}, "
                f"got shape {tuple(index.shape)}"
            )
        if index.device.type != "cpu":
            raise TypeError("affine_coupling: expected channel indices, got a bool mask on a GPU (its use syncs)")
        index = index.nonzero().flatten()
    if not isinstance(part, Tensor) or part.dtype == torch.bool:
        index = index.to(x.device)
    return index
