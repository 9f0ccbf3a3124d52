"""Affine coupling in plain PyTorch: what every other implementation is judged against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Part = str | slice | Tensor | Sequence[int]


def split_params(
    params: Tensor, activation: str, order: str, interleaved: bool, mask: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Raw scale s and shift t, [B, C', ...] each, from params [B, 2 C', ...]; s is None for an additive coupling.

    Where mask is False they are 0: nothing depends on the values there, which may be NaN."""
    s, t = None, params
    if activation != "additive":
        first, second = (params[:, 0::2], params[:, 1::2]) if interleaved else params.chunk(2, 1)
        s, t = (first, second) if order == "st" else (second, first)
    if mask is not None:
        s, t = None if s is None else torch.where(mask, s, 0), torch.where(mask, t, 0)
    return s, t


def squash_scale(s: Tensor, squash: str | None, gain: float | Tensor, width: float) -> Tensor:
    """u = gain h(s / width): bounds the raw scale before its activation."""
    h = s / width
    if squash == "tanh":
        h = torch.tanh(h)
    elif squash == "atan":
        h = torch.atan(h)
    elif squash == "softsign":
        h = h / (1 + h.abs())
    if isinstance(gain, Tensor):
        gain = gain.reshape(-1, *[1] * (s.dim() - 2))  # [C', 1, 1] or [1, 1, 1]
    return gain * h


def activate(u: Tensor, activation: str, eps: float, max_scale: float | None) -> tuple[Tensor, Tensor]:
    """Scale S > 0 and log S."""
    if activation == "exp":
        scale, log_scale = torch.exp(u), u
    elif activation == "sigmoid":
        scale, log_scale = torch.sigmoid(u), F.logsigmoid(u)
    else:
        scale = F.softplus(u, threshold=40.0)  # the default of 20 is 2e-9 off, which float64 sees
        tail = u < -15.0  # softplus(u) = e^u - e^2u / 2 + ..., whose log needs no e^u
        log_scale = torch.where(tail, u - u.clamp(max=0).exp() / 2, scale.clamp(min=torch.finfo(u.dtype).tiny).log())
    if eps:
        scale = scale + eps
        log_scale = scale.log()
    if max_scale is not None:
        log_scale = torch.where(scale <= max_scale, log_scale, scale.clamp(max=max_scale).log())
        scale = scale.clamp(max=max_scale)
    return scale, log_scale


def log_slope(u: Tensor, activation: str, eps: float, max_scale: float | None) -> Tensor:
    """D = d log S / du, without a 0 / 0 where S underflows; no gradient where S is clamped, as in torch.clamp."""
    scale, _ = activate(u, activation, 0.0, None)
    if activation == "exp":
        slope = torch.ones_like(u)
    elif activation == "sigmoid":
        slope = torch.sigmoid(-u)
    else:
        quotient = torch.sigmoid(u) / scale.clamp(min=torch.finfo(u.dtype).tiny)
        slope = torch.where(u < -15.0, 1 - u.clamp(max=0).exp() / 2, quotient)
    if eps:
        slope = slope / (1 + eps / scale)
    if max_scale is not None:
        slope = torch.where(scale + eps <= max_scale, slope, 0)
    return slope


def checkerboard(x: Tensor, part: Part) -> Tensor | None:
    """True where the spatial coordinates (or else the channel) have an even sum, or an odd one; else None."""
    if not isinstance(part, str) or part not in ("even", "odd"):
        return None
    mask = torch.zeros((), dtype=torch.int64, device=x.device)
    for size in x.shape[2:] or x.shape[1:]:
        mask = mask[..., None] + torch.arange(size, device=x.device)
    return mask % 2 == (part == "odd")  # [*S], or [C] without spatial dimensions


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
    part: Part = "second",
    logdet: Tensor | None = None,
    inverse: bool = False,
    memory_efficient: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `pygen.ops.affine_coupling`. `memory_efficient` changes what the gradient saves, not a value."""
    dtype = torch.promote_types(x.dtype, torch.float32)  # float16 and bfloat16 are storage types
    storage, x = x.dtype, x.to(dtype)
    mask = checkerboard(x, part)
    s, t = split_params(params.to(dtype), activation, order, interleaved, mask)
    t = shift_scale * t
    if s is None:
        scale, log_scale = torch.ones_like(t), torch.zeros_like(t)
    else:
        gain = gain.to(dtype) if isinstance(gain, Tensor) else gain
        scale, log_scale = activate(squash_scale(s, squash, gain, width) + offset, activation, eps, max_scale)

    def couple(x: Tensor) -> Tensor:
        if inverse:
            return (x - t) / scale if shift == "after" else x / scale - t
        return x * scale + t if shift == "after" else (x + t) * scale

    n = t.shape[1]
    if mask is not None:
        y = torch.where(mask, couple(x), x)
        log_scale = torch.where(mask, log_scale, 0)
    elif isinstance(part, (str, slice)):
        start = {"first": 0, "second": x.shape[1] - n, "all": 0}[part] if isinstance(part, str) else part.start or 0
        y = couple(x[:, start : start + n])
        if n < x.shape[1]:
            y = torch.cat([x[:, :start], y, x[:, start + n :]], 1)
    else:
        index = torch.as_tensor(part, device=x.device)
        y = x.index_copy(1, index, couple(x.index_select(1, index)))

    total = log_scale.flatten(1).sum(1)  # [B]
    total = -total if inverse else total
    return y.to(storage), total if logdet is None else logdet + total


def affine_coupling_backward(
    grad_y: Tensor,
    grad_logdet: Tensor,
    saved: Tensor | None,
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
    part: Part = "second",
    inverse: bool = False,
    memory_efficient: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to x, params and a tensor gain (empty for a float one), by formula.

    Forward and inverse are the two forms `out = (in + tau) M` (multiply last) and `out = in M + tau` (multiply first),
    with M = S or 1 / S and tau = t or -t. With g, l the upstream gradients of out and of the log-determinant,
    c = +1 or -1 the sign of log S in it, and D = d log S / du::

        d in  = g M
        d tau = g M  (multiply last)  or  g  (multiply first)
        d u   = c D (g Z + l)         Z = out (multiply last), in M = out - tau (multiply first)

    `saved` is out for multiply last and in memory_efficient mode, else in; None for an additive coupling.
    """
    dtype = torch.promote_types(grad_y.dtype, torch.float32)
    storage, g = grad_y.dtype, grad_y.to(dtype)
    mask = checkerboard(g, part)
    s, t = split_params(params.to(dtype), activation, order, interleaved, mask)
    n = t.shape[1]
    sign = -1.0 if inverse else 1.0
    multiply_last = (shift == "before") != inverse
    tau = sign * shift_scale * t

    index: Tensor | None = None
    if mask is not None:
        index = torch.arange(n, device=g.device)
    elif isinstance(part, (str, slice)):
        start = {"first": 0, "second": g.shape[1] - n, "all": 0}[part] if isinstance(part, str) else part.start or 0
        index = torch.arange(start, start + n, device=g.device)
    else:
        index = torch.as_tensor(part, device=g.device)
    gb = g.index_select(1, index)  # [B, C', ...]
    if mask is not None:
        gb = torch.where(mask, gb, 0)

    grad_gain = g.new_empty(0)
    if s is None or saved is None:
        grad_in = gb
        grad_params = sign * shift_scale * gb
    else:
        gain = gain.to(dtype) if isinstance(gain, Tensor) else gain
        u = squash_scale(s, squash, gain, width) + offset
        scale, _ = activate(u, activation, eps, max_scale)
        grad_in = gb / scale if inverse else gb * scale
        z = saved.to(dtype).index_select(1, index)
        if not multiply_last:
            z = z - tau if memory_efficient else (z / scale if inverse else z * scale)
        lg = grad_logdet.to(dtype).reshape(-1, *[1] * (g.dim() - 1))  # [B, 1, 1, 1]
        gu = sign * log_slope(u, activation, eps, max_scale) * (gb * z + lg)
        if mask is not None:
            gu = torch.where(mask, gu, 0)
        grad_t = sign * shift_scale * (grad_in if multiply_last else gb)
        h = squash_scale(s, squash, 1.0, width)
        v = s / width
        slopes = {"tanh": 1 - h * h, "atan": 1 / (1 + v * v), "softsign": 1 / (1 + v.abs()) ** 2}
        wide_gain = gain.reshape(-1, *[1] * (s.dim() - 2)) if isinstance(gain, Tensor) else gain
        grad_s = gu * wide_gain * (slopes[squash] if squash else 1.0) / width
        if isinstance(gain, Tensor):
            grad_gain = (gu * h).movedim(1, 0).flatten(1).sum(1)  # [C']
            grad_gain = grad_gain if gain.numel() == n else grad_gain.sum(0, keepdim=True)
            grad_gain = grad_gain.reshape(gain.shape)
        pair = (grad_s, grad_t) if order == "st" else (grad_t, grad_s)
        grad_params = torch.stack(pair, 2).flatten(1, 2) if interleaved else torch.cat(pair, 1)

    grad_x = g.index_copy(1, index, grad_in) if mask is None else torch.where(mask, grad_in, g)
    return grad_x.to(storage), grad_params.to(params.dtype), grad_gain
