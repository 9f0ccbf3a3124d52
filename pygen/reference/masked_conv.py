"""Masked convolutions in plain PyTorch, as sums over live taps: what every other implementation is judged by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._lib import without_autocast

Taps = Sequence[tuple[int, int]]
Index = Tensor | slice
ALL = slice(None)


# --- geometry ---------------------------------------------------------------------------------------------------------


def output_size(size: Sequence[int], stride: int, transposed: bool) -> tuple[int, int]:
    """H', W': ceil(H / stride), or H stride of a transposed convolution."""
    height, width = (n * stride if transposed else -(-n // stride) for n in size)
    return height, width


def overlap(n_in: int, n_out: int, offset: int, stride: int, transposed: bool) -> tuple[slice, slice]:
    """Of an axis, the inputs and the outputs that one tap joins: in = stride out + offset, transposed
    stride in = out + offset."""
    fine, coarse, offset = (n_out, n_in, -offset) if transposed else (n_in, n_out, offset)
    first = max(0, -(offset // stride))
    last = max(first, min(coarse, (fine - 1 - offset) // stride + 1))
    start = stride * first + offset
    fine_slice = slice(start, start + stride * (last - first), stride) if last > first else slice(0, 0)
    return (slice(first, last), fine_slice) if transposed else (fine_slice, slice(first, last))


# --- channel groups ---------------------------------------------------------------------------------------------------


def group_of(channels: int, groups: int, interleaved: bool, device: torch.device, gated: bool = False) -> Tensor:
    """The group of each channel; each half has its own in front of a gate."""
    c = torch.arange(channels, device=device)
    if gated:
        c, channels = c % (channels // 2), channels // 2
    return c % groups if interleaved else c // (channels // groups)


def links(
    channels_in: int,
    channels_out: int,
    mask: str | None,
    groups: int,
    interleaved: bool,
    gated: bool,
    device: torch.device,
) -> Iterator[tuple[Index, Index]]:
    """Input channels and the output channels that all of them reach: everything, or one pair for each input group."""
    if mask is None:
        yield ALL, ALL
        return
    group_in = group_of(channels_in, groups, interleaved, device)
    group_out = group_of(channels_out, groups, interleaved, device, gated)
    for group in range(groups):
        reached = group_out > group if mask == "A" else group_out >= group
        yield (group_in == group).nonzero().flatten(), reached.nonzero().flatten()


# --- what follows the convolution -------------------------------------------------------------------------------------


def activate(pre: Tensor, activation: str | None) -> Tensor:
    """The activation over the channels, [B, C, ...]."""
    if activation == "relu":
        return F.relu(pre)
    if activation == "elu":
        return F.elu(pre)
    if activation in ("gate", "glu"):
        a, b = pre.chunk(2, 1)
        return (torch.tanh(a) if activation == "gate" else a) * torch.sigmoid(b)
    return pre


def activate_backward(grad: Tensor, pre: Tensor, activation: str | None) -> Tensor:
    """The gradient of the pre-activations."""
    if activation == "relu":
        return torch.where(pre <= 0, 0, grad)
    if activation == "elu":
        return torch.where(pre <= 0, grad * pre.clamp(max=0).exp(), grad)
    if activation in ("gate", "glu"):
        a, b = pre.chunk(2, 1)
        s, rest = torch.sigmoid(b), torch.sigmoid(-b)
        if activation == "gate":
            t = torch.tanh(a)
            return torch.cat([grad * s * (1 - t * t), grad * t * s * rest], 1)
        return torch.cat([grad * s, grad * a * s * rest], 1)
    return grad


# --- the convolution --------------------------------------------------------------------------------------------------


def preactivation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    condition: Tensor | None,
    *,
    taps: Taps,
    channel_mask: str | None,
    channel_groups: int,
    interleaved: bool,
    stride: int,
    dilation: int,
    transposed: bool,
    size: tuple[int, int],
    gated: bool,
) -> Tensor:
    """Convolution, bias and condition [B, Cout, H', W'], in float32 at least."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    codes = not x.is_floating_point()
    last = x if codes else x.to(dtype).movedim(1, -1)  # [B, H, W, Cin]
    w = weight.to(dtype)
    _, channels_in, channels_out = weight.shape
    y = w.new_zeros((x.shape[0], *size, channels_out))
    for t, (dy, dx) in enumerate(taps):
        rows = overlap(last.shape[1], size[0], dilation * dy, stride, transposed)
        columns = overlap(last.shape[2], size[1], dilation * dx, stride, transposed)
        seen = last[:, rows[0], columns[0]]
        if seen.numel() == 0:
            continue
        if codes:
            y[:, rows[1], columns[1]] += F.embedding(seen.long(), w[t])
            continue
        mask = channel_mask if (dy, dx) == (0, 0) else None
        for i, o in links(channels_in, channels_out, mask, channel_groups, interleaved, gated, x.device):
            with without_autocast(x):
                part = seen[..., i].flatten(0, 2) @ w[t][i][:, o]
            y[:, rows[1], columns[1], o] += part.unflatten(0, seen.shape[:3])
    y = y.movedim(-1, 1)
    if bias is not None:
        y = y + bias.to(dtype)[..., None, None]
    return y if condition is None else y + condition.to(dtype)


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
    """y = act(conv + bias + condition) + residual. See `pygen.ops.masked_conv2d`."""
    size = output_size or _size(x, stride, transposed)
    pre = preactivation(
        x, weight, bias, condition, taps=taps, channel_mask=channel_mask, channel_groups=channel_groups,
        interleaved=interleaved, stride=stride, dilation=dilation, transposed=transposed, size=size,
        gated=activation in ("gate", "glu"),
    )  # fmt: skip
    return finish(pre, activation, residual, weight.dtype)


def _size(x: Tensor, stride: int, transposed: bool) -> tuple[int, int]:
    return output_size(x.shape[-2:], stride, transposed)


def finish(pre: Tensor, activation: str | None, residual: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Activation and residual, stored as dtype."""
    y = activate(pre, activation)
    return (y if residual is None else y + residual.to(y.dtype)).to(dtype)


def masked_conv2d_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    pre: Tensor | None,
    *,
    taps: Taps,
    channel_mask: str | None,
    channel_groups: int,
    interleaved: bool,
    stride: int,
    dilation: int,
    transposed: bool,
    activation: str | None,
    need_x: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of x, weight and the pre-activations, by formula::

    dpre = dy act'(pre)    dx[b, i] = sum_t,o w[t, i, o] dpre[b, o]    dw[t, i, o] = sum_b x[b, i] dpre[b, o]
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    grad_pre = grad_y.to(dtype)
    if pre is not None:
        grad_pre = activate_backward(grad_pre, pre.to(dtype), activation)
    grad = grad_pre.movedim(1, -1)
    codes = not x.is_floating_point()
    last = x if codes else x.to(dtype).movedim(1, -1)
    w = weight.to(dtype)
    _, channels_in, channels_out = weight.shape
    gated = activation in ("gate", "glu")
    grad_x = None if codes or not need_x else torch.zeros_like(last)
    grad_weight = torch.zeros_like(w, memory_format=torch.contiguous_format)
    for t, (dy, dx) in enumerate(taps):
        rows = overlap(last.shape[1], grad.shape[1], dilation * dy, stride, transposed)
        columns = overlap(last.shape[2], grad.shape[2], dilation * dx, stride, transposed)
        seen, g = last[:, rows[0], columns[0]], grad[:, rows[1], columns[1]]
        if seen.numel() == 0:
            continue
        if codes:
            grad_weight[t].index_add_(0, seen.long().flatten(), g.flatten(0, 2))
            continue
        mask = channel_mask if (dy, dx) == (0, 0) else None
        for i, o in links(channels_in, channels_out, mask, channel_groups, interleaved, gated, x.device):
            with without_autocast(x):
                if grad_x is not None:
                    grad_x[:, rows[0], columns[0], i] += g[..., o] @ w[t][i][:, o].mT
                part = seen[..., i].flatten(0, 2).mT @ g[..., o].flatten(0, 2)
            entries = grad_weight[t][i]
            entries[:, o] = part
            grad_weight[t][i] = entries
    return (None if grad_x is None else grad_x.movedim(-1, 1)), grad_weight, grad_pre
