"""What every normalising flow shares: the change of variables, sampling, encoding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import random
from ..nn._arguments import check_integer
from ..random import Source
from .model import Model


class Flow(Model):
    """A normalising flow with a standard normal prior over a flat latent z [B, D].

    log p(v) = log N(z; 0, I) + log |det dz / dv|,   z = f(v)

    A subclass implements f as `_transform` and `_inverse`. Data is continuous and v is x, unless it overrides
    `_prepare`, `_encodable` and `_finish`. In training mode dropout makes it another map at every call: `eval()` first.
    """

    def _transform(self, v: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """v -> z [B, D], log |det dz / dv| [B]."""
        raise NotImplementedError

    def _inverse(self, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """z -> v, log |det dv / dz| [B]."""
        raise NotImplementedError

    def _prepare(self, x: Tensor, generator: Source) -> Tensor:
        return self._continuous("x", x, self.shape)

    def _continuous(self, name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """x in the model's dtype, once its shape and its dtype are right."""
        self._check_shape(name, x, shape)
        if not x.is_floating_point():
            raise TypeError(f"expected {name} of a floating-point dtype, got {x.dtype}")
        return x.to(self._like.dtype)

    def _finish(self, v: Tensor) -> Tensor:
        """Undoes `_prepare`."""
        return v

    def _log_density(self, v: Tensor, condition: Tensor | None) -> Tensor:
        z, logdet = self._transform(v, condition)
        return logdet - 0.5 * (z.to(logdet.dtype).square() + math.log(2 * math.pi)).sum(1)

    def transform(self, v: Tensor, y: Tensor | None = None, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """f on continuous data [B, *shape], and its log-determinant: z [B, D], log |det dz / dv| [B]."""
        v = self._continuous("v", v, self.shape)
        return self._transform(v, self._given(len(v), y, context))

    def inverse(self, z: Tensor, y: Tensor | None = None, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The inverse of `transform`: v [B, *shape], log |det dv / dz| [B]."""
        z = self._continuous("z", z, (math.prod(self.shape),))
        return self._inverse(z, self._given(len(z), y, context))

    def encode(self, x: Tensor, y: Tensor | None = None, *, context: Tensor | None = None) -> Tensor:
        """The latent z [B, D] of x; standard normal over the data."""
        return self._transform(self._encodable(x), self._given(len(x), y, context))[0]

    def _encodable(self, x: Tensor) -> Tensor:
        return self._prepare(x, None)

    def decode(self, z: Tensor, y: Tensor | None = None, *, context: Tensor | None = None) -> Tensor:
        """The sample x with latent z [B, D]: decode(encode(x)) = x."""
        return self._finish(self.inverse(z, y, context=context)[0])

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | Sequence[int] | int | None = None,
        *,
        generator: Source = None,
        context: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """n samples, [n, *shape].

        y: labels [n] or one label for all; None draws them, equally likely, in a model with labels.
        generator: a torch.Generator, an int seed, or None for torch's global stream.
        temperature: standard deviation of the latent: below 1 likelier, less varied samples.
        """
        check_integer("n", n, 0)
        if not 0 <= temperature < math.inf:
            raise ValueError(f"expected a finite temperature >= 0, got {temperature}")
        like = self._like
        seed = random.seed_of(generator)
        if y is None and self.num_classes is not None:
            y = random.integers(self.num_classes, (n,), generator=seed, draw=1, device=like.device)
        elif isinstance(y, int):
            y = torch.full((n,), y, device=like.device)
        elif y is not None:
            y = torch.as_tensor(y, device=like.device)
        z = random.normal((n, math.prod(self.shape)), generator=seed, dtype=like.dtype, device=like.device)
        return self.decode(temperature * z, y, context=context)
