"""Output heads: the likelihood of what the last 1x1 convolution predicts, without its logits in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _ext, backends
from .._lib import FLOATS, INTEGERS, define, layout, names, once_differentiable, refuse_tangents
from ..reference import heads as reference

ORDERS = ("channel", "level")


class _Head:
    """The op of one head and its backward op, defined when it is made. Calling it calls the op.

    reference, reference_backward: in plain PyTorch. settings: the names of the strings that follow the tensors in the
        schema, keywords of the reference.
    targets: the dtypes of target.
    admitted: raises for numbers of channels (in target), outputs and settings that do not fit; returns how many values
        target may take, from 0 on, and what messages call them.
    """

    def __init__(
        self,
        reference: Callable[..., Tensor],
        reference_backward: Callable[..., tuple[Tensor, ...]],
        *settings: str,
        targets: tuple[torch.dtype, ...],
        admitted: Callable[..., tuple[int, str]],
    ) -> None:
        self.name, self.reference, self.reference_backward = reference.__name__, reference, reference_backward
        self.settings, self.targets, self.admitted = settings, targets, admitted
        given = ", ".join(("Tensor h, Tensor weight, Tensor? bias, Tensor target", *(f"str {s}" for s in settings)))
        define(
            f"{self.name}({given}) -> Tensor nll",
            family="heads",
            default=self.default,
            fake=self.fake,
            setup_context=self.setup_context,
            backward=self.backward,
            check=self.check,
            cuda="triton",
        )
        define(
            f"{self.name}_backward(Tensor grad_nll, {given}, bool need_h, bool need_weight, bool need_bias) -> "
            "(Tensor grad_h, Tensor grad_weight, Tensor grad_bias)",
            family="heads",
            default=self.default_backward,
            fake=self.fake_backward,
            backward=once_differentiable(f"{self.name}_backward"),
            check=self.check_backward,
            cuda="triton",
        )
        self.op = getattr(torch.ops.pygen, self.name).default
        self.backward_op = getattr(torch.ops.pygen, f"{self.name}_backward").default
        self.quick_op = _ext.quick(self.op)

    def __call__(self, h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *settings: str) -> Tensor:
        if backends.forced is not None and backends.choose(self.name, h) == "reference":
            return self.default(h, weight, bias, target, *settings)
        if forward_ad._current_level >= 0:
            refuse_tangents(self.name, h, weight, bias)
        op = self.op if torch.compiler.is_compiling() else self.quick_op
        return op(h, weight, bias, target, *settings)  # type: ignore[no-any-return]

    def check(self, h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *settings: str) -> None:
        op = self.name
        if h.dim() < 2:
            raise ValueError(f"{op}: expected h of shape [B, C, ...], got {tuple(h.shape)}")
        if h.dtype not in FLOATS:
            raise TypeError(f"{op}: expected h of dtype {names(FLOATS)}, got {h.dtype}")
        if target.dtype not in self.targets:
            raise TypeError(f"{op}: expected target of dtype {names(self.targets)}, got {target.dtype}")
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
        values, called = self.admitted(target.shape[1], weight.shape[0], *settings)
        if target.device.type == "cpu" and not torch.compiler.is_compiling() and type(target) is Tensor:
            lowest, highest = map(int, target.aminmax()) if target.numel() else (0, 0)
            if lowest < 0 or highest >= values:
                raise ValueError(f"{op}: expected {called} in target, got {lowest} to {highest}")

    def check_backward(
        self, grad_nll: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *others: Any
    ) -> None:
        self.check(h, weight, bias, target, *others[:-3])
        if grad_nll.shape != target.shape:
            raise ValueError(
                f"{self.name}: expected grad_nll of shape {tuple(target.shape)}, got {tuple(grad_nll.shape)}"
            )

    def _named(self, settings: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(self.settings, settings, strict=True))

    def default(self, h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *settings: str) -> Tensor:
        self.check(h, weight, bias, target, *settings)
        return self.reference(h, weight, bias, target, **self._named(settings)).contiguous()

    def default_backward(
        self, grad_nll: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *others: Any
    ) -> tuple[Tensor, ...]:
        self.check_backward(grad_nll, h, weight, bias, target, *others)
        *settings, need_h, need_weight, need_bias = others
        named = self._named(tuple(settings))
        grad_h, *rest = self.reference_backward(grad_nll, h, weight, bias, target, **named)
        grads = (grad_h.contiguous(memory_format=layout(h)), *rest)
        needs = (need_h, need_weight, need_bias)
        return tuple(g if need else g.new_empty(0) for g, need in zip(grads, needs, strict=True))

    def fake(self, h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *settings: str) -> Tensor:
        self.check(h, weight, bias, target, *settings)
        return h.new_empty(target.shape, dtype=torch.promote_types(h.dtype, torch.float32))

    def fake_backward(
        self, grad_nll: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *others: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        need_h, need_weight, need_bias = others[-3:]
        grad_h = torch.empty_like(h, memory_format=layout(h)) if need_h else h.new_empty(0)
        grad_weight = weight.new_empty(weight.shape if need_weight else 0)
        return grad_h, grad_weight, h.new_empty(bias.shape if need_bias and bias is not None else 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.settings = inputs[4:]

    def backward(self, ctx: Any, grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:3]
        grads = self.backward_op(grad_nll, *ctx.saved_tensors, *ctx.settings, *needs)
        return (
            *(g if need else None for g, need in zip(grads, needs, strict=True)),
            *(None,) * (1 + len(ctx.settings)),
        )


# --- categorical_nll --------------------------------------------------------------------------------------------------


def _levels(channels: int, outputs: int, order: str) -> tuple[int, str]:
    if order not in ORDERS:
        raise ValueError(f"categorical_nll: expected order to be one of {ORDERS}, got {order!r}")
    if not (channels and outputs) or outputs % channels:
        raise ValueError(
            f"categorical_nll: expected as many outputs for each of {channels} channels, got {outputs} in all"
        )
    return outputs // channels, f"levels in [0, {outputs // channels})"


_categorical = _Head(
    reference.categorical_nll,
    reference.categorical_nll_backward,
    "order",
    targets=INTEGERS,
    admitted=_levels,
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
    the logits again: a fourth matrix product beside eager's three (on CUDA a fifth and a sixth too). The gradients of
    weight and bias are added over blocks, in float64 on the CPU.

    torch.autocast leaves the op alone. Bytes moved: forward, h, weight and target in and nll out; backward, these and
    the gradient of nll in, the gradients out. Backends: C++ (AVX-512, AVX2, baseline) on the CPU, Triton on CUDA,
    else the reference.

    Raises ValueError for shapes, devices, orders and (on the CPU) levels that do not fit, TypeError for dtypes; both
    say what was expected and what was given. On a GPU levels are not looked at: one out of range gives NaN.

    >>> import torch
    >>> from pygen.ops import categorical_nll
    >>> conv = torch.nn.Conv2d(64, 3 * 256, 1)
    >>> x = torch.randint(256, (2, 3, 8, 8))
    >>> categorical_nll(torch.randn(2, 64, 8, 8), conv.weight.flatten(1), conv.bias, x).shape
    torch.Size([2, 3, 8, 8])
    """
    return _categorical(h, weight, bias, target, order)


# --- bernoulli_nll ----------------------------------------------------------------------------------------------------


def _binary(channels: int, outputs: int) -> tuple[int, str]:
    if not channels or outputs != channels:
        raise ValueError(
            "bernoulli_nll: expected one or more channels in target and an output for each in weight, got "
            f"{channels} and {outputs}"
        )
    return 2, "0 and 1"


_bernoulli = _Head(
    reference.bernoulli_nll,
    reference.bernoulli_nll_backward,
    targets=(*INTEGERS, torch.bool),
    admitted=_binary,
)


def bernoulli_nll(h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """The negative log-likelihood of bits under the sigmoid of a 1x1 convolution's outputs, in one op::

        z = weight h + bias                              at each site, one logit for each channel
        nll = log(1 + e^((1 - 2 target) z))              -log sigmoid(z) for 1, -log sigmoid(-z) for 0

    PixelRNN's and PixelCNN's sigmoid for binarised MNIST (van den Oord et al. 2016, arXiv 1601.06759, table 1):
    F.binary_cross_entropy_with_logits(F.conv2d(h, weight), target) without a sum, whose logits and gradient are never
    in memory; a block of sites at a time is.

    h: [B, C, *S] features, any number of spatial dimensions, none too; float32, float64, bfloat16 or float16.
    weight, bias: [channels, C] and [channels] or None, in the dtype of h.
    target: [B, channels, *S], integers in {0, 1} or bool.

    Returns nll [B, channels, *S] in nats, contiguous; float64 for float64 h, else float32, as is the arithmetic. No z
    overflows, and nll and its gradient are as exact as z where they are next to 0, for either value. NaN in h reaches
    the values of its site. The same bits for any number of threads.

    Differentiable once with respect to h, weight and bias (d nll / d z = sigmoid(z) - target); twice raises
    NotImplementedError, except under `pygen.backends.use("reference")`, which PyTorch differentiates. The backward
    keeps the inputs alone and computes the logits again. The gradients of weight and bias are added over blocks, in
    float64 on the CPU.

    torch.autocast leaves the op alone. Bytes moved: forward, h, weight and target in and nll out; backward, these and
    the gradient of nll in, the gradients out. Backends: C++ (AVX-512, AVX2, baseline) on the CPU, Triton on CUDA,
    else the reference.

    Raises ValueError for shapes, devices and (on the CPU) values that do not fit, TypeError for dtypes; both say what
    was expected and what was given. On a GPU values are not looked at: one that is neither 0 nor 1 gives NaN.

    >>> import torch
    >>> from pygen.ops import bernoulli_nll
    >>> conv = torch.nn.Conv2d(64, 1, 1)
    >>> x = torch.rand(2, 1, 28, 28) < 0.2
    >>> bernoulli_nll(torch.randn(2, 64, 28, 28), conv.weight.flatten(1), conv.bias, x).shape
    torch.Size([2, 1, 28, 28])
    """
    return _bernoulli(h, weight, bias, target)
