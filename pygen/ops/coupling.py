"""Affine coupling: the public function, its torch op, fakes and gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._lib import define, once_differentiable
from ..reference import coupling as reference

# The op's schema carries these as integers: csrc/common/coupling.h holds the same numbers.
ACTIVATIONS = ("exp", "sigmoid", "softplus", "additive")
SQUASHES = (None, "tanh", "atan", "softsign")
PARTS = ("range", "first", "second", "all", "even", "odd", "index")

_OPTIONS = (
    "int activation, int squash, int part, int start, int stop, bool shift_first, bool shift_leads, bool interleaved, "
    "bool inverse, bool memory_efficient, float offset, float eps, float max_scale, float gain_value, float width, "
    "float shift_scale"
)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# --- options ----------------------------------------------------------------------------------------------------------


def _one_of(name: str, value: Any, choices: tuple[Any, ...]) -> int:
    if value not in choices:
        raise ValueError(f"affine_coupling: expected {name} to be one of {choices}, got {value!r}")
    return choices.index(value)


def _number(name: str, value: Any, positive: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"affine_coupling: expected {name} to be a number, got {type(value).__name__}")
    if not math.isfinite(value) or (positive and value <= 0):
        raise ValueError(f"affine_coupling: expected {name} to be finite{' and > 0' * positive}, got {value}")
    return float(value)


def _encode(
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
) -> tuple[Any, ...]:
    """Checks the options that are no tensors and turns them into the op's arguments (part: one of PARTS)."""
    if _number("eps", eps) < 0:
        raise ValueError(f"affine_coupling: expected eps >= 0, got {eps}")
    return (
        _one_of("activation", activation, ACTIVATIONS),
        _one_of("squash", squash, SQUASHES),
        PARTS.index(part),
        start,
        stop,
        bool(_one_of("shift", shift, ("after", "before"))),
        bool(_one_of("order", order, ("st", "ts"))),
        bool(interleaved),
        bool(inverse),
        bool(memory_efficient),
        _number("offset", offset),
        _number("eps", eps),
        math.inf if max_scale is None else _number("max_scale", max_scale, positive=True),
        _number("gain", gain),
        _number("width", width, positive=True),
        _number("shift_scale", shift_scale),
    )


_encode_cached = lru_cache(maxsize=256, typed=True)(_encode)


def _decode(
    gain: Tensor | None,
    index: Tensor | None,
    activation: int,
    squash: int,
    part: int,
    start: int,
    stop: int,
    shift_first: bool,
    shift_leads: bool,
    interleaved: bool,
    inverse: bool,
    memory_efficient: bool,
    offset: float,
    eps: float,
    max_scale: float,
    gain_value: float,
    width: float,
    shift_scale: float,
) -> dict[str, Any]:
    """The op's arguments as the reference's keywords."""
    name = PARTS[part]
    return {
        "activation": ACTIVATIONS[activation],
        "squash": SQUASHES[squash],
        "part": index if name == "index" else slice(start, stop) if name == "range" else name,
        "shift": "before" if shift_first else "after",
        "order": "ts" if shift_leads else "st",
        "interleaved": interleaved,
        "inverse": inverse,
        "memory_efficient": memory_efficient,
        "offset": offset,
        "eps": eps,
        "max_scale": None if math.isinf(max_scale) else max_scale,
        "gain": gain_value if gain is None else gain,
        "width": width,
        "shift_scale": shift_scale,
    }


# --- checks: decided from shapes, dtypes and devices; values only of an index on the CPU ------------------------------


def _changed(x: Tensor, params: Tensor, activation: int) -> int:
    """C', the number of channels that change."""
    return params.shape[1] if ACTIVATIONS[activation] == "additive" else params.shape[1] // 2


def check(
    x: Tensor,
    params: Tensor,
    gain: Tensor | None,
    index: Tensor | None,
    logdet: Tensor | None,
    activation: int,
    squash: int,
    part: int,
    start: int,
    stop: int,
    *_: Any,
) -> None:
    """Raises for what the op does not admit. The native kernels hand over to the reference, and so to this, when their
    own compact test fails."""
    op = "affine_coupling"
    if x.dim() < 2:
        raise ValueError(f"{op}: expected x of shape [B, C, ...], got {tuple(x.shape)}")
    if x.dtype not in _DTYPES:
        raise TypeError(f"{op}: expected x of dtype {_names(_DTYPES)}, got {x.dtype}")
    admitted = (torch.float32, torch.bfloat16, torch.float16) if x.dtype == torch.float32 else (x.dtype,)
    if params.dtype not in admitted:
        raise TypeError(f"{op}: expected params of dtype {_names(admitted)} for x of {x.dtype}, got {params.dtype}")
    for name, tensor in (("params", params), ("gain", gain), ("index", index), ("logdet", logdet)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{op}: expected {name} on {x.device} as x, got {tensor.device}")
    if params.dim() != x.dim() or params.shape[0] != x.shape[0] or params.shape[2:] != x.shape[2:]:
        expected = ("B", "channels", *x.shape[2:])
        raise ValueError(
            f"{op}: expected params of shape [{', '.join(map(str, expected))}] with B = {x.shape[0]} as in x "
            f"{tuple(x.shape)}, got {tuple(params.shape)}"
        )
    channels, n = x.shape[1], _changed(x, params, activation)
    if ACTIVATIONS[activation] != "additive" and params.shape[1] % 2:
        raise ValueError(f"{op}: expected an even number of channels in params (scale, shift), got {params.shape[1]}")
    name = PARTS[part]
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
        if index.device.type == "cpu" and not torch.compiler.is_compiling() and type(index) is Tensor:
            values = index.tolist()
            if len(set(values)) != len(values) or not set(values) <= set(range(channels)):
                raise ValueError(f"{op}: expected distinct channel indices in [0, {channels}), got {values}")
    else:
        expected_n = channels
    if n != expected_n:
        factor = 1 if ACTIVATIONS[activation] == "additive" else 2
        raise ValueError(
            f"{op}: expected params with {factor * expected_n} channels for {expected_n} changing channels of x "
            f"{tuple(x.shape)} (part {name!r}, activation {ACTIVATIONS[activation]!r}), got {params.shape[1]}"
        )
    accumulate = torch.promote_types(x.dtype, torch.float32)
    for name, tensor in (("gain", gain), ("logdet", logdet)):
        if tensor is not None and tensor.dtype != accumulate:
            raise TypeError(f"{op}: expected {name} of {accumulate} for x of {x.dtype}, got {tensor.dtype}")
    if gain is not None and gain.numel() not in (1, n):
        raise ValueError(f"{op}: expected gain of 1 or {n} elements, got shape {tuple(gain.shape)}")
    if logdet is not None and logdet.shape != x.shape[:1]:
        raise ValueError(f"{op}: expected logdet of shape ({x.shape[0]},), got {tuple(logdet.shape)}")


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(d).removeprefix("torch.") for d in dtypes)


def layout(x: Tensor) -> torch.memory_format:
    """Memory format of every output: channels_last where x is so and not contiguous too, else contiguous."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


# --- the ops ----------------------------------------------------------------------------------------------------------


def _default(x: Tensor, params: Tensor, gain: Any, index: Any, logdet: Any, *options: Any) -> tuple[Tensor, Tensor]:
    check(x, params, gain, index, logdet, *options)
    y, total = reference.affine_coupling(x, params, logdet=logdet, **_decode(gain, index, *options))
    return y.contiguous(memory_format=layout(x)), total


def _default_backward(
    grad_y: Tensor, grad_logdet: Tensor, saved: Any, params: Tensor, gain: Any, index: Any, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *options, need_x, need_params, need_gain = rest
    grads = reference.affine_coupling_backward(grad_y, grad_logdet, saved, params, **_decode(gain, index, *options))
    fmt = layout(grad_y if saved is None else saved)
    grad_x, grad_params = (g.contiguous(memory_format=fmt) for g in grads[:2])
    empty = grad_y.new_empty
    return (
        grad_x if need_x else empty(0),
        grad_params if need_params else empty(0, dtype=params.dtype),
        grads[2] if need_gain and gain is not None else grads[2].new_empty(0),
    )


def _fake(x: Tensor, params: Tensor, gain: Any, index: Any, logdet: Any, *options: Any) -> tuple[Tensor, Tensor]:
    check(x, params, gain, index, logdet, *options)
    accumulate = torch.promote_types(x.dtype, torch.float32)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout(x)), x.new_empty(
        x.shape[0], dtype=accumulate
    )


def _fake_backward(
    grad_y: Tensor, grad_logdet: Tensor, saved: Any, params: Tensor, gain: Any, index: Any, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_params, need_gain = rest[-3:]
    fmt = layout(grad_y if saved is None else saved)
    accumulate = torch.promote_types(grad_y.dtype, torch.float32)

    def empty(like: Tensor, needed: bool) -> Tensor:
        if not needed:
            return like.new_empty(0)
        return torch.empty(like.shape, dtype=like.dtype, device=like.device, memory_format=fmt)

    grad_gain = grad_y.new_empty(gain.shape if need_gain and gain is not None else 0, dtype=accumulate)
    return empty(grad_y, need_x), empty(params, need_params), grad_gain


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, params, gain, index, _, *options = inputs
    ctx.options = options
    activation, shift_first, inverse, memory_efficient = options[0], options[5], options[8], options[9]
    if ACTIVATIONS[activation] == "additive":
        saved = None
    else:
        saved = output[0] if memory_efficient or shift_first != inverse else x
    ctx.save_for_backward(saved, params, gain, index)


def _backward(ctx: Any, grad_y: Tensor, grad_logdet: Tensor) -> tuple[Any, ...]:
    saved, params, gain, index = ctx.saved_tensors
    need = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2])
    grads = torch.ops.pygen.affine_coupling_backward(
        grad_y, grad_logdet, saved, params, gain, index, *ctx.options, *need
    )
    grad_x, grad_params, grad_gain = (g if n else None for g, n in zip(grads, need, strict=True))
    grad_running = grad_logdet if ctx.needs_input_grad[4] else None
    return grad_x, grad_params, grad_gain, None, grad_running, *[None] * len(ctx.options)


define(
    f"affine_coupling(Tensor x, Tensor params, Tensor? gain, Tensor? index, Tensor? logdet, {_OPTIONS})"
    " -> (Tensor y, Tensor logdet)",
    family="coupling",
    default=_default,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    cuda="triton",
)
define(
    "affine_coupling_backward(Tensor grad_y, Tensor grad_logdet, Tensor? saved, Tensor params, Tensor? gain, "
    f"Tensor? index, {_OPTIONS}, bool need_x, bool need_params, bool need_gain)"
    " -> (Tensor grad_x, Tensor grad_params, Tensor grad_gain)",
    family="coupling",
    default=_default_backward,
    fake=_fake_backward,
    setup_context=None,
    backward=once_differentiable("affine_coupling_backward"),
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

    DOCSTRING_PLACEHOLDER
    """
    gain_tensor, gain_value = (gain, 1.0) if isinstance(gain, Tensor) else (None, gain)
    index: Tensor | None = None
    name, start, stop = "index", 0, 0
    if isinstance(part, str):
        name = PARTS[1 + _one_of("part", part, PARTS[1:-1])]
    elif isinstance(part, slice):
        if part.step not in (None, 1) or part.stop is None:
            raise ValueError(f"affine_coupling: expected part as slice(start, stop), got {part}")
        name, start, stop = "range", part.start or 0, part.stop
    else:
        index = channel_index(part, x)
    encode = _encode if torch.compiler.is_compiling() else _encode_cached
    options = encode(
        activation, squash, name, start, stop, shift, order, interleaved, inverse, memory_efficient, offset, eps,
        max_scale, gain_value, width, shift_scale,
    )  # fmt: skip
    if activation == "additive":
        gain_tensor = None
    elif gain_tensor is not None:
        if not gain_tensor.is_floating_point():
            raise TypeError(f"affine_coupling: expected a floating-point gain, got {gain_tensor.dtype}")
        gain_tensor = gain_tensor.to(torch.promote_types(x.dtype, torch.float32))
    if backends.forced is not None and backends.choose("affine_coupling", x) == "reference":
        return _default(x, params, gain_tensor, index, logdet, *options)
    out: tuple[Tensor, Tensor] = torch.ops.pygen.affine_coupling.default(
        x, params, gain_tensor, index, logdet, *options
    )
    return out


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
