"""Cached sampling of autoregressive models in plain PyTorch: `pygen.program` run pixel by pixel."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..program import ACTIVATIONS, HEAD, PIXEL, ROW, Program, Stage, unpack
from . import random
from .gates import concat_elu
from .logistic_mixture import logistic_mixture_nll, logistic_mixture_sample
from .masked_conv import activate


def causal_sampler(
    program: Program,
    tensors: list[Tensor],
    conditions: list[Tensor],
    x: Tensor,
    known: Tensor,
    noise: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    seed: int = 0,
    step: int = 0,
    offset: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Levels [B, C, H, W] that are x where known, and log p [B] of the others, float64; see
    `pygen.ops.causal_sampler`."""
    planes = _Planes(program, tensors, conditions, len(x), x.device)
    ids = torch.arange(len(x), device=x.device) if ids is None else ids
    x, log_prob = (
        x.clone(memory_format=torch.contiguous_format),
        torch.zeros(len(x), dtype=torch.float64, device=x.device),
    )
    for channel in range(program.channels):
        planes.image(channel)[...] = planes.scaled(x[:, channel].where(known[:, channel], 0)).movedim(0, -1)
    unknown = ~known.all(0)  # of all samples
    rows = [r for r in range(program.height) if unknown[:, r].any()]
    draw = _Draw(program, ids, seed, step, offset, temperature, top_k, top_p)
    for r in range(rows[-1] + 1 if rows else 0):
        planes.run(ROW, 0, r, 0, program.width)
        for c in range(program.width):
            for group in range(program.groups):
                planes.run(PIXEL, group, r, c, c + 1)
                own = slice(group, group + 1) if program.groups > 1 else slice(0, program.channels)
                if not unknown[own, r, c].any():
                    continue
                planes.run(HEAD, group, r, c, c + 1)
                parameters = planes.output(r, c)
                drawn = draw(parameters, group, r, c, noise)
                now = drawn.where(~known[:, own, r, c], x[:, own, r, c])
                x[:, own, r, c] = now
                log_p = _log_prob(program, parameters, now)
                log_prob += torch.where(known[:, own, r, c].all(1), 0, log_p)
                for k, channel in enumerate(range(own.start, own.stop)):
                    planes.image(channel)[r, c] = planes.scaled(now[:, k])
        if progress is not None:
            progress(len(x) * (r + 1), len(x) * program.height)
    if progress is not None:
        progress(len(x) * program.height, len(x) * program.height)
    return x, log_prob


class _Planes:
    """What is kept of the planes, [H' + margins, W' + margins, B, C] each, and the stages that fill them."""

    def __init__(
        self, program: Program, tensors: list[Tensor], conditions: list[Tensor], batch: int, device: torch.device
    ) -> None:
        self.program, self.conditions = program, conditions
        dtype = torch.promote_types(next(t.dtype for t in tensors if t.dim() == 3), torch.float32)
        self.weights = {s: unpack(tensors[s.weight], s.outputs).to(dtype) for s in program.stages if s.weight >= 0}
        self.biases = {s: tensors[s.bias].to(dtype) for s in program.stages if s.bias >= 0}
        self.margin = max([1, *(abs(d) for s in program.stages for read in s.reads for d in (read.dy, read.dx))]) + 1
        self.values = []
        for p, plane in enumerate(program.planes):
            height, width = (n + 2 * self.margin for n in program.grid(p))
            self.values.append(torch.zeros(height, width, batch, plane.channels, dtype=dtype, device=device))
        height, width = program.grid(0)
        self._inner(0)[..., program.channels :] = 1

    def _inner(self, plane: int) -> Tensor:
        m = self.margin
        height, width = self.program.grid(plane)
        return self.values[plane][m : m + height, m : m + width]

    def image(self, channel: int) -> Tensor:
        """[H, W, B]."""
        return self._inner(0)[..., channel]

    def scaled(self, levels: Tensor) -> Tensor:
        return levels.to(self.values[0].dtype) * (2 / (self.program.levels - 1)) - 1

    def output(self, r: int, c: int) -> Tensor:
        """[B, channels] of the plane that the head draws from."""
        return self._inner(self.program.output)[r, c]

    def run(self, phase: int, group: int, r: int, begin: int, end: int) -> None:
        """The stages of a phase for the pixels (r, begin), ..., (r, end - 1)."""
        for stage in self.program.stages:
            if stage.phase != phase or (phase != ROW and stage.group != group) or r % stage.row_every != stage.row_at:
                continue
            columns = range(begin + (stage.column_at - begin) % stage.column_every, end, stage.column_every)
            if columns:
                self._stage(stage, r, columns)

    def _stage(self, stage: Stage, r: int, columns: range) -> None:
        out = self._at(stage.out, r, columns)  # [n, B, C]
        pre = out.new_zeros(*out.shape[:2], stage.outputs)
        if stage.bias >= 0:
            pre = pre + self.biases[stage]
        if stage.condition >= 0:
            pre = pre + self._condition(stage, r, columns)
        if stage.start >= 0:
            pre = pre + self._at(stage.start, r, columns)[..., stage.start_first : stage.start_first + stage.outputs]
        if stage.reads:
            seen = [
                self._at(read.plane, r, columns, read.dy, read.dx)[..., read.first : read.first + read.count]
                for read in stage.reads
            ]
            pre = pre + torch.cat(seen, -1) @ self.weights[stage]
        y = _activate(pre, ACTIVATIONS[stage.activation])
        if stage.residual >= 0:
            first = stage.residual_first
            y = y + self._at(stage.residual, r, columns)[..., first : first + stage.written]
        out[..., stage.first : stage.first + stage.written] = y

    def _at(self, plane: int, r: int, columns: range, dy: int = 0, dx: int = 0) -> Tensor:
        """[n, B, C] of the places of a row, displaced."""
        scale, m = self.program.planes[plane].scale, self.margin
        first = columns[0] // scale + dx + m
        step = columns.step // scale
        return self.values[plane][r // scale + dy + m, first : first + step * len(columns) : step]

    def _condition(self, stage: Stage, r: int, columns: range) -> Tensor:
        given = self.conditions[stage.condition]  # [B, N] or [B, H', W', N]
        if given.dim() == 2:
            return given
        scale = self.program.planes[stage.out].scale
        return given[:, r // scale, [c // scale for c in columns]].movedim(0, 1)


def _activate(pre: Tensor, activation: str | None) -> Tensor:
    pre = pre.movedim(-1, 1)
    return (concat_elu(pre) if activation == "concat_elu" else activate(pre, activation)).movedim(1, -1)


# --- draws ------------------------------------------------------------------------------------------------------------


def kept(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """The logits, float32, with -inf for the levels that are left out: below the top_k-th largest (0: none), then, of
    the distribution that is left, those before which likelier ones already sum to top_p. Equal ones stay or go
    together. Weights are `random.weights`, integers, whose sums have no order."""
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p < 1:
        weights = random.weights(logits)
        ordered, order = weights.sort(-1, descending=True)
        likelier = ordered.cumsum(-1) - ordered
        first = torch.searchsorted(-ordered, -ordered)  # of those that are as likely
        likelier = likelier.gather(-1, first)
        out = torch.zeros_like(weights).scatter(-1, order, likelier)
        logits = logits.masked_fill(out.double() >= top_p * weights.sum(-1, keepdim=True).double(), -math.inf)
    return logits


class _Draw:
    """Draws a group of channels of one pixel."""

    def __init__(
        self, program: Program, ids: Tensor, seed: int, step: int, offset: int, temperature: float, top_k: int,
        top_p: float,
    ) -> None:  # fmt: skip
        self.program, self.where, self.offset = program, (ids, seed, step), offset
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    def __call__(self, parameters: Tensor, group: int, r: int, c: int, noise: Tensor | None) -> Tensor:
        """Levels [B, channels of the group]."""
        program = self.program
        place = self.offset + (r * program.width + c) * program.draws
        given = None if noise is None else noise[:, :, r, c]
        if program.head == "mixture":
            return self._mixture(parameters, place, given)
        top = parameters.amax(1)
        if parameters.device.type == "cpu" and not bool(top.isfinite().all()):
            raise ValueError("expected logits below infinity, some of each pixel above -inf, got others or NaN")
        if self.temperature == 0:
            return parameters.argmax(1, keepdim=True)
        logits = (parameters - parameters.amax(1, keepdim=True)).float() / self.temperature
        logits = kept(logits, self.top_k, self.top_p)
        if given is not None:
            words = (given[:, group].double() * 2.0**32).long()
            return random.categorical_at(logits, words)[:, None].clamp(min=0)
        ids, seed, step = self.where
        return random.categorical(logits[:, None], ids, seed, step, place + group).clamp(min=0)

    def _mixture(self, parameters: Tensor, place: int, given: Tensor | None) -> Tensor:
        program = self.program
        if given is None:
            ids, seed, step = self.where
            size = (len(parameters), program.draws)
            given = random.random(ids, size, seed, step, place, "uniform", torch.float32)
        x = logistic_mixture_sample(
            parameters[..., None, None],
            given[..., None, None],
            channels=program.channels,
            levels=program.levels,
            layout=program.layout,
            autoregressive=program.autoregressive,
            temperature=self.temperature,
            scale_temperature=self.temperature,
        )[..., 0, 0]
        if bool(x.isnan().any()):
            raise ValueError("expected parameters of a mixture to draw from, got NaN")
        levels = (x.float() + 1) * ((program.levels - 1) / 2) + 0.5
        return levels.floor().clamp(0, program.levels - 1).long()


def _log_prob(program: Program, parameters: Tensor, x: Tensor) -> Tensor:
    """log p [B] of the levels [B, channels of the group], float64."""
    if program.head == "categorical":
        return parameters.double().log_softmax(1).gather(1, x)[:, 0]
    options = {"levels": program.levels, "layout": program.layout, "autoregressive": program.autoregressive}
    nll = logistic_mixture_nll(x[..., None, None], parameters[..., None, None], **options)  # type: ignore[arg-type]
    return -nll[:, 0, 0].double()
