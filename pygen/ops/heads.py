"""Output heads: the likelihood of what the last 1x1 convolution predicts, without its logits in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _ext, backends
from .._lib import FLOATS, INTEGERS, define, layout, names, once_differentiable, refuse_tangents
from ..reference import heads as reference

ORDERS = ("channel", "level")


def _check(h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, order: str) -> None:
    op = "categorical_nll"
    if order not in ORDERS:
        raise ValueError(f"{op}: expected order to be one of {ORDERS}, got {order!r}")
    if h.dim() < 2:
        raise ValueError(f"{op}: expected h of shape [B, C, ...], got {tuple(h.shape)}")
    if h.dtype not in FLOATS:
        raise TypeError(f"{op}: expected h of dtype {names(FLOATS)}, got {h.dtype}")
    if target.dtype not in INTEGERS:
        raise TypeError(f"{op}: expected target of dtype {names(INTEGERS)}, got {target.dtype}")
    for name, tensor in (("weight", weight), ("bias", bias), ("target", target)):
        if tensor is not None and tensor.device != h.device:
            raise ValueError(f"{op}: expected {name} on {h.device} as h, got {tensor.device}")
        if tensor is not None and name != "target" and tensor.dtype != h.dtype:
            raise TypeError(f"{op}: expected {name} of {h.dtype} as h, got {tensor.dtype}")
    if weight.dim() != 2 or weight.shape[1] != h.shape[1]:
        raise ValueError(f"{op}: expected weight of shape [Cout, {h.shape[1]}], got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{op}: expected bias of shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if target.dim() != h.dim() or target.shape[0] != h.shape[0] or target.shape[2:] != h.shape[2:]:
        sites = ", ".join(map(str, (h.shape[0], "channels", *h.shape[2:])))
        raise ValueError(f"{op}: expected target of shape [{sites}], got {tuple(target.shape)}")
    channels, outputs = target.shape[1], weight.shape[0]
    if not (channels and outputs) or outputs % channels:
        raise ValueError(f"{op}: expected as many outputs for each of {channels} channels, got {outputs} in all")
    if target.device.type == "cpu" and not torch.compiler.is_compiling() and type(target) is Tensor and target.numel():
        lowest, highest = int(target.min()), int(target.max())
        if lowest < 0 or highest >= outputs // channels:
            raise ValueError(
                f"{op}: expected levels in [0, {outputs // channels}) in target, got {lowest} to {highest}"
            )


def _check_backward(
    grad_nll: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, order: str, *_: bool
) -> None:
    _check(h, weight, bias, target, order)
    if grad_nll.shape != target.shape:
        raise ValueError(
            f"categorical_nll: expected grad_nll of shape {tuple(target.shape)}, got {tuple(grad_nll.shape)}"
        )


def _default(h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, order: str) -> Tensor:
    _check(h, weight, bias, target, order)
    return reference.categorical_nll(h, weight, bias, target, order=order).contiguous()


def _default_backward(
    grad_nll: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    order: str,
    *needs: bool,
) -> tuple[Tensor, ...]:
    _check_backward(grad_nll, h, weight, bias, target, order)
    grad_h, *others = reference.categorical_nll_backward(grad_nll, h, weight, bias, target, order=order)
    grads = (grad_h.contiguous(memory_format=layout(h)), *others)
    return tuple(g if need else g.new_empty(0) for g, need in zip(grads, needs, strict=True))


def _fake(h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, order: str) -> Tensor:
    _check(h, weight, bias, target, order)
    return h.new_empty(target.shape, dtype=torch.promote_types(h.dtype, torch.float32))


def _fake_backward(
    grad_nll: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    order: str,
    need_h: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_h = torch.empty(h.shape, dtype=h.dtype, device=h.device, memory_format=layout(h)) if need_h else h.new_empty(0)
    grad_weight = weight.new_empty(weight.shape if need_weight else 0)
    return grad_h, grad_weight, h.new_empty(bias.shape if need_bias and bias is not None else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.order = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:3]
    grads = torch.ops.pygen.categorical_nll_backward(grad_nll, *ctx.saved_tensors, ctx.order, *needs)
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), None, None)


define(
    "categorical_nll(Tensor h, Tensor weight, Tensor? bias, Tensor target, str order) -> Tensor nll",
    family="heads",
    default=_default,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    check=_check,
    cuda=None,
)
define(
    "categorical_nll_backward(Tensor grad_nll, Tensor h, Tensor weight, Tensor? bias, Tensor target, str order, "
    "bool need_h, bool need_weight, bool need_bias) -> (Tensor grad_h, Tensor grad_weight, Tensor grad_bias)",
    family="heads",
    default=_default_backward,
    fake=_fake_backward,
    backward=once_differentiable("categorical_nll_backward"),
    check=_check_backward,
    cuda=None,
)


def categorical_nll(
    h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, order: str = "channel"
) -> Tensor:
    """The negative log-likelihood of levels under the softmax of a 1x1 convolution's outputs, in one op::

        z = weight h + bias                              at each site, one group of levels for each channel
        nll = log sum_l exp z[c, l] - z[c, target[c]]

    PixelRNN's and PixelCNN's 256-way softmax (van den Oord et al. 2016, arXiv 1601.06759, section 3.2):
    F.cross_entropy(F.conv2d(h, weight), target) without a sum, whose logits, log-probabilities and gradient are never
    in memory; a block of sites at a time is.

    h: [B, C, *S] features, any number of spatial dimensions, none too; float32, float64, bfloat16 or float16.
    weight, bias: [Cout, C] and [Cout] or None, in the dtype of h, with Cout = channels * levels.
    target: [B, channels, *S], integers in [0, levels).
    order: which output is level l of channel c: c levels + l for "channel" (default), l channels + c for "level".

    Returns nll [B, channels, *S] in nats, contiguous; float64 for float64 h, else float32, as is the arithmetic. NaN
    in h reaches the values of its site. The same bits for any number of threads.

    Differentiable once with respect to h, weight and bias; twice raises NotImplementedError, except under
    `pygen.backends.use("reference")`, which PyTorch differentiates. The backward keeps the inputs alone and computes
    the logits again: a fourth matrix product beside eager's three. The gradients of weight and bias are added in
    float64 over blocks.

    torch.autocast leaves the op alone. Bytes moved: forward, h, weight and target in and nll out; backward, these and
    the gradient of nll in, the gradients out. Backends: C++ (AVX-512, AVX2, baseline) on the CPU, else the reference,
    on CUDA too.

    Raises ValueError for shapes, devices, orders and (on the CPU) levels that do not fit, TypeError for dtypes; both
    say what was expected and what was given. On a GPU levels are not looked at: one out of range gives NaN.

    >>> import torch
    >>> from pygen.ops import categorical_nll
    >>> conv = torch.nn.Conv2d(64, 3 * 256, 1)
    >>> x = torch.randint(256, (2, 3, 8, 8))
    >>> categorical_nll(torch.randn(2, 64, 8, 8), conv.weight.flatten(1), conv.bias, x).shape
    torch.Size([2, 3, 8, 8])
    """
    if backends.forced is not None and backends.choose("categorical_nll", h) == "reference":
        return _default(h, weight, bias, target, order)
    if forward_ad._current_level >= 0:
        refuse_tangents("categorical_nll", h, weight, bias)
    op = _op if torch.compiler.is_compiling() else _quick_op
    return op(h, weight, bias, target, order)  # type: ignore[no-any-return]


_op = torch.ops.pygen.categorical_nll.default
_quick_op = _ext.quick(_op)
