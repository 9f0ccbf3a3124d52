"""Gates and the concatenated ELU: the public functions, their torch ops, fakes and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _ext, backends
from .._lib import FLOATS, define, layout, names, once_differentiable, refuse_tangents
from ..reference import gates as reference

KINDS = ("tanh", "linear")


def _check_x(op: str, x: Tensor) -> None:
    if x.dim() < 2:
        raise ValueError(f"{op}: expected x of shape [B, C, ...], got {tuple(x.shape)}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{op}: expected x of dtype {names(FLOATS)}, got {x.dtype}")


def _check_like(op: str, x: Tensor, **tensors: tuple[Tensor | None, tuple[tuple[int, ...], ...]]) -> None:
    """Of tensors and the shapes that each may have: dtype and device as x's."""
    for name, (tensor, shapes) in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype != x.dtype:
            raise TypeError(f"{op}: expected {name} of {x.dtype} as x, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{op}: expected {name} on {x.device} as x, got {tensor.device}")
        if tensor.shape not in shapes:
            admitted = " or ".join(str(tuple(shape)) for shape in shapes)
            raise ValueError(
                f"{op}: expected {name} of shape {admitted} for x {tuple(x.shape)}, got {tuple(tensor.shape)}"
            )


def _empty(shape: Any, like: Tensor) -> Tensor:
    """An output of this shape, in x's layout."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout(like))


# --- gated_activation -------------------------------------------------------------------------------------------------


def _half(x: Tensor) -> tuple[int, ...]:
    return (x.shape[0], x.shape[1] // 2, *x.shape[2:])


def _check(x: Tensor, bias: Tensor | None, condition: Tensor | None, residual: Tensor | None, kind: str) -> None:
    op = "gated_activation"
    if kind not in KINDS:
        raise ValueError(f"{op}: expected kind to be one of {KINDS}, got {kind!r}")
    _check_x(op, x)
    if x.shape[1] % 2:
        raise ValueError(f"{op}: expected an even number of channels in x (a, b), got {x.shape[1]}")
    _check_like(
        op,
        x,
        bias=(bias, (tuple(x.shape[1:2]), tuple(x.shape[:2]))),
        condition=(condition, (tuple(x.shape),)),
        residual=(residual, (_half(x),)),
    )


def _check_backward(
    grad_y: Tensor, x: Tensor, bias: Tensor | None, condition: Tensor | None, kind: str, *_: bool
) -> None:
    _check(x, bias, condition, None, kind)
    _check_like("gated_activation", x, grad_y=(grad_y, (_half(x),)))


def _default(x: Tensor, bias: Tensor | None, condition: Tensor | None, residual: Tensor | None, kind: str) -> Tensor:
    _check(x, bias, condition, residual, kind)
    y = reference.gated_activation(x, kind=kind, bias=bias, condition=condition, residual=residual)
    return y.contiguous(memory_format=layout(x))


def _default_backward(
    grad_y: Tensor,
    x: Tensor,
    bias: Tensor | None,
    condition: Tensor | None,
    kind: str,
    need_x: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor]:
    _check_backward(grad_y, x, bias, condition, kind)
    grad_x, grad_bias = reference.gated_activation_backward(grad_y, x, bias, condition, kind=kind)
    return (
        grad_x.contiguous(memory_format=layout(x)) if need_x else x.new_empty(0),
        grad_bias if need_bias else x.new_empty(0),
    )


def _fake(x: Tensor, bias: Tensor | None, condition: Tensor | None, residual: Tensor | None, kind: str) -> Tensor:
    _check(x, bias, condition, residual, kind)
    return _empty(_half(x), x)


def _fake_backward(
    grad_y: Tensor,
    x: Tensor,
    bias: Tensor | None,
    condition: Tensor | None,
    kind: str,
    need_x: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor]:
    grad_x = _empty(x.shape, x) if need_x else x.new_empty(0)
    return grad_x, x.new_empty(bias.shape if need_bias and bias is not None else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, condition, _, ctx.kind = inputs
    ctx.save_for_backward(x, bias, condition)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    need_x, need_bias, need_condition, need_residual, _ = ctx.needs_input_grad
    grad_x = grad_bias = None
    if need_x or need_bias or need_condition:
        grad_x, grad_bias = torch.ops.pygen.gated_activation_backward(
            grad_y, *ctx.saved_tensors, ctx.kind, need_x or need_condition, need_bias
        )
    return (
        grad_x if need_x else None,
        grad_bias if need_bias else None,
        grad_x if need_condition else None,
        grad_y if need_residual else None,
        None,
    )


define(
    "gated_activation(Tensor x, Tensor? bias, Tensor? condition, Tensor? residual, str kind) -> Tensor y",
    family="gates",
    default=_default,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    check=_check,
    cuda="triton",
)
define(
    "gated_activation_backward(Tensor grad_y, Tensor x, Tensor? bias, Tensor? condition, str kind, bool need_x, "
    "bool need_bias) -> (Tensor grad_x, Tensor grad_bias)",
    family="gates",
    default=_default_backward,
    fake=_fake_backward,
    backward=once_differentiable("gated_activation_backward"),
    check=_check_backward,
    cuda="triton",
)


def gated_activation(
    x: Tensor,
    *,
    kind: str = "tanh",
    bias: Tensor | None = None,
    condition: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """A gated activation: one half of the channels, squashed, times the sigmoid of the other::

        a, b = halves of x + bias + condition along the channels
        y = tanh(a) sigmoid(b) + residual         kind "tanh"
        y = a sigmoid(b) + residual               kind "linear"

    Gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328, equations 2 and 4), WaveNet (arXiv 1609.03499,
    equation 2); "linear" is the gated linear unit (Dauphin et al. 2017, arXiv 1612.08083, equation 1) of PixelCNN++.

    x: [B, 2C, *S], any number of spatial dimensions, none too; float32, float64, bfloat16 or float16.
    kind: "tanh" (default) or "linear".
    bias: [2C], or [B, 2C], one a sample, such as a class condition; in the dtype of x; None (default): none.
    condition: a spatial condition, in the shape and dtype of x; None (default): none.
    residual: [B, C, *S] in the dtype of x; None (default): none.

    Returns y [B, C, *S] in the dtype of x, in channels_last memory where x is (and is not contiguous too), else
    contiguous. Arithmetic is float64 for float64 x, else float32, rounded once. It is accurate near 0 and at the far
    ends, gradients too, where tanh and sigmoid are 1 to rounding. NaN reaches the elements that it is a term of. The
    same bits for any number of threads.

    Differentiable once with respect to x, bias, condition and residual; twice raises NotImplementedError, except under
    `pygen.backends.use("reference")`, which PyTorch differentiates. The backward keeps x, bias and condition alone and
    computes tanh and sigmoid again; on the CPU the gradient of bias is added in float64.

    torch.autocast leaves the op alone. Bytes moved: forward, x, condition and residual once in and y out; backward,
    the gradient of y, x and condition once in, the gradient of x out (condition's is the same tensor, residual's that
    of y). Backends: C++ (AVX-512, AVX2, baseline) on the CPU, Triton on CUDA, else the reference.

    Raises ValueError for shapes, devices and kinds that do not fit, TypeError for dtypes; both say what was expected
    and what was given.

    >>> import torch
    >>> from pygen.ops import gated_activation
    >>> x = torch.randn(16, 64, 28, 28)
    >>> gated_activation(x, bias=torch.randn(16, 64)).shape
    torch.Size([16, 32, 28, 28])
    """
    if backends.forced is not None and backends.choose("gated_activation", x) == "reference":
        return _default(x, bias, condition, residual, kind)
    if forward_ad._current_level >= 0:
        refuse_tangents("gated_activation", x, bias, condition, residual)
    op = _op if torch.compiler.is_compiling() else _quick_op
    return op(x, bias, condition, residual, kind)  # type: ignore[no-any-return]


_op = torch.ops.pygen.gated_activation.default
_quick_op = _ext.quick(_op)


# --- concat_elu -------------------------------------------------------------------------------------------------------


def _doubled(x: Tensor) -> tuple[int, ...]:
    return (x.shape[0], 2 * x.shape[1], *x.shape[2:])


def _check_elu(x: Tensor) -> None:
    _check_x("concat_elu", x)


def _check_elu_backward(grad_y: Tensor, x: Tensor) -> None:
    _check_elu(x)
    _check_like("concat_elu", x, grad_y=(grad_y, (_doubled(x),)))


def _default_elu(x: Tensor) -> Tensor:
    _check_elu(x)
    return reference.concat_elu(x).contiguous(memory_format=layout(x))


def _default_elu_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    _check_elu_backward(grad_y, x)
    return reference.concat_elu_backward(grad_y, x).contiguous(memory_format=layout(x))


def _fake_elu(x: Tensor) -> Tensor:
    _check_elu(x)
    return _empty(_doubled(x), x)


def _fake_elu_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    return _empty(x.shape, x)


def _setup_elu(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_elu(ctx: Any, grad_y: Tensor) -> Tensor:
    return torch.ops.pygen.concat_elu_backward(grad_y, *ctx.saved_tensors)  # type: ignore[no-any-return]


define(
    "concat_elu(Tensor x) -> Tensor y",
    family="gates",
    default=_default_elu,
    fake=_fake_elu,
    setup_context=_setup_elu,
    backward=_backward_elu,
    check=_check_elu,
    cuda="triton",
)
define(
    "concat_elu_backward(Tensor grad_y, Tensor x) -> Tensor grad_x",
    family="gates",
    default=_default_elu_backward,
    fake=_fake_elu_backward,
    backward=once_differentiable("concat_elu_backward"),
    check=_check_elu_backward,
    cuda="triton",
)


def concat_elu(x: Tensor) -> Tensor:
    """The ELU of x and of -x, one after the other along the channels::

        y = elu([x, -x])        elu(v) = v for v > 0, else e^v - 1

    PixelCNN++ (Salimans et al. 2017, arXiv 1701.05517; nn.py of its code), after the concatenated ReLU (Shang et al.
    2016, arXiv 1603.05201, section 2.2).

    x: [B, C, *S], any number of spatial dimensions, none too; float32, float64, bfloat16 or float16.

    Returns y [B, 2C, *S] in the dtype of x, in channels_last memory where x is (and is not contiguous too), else
    contiguous. Arithmetic is float64 for float64 x, else float32, rounded once; accurate near 0. NaN in an element
    reaches its two of y. The same bits for any number of threads.

    Differentiable once; twice raises NotImplementedError, except under `pygen.backends.use("reference")`, which PyTorch
    differentiates. The backward keeps x alone.

    torch.autocast leaves the op alone. Bytes moved: forward, x in and y out; backward, the gradient of y and x in, that
    of x out. Backends: C++ (AVX-512, AVX2, baseline) on the CPU, Triton on CUDA, else the reference.

    Raises ValueError for shapes that do not fit, TypeError for dtypes; both say what was expected and what was given.

    >>> import torch
    >>> from pygen.ops import concat_elu
    >>> concat_elu(torch.tensor([[2.0, -3.0]]))
    tensor([[ 2.0000, -0.9502, -0.8647,  3.0000]])
    """
    if backends.forced is not None and backends.choose("concat_elu", x) == "reference":
        return _default_elu(x)
    if forward_ad._current_level >= 0:
        refuse_tangents("concat_elu", x)
    op = _op_elu if torch.compiler.is_compiling() else _quick_op_elu
    return op(x)  # type: ignore[no-any-return]


_op_elu = torch.ops.pygen.concat_elu.default
_quick_op_elu = _ext.quick(_op_elu)
