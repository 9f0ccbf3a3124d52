"""The random numbers of models: one small surface, so that every draw in the package goes through one door.

For now the numbers come from torch's own generators. A counter-based stream, whose numbers depend only on the seed, the
sample, the step and the element, will take their place behind the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Source = torch.Generator | int | None


def as_generator(source: Source, device: torch.device | str | None = None) -> torch.Generator | None:
    """A torch.Generator as it is, an int as the seed of a new one, None (torch's global stream) as None.

    A function that draws more than once converts first: an int seeds anew at every conversion.
    """
    if source is None or isinstance(source, torch.Generator):
        return source
    if isinstance(source, bool) or not isinstance(source, int):
        raise TypeError(f"expected generator to be a torch.Generator, an int seed or None, got {type(source).__name__}")
    return torch.Generator(device or "cpu").manual_seed(source)


def normal(
    shape: Sequence[int],
    *,
    generator: Source = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal numbers. Drawn on the generator's device, then moved."""
    generator = as_generator(generator, device)
    where = generator.device if generator is not None else device
    return torch.randn(tuple(shape), generator=generator, dtype=dtype, device=where).to(device or where)


def uniform(
    shape: Sequence[int],
    *,
    generator: Source = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1). Drawn on the generator's device, then moved."""
    generator = as_generator(generator, device)
    where = generator.device if generator is not None else device
    return torch.rand(tuple(shape), generator=generator, dtype=dtype, device=where).to(device or where)


def integers(
    high: int, shape: Sequence[int], *, generator: Source = None, device: torch.device | str | None = None
) -> Tensor:
    """Uniform int64 numbers in {0, ..., high - 1}. Drawn on the generator's device, then moved."""
    generator = as_generator(generator, device)
    where = generator.device if generator is not None else device
    return torch.randint(high, tuple(shape), generator=generator, device=where).to(device or where)
