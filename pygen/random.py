"""The random numbers of models: one small surface, so that every draw in the package goes through one door.

For now the numbers come from torch's own generators. A counter-based stream, whose numbers depend only on the seed, the
sample, the step and the element, will take their place behind the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

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


def seed_of(source: Source) -> int:
    """An int as it is; one draw from a torch.Generator, or from torch's global stream for None."""
    if isinstance(source, int) and not isinstance(source, bool):
        return source
    return int(torch.randint(2**63 - 1, (), generator=as_generator(source)))


def _of_samples(
    draw: Callable[..., Tensor], shape: Sequence[int], generator: Source, sample_ids: Tensor | None, step: int
) -> Tensor:
    """draw(shape, generator=...), for the samples `sample_ids` where they are given."""
    if sample_ids is None:
        return draw(tuple(shape), generator=as_generator(hash((seed_of(generator), step)) & 0xFFFFFFFF))
    seed = seed_of(generator)
    rows = [
        draw(tuple(shape[1:]), generator=as_generator(hash((seed, step, i)) & 0xFFFFFFFF)) for i in sample_ids.tolist()
    ]
    return torch.stack(rows) if rows else draw(tuple(shape))


def normal(
    shape: Sequence[int],
    *,
    generator: Source = None,
    sample_ids: Tensor | None = None,
    step: int = 0,
    draw: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal numbers. Drawn on the generator's device, then moved."""
    if sample_ids is not None or step or draw:
        return _of_samples(torch.randn, shape, generator, sample_ids, step + (draw << 24)).to(
            device=device, dtype=dtype
        )
    generator = as_generator(generator, device)
    where = generator.device if generator is not None else device
    return torch.randn(tuple(shape), generator=generator, dtype=dtype, device=where).to(device or where)


def uniform(
    shape: Sequence[int],
    *,
    generator: Source = None,
    sample_ids: Tensor | None = None,
    step: int = 0,
    draw: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1). Drawn on the generator's device, then moved."""
    if sample_ids is not None or step or draw:
        return _of_samples(torch.rand, shape, generator, sample_ids, step + (draw << 24)).to(device=device, dtype=dtype)
    generator = as_generator(generator, device)
    where = generator.device if generator is not None else device
    return torch.rand(tuple(shape), generator=generator, dtype=dtype, device=where).to(device or where)


def integers(
    high: int,
    shape: Sequence[int],
    *,
    generator: Source = None,
    sample_ids: Tensor | None = None,
    step: int = 0,
    draw: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform int64 numbers in {0, ..., high - 1}. Drawn on the generator's device, then moved."""
    if sample_ids is not None or step or draw:
        return _of_samples(partial(torch.randint, high), shape, generator, sample_ids, step + (draw << 24)).to(device)
    generator = as_generator(generator, device)
    where = generator.device if generator is not None else device
    return torch.randint(high, tuple(shape), generator=generator, device=where).to(device or where)
