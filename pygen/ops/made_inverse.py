"""Inverses of autoregressive transforms in one sweep: the public function, its torch ops, fakes and gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _ext, backends
from .._lib import FLOATS, define, names, once_differentiable, refuse_tangents, without_autocast
from .._options import Options
from ..reference import made_inverse as reference
from ..reference.rational_quadratic_spline import Bounds
from . import coupling
from . import rational_quadratic_spline as spline

OP, BACKWARD = "made_inverse", "made_inverse_backward"
TRANSFORMS = ("affine", "spline")


@dataclass(frozen=True)
class MadeOptions(Options):
    """What travels to the kernels beside the transform's own options; csrc/cpu/made_inverse.cpp reads the same."""

    nonlinearity: str = "relu"
    residual: bool = True
    transform: str = "affine"

    @property
    def net(self) -> dict[str, Any]:
        """As the reference takes them."""
        return {"nonlinearity": self.nonlinearity, "residual": self.residual}


# --- options ----------------------------------------------------------------------------------------------------------


def _options(nonlinearity: str, residual: bool, transform: str, **own: Any) -> tuple[str, str]:
    """The options of the op, and those of the transform, once they are checked."""
    if nonlinearity not in reference.NONLINEARITIES:
        expected = ", ".join(reference.NONLINEARITIES)
        raise ValueError(f"{OP}: expected nonlinearity to be one of {expected}, got {nonlinearity!r}")
    if not isinstance(residual, bool):
        raise TypeError(f"{OP}: expected residual to be a bool, got {residual!r}")
    if transform not in TRANSFORMS:
        raise ValueError(f"{OP}: expected transform to be one of {TRANSFORMS}, got {transform!r}")
    options = str(MadeOptions(nonlinearity, residual, transform))
    if unknown := [name for name in own if name not in _KNOWN[transform]]:
        expected = ", ".join(_KNOWN[transform])
        raise TypeError(f"{OP}: expected options of the {transform} transform, {expected}, got {unknown[0]!r}")
    return options, _affine(**own) if transform == "affine" else _spline(**own)


def _affine(
    *,
    activation: str = "exp",
    squash: str | None = None,
    shift: str = "after",
    order: str = "st",
    offset: float = 0.0,
    eps: float = 0.0,
    max_scale: float | None = None,
    gain: float = 1.0,
    width: float = 1.0,
    shift_scale: float = 1.0,
) -> str:
    return coupling._options(
        activation, squash, "all", 0, 0, shift, order, True, True, False, offset, eps, max_scale, gain, width,
        shift_scale,
    )  # fmt: skip


def _spline(
    *,
    style: str = "nflows",
    tails: str | None = "linear",
    bounds: Bounds = 1.0,
    min_width: float = 1e-3,
    min_height: float = 1e-3,
    min_derivative: float = 1e-3,
    beta: float = 1.0,
    boundary_slope: float = 1.0,
    slope: float = 1e-3,
) -> str:
    if style == "knots":
        raise ValueError(f"{OP}: expected style 'nflows' or 'zuko': a net puts out raw parameters, got 'knots'")
    return spline._options(
        True, style, tails, bounds, min_width, min_height, min_derivative, beta, boundary_slope, slope
    )


_KNOWN = {"affine": list(signature(_affine).parameters), "spline": list(signature(_spline).parameters)}
_options_cached = lru_cache(maxsize=1024, typed=True)(_options)


_SET = ("inverse", "part", "interleaved", "memory_efficient")  # by the reference itself


def _own(options: MadeOptions, own: str) -> dict[str, Any]:
    """The transform's options as the reference takes them."""
    if options.transform == "spline":
        keywords = spline.SplineOptions.parse(own).keywords()
    else:
        keywords = coupling.CouplingOptions.parse(own).keywords(None, None)
    return {name: value for name, value in keywords.items() if name not in _SET}


def _tensors(name: str, given: Any) -> list[Tensor]:
    """Raises TypeError for what are no tensors, in clearer words than torch's."""
    if isinstance(given, Tensor) or not isinstance(given, Iterable):
        raise TypeError(f"{OP}: expected {name} as a sequence of tensors, got {type(given).__name__}")
    tensors = list(given)
    for i, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            raise TypeError(f"{OP}: expected {name}[{i}] as a tensor, got {type(t).__name__}")
    return tensors


# --- checks -----------------------------------------------------------------------------------------------------------


def _check(
    y: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    options: MadeOptions,
    own: str,
) -> None:
    if y.dtype not in FLOATS:
        raise TypeError(f"{OP}: expected y of dtype {names(FLOATS)}, got {y.dtype}")
    if y.dim() != 2 or y.shape[1] == 0:
        raise ValueError(f"{OP}: expected y of shape [B, D] with D > 0, got {list(y.shape)}")
    if len(weights) < 2 or not len(weights) == len(biases) == len(degrees):
        raise ValueError(
            f"{OP}: expected as many weights as biases and degrees, at least 2, got {len(weights)}, {len(biases)} and "
            f"{len(degrees)}"
        )
    admitted = (y.dtype, torch.bfloat16, torch.float16) if y.dtype == torch.float32 else (y.dtype,)
    if weights[0].dtype not in admitted:
        raise TypeError(f"{OP}: expected weights of {names(admitted)} for y of {y.dtype}, got {weights[0].dtype}")
    for i, given in enumerate(degrees):
        if given.dtype != torch.int64 or given.device.type not in ("cpu", "meta"):
            raise TypeError(f"{OP}: expected degrees[{i}] as int64 on the CPU, got {given.dtype} on {given.device}")
        if given.dim() != 1:
            raise ValueError(f"{OP}: expected degrees[{i}] of one dimension, got {list(given.shape)}")
    widths = [len(d) for d in degrees]
    if widths[0] != y.shape[1]:
        raise ValueError(f"{OP}: expected degrees[0] of {y.shape[1]} features as y has, got {widths[0]}")
    each = max(1, weights[-1].shape[0] // widths[0]) if weights[-1].dim() else 1
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        outputs = each * widths[0] if i + 1 == len(weights) else widths[i + 1]
        if weight.shape != (outputs, widths[i]):
            raise ValueError(f"{OP}: expected weights[{i}] of shape {[outputs, widths[i]]}, got {list(weight.shape)}")
        if bias.shape != ((outputs,) if bias.dim() == 1 else (y.shape[0], outputs)):
            raise ValueError(
                f"{OP}: expected biases[{i}] of shape [{outputs}] or {[y.shape[0], outputs]}, got {list(bias.shape)}"
            )
        for name, t in (("weights", weight), ("biases", bias)):
            if t.dtype != weights[0].dtype:
                raise TypeError(f"{OP}: expected {name}[{i}] of {weights[0].dtype} as weights[0], got {t.dtype}")
            if t.device != y.device:
                raise ValueError(f"{OP}: expected {name}[{i}] on {y.device} as y, got {t.device}")
    _check_outputs(y, each, options, own)
    if options.residual:
        _check_blocks(widths)


def _check_outputs(y: Tensor, each: int, options: MadeOptions, own: str) -> None:
    """Whether a feature has as many outputs as its transform has parameters."""
    if options.transform == "spline":
        spline._check(y, y.new_empty(1).expand(*y.shape, each), None, None, spline.SplineOptions.parse(own))
        return
    expected = 1 if coupling.CouplingOptions.parse(own).additive else 2
    if each != expected:
        raise ValueError(f"{OP}: expected {expected} outputs a feature, for scale and shift, got {each}")


def _check_blocks(widths: Sequence[int]) -> None:
    if len(widths) % 2:
        raise ValueError(f"{OP}: expected 1 + 2 x blocks hidden layers of a residual net, got {len(widths) - 1}")
    for i in range(3, len(widths), 2):
        if widths[i] != widths[i - 2]:
            raise ValueError(f"{OP}: expected a residual block to keep its {widths[i - 2]} units, got {widths[i]}")


def check_skips(degrees: Sequence[Tensor]) -> None:
    """Raises where a degree falls over a block of a residual net, which would read what it may not."""
    for i in range(3, len(degrees), 2):
        lower = degrees[i] < degrees[i - 2]
        if lower.any():
            first = int(lower.nonzero()[0])
            raise ValueError(
                f"{OP}: expected no degree to fall over a residual block, got {int(degrees[i - 2][first])} and then "
                f"{int(degrees[i][first])} of unit {first} of hidden layer {i - 1}"
            )


def _check_backward(grad_x: Tensor, grad_logabsdet: Tensor, x: Tensor, y: Tensor, *net: Any) -> None:
    _check(y, *net)
    for name, t, shape, dtype in (
        ("grad_x", grad_x, y.shape, y.dtype),
        ("grad_logabsdet", grad_logabsdet, y.shape[:1], _wide(y)),
        ("x", x, y.shape, y.dtype),
    ):
        if t.shape != shape:
            raise ValueError(f"{BACKWARD}: expected {name} of shape {list(shape)}, got {list(t.shape)}")
        if t.dtype != dtype:
            raise TypeError(f"{BACKWARD}: expected {name} of {dtype}, got {t.dtype}")


# --- the ops ----------------------------------------------------------------------------------------------------------


def _wide(y: Tensor) -> torch.dtype:
    return torch.promote_types(y.dtype, torch.float32)


def _default(
    y: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    options: MadeOptions,
    own: str,
) -> tuple[Tensor, Tensor]:
    _check(y, weights, biases, degrees, options, own)
    if options.residual:
        check_skips(degrees)
    if options.transform == "spline" and y.device.type == "cpu":
        parsed = spline.SplineOptions.parse(own)
        if parsed.bounded:
            spline._refuse_outside(y, y, parsed)
    with without_autocast(y):
        x, logabsdet = reference.made_inverse(
            y, weights, biases, degrees, **options.net, transform=options.transform, **_own(options, own)
        )
    return x.contiguous(), logabsdet


def _fake(
    y: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    options: MadeOptions,
    own: str,
) -> tuple[Tensor, Tensor]:
    _check(y, weights, biases, degrees, options, own)
    return torch.empty_like(y, memory_format=torch.contiguous_format), y.new_empty(y.shape[0], dtype=_wide(y))


def _default_backward(
    grad_x: Tensor,
    grad_logabsdet: Tensor,
    x: Tensor,
    y: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    options: MadeOptions,
    own: str,
) -> tuple[Tensor, Tensor]:
    _check_backward(grad_x, grad_logabsdet, x, y, weights, biases, degrees, options, own)
    if options.residual:
        check_skips(degrees)
    with without_autocast(y):
        grad_y, total = reference.made_inverse_backward(
            grad_x, grad_logabsdet, x, y, weights, biases, degrees, **options.net, transform=options.transform,
            **_own(options, own),
        )  # fmt: skip
    return grad_y.contiguous(), total.contiguous()


def _fake_backward(grad_x: Tensor, grad_logabsdet: Tensor, x: Tensor, y: Tensor, *net: Any) -> tuple[Tensor, Tensor]:
    _check_backward(grad_x, grad_logabsdet, x, y, *net)
    grad_y = torch.empty_like(y, memory_format=torch.contiguous_format)
    return grad_y, torch.empty_like(grad_y, dtype=_wide(y))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    y, weights, biases, degrees, ctx.options, ctx.own = inputs
    ctx.layers = len(weights)
    ctx.save_for_backward(output[0], y, *weights, *biases, *degrees)


def _backward(ctx: Any, grad_x: Tensor, grad_logabsdet: Tensor) -> tuple[Any, ...]:
    """What a feature gets, all told, its parameters get too, and with all of these the net is run backwards once: what
    the implicit function theorem says, without a division."""
    x, y, *rest = ctx.saved_tensors
    weights, biases, degrees = (rest[i * ctx.layers : (i + 1) * ctx.layers] for i in range(3))
    grad_y, total = torch.ops.pygen.made_inverse_backward(
        grad_x, grad_logabsdet, x, y, weights, biases, degrees, ctx.options, ctx.own
    )
    _, need_weights, need_biases, *_ = ctx.needs_input_grad
    nothing = [None] * ctx.layers
    if not any(need_weights) and not any(need_biases):
        return grad_y, nothing, nothing, nothing, None, None
    options = MadeOptions.parse(ctx.options)
    storage, wide = weights[0].dtype, _wide(y)
    net = ([w.to(wide) for w in weights], [b.to(wide) for b in biases], degrees)
    x, y = x.to(wide), y.to(wide)
    with without_autocast(y):
        params, pullback = reference.made_and_pullback(x, *net, **options.net)
        grad = _params_backward(total, grad_logabsdet, x, y, params, options, ctx.own)
        of_weights, of_biases = (
            [None if g is None else g.to(storage) for g in grads] for grads in pullback(grad, need_weights, need_biases)
        )
    return grad_y, of_weights, of_biases, nothing, None, None


def _params_backward(
    grad: Tensor, grad_logdet: Tensor, x: Tensor, y: Tensor, params: Tensor, options: MadeOptions, own: str
) -> Tensor:
    """The gradient of params [B, D P] of the inverse transform from y to x."""
    if options.transform == "spline":
        each = params.unflatten(1, (x.shape[1], -1))
        _, grads, *_ = torch.ops.pygen.rational_quadratic_spline_backward(
            grad, grad_logdet[:, None].expand_as(x), y, each, None, None, own, False, True, False, False
        )
        return grads.flatten(1)  # type: ignore[no-any-return]
    parsed = coupling.CouplingOptions.parse(own)
    saved = None if parsed.additive else x if parsed.multiply_last else y
    _, grads, _ = torch.ops.pygen.affine_coupling_backward(
        grad, grad_logdet, saved, params, None, None, own, False, True, False
    )
    return grads  # type: ignore[no-any-return]


_NET = "Tensor[] weights, Tensor[] biases, Tensor[] degrees, str options, str own"
define(
    f"made_inverse(Tensor y, {_NET}) -> (Tensor x, Tensor logabsdet)",
    family=OP,
    default=_default,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    check=_check,
    cuda="cuda",
    options=MadeOptions,
)
define(
    f"made_inverse_backward(Tensor grad_x, Tensor grad_logabsdet, Tensor x, Tensor y, {_NET}) -> "
    "(Tensor grad_y, Tensor grad_total)",
    family=OP,
    default=_default_backward,
    fake=_fake_backward,
    backward=once_differentiable(BACKWARD),
    check=_check_backward,
    cuda="cuda",
    options=MadeOptions,
)


def made_inverse(
    y: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    *,
    nonlinearity: str = "relu",
    residual: bool = True,
    transform: str = "affine",
    **options: Any,
) -> tuple[Tensor, Tensor]:
    r"""The inverse of an autoregressive transform whose parameters come from a masked net, in one sweep.

    The transform is y_i = T(x_i; p_i), where the parameters p_i of feature i are outputs of a MADE (Germain et al.
    2015, arXiv 1502.03509): they depend on the features of lower degree alone. Affine T makes it MAF (Papamakarios et
    al. 2017, arXiv 1705.07057), monotone splines the autoregressive Neural Spline Flow (Durkan et al. 2019,
    1906.04032); the other way round, sampling by this net, it is IAF (Kingma et al. 2016, 1606.04934).

    To find x, others run the whole net once per feature. But no hidden unit changes once the features of its degree and
    below are known: the sweep goes through the degrees in order, inverts the features of each and computes the units of
    each once, all in all the work of half a pass of the unmasked net.

    The net, of weights W, biases b and nonlinearity f, with layers l = 1 ... L::

        plain:     h_1 = W_1 x + b_1    h_l = W_l f(h_(l-1)) + b_l                                    p = W f(h_L) + b
        residual:  h_1 = W_1 x + b_1    h_(2k+1) = h_(2k-1) + W_(2k+1) f(W_2k f(h_(2k-1)) + b_2k) + b_(2k+1)
                   p = W h_L + b

    where W is read as zero from inputs and units of higher degree than the unit's own, and for p, the outputs, from
    those of the feature's own degree too. The masks need not be applied beforehand; sparser ones may be.

    y: [B, D]; float32, float64, bfloat16 or float16.
    weights: of the L >= 1 hidden layers and the outputs, [H_1, D], [H_2, H_1], ..., [D P, H_L], for P parameters of
        a feature, those of a feature side by side; in the dtype of y, or in bfloat16 or float16 beside float32 y.
    biases: of each layer, [H_l] ([D P]), or [B, H_l] for biases of each sample: a context's term added.
    degrees: int64 tensors on the CPU, of the D inputs and of each hidden layer, in any order; inputs of one degree are
        found side by side. Over a residual block no unit's degree may fall.
    nonlinearity: f, "relu" (default), "leaky_relu" (0.01), "elu", "tanh", "sigmoid" or "silu".
    residual: True (default), of which L is odd; False: plain.
    transform: "affine" (default), with P = 2, or "spline", of rational-quadratic splines, with P as in
        `rational_quadratic_spline` of packed parameters.
    options: of the affine transform activation, squash, shift, order, offset, eps, max_scale, gain (a number), width
        and shift_scale, as in `affine_coupling`; of the spline style ("nflows" or "zuko"), tails, bounds, min_width,
        min_height, min_derivative, beta, boundary_slope and slope, as in `rational_quadratic_spline`. The options are
        those of T, whose inverse is taken. nflows' MAF is activation="softplus", eps=1e-3.

    Returns x [B, D] in the dtype of y, and logabsdet [B], log |det dx / dy| in nats, in float64 for float64 y, else
    float32; arithmetic likewise. The same bits for any number of threads and whatever is beside a sample in the batch.
    A NaN in y makes NaN of its feature and of those that depend on it. A spline without tails raises InputOutsideDomain
    on the CPU for y beyond its bounds, and is NaN there on CUDA.

    Differentiable once with respect to y, the weights and the biases, without a graph of the sweep: the backward keeps
    y and x and the net, runs the sweep backwards for the gradient of y, and the net once forward and backward for its
    own.
    Twice raises NotImplementedError, except under `pygen.backends.use("reference")`, which PyTorch differentiates.

    Backends: C++ (AVX-512, AVX2, baseline) on the CPU, CUDA C++ on CUDA (not yet run on a GPU), else the reference,
    which runs the net once per degree. On CUDA the gradient of weights and biases is of torch's own products, of masks
    that the host makes: it waits for their copy.

    Raises ValueError for shapes, devices, degrees and options that do not fit, TypeError for dtypes and types; both say
    what was expected and what was given.

    >>> import torch
    >>> from pygen.ops import made_inverse
    >>> degrees = [torch.tensor([1, 2, 3]), torch.tensor([1, 2, 1, 2])]
    >>> weights, biases = [torch.randn(4, 3), torch.randn(6, 4)], [torch.zeros(4), torch.zeros(6)]
    >>> x, logabsdet = made_inverse(torch.randn(5, 3), weights, biases, degrees, residual=False)
    >>> x.shape, logabsdet.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """
    if isinstance(options.get("bounds"), list):
        options["bounds"] = tuple(options["bounds"])
    compiling = torch.compiler.is_compiling()
    try:
        words, own = (_options if compiling else _options_cached)(nonlinearity, residual, transform, **options)
    except TypeError:  # of what the cache cannot hold, in its own words
        words, own = _options(nonlinearity, residual, transform, **options)
    if not isinstance(y, Tensor):
        raise TypeError(f"{OP}: expected y as a tensor, got {type(y).__name__}")
    weights, biases, degrees = (
        _tensors(name, given) for name, given in (("weights", weights), ("biases", biases), ("degrees", degrees))
    )
    if backends.forced is not None and backends.choose(OP, y) == "reference":
        return _default(y, weights, biases, degrees, MadeOptions.parse(words), own)
    if forward_ad._current_level >= 0:
        refuse_tangents(OP, y, *weights, *biases)
    op = _op if compiling else _quick_op
    return op(y, weights, biases, degrees, words, own)  # type: ignore[no-any-return]


_op = torch.ops.pygen.made_inverse.default
_quick_op = _ext.quick(_op)
