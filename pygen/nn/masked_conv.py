"""Masked convolutions as layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ._arguments import check_integer

Taps = tuple[tuple[int, int], ...]


class MaskedConv2d(nn.Module):
    """`pygen.ops.masked_conv2d` with its parameters: weight [T, in_channels, out_channels], bias [out_channels].

    taps: (dy, dx) of the live taps, as `pygen.ops.causal_taps` lists them; only these are parameters. Weight decay,
        clipping of gradients and the state of optimizers therefore see no dead ones.
    options: the op's, such as channel_mask, dilation and activation.

    Called with x, and with the op's condition, residual and output_size; bias [B, out_channels] is added to the layer's
    own. Weights start as torch.nn.Conv2d's, for the live taps' fan-in. `from_dense` and `to_dense` exchange weights
    with peers.
    """

    def __init__(self, in_channels: int, out_channels: int, taps: Taps, *, bias: bool = True, **options: Any) -> None:
        super().__init__()
        check_integer("in_channels", in_channels, 1)
        check_integer("out_channels", out_channels, 1)
        self.taps, self.options = tuple(taps), options
        self.weight = nn.Parameter(torch.empty(len(self.taps), in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = (self.weight.shape[0] * self.weight.shape[1]) ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(
        self,
        x: Tensor,
        *,
        bias: Tensor | None = None,
        condition: Tensor | None = None,
        residual: Tensor | None = None,
        output_size: tuple[int, int] | None = None,
    ) -> Tensor:
        own = self.bias if bias is None or self.bias is None else self.bias + bias
        own = bias if own is None else own
        return ops.masked_conv2d(
            x, self.weight, own, taps=self.taps, condition=condition, residual=residual, output_size=output_size,
            **self.options,
        )  # fmt: skip

    @torch.no_grad()
    def from_dense(self, weight: Tensor) -> None:
        """Takes the live taps of a masked kernel [out_channels, in_channels, height, width]."""
        self._set(ops.weight_from_dense(weight, self.taps))

    def _set(self, weight: Tensor) -> None:
        self.weight.copy_(weight)

    def to_dense(self, kernel: int | tuple[int, int]) -> Tensor:
        """The weight as a kernel [out_channels, in_channels, height, width] with zeros at its dead taps."""
        return ops.weight_to_dense(self.weight, self.taps, kernel)

    def extra_repr(self) -> str:
        taps, inputs, outputs = self.weight.shape
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"{inputs}, {outputs}, {taps} taps{options}"


class NormalizedConv2d(MaskedConv2d):
    """`MaskedConv2d` with weight normalisation (Salimans and Kingma 2016, arXiv 1602.07868)::

        weight[t, i, o] = g_o v[t, i, o] / |v[..., o]|

    v is drawn from N(0, 0.05^2). While `initializing` is True (`initializing(model)`), a call first sets g and bias so
    that what the layer makes of this x, before all that is added to it, has mean 0 and the standard deviation
    init_scale in every channel; a channel that is constant only gets mean 0.
    """

    initializing = False

    def __init__(
        self, in_channels: int, out_channels: int, taps: Taps, *, init_scale: float = 1.0, **options: Any
    ) -> None:
        super().__init__(in_channels, out_channels, taps, **options)
        self.init_scale = init_scale
        nn.utils.parametrizations.weight_norm(self, dim=2)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, 0, 0.05)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, **added: Any) -> Tensor:
        if self.initializing:
            self._initialize(x, added.get("output_size"))
        return super().forward(x, **added)

    @torch.no_grad()
    def _initialize(self, x: Tensor, output_size: tuple[int, int] | None) -> None:
        options = self.options | {"activation": None, "output_size": output_size}
        y = ops.masked_conv2d(x, self.weight, taps=self.taps, **options)
        variance, mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
        scale = torch.where(variance > 1e-12, self.init_scale * variance.rsqrt(), 1.0)
        self._set(self.weight * scale.to(y))
        if self.bias is not None:
            self.bias.copy_(-mean * scale)

    def _set(self, weight: Tensor) -> None:
        self.weight = weight  # type: ignore[assignment]  # the parametrization takes it apart


@contextlib.contextmanager
def initializing(model: nn.Module) -> Iterator[None]:
    """While this is open, calls of the model set its `NormalizedConv2d` layers by the data that they are given."""
    layers = [layer for layer in model.modules() if isinstance(layer, NormalizedConv2d)]
    for layer in layers:
        layer.initializing = True
    try:
        yield
    finally:
        for layer in layers:
            layer.initializing = False
