"""The masked autoregressive net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._arguments import check_choice, check_integer
from ..ops.made_inverse import check_skips
from ..reference.made_inverse import NONLINEARITIES, hidden_layers, masks
from .nets import check_condition, start_at, start_small


class MADE(nn.Module):
    """Masked autoencoder (Germain et al. 2015, arXiv 1502.03509): what it puts out for a feature depends on those of
    lower degree alone.

    x [B, features], condition [B, condition_features] or None -> [B, features * outputs], a feature's side by side.

    With the layers of `pygen.ops.made_inverse`, and those of a condition c as nflows has them: b_1 + f(C_1 c + d_1) in
    the place of b_1, and, in residual blocks, b_2k + C_2k c + d_2k in that of b_2k.

    outputs: how many a feature has.
    hidden, blocks: width, and how many blocks there are after the first hidden layer: of two layers each if residual
        (the default), else of one.
    nonlinearity: "relu" (default), "leaky_relu", "elu", "tanh", "sigmoid" or "silu".
    degrees: of the inputs and of each hidden layer; None: see `standard_degrees`.
    start: what is put out for a feature, [outputs], before any training; None: what the random weights give.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        hidden: int,
        blocks: int = 2,
        residual: bool = True,
        nonlinearity: str = "relu",
        condition_features: int = 0,
        degrees: Sequence[Sequence[int]] | None = None,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_integer("features", features, 1)
        check_integer("outputs", outputs, 1)
        check_integer("hidden", hidden, 1)
        check_integer("blocks", blocks, 0)
        check_integer("condition_features", condition_features, 0)
        check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
        count = 1 + blocks * (2 if residual else 1)
        widths = [features, *[hidden] * count]
        if degrees is None:
            degrees = standard_degrees(features, hidden, count)
        # Made and kept on the CPU, even where the model is made on "meta".
        self.degrees = [torch.as_tensor(each, device="cpu") for each in degrees]
        if any(len(each) and (each.dtype == torch.bool or each.is_floating_point()) for each in self.degrees):
            raise TypeError(f"expected degrees as integers, got {[each.dtype for each in self.degrees]}")
        self.degrees = [each.to(torch.int64, copy=True) for each in self.degrees]
        if [list(each.shape) for each in self.degrees] != [[width] for width in widths]:
            raise ValueError(
                f"expected degrees of {' and '.join(map(str, widths))} units, got {[len(each) for each in degrees]}"
            )
        if residual:
            check_skips(self.degrees)
        self.residual, self.nonlinearity, self.condition_features = residual, nonlinearity, condition_features
        for i, mask in enumerate(masks(self.degrees, features * outputs)):
            self.register_buffer(f"mask{i}", mask, persistent=False)
        self.layers = nn.ModuleList(
            nn.Linear(below, above) for below, above in zip(widths, [*widths[1:], features * outputs], strict=True)
        )
        self.conditions = nn.ModuleDict()  # by the layer whose biases they add to
        for i in (0, *range(1, count, 2)) if residual else (0,):
            if condition_features:
                self.conditions[str(i)] = nn.Linear(condition_features, hidden)
        linears = self._linears()
        if residual:
            for second in linears[2:-1:2]:
                start_small(second)
        if start is not None:
            start_at(linears[-1], start.repeat(features))

    def _linears(self) -> list[nn.Linear]:
        return list(self.layers)  # type: ignore[arg-type]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        weights = [torch.where(self.get_buffer(f"mask{i}"), w, 0) for i, w in enumerate(self.weights())]
        biases = self.biases(condition)
        h = hidden_layers(x, weights, biases, self.nonlinearity, self.residual)[-1]
        f, _ = NONLINEARITIES[self.nonlinearity]
        return F.linear(h if self.residual else f(h), weights[-1], biases[-1])

    def weights(self) -> list[Tensor]:
        """Of every layer, not masked: as `pygen.ops.made_inverse` takes them."""
        return [layer.weight for layer in self._linears()]

    def biases(self, condition: Tensor | None = None) -> list[Tensor]:
        """Of every layer, [out], or [B, out] with the condition's part."""
        check_condition(condition, self.condition_features)
        biases: list[Tensor] = [layer.bias for layer in self._linears()]
        for name, layer in self.conditions.items():
            i, given = int(name), layer(condition)
            biases[i] = biases[i] + (given if i else NONLINEARITIES[self.nonlinearity][0](given))
        return biases


def standard_degrees(features: int, hidden: int, layers: int) -> list[list[int]]:
    """1 ... D for the inputs, and for the units of each hidden layer 1 ... D - 1 over and over: all a unit may read is
    in order (the paper's section 4; nflows' choice)."""
    most, least = max(1, features - 1), min(1, features - 1)
    return [list(range(1, features + 1)), *[[i % most + least for i in range(hidden)]] * layers]
