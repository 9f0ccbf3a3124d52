"""Where seeds of the random stream come from."""

from __future__ import annotations

import torch

Source = torch.Generator | int | None

_WORD = (1 << 64) - 1


def seed_of(source: Source) -> int:
    """A seed 0 <= s < 2^64: an int as it is; a torch.Generator gives one 64-bit draw, None one from torch's default
    CPU generator, which torch.manual_seed seeds.

    A CUDA generator, a draw from which would wait for the GPU, gives a hash of its seed and offset, which advances.
    """
    if isinstance(source, int) and not isinstance(source, bool):
        if not 0 <= source <= _WORD:
            raise ValueError(f"expected a seed in [0, 2^64), got {source}")
        return source
    if source is not None and not isinstance(source, torch.Generator):
        raise TypeError(f"expected generator to be a torch.Generator, an int seed or None, got {type(source).__name__}")
    if source is not None and source.device.type == "cuda":
        offset = source.get_offset()
        source.set_offset(offset + 4)  # what it counts in
        return _mix(_mix(source.initial_seed() & _WORD) ^ offset)
    drawn = torch.empty((), dtype=torch.int64).random_(-(1 << 63), None, generator=source)
    return int(drawn.item()) & _WORD


def _mix(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64-bit words."""
    x = x + 0x9E3779B97F4A7C15 & _WORD
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _WORD
    return x ^ x >> 31
