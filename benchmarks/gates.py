"""Gates: the sizes of PixelCNN's layers, in both layouts. 2C channels of x."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops, reference
from .cases import Case, Function, Inputs, Problem, Tensors, Work


def gate(x: Tensor) -> Tensors:
    a, b = x.chunk(2, 1)
    return (torch.tanh(a) * torch.sigmoid(b),)


def conditional_gate(x: Tensor, bias: Tensor, condition: Tensor, residual: Tensor) -> Tensors:
    a, b = (x + bias[:, :, None, None] + condition).chunk(2, 1)
    return (torch.tanh(a) * torch.sigmoid(b) + residual,)


def linear(x: Tensor) -> Tensors:
    a, b = x.chunk(2, 1)
    return (a * torch.sigmoid(b),)


def glu(x: Tensor) -> Tensors:
    return (F.glu(x, 1),)


def concat_elu(x: Tensor) -> Tensors:
    return (F.elu(torch.cat([x, -x], 1)),)


def first_of(function: Any, **options: Any) -> Function:
    """x, bias, condition and residual, as far as given, to a tuple."""

    def call(x: Tensor, *others: Tensor) -> Tensors:
        return (function(x, **dict(zip(("bias", "condition", "residual"), others, strict=False)), **options),)

    return call


def case(
    name: str,
    shape: tuple[int, ...],
    op: str,
    *eager: Function,
    options: dict[str, Any] | None = None,
    conditional: bool = False,
    layout: str = "contiguous",
    dtype: torch.dtype = torch.float32,
    **of_case: Any,
) -> Case:
    def build(device: torch.device) -> Problem:
        generator = torch.Generator(device).manual_seed(0)
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format

        def normal(*size: int) -> Tensor:
            values = torch.randn(size, generator=generator, device=device, dtype=dtype)
            return values.to(memory_format=memory_format) if len(size) == 4 else values

        b, wide, *sites = shape
        x = normal(*shape)
        others = (normal(b, wide), normal(*shape), normal(b, wide // 2, *sites)) if conditional else ()
        out = x.numel() // 2 if op == "gated_activation" else 2 * x.numel()
        read = x.numel() * (2 if conditional else 1)
        fwd = Work((read + out + (out if conditional else 0)) * x.element_size())
        bwd = Work((read + out + x.numel()) * x.element_size())
        ours, truth = (first_of(getattr(home, op), **(options or {})) for home in (ops, reference))
        return Problem(
            inputs=Inputs((x, *others), layout),
            ours=ours,
            eager={f.__name__: f for f in eager},
            reference=truth,
            work={"fwd": fwd, "bwd": bwd, "full": fwd + bwd},
        )

    suffix = "-channels_last" if layout == "channels_last" else ""
    return Case("gates", f"{name}{suffix}-{'x'.join(map(str, shape))}", build, dtype, **of_case)


SIZES = ((16, 128, 32, 32), (64, 128, 28, 28), (16, 256, 32, 32), (64, 256, 28, 28))
MIDDLE = SIZES[0]

CASES = (
    *(
        case("gate", shape, "gated_activation", gate, layout=layout, quick=shape == MIDDLE)
        for shape in SIZES
        for layout in ("contiguous", "channels_last")
    ),
    *(
        case("conditional", MIDDLE, "gated_activation", conditional_gate, conditional=True, layout=layout)
        for layout in ("contiguous", "channels_last")
    ),
    case("gate-bfloat16", MIDDLE, "gated_activation", gate, dtype=torch.bfloat16),
    case("gate-float64", MIDDLE, "gated_activation", gate, dtype=torch.float64),
    case("linear", MIDDLE, "gated_activation", linear, glu, options={"kind": "linear"}),
    *(
        case("concat_elu", (16, 160, 32, 32), "concat_elu", concat_elu, layout=layout)
        for layout in ("contiguous", "channels_last")
    ),
)
