"""What every model shares: the training loss, likelihoods, Bayes over labels, checkpoints."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from .. import random
from .._arguments import check_integer
from .._lib import INTEGERS
from ..nn import Condition
from ..random import Source
from . import checkpoint

M = TypeVar("M", bound="Model")

_LABELS = 255  # the draw of a sample's random stream that is its label: the last one


class Model(nn.Module):
    """A density over tensors of one shape, perhaps given a label y and a context vector.

    A subclass implements `_prepare` and `_log_density`, which every likelihood here is made of, and `_sample`; perhaps
    `complete`.

    config: the constructor's arguments; a checkpoint keeps them.
    shape: shape of one sample, without the batch.
    levels: samples hold integers 0 .. levels - 1; None: real numbers.
    num_classes: labels are 0 .. num_classes - 1; None for a model without labels.
    context_features: width of the context [B, context_features]; 0 for a model without one.
    context_area: (H, W) if the context is a map [B, context_features, H, W].
    NATS: whether the training loss is in nats per dimension.
    PICTURES: samples that training draws at a checkpoint, by default.
    CHUNK: nets are run on so many samples at once. It is part of what a seed means: they round differently in batches
        of different sizes.
    BATCH: samples that are best drawn in one call, a multiple of CHUNK; None: CHUNK.
    """

    NATS: ClassVar[bool] = True
    PICTURES: ClassVar[int] = 64
    CHUNK: ClassVar[int] = 64
    BATCH: ClassVar[int | None] = None
    levels: int | None = None

    def __init__(
        self,
        config: dict[str, Any],
        shape: tuple[int, ...],
        num_classes: int | None,
        context_features: int,
        *,
        context_area: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_integer("len(shape)", len(shape), 1)
        for size in shape:
            check_integer("every size in shape", size, 1)
        self.config = config
        self.shape = shape
        self.condition = Condition(num_classes, context_features, area=context_area)

    @property
    def num_classes(self) -> int | None:
        return self.condition.num_classes

    def _prepare(self, x: Tensor, generator: Source) -> Any:
        """Checks a batch and turns it into what `_log_density` takes; draws the noise, if any."""
        raise NotImplementedError

    def _log_density(self, v: Any, condition: Tensor | None) -> Tensor:
        """log p(v | condition), [B] nats."""
        raise NotImplementedError

    @torch.no_grad()
    def initialize(self, x: Tensor, y: Tensor | None = None, *, context: Tensor | None = None) -> None:
        """Sets what a model wants to start with from the first data that it is trained on; most want nothing."""

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """In eval mode while this is open; then every module is as it was."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    # --- likelihoods -------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, y: Tensor | None = None, *, context: Tensor | None = None) -> Tensor:
        """Training loss: mean negative `log_prob` in nats per dimension (bits per dimension times ln 2), a scalar."""
        log_prob = self.log_prob(x, y, context=context)
        if len(log_prob) == 0:
            raise ValueError("expected a batch of at least one sample to train on, got an empty one")
        return -log_prob.mean() / math.prod(self.shape)

    def log_prob(
        self, x: Tensor, y: Tensor | None = None, *, context: Tensor | None = None, generator: Source = None
    ) -> Tensor:
        """log p(x | y, context), [B] nats; the class says whether exact or a bound.

        Without y, a model with labels gives log p(x | context), marginal over equally likely labels: as many passes as
        there are labels.
        generator: source of the dequantisation noise, where a model uses any.
        """
        if y is None and self.num_classes is not None:
            joint = self.class_log_prob(x, context=context, generator=generator)
            return joint.logsumexp(1) - math.log(self.num_classes)
        return self._log_density(self._prepare(x, generator), self._given(len(x), y, context))

    def bits_per_dim(
        self, x: Tensor, y: Tensor | None = None, *, context: Tensor | None = None, generator: Source = None
    ) -> Tensor:
        """-log2 p(x | y, context) per dimension, [B]."""
        log_prob = self.log_prob(x, y, context=context, generator=generator)
        return -log_prob / (math.prod(self.shape) * math.log(2))

    def class_log_prob(self, x: Tensor, *, context: Tensor | None = None, generator: Source = None) -> Tensor:
        """log p(x | y, context) for every label y, [B, num_classes] nats. All labels see the same noise."""
        if self.num_classes is None:
            raise ValueError("expected a model with labels, got num_classes=None")
        v = self._prepare(x, generator)
        labels = torch.arange(self.num_classes, device=x.device)
        densities = [self._log_density(v, self._given(len(x), y.expand(len(x)), context)) for y in labels]
        return torch.stack(densities, 1)

    def log_posterior(self, x: Tensor, *, context: Tensor | None = None, generator: Source = None) -> Tensor:
        """log p(y | x, context) by Bayes' rule for labels that are equally likely beforehand, [B, num_classes]."""
        return self.class_log_prob(x, context=context, generator=generator).log_softmax(1)

    # --- samples -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | Sequence[int] | int | None = None,
        *,
        generator: Source = None,
        context: Tensor | None = None,
        first_sample: int = 0,
        temperature: float = 1.0,
    ) -> Tensor:
        """n samples [n, *shape]: numbers first_sample .. first_sample + n - 1 of the seed.

        Samples are drawn in eval mode. A sample's number, the seed, and its own label and context decide it: it is the
        same in a batch of any size, to the bit with the same number of threads. For that, nets always run on whole
        chunks of `CHUNK` numbers.

        y: labels [n] or one label for all; None draws them, equally likely, in a model with labels.
        generator: an int seed, a torch.Generator that supplies one, or None for torch's global stream, likewise.
        temperature: below 1 likelier, less varied samples; 1 samples the model.
        """
        seed, rows = self._started(n, y, context, generator, first_sample, temperature)
        with self.evaluating():
            return self._in_chunks(n, first_sample, rows, partial(self._sample, seed=seed, temperature=temperature))

    def draw_labels(self, n: int, *, generator: Source = None, first_sample: int = 0) -> Tensor:
        """The labels [n] that `sample` draws with the same arguments, in a model with labels."""
        if self.num_classes is None:
            raise ValueError("expected a model with labels, got num_classes=None")
        where: dict[str, Any] = {"first_sample": first_sample, "draw": _LABELS, "device": self._like.device}
        return random.integers(self.num_classes, (n,), generator=generator, **where)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        y: Tensor | Sequence[int] | int | None = None,
        *,
        generator: Source = None,
        context: Tensor | None = None,
        first_sample: int = 0,
        temperature: float = 1.0,
    ) -> Tensor:
        """Samples [n, *shape] that are x where `known` is True, drawn given that; their numbers are as in `sample`.

        x: [n, *shape]; only what is known of it matters. known: bool, of a shape that broadcasts to that of x.
        Not every model can: NotImplementedError.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot complete samples that are known in part")

    def _sample(self, first: int, y: Tensor | None, context: Tensor | None, seed: int, temperature: float) -> Tensor:
        """The chunk of samples first .. first + CHUNK - 1."""
        raise NotImplementedError

    def _started(
        self,
        n: int,
        y: Tensor | Sequence[int] | int | None,
        context: Tensor | None,
        generator: Source,
        first_sample: int,
        temperature: float,
    ) -> tuple[int, tuple[Tensor | None, Tensor | None]]:
        """The seed, the labels and the context, once the arguments of `sample` are right."""
        check_integer("n", n, 0)
        seed = self._check_draw(generator, first_sample, temperature)
        return seed, self.condition.check(n, self._labels(n, y, seed, first_sample), context)

    def _check_known(self, x: Tensor, known: Tensor) -> Tensor:
        """known in x's shape."""
        self._check_shape("x", x, self.shape)
        if not isinstance(known, Tensor) or known.dtype != torch.bool:
            raise TypeError(f"expected known as a bool tensor, got {getattr(known, 'dtype', type(known).__name__)}")
        try:
            return known.expand(x.shape)
        except RuntimeError:
            raise ValueError(f"expected known to broadcast to {list(x.shape)}, got {list(known.shape)}") from None

    def _check_draw(self, generator: Source, first_sample: int, temperature: float) -> int:
        """The seed, once the arguments are right."""
        check_integer("first_sample", first_sample, 0)
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
            raise TypeError(f"expected temperature as a number, got {temperature!r}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"expected a finite temperature >= 0, got {temperature}")
        return random.seed_of(generator)

    def _labels(self, n: int, y: Tensor | Sequence[int] | int | None, seed: int, first_sample: int) -> Tensor | None:
        """The labels that are meant: given, one for all, or drawn."""
        if y is None:
            labelled = self.num_classes is not None
            return self.draw_labels(n, generator=seed, first_sample=first_sample) if labelled else None
        device = self._like.device
        return torch.full((n,), y, device=device) if isinstance(y, int) else torch.as_tensor(y, device=device)

    def _in_chunks(
        self, n: int, first_sample: int, rows: Sequence[Tensor | None], draw: Callable[..., Tensor]
    ) -> Tensor:
        """draw(first, *rows) for the chunks that hold the n samples; rows [n, ...] are filled up with zeros."""
        parts = []
        end = first_sample + n
        for first in range(first_sample - first_sample % self.CHUNK, max(end, first_sample + 1), self.CHUNK):
            start, stop = max(first_sample, first), min(end, first + self.CHUNK)
            chunk = [None if row is None else row.new_zeros((self.CHUNK, *row.shape[1:])) for row in rows]
            for whole, row in zip(chunk, rows, strict=True):
                if whole is not None and row is not None:
                    whole[start - first : stop - first] = row[start - first_sample : stop - first_sample]
            parts.append(draw(first, *chunk)[start - first : stop - first])
        return torch.cat(parts)

    # --- arguments ---------------------------------------------------------------------------------------------------

    def _check_shape(self, name: str, x: Tensor, shape: tuple[int, ...]) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"expected {name} as a tensor, got {type(x).__name__}")
        if x.shape[1:] != shape or x.dim() != len(shape) + 1:
            expected = ", ".join(map(str, ("B", *shape)))
            raise ValueError(f"expected {name} of shape [{expected}], got {list(x.shape)}")

    def _check_levels(self, x: Tensor, levels: int) -> None:
        """Raises unless x is a batch of integer levels."""
        self._check_shape("x", x, self.shape)
        if x.dtype not in INTEGERS:
            raise TypeError(f"expected x as integer levels 0 .. {levels - 1}, got {x.dtype}")
        if x.device.type == "cpu" and x.numel() and not torch.compiler.is_compiling():
            low, high = (int(v) for v in x.aminmax())
            if low < 0 or high >= levels:
                raise ValueError(f"expected levels in [0, {levels}), got {low if low < 0 else high}")

    def _given(self, batch: int, y: Tensor | None, context: Tensor | None) -> Tensor | None:
        """The condition [B, F], or [B, F, H, W], in the model's dtype, or None."""
        condition: Tensor | None = self.condition(batch, y, context)
        return None if condition is None else condition.to(self._like.dtype)

    @property
    def _like(self) -> Tensor:
        """A parameter, or else a buffer of numbers: the dtype and device to compute with."""
        own = (t for t in itertools.chain(self.parameters(), self.buffers()) if t.is_floating_point())
        return next(own, torch.empty(0))

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], *, training: Mapping[str, Any] | None = None) -> None:
        """Writes a folder with `config.json` and safetensors weights. An older checkpoint there gives way as a whole.

        training: facts about the training to keep in `config.json`.
        """
        checkpoint.save(self, folder, training)

    @classmethod
    def load(cls: type[M], folder: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> M:
        """Reads what `save` wrote: the model as it was, in its dtype, in eval mode. See also `pygen.models.load`.

        Raises FileNotFoundError and NotADirectoryError where there is no such folder, and ValueError for what is no
        checkpoint, or one of another class.
        """
        model = checkpoint.load(folder, {cls.__name__: cls}, device)
        assert isinstance(model, cls)
        return model
