"""What every normalising flow shares: the change of variables, sampling, encoding."""

from __future__ import annotations

import math

from torch import Tensor

from .. import random
from ..random import Source
from .model import Model


class Flow(Model):
    """A normalising flow with a standard normal prior over a flat latent z [B, D].

    log p(v) = log N(z; 0, I) + log |det dz / dv|,   z = f(v)

    A subclass implements f as `_transform` and `_inverse`. Data is continuous and v is x, unless it overrides
    `_prepare`, `_encodable` and `_finish`. In training mode dropout makes it another map at every call: `eval()` first.
    A temperature scales the latent that is sampled: it is the standard deviation.
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

    def _sample(self, first: int, y: Tensor | None, context: Tensor | None, seed: int, temperature: float) -> Tensor:
        like = self._like
        shape = (self.CHUNK, math.prod(self.shape))
        z = random.normal(shape, generator=seed, first_sample=first, dtype=like.dtype, device=like.device)
        return self.decode(temperature * z, y, context=context)
