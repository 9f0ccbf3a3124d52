"""Monotone rational-quadratic splines: the public function, its torch ops, fakes and gradient."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _ext, backends
from .._lib import FLOATS, define, layout, names, once_differentiable, refuse_tangents
from .._options import Options
from ..reference.rational_quadratic_spline import Bounds, Shape, rational_quadratic_spline_backward, split
from ..reference.rational_quadratic_spline import rational_quadratic_spline as reference

OP, BACKWARD = "rational_quadratic_spline", "rational_quadratic_spline_backward"

STYLES = ("nflows", "zuko", "knots")
TAILS = ("linear", "circular", None)
BINS = (2, 64)
MOST = 1e30  # of an option, in size: float32 has what follows from it


class InputOutsideDomain(ValueError):
    """A spline without tails was given a number that is not within its bounds."""


@dataclass(frozen=True)
class SplineOptions(Options):
    """What travels to the kernels; see `rational_quadratic_spline`. tails: "none" for None."""

    inverse: bool = False
    style: str = "nflows"
    tails: str = "linear"
    left: float = -1.0
    right: float = 1.0
    bottom: float = -1.0
    top: float = 1.0
    min_width: float = 1e-3
    min_height: float = 1e-3
    min_derivative: float = 1e-3
    beta: float = 1.0
    boundary_slope: float = 1.0
    slope: float = 1e-3

    @property
    def bounded(self) -> bool:
        """Whether numbers beyond the bounds are not admitted."""
        return self.tails == "none"

    def keywords(self) -> dict[str, Any]:
        """As the reference takes them."""
        return {
            "inverse": self.inverse,
            "style": self.style,
            "tails": None if self.bounded else self.tails,
            "bounds": (self.left, self.right, self.bottom, self.top),
            "min_width": self.min_width,
            "min_height": self.min_height,
            "min_derivative": self.min_derivative,
            "beta": self.beta,
            "boundary_slope": self.boundary_slope,
            "slope": self.slope,
        }


# --- checks -----------------------------------------------------------------------------------------------------------


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{OP}: expected {name} of numbers, got {value!r}")
    if not -MOST < value < MOST:  # torch.compile cannot trace math.isfinite
        raise ValueError(f"{OP}: expected {name} to be finite, and below {MOST:g} in size, got {value}")
    return float(value)


def parameter_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """That parameters may have beside an x of this one."""
    return (dtype, torch.bfloat16, torch.float16) if dtype == torch.float32 else (dtype,)


def _options(
    inverse: bool,
    style: str,
    tails: str | None,
    bounds: Bounds,
    min_width: float,
    min_height: float,
    min_derivative: float,
    beta: float,
    boundary_slope: float,
    slope: float,
) -> str:
    """The options as a string, once they are checked."""
    if not isinstance(inverse, bool):
        raise TypeError(f"{OP}: expected inverse to be a bool, got {inverse!r}")
    if style not in STYLES:
        raise ValueError(f"{OP}: expected style to be one of {STYLES}, got {style!r}")
    if tails not in TAILS:
        raise ValueError(f"{OP}: expected tails to be one of {TAILS}, got {tails!r}")
    for value in bounds if isinstance(bounds, tuple) else (bounds,):
        _number("bounds", value)
    limits = [float(value) for value in Shape(bounds=bounds).limits]
    if len(limits) != 4 or limits[0] >= limits[1] or limits[2] >= limits[3]:
        raise ValueError(
            f"{OP}: expected bounds as a positive number or (left, right, bottom, top), left < right and bottom < top, "
            f"got {bounds}"
        )
    if tails is not None and style != "knots" and limits[:2] != limits[2:]:
        raise ValueError(
            f"{OP}: expected bottom and top to be left and right, beyond which tails are the identity, got {bounds}"
        )
    least = {"min_width": min_width, "min_height": min_height, "min_derivative": min_derivative}
    least = {name: _number(name, value) for name, value in least.items()}
    above = {"beta": beta, "boundary_slope": boundary_slope, "slope": slope}
    above = {name: _number(name, value) for name, value in above.items()}
    for name, value in (least | above).items():
        if value < 0 or (value == 0 and name in above):
            raise ValueError(f"{OP}: expected {name} {'>' if name in above else '>='} 0, got {value}")
    if above["slope"] >= 1:
        raise ValueError(f"{OP}: expected slope below 1, got {slope}")
    left, right, bottom, top = limits
    return str(SplineOptions(inverse, style, tails or "none", left, right, bottom, top, **least, **above))


_options_cached = lru_cache(maxsize=1024, typed=True)(_options)  # 1 is not True


def _check(
    x: Tensor, widths: Tensor, heights: Tensor | None, derivatives: Tensor | None, options: SplineOptions
) -> None:
    if x.dtype not in FLOATS:
        raise TypeError(f"{OP}: expected x of dtype {names(FLOATS)}, got {x.dtype}")
    admitted = parameter_dtypes(x.dtype)
    if widths.dtype not in admitted:
        raise TypeError(f"{OP}: expected widths of {names(admitted)} for x of {x.dtype}, got {widths.dtype}")
    if (heights is None) != (derivatives is None):
        given = "derivatives" if heights is None else "heights"
        raise ValueError(f"{OP}: expected widths alone, or with both heights and derivatives, got {given} alone")
    for name, t in (("widths", widths), ("heights", heights), ("derivatives", derivatives)):
        if t is None:
            continue
        if t.dtype != widths.dtype:
            raise TypeError(f"{OP}: expected {name} of {widths.dtype} as widths, got {t.dtype}")
        if t.device != x.device:
            raise ValueError(f"{OP}: expected {name} on {x.device} as x, got {t.device}")
        if t.dim() != x.dim() + 1 or t.shape[:-1] != x.shape:
            expected = ", ".join([*map(str, x.shape), "n"])
            raise ValueError(
                f"{OP}: expected {name} of shape ({expected}) for x {tuple(x.shape)}, got {tuple(t.shape)}"
            )
    w, h, d = split(widths, heights, derivatives, options.style)
    bins = w.shape[-1] - (options.style == "knots")
    if not BINS[0] <= bins <= BINS[1]:
        raise ValueError(f"{OP}: expected {BINS[0]} to {BINS[1]} bins, got {bins}")
    slopes = {"linear": (bins - 1, bins + 1), "circular": (bins,), "none": (bins + 1,)}[options.tails]
    if h.shape[-1] != w.shape[-1] or d.shape[-1] not in slopes:
        expected = " or ".join(map(str, slopes))
        raise ValueError(
            f"{OP}: expected {w.shape[-1]} heights and {expected} derivatives for {bins} bins and tails "
            f"{None if options.bounded else repr(options.tails)}, got {h.shape[-1]} and {d.shape[-1]}"
        )
    for name, least in (("min_width", options.min_width), ("min_height", options.min_height)):
        if options.style == "nflows" and least * bins > 1:
            raise ValueError(f"{OP}: expected {name} of 1 / {bins} at most for {bins} bins, got {least}")


def _check_backward(
    grad_y: Tensor,
    grad_logabsdet: Tensor,
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None,
    derivatives: Tensor | None,
    options: SplineOptions,
    *_: bool,
) -> None:
    _check(x, widths, heights, derivatives, options)
    for name, grad, dtype in (("grad_y", grad_y, x.dtype), ("grad_logabsdet", grad_logabsdet, _wide(x))):
        if grad.shape != x.shape:
            raise ValueError(f"{BACKWARD}: expected {name} of shape {tuple(x.shape)}, got {tuple(grad.shape)}")
        if grad.dtype != dtype:
            raise TypeError(f"{BACKWARD}: expected {name} of {dtype}, got {grad.dtype}")


def _refuse_outside(x: Tensor, knots: Tensor, options: SplineOptions) -> None:
    """Raises where an x is beyond the bounds (of a spline of given knots: its own), by its value."""
    first, last = (options.bottom, options.top) if options.inverse else (options.left, options.right)
    below, above = (knots[..., 0], knots[..., -1]) if options.style == "knots" else (first, last)
    outside = (x < below) | (x > above)
    if outside.any():
        where = "its own knots" if options.style == "knots" else f"[{first:g}, {last:g}]"
        raise InputOutsideDomain(f"{OP}: expected x within {where} of a spline without tails, got {x[outside][0]:g}")


# --- the ops ----------------------------------------------------------------------------------------------------------


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _default(
    x: Tensor, widths: Tensor, heights: Tensor | None, derivatives: Tensor | None, options: SplineOptions
) -> tuple[Tensor, Tensor]:
    _check(x, widths, heights, derivatives, options)
    if options.bounded and x.device.type == "cpu":
        _refuse_outside(x, split(widths, heights, derivatives, options.style)[options.inverse], options)
    y, logabsdet = reference(x, widths, heights, derivatives, **options.keywords())
    return y.contiguous(memory_format=layout(x)), logabsdet.contiguous(memory_format=layout(x))


def _fake(
    x: Tensor, widths: Tensor, heights: Tensor | None, derivatives: Tensor | None, options: SplineOptions
) -> tuple[Tensor, Tensor]:
    _check(x, widths, heights, derivatives, options)
    return _empty(x, x.dtype), _empty(x, _wide(x))


def _empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(like.shape, dtype=dtype, device=like.device, memory_format=layout(like))


def _default_backward(
    grad_y: Tensor,
    grad_logabsdet: Tensor,
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None,
    derivatives: Tensor | None,
    options: SplineOptions,
    *needs: bool,
) -> tuple[Tensor, ...]:
    _check_backward(grad_y, grad_logabsdet, x, widths, heights, derivatives, options)
    grads = rational_quadratic_spline_backward(
        grad_y, grad_logabsdet, x, widths, heights, derivatives, **options.keywords()
    )
    empty = _fake_backward(grad_y, grad_logabsdet, x, widths, heights, derivatives, options, *needs)
    return tuple(to.copy_(grad) if to.numel() else to for to, grad in zip(empty, grads, strict=True))


def _fake_backward(
    grad_y: Tensor,
    grad_logabsdet: Tensor,
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None,
    derivatives: Tensor | None,
    options: SplineOptions,
    need_x: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    return (
        _empty(x, x.dtype) if need_x else x.new_empty(0),
        *(
            torch.empty_like(t) if need and t is not None else widths.new_empty(0)
            for t, need in zip((widths, heights, derivatives), needs, strict=True)
        ),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.options = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_y: Tensor, grad_logabsdet: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:4]
    grads = torch.ops.pygen.rational_quadratic_spline_backward(
        grad_y, grad_logabsdet, *ctx.saved_tensors, ctx.options, *needs
    )
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), None)


define(
    "rational_quadratic_spline(Tensor x, Tensor widths, Tensor? heights, Tensor? derivatives, str options) -> "
    "(Tensor y, Tensor logabsdet)",
    family=OP,
    default=_default,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    check=_check,
    cuda="triton",
    options=SplineOptions,
)
define(
    "rational_quadratic_spline_backward(Tensor grad_y, Tensor grad_logabsdet, Tensor x, Tensor widths, "
    "Tensor? heights, Tensor? derivatives, str options, bool need_x, bool need_widths, bool need_heights, "
    "bool need_derivatives) -> (Tensor grad_x, Tensor grad_widths, Tensor grad_heights, Tensor grad_derivatives)",
    family=OP,
    default=_default_backward,
    fake=_fake_backward,
    backward=once_differentiable(BACKWARD),
    check=_check_backward,
    cuda="triton",
    options=SplineOptions,
)


def rational_quadratic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None = None,
    derivatives: Tensor | None = None,
    *,
    inverse: bool = False,
    style: str = "nflows",
    tails: str | None = "linear",
    bounds: Bounds | list[float] = 1.0,
    min_width: float = 1e-3,
    min_height: float = 1e-3,
    min_derivative: float = 1e-3,
    beta: float = 1.0,
    boundary_slope: float = 1.0,
    slope: float = 1e-3,
    check: bool = False,
) -> tuple[Tensor, Tensor]:
    """A monotone rational-quadratic spline of each element, and the logarithm of its slope there.

    Neural Spline Flows (Durkan et al. 2019, arXiv 1906.04032), equations 4 to 8. In the bin of corner (x_k, y_k), of
    width w and height h, with mean slope s = h / w and slopes d0 and d1 at its ends::

        xi = (x - x_k) / w        q = xi (1 - xi)        beta = s + (d0 + d1 - 2 s) q
        y = y_k + h (s xi^2 + d0 q) / beta
        logabsdet = log(s^2 (d1 xi^2 + 2 s q + d0 (1 - xi)^2) / beta^2)

    The inverse takes y and gives x and -logabsdet, by a root in which nothing cancels: its discriminant is a sum of two
    terms that are never negative.

    x: [B, ...], of any shape (also none), or y for the inverse; float32, float64, bfloat16 or float16.
    widths, heights, derivatives: raw parameters, [B, ..., n]: for each element of x those of its own spline, of K = 2
        to 64 bins; in the dtype of x, or in bfloat16 or float16 beside float32 x. Or widths alone, [B, ..., 3K - 1],
        [..., 3K] or [..., 3K + 1] (of "knots" 2 more): all three, one after the other. Views are read as they lie (of a
        net's output cut into three, permuted or expanded), without a copy.
    inverse: from y to x.
    style: what raw parameters mean.
        "nflows" (default): bins' shares by a softmax of K numbers, of which each gets min_width (min_height) first;
            slopes min_derivative + softplus(u, beta). nflows, normflows, VITS, the paper's authors. With
            beta = log(2) / (1 - min_derivative) zeros are the identity.
        "zuko": softmax of u / (1 + |2 u / log slope|), slopes e^(u / (1 + |u / log slope|)).
        "knots": positions of the K + 1 knots along x and along y, increasing, and slopes, positive, as they are. They
            are not checked: for others results are numbers, but of no spline.
    tails: beyond the bounds, "linear" (default) and "circular" are the identity. None: InputOutsideDomain on the CPU,
        NaN elsewhere. How many derivatives there are, and which:
        "linear": K - 1, of inner knots, boundary_slope at both ends; or K + 1, of all knots.
        "circular": K, the last knot has the first one's. To wrap x around is the caller's business.
        None: K + 1.
    bounds: B, for left = bottom = -B and right = top = B; or (left, right, bottom, top). What they are in x's dtype is
        within, too. Those of "knots" are its first and last knots.
    min_width, min_height, min_derivative, beta: of "nflows". slope: of "zuko".
    check: raises InputOutsideDomain on a GPU too, which waits for it.

    Returns y in the dtype of x, within the bounds where x is, and logabsdet, float32 for 16-bit x, else in x's dtype;
    both of x's shape, in channels_last memory where x is (and is not contiguous too), else contiguous. Arithmetic is
    float64 for float64 x, else float32. The ends belong to the spline; x at the last knot is the end of the last bin.

    No finite input gives NaN, nor an access out of bounds: where leasts of 0 let bins vanish, logits count as at most
    60 (600 in float64) below the largest, slopes as within 1e-12 and 1e12 (1e-100 and 1e100). NaN in x, or in what the
    spline depends on, gives NaN in that element's y and logabsdet, and never raises. The same bits for any number of
    threads, and for an element whatever is beside it.

    Differentiable once with respect to x and the parameters, in both directions; twice raises NotImplementedError,
    except under `pygen.backends.use("reference")`, which PyTorch differentiates. The backward keeps x and the raw
    parameters alone; its gradients are closed forms, of the inverse too, which differentiates no root.

    torch.autocast leaves the op alone: float32 x stays so beside parameters of 16 bits. Bytes moved: forward, x and the
    parameters once in, y and logabsdet out; backward, these inputs and two gradients in, those of x and of the
    parameters out. Backends: C++ (AVX-512, AVX2, baseline) on the CPU, Triton on CUDA, else the reference.

    Raises ValueError for shapes, counts, devices and options that do not fit, InputOutsideDomain (a ValueError) as
    said, TypeError for dtypes; all say what was expected and what was given.

    >>> import torch
    >>> from pygen.ops import rational_quadratic_spline
    >>> x, parameters = torch.tensor([[0.5, 4.0]]), torch.zeros(1, 2, 23)
    >>> y, logabsdet = rational_quadratic_spline(x, parameters, bounds=3.0)
    >>> rational_quadratic_spline(y, parameters, bounds=3.0, inverse=True)[0]
    tensor([[0.5000, 4.0000]])
    """
    compiling = torch.compiler.is_compiling()
    limits = tuple(bounds) if isinstance(bounds, list) else bounds
    options = (_options if compiling else _options_cached)(
        inverse, style, tails, limits, min_width, min_height, min_derivative, beta, boundary_slope, slope
    )
    if check and tails is None and x.device.type != "cpu":
        parsed = SplineOptions.parse(options)
        _check(x, widths, heights, derivatives, parsed)
        _refuse_outside(x, split(widths, heights, derivatives, style)[inverse], parsed)
    if backends.forced is not None and backends.choose(OP, x) == "reference":
        return _default(x, widths, heights, derivatives, SplineOptions.parse(options))
    if forward_ad._current_level >= 0:
        refuse_tangents(OP, x, widths, heights, derivatives)
    op = _op if compiling else _quick_op
    return op(x, widths, heights, derivatives, options)  # type: ignore[no-any-return]


_op = torch.ops.pygen.rational_quadratic_spline.default
_quick_op = _ext.quick(_op)
