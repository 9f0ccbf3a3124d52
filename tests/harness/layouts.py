"""The same values under other strides. The memory between and around them is NaN, so that a wrong read shows."""

from __future__ import annotations

from itertools import cycle

import torch
from torch import Tensor


def _padded(numel: int, like: Tensor) -> Tensor:
    """Memory for `numel` elements that holds what must never be read: NaN, the largest integer, or True."""
    junk = float("nan") if like.is_floating_point() else like.dtype == torch.bool or torch.iinfo(like.dtype).max
    return torch.full((numel,), junk, dtype=like.dtype, device=like.device)


def contiguous(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)


def channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if t.dim() > 2 else contiguous(t)


def sliced(t: Tensor) -> Tensor:
    """[..., ::2] of something twice as wide."""
    wide = _padded(2 * t.numel(), t).view(*t.shape, 2)
    wide[..., 0] = t
    return wide[..., 0]


def transposed(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 1 else contiguous(t)


def offset(t: Tensor) -> Tensor:
    """Contiguous, from the second element of its storage: aligned to the element only."""
    buffer = _padded(t.numel() + 2, t)
    buffer[1:-1] = t.flatten()
    return buffer[1:-1].view(t.shape)


def expanded(t: Tensor) -> Tensor:
    """Stride 0 over the batch: every sample becomes the first one."""
    return t[:1].clone().expand(t.shape) if t.dim() > 1 and t.shape[0] else contiguous(t)


def broadcast(t: Tensor) -> Tensor:
    """Stride 0 over the last dimension."""
    return t[..., :1].clone().expand(t.shape) if t.dim() > 1 and t.shape[-1] else contiguous(t)


_PLAIN = {f.__name__: f for f in (contiguous, channels_last, sliced, transposed, offset, expanded, broadcast)}
LAYOUTS = (*_PLAIN, "mixed")


def lay_out(tensors: dict[str, Tensor | None], layout: str) -> dict[str, Tensor | None]:
    """Tensors by name in one layout; "mixed": each one in another. Integer tensors (indices) keep their values."""
    if layout == "mixed":
        choice = dict(zip(tensors, cycle((channels_last, contiguous, sliced, transposed)), strict=False))
    else:
        choice = dict.fromkeys(tensors, _PLAIN[layout])
    return {name: None if t is None else choice[name](t) for name, t in tensors.items()}
