"""Masked convolutions as layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._arguments import check_integer

Taps = tuple[tuple[int, int], ...]


class MaskedConv2d(nn.Module):
    """`pygen.ops.masked_conv2d` with its parameters: weight [T, in_channels, out_channels], bias [out_channels].

    taps: (dy, dx) of the live taps, as `pygen.ops.causal_taps` lists them; only these are parameters. Weight decay,
        clipping of gradients and the state of optimizers therefore see no dead ones. (What a channel mask leaves out of
        the tap (0, 0) is a parameter, without gradient.)
    options: the op's, such as channel_mask, dilation and activation.

    Called with x, and with the op's condition, residual and output_size; bias [B, out_channels] is added to the layer's
    own. Weights start as torch.nn.Conv2d's, for the live taps' fan-in. `from_dense` and `to_dense` exchange weights
    with peers.
    """

    weight: Tensor

    def __init__(self, in_channels: int, out_channels: int, taps: Taps, *, bias: bool = True, **options: Any) -> None:
        super().__init__()
        check_integer("in_channels", in_channels, 1)
        check_integer("out_channels", out_channels, 1)
        self.taps, self.options = tuple(taps), options
        shape = (len(self.taps), in_channels, out_channels)
        with torch.no_grad():  # raises for what the op does not admit
            x, weight = torch.empty(1, in_channels, 1, 1, device="meta"), torch.empty(shape, device="meta")
            ops.masked_conv2d(x, weight, taps=self.taps, **options)
        self._add_weight(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def _add_weight(self, weight: Tensor) -> None:
        self.weight = nn.Parameter(weight)

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
    def from_dense(self, weight: Tensor, *, centre: tuple[int, int] | None = None) -> None:
        """Takes the live taps of a kernel [out_channels, in_channels, height, width], masked or not. centre: of its
        elements, that of tap (0, 0); its middle unless given."""
        _, inputs, outputs = self.weight.shape
        if weight.dim() != 4 or tuple(weight.shape[:2]) != (outputs, inputs):
            raise ValueError(f"expected a kernel [{outputs}, {inputs}, height, width], got {list(weight.shape)}")
        self._set_weight(ops.weight_from_dense(weight, self.taps, centre=centre))

    def _set_weight(self, weight: Tensor) -> None:
        self.weight.copy_(weight)

    def to_dense(self, kernel: int | tuple[int, int], *, centre: tuple[int, int] | None = None) -> Tensor:
        """The weight as a kernel [out_channels, in_channels, height, width] with zeros where nothing is live."""
        weight, mask = self.weight, self.options.get("channel_mask")
        if mask is not None and (0, 0) in self.taps:
            gated = self.options.get("activation") in ("gate", "glu")
            grouping = {key: self.options[key] for key in ("channel_groups", "interleaved") if key in self.options}
            _, inputs, outputs = weight.shape
            live = ops.channel_links(inputs, outputs, mask, gated=gated, device=weight.device, **grouping)
            at = torch.tensor([tap == (0, 0) for tap in self.taps], device=weight.device)
            weight = weight * (live | ~at[:, None, None])
        return ops.weight_to_dense(weight, self.taps, kernel, centre=centre)

    def extra_repr(self) -> str:
        taps, inputs, outputs = self.weight.shape
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"{inputs}, {outputs}, {taps} taps{options}"


class NormalizedConv2d(MaskedConv2d):
    """`MaskedConv2d` with weight normalisation (Salimans and Kingma 2016, arXiv 1602.07868), g and v its parameters::

        weight[t, i, o] = g_o v[t, i, o] / |v[..., o]|

    v is drawn from N(0, 0.05^2), and g starts as its norm. While `initializing` is True (see `pygen.nn.initializing`),
    a call first sets g and bias so that what the layer makes of this x, before all that is added to it, has mean 0 and
    the standard deviation init_scale in every channel; a channel that is constant only gets mean 0.
    """

    initializing = False

    def __init__(
        self, in_channels: int, out_channels: int, taps: Taps, *, init_scale: float = 1.0, **options: Any
    ) -> None:
        super().__init__(in_channels, out_channels, taps, **options)
        self.init_scale = init_scale

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.v * (self.g / self._norm())

    def _norm(self) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(self.v, dim=(0, 1))
        return norm.clamp(min=torch.finfo(norm.dtype).tiny)

    def _add_weight(self, weight: Tensor) -> None:
        self.v, self.g = nn.Parameter(weight), nn.Parameter(torch.empty(weight.shape[2]))

    @torch.no_grad()
    def _set_weight(self, weight: Tensor) -> None:
        self.v.copy_(weight)
        self.g.copy_(self._norm())

    def reset_parameters(self) -> None:
        self._set_weight(nn.init.normal_(torch.empty_like(self.v), 0, 0.05))
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
        self.g.mul_(scale)
        if self.bias is not None:
            self.bias.copy_(-mean * scale)


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
