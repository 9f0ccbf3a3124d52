"""Output heads in plain PyTorch: what every other implementation is judged against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._lib import without_autocast


def _flat(t: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, C, N] of [B, C, ...]."""
    return t.to(dtype)[..., None].flatten(2)


def _logits(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B, Cout, N] of N sites."""
    dtype = torch.promote_types(h.dtype, torch.float32)  # float16 and bfloat16 are storage types
    with without_autocast(h):
        logits = weight.to(dtype).expand(h.shape[0], -1, -1).bmm(_flat(h, dtype))
    return logits if bias is None else logits + bias.to(dtype)[:, None]


def _gradients(grad: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """With respect to h, weight and bias (empty without one), from that of the logits [B, Cout, N]."""
    with without_autocast(h):
        grad_h = (weight.to(grad).mT @ grad).reshape(h.shape)
        grad_weight = torch.einsum("bon,bcn->oc", grad, _flat(h, grad.dtype))
    grad_bias = grad.sum((0, 2)) if bias is not None else grad.new_empty(0)
    return grad_h.to(h.dtype), grad_weight.to(weight.dtype), grad_bias.to(h.dtype)


# --- categorical_nll --------------------------------------------------------------------------------------------------


def _log_probabilities(h: Tensor, weight: Tensor, bias: Tensor | None, channels: int, order: str) -> Tensor:
    """[B, channels, levels, N] of N sites."""
    bias = None if bias is None else by_channel(bias, channels, order)
    logits = _logits(h, by_channel(weight, channels, order), bias)
    grouped: Tensor = logits.unflatten(1, (channels, weight.shape[0] // channels))
    return grouped.log_softmax(2)


def categorical_nll(
    h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, order: str = "channel"
) -> Tensor:
    """See `pygen.ops.categorical_nll`. Where target is no level the result is NaN."""
    log_p = _log_probabilities(h, weight, bias, target.shape[1], order)
    levels = log_p.shape[2]
    level = _flat(target, torch.int64)[:, :, None]
    nll = -log_p.gather(2, level.clamp(0, levels - 1))
    return torch.where((level >= 0) & (level < levels), nll, torch.nan).reshape(target.shape)


def by_channel(t: Tensor, channels: int, order: str) -> Tensor:
    """weight or bias with output c levels + l as level l of channel c; where order is "level", l channels + c was."""
    return t if order == "channel" else t.unflatten(0, (-1, channels)).transpose(0, 1).flatten(0, 1)


def from_channel(t: Tensor, channels: int, order: str) -> Tensor:
    """The inverse of by_channel."""
    return t if order == "channel" else t.unflatten(0, (channels, -1)).transpose(0, 1).flatten(0, 1)


def categorical_nll_backward(
    grad_nll: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, order: str = "channel"
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to h, weight and bias (empty without one), by formula: d logits = g (softmax - onehot)."""
    channels = target.shape[1]
    log_p = _log_probabilities(h, weight, bias, channels, order)
    g = _flat(grad_nll, log_p.dtype)[:, :, None]  # [B, channels, 1, N]
    level = _flat(target, torch.int64)[:, :, None]
    inside = (level >= 0) & (level < log_p.shape[2])
    grad = (g * log_p.exp()).scatter_add(2, level.clamp(0, log_p.shape[2] - 1), -g)
    grad = torch.where(inside, grad, torch.nan).flatten(1, 2)  # [B, Cout, N]
    grad_h, *others = _gradients(grad, h, by_channel(weight, channels, order), bias)
    grad_weight, grad_bias = (from_channel(t, channels, order) if t.numel() else t for t in others)
    return grad_h, grad_weight, grad_bias


# --- bernoulli_nll ----------------------------------------------------------------------------------------------------


def _signs(target: Tensor, dtype: torch.dtype) -> Tensor:
    """1 - 2 target, [B, channels, N]; NaN where it is neither 0 nor 1."""
    bit = _flat(target, torch.int64)
    return torch.where((bit == 0) | (bit == 1), 1 - 2 * bit, torch.nan).to(dtype)


def bernoulli_nll(h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """See `pygen.ops.bernoulli_nll`. Where target is neither 0 nor 1 the result is NaN."""
    z = _logits(h, weight, bias)
    return -F.logsigmoid(-_signs(target, z.dtype) * z).reshape(target.shape)


def bernoulli_nll_backward(
    grad_nll: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to h, weight and bias (empty without one), by formula: d z = g (sigmoid(z) - target)."""
    z = _logits(h, weight, bias)
    sign = _signs(target, z.dtype)
    return _gradients(_flat(grad_nll, z.dtype) * sign * torch.sigmoid(sign * z), h, weight, bias)
