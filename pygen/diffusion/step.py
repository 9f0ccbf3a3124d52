"""What one step of a sampler computes, as numbers: rows over what is at hand, and their place in a table.

A coefficient function reads like the formula of its paper, on rows instead of tensors::

    y = then.alpha * X0 + std * Z        Row(x0=then.alpha, noise=std)

Everything here is Python floats, float64 therefore; `pygen.ops.diffusion_step` applies the result to tensors.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """A linear combination of the state x, the model's output g, the data x0 predicted, noise and history."""

    x: float = 0.0
    g: float = 0.0
    x0: float = 0.0
    noise: float = 0.0
    history: tuple[float, ...] = ()

    def __add__(self, other: Row) -> Row:
        history = tuple(a + b for a, b in zip_longest(self.history, other.history, fillvalue=0.0))
        return Row(self.x + other.x, self.g + other.g, self.x0 + other.x0, self.noise + other.noise, history)

    def __mul__(self, scale: float) -> Row:
        history = tuple(scale * h for h in self.history)
        return Row(scale * self.x, scale * self.g, scale * self.x0, scale * self.noise, history)

    __rmul__ = __mul__

    def __neg__(self) -> Row:
        return self * -1.0

    def __sub__(self, other: Row) -> Row:
        return self + -other

    def __truediv__(self, by: float) -> Row:
        return self * (1 / by)

    def unfolded(self, p: float, q: float) -> Row:
        """With p x + q g for x0."""
        return replace(self, x0=0.0) + self.x0 * Row(x=p, g=q) if self.x0 else self


X, G, X0, Z = Row(x=1.0), Row(g=1.0), Row(x0=1.0), Row(noise=1.0)


def H(index: int) -> Row:
    """A tensor of history; 0 is the first."""
    return Row(history=(0.0,) * index + (1.0,))


@dataclass(frozen=True)
class Step:
    """A step of a sampler: x0 = clamp(p x + q g, clip), then `rows`, of which the first is the next state.

    keep: what history is after the step: "x" (the state before), "y1", "y2" (results), "h0", "h1", ... (history).
    threshold: x0 is clamped to a bound of its sample besides, given when the step is applied.
    known, known_noise: y_0 where pixels are known is known * image + known_noise * noise.
    log_std: (a, b) where the noise's standard deviation is exp(a + b v) times its coefficient, for a tensor v.
    scale: what the next state is multiplied by to be the model's next input.
    """

    p: float
    q: float
    rows: tuple[Row, ...]
    keep: tuple[str, ...] = ()
    clip: float = math.inf
    threshold: bool = False
    known: float = 0.0
    known_noise: float = 0.0
    log_std: tuple[float, float] | None = None
    scale: float = 1.0

    @cached_property
    def reads(self) -> tuple[int, ...]:
        """The tensors of history that a row needs."""
        return tuple(sorted({i for row in self.rows for i, weight in enumerate(row.history) if weight}))

    @cached_property
    def noisy(self) -> bool:
        return any(row.noise for row in self.rows) or self.known_noise != 0

    @cached_property
    def repaints(self) -> bool:
        return self.known != 0 or self.known_noise != 0

    @property
    def shape(self) -> tuple[int, int]:
        """How many tensors of history it reads, and rows it has: steps of one shape fit into one table."""
        return len(self.reads), len(self.rows)

    @property
    def form(self) -> Hashable:
        """Everything about it but numbers: steps of one form do the same work."""
        what = self.noisy, self.repaints, self.threshold, self.log_std is None
        return self.reads, len(self.rows), self.keep, what

    def pack(self, weights: Sequence[float] = (1.0,)) -> list[float]:
        """The row of a table, see `pygen.ops.diffusion_step`, for outputs of these weights and history `reads`."""
        rows, p, q = self.rows, self.p, self.q
        if self.clip == math.inf and not self.threshold:  # x0 is no more than its formula, which loses fewer digits
            rows, p, q = tuple(row.unfolded(p, q) for row in rows), 0.0, 0.0
        head = p, q, self.clip, self.known, self.known_noise, self.scale, *(self.log_std or (0.0, 0.0))
        packed = [*weights, *head]
        for row in rows:
            history = (row.history[i] if i < len(row.history) else 0.0 for i in self.reads)
            packed += row.x, row.g, row.x0, row.noise, *history
        return packed


def table(steps: Sequence[Step], weights: Sequence[float] = (1.0,)) -> Tensor:
    """The table [len(steps), columns] of steps of one shape, float64 on the CPU."""
    return torch.tensor([step.pack(weights) for step in steps], dtype=torch.float64)
