"""What models share that are a product of conditional distributions, one for every pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor

from .. import ops
from .._lib import INTEGERS
from ..nn import CausalHead, Compiled, MixtureHead, ProgramBuilder
from ..nn._arguments import check_integer
from ..random import Source
from .model import Model


class Autoregressive(Model):
    """log p(x) = sum over pixels, in raster order, and their channels of log p(x_i | all before it): exact.

    A subclass implements `_features`, from which `head` makes the distribution of each level, and `_stages`, the same
    layers for a pixel program, which `sample` and `complete` run.
    """

    PICTURES = CHUNK = 16
    BATCH = 256
    ONES = False  # whether `_features` adds a channel of ones to the image
    levels: int
    head: CausalHead | MixtureHead

    def _features(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Levels scaled to [-1, 1] [B, C, H, W] -> [B, F, H, W], which at a pixel depend on those before it, and, for a
        `CausalHead`, in group c of F, on the pixel's channels before c. Of fewer rows, those of F are the same."""
        raise NotImplementedError

    def _stages(self, builder: ProgramBuilder) -> int:
        """Has the builder take down what `_features` does; returns the plane of the features."""
        raise NotImplementedError

    def program(self) -> Compiled:
        """The model as a pixel program, with the weights as they are now; see `pygen.program`."""
        builder = ProgramBuilder(self.shape, self.levels, len(self.head.drawn_together), ones=self.ONES)
        return self.head.compiled(builder, self._stages(builder))

    def _prepare(self, x: Tensor, generator: Source) -> Tensor:
        self._check_shape("x", x, self.shape)
        if x.dtype not in INTEGERS:
            raise TypeError(f"expected x as integer levels 0 .. {self.levels - 1}, got {x.dtype}")
        if x.device.type == "cpu" and x.numel() and not torch.compiler.is_compiling():
            low, high = (int(v) for v in x.aminmax())
            if low < 0 or high >= self.levels:
                raise ValueError(f"expected levels in [0, {self.levels}), got {low if low < 0 else high}")
        return x

    def _scaled(self, x: Tensor) -> Tensor:
        scaled = x.to(self._like.dtype) * (2 / (self.levels - 1)) - 1
        return scaled.contiguous(memory_format=torch.channels_last)

    def _log_density(self, v: Tensor, condition: Tensor | None) -> Tensor:
        nll = self.head.nll(self._features(self._scaled(v), condition), v)
        return -nll.double().flatten(1).sum(1).to(nll.dtype)

    # --- samples -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(  # type: ignore[override]
        self,
        n: int,
        y: Tensor | Sequence[int] | int | None = None,
        *,
        generator: Source = None,
        context: Tensor | None = None,
        first_sample: int = 0,
        temperature: float = 1.0,
        **options: Unpack[Drawing],
    ) -> Tensor | tuple[Tensor, Tensor]:
        """n samples [n, C, H, W]: numbers first_sample .. first_sample + n - 1 of the seed; see `Model.sample`.

        They are drawn by `pygen.ops.causal_sampler`, which computes every feature once: the pixels of a loop that runs
        the net for each of them, up to its rounding. With its native kernel a sample is the same, to the bit, in any
        batch, on any number of threads.

        temperature: of the logits; of a mixture's components and of their logistic distributions.
        top_k, top_p: see `pygen.ops.causal_sampler`; not for mixtures.
        log_prob: whether to return (samples, log p [n]) with the log-probability, in nats and at temperature 1, of what
            was drawn.
        noise: uniform numbers in [0, 1) to draw with instead of the stream's, [n, C, H, W], or, for mixtures,
            [n, 1 + C, H, W].
        progress: progress(done, total) is called now and then, counting rows of images.
        """
        seed, given = self._started(n, y, context, generator, first_sample, temperature)
        x = torch.zeros(n, *self.shape, dtype=torch.int64, device=self._like.device)
        known = torch.zeros_like(x, dtype=torch.bool)
        return self._draw(x, known, given, seed, first_sample, temperature, options)

    @torch.no_grad()
    def complete(  # type: ignore[override]
        self,
        x: Tensor,
        known: Tensor,
        y: Tensor | Sequence[int] | int | None = None,
        *,
        generator: Source = None,
        context: Tensor | None = None,
        first_sample: int = 0,
        temperature: float = 1.0,
        **options: Unpack[Drawing],
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Samples [n, C, H, W] that are x where `known` is True, drawn given that of it which comes before; see
        `Model.complete`, and `sample` for the options."""
        known = self._check_known(x, known)
        seed, given = self._started(len(x), y, context, generator, first_sample, temperature)
        x = self._prepare(x.where(known, 0), None).long()
        self.head.check_unknown(~known)
        return self._draw(x, known, given, seed, first_sample, temperature, options)

    def _draw(
        self,
        x: Tensor,
        known: Tensor,
        given: tuple[Tensor | None, Tensor | None],
        seed: int,
        first_sample: int,
        temperature: float,
        options: Drawing,
    ) -> Tensor | tuple[Tensor, Tensor]:
        check_options(options)
        n, progress, noise = len(x), options.get("progress"), options.get("noise")
        if isinstance(self.head, MixtureHead) and (options.get("top_k", 0) or options.get("top_p", 1.0) != 1):
            raise ValueError("expected top_k and top_p for models with a softmax only, which mixtures have none of")
        compiled = self.program()
        with self.evaluating():
            condition = self._given(n, *given)
            conditions = [self._by_chunks(make, condition, first_sample) for make in compiled.conditions]
        parts = []
        for start in range(0, max(n, 1), self.BATCH):
            own = slice(start, start + self.BATCH)
            done, rows = start * self.shape[1], n * self.shape[1]
            parts.append(
                ops.causal_sampler(
                    compiled.program,
                    compiled.tensors,
                    x[own],
                    known[own],
                    [values[own] for values in conditions],
                    noise=None if noise is None else noise[own],
                    temperature=temperature,
                    top_k=options.get("top_k", 0),
                    top_p=options.get("top_p", 1.0),
                    log_prob=options.get("log_prob", False),
                    progress=None if progress is None else partial(_count, progress, done, rows),
                    generator=seed,
                    first_sample=first_sample + start,
                )
            )
        drawn = torch.cat([levels for levels, _ in parts])
        drawn = drawn.to(torch.uint8) if self.levels <= 256 else drawn
        log_prob = [log_p for _, log_p in parts if log_p is not None]
        return (drawn, torch.cat(log_prob)) if log_prob else drawn

    def _by_chunks(self, make: Callable[[Tensor], Tensor], condition: Tensor | None, first_sample: int) -> Tensor:
        """make(condition), for samples from `first_sample` on, by whole chunks of numbers."""
        assert condition is not None
        n, before = len(condition), first_sample % self.CHUNK
        whole = condition.new_zeros(-(-(before + n) // self.CHUNK) * self.CHUNK, *condition.shape[1:])
        whole[before : before + n] = condition
        made = [make(chunk) for chunk in whole.split(self.CHUNK)]
        return torch.cat(made)[before : before + n] if made else make(condition)


class Drawing(TypedDict, total=False):
    """Options of `Autoregressive.sample` and `complete`."""

    top_k: int
    top_p: float
    log_prob: bool
    noise: Tensor | None
    progress: Callable[[int, int], None] | None


def check_options(options: Drawing) -> None:
    for name in options:
        if name not in Drawing.__annotations__:
            raise TypeError(f"expected options among {', '.join(Drawing.__annotations__)}, got {name!r}")


def _count(progress: Callable[[int, int], None], before: int, total: int, done: int, of: int) -> None:
    progress(before + done, total)


def check_image(shape: tuple[int, int, int], levels: int, **sizes: int) -> None:
    """Raises for sizes that no such model has."""
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise ValueError(f"expected shape as (C, H, W), got {shape}")
    for size in shape:
        check_integer("every size in shape", size, 1)
    check_integer("levels", levels, 2)
    for name, size in sizes.items():
        check_integer(name, size, 1 if name == "hidden" else 0)
