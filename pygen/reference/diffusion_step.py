"""Steps of diffusion samplers in plain PyTorch: what every other implementation is judged against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Columns(NamedTuple):
    """Where a step's coefficients are in a row of its table, for J model outputs and H tensors of history.

    The first J: the weights of the outputs. Then these, and from `rows` on, for each result: x, g, x0, noise and H of
    history.
    """

    p: int
    q: int
    clip: int
    known: int
    known_noise: int
    scale: int
    log_std: int
    log_std_slope: int
    rows: int

    @classmethod
    def of(cls, outputs: int) -> Columns:
        return cls(*range(outputs, outputs + len(cls._fields)))


def width(outputs: int, history: int, rows: int) -> int:
    """Columns of a table."""
    return Columns.of(outputs).rows + rows * (4 + history)


def result_dtypes(x: Tensor, results: int, dtypes: Sequence[torch.dtype] | None) -> Sequence[torch.dtype]:
    """As given; by default x's, or float32 for bytes."""
    return dtypes or results * [torch.float32 if x.dtype == torch.uint8 else x.dtype]


def arithmetic(x: Tensor, outputs: Sequence[Tensor], dtypes: Sequence[torch.dtype] | None = None) -> torch.dtype:
    """float64 if x, an output or a result is of it, else float32: float16, bfloat16 and uint8 are storage types."""
    wide = torch.float64 in (x.dtype, *(output.dtype for output in outputs), *(dtypes or ()))
    return torch.float64 if wide else torch.float32


def normalised(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As numbers; bytes as (x - 127.5) / 127.5."""
    return (x.to(dtype) - 127.5) / 127.5 if x.dtype == torch.uint8 else x.to(dtype)


def along(values: Tensor, x: Tensor) -> Tensor:
    """[B] or [B, L] or [], to be multiplied with x [B, L, ...]."""
    return values.reshape(*values.shape, *[1] * (x.dim() - values.dim()))


def coefficients(table: Tensor, index: Tensor | int, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The columns of the rows that count, each to be multiplied with x. Rows that are not there are NaN."""
    table = table.to(dtype)
    if isinstance(index, Tensor):
        there = (index >= 0) & (index < len(table))
        c = table.index_select(0, index.clamp(0, len(table) - 1).flatten())  # table[index] would look at a counter
        c = torch.where(there[..., None], c.reshape(*index.shape, table.shape[1]), torch.nan)
    else:
        c = table[index]
    return [along(value, x) for value in c.movedim(-1, 0)]


class _Step:
    """A step on tensors in the type of the arithmetic: what the results and the gradients are made of."""

    def __init__(
        self,
        dtype: torch.dtype,
        x: Tensor,
        outputs: Sequence[Tensor],
        table: Tensor,
        index: Tensor | int,
        rows: int,
        history: Sequence[Tensor],
        noise: Tensor | None,
        rescale: Tensor | None,
        threshold: Tensor | None,
        log_std: Tensor | None,
        known: Tensor | None,
        known_mask: Tensor | None,
        known_noise: Tensor | None,
    ) -> None:
        n = coefficients(table, index, x, dtype)
        at, per_row = Columns.of(len(outputs)), 4 + len(history)
        self.weights = n[: at.p]
        self.p, self.q, self.clip, self.known, self.known_noise, self.scale = n[at.p : at.log_std]
        self.rows = [n[at.rows + k * per_row :][:per_row] for k in range(rows)]

        self.x = normalised(x, dtype)
        self.r = None if rescale is None else along(rescale.to(dtype), x)
        g = torch.zeros_like(self.x)
        for weight, output in zip(self.weights, outputs, strict=True):
            g = g + weight * output.to(dtype)
        self.g = g if self.r is None else g * self.r
        self.guess = self.p * self.x + self.q * self.g
        self.clipped = torch.clamp(self.guess, -self.clip, self.clip)
        self.s = None if threshold is None else along(threshold.to(dtype), x)
        self.x0 = self.clipped if self.s is None else torch.clamp(self.clipped, -self.s, self.s) / self.s

        def given(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype)

        self.history = [h.to(dtype) for h in history]
        self.z, self.mask = given(noise), given(known_mask)
        self.kept_z = self.z if known_noise is None else given(known_noise)
        self.slope = n[at.log_std_slope]
        self.std = None if log_std is None else torch.exp(n[at.log_std] + self.slope * log_std.to(dtype))
        self.kept = None if known is None else self.known * normalised(known, dtype)
        if self.kept is not None and self.kept_z is not None:
            self.kept = self.kept + self.known_noise * self.kept_z

    def row(self, k: int) -> Tensor:
        """A result, before it is blended."""
        a, e, b, d, *past = self.rows[k]
        y = a * self.x + e * self.g + b * self.x0
        if self.z is not None:
            y = y + d * (self.z if self.std is None else self.std * self.z)
        for weight, h in zip(past, self.history, strict=True):
            y = y + weight * h
        return y


def diffusion_step(
    x: Tensor,
    outputs: Sequence[Tensor],
    table: Tensor,
    index: Tensor | int = 0,
    *,
    rows: int = 1,
    history: Sequence[Tensor] = (),
    noise: Tensor | None = None,
    rescale: Tensor | None = None,
    threshold: Tensor | None = None,
    log_std: Tensor | None = None,
    known: Tensor | None = None,
    known_mask: Tensor | None = None,
    known_noise: Tensor | None = None,
    copies: int = 0,
    dtypes: Sequence[torch.dtype] | None = None,
) -> list[Tensor]:
    """See `pygen.ops.diffusion_step`."""
    given = (history, noise, rescale, threshold, log_std, known, known_mask, known_noise)
    step = _Step(arithmetic(x, outputs, dtypes), x, outputs, table, index, rows, *given)
    results = [step.row(k) for k in range(rows)]
    if step.kept is not None and step.mask is not None:
        results[0] = (1 - step.mask) * results[0] + step.mask * step.kept
    if copies:
        results.append(torch.cat([step.scale * results[0]] * copies))
    return [y.to(dtype) for y, dtype in zip(results, result_dtypes(x, len(results), dtypes), strict=True)]


class Each(NamedTuple):
    """Something of each tensor that a step can be differentiated in: its gradient, or whether that is asked for."""

    x: Any
    outputs: list[Any]
    history: list[Any]
    noise: Any
    log_std: Any
    known: Any
    known_mask: Any
    known_noise: Any


def diffusion_step_backward(
    grads: Sequence[Tensor],
    x: Tensor,
    outputs: Sequence[Tensor],
    table: Tensor,
    index: Tensor | int,
    wanted: Each,
    *,
    dtype: torch.dtype,
    rows: int,
    history: Sequence[Tensor],
    noise: Tensor | None,
    rescale: Tensor | None,
    threshold: Tensor | None,
    log_std: Tensor | None,
    known: Tensor | None,
    known_mask: Tensor | None,
    known_noise: Tensor | None,
    copies: int,
) -> Each:
    """Gradients by formula, in the type of the arithmetic, dtype; None for those that are not wanted. For Y_k the
    gradient of result k, u = p x + q g and v = u clamped to +-clip::

        Y_0 += scale (the copies' gradients)
        mask: Y_0 kept - Y_0 y_0    known: Y_0 m known'    known_noise: Y_0 m known_noise'        then Y_0 *= 1 - m
        V = sum B_k Y_k,  if |v| <= s:  V / s, else 0          U = V if |u| <= clip, else 0
        x: sum A_k Y_k + p U      G = sum E_k Y_k + q U      output j: w_j r G      history i: sum C_ki Y_k
        noise: sum D_k std Y_k    log_std: slope std z sum D_k Y_k

    A noise that is given, but no known_noise, also has the gradient of known_noise.
    """
    given = (history, noise, rescale, threshold, log_std, known, known_mask, known_noise)
    step = _Step(dtype, x, outputs, table, index, rows, *given)
    y = [grad.to(dtype) for grad in grads[:rows]]
    if copies:
        y[0] = y[0] + step.scale * grads[rows].to(dtype).unflatten(0, (copies, x.shape[0])).sum(0)

    mask = known = kept_noise = None
    if step.mask is not None:
        if wanted.known_mask and step.kept is not None:
            mask = y[0] * step.kept - y[0] * step.row(0)
        blended = y[0] * step.mask
        if wanted.known:
            known = blended * step.known
        if wanted.known_noise or (wanted.noise and known_noise is None):
            kept_noise = blended * step.known_noise
        y[0] = y[0] - blended

    def through(column: int) -> Tensor:
        total = step.rows[0][column] * y[0]
        for row, grad in zip(step.rows[1:], y[1:], strict=True):
            total = total + row[column] * grad
        return total

    grad_x: Tensor | None = None
    grad_outputs: list[Tensor | None] = [None for _ in outputs]
    if wanted.x or any(wanted.outputs):
        grad_u = through(2)
        if step.s is not None:
            grad_u = torch.where(step.clipped.abs() <= step.s, grad_u / step.s, 0)
        grad_u = torch.where(step.guess.abs() <= step.clip, grad_u, 0)
        if wanted.x:
            grad_x = through(0) + step.p * grad_u
        if any(wanted.outputs):
            grad_g = through(1) + step.q * grad_u
            grad_g = grad_g if step.r is None else grad_g * step.r
            grad_outputs = [w * grad_g if want else None for w, want in zip(step.weights, wanted.outputs, strict=True)]
    grad_z = grad_log_std = None
    if wanted.noise:
        grad_z = through(3) if step.std is None else step.std * through(3)
        grad_z = grad_z if kept_noise is None or known_noise is not None else grad_z + kept_noise
    if wanted.log_std and step.std is not None and step.z is not None:
        grad_log_std = step.slope * step.std * step.z * through(3)
    return Each(
        grad_x,
        grad_outputs,
        [through(4 + i) if want else None for i, want in enumerate(wanted.history)],
        grad_z,
        grad_log_std,
        known,
        mask,
        kept_noise if wanted.known_noise else None,
    )
