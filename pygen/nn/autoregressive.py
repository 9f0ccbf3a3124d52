"""Masked autoregressive flow layer."""

from __future__ import annotations

from torch import Tensor, nn

from .. import ops
from .made import MADE
from .transforms import Affine, Spline


class MaskedAutoregressive(nn.Module):
    """Flow layer y_i = T(x_i; p_i), where the parameters p_i of feature i come from those of lower degree, by a `MADE`.

    Affine T: MAF (Papamakarios et al. 2017, arXiv 1705.07057); splines: the autoregressive Neural Spline Flow (Durkan
    et al. 2019, arXiv 1906.04032). All features at once from x to y; the inverse is the sweep of
    `pygen.ops.made_inverse`, feature by feature for the work of one pass.

    made: puts out `transform.parameters` for a feature.
    """

    def __init__(self, made: MADE, transform: Affine | Spline) -> None:
        super().__init__()
        given = made.layers[-1].out_features / len(made.degrees[0])  # type: ignore[operator]
        if given != transform.parameters:
            raise ValueError(f"expected a net of {transform.parameters} outputs a feature, got {given:g}")
        self.made, self.transform = made, transform

    def forward(
        self, x: Tensor, logdet: Tensor | None = None, condition: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        made, transform = self.made, self.transform
        if not inverse:
            return transform(x, made(x, condition), logdet)
        y, total = ops.made_inverse(
            x, made.weights(), made.biases(condition), made.degrees,
            nonlinearity=made.nonlinearity, residual=made.residual, transform=transform.name, **transform.options,
        )  # fmt: skip
        return y, total if logdet is None else logdet + total
