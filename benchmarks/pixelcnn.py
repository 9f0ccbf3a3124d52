"""Training steps of the PixelCNN family: forward and backward of the loss, by all weights.

Eager is the model as users write it: dense kernels, the gates, concatenated ELUs and likelihoods in torch's functions.
Kernels are masked in GatedPixelCNN and cropped to the taps in PixelCNN++, as their authors have it; "crop": in the
former as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .. import backends
from ..models import Autoregressive, GatedPixelCNN, PixelCNNPlusPlus
from ..nn import CausalHead, MaskedConv2d
from ..ops import channel_links, weight_to_dense
from .cases import Case, Function, Inputs, Problem, Tensors, Work
from .logistic_mixture import exact, likelihood

# --- eager: convolutions ----------------------------------------------------------------------------------------------


Kernel = tuple[Tensor, tuple[int, int, int, int]]  # and how far it reaches: top, bottom, left, right


def kernel_of(layer: MaskedConv2d, crop: bool) -> Kernel:
    """The layer's dense kernel. crop: the smallest one, else one about the pixel."""
    transposed = layer.options.get("transposed", False)
    sign = -1 if transposed else 1
    taps = [(sign * dy, sign * dx) for dy, dx in layer.taps]
    reach = [(min(t[axis] for t in taps), max(t[axis] for t in taps)) for axis in (0, 1)]
    if not crop and not transposed:
        reach = [(-most, most) for most in (max(-low, high) for low, high in reach)]
    (top, bottom), (left, right) = reach
    dense = weight_to_dense(layer.weight, taps, (bottom - top + 1, right - left + 1), centre=(-top, -left))
    if "channel_mask" in layer.options and (0, 0) in taps:
        options = layer.options
        live = channel_links(
            *layer.weight.shape[1:], options["channel_mask"], channel_groups=options["channel_groups"],
            gated=options["activation"] == "gate", device=dense.device,
        )  # fmt: skip
        mask = dense.new_ones(dense.shape)
        mask[:, :, -top, -left] = live.T.to(dense)
        dense = dense * mask
    return dense, (top, bottom, left, right)


def conv(layer: MaskedConv2d, kernel: Kernel, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
    """The layer's convolution with its bias."""
    stride, dilation = layer.options.get("stride", 1), layer.options.get("dilation", 1)
    dense, (top, bottom, left, right) = kernel
    if layer.options.get("transposed", False):
        height, width = output_size or (stride * x.shape[2], stride * x.shape[3])
        y = F.conv_transpose2d(x, dense.transpose(0, 1), layer.bias, stride)
        return y[:, :, -top : height - top, -left : width - left]
    if (top, left) == (-bottom, -right):
        return F.conv2d(x, dense, layer.bias, stride, (bottom * dilation, right * dilation), dilation)
    x = F.pad(x, [dilation * n for n in (-left, right, -top, bottom)])
    return F.conv2d(x, dense, layer.bias, stride, 0, dilation)


def gate(a: Tensor, squash: Callable[[Tensor], Tensor] = torch.tanh) -> Tensor:
    first, second = a.chunk(2, 1)
    return squash(first) * torch.sigmoid(second)


def concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], 1))


# --- eager: models ----------------------------------------------------------------------------------------------------


class Eager(nn.Module):
    """A pygen model's parameters in a forward pass of plain PyTorch. fixed: they do not change any more."""

    def __init__(self, model: Autoregressive, crop: bool, last: bool, *, fixed: bool = False) -> None:
        super().__init__()
        self.model = model
        self.kernels: dict[nn.Module, Kernel] | None = {} if fixed else None
        self.crop, self.format = crop, torch.channels_last if last else torch.contiguous_format

    def conv(self, layer: nn.Module, x: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        assert isinstance(layer, MaskedConv2d)
        if self.kernels is None:
            return conv(layer, kernel_of(layer, self.crop), x, output_size)
        if layer not in self.kernels:
            self.kernels[layer] = kernel_of(layer, self.crop)
        return conv(layer, self.kernels[layer], x, output_size)

    def forward(self, levels: Tensor) -> Tensor:
        scale = self.model.levels - 1
        x = (levels.to(self.model._like) * (2 / scale) - 1).to(memory_format=self.format)
        return self.nll(levels, x).sum() / levels.numel()

    def parameters_of(self, x: Tensor) -> Tensor:
        """What the head makes of an image scaled to [-1, 1]: logits, or a mixture's parameters, at every pixel."""
        raise NotImplementedError

    def nll(self, levels: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class EagerGated(Eager):
    def parameters_of(self, x: Tensor) -> Tensor:
        model = self.model
        assert isinstance(model, GatedPixelCNN)
        assert isinstance(model.head, CausalHead)
        vertical, horizontal, total = x, x, None
        for layer in model.layers:
            v = self.conv(layer.vertical, vertical)
            h = gate(self.conv(layer.horizontal, horizontal) + self.conv(layer.link, v))
            skip = self.conv(layer.skip, h)
            total = skip if total is None else total + skip
            if layer.out is not None:
                out = self.conv(layer.out, h)
                horizontal = horizontal + out if layer.residual else out
                vertical = gate(v)
        h = F.relu(self.conv(model.last, F.relu(total)))
        return F.conv2d(h, model.head._weight()[:, :, None, None], model.head.bias)

    def nll(self, levels: Tensor, x: Tensor) -> Tensor:
        logits, channels = self.parameters_of(x), levels.shape[1]
        return F.cross_entropy(logits.unflatten(1, (channels, -1)).transpose(1, 2), levels, reduction="none")


class EagerPlusPlus(Eager):
    def block(self, block: Any, x: Tensor, short: Tensor | None) -> Tensor:
        h = self.conv(block.first, concat_elu(x))
        if short is not None:
            h = h + self.conv(block.short, concat_elu(short))
        h = F.dropout(concat_elu(h), block.dropout.p, self.training)
        return x + gate(self.conv(block.second, h), nn.Identity())

    def parameters_of(self, x: Tensor) -> Tensor:
        model: Any = self.model
        padded = torch.cat([x, x.new_ones(x.shape[0], 1, *x.shape[2:])], 1)
        u = self.conv(model.above, padded)
        ul = self.conv(model.row_above, padded) + self.conv(model.left, padded)
        shorts = [(u, ul)]
        for stage in model.down:
            if hasattr(stage.above, "first"):
                u = self.block(stage.above, u, None)
                ul = self.block(stage.beside, ul, u)
            else:
                u, ul = self.conv(stage.above, u), self.conv(stage.beside, ul)
            shorts.append((u, ul))
        u, ul = shorts.pop()
        for stage in model.up:
            if hasattr(stage.above, "first"):
                short = shorts.pop()
                u = self.block(stage.above, u, short[0])
                ul = self.block(stage.beside, ul, torch.cat([u, short[1]], 1))
            else:
                height, width = shorts[-1][0].shape[2:]
                u, ul = (self.conv(layer, z, (height, width)) for layer, z in ((stage.above, u), (stage.beside, ul)))
        return self.conv(model.head.parameters_of, F.elu(ul))

    def nll(self, levels: Tensor, x: Tensor) -> Tensor:
        return likelihood(x, exact, self.format == torch.channels_last, self.parameters_of(x))[0]


# --- cases ------------------------------------------------------------------------------------------------------------


def products(model: Autoregressive, levels: Tensor) -> int:
    """Multiplications and additions of the model's convolutions, live taps alone."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, MaskedConv2d):
            sites = inputs[0] if layer.options.get("transposed") else output
            total += 2 * layer.weight.numel() * sites.shape[0] * sites.shape[2] * sites.shape[3]

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, MaskedConv2d)]
    with torch.no_grad():
        model(levels)
    for hook in hooks:
        hook.remove()
    if isinstance(model.head, CausalHead):
        total += 2 * model.head.weight.numel() * levels.numel() // levels.shape[1]
    return total


def case(
    name: str,
    model_of: Callable[..., Autoregressive],
    eager_of: type[Eager],
    shape: tuple[int, int, int, int],
    **of_case: Any,
) -> Case:
    def build(device: torch.device) -> Problem:
        torch.manual_seed(0)
        model = model_of(shape[1:]).to(device)
        levels = torch.randint(model.levels, shape, device=device)
        model.initialize(levels)
        names, tensors = zip(*((n, p.detach()) for n, p in model.named_parameters()), strict=True)
        double = model_of(shape[1:]).to(device).double()

        def by(module: nn.Module, prefix: str = "") -> Function:
            def loss(*tensors: Tensor) -> Tensors:
                named = {f"{prefix}{n}": t for n, t in zip(names, tensors, strict=True)}
                return (functional_call(module, named, (levels,)),)

            return loss

        def truth(*tensors: Tensor) -> Tensors:
            with backends.use("reference"):
                return by(double)(*tensors)

        def forms(crop: bool) -> dict[str, Function]:
            return {
                name: by(eager_of(model, crop, last), "model.")
                for name, last in (("contiguous", False), ("channels_last", True))
            }

        weights = sum(t.nbytes for t in tensors)
        fwd = Work(weights + levels.nbytes, products(model, levels))
        bwd = Work(2 * weights, 2 * fwd.flops)
        work, masked = {"full": fwd + bwd}, eager_of is EagerGated
        peers = {"crop": lambda: forms(True)["channels_last"]} if masked else {}
        return Problem(Inputs(tensors), by(model), forms(not masked), truth, work, peers, slack=4)

    return Case("pixelcnn", f"{name}-{'x'.join(map(str, shape))}", build, modes=("full",), **of_case)


CASES = (
    case("gated-48", partial(GatedPixelCNN, layers=3), EagerGated, (16, 1, 28, 28), quick=True),
    case("gated-48", GatedPixelCNN, EagerGated, (64, 1, 28, 28)),
    case("gated-96", partial(GatedPixelCNN, hidden=96), EagerGated, (16, 3, 32, 32)),
    case(
        "plusplus-32",
        partial(PixelCNNPlusPlus, hidden=32, blocks=2, dropout=0.0),
        EagerPlusPlus,
        (16, 3, 32, 32),
        compiles=False,
    ),
    case(
        "plusplus-64",
        partial(PixelCNNPlusPlus, hidden=64, blocks=2, dropout=0.0),
        EagerPlusPlus,
        (16, 1, 28, 28),
        compiles=False,
    ),
)
