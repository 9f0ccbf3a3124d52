"""Gates in plain PyTorch: what every other implementation is judged against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pre_activation(x: Tensor, bias: Tensor | None, condition: Tensor | None) -> tuple[Tensor, Tensor]:
    """a and b, [B, C, ...] each, in the type of the arithmetic: the halves of x + bias + condition."""
    z = x.to(torch.promote_types(x.dtype, torch.float32))  # float16 and bfloat16 are storage types
    if bias is not None:
        z = z + bias.to(z).reshape(*bias.shape, *[1] * (x.dim() - 2))  # [2C, 1, 1] or [B, 2C, 1, 1]
    if condition is not None:
        z = z + condition.to(z)
    a, b = z.split(x.shape[1] // 2, 1) if x.shape[1] else (z, z)
    return a, b


def gated_activation(
    x: Tensor,
    *,
    kind: str = "tanh",
    bias: Tensor | None = None,
    condition: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """See `pygen.ops.gated_activation`."""
    a, b = pre_activation(x, bias, condition)
    y = (torch.tanh(a) if kind == "tanh" else a) * torch.sigmoid(b)
    if residual is not None:
        y = y + residual.to(y)
    return y.to(x.dtype)


def gated_activation_backward(
    grad_y: Tensor, x: Tensor, bias: Tensor | None, condition: Tensor | None, *, kind: str = "tanh"
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to x (condition's is the same) and bias (empty without one), by formula::

    d a = g s (1 - t^2)    d b = g t s (1 - s)        t = tanh(a), s = sigmoid(b)
    d a = g s              d b = g a s (1 - s)        kind "linear"
    """
    a, b = pre_activation(x, bias, condition)
    g, s = grad_y.to(a), torch.sigmoid(b)
    if kind == "tanh":
        t = torch.tanh(a)
        grad_a, grad_b = g * s * (1 - t * t), g * t * s * torch.sigmoid(-b)
    else:
        grad_a, grad_b = g * s, g * a * s * torch.sigmoid(-b)
    grad = torch.cat([grad_a, grad_b], 1)
    if bias is None:
        return grad.to(x.dtype), x.new_empty(0)
    summed = grad[..., None].flatten(2).sum(2)  # [B, 2C]
    return grad.to(x.dtype), (summed if bias.dim() == 2 else summed.sum(0)).to(bias.dtype)


def concat_elu(x: Tensor) -> Tensor:
    """See `pygen.ops.concat_elu`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.elu(torch.cat([wide, -wide], 1)).to(x.dtype)


def concat_elu_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    """The gradient with respect to x, by formula: g1 elu'(x) - g2 elu'(-x), with elu'(v) = e^min(v, 0)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    first, second = grad_y.to(wide).split(x.shape[1], 1) if x.shape[1] else (wide, wide)
    return (first * wide.clamp(max=0).exp() - second * (-wide).clamp(max=0).exp()).to(x.dtype)
