"""The random stream: numbers that depend on nothing but the seed, the sample, the step and the element.

Not on the batch size or a sample's place in the batch, not on the number of threads, the processor, the device or the
process: a sample drawn alone, or by another machine, is the one drawn among a million. Every function takes

    generator: where the seed comes from. An int in [0, 2^64) is the seed. A torch.Generator gives one: a 64-bit draw,
        which advances it (a CUDA generator: a hash of its seed and offset, advanced without a wait). None (default): a
        draw from torch's default CPU generator, so that torch.manual_seed works.
    first_sample: the id of the first row; row i holds sample first_sample + i. 0.
    sample_ids: int64 [B], the id of each row instead, on the device of the result.
    step: in [0, 2^24), tells the draws of one sample from each other: a diffusion step, a pixel. 0.
    draw: in [0, 256), tells several draws of one step from each other. 0.
    offset: in [0, 2^34), the number of a row's first element; row[k] is element offset + k of its sample. 0.

and the first dimension of a shape counts samples, the others are the elements of a sample, in order. Different seeds,
ids, steps, draws or elements give independent numbers. Two calls with the same int and the same places give the same
numbers: give the second one another `step` or `draw`, or pass a torch.Generator.

Numbers are made of 32-bit words of Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy
as 1, 2, 3", SC'11) by float32 additions, multiplications and square roots alone, so that every backend (C++ for each
instruction set, Triton, plain PyTorch) gives the same bits. In another dtype a number is that float32 one, converted.
Element e of a sample is word (e % 64) // 16 of the counter (16 (e // 64) + e % 16, 2^24 draw + step, sample id), under
the key seed; a sample has at most 2^34 elements.

Nothing here is differentiable: results never require grad. torch.autocast changes nothing. Under
`torch.compile(fullgraph=True)` generator is an int or None. Bytes moved: the result, and what is given, once.

Raises ValueError for values, shapes and devices, TypeError for types; both say what was expected and what was given.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ._seed import Source, seed_of
from .ops.random import batch_of, call, check_tensor, stream

__all__ = [
    "Source", "bernoulli", "bits", "categorical", "gumbel", "integers", "logistic", "normal", "seed_of", "uniform",
]  # fmt: skip


def _fill(
    kind: str,
    shape: Sequence[int],
    generator: Source,
    first_sample: int,
    sample_ids: Tensor | None,
    step: int,
    draw: int,
    offset: int,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Tensor:
    size = _size(shape)
    where = stream(size[0] if size else 0, device, generator, first_sample, sample_ids, step, draw, offset)
    return call("random", where[0], *where, size, kind, torch.get_default_dtype() if dtype is None else dtype)


def _size(shape: Sequence[int]) -> tuple[int, ...]:
    if torch.compiler.is_compiling():  # a look at a size would be a guard on it
        return tuple(shape)
    try:
        size = tuple(map(operator.index, shape))
    except TypeError:
        raise TypeError(f"expected shape as a sequence of integers, got {shape!r}") from None
    if any(n >> 63 > 0 for n in size):
        raise ValueError(f"expected sizes below 2^63, got {size}")
    return size


def bits(
    shape: Sequence[int],
    *,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """The stream's words: 32 independent bits each, as int32. See `pygen.random` for the arguments."""
    return _fill("bits", shape, generator, first_sample, sample_ids, step, draw, offset, torch.int32, device)


def uniform(
    shape: Sequence[int],
    *,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1): the upper 24 bits of a word w, floor(w / 2^8) / 2^24.

    bfloat16 and float16 round them towards zero, so that they stay below 1. See `pygen.random` for the arguments.
    """
    return _fill("uniform", shape, generator, first_sample, sample_ids, step, draw, offset, dtype, device)


def normal(
    shape: Sequence[int],
    *,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal numbers, by Box and Muller (1958): of two words a, b of one counter::

        u = (a + 1/2) / 2^32      sqrt(-2 log u) cos(2 pi b / 2^32)      sqrt(-2 log u) sin(2 pi b / 2^32)

    The largest is 6.76. Worst error against float64: 5 units in the last place. See `pygen.random` for the arguments.
    """
    return _fill("normal", shape, generator, first_sample, sample_ids, step, draw, offset, dtype, device)


def logistic(
    shape: Sequence[int],
    *,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard logistic numbers, log u - log(1 - u) with u = (w + 1/2) / 2^32, in [-22.9, 22.9].

    Worst error against float64: 2.5 units in the last place. See `pygen.random` for the arguments.
    """
    return _fill("logistic", shape, generator, first_sample, sample_ids, step, draw, offset, dtype, device)


def gumbel(
    shape: Sequence[int],
    *,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard Gumbel numbers, -log(-log u) with u = (w + 1/2) / 2^32, in [-3.13, 22.9].

    Worst error against float64: 2.5 units in the last place, of 1 for numbers below 1. See `pygen.random` for the
    arguments.
    """
    return _fill("gumbel", shape, generator, first_sample, sample_ids, step, draw, offset, dtype, device)


def integers(
    high: int,
    shape: Sequence[int],
    *,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform int64 numbers in {0, ..., high - 1}: floor(w high / 2^32) for a word w and 1 <= high <= 2^32.

    Probabilities differ from 1 / high by less than 2^-32. See `pygen.random` for the arguments.
    """
    if isinstance(high, bool) or not isinstance(high, int):
        raise TypeError(f"expected high as an integer, got {high!r}")
    if not 1 <= high <= 1 << 32:
        raise ValueError(f"expected high in [1, 2^32], got {high}")
    w = _fill("bits", shape, generator, first_sample, sample_ids, step, draw, offset, torch.int32, device)
    return (w.long() & 0xFFFFFFFF) * high >> 32 & 0xFFFFFFFF


def bernoulli(
    p: Tensor,
    *,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
) -> Tensor:
    """1 with probability p, else 0, in the shape [B, ...], dtype (a floating-point one) and device of p.

    1 where w / 2^32 < p for a word w: exactly p rounded up to a multiple of 2^-32, so 0 and 1 are certain.
    p that is no probability, or NaN, raises ValueError on the CPU; on a GPU, where nobody looks, it gives NaN. A p that
    is expanded over the elements of a sample, or over all, is read as it lies. See `pygen.random` for the arguments.
    """
    check_tensor("bernoulli", "p", p)
    where = stream(batch_of(p), p.device, generator, first_sample, sample_ids, step, draw, offset)
    return call("bernoulli", where[0], p, *where)


def categorical(
    logits: Tensor,
    *,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
) -> Tensor:
    """Categories k with probability softmax(logits)_k, int64 [B, ...], for logits [B, ..., K].

    The distribution function, inverted at a word w: with integer weights m_k, 2^30 exp(logits_k - max) rounded,

        k = the first with  m_0 + ... + m_k > floor(w (m_0 + ... + m_(K-1)) / 2^32)

    so sums need no order, and the same logits give the same category everywhere. exp is float32's: a weight is off by
    less than 2^-22 of itself and 2^-31 of the largest, and a probability by what that adds up to over the categories.
    What is e^-22 times less likely than the largest, or has the logit -inf, is never drawn.
    logits: float32, float64, bfloat16 or float16. A row with NaN or +inf, or of -inf alone, raises ValueError on the
    CPU; on a GPU, where nobody looks, it gives -1. See `pygen.random` for the arguments.
    """
    check_tensor("categorical", "logits", logits)
    where = stream(batch_of(logits), logits.device, generator, first_sample, sample_ids, step, draw, offset)
    return call("categorical", where[0], logits, *where)
