"""What models share that are a product of conditional distributions, one for every pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from .. import ops
from .._arguments import check_integer
from ..nn import CausalHead, Compiled, MixtureHead, ProgramBuilder
from ..random import Source
from .model import Model

if TYPE_CHECKING:
    from typing_extensions import Unpack


Labels = Tensor | Sequence[int] | int | None


class Drawing(TypedDict, total=False):
    """Options of `Autoregressive.sample` and `complete`."""

    generator: Source
    context: Tensor | None
    first_sample: int
    temperature: float
    top_k: int
    top_p: float
    noise: Tensor | None
    progress: Callable[[int, int], None] | None


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
        self._check_levels(x, self.levels)
        return x

    def _scaled(self, x: Tensor) -> Tensor:
        scaled = x.to(self._like.dtype) * (2 / (self.levels - 1)) - 1
        return scaled.contiguous(memory_format=torch.channels_last)

    def _log_density(self, v: Tensor, condition: Tensor | None) -> Tensor:
        nll = self.head.nll(self._features(self._scaled(v), condition), v)
        return -nll.double().flatten(1).sum(1).to(nll.dtype)

    # --- samples -----------------------------------------------------------------------------------------------------

    def sample(self, n: int, y: Labels = None, **options: Unpack[Drawing]) -> Tensor:
        """n samples [n, C, H, W]: numbers first_sample .. first_sample + n - 1 of the seed; see `Model.sample`.

        They are drawn by `pygen.ops.causal_sampler`, which computes every feature once: the pixels of a loop that runs
        the net for each of them, up to its rounding. With its native kernel a sample is the same, to the bit, in any
        batch, on any number of threads.

        y, generator, context, first_sample: see `Model.sample`.
        temperature: of the logits; of a mixture's components and of their logistic distributions.
        top_k, top_p: see `pygen.ops.causal_sampler`; not for mixtures.
        noise: uniform numbers in [0, 1) to draw with instead of the stream's, [n, C, H, W], or, for mixtures,
            [n, 1 + C, H, W].
        progress: progress(done, total) is called now and then, counting rows of images; not on CUDA.
        """
        return self._draw(*self._blank(n), y, False, **options)[0]

    def sample_and_log_prob(self, n: int, y: Labels = None, **options: Unpack[Drawing]) -> tuple[Tensor, Tensor]:
        """`sample`, and log p(x | y, context) of each, [n] nats in float64, whatever the temperature and filters."""
        return self._draw(*self._blank(n), y, True, **options)

    def complete(self, x: Tensor, known: Tensor, y: Labels = None, **options: Unpack[Drawing]) -> Tensor:
        """Samples [n, C, H, W] that are x where `known` is True, each pixel drawn given those before it, known or
        drawn; see `Model.complete`, and `sample` for the options."""
        return self._draw(*self._begun(x, known), y, False, **options)[0]

    def complete_and_log_prob(
        self, x: Tensor, known: Tensor, y: Labels = None, **options: Unpack[Drawing]
    ) -> tuple[Tensor, Tensor]:
        """`complete`, and the sum [n] of the log-probabilities of what was drawn, nats in float64."""
        return self._draw(*self._begun(x, known), y, True, **options)

    def _blank(self, n: int) -> tuple[Tensor, Tensor]:
        check_integer("n", n, 0)
        x = torch.zeros(n, *self.shape, dtype=torch.int64, device=self._like.device)
        return x, x.bool()

    def _begun(self, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        known = self._check_known(x, known)
        self.head.check_unknown(~known)
        return self._prepare(x.where(known, 0), None).long(), known

    @torch.no_grad()
    def _draw(
        self,
        x: Tensor,
        known: Tensor,
        y: Labels,
        log_prob: bool,
        *,
        generator: Source = None,
        context: Tensor | None = None,
        first_sample: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        noise: Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        n, height = len(x), self.shape[1]
        seed, given = self._started(n, y, context, generator, first_sample, temperature)
        if isinstance(self.head, MixtureHead) and (top_k or top_p != 1):
            raise ValueError(
                f"expected top_k and top_p for a softmax, which mixtures have none of, got {top_k}, {top_p}"
            )
        compiled = self.program()
        if noise is not None and noise.shape[:1] != (n,):
            raise ValueError(f"expected noise for {n} samples, got {tuple(noise.shape)}")
        if first_sample + n > 1 << 63:
            raise ValueError(f"expected samples below 2^63, got {n} from {first_sample} on")
        condition = self._given(n, *given)
        parts = []
        for start in range(0, max(n, 1), self.BATCH):
            own = slice(start, start + self.BATCH)
            count = None if progress is None else partial(_count, progress, start * height, n * height)
            drawn, log_p = ops.causal_sampler(
                compiled.program,
                compiled.tensors,
                x[own],
                known[own],
                [self._by_chunks(make, condition, first_sample, own) for make in compiled.conditions],
                noise=None if noise is None else noise[own],
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                log_prob=log_prob,
                progress=count,
                generator=seed,
                first_sample=first_sample + start,
            )
            parts.append((drawn.to(torch.uint8) if self.levels <= 256 else drawn, log_p))
        whole = torch.cat([drawn for drawn, _ in parts])
        return whole, torch.cat([x.new_empty(0, dtype=torch.float64) if p is None else p for _, p in parts])

    def _by_chunks(
        self, make: Callable[[Tensor], Tensor], condition: Tensor | None, first_sample: int, own: slice
    ) -> Tensor:
        """make(condition[own]), where condition 0 is sample `first_sample`'s, by whole chunks of sample numbers."""
        assert condition is not None
        some = condition[own]
        before = (first_sample + own.start) % self.CHUNK
        whole = some.new_zeros(-(-(before + len(some)) // self.CHUNK) * self.CHUNK, *some.shape[1:])
        whole[before : before + len(some)] = some
        made = [make(chunk) for chunk in whole.split(self.CHUNK)] if len(whole) else [make(some)]
        return torch.cat(made)[before : before + len(some)]


def _count(progress: Callable[[int, int], None], before: int, total: int, done: int, of: int) -> None:
    progress(before + done, total)


def check_image(shape: tuple[int, int, int], levels: int, **sizes: int) -> None:
    """Raises for sizes that no such model has."""
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise ValueError(f"expected shape as (C, H, W), got {shape}")
    for size in shape:
        check_integer("every size in shape", size, 1)
    check_integer("levels", levels, 2)
    if levels > 1 << 16:
        raise ValueError(f"expected levels <= 65536, got {levels}")
    for name, size in sizes.items():
        check_integer(name, size, 1 if name == "hidden" else 0)
