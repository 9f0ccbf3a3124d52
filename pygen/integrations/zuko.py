"""zuko's monotonic rational-quadratic spline in one pass, as a transform that zuko's flows take.

    from pygen.integrations.zuko import MonotonicRQSTransform
    flow = zuko.flows.MAF(5, transforms=3, univariate=MonotonicRQSTransform, shapes=[(8,), (8,), (7,)])

The parameters of zuko.flows.NSF fit such a flow. zuko itself is not needed here: the class is a torch.distributions
transform.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from .. import ops

__all__ = ["MonotonicRQSTransform"]


class MonotonicRQSTransform(Transform):
    """A monotonic rational-quadratic spline on [-bound, bound], beyond which it is the identity.

    Durkan et al. 2019 (arXiv 1906.04032), with zuko's parameters: see style "zuko" of
    `pygen.ops.rational_quadratic_spline`. Values and parameters broadcast. Differentiable once.

    widths, heights: [..., K]. derivatives: [..., K - 1]. slope: the least slope.

    Raises, when it is called, RuntimeError for what does not broadcast, as zuko's does, ValueError for numbers of
    parameters, bound and slope, TypeError for dtypes.
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(
        self,
        widths: Tensor,
        heights: Tensor,
        derivatives: Tensor,
        bound: float = 5.0,
        slope: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.widths, self.heights, self.derivatives = widths, heights, derivatives
        self.bound, self.slope = bound, slope

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}(bins={self.bins})"

    @property
    def bins(self) -> int:
        return self.widths.shape[-1]

    def _spline(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        parameters = self.widths, self.heights, self.derivatives
        shape = torch.broadcast_shapes(x.shape, *(p.shape[:-1] for p in parameters))
        widths, heights, derivatives = (p.expand(*shape, p.shape[-1]) for p in parameters)
        return ops.rational_quadratic_spline(
            x.expand(shape), widths, heights, derivatives,
            inverse=inverse, style="zuko", bounds=self.bound, slope=self.slope,
        )  # fmt: skip

    def _call(self, x: Tensor) -> Tensor:
        return self._spline(x, False)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._spline(y, True)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._spline(x, False)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both in one pass: f(x) and log |f'(x)|."""
        return self._spline(x, False)
