"""The op, as the reference computes it until its kernels are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import random
from .._seed import Source
from ..reference.diffusion_step import diffusion_step as reference


def diffusion_step(
    x: Tensor,
    outputs: Sequence[Tensor],
    table: Tensor,
    index: int | Tensor = 0,
    *,
    noise: Tensor | None = None,
    draws: bool = False,
    dtypes: Sequence[torch.dtype] | None = None,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
    step: int = 0,
    **options: Any,
) -> list[Tensor]:
    """See `pygen.reference.diffusion_step`; results in `dtypes`, or the type of x."""
    if draws:
        at = step + (index if isinstance(index, int) else int(index) if index.dim() == 0 else 0)
        where = {"first_sample": first_sample} if sample_ids is None else {"sample_ids": sample_ids}
        noise = random.normal(x.shape, generator=generator, step=at, device=x.device, dtype=torch.float32, **where)
    index = torch.as_tensor(index, device=table.device)
    results = reference(x, outputs, table.to(x.device), index.to(x.device), noise=noise, **options)
    return [result.to(dtype) for result, dtype in zip(results, dtypes or [x.dtype] * len(results), strict=True)]
